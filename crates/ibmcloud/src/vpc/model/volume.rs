//! Models of volumes and their profiles.

use std::time::SystemTime;

use serde::Deserialize;

use super::operating_system::OperatingSystemReference;
use super::{Named, Reference, StateReason, open_enum};
use crate::vpc::names::{AttachmentId, Crn, InstanceId, ResourceGroupId, SnapshotId, VolumeId};

open_enum! {
    /// State of a volume.
    VolumeState {
        /// Ready for use.
        Available = "available",
        /// The volume could not be created.
        Failed = "failed",
        /// The volume is being created.
        Pending = "pending",
        /// The volume is being deleted.
        PendingDeletion = "pending_deletion",
        /// The encryption key is deleted or disabled.
        Unusable = "unusable",
        /// A change to the volume is in progress.
        Updating = "updating",
    }
}

open_enum! {
    /// Health of a volume: its performance against what was provisioned.
    HealthState {
        /// Performs as provisioned.
        Ok = "ok",
        /// Performs below what was provisioned, for example while data still comes from a snapshot.
        Degraded = "degraded",
        /// The volume can't be reached.
        Faulted = "faulted",
        /// Has no health in its present state, for example while it is being deleted.
        Inapplicable = "inapplicable",
    }
}

/// Generation of the storage that a volume is on. Profiles of one generation can't be used for snapshots of
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct StorageGeneration(pub u32);

impl StorageGeneration {
    /// First generation: profiles `general-purpose`, `5iops-tier`, `10iops-tier` and `custom`.
    pub const FIRST: Self = Self(1);
    /// Second generation: profile `sdp`.
    pub const SECOND: Self = Self(2);
}

impl Default for StorageGeneration {
    /// Returns the first generation: responses without the field are from before there was a second.
    fn default() -> Self {
        Self::FIRST
    }
}

impl std::fmt::Display for StorageGeneration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Attachment to a server, as a volume's own description lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AttachmentOfVolume {
    /// Identifier of the attachment, as the API returns it.
    pub id: AttachmentId,
    /// Name of the attachment, unique for the server.
    #[serde(default)]
    pub name: Option<String>,
    /// Server that the volume is attached to.
    #[serde(default)]
    pub instance: Option<Reference<InstanceId>>,
}

/// Block storage volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Identifier of the volume, as the API returns it.
    pub id: VolumeId,
    /// CRN of the volume.
    pub crn: Crn,
    /// Name of the volume, unique in the region.
    pub name: String,
    /// State of the volume, such as `available`.
    pub status: VolumeState,
    /// Reasons for the state, as the API gives them.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Health of the volume, such as `ok` or `degraded`.
    #[serde(default)]
    pub health_state: Option<HealthState>,
    /// Reasons for the health state, as the API gives them.
    #[serde(default)]
    pub health_reasons: Vec<StateReason>,
    /// Capacity in GB, which the API counts as GiB.
    pub capacity: u64,
    /// Profile of the volume, such as `general-purpose` or `sdp`.
    pub profile: Named,
    /// Zone that the volume is in.
    pub zone: Named,
    /// Generation of the storage that the volume is on; the first if the API omits it.
    #[serde(default)]
    pub storage_generation: StorageGeneration,
    /// Limit on I/O operations per second.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bandwidth limit in megabits per second.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// Owner of the encryption key: `provider_managed` or `user_managed`.
    #[serde(default)]
    pub encryption: Option<String>,
    /// Operating system on the volume, for boot volumes.
    #[serde(default)]
    pub operating_system: Option<OperatingSystemReference>,
    /// Snapshot that the volume was created from.
    #[serde(default)]
    pub source_snapshot: Option<Reference<SnapshotId>>,
    /// True if another operation on the volume is in progress.
    #[serde(default)]
    pub busy: bool,
    /// Attachments of the volume to servers.
    #[serde(default)]
    pub volume_attachments: Vec<AttachmentOfVolume>,
    /// User tags: Snapferry's own and all others.
    #[serde(default)]
    pub user_tags: Vec<String>,
    /// Resource group of the volume.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// Time when the volume was created.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

/// Profile of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeProfile {
    /// Name of the profile, as in `sdp`.
    pub name: String,
    /// Family of the profile: `tiered`, `custom` or `defined_performance`.
    pub family: String,
}
