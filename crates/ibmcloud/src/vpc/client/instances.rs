//! Operations on servers, which the API calls instances.

use serde::Serialize;
use serde_json::{Value, json};
use snapferry_base::suggest::similar;

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::{Instance, InstanceState, Volume};
use crate::vpc::names::{
    Crn, ImageId, InstanceId, KeyId, ResourceGroupId, ResourceName, SecurityGroupId, SnapshotId, SubnetId,
    Tag, VpcId,
};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// Source of a new server's boot volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFrom {
    /// Image in the region.
    Image(ImageId),
    /// Snapshot in the region.
    Snapshot(SnapshotId),
    /// Snapshot by its CRN; it may belong to another account.
    SnapshotCrn(Crn),
}

/// Request for a new server.
#[derive(Clone, Debug)]
pub struct InstancePrototype {
    /// Name of the new server.
    pub name: ResourceName,
    /// VPC of the server.
    pub vpc: VpcId,
    /// Zone of the server.
    pub zone: String,
    /// Profile of the server, such as `bx2-2x8`.
    pub profile: String,
    /// Source of the boot volume.
    pub boot: BootFrom,
    /// Profile of the boot volume. If none, the API's default, or `general-purpose` if another setting of the
    /// boot volume is given.
    pub boot_profile: Option<String>,
    /// Name of the boot volume; chosen by the API if none.
    pub boot_volume_name: Option<ResourceName>,
    /// Subnet of the server's network interface.
    pub subnet: SubnetId,
    /// Address in the subnet; chosen by the API if none.
    pub address: Option<String>,
    /// Security groups of the server; the VPC's default group if empty.
    pub security_groups: Vec<SecurityGroupId>,
    /// SSH keys that can log in to the server.
    pub keys: Vec<KeyId>,
    /// Resource group; chosen by the API if none.
    pub resource_group: Option<ResourceGroupId>,
    /// User tags of the boot volume.
    pub tags: Vec<Tag>,
    /// User data for cloud-init.
    pub user_data: Option<String>,
}

impl InstancePrototype {
    /// Returns the body of the request.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut interface = json!({ "subnet": { "id": self.subnet } });
        if let Some(address) = &self.address {
            interface["primary_ip"] = json!({ "address": address });
        }
        if !self.security_groups.is_empty() {
            interface["security_groups"] =
                self.security_groups.iter().map(|id| json!({ "id": id })).collect();
        }
        let mut body = json!({
            "name": self.name,
            "vpc": { "id": self.vpc },
            "zone": { "name": self.zone },
            "profile": { "name": self.profile },
            "keys": self.keys.iter().map(|id| json!({ "id": id })).collect::<Value>(),
            "primary_network_attachment": { "virtual_network_interface": interface },
        });
        let mut volume = json!({});
        if let Some(profile) = &self.boot_profile {
            volume["profile"] = json!({ "name": profile });
        }
        if let Some(name) = &self.boot_volume_name {
            volume["name"] = json!(name);
        }
        if !self.tags.is_empty() {
            volume["user_tags"] = json!(self.tags);
        }
        match &self.boot {
            BootFrom::Image(id) => body["image"] = json!({ "id": id }),
            BootFrom::Snapshot(id) => volume["source_snapshot"] = json!({ "id": id }),
            BootFrom::SnapshotCrn(crn) => volume["source_snapshot"] = json!({ "crn": crn }),
        }
        if volume.as_object().is_some_and(|volume| !volume.is_empty()) {
            if volume.get("profile").is_none() {
                // The API requires a profile in every description of a boot volume.
                volume["profile"] = json!({ "name": "general-purpose" });
            }
            body["boot_volume_attachment"] =
                json!({ "delete_volume_on_instance_delete": true, "volume": volume });
        }
        if let Some(group) = &self.resource_group {
            body["resource_group"] = json!({ "id": group });
        }
        if let Some(user_data) = &self.user_data {
            body["user_data"] = json!(user_data);
        }
        body
    }
}

/// Action that a server carries out on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceAction {
    /// Start a stopped server.
    Start,
    /// Stop a running server.
    Stop,
    /// Stop the server and start it again.
    Reboot,
}

impl RegionClient {
    /// Returns all servers of the region.
    ///
    /// # Errors
    /// If the API can't be reached, refuses, or returns a malformed response; the same holds for every
    /// operation.
    pub async fn instances(&self) -> Result<Vec<Instance>, VpcError> {
        self.list(&["instances"], "instances", &[]).await
    }

