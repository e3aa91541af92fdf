//! Servers and what is attached to them.

use std::time::SystemTime;

use serde::Deserialize;

use super::{Named, Reference, StateReason, open_enum};
use crate::vpc::names::{AttachmentId, Crn, InstanceId, ResourceGroupId, VolumeId, VpcId};

open_enum! {
    /// What a server is doing.
    InstanceState {
        /// Being deleted.
        Deleting = "deleting",
        /// It could not be made.
        Failed = "failed",
        /// Being made.
        Pending = "pending",
        /// Being restarted.
        Restarting = "restarting",
        /// Running.
        Running = "running",
        /// On its way up.
        Starting = "starting",
        /// Stopped.
        Stopped = "stopped",
        /// On its way down.
        Stopping = "stopping",
    }
}

open_enum! {
    /// What an attachment is doing.
    AttachmentState {
        /// The server has the device.
        Attached = "attached",
        /// On its way.
        Attaching = "attaching",
        /// Being removed together with its volume.
        Deleting = "deleting",
        /// Being removed.
        Detaching = "detaching",
    }
}

impl AttachmentState {
    /// Whether the volume is on its way off the server.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self, Self::Deleting | Self::Detaching)
    }
}

/// What the server sees of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AttachedDevice {
    /// The device's serial number; the guest sees its first 20 characters.
    pub id: String,
}

/// A boot volume's attachment, as an instance tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BootAttachment {
    /// The attachment.
    pub id: AttachmentId,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Absent until it is attached.
    #[serde(default)]
    pub device: Option<AttachedDevice>,
    /// Absent while the server is being made.
    #[serde(default)]
    pub volume: Option<Reference<VolumeId>>,
}

/// Any volume's attachment, as an instance tells of it: the boot volume's among them.
pub type VolumeAttachmentReference = BootAttachment;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its CRN.
    pub crn: Crn,
    /// Its name, unique in the region.
    pub name: String,
    /// What it is doing.
    pub status: InstanceState,
    /// Why.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Its zone.
    pub zone: Named,
    /// Its VPC.
    pub vpc: Reference<VpcId>,
    /// Its profile.
    pub profile: Named,
    /// The volume it boots from.
    #[serde(default)]
    pub boot_volume_attachment: Option<BootAttachment>,
    /// All its volumes.
    #[serde(default)]
    pub volume_attachments: Vec<VolumeAttachmentReference>,
    /// Megabits a second for all volumes together.
    #[serde(default)]
    pub total_volume_bandwidth: Option<u64>,
    /// How volumes share that.
    #[serde(default)]
    pub volume_bandwidth_qos_mode: Option<String>,
    /// Its resource group.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// When it was made.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

impl Instance {
    /// The volume that it boots from; none while it is being made.
    #[must_use]
    pub fn boot_volume(&self) -> Option<&VolumeId> {
        Some(&self.boot_volume_attachment.as_ref()?.volume.as_ref()?.id)
    }
}

/// A volume's attachment to a server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeAttachment {
    /// Its id.
    pub id: AttachmentId,
    /// Its name, unique for the server.
    pub name: String,
    /// What it is doing.
    pub status: AttachmentState,
    /// `boot` or `data`.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// Absent until it is attached.
    #[serde(default)]
    pub device: Option<AttachedDevice>,
    /// Absent until there is one.
    #[serde(default)]
    pub volume: Option<Reference<VolumeId>>,
}
