//! Errors of reading an image back and of writing a disk.

use snapferry_base::limits::{OutOfMemory, TooTight};
use snapferry_base::retry::Class;
use snapferry_base::units::{GuestOffset, HostOffset};
use snapferry_qcow2::{FileError, ImageError};

use crate::compress::DecodeError;
use crate::disk::TargetError;
use crate::image::{HashFinding, ManifestError};
use crate::pipeline::PipelineError;
use crate::source::SourceError;

/// Reason why an image was not read to its end, or why its data did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image's bytes can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The compressed body of a cluster does not decode.
    #[error("{name}: the body at byte {host}, which holds the disk's bytes from {guest}, is damaged")]
    Body {
        name: String,
        /// Offset of the body's cluster in the disk.
        guest: GuestOffset,
        /// Offset of the body in the image file.
        host: HostOffset,
        #[source]
        source: DecodeError,
    },
    /// The image's content differs from its manifest.
    #[error("{name}: {finding}")]
    Manifest { name: String, finding: HashFinding },
    /// The manifest can't be compared with the image.
    #[error("{name}: the manifest beside it is of no use")]
    Unusable {
        name: String,
        #[source]
        source: ManifestError,
    },
    /// The disk that the image is compared with can't be read.
    #[error(transparent)]
    Source(SourceError),
    /// The target of the restore can't be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The target holds only a part of the image.
    #[error("{target} is incomplete: do not use it")]
    Incomplete {
        target: String,
        #[source]
        source: Box<RestoreError>,
    },
    /// The stages ended without an error, but did not deliver all data.
    #[error("only {found} of {expected} {items}: this is a bug in snapferry, and nothing is made of them")]
    Unaccounted {
        /// Things that were counted, for the message: `clusters were decoded`.
        items: &'static str,
        /// Count that was delivered.
        found: u64,
        /// Count that should have been delivered.
        expected: u64,
    },
    /// Failure of the machinery that conversion and reading share.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl From<OutOfMemory> for RestoreError {
    fn from(error: OutOfMemory) -> Self {
        Self::Pipeline(error.into())
    }
}

impl From<TooTight> for RestoreError {
    fn from(error: TooTight) -> Self {
        Self::Pipeline(error.into())
    }
}

impl RestoreError {
    /// Returns the class of the error for a retry. Stores have retried their own requests already.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Pipeline(error) => error.class(),
            Self::Incomplete { source, .. } => source.class(),
            _ => Class::Permanent,
        }
    }
}

/// Fails if `found` is not `expected`. The end of all threads and channels does not prove that all data came
/// through.
pub(crate) fn check_count(items: &'static str, found: u64, expected: u64) -> Result<(), RestoreError> {
    if found == expected { Ok(()) } else { Err(RestoreError::Unaccounted { items, found, expected }) }
}
