//! Models of snapshots, their clones and their copies.

use std::time::SystemTime;

use serde::Deserialize;

use super::operating_system::OperatingSystemReference;
use super::{Named, Reference, StateReason, StorageGeneration, open_enum};
use crate::vpc::names::{Crn, ResourceGroupId, SnapshotId, VolumeId};

open_enum! {
    /// Lifecycle state of a snapshot. Only a stable snapshot can be restored.
    SnapshotState {
        /// The snapshot is being deleted, which takes as long as a volume is still filled from it.
        Deleting = "deleting",
        /// The snapshot could not be taken.
        Failed = "failed",
        /// The snapshot is being taken.
        Pending = "pending",
        /// The snapshot is complete and can be restored.
        Stable = "stable",
        /// The snapshot is out of use, usually for lack of payment.
        Suspended = "suspended",
        /// The encryption key is deleted or disabled.
        Unusable = "unusable",
        /// A change to the snapshot is in progress.
        Updating = "updating",
        /// The snapshot waits until the service starts it.
        Waiting = "waiting",
    }
}

/// Clone of a snapshot in a zone, from which a volume is restored at once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotClone {
    /// True if volumes can be restored from the clone.
    pub available: bool,
    /// Zone that the clone is in.
    pub zone: Named,
    /// Time when the API accepted the request for the clone.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

/// Copy of a snapshot in another region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotCopy {
    /// Identifier of the copy, as the API returns it.
    pub id: SnapshotId,
    /// CRN of the copy, which contains its region.
    pub crn: Crn,
    /// Name of the copy, unique in its region.
    #[serde(default)]
    pub name: Option<String>,
}

/// Snapshot of one volume.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Snapshot {
    /// Identifier of the snapshot, as the API returns it.
    pub id: SnapshotId,
    /// CRN of the snapshot.
    pub crn: Crn,
    /// Name of the snapshot, unique in the region.
    pub name: String,
    /// Lifecycle state, such as `stable`.
    pub lifecycle_state: SnapshotState,
    /// Reasons for the lifecycle state, as the API gives them.
    #[serde(default)]
    pub lifecycle_reasons: Vec<StateReason>,
    /// True if a server can boot from the snapshot.
    #[serde(default)]
    pub bootable: bool,
    /// Progress of the snapshot in percent.
    #[serde(default)]
    pub progress: Option<f64>,
    /// Capacity of the source volume in GB.
    pub minimum_capacity: u64,
    /// Size of the snapshot itself in GB.
    pub size: u64,
    /// Generation of the storage that the snapshot is on; the first if the API omits it.
    #[serde(default)]
    pub storage_generation: StorageGeneration,
    /// Operating system in the snapshot; absent for data volumes.
    #[serde(default)]
    pub operating_system: Option<OperatingSystemReference>,
    /// Owner of the encryption key: `provider_managed` or `user_managed`.
    #[serde(default)]
    pub encryption: Option<String>,
    /// Root key, if the user has provided one.
    #[serde(default)]
    pub encryption_key: Option<KeyReference>,
    /// Volume that the snapshot was taken of.
    pub source_volume: Reference<VolumeId>,
    /// Snapshot that this one was copied from; absent if it is no copy.
    #[serde(default)]
    pub source_snapshot: Option<Reference<SnapshotId>>,
    /// Copies of the snapshot in other regions.
    #[serde(default)]
    pub copies: Vec<SnapshotCopy>,
    /// Clones for fast restores.
    #[serde(default)]
    pub clones: Vec<SnapshotClone>,
    /// User tags: Snapferry's own and all others.
    #[serde(default)]
    pub user_tags: Vec<String>,
    /// Backup policy plan, if IBM's backup service took the snapshot and so owns it.
    #[serde(default)]
    pub backup_policy_plan: Option<serde_json::Value>,
    /// Resource group of the snapshot.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// Time when the API accepted the request for the snapshot.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
    /// Time when the snapshot was taken; absent until then.
    #[serde(default, deserialize_with = "super::time_if_any")]
    pub captured_at: Option<SystemTime>,
}

impl Snapshot {
    /// Returns the time whose data the snapshot holds, as precisely as the API reports it: the time it was
    /// taken, or else the time of the request.
    #[must_use]
    pub fn point_in_time(&self) -> SystemTime {
        self.captured_at.unwrap_or(self.created_at)
    }

    /// Returns true if it was copied from the snapshot with the CRN `source`.
    #[must_use]
    pub fn is_copy_of(&self, source: &Crn) -> bool {
        self.source_snapshot.as_ref().and_then(|found| found.crn.as_ref()) == Some(source)
    }
}

/// Root key that encrypts a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KeyReference {
    /// CRN of the key.
    pub crn: Crn,
}
