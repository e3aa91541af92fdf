//! Snapshots, their clones for fast restores, and their copies in other regions.

use serde_json::{Value, json};

use super::RegionClient;
use super::conflict::Conflict;
use super::create::{Creation, differs};
use crate::vpc::error::VpcError;
use crate::vpc::http::Call;
use crate::vpc::model::{Snapshot, SnapshotClone, SnapshotState};
use crate::vpc::names::{Crn, ResourceGroupId, ResourceName, SnapshotId, Tag, VolumeId};
use crate::vpc::wait::{Patience, Sighting, Verdict};

/// A snapshot to be taken.
#[derive(Clone, Debug)]
pub struct SnapshotPrototype {
    /// Its name.
    pub name: ResourceName,
    /// Of what.
    pub source: VolumeId,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its resource group.
    pub resource_group: Option<ResourceGroupId>,
    /// Zones to keep a clone in for fast restores.
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
            body["clones"] = self.clone_zones.iter().map(|zone| json!({ "zone": { "name": zone } })).collect();
        }
        body
    }
}

/// In what order snapshots are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotOrder {
    /// The API's own.
    #[default]
    Any,
    /// The newest first.
    NewestFirst,
}

/// Which snapshots.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    /// Those of this volume.
    pub source_volume: Option<VolumeId>,
    /// Those with this tag.
    pub tag: Option<Tag>,
    /// In what order.
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
    /// The snapshots that `filter` lets through.
    ///
    /// # Errors
    /// Where the API can't be asked, refuses, or makes no sense; so for every operation.
    pub async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<Snapshot>, VpcError> {
        self.list(&["snapshots"], "snapshots", &filter.query()).await
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn snapshot_by_name(&self, name: &str) -> Result<Option<Snapshot>, VpcError> {
        self.by_name(&["snapshots"], "snapshots", &[], name, |snapshot: &Snapshot| &snapshot.name).await
    }

    /// The snapshot of that id.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>, VpcError> {
        self.get_if_any(&["snapshots", id.as_str()]).await
    }

    /// The snapshot of that name, or else of that id.
    ///
    /// # Errors
    /// [`VpcError::Missing`] where there is none, and as for [`RegionClient::snapshots`].
    pub async fn named_snapshot(&self, named: &str) -> Result<Snapshot, VpcError> {
        let found = match self.snapshot_by_name(named).await? {
            Some(found) => Some(found),
            None => self.snapshot(&SnapshotId::new(named)).await?,
        };
        self.found(found, "snapshot", named)
    }

    /// Takes a snapshot, or adopts the one of that name and volume.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] where another one has the name, and as for [`RegionClient::snapshots`].
    pub async fn create_snapshot(&self, prototype: &SnapshotPrototype) -> Result<Snapshot, VpcError> {
        let call = Call::post(&["snapshots"], &prototype.body())?;
        let creation = Creation { noun: "snapshot", name: &prototype.name, call, patience: Patience::BUSY };
        self.create(
            &creation,
            || self.snapshot_by_name(prototype.name.as_str()),
            |snapshot: &Snapshot| snapshot.id.as_str(),
            |snapshot| differs("source volume", prototype.source.as_str(), Some(snapshot.source_volume.id.as_str())),
        )
        .await
    }

    /// Copies a snapshot of another region into this client's, or adopts the copy of that name.
    ///
    /// # Errors
    /// [`VpcError::NameTaken`] where another one has the name, and as for [`RegionClient::snapshots`].
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
        let call = Call::post(&["snapshots"], &body)?;
        let creation = Creation { noun: "snapshot", name, call, patience: Patience::BUSY };
        self.create_unless(
            &creation,
            || self.snapshot_by_name(name.as_str()),
            |snapshot: &Snapshot| snapshot.id.as_str(),
            |snapshot| {
                let found = snapshot.source_snapshot.as_ref().and_then(|source| source.crn.as_ref()).map(Crn::as_str);
                differs("source snapshot", source.as_str(), found)
            },
            // A region has one copy of a snapshot.
            async || Ok(self.snapshots(&SnapshotFilter::default()).await?.iter().any(|found| found.is_copy_of(source))),
        )
        .await
    }

    /// Asks for a snapshot to be deleted; that it is gone already, or going, is success. One by one, always: the API would also
    /// delete all snapshots of a volume at once, those of its backup service included.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), VpcError> {
        self.remove(&format!("snapshot {id}"), Patience::BUSY, &["snapshots", id.as_str()], async || {
            let there = self.snapshot(id).await?;
            Ok(Conflict::unless(there.is_none_or(|there| there.lifecycle_state == SnapshotState::Deleting).then_some(())))
        })
        .await
    }

    /// Waits until a snapshot is whole.
    ///
    /// # Errors
    /// [`VpcError::Ended`] where it can't be had, [`VpcError::Overdue`], and as for [`RegionClient::snapshots`].
    pub async fn snapshot_stable(&self, id: &SnapshotId, patience: Patience) -> Result<Snapshot, VpcError> {
        self.waiting(format!("snapshot {id}"), patience)
            .until(async || {
                let snapshot = self.snapshot(id).await?;
                let snapshot = self.found(snapshot, "snapshot", id.as_str())?;
                let verdict = match snapshot.lifecycle_state {
                    SnapshotState::Stable => Verdict::Reached,
                    SnapshotState::Failed | SnapshotState::Unusable | SnapshotState::Suspended | SnapshotState::Deleting => {
                        Verdict::Ended
                    }
                    _ => Verdict::Underway,
                };
                let percent = snapshot.progress.map_or_else(String::new, |percent| format!(", {percent:.0} %"));
                let reasons = snapshot.lifecycle_reasons.iter().map(|reason| reason.shown()).collect();
                Ok(Sighting { verdict, state: format!("{}{percent}", snapshot.lifecycle_state), reasons, seen: snapshot })
            })
            .await
    }

    /// Waits until a snapshot is gone. It stays while a volume is still filled from it.
    ///
    /// # Errors
    /// [`VpcError::Overdue`], and as for [`RegionClient::snapshots`].
    pub async fn snapshot_gone(&self, id: &SnapshotId, patience: Patience) -> Result<(), VpcError> {
        self.gone(format!("snapshot {id}"), patience, async || {
            let snapshot = self.snapshot(id).await?;
            Ok(snapshot.map(|snapshot| (snapshot.lifecycle_state.to_string(), snapshot.lifecycle_reasons)))
        })
        .await
    }

    /// Adds tags to a snapshot, keeping those that it has.
    ///
    /// # Errors
    /// [`VpcError::Missing`] where there is none, and as for [`RegionClient::snapshots`].
    pub async fn tag_snapshot(&self, id: &SnapshotId, tags: &[Tag]) -> Result<(), VpcError> {
        self.add_tags(&["snapshots", id.as_str()], "snapshot", id.as_str(), tags).await
    }

    /// Puts tags in place of those that `old` picks, keeping the others.
    ///
    /// # Errors
    /// As for [`RegionClient::tag_snapshot`].
    pub async fn retag_snapshot(&self, id: &SnapshotId, old: impl Fn(&str) -> bool, new: &[Tag]) -> Result<(), VpcError> {
        let edit = |all: &mut std::collections::BTreeSet<String>| {
            all.retain(|tag| !old(tag));
            all.extend(new.iter().map(|tag| tag.as_str().to_owned()));
        };
        self.edit_tags(&["snapshots", id.as_str()], "snapshot", id.as_str(), edit).await
    }

    /// Asks for a clone in a zone. Asking twice is asking once.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn create_clone(&self, id: &SnapshotId, zone: &str) -> Result<SnapshotClone, VpcError> {
        let path = ["snapshots", id.as_str(), "clones", zone];
        let put = async || self.line.send(&Call::put(&path)).await?.read();
        let look = async || Ok(Conflict::unless(self.get_if_any(&path).await?));
        self.line.change(&format!("snapshot {id}"), Patience::BUSY, put, look).await
    }

    /// A snapshot's clones.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn clones(&self, id: &SnapshotId) -> Result<Vec<SnapshotClone>, VpcError> {
        self.whole_list(&["snapshots", id.as_str(), "clones"], "clones").await
    }

    /// Waits until a clone can be used.
    ///
    /// # Errors
    /// [`VpcError::Missing`] where there is none, [`VpcError::Overdue`], and as for [`RegionClient::snapshots`].
    pub async fn clone_available(&self, id: &SnapshotId, zone: &str, patience: Patience) -> Result<SnapshotClone, VpcError> {
        let path = ["snapshots", id.as_str(), "clones", zone];
        self.waiting(format!("the clone of snapshot {id} in {zone}"), patience)
            .until(async || {
                let clone: Option<SnapshotClone> = self.get_if_any(&path).await?;
                let clone = self.found(clone, "clone in zone", zone)?;
                let (verdict, state) =
                    if clone.available { (Verdict::Reached, "available") } else { (Verdict::Underway, "being made") };
                Ok(Sighting { verdict, state: state.to_owned(), reasons: Vec::new(), seen: clone })
            })
            .await
    }

    /// Deletes a clone; that it is gone already is success.
    ///
    /// # Errors
    /// As for [`RegionClient::snapshots`].
    pub async fn delete_clone(&self, id: &SnapshotId, zone: &str) -> Result<(), VpcError> {
        let path = ["snapshots", id.as_str(), "clones", zone];
        self.remove(&format!("the clone of snapshot {id} in {zone}"), Patience::BUSY, &path, async || {
            let there: Option<SnapshotClone> = self.get_if_any(&path).await?;
            Ok(Conflict::unless(there.is_none().then_some(())))
        })
        .await
    }
}
