//! What a new server is put into.

use serde::Deserialize;

use super::{Named, Reference};
use crate::vpc::names::{Crn, KeyId, ResourceGroupId, SecurityGroupId, SubnetId, VpcId};

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

/// A profile for servers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceProfile {
    /// Its name.
    pub name: String,
}

/// A resource group, as other things tell of it.
pub type ResourceGroup = Reference<ResourceGroupId>;
