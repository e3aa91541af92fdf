//! Volumes.

use serde_json::{Value, json};

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::Call;
use crate::vpc::model::{Volume, VolumeProfile, VolumeState};
use crate::vpc::names::{Crn, ResourceGroupId, ResourceName, SnapshotId, Tag, VolumeId};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// A volume to be made from a snapshot.
#[derive(Clone, Debug)]
pub struct VolumePrototype {
    /// Its name.
    pub name: ResourceName,
    /// Its profile, of the same storage generation as the snapshot.
    pub profile: String,
    /// Its zone: that of the server that it is for.
    pub zone: String,
    /// What it is made from.
    pub source: SnapshotId,
    /// GB; the source volume's without.
    pub capacity: Option<u64>,
    /// Megabits a second, for profiles that take one.
    pub bandwidth: Option<u64>,
    /// Operations a second, for profiles that take them.
    pub iops: Option<u64>,
    /// Another root key than the snapshot's.
    pub encryption_key: Option<Crn>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its resource group.
    pub resource_group: Option<ResourceGroupId>,
}

impl VolumePrototype {
    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "name": self.name,
            "profile": { "name": self.profile },
            "zone": { "name": self.zone },
            "source_snapshot": { "id": self.source },
        });
        if let Some(capacity) = self.capacity {
            body["capacity"] = json!(capacity);
        }
        if let Some(bandwidth) = self.bandwidth {
            body["bandwidth"] = json!(bandwidth);
        }
        if let Some(iops) = self.iops {
            body["iops"] = json!(iops);
        }
        if let Some(key) = &self.encryption_key {
            body["encryption_key"] = json!({ "crn": key });
        }
        if !self.tags.is_empty() {
            body["user_tags"] = json!(self.tags);
        }
        if let Some(group) = &self.resource_group {
            body["resource_group"] = json!({ "id": group });
        }
        body
    }
}

/// Which volumes.
#[derive(Clone, Debug, Default)]
pub struct VolumeFilter {
    /// Those with this tag.
    pub tag: Option<Tag>,
    /// Those in this zone.
    pub zone: Option<String>,
    /// Those that are `attached` or `unattached`.
    pub attachment_state: Option<String>,
}

impl VolumeFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("tag", self.tag.as_ref().map(|tag| tag.as_str().to_owned())),
            ("zone.name", self.zone.clone()),
            ("attachment_state", self.attachment_state.clone()),
        ];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

impl RegionClient {
    /// The volumes that `filter` lets through.
    ///
    /// # Errors
    /// Where the API can't be asked, refuses, or makes no sense; so for every operation.
    pub async fn volumes(&self, filter: &VolumeFilter) -> Result<Vec<Volume>, VpcError> {
        self.list(&["volumes"], "volumes", &filter.query()).await
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn volume_by_name(&self, name: &str) -> Result<Option<Volume>, VpcError> {
        self.by_name(&["volumes"], "volumes", &[], name, |volume: &Volume| &volume.name).await
    }

    /// The volume of that id.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn volume(&self, id: &VolumeId) -> Result<Option<Volume>, VpcError> {
        self.get_if_any(&["volumes", id.as_str()]).await
    }

    /// Makes a volume from a snapshot, or adopts the one of that name that was made from it.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] where another one has the name, and as for [`RegionClient::volumes`].
    pub async fn create_volume(&self, prototype: &VolumePrototype) -> Result<Volume, VpcError> {
        let call = Call::post(&["volumes"], &prototype.body())?;
        let creation = Creation { noun: "volume", name: &prototype.name, call, patience: Patience::BUSY };
        self.create(
            &creation,
            || self.volume_by_name(prototype.name.as_str()),
            |volume: &Volume| volume.id.as_str(),
            |volume| {
                let source = volume.source_snapshot.as_ref().map(|source| source.id.as_str());
                differs("source snapshot", prototype.source.as_str(), source)
                    .or_else(|| differs("zone", &prototype.zone, Some(&volume.zone.name)))
                    .or_else(|| differs("profile", &prototype.profile, Some(&volume.profile.name)))
            },
        )
        .await
    }

    /// Deletes a volume, which must not be attached. That it is gone, or going, is success.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn delete_volume(&self, id: &VolumeId) -> Result<(), VpcError> {
        self.remove(&format!("volume {id}"), Patience::BUSY, &["volumes", id.as_str()], async || {
            // A second DELETE while the first is at it conflicts.
            match self.volume(id).await? {
                Some(volume) if volume.status == VolumeState::PendingDeletion => Ok(Conflict::AsAsked(())),
                Some(_) if self.is_held(id).await? => Ok(Conflict::Final),
                Some(_) => Ok(Conflict::Passing),
                None => Ok(Conflict::AsAsked(())),
            }
        })
        .await
    }

    /// Waits until a volume can be attached. It may still be filling from its snapshot: that is no reason to wait.
    ///
    /// # Errors
    /// [`VpcError::Ended`] where it can't be had, [`VpcError::Overdue`], and as for [`RegionClient::volumes`].
    pub async fn volume_available(&self, id: &VolumeId, patience: Patience) -> Result<Volume, VpcError> {
        self.waiting(format!("volume {id}"), patience)
            .until(async || {
                let volume = self.volume(id).await?;
                let volume = self.found(volume, "volume", id.as_str())?;
                let verdict = match volume.status {
                    VolumeState::Available if !volume.busy => Verdict::Reached,
                    VolumeState::Failed | VolumeState::PendingDeletion | VolumeState::Unusable => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                let reasons = volume.status_reasons.iter().chain(&volume.health_reasons).map(|reason| reason.shown()).collect();
                Ok(Sighting { verdict, state: volume.status.to_string(), reasons, seen: volume })
            })
            .await
    }

    /// Waits until a volume is gone.
    ///
    /// # Errors
    /// [`VpcError::Overdue`], and as for [`RegionClient::volumes`].
    pub async fn volume_gone(&self, id: &VolumeId, patience: Patience) -> Result<(), VpcError> {
        self.gone(format!("volume {id}"), patience, async || {
            let volume = self.volume(id).await?;
            Ok(volume.map(|volume| (volume.status.to_string(), volume.status_reasons)))
        })
        .await
    }

    /// The profiles for volumes.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn volume_profiles(&self) -> Result<Vec<VolumeProfile>, VpcError> {
        self.list(&["volume", "profiles"], "profiles", &[]).await
    }

    /// Adds tags to a volume, keeping those that it has.
    ///
    /// # Errors
    /// [`VpcError::Missing`] where there is none, and as for [`RegionClient::volumes`].
    pub async fn tag_volume(&self, id: &VolumeId, tags: &[Tag]) -> Result<(), VpcError> {
        self.add_tags(&["volumes", id.as_str()], "volume", id.as_str(), tags).await
    }
}
