//! Reasons why an image can't be the base of a new one.

use snapferry_base::limits::OutOfMemory;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, GuestOffset};
use snapferry_qcow2::{ImageError, ReuseError};

use super::LEAST;
use crate::hash::Crc64;
use crate::image::ManifestError;
use crate::manifest::{FoldError, VERSION};
use crate::store::StoreError;

/// Reason why an image can't be the base of a new one.
#[derive(Debug, thiserror::Error)]
pub enum NotUsable {
    /// There is no object of that name.
    #[error("there is no image of that name")]
    Missing,
    /// It would be sent as quickly as it is copied.
    #[error("it has {size}, and copies are worth it from {LEAST} on")]
    TooSmall {
        /// Size of the image file.
        size: ByteCount,
    },
    /// The store did not return all that is needed of the image.
    #[error("it can't be read")]
    Store(#[source] StoreError),
    /// The system refused the memory for its tables.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// There is no manifest beside it, or none that can be read.
    #[error("its manifest can't be read: {reason}")]
    Manifest { reason: String },
    /// The image was not read back after it was made, or a defect was found.
    #[error("it was not verified after it was made")]
    NotVerified,
    /// The image was made with `--no-hash`.
    #[error("its manifest has no hash of the disk's bytes from {guest}")]
    NoHashes {
        /// Offset of the first such segment in the disk.
        guest: GuestOffset,
    },
    /// Another encoder made the image, or this one with other settings.
    #[error("its {setting} is {base}, and that of this run is {wanted}")]
    OtherEncoder {
        /// Setting that differs.
        setting: &'static str,
        /// Value of the image.
        base: String,
        /// Value of this run.
        wanted: String,
    },
    /// The manifest has a version that is too new.
    #[error("its manifest is of version {version}, and those up to {VERSION} are known")]
    Newer { version: u32 },
    /// The program that made the image did not record all that a base needs.
    #[error("{made_by}, which made it, recorded no {missing}")]
    Older {
        /// Program, and its version.
        made_by: String,
        /// Field of the manifest.
        missing: &'static str,
    },
    /// The image or its manifest contradicts the other, or itself.
    #[error("it is damaged")]
    Damaged(#[from] Damage),
    /// The store refused to copy from an image of this name not long ago.
    #[error("the store refused to copy on {at}: {what}")]
    Refused {
        /// Request that the store refused, and its answer.
        what: String,
        /// Time of the refusal: UTC, RFC 3339, to the second.
        at: String,
    },
    /// The image was removed while it was looked at.
    #[error("it was removed just now")]
    Vanished,
    /// The object of that name is another image than the one that the manifest describes.
    #[error("the object of that name is not the one that its manifest describes: {reason}")]
    Replaced { reason: String },
}

/// Contradiction in an image, or between it and its manifest.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A field of the manifest has an impossible value.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest's checksums do not join to that of the image.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// Head or tables have other lengths than those of an image of this size.
    #[error("the manifest gives its {piece} {length} bytes")]
    Length {
        /// `head` or `tables`.
        piece: &'static str,
        /// Length by the manifest.
        length: u64,
    },
    /// Head or tables are not those that were written.
    #[error("the checksum of its {piece} is {found}, and was {expected} when it was made")]
    Sum {
        /// `head` or `tables`.
        piece: &'static str,
        /// Checksum by the manifest.
        expected: Crc64,
        /// Checksum of the bytes that were read.
        found: Crc64,
    },
    /// The tables are not those of an image.
    #[error(transparent)]
    Tables(ImageError),
    /// The header is not the one that belongs to the manifest.
    #[error("its header is not the one that its manifest describes")]
    Header,
    /// A segment is not where the manifest has it, or not as this program places bodies.
    #[error("its tables and its manifest differ in the segment of the disk's bytes from {guest}")]
    Segment {
        /// Offset of the segment in the disk.
        guest: GuestOffset,
        #[source]
        source: ReuseError,
    },
    /// A segment holds compressed bodies in an image that has none.
    #[error("the disk's bytes from {guest} are compressed, in an image that is not")]
    Compressed {
        /// Offset of the segment in the disk.
        guest: GuestOffset,
    },
    /// The tables lead to bodies that are in no segment of the manifest.
    #[error("its tables have {found} clusters, and the segments of its manifest {listed}")]
    Unlisted {
        /// Clusters that hold data by the tables.
        found: u64,
        /// Clusters that hold data in the segments.
        listed: u64,
    },
}

impl NotUsable {
    /// Returns the reason in one word, for programs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Missing => "none",
            Self::TooSmall { .. } => "too-small",
            Self::Store(_) | Self::Memory(_) | Self::Manifest { .. } => "unreadable",
            Self::NotVerified => "not-verified",
            Self::NoHashes { .. } => "no-hashes",
            Self::OtherEncoder { .. } => "other-encoder",
            Self::Newer { .. } | Self::Older { .. } => "other-version",
            Self::Damaged(_) => "damaged",
            Self::Refused { .. } => "refused",
            Self::Vanished => "vanished",
            Self::Replaced { .. } => "replaced",
        }
    }

    /// Returns the class of the error. A caller that was stopped, or has lost its job, finds that here: then
    /// nothing is known about the image.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            _ => Class::Permanent,
        }
    }

    /// Returns the reason for an error of a read of the image: it was there a moment ago.
    pub(super) fn of_read(error: StoreError) -> Self {
        match error {
            StoreError::NoSuchKey { .. } => Self::Vanished,
            StoreError::Precondition { reason, .. } => Self::Replaced { reason },
            error => Self::Store(error),
        }
    }
}
