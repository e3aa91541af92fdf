//! What a job knows of the cloud so far. A hint for whoever resumes it: the truth is in the cloud, and every step looks there first.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use snapferry_base::units::ByteCount;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::ObjectKey;
use snapferry_ibmcloud::vpc::model::StorageGeneration;
use snapferry_ibmcloud::vpc::{
    AttachmentId, Crn, ImageId, InstanceId, ResourceGroupId, ResourceName, SnapshotId, VolumeId,
};

/// The server, as it was when the job looked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// Its id.
    pub id: InstanceId,
    /// What it boots from.
    pub boot_volume: VolumeId,
}

/// What is read: the size and kind of the disk, and what boots from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// GB, which the API counts as GiB.
    pub capacity: u64,
    /// The storage behind it, which decides the volume's profile.
    pub generation: StorageGeneration,
    /// The operating system's name in the recovery region; none where nothing is imported.
    pub operating_system: Option<String>,
    /// The resource group of the boot volume or the snapshot, in which the job makes all that it makes.
    #[serde(default)]
    pub resource_group: Option<ResourceGroupId>,
}

/// The snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotState {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// The moment of which it holds the disk, once it is known.
    #[serde(default)]
    pub taken_at: Option<SystemTime>,
}

/// The volume that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    /// Its id.
    pub id: VolumeId,
    /// Its profile.
    pub profile: String,
}

/// Where that volume turned up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentState {
    /// On which server.
    pub instance: InstanceId,
    /// Its id.
    pub id: AttachmentId,
    /// The device's path there.
    pub device: PathBuf,
}

/// The image in the bucket, once it was read back and found good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectState {
    /// Its key.
    #[serde(with = "key")]
    pub key: ObjectKey,
    /// For people.
    pub url: String,
    /// Bytes of it.
    pub size: ByteCount,
    /// Bytes of the disk.
    pub virtual_size: ByteCount,
    /// CRC64NVME of the whole file.
    pub crc64: Crc64,
    /// SHA-256 of the whole file, in lower-case hex.
    pub sha256: String,
}

/// The image in the recovery region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageState {
    /// Its id.
    pub id: ImageId,
    /// Its CRN, which tags go by.
    pub crn: Crn,
    /// Its name now.
    pub name: String,
}

/// The image that was the latest until now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedState {
    /// Its id.
    pub id: ImageId,
    /// What it is called from now on.
    pub name: String,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Somebody has taken the job up before: what it says may be over elsewhere.
    #[serde(default)]
    pub taken_up: bool,
    /// The server.
    #[serde(default)]
    pub server: Option<ServerState>,
    /// Its disk.
    #[serde(default)]
    pub disk: Option<DiskState>,
    /// The snapshot.
    #[serde(default)]
    pub snapshot: Option<SnapshotState>,
    /// The zone of a clone that the job has made; none once it is gone.
    #[serde(default)]
    pub clone_zone: Option<String>,
    /// The volume; none once it is gone.
    #[serde(default)]
    pub volume: Option<VolumeState>,
    /// Its attachment; none once it is gone.
    #[serde(default)]
    pub attachment: Option<AttachmentState>,
    /// The object.
    #[serde(default)]
    pub object: Option<ObjectState>,
    /// The image.
    #[serde(default)]
    pub image: Option<ImageState>,
    /// What it replaces.
    #[serde(default)]
    pub replaced: Option<ReplacedState>,
    /// What retention has removed, in words.
    #[serde(default)]
    pub pruned: Vec<String>,
}

impl State {
    /// The image's name, where it has one of its own already.
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
