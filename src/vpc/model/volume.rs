//! Volumes and their profiles.

use std::time::SystemTime;

use serde::Deserialize;

use super::operating_system::OperatingSystemReference;
use super::{Named, Reference, StateReason, open_enum};
use crate::vpc::names::{AttachmentId, Crn, InstanceId, ResourceGroupId, SnapshotId, VolumeId};

open_enum! {
    /// What a volume is doing.
    VolumeState {
        /// Ready for use.
        Available = "available",
        /// It could not be made.
        Failed = "failed",
        /// Being made.
        Pending = "pending",
        /// Being deleted.
        PendingDeletion = "pending_deletion",
        /// Its encryption key is gone or disabled.
        Unusable = "unusable",
        /// Being changed.
        Updating = "updating",
    }
}

open_enum! {
    /// How well a volume does.
    HealthState {
        /// As it should.
        Ok = "ok",
        /// Below what was provisioned, as while its data still comes from a snapshot.
        Degraded = "degraded",
        /// Not reachable.
        Faulted = "faulted",
        /// Not applicable in its state.
        Inapplicable = "inapplicable",
    }
}

/// The generation of the storage behind a volume. Profiles of one can't be used for snapshots of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct StorageGeneration(pub u32);

impl StorageGeneration {
    /// `general-purpose`, `5iops-tier`, `10iops-tier` and `custom`.
    pub const FIRST: Self = Self(1);
    /// `sdp`.
    pub const SECOND: Self = Self(2);
}

impl Default for StorageGeneration {
    /// What everything was before there was a second.
    fn default() -> Self {
        Self::FIRST
    }
}

impl std::fmt::Display for StorageGeneration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// An attachment, as a volume tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AttachmentOfVolume {
    /// The attachment.
    pub id: AttachmentId,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// The server.
    #[serde(default)]
    pub instance: Option<Reference<InstanceId>>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its CRN.
    pub crn: Crn,
    /// Its name, unique in the region.
    pub name: String,
    /// What it is doing.
    pub status: VolumeState,
    /// Why.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// How well it does.
    #[serde(default)]
    pub health_state: Option<HealthState>,
    /// Why.
    #[serde(default)]
    pub health_reasons: Vec<StateReason>,
    /// GB, which the API counts as GiB.
    pub capacity: u64,
    /// Its profile.
    pub profile: Named,
    /// Its zone.
    pub zone: Named,
    /// The storage behind it.
    #[serde(default)]
    pub storage_generation: StorageGeneration,
    /// Operations a second.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Megabits a second.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// `provider_managed` or `user_managed`.
    #[serde(default)]
    pub encryption: Option<String>,
    /// What it boots, for boot volumes.
    #[serde(default)]
    pub operating_system: Option<OperatingSystemReference>,
    /// What it was made from.
    #[serde(default)]
    pub source_snapshot: Option<Reference<SnapshotId>>,
    /// Whether something else is being done to it.
    #[serde(default)]
    pub busy: bool,
    /// To whom it is attached.
    #[serde(default)]
    pub volume_attachments: Vec<AttachmentOfVolume>,
    /// Our tags and others'.
    #[serde(default)]
    pub user_tags: Vec<String>,
    /// Its resource group.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// When it was made.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

/// A volume profile.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeProfile {
    /// Its name.
    pub name: String,
    /// `tiered`, `custom`, `defined_performance`.
    pub family: String,
}
