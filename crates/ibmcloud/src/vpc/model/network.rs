//! Models of the resources that a new server is placed in: region, zone, VPC, subnet, keys, groups, profiles.

use serde::Deserialize;

use super::{Named, Reference};
use crate::vpc::names::{Crn, KeyId, SecurityGroupId, SubnetId, VpcId};

/// Region of the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Region {
    /// Name of the region, as in `us-south`.
    pub name: String,
    /// Public address of the region's API.
    pub endpoint: String,
    /// State of the region: `available` or `unavailable`.
    pub status: String,
}

/// Zone of a region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Zone {
    /// Name of the zone, as in `us-south-1`.
    pub name: String,
    /// State of the zone: `available`, `impaired` or `unavailable`.
    pub status: String,
}

/// Virtual private cloud of the account.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Vpc {
    /// Identifier of the VPC, as the API returns it.
    pub id: VpcId,
    /// CRN of the VPC.
    pub crn: Crn,
    /// Name of the VPC, unique in the region.
    pub name: String,
}

/// Subnet of a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Subnet {
    /// Identifier of the subnet, as the API returns it.
    pub id: SubnetId,
    /// Name of the subnet, unique in the VPC.
    pub name: String,
    /// IPv4 address range of the subnet in CIDR notation.
    #[serde(default)]
    pub ipv4_cidr_block: Option<String>,
    /// VPC that the subnet belongs to.
    pub vpc: Reference<VpcId>,
    /// Zone that the subnet is in.
    pub zone: Named,
}

/// SSH key that a new server can accept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Key {
    /// Identifier of the key, as the API returns it.
    pub id: KeyId,
    /// Name of the key, unique in the region.
    pub name: String,
}

/// Security group of a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SecurityGroup {
    /// Identifier of the security group, as the API returns it.
    pub id: SecurityGroupId,
    /// Name of the security group, unique in the VPC.
    pub name: String,
}

/// Property of a profile: a fixed value, or a range with a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Figure {
    /// Value, if the profile fixes it.
    #[serde(default)]
    pub value: Option<u64>,
    /// Default value, if the profile allows a choice.
    #[serde(default)]
    pub default: Option<u64>,
}

impl Figure {
    /// Returns the value that a server gets unless its creator chooses another one.
    #[must_use]
    pub fn usual(&self) -> Option<u64> {
        self.value.or(self.default)
    }
}

/// Profile of servers: cores and bandwidth.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceProfile {
    /// Name of the profile, as in `bx2-2x8`.
    pub name: String,
    /// Bandwidth in megabits per second, shared by volumes and the network.
    #[serde(default)]
    pub bandwidth: Option<Figure>,
    /// Number of virtual cores.
    #[serde(default)]
    pub vcpu_count: Option<Figure>,
}
