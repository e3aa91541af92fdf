//! Servers.

use serde::Serialize;
use serde_json::{Value, json};

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::near::near;
use crate::vpc::error::VpcError;
use crate::vpc::http::Call;
use crate::vpc::model::{Instance, InstanceState, Volume};
use crate::vpc::names::{
    Crn, ImageId, InstanceId, KeyId, ResourceGroupId, ResourceName, SecurityGroupId, SnapshotId, SubnetId, Tag, VpcId,
};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// What a new server boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFrom {
    /// An image of the region.
    Image(ImageId),
    /// A snapshot of the region.
    Snapshot(SnapshotId),
    /// A snapshot, of another account perhaps.
    SnapshotCrn(Crn),
}

/// A server to be made.
#[derive(Clone, Debug)]
pub struct InstancePrototype {
    /// Its name.
    pub name: ResourceName,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its zone.
    pub zone: String,
    /// Its profile.
    pub profile: String,
    /// What it boots from.
    pub boot: BootFrom,
    /// The boot volume's profile; the API's default without.
    pub boot_profile: Option<String>,
    /// The boot volume's name; made up by the API without.
    pub boot_volume_name: Option<ResourceName>,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its address in the subnet; any without.
    pub address: Option<String>,
    /// Who may reach it; the VPC's default group without.
    pub security_groups: Vec<SecurityGroupId>,
    /// Whose keys open it.
    pub keys: Vec<KeyId>,
    /// Its resource group.
    pub resource_group: Option<ResourceGroupId>,
    /// The boot volume's tags.
    pub tags: Vec<Tag>,
    /// What cloud-init is given.
    pub user_data: Option<String>,
}

impl InstancePrototype {
    /// The request's body.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut interface = json!({ "subnet": { "id": self.subnet } });
        if let Some(address) = &self.address {
            interface["primary_ip"] = json!({ "address": address });
        }
        if !self.security_groups.is_empty() {
            interface["security_groups"] = self.security_groups.iter().map(|id| json!({ "id": id })).collect();
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
                // A prototype of a boot volume must name one.
                volume["profile"] = json!({ "name": "general-purpose" });
            }
            body["boot_volume_attachment"] = json!({ "delete_volume_on_instance_delete": true, "volume": volume });
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

/// What a server is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceAction {
    /// Come up.
    Start,
    /// Go down.
    Stop,
    /// Do both.
    Reboot,
}

impl RegionClient {
    /// All servers.
    ///
    /// # Errors
    /// Where the API can't be asked, refuses, or makes no sense; so for every operation.
    pub async fn instances(&self) -> Result<Vec<Instance>, VpcError> {
        self.list(&["instances"], "instances", &[]).await
    }

    /// The server of that name.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn instance_by_name(&self, name: &str) -> Result<Option<Instance>, VpcError> {
        self.by_name(&["instances"], "instances", &[], name, |instance: &Instance| &instance.name).await
    }

    /// The server of that name, which has to be there: where it is not, the error names those that are near it.
    ///
    /// # Errors
    /// [`VpcError::Missing`] where it is not, and as for [`RegionClient::instances`].
    pub async fn server(&self, name: &str) -> Result<Instance, VpcError> {
        if let Some(found) = self.instance_by_name(name).await? {
            return Ok(found);
        }
        // Where they may not be listed, that there is none of this name is what has to be told.
        let all = self.instances().await.unwrap_or_default();
        let near = near(name, all.iter().map(|server| server.name.as_str())).into_iter().map(str::to_owned).collect();
        Err(VpcError::Missing { noun: "server", name: name.to_owned(), place: self.region().to_owned(), near })
    }

    /// The volume that a server boots from, which has to be there.
    ///
    /// # Errors
    /// [`VpcError::Missing`] where it is not, and as for [`RegionClient::instances`].
    pub async fn boot_volume(&self, server: &Instance) -> Result<Volume, VpcError> {
        let volume = match server.boot_volume() {
            Some(id) => self.volume(id).await?,
            None => None,
        };
        self.found(volume, "boot volume of", &server.name)
    }

    /// The server of that id.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn instance(&self, id: &InstanceId) -> Result<Option<Instance>, VpcError> {
        self.get_if_any(&["instances", id.as_str()]).await
    }

    /// Makes a server, or adopts the one of that name that boots in the same place.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] where another one has the name, and as for [`RegionClient::instances`].
    pub async fn create_instance(&self, prototype: &InstancePrototype) -> Result<Instance, VpcError> {
        let call = Call::post(&["instances"], &prototype.body())?;
        let creation = Creation { noun: "server", name: &prototype.name, call, patience: Patience::BUSY };
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

    /// Tells a server to start, stop or reboot. Starting what runs and stopping what is stopped changes nothing, so a lost answer is
    /// asked for again; a reboot is not.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn act(&self, id: &InstanceId, action: InstanceAction) -> Result<(), VpcError> {
        let call = Call::post(&["instances", id.as_str(), "actions"], &json!({ "type": action }))?;
        let call = if action == InstanceAction::Reboot { call } else { call.freely() };
        let send = async || self.line.send(&call).await.map(|_| ());
        let look = async || {
            let there = self.instance(id).await?.map(|instance| instance.status);
            Ok(match (action, there) {
                (InstanceAction::Start, Some(InstanceState::Running | InstanceState::Starting))
                | (InstanceAction::Stop, Some(InstanceState::Stopped | InstanceState::Stopping)) => Conflict::AsAsked(()),
                (_, None | Some(InstanceState::Failed | InstanceState::Deleting)) => Conflict::Final,
                _ => Conflict::Passing,
            })
        };
        self.line.change(&format!("server {id}"), Patience::BUSY, send, look).await
    }

    /// Deletes a server; that it is gone already is success.
    ///
    /// # Errors
    /// As for [`RegionClient::instances`].
    pub async fn delete_instance(&self, id: &InstanceId) -> Result<(), VpcError> {
        self.remove(&format!("server {id}"), Patience::BUSY, &["instances", id.as_str()], async || {
            let there = self.instance(id).await?;
            Ok(Conflict::unless(there.is_none_or(|there| there.status == InstanceState::Deleting).then_some(())))
        })
        .await
    }

    /// Waits until a server runs.
    ///
    /// # Errors
    /// [`VpcError::Ended`] where it fails, [`VpcError::Overdue`], and as for [`RegionClient::instances`].
    pub async fn instance_running(&self, id: &InstanceId, patience: Patience) -> Result<Instance, VpcError> {
        self.waiting(format!("server {id}"), patience)
            .until(async || {
                let instance = self.instance(id).await?;
                let instance = self.found(instance, "server", id.as_str())?;
                let verdict = match instance.status {
                    InstanceState::Running => Verdict::Reached,
                    InstanceState::Failed | InstanceState::Deleting => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                let reasons = instance.status_reasons.iter().map(|reason| reason.shown()).collect();
                Ok(Sighting { verdict, state: instance.status.to_string(), reasons, seen: instance })
            })
            .await
    }
}
