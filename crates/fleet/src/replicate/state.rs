//! Knowledge that a job has of the cloud so far. It is a hint for a process that resumes the job: the truth
//! is in the cloud, and each step looks there first.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use snapferry_base::units::ByteCount;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{ETag, ObjectKey};
use snapferry_ibmcloud::vpc::model::StorageGeneration;
use snapferry_ibmcloud::vpc::{
    AttachmentId, Crn, ImageId, InstanceId, ResourceGroupId, ResourceName, SnapshotId, VolumeId,
};

/// Server, as it was when the job looked it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    pub id: InstanceId,
    /// Volume that the server boots from.
    pub boot_volume: VolumeId,
}

/// Disk that is read: its size, its storage, and its operating system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Size in GB, which the API counts as GiB.
    pub capacity: u64,
    /// Generation of the storage behind the disk, which decides the profile of the volume.
    pub generation: StorageGeneration,
    /// Name of the operating system in the recovery region; none if nothing is imported.
    pub operating_system: Option<String>,
    /// Resource group of the boot volume or the snapshot, in which the job makes everything, unless the user
    /// names another one.
    #[serde(default)]
    pub resource_group: Option<ResourceGroupId>,
}

/// Snapshot that the job reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotState {
    pub id: SnapshotId,
    pub name: String,
    /// Moment whose data the snapshot holds, once it is known.
    #[serde(default)]
    pub taken_at: Option<SystemTime>,
}

/// Volume that is made from the snapshot and read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    pub id: VolumeId,
    pub profile: String,
}

/// Attachment of that volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentState {
    /// Server that the volume is attached to.
    pub instance: InstanceId,
    pub id: AttachmentId,
    /// Path of the device on that server.
    pub device: PathBuf,
}

/// Earlier image that the job's image takes unchanged parts from. It is chosen once, so that a process that
/// takes the job over plans the same parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseState {
    #[serde(with = "key")]
    pub key: ObjectKey,
    /// Version of the object.
    pub etag: ETag,
}

/// What an image took from an earlier one. A figure that only the process that sent the image could know is
/// `None` if that process died before it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseUse {
    /// Key of the earlier image.
    #[serde(with = "key")]
    pub key: ObjectKey,
    /// Number of segments that hold data.
    pub segments: u64,
    /// Number of these segments that did not change.
    pub segments_unchanged: u64,
    /// Bytes that the store copied.
    pub bytes_copied: ByteCount,
    /// Bytes that were fetched from the earlier image and sent again.
    #[serde(default)]
    pub bytes_fetched: Option<ByteCount>,
    /// Number of parts that the store copied.
    #[serde(default)]
    pub copies: Option<u64>,
    /// Number of copied segments that were read back, because the store returned no checksum of its copies.
    #[serde(default)]
    pub segments_read_back: Option<u64>,
}

/// Image in the bucket, once it was read back and found good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectState {
    #[serde(with = "key")]
    pub key: ObjectKey,
    /// Address of the object, for users.
    pub url: String,
    /// Size of the object in bytes.
    pub size: ByteCount,
    /// Size of the disk in bytes.
    pub virtual_size: ByteCount,
    /// CRC64NVME of the whole file.
    pub crc64: Crc64,
    /// SHA-256 of the whole file, in lower-case hex.
    pub sha256: String,
    /// Bytes that were sent to the store for it, in all attempts of the process that sent it. `None` if that
    /// process died before this was recorded.
    #[serde(default)]
    pub bytes_sent: Option<ByteCount>,
    /// Earlier image that was used to the end; `None` if all of the disk was sent.
    #[serde(default)]
    pub base: Option<BaseUse>,
    /// Reason in one word why all of the disk was sent, if it was.
    #[serde(default)]
    pub full_because: Option<String>,
}

/// Image in the recovery region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageState {
    pub id: ImageId,
    /// CRN of the image, by which it is tagged.
    pub crn: Crn,
    /// Current name of the image.
    pub name: String,
}

/// Image that was the latest before this job's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedState {
    pub id: ImageId,
    /// Name that the image gets in place of the latest's.
    pub name: String,
}

/// Everything that is known of a job, as each journal entry keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// True if a process has taken the job up before. The rest of the state may be outdated then, since
    /// another server may have continued the job.
    #[serde(default)]
    pub taken_up: bool,
    #[serde(default)]
    pub server: Option<ServerState>,
    #[serde(default)]
    pub disk: Option<DiskState>,
    #[serde(default)]
    pub snapshot: Option<SnapshotState>,
    /// Zone of a clone that the job has made; none once it is gone.
    #[serde(default)]
    pub clone_zone: Option<String>,
    /// Volume that is read; none once it is gone.
    #[serde(default)]
    pub volume: Option<VolumeState>,
    /// Attachment of the volume; none once it is gone.
    #[serde(default)]
    pub attachment: Option<AttachmentState>,
    /// Earlier image that the conversion uses, once it is chosen.
    #[serde(default)]
    pub base: Option<BaseState>,
    /// True if an image of the job was wrong when it was read back: then all of the disk is sent.
    #[serde(default)]
    pub full: bool,
    #[serde(default)]
    pub object: Option<ObjectState>,
    #[serde(default)]
    pub image: Option<ImageState>,
    /// Image that this job's image replaces as the latest.
    #[serde(default)]
    pub replaced: Option<ReplacedState>,
    /// Things that retention has removed, as text for users.
    #[serde(default)]
    pub pruned: Vec<String>,
}

impl JobState {
    /// True if the job's image has that name.
    #[must_use]
    pub fn image_named(&self, name: &ResourceName) -> bool {
        self.image.as_ref().is_some_and(|image| image.name == name.as_str())
    }
}

mod key {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use snapferry_engine::store::ObjectKey;

    pub(super) fn serialize<S: Serializer>(key: &ObjectKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(key.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectKey, D::Error> {
        ObjectKey::new(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}