    /// Returns the server with that name.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn instance_by_name(&self, name: &str) -> Result<Option<Instance>, VpcError> {
        self.by_name(&["instances"], "instances", &[], name, |instance: &Instance| &instance.name).await
    }

    /// Returns the server with that name, which has to exist. If it does not, the error lists similar names.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if it does not exist, and as for [`RegionClient::instances`].
    pub async fn server(&self, name: &str) -> Result<Instance, VpcError> {
        if let Some(found) = self.instance_by_name(name).await? {
            return Ok(found);
        }
        // If listing fails, the error to report is still that there is no server with this name.
        let all = self.instances().await.unwrap_or_default();
        let similar = similar(name, all.iter().map(|server| server.name.as_str()))
            .into_iter()
            .map(str::to_owned)
            .collect();
        Err(VpcError::Missing {
            kind: "server",
            name: name.to_owned(),
            scope: self.region().to_owned(),
            similar,
        })
    }

    /// Returns the boot volume of a server, which has to exist.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if it does not exist, and as for [`RegionClient::instances`].
    pub async fn boot_volume(&self, server: &Instance) -> Result<Volume, VpcError> {
        let volume = match server.boot_volume() {
            Some(id) => self.volume(id).await?,
            None => None,
        };
        self.require(volume, "boot volume of", &server.name)
    }

    /// Returns the server with that identifier.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn instance(&self, id: &InstanceId) -> Result<Option<Instance>, VpcError> {
        self.get_if_any(&["instances", id.as_str()]).await
    }

    /// Creates a server, or adopts the existing one with that name, VPC, zone and profile.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if another server has the name, and as for [`RegionClient::instances`].
    pub async fn create_instance(&self, prototype: &InstancePrototype) -> Result<Instance, VpcError> {
        let call = ApiRequest::post(&["instances"], &prototype.body())?;
        let creation = Creation { kind: "server", name: &prototype.name, call, patience: Patience::BUSY };
        self.create(
            &creation,
            || self.instance_by_name(prototype.name.as_str()),
            |instance: &Instance| instance.id.as_str(),
            |instance| {
                differs("VPC", prototype.vpc.as_str(), Some(instance.vpc.id.as_str()))
                    .or_else(|| differs("zone", &prototype.zone, Some(&instance.zone.name)))
                    .or_else(|| differs("profile", &prototype.profile, Some(&instance.profile.name)))
            },
        )
        .await
    }

    /// Starts, stops or reboots a server. To start a running server or stop a stopped one changes nothing, so
    /// these requests are sent again if the response is lost; a reboot is not.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn act(&self, id: &InstanceId, action: InstanceAction) -> Result<(), VpcError> {
        let call = ApiRequest::post(&["instances", id.as_str(), "actions"], &json!({ "type": action }))?;
        let call = if action == InstanceAction::Reboot { call } else { call.freely() };
        let send = async || self.client.send(&call).await.map(|_| ());
        let check = async || {
            let current = self.instance(id).await?.map(|instance| instance.status);
            Ok(match (action, current) {
                (InstanceAction::Start, Some(InstanceState::Running | InstanceState::Starting))
                | (InstanceAction::Stop, Some(InstanceState::Stopped | InstanceState::Stopping)) => {
                    Conflict::Done(())
                }
                (_, None | Some(InstanceState::Failed | InstanceState::Deleting)) => Conflict::Final,
                _ => Conflict::Passing,
            })
        };
        self.client.change(&format!("server {id}"), Patience::BUSY, send, check).await
    }

    /// Deletes a server. Succeeds too if it is already deleted or being deleted.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn delete_instance(&self, id: &InstanceId) -> Result<(), VpcError> {
        self.remove(&format!("server {id}"), Patience::BUSY, &["instances", id.as_str()], async || {
            let current = self.instance(id).await?;
            Ok(Conflict::unless(
                current.is_none_or(|current| current.status == InstanceState::Deleting).then_some(()),
            ))
        })
        .await
    }

    /// Waits until a server runs.
    ///
    /// # Errors
    /// [`VpcError::Ended`] if it fails or is deleted, [`VpcError::Overdue`], and as for
    /// [`RegionClient::instances`].
    pub async fn instance_running(&self, id: &InstanceId, patience: Patience) -> Result<Instance, VpcError> {
        self.waiting(format!("server {id}"), patience)
            .until(async || {
                let instance = self.instance(id).await?;
                let instance = self.require(instance, "server", id.as_str())?;
                let verdict = match instance.status {
                    InstanceState::Running => Verdict::Reached,
                    InstanceState::Failed | InstanceState::Deleting => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                let reasons = instance.status_reasons.iter().map(|reason| reason.describe()).collect();
                Ok(Sighting { verdict, state: instance.status.to_string(), reasons, resource: instance })
            })
            .await
    }
}
