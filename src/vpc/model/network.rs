//! What a new server is put into.

use serde::Deserialize;

use super::{Named, Reference};
use crate::vpc::names::{Crn, KeyId, SecurityGroupId, SubnetId, VpcId};

/// A region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Its API's public address.
    pub endpoint: String,
    /// `available` or `unavailable`.
    pub status: String,
}

/// A zone of a region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// `available`, `impaired` or `unavailable`.
    pub status: String,
}

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// Its CRN.
    pub crn: Crn,
    /// Its name, unique in the region.
    pub name: String,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its name, unique in the VPC.
    pub name: String,
    /// Its addresses.
    #[serde(default)]
    pub ipv4_cidr_block: Option<String>,
    /// Its VPC.
    pub vpc: Reference<VpcId>,
    /// Its zone.
    pub zone: Named,
}

/// An SSH key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Its name, unique in the region.
    pub name: String,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its name, unique in the VPC.
    pub name: String,
}

/// A figure of a profile: fixed, or a range with a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Figure {
    /// Where it is fixed.
    #[serde(default)]
    pub value: Option<u64>,
    /// Where it can be chosen.
    #[serde(default)]
    pub default: Option<u64>,
}

impl Figure {
    /// What a server has of it, unless somebody chose otherwise.
    #[must_use]
    pub fn usual(&self) -> Option<u64> {
        self.value.or(self.default)
    }
}

/// A profile for servers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceProfile {
    /// Its name.
    pub name: String,
    /// Megabits a second, for volumes and the network together.
    #[serde(default)]
    pub bandwidth: Option<Figure>,
    /// Cores.
    #[serde(default)]
    pub vcpu_count: Option<Figure>,
}
