//! Snapshots, their clones and their copies.

use std::time::SystemTime;

use serde::Deserialize;

use super::operating_system::OperatingSystemReference;
use super::{Named, Reference, StateReason, StorageGeneration, open_enum};
use crate::vpc::names::{Crn, ResourceGroupId, SnapshotId, VolumeId};

open_enum! {
    /// Where a snapshot is in its life. Only a stable one can be restored.
    SnapshotState {
        /// Being deleted, which lasts while a volume is still filled from it.
        Deleting = "deleting",
        /// It could not be taken.
        Failed = "failed",
        /// Being taken.
        Pending = "pending",
        /// Whole.
        Stable = "stable",
        /// Out of use, for lack of payment as a rule.
        Suspended = "suspended",
        /// Its encryption key is gone or disabled.
        Unusable = "unusable",
        /// Being changed.
        Updating = "updating",
        /// Waiting for its turn.
        Waiting = "waiting",
    }
}

/// A clone in a zone, from which a volume is restored at once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotClone {
    /// Whether it can be used.
    pub available: bool,
    /// Its zone.
    pub zone: Named,
    /// When it was asked for.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

/// A copy in another region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotCopy {
    /// The copy.
    pub id: SnapshotId,
    /// Its CRN, which tells the region.
    pub crn: Crn,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its CRN.
    pub crn: Crn,
    /// Its name, unique in the region.
    pub name: String,
    /// Where it is in its life.
    pub lifecycle_state: SnapshotState,
    /// Why.
    #[serde(default)]
    pub lifecycle_reasons: Vec<StateReason>,
    /// Whether a server can boot from it.
    #[serde(default)]
    pub bootable: bool,
    /// Percent.
    #[serde(default)]
    pub progress: Option<f64>,
    /// GB of the source volume.
    pub minimum_capacity: u64,
    /// GB of its own.
    pub size: u64,
    /// The storage behind it.
    #[serde(default)]
    pub storage_generation: StorageGeneration,
    /// What it boots; absent for data volumes.
    #[serde(default)]
    pub operating_system: Option<OperatingSystemReference>,
    /// `provider_managed` or `user_managed`.
    #[serde(default)]
    pub encryption: Option<String>,
    /// The key, where the user has given one.
    #[serde(default)]
    pub encryption_key: Option<KeyReference>,
    /// What it was taken of.
    pub source_volume: Reference<VolumeId>,
    /// What it was copied from.
    #[serde(default)]
    pub source_snapshot: Option<Reference<SnapshotId>>,
    /// Its copies in other regions.
    #[serde(default)]
    pub copies: Vec<SnapshotCopy>,
    /// Its clones for fast restores.
    #[serde(default)]
    pub clones: Vec<SnapshotClone>,
    /// Our tags and others'.
    #[serde(default)]
    pub user_tags: Vec<String>,
    /// Set where IBM's backup service made it, to which it then belongs.
    #[serde(default)]
    pub backup_policy_plan: Option<serde_json::Value>,
    /// Its resource group.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// When it was asked for.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
    /// When it was taken; absent until then.
    #[serde(default, deserialize_with = "super::time_if_any")]
    pub captured_at: Option<SystemTime>,
}

impl Snapshot {
    /// The moment of which it holds the disk, as near as the API tells.
    #[must_use]
    pub fn point_in_time(&self) -> SystemTime {
        self.captured_at.unwrap_or(self.created_at)
    }

    /// Whether it was copied from the snapshot with that CRN.
    #[must_use]
    pub fn is_copy_of(&self, source: &Crn) -> bool {
        self.source_snapshot.as_ref().and_then(|found| found.crn.as_ref()) == Some(source)
    }
}

/// A root key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KeyReference {
    /// Its CRN.
    pub crn: Crn,
}
