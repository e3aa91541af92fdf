//! Models of servers and of the volumes attached to them.

use std::time::SystemTime;

use serde::Deserialize;

use super::{Named, Reference, StateReason, open_enum};
use crate::vpc::names::{AttachmentId, Crn, InstanceId, ResourceGroupId, VolumeId, VpcId};

open_enum! {
    /// State of a server.
    InstanceState {
        /// The server is being deleted.
        Deleting = "deleting",
        /// The server could not be created.
        Failed = "failed",
        /// The server is being created.
        Pending = "pending",
        /// The server is being restarted.
        Restarting = "restarting",
        /// The server runs.
        Running = "running",
        /// The server is starting.
        Starting = "starting",
        /// The server is stopped.
        Stopped = "stopped",
        /// The server is stopping.
        Stopping = "stopping",
    }
}

open_enum! {
    /// State of an attachment.
    AttachmentState {
        /// The server has the device.
        Attached = "attached",
        /// The volume is being attached.
        Attaching = "attaching",
        /// The attachment is being removed together with its volume.
        Deleting = "deleting",
        /// The attachment is being removed.
        Detaching = "detaching",
    }
}

impl AttachmentState {
    /// True if the volume is being detached from the server.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self, Self::Deleting | Self::Detaching)
    }
}

/// Block device by which a server sees a volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AttachedDevice {
    /// Serial number of the device; the guest sees its first 20 characters.
    pub id: String,
}

/// Attachment of a boot volume, as an instance's description lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BootAttachment {
    /// Identifier of the attachment, as the API returns it.
    pub id: AttachmentId,
    /// Name of the attachment, unique for the server.
    #[serde(default)]
    pub name: Option<String>,
    /// Block device in the guest; absent until the volume is attached.
    #[serde(default)]
    pub device: Option<AttachedDevice>,
    /// Attached volume; absent while the server is being created.
    #[serde(default)]
    pub volume: Option<Reference<VolumeId>>,
}

/// Attachment of any volume, the boot volume included, as an instance's description lists it.
pub type VolumeAttachmentReference = BootAttachment;

/// Virtual server instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// Identifier of the server, as the API returns it.
    pub id: InstanceId,
    /// CRN of the server.
    pub crn: Crn,
    /// Name of the server, unique in the region.
    pub name: String,
    /// State of the server, such as `running`.
    pub status: InstanceState,
    /// Reasons for the state, as the API gives them.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Zone that the server runs in.
    pub zone: Named,
    /// VPC that the server is in.
    pub vpc: Reference<VpcId>,
    /// Profile of the server, such as `bx2-2x8`.
    pub profile: Named,
    /// Attachment of the boot volume.
    #[serde(default)]
    pub boot_volume_attachment: Option<BootAttachment>,
    /// Attachments of all volumes, the boot volume included.
    #[serde(default)]
    pub volume_attachments: Vec<VolumeAttachmentReference>,
    /// Bandwidth of all volumes together, in megabits per second.
    #[serde(default)]
    pub total_volume_bandwidth: Option<u64>,
    /// Rule by which the volumes share that bandwidth.
    #[serde(default)]
    pub volume_bandwidth_qos_mode: Option<String>,
    /// Resource group of the server.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// Time when the server was created.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

impl Instance {
    /// Returns the boot volume's identifier; none while the server is being created.
    #[must_use]
    pub fn boot_volume(&self) -> Option<&VolumeId> {
        Some(&self.boot_volume_attachment.as_ref()?.volume.as_ref()?.id)
    }
}

/// Attachment of a volume to a server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeAttachment {
    /// Identifier of the attachment, as the API returns it.
    pub id: AttachmentId,
    /// Name of the attachment, unique for the server.
    pub name: String,
    /// State of the attachment, such as `attached`.
    pub status: AttachmentState,
    /// Kind of volume: `boot` or `data`.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// Block device in the guest; absent until the volume is attached.
    #[serde(default)]
    pub device: Option<AttachedDevice>,
    /// Attached volume; absent until the API reports one.
    #[serde(default)]
    pub volume: Option<Reference<VolumeId>>,
}
