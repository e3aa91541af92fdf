//! Operations on snapshots, their clones for fast restores, and their copies in other regions.

use serde_json::{Value, json};

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::model::{Snapshot, SnapshotClone, SnapshotState};
use crate::vpc::names::{Crn, ResourceGroupId, ResourceName, SnapshotId, Tag, VolumeId};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// Request for a new snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotPrototype {
    /// Name of the new snapshot.
    pub name: ResourceName,
    /// Volume that the snapshot is taken of.
    pub source: VolumeId,
    /// User tags of the new snapshot.
    pub tags: Vec<Tag>,
    /// Resource group; chosen by the API if none.
    pub resource_group: Option<ResourceGroupId>,
    /// Zones in which to keep a clone for fast restores.
    pub clone_zones: Vec<String>,
}

impl SnapshotPrototype {
    pub(super) fn body(&self) -> Value {
        let mut body = json!({ "name": self.name, "source_volume": { "id": self.source } });
        if !self.tags.is_empty() {
            body["user_tags"] = json!(self.tags);
        }
        if let Some(group) = &self.resource_group {
            body["resource_group"] = json!({ "id": group });
        }
        if !self.clone_zones.is_empty() {
            body["clones"] =
                self.clone_zones.iter().map(|zone| json!({ "zone": { "name": zone } })).collect();
        }
        body
    }
}

/// Order of a list of snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotOrder {
    /// The API's own order.
    #[default]
    Any,
    /// The newest snapshot first.
    NewestFirst,
}

/// Filter and order for a list of snapshots.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    /// Keep only snapshots of this volume.
    pub source_volume: Option<VolumeId>,
    /// Keep only snapshots with this tag.
    pub tag: Option<Tag>,
    /// Order of the list.
    pub order: SnapshotOrder,
}

impl SnapshotFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("source_volume.id", self.source_volume.as_ref().map(|volume| volume.as_str().to_owned())),
            ("tag", self.tag.as_ref().map(|tag| tag.as_str().to_owned())),
            ("sort", (self.order == SnapshotOrder::NewestFirst).then(|| "-created_at".to_owned())),
        ];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

impl RegionClient {
    /// Returns the snapshots that match `filter`.
    ///
    /// # Errors
    /// If the API can't be reached, refuses, or returns a malformed response; the same holds for every
    /// operation.
    pub async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<Snapshot>, VpcError> {
        self.list(&["snapshots"], "snapshots", &filter.query()).await
    }

