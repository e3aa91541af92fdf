//! Operations on volumes and their profiles.

use serde_json::{Value, json};

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::{Volume, VolumeProfile, VolumeState};
use crate::vpc::names::{Crn, ResourceGroupId, ResourceName, SnapshotId, Tag, VolumeId};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// Request for a new volume from a snapshot.
#[derive(Clone, Debug)]
pub struct VolumePrototype {
    /// Name of the new volume.
    pub name: ResourceName,
    /// Profile of the volume, of the same storage generation as the snapshot.
    pub profile: String,
    /// Zone of the volume: the zone of the server that it will be attached to.
    pub zone: String,
    /// Snapshot that the volume is created from.
    pub source: SnapshotId,
    /// Capacity in GB; the source volume's if none.
    pub capacity: Option<u64>,
    /// Bandwidth in megabits per second, for profiles with an adjustable one.
    pub bandwidth: Option<u64>,
    /// I/O operations per second, for profiles with an adjustable number.
    pub iops: Option<u64>,
    /// Root key, if it is to differ from the snapshot's.
    pub encryption_key: Option<Crn>,
    /// User tags of the new volume.
    pub tags: Vec<Tag>,
    /// Resource group; chosen by the API if none.
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

/// Filter for a list of volumes.
#[derive(Clone, Debug, Default)]
pub struct VolumeFilter {
    /// Keep only volumes with this tag.
    pub tag: Option<Tag>,
    /// Keep only volumes in this zone.
    pub zone: Option<String>,
    /// Keep only volumes in this state: `attached` or `unattached`.
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
    /// Returns the volumes that match `filter`.
    ///
    /// # Errors
    /// If the API can't be reached, refuses, or returns a malformed response; the same holds for every
    /// operation.
    pub async fn volumes(&self, filter: &VolumeFilter) -> Result<Vec<Volume>, VpcError> {
        self.list(&["volumes"], "volumes", &filter.query()).await
    }

    /// Returns the volume with that name.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn volume_by_name(&self, name: &str) -> Result<Option<Volume>, VpcError> {
        self.by_name(&["volumes"], "volumes", &[], name, |volume: &Volume| &volume.name).await
    }

    /// Returns the volume with that identifier.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn volume(&self, id: &VolumeId) -> Result<Option<Volume>, VpcError> {
        self.get_if_any(&["volumes", id.as_str()]).await
    }

    /// Creates a volume from a snapshot, or adopts the existing one with that name and source.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if another volume has the name, and as for [`RegionClient::volumes`].
    pub async fn create_volume(&self, prototype: &VolumePrototype) -> Result<Volume, VpcError> {
        let call = ApiRequest::post(&["volumes"], &prototype.body())?;
        let creation = Creation { kind: "volume", name: &prototype.name, call, patience: Patience::BUSY };
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

    /// Deletes a volume, which must not be attached. Succeeds too if it is already deleted or being deleted.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn delete_volume(&self, id: &VolumeId) -> Result<(), VpcError> {
        self.remove(&format!("volume {id}"), Patience::BUSY, &["volumes", id.as_str()], async || {
            // A second DELETE conflicts with the first while that one is in progress.
            match self.volume(id).await? {
                Some(volume) if volume.status == VolumeState::PendingDeletion => Ok(Conflict::Done(())),
                Some(_) if self.is_held(id).await? => Ok(Conflict::Final),
                Some(_) => Ok(Conflict::Passing),
                None => Ok(Conflict::Done(())),
            }
        })
        .await
    }

    /// Waits until a volume can be attached. Its data may still be arriving from the snapshot: that is no
    /// reason to wait.
    ///
    /// # Errors
    /// [`VpcError::Ended`] if it can't become available, [`VpcError::Overdue`], and as for
    /// [`RegionClient::volumes`].
    pub async fn volume_available(&self, id: &VolumeId, patience: Patience) -> Result<Volume, VpcError> {
        self.waiting(format!("volume {id}"), patience)
            .until(async || {
                let volume = self.volume(id).await?;
                let volume = self.require(volume, "volume", id.as_str())?;
                let verdict = match volume.status {
                    VolumeState::Available if !volume.busy => Verdict::Reached,
                    VolumeState::Failed | VolumeState::PendingDeletion | VolumeState::Unusable => {
                        Verdict::Ended
                    }
                    _ => Verdict::Underway,
                };
                let reasons = volume
                    .status_reasons
                    .iter()
                    .chain(&volume.health_reasons)
                    .map(|reason| reason.describe())
                    .collect();
                Ok(Sighting { verdict, state: volume.status.to_string(), reasons, resource: volume })
            })
            .await
    }

    /// Waits until a volume is deleted.
    ///
    /// # Errors
    /// [`VpcError::Overdue`], and as for [`RegionClient::volumes`].
    pub async fn volume_gone(&self, id: &VolumeId, patience: Patience) -> Result<(), VpcError> {
        self.wait_until_gone(format!("volume {id}"), patience, async || {
            let volume = self.volume(id).await?;
            Ok(volume.map(|volume| (volume.status.to_string(), volume.status_reasons)))
        })
        .await
    }

    /// Returns the profiles for volumes.
    ///
    /// # Errors
    /// As for [`RegionClient::volumes`].
    pub async fn volume_profiles(&self) -> Result<Vec<VolumeProfile>, VpcError> {
        self.list(&["volume", "profiles"], "profiles", &[]).await
    }

    /// Adds tags to a volume and keeps its present ones.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is no such volume, and as for [`RegionClient::volumes`].
    pub async fn tag_volume(&self, id: &VolumeId, tags: &[Tag]) -> Result<(), VpcError> {
        self.add_tags(&["volumes", id.as_str()], "volume", id.as_str(), tags).await
    }
}
