//! Operations on the resources that a new server is placed in: regions, zones, VPCs, subnets, keys, groups.

use std::time::SystemTime;

use super::RegionClient;
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::{InstanceProfile, Key, Region, SecurityGroup, Subnet, Vpc, Zone};
use crate::vpc::names::VpcId;

impl RegionClient {
    /// Returns all regions with the addresses of their APIs.
    ///
    /// # Errors
    /// If the API can't be reached, refuses, or returns a malformed response; the same holds for every
    /// operation.
    pub async fn regions(&self) -> Result<Vec<Region>, VpcError> {
        self.unpaged_list(&["regions"], "regions").await
    }

    /// Returns the API's own time, if its response has one: the clock by which it checks tokens and
    /// signatures.
    ///
    /// # Errors
    /// As for [`RegionClient::regions`].
    pub async fn server_time(&self) -> Result<Option<SystemTime>, VpcError> {
        Ok(self.client.send(&ApiRequest::get(&["regions"])).await?.date)
    }

    /// Returns the zones of this region.
    ///
    /// # Errors
    /// As for [`RegionClient::regions`].
    pub async fn zones(&self) -> Result<Vec<Zone>, VpcError> {
        self.unpaged_list(&["regions", self.region(), "zones"], "zones").await
    }

    /// Returns the profiles for servers.
    ///
    /// # Errors
    /// As for [`RegionClient::regions`].
    pub async fn instance_profiles(&self) -> Result<Vec<InstanceProfile>, VpcError> {
        self.list(&["instance", "profiles"], "profiles", &[]).await
    }

    /// Returns all VPCs of the region.
    ///
    /// # Errors
    /// As for [`RegionClient::regions`].
    pub async fn vpcs(&self) -> Result<Vec<Vpc>, VpcError> {
        self.list(&["vpcs"], "vpcs", &[]).await
    }

    /// Returns the VPC with that name. The API has no filter for it.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is none, and as for [`RegionClient::regions`].
    pub async fn vpc(&self, name: &str) -> Result<Vpc, VpcError> {
        let found = self.vpcs().await?.into_iter().find(|vpc| vpc.name == name);
        self.require(found, "VPC", name)
    }

    /// Returns the subnet with that name in a VPC. Without a VPC, the name has to be unique among all VPCs.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is none, [`VpcError::Setup`] if several VPCs have one, and as for
    /// [`RegionClient::regions`].
    pub async fn subnet(&self, name: &str, vpc: Option<&VpcId>) -> Result<Subnet, VpcError> {
        let all: Vec<Subnet> = self.list(&["subnets"], "subnets", &[]).await?;
        let mut named = all
            .into_iter()
            .filter(|subnet| subnet.name == name && vpc.is_none_or(|vpc| subnet.vpc.id == *vpc));
        let first = self.require(named.next(), "subnet", name)?;
        match named.next() {
            Some(_) => Err(VpcError::Setup(format!("several VPCs have a subnet {name:?}: name the VPC too"))),
            None => Ok(first),
        }
    }

    /// Returns the SSH key with that name.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is none, and as for [`RegionClient::regions`].
    pub async fn key(&self, name: &str) -> Result<Key, VpcError> {
        let all: Vec<Key> = self.list(&["keys"], "keys", &[]).await?;
        self.require(all.into_iter().find(|key| key.name == name), "SSH key", name)
    }

    /// Returns the security group with that name in a VPC.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is none, and as for [`RegionClient::regions`].
    pub async fn security_group(&self, name: &str, vpc: &VpcId) -> Result<SecurityGroup, VpcError> {
        let filters = [("vpc.id", vpc.as_str().to_owned())];
        let all: Vec<SecurityGroup> = self.list(&["security_groups"], "security_groups", &filters).await?;
        self.require(all.into_iter().find(|group| group.name == name), "security group", name)
    }
}
