//! Images, and the jobs that export them.

use std::time::SystemTime;

use serde::Deserialize;

use super::operating_system::OperatingSystemReference;
use super::{Named, Reference, StateReason, open_enum};
use crate::vpc::names::{Crn, ExportJobId, ImageId, ResourceGroupId, VolumeId};

open_enum! {
    /// What an image is good for.
    ImageState {
        /// Everything.
        Available = "available",
        /// Being deleted.
        Deleting = "deleting",
        /// Still bootable, no longer recommended; still billed.
        Deprecated = "deprecated",
        /// It could not be imported.
        Failed = "failed",
        /// No longer bootable; still billed.
        Obsolete = "obsolete",
        /// Bootable in the zones that it lists.
        PartiallyAvailable = "partially_available",
        /// Being imported.
        Pending = "pending",
        /// Its encryption key is gone or disabled.
        Unusable = "unusable",
    }
}

open_enum! {
    /// Who sees an image.
    ImageVisibility {
        /// Its account.
        Private = "private",
        /// Everybody.
        Public = "public",
    }
}

open_enum! {
    /// What an export job is doing.
    ExportState {
        /// Being removed.
        Deleting = "deleting",
        /// It failed, and its object is gone.
        Failed = "failed",
        /// Waiting for its turn.
        Queued = "queued",
        /// At it.
        Running = "running",
        /// The object is there.
        Succeeded = "succeeded",
    }
}

/// What an image is exported as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// QEMU's.
    #[default]
    Qcow2,
    /// Virtual PC's.
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

/// The file that an image was imported from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageFile {
    /// GB, rounded up.
    #[serde(default)]
    pub size: Option<u64>,
    /// Its sums; absent until they are known.
    #[serde(default)]
    pub checksums: Option<ImageChecksums>,
}

/// The sums of an image's file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageChecksums {
    /// SHA-256 of the file as it was imported, in hex.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its CRN.
    pub crn: Crn,
    /// Its name, unique among the account's own in the region.
    pub name: String,
    /// What it is good for.
    pub status: ImageState,
    /// Why.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Who sees it.
    pub visibility: ImageVisibility,
    /// What it was imported from.
    pub file: ImageFile,
    /// GB of the disk.
    #[serde(default)]
    pub minimum_provisioned_size: Option<u64>,
    /// What it boots.
    #[serde(default)]
    pub operating_system: Option<OperatingSystemReference>,
    /// Where it is bootable while partially available.
    #[serde(default)]
    pub zones: Vec<Named>,
    /// What it was made of, if it was made of a volume.
    #[serde(default)]
    pub source_volume: Option<Reference<VolumeId>>,
    /// Its resource group.
    #[serde(default)]
    pub resource_group: Option<Reference<ResourceGroupId>>,
    /// When it was asked for.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
}

impl Image {
    /// The SHA-256 of the imported file, in lower case.
    #[must_use]
    pub fn sha256(&self) -> Option<String> {
        self.file.checksums.as_ref()?.sha256.as_ref().map(|sum| sum.to_ascii_lowercase())
    }
}

/// Where an export job puts the image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExportedObject {
    /// The object's key.
    pub name: String,
}

/// A job that exports an image into a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExportJob {
    /// Its id.
    pub id: ExportJobId,
    /// Its name, unique for the image.
    pub name: String,
    /// What it is doing.
    pub status: ExportState,
    /// Why.
    #[serde(default)]
    pub status_reasons: Vec<StateReason>,
    /// Of what kind the object is.
    pub format: String,
    /// The bucket.
    pub storage_bucket: Named,
    /// Where the object is, as `cos://location/bucket/key`.
    #[serde(default)]
    pub storage_href: Option<String>,
    /// The object.
    #[serde(default)]
    pub storage_object: Option<ExportedObject>,
    /// When it was asked for.
    #[serde(deserialize_with = "super::time")]
    pub created_at: SystemTime,
    /// When it was done.
    #[serde(default, deserialize_with = "super::time_if_any")]
    pub completed_at: Option<SystemTime>,
}