    /// Returns the snapshot with that name.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn snapshot_by_name(&self, name: &str) -> Result<Option<Snapshot>, VpcError> {
        self.by_name(&["snapshots"], "snapshots", &[], name, |snapshot: &Snapshot| &snapshot.name).await
    }

    /// Returns the snapshot with that identifier.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>, VpcError> {
        self.get_if_any(&["snapshots", id.as_str()]).await
    }

    /// Returns the snapshot with that name, or else with that identifier.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is none, and as for [`RegionClient::snapshots`].
    pub async fn named_snapshot(&self, name_or_id: &str) -> Result<Snapshot, VpcError> {
        let found = match self.snapshot_by_name(name_or_id).await? {
            Some(found) => Some(found),
            None => self.snapshot(&SnapshotId::new(name_or_id)).await?,
        };
        self.require(found, "snapshot", name_or_id)
    }

    /// Takes a snapshot, or adopts the existing one with that name and volume.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if a snapshot of another volume has the name, and as for
    /// [`RegionClient::snapshots`].
    pub async fn create_snapshot(&self, prototype: &SnapshotPrototype) -> Result<Snapshot, VpcError> {
        let call = ApiRequest::post(&["snapshots"], &prototype.body())?;
        let creation = Creation { kind: "snapshot", name: &prototype.name, call, patience: Patience::BUSY };
        self.create(
            &creation,
            || self.snapshot_by_name(prototype.name.as_str()),
            |snapshot: &Snapshot| snapshot.id.as_str(),
            |snapshot| {
                differs("source volume", prototype.source.as_str(), Some(snapshot.source_volume.id.as_str()))
            },
        )
        .await
    }

    /// Copies a snapshot of another region into this client's region, or adopts the existing copy with that
    /// name.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] if another snapshot has the name, and as for [`RegionClient::snapshots`].
    pub async fn copy_snapshot(
        &self,
        name: &ResourceName,
        source: &Crn,
        encryption_key: Option<&Crn>,
        tags: &[Tag],
    ) -> Result<Snapshot, VpcError> {
        let mut body = json!({ "name": name, "source_snapshot": { "crn": source } });
        if let Some(key) = encryption_key {
            body["encryption_key"] = json!({ "crn": key });
        }
        if !tags.is_empty() {
            body["user_tags"] = json!(tags);
        }
        let call = ApiRequest::post(&["snapshots"], &body)?;
        let creation = Creation { kind: "snapshot", name, call, patience: Patience::BUSY };
        self.create_unless(
            &creation,
            || self.snapshot_by_name(name.as_str()),
            |snapshot: &Snapshot| snapshot.id.as_str(),
            |snapshot| {
                let found =
                    snapshot.source_snapshot.as_ref().and_then(|source| source.crn.as_ref()).map(Crn::as_str);
                differs("source snapshot", source.as_str(), found)
            },
            // A region can have only one copy of a snapshot, so another copy makes the conflict permanent.
            async || {
                Ok(self
                    .snapshots(&SnapshotFilter::default())
                    .await?
                    .iter()
                    .any(|found| found.is_copy_of(source)))
            },
        )
        .await
    }

    /// Requests the deletion of a snapshot. Succeeds too if the snapshot is already deleted or being deleted.
    /// Snapshots are deleted one by one: the API could delete all snapshots of a volume at once, but those of
    /// IBM's backup service with them.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), VpcError> {
        self.remove(&format!("snapshot {id}"), Patience::BUSY, &["snapshots", id.as_str()], async || {
            let current = self.snapshot(id).await?;
            Ok(Conflict::unless(
                current
                    .is_none_or(|current| current.lifecycle_state == SnapshotState::Deleting)
                    .then_some(()),
            ))
        })
        .await
    }

    /// Waits until a snapshot is complete.
    ///
    /// # Errors
    /// [`VpcError::Ended`] if it can't become complete, [`VpcError::Overdue`], and as for
    /// [`RegionClient::snapshots`].
    pub async fn snapshot_stable(&self, id: &SnapshotId, patience: Patience) -> Result<Snapshot, VpcError> {
        self.waiting(format!("snapshot {id}"), patience)
            .until(async || {
                let snapshot = self.snapshot(id).await?;
                let snapshot = self.require(snapshot, "snapshot", id.as_str())?;
                let verdict = match snapshot.lifecycle_state {
                    SnapshotState::Stable => Verdict::Reached,
                    SnapshotState::Failed
                    | SnapshotState::Unusable
                    | SnapshotState::Suspended
                    | SnapshotState::Deleting => Verdict::Ended,
                    _ => Verdict::Underway,
                };
                let percent =
                    snapshot.progress.map_or_else(String::new, |percent| format!(", {percent:.0} %"));
                let reasons = snapshot.lifecycle_reasons.iter().map(|reason| reason.describe()).collect();
                Ok(Sighting {
                    verdict,
                    state: format!("{}{percent}", snapshot.lifecycle_state),
                    reasons,
                    resource: snapshot,
                })
            })
            .await
    }

    /// Waits until a snapshot is deleted. It stays while a volume is still filled from it.
    ///
    /// # Errors
    /// [`VpcError::Overdue`], and as for [`RegionClient::snapshots`].
    pub async fn snapshot_gone(&self, id: &SnapshotId, patience: Patience) -> Result<(), VpcError> {
        self.wait_until_gone(format!("snapshot {id}"), patience, async || {
            let snapshot = self.snapshot(id).await?;
            Ok(snapshot.map(|snapshot| (snapshot.lifecycle_state.to_string(), snapshot.lifecycle_reasons)))
        })
        .await
    }

    /// Adds tags to a snapshot and keeps its present ones.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is no such snapshot, and as for [`RegionClient::snapshots`].
    pub async fn tag_snapshot(&self, id: &SnapshotId, tags: &[Tag]) -> Result<(), VpcError> {
        self.add_tags(&["snapshots", id.as_str()], "snapshot", id.as_str(), tags).await
    }

    /// Replaces the tags for which `old` returns true by `new`, and keeps the others.
    ///
    /// # Errors
    /// As for [`RegionClient::tag_snapshot`].
    pub async fn retag_snapshot(
        &self,
        id: &SnapshotId,
        old: impl Fn(&str) -> bool,
        new: &[Tag],
    ) -> Result<(), VpcError> {
        let edit = |all: &mut std::collections::BTreeSet<String>| {
            all.retain(|tag| !old(tag));
            all.extend(new.iter().map(|tag| tag.as_str().to_owned()));
        };
        self.edit_tags(&["snapshots", id.as_str()], "snapshot", id.as_str(), edit).await
    }

    /// Requests a clone in a zone. A second request has no further effect.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn create_clone(&self, id: &SnapshotId, zone: &str) -> Result<SnapshotClone, VpcError> {
        let path = ["snapshots", id.as_str(), "clones", zone];
        let put = async || self.client.send(&ApiRequest::put(&path)).await?.read();
        let check = async || Ok(Conflict::unless(self.get_if_any(&path).await?));
        self.client.change(&format!("snapshot {id}"), Patience::BUSY, put, check).await
    }

    /// Returns the clones of a snapshot.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn clones(&self, id: &SnapshotId) -> Result<Vec<SnapshotClone>, VpcError> {
        self.unpaged_list(&["snapshots", id.as_str(), "clones"], "clones").await
    }

    /// Waits until volumes can be restored from a clone.
    ///
    /// # Errors
    /// [`VpcError::Missing`] if there is no such clone, [`VpcError::Overdue`], and as for
    /// [`RegionClient::snapshots`].
    pub async fn clone_available(
        &self,
        id: &SnapshotId,
        zone: &str,
        patience: Patience,
    ) -> Result<SnapshotClone, VpcError> {
        let path = ["snapshots", id.as_str(), "clones", zone];
        self.waiting(format!("the clone of snapshot {id} in {zone}"), patience)
            .until(async || {
                let clone: Option<SnapshotClone> = self.get_if_any(&path).await?;
                let clone = self.require(clone, "clone in zone", zone)?;
                let (verdict, state) = if clone.available {
                    (Verdict::Reached, "available")
                } else {
                    (Verdict::Underway, "being made")
                };
                Ok(Sighting { verdict, state: state.to_owned(), reasons: Vec::new(), resource: clone })
            })
            .await
    }

    /// Deletes a clone. Succeeds too if it is already deleted.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn delete_clone(&self, id: &SnapshotId, zone: &str) -> Result<(), VpcError> {
        let path = ["snapshots", id.as_str(), "clones", zone];
        self.remove(&format!("the clone of snapshot {id} in {zone}"), Patience::BUSY, &path, async || {
            let current: Option<SnapshotClone> = self.get_if_any(&path).await?;
            Ok(Conflict::unless(current.is_none().then_some(())))
        })
        .await
    }
}
