//! Models of images, and of the jobs that export them.

use std::time::SystemTime;

use serde::Deserialize;

use super::operating_system::OperatingSystemReference;
use super::{Named, Reference, StateReason, open_enum};
use crate::vpc::names::{Crn, ExportJobId, ImageId, ResourceGroupId, VolumeId};

open_enum! {
    /// State of an image, which decides if a server can boot from it.
    ImageState {
        /// Ready for use.
        Available = "available",
        /// The image is being deleted.
        Deleting = "deleting",
        /// Still bootable, but no longer recommended; still billed.
        Deprecated = "deprecated",
        /// The import has failed.
        Failed = "failed",
        /// No longer bootable; still billed.
        Obsolete = "obsolete",
        /// Bootable only in the zones that the image lists.
        PartiallyAvailable = "partially_available",
        /// The image is being imported.
        Pending = "pending",
        /// The encryption key is deleted or disabled.
        Unusable = "unusable",
    }
}

open_enum! {
    /// Visibility of an image to accounts.
    ImageVisibility {
        /// Visible only to the account that owns the image.
        Private = "private",
        /// Visible to all accounts.
        Public = "public",
    }
}

open_enum! {
    /// State of an export job.
    ExportState {
        /// The job is being removed.
        Deleting = "deleting",
        /// The export has failed, and its object is deleted.
        Failed = "failed",
        /// The job waits until the service starts it.
        Queued = "queued",
        /// The export is in progress.
        Running = "running",
        /// The export is complete, and the object exists.
        Succeeded = "succeeded",
    }
}

/// File format of an exported image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// QEMU's copy-on-write format, QCOW2.
    #[default]
    Qcow2,
    /// Virtual PC's format, VHD.
    Vhd,
}

impl std::str::FromStr for ExportFormat {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "qcow2" => Ok(Self::Qcow2),
            "vhd" => Ok(Self::Vhd),
            other => Err(format!("unknown format {other:?}: give qcow2 or vhd")),
        }
    }
}

/// File that an image was imported from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageFile {
    /// Size of the file in GB, rounded up.
    #[serde(default)]
    pub size: Option<u64>,
    /// Checksums of the file; absent until the service has computed them.
    #[serde(default)]
    pub checksums: Option<ImageChecksums>,
}

/// Checksums of an image's file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageChecksums {
    /// SHA-256 of the file as it was imported, in hexadecimal.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Image that servers can boot from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Image {
    /// Identifier of the image, as the API returns it.
    pub id: ImageId,
    /// CRN of the image.
    pub crn: Crn,
    /// Name of the image, unique among the account's own images in the region.
    pub name: String,
    /// State of the image, such as `available` or `deprecated`.
    pub status: ImageState,
    /// Reasons for the state, as the API gives them.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Visibility of the image: `private` or `public`.
    pub visibility: ImageVisibility,
    /// File that the image was imported from.
    pub file: ImageFile,
    /// Smallest boot volume for the image, in GB: the size of its disk.
    #[serde(default)]
    pub minimum_provisioned_size: Option<u64>,
    /// Operating system in the image.
    #[serde(default)]
    pub operating_system: Option<OperatingSystemReference>,
    /// Zones where a partially available image is bootable.
    #[serde(default)]
    pub zones: Vec<Named>,
    /// Volume that the image was made from; absent for an imported image.
    #[serde(default)]
    pub source_volume: Option<Reference<VolumeId>>,
    /// Resource group of the image.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// Time when the API accepted the request for the image.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

impl Image {
    /// Returns the SHA-256 of the imported file, in lower-case hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> Option<String> {
        self.file.checksums.as_ref()?.sha256.as_ref().map(|sum| sum.to_ascii_lowercase())
    }
}

/// Object that an export job writes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExportedObject {
    /// Key of the object in the bucket.
    pub name: String,
}

/// Job that exports an image into a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExportJob {
    /// Identifier of the job, as the API returns it.
    pub id: ExportJobId,
    /// Name of the job, unique for the image.
    pub name: String,
    /// State of the job, such as `running` or `succeeded`.
    pub status: ExportState,
    /// Reasons for the state, as the API gives them.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Format of the object: `qcow2` or `vhd`.
    pub format: String,
    /// Bucket that the job writes into.
    pub storage_bucket: Named,
    /// Address of the object, as `cos://location/bucket/key`.
    #[serde(default)]
    pub storage_href: Option<String>,
    /// Object that the job writes.
    #[serde(default)]
    pub storage_object: Option<ExportedObject>,
    /// Time when the API accepted the request for the job.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
    /// Time when the job completed; absent until then.
    #[serde(default, deserialize_with = "super::time_if_any")]
    pub completed_at: Option<SystemTime>,
}
