//! Errors of a conversion, and what a failed one leaves behind.

use std::fmt;

use snapferry_base::limits::{OutOfMemory, TooTight};
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, GuestOffset};
use snapferry_qcow2::GeometryError;

use crate::compress::Codec;
use crate::pipeline::PipelineError;
use crate::source::SourceError;
use crate::store::{StoreError, Upload};

/// Reason why a conversion failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Reading the source failed.
    #[error(transparent)]
    Source(SourceError),
    /// A request to the destination failed.
    #[error(transparent)]
    Store(StoreError),
    /// The qcow2 format can't hold the disk.
    #[error(transparent)]
    Geometry(GeometryError),
    /// The store can't hold the image.
    #[error("a disk of {size} may make an image of {bound}, and a store holds objects of at most {limit}")]
    TooLarge {
        /// Size of the disk.
        size: ByteCount,
        /// Largest size that the image can have.
        bound: ByteCount,
        /// Largest object that the store takes.
        limit: ByteCount,
    },
    /// A version 2 image would need a codec that only version 3 has.
    #[error("version 2 of qcow2 knows deflate alone, not {codec}")]
    Version2 { codec: Codec },
    /// The part size can't be used.
    #[error("a part size of {requested} won't do: {reason}")]
    PartSize {
        /// Part size that the user asked for.
        requested: ByteCount,
        /// Rule that the part size breaks.
        reason: String,
    },
    /// An image is stored under this name already.
    #[error("{url} exists already")]
    Exists { url: String },
    /// The image is complete, but its manifest is not stored.
    #[error("the image {url} is complete, but its manifest could not be written")]
    Manifest {
        /// URL or path of the image.
        url: String,
        #[source]
        source: StoreError,
    },
    /// The image is complete, but the request that would prove that it arrived as it was sent failed.
    #[error("the image {url} is complete, but could not be looked at")]
    Unproved {
        /// URL or path of the image.
        url: String,
        #[source]
        source: StoreError,
    },
    /// The upload was completed, but the stored object is not what was sent.
    #[error("the upload was completed, but {url} does not hold the image that was sent")]
    Disproved {
        /// URL or path of the object that should be the image.
        url: String,
        #[source]
        source: StoreError,
    },
    /// The stages ended without an error, but did not deliver all of the disk.
    #[error(
        "only {accounted} of the disk's {size} bytes came to be laid out: this is a bug in snapferry, and no image is made of them"
    )]
    Unaccounted {
        /// Bytes of the disk that were delivered, from its first byte on.
        accounted: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// Failure of the machinery that conversion and reading share.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl From<OutOfMemory> for ConvertError {
    fn from(error: OutOfMemory) -> Self {
        Self::Pipeline(error.into())
    }
}

impl From<TooTight> for ConvertError {
    fn from(error: TooTight) -> Self {
        Self::Pipeline(error.into())
    }
}

impl ConvertError {
    /// Returns the class of the error for a retry of the whole conversion.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Source(error) => error.class(),
            Self::Store(error)
            | Self::Manifest { source: error, .. }
            | Self::Unproved { source: error, .. }
            | Self::Disproved { source: error, .. } => error.class(),
            Self::Pipeline(error) => error.class(),
            Self::Geometry(_)
            | Self::TooLarge { .. }
            | Self::Version2 { .. }
            | Self::PartSize { .. }
            | Self::Exists { .. }
            | Self::Unaccounted { .. } => Class::Permanent,
        }
    }

    /// Converts the error of a request to the store. A cancelled request is an interruption, not a failure.
    pub(super) fn of_store(error: StoreError) -> Self {
        match error {
            StoreError::Cancelled { .. } => Self::Pipeline(PipelineError::Interrupted),
            error => Self::Store(error),
        }
    }

    /// True if the upload was completed in spite of the error, so that there is nothing to abort.
    pub(super) fn is_of_a_made_image(&self) -> bool {
        matches!(self, Self::Unproved { .. } | Self::Disproved { .. })
    }

    /// True if there is, or may be, an image in the store. Even a run that was stopped reports such an error.
    pub(super) fn outlasts_a_stop(&self) -> bool {
        self.is_of_a_made_image() || matches!(self, Self::Store(StoreError::InDoubt { .. }))
    }

    /// Returns the offset on the disk that could not be read.
    pub(super) fn offset(&self) -> Option<GuestOffset> {
        match self {
            Self::Source(
                SourceError::Read { offset, .. }
                | SourceError::Vanished { offset, .. }
                | SourceError::Shrunk { offset, .. },
            ) => Some(*offset),
            _ => None,
        }
    }
}

/// Kind of thing that a failed conversion leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// An upload that could not be ended, and costs money until the user ends it; or the file of such an
    /// upload.
    Upload,
    /// A target that was written in place, and is empty now.
    EmptyTarget,
}

/// Something that a failed conversion could not restore to its earlier state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanedUpload {
    pub remains: Remains,
    pub upload: Upload,
    /// URL or path of the image that was to be made.
    pub url: String,
    /// Reason why it is still there.
    pub reason: String,
}

/// Failure of a conversion, with what it leaves behind.
#[derive(Debug)]
pub struct Failure {
    /// The first real error of any stage.
    pub error: ConvertError,
    /// Remainder in the store, if there is any.
    pub orphaned_upload: Option<OrphanedUpload>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Self {
        Self { error, orphaned_upload: None }
    }
}
