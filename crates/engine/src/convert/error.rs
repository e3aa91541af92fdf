//! Why a conversion did not end in an image, and what it left behind.

use std::fmt;

use snapferry_base::limits::{OutOfMemory, TooTight};
use snapferry_base::retry::Class;
use snapferry_base::threads::Refused;
use snapferry_base::units::{ByteCount, GuestOffset};
use snapferry_qcow2::GeometryError;

use crate::compress::Codec;
use crate::source::SourceError;
use crate::store::{StoreError, Upload};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The source failed.
    #[error(transparent)]
    Source(SourceError),
    /// The destination failed.
    #[error(transparent)]
    Store(StoreError),
    /// The format can't hold the disk.
    #[error(transparent)]
    Geometry(GeometryError),
    /// The store can't hold the image.
    #[error("a disk of {size} may make an image of {bound}, and a store holds objects of at most {limit}")]
    TooLarge {
        /// The disk.
        size: ByteCount,
        /// The image at most.
        bound: ByteCount,
        /// The store's limit.
        limit: ByteCount,
    },
    /// A version 2 image that would need what only version 3 has.
    #[error("version 2 of qcow2 knows deflate alone, not {codec}")]
    Version2 {
        /// As asked for.
        codec: Codec,
    },
    /// The part size can't be used.
    #[error("a part size of {asked} won't do: {why}")]
    PartSize {
        /// As asked for.
        asked: ByteCount,
        /// The rule it breaks.
        why: String,
    },
    /// More at once than makes sense, or than a machine starts.
    #[error("{asked} {what} are too many: give at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// As asked for.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// Something is stored there already.
    #[error("{url} exists already")]
    Exists {
        /// The destination.
        url: String,
    },
    /// The image is complete, its manifest is not.
    #[error("the image {url} is complete, but its manifest could not be written")]
    Manifest {
        /// The image.
        url: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// The image is complete, and what proves that it arrived as it was sent could not be asked for.
    #[error("the image {url} is complete, but could not be looked at")]
    Unproved {
        /// The image.
        url: String,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The upload was completed, and something else is stored than what was sent.
    #[error("the upload was completed, but {url} does not hold the image that was sent")]
    Disproved {
        /// What should be the image.
        url: String,
        /// What differs.
        #[source]
        source: StoreError,
    },
    /// Threads could not be started.
    #[error(transparent)]
    Threads(Refused),
    /// The stages ended without an error, and did not bring all of the disk.
    #[error(
        "only {accounted} of the disk's {size} bytes came to be laid out: this is a bug in snapferry, and no image is made of them"
    )]
    Unaccounted {
        /// Bytes of the disk that came, from its first.
        accounted: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// The system refuses memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The limits of this process leave too little for any plan.
    #[error(transparent)]
    TooTight(#[from] TooTight),
    /// A stage ended without a word: a bug.
    #[error("the {stage} stage died: this is a bug in snapferry")]
    StageDied {
        /// Which.
        stage: &'static str,
    },
    /// Somebody asked us to stop.
    #[error("interrupted")]
    Interrupted,
}

impl ConvertError {
    /// What the error means for another attempt at the whole conversion.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Source(error) => error.class(),
            Self::Store(error)
            | Self::Manifest { source: error, .. }
            | Self::Unproved { source: error, .. }
            | Self::Disproved { source: error, .. } => error.class(),
            Self::Interrupted => Class::Cancelled,
            Self::Geometry(_)
            | Self::TooLarge { .. }
            | Self::Version2 { .. }
            | Self::PartSize { .. }
            | Self::TooMany { .. }
            | Self::Exists { .. }
            | Self::Threads(_)
            | Self::Memory(_)
            | Self::TooTight(_)
            | Self::Unaccounted { .. }
            | Self::StageDied { .. } => Class::Permanent,
        }
    }

    /// A failed request to the store, which is no failure where we were told to stop.
    pub(super) fn of_store(error: StoreError) -> Self {
        match error {
            StoreError::Cancelled { .. } => Self::Interrupted,
            error => Self::Store(error),
        }
    }

    /// Whether the upload was completed all the same, so that there is nothing to abort.
    pub(super) fn is_of_a_made_image(&self) -> bool {
        matches!(self, Self::Unproved { .. } | Self::Disproved { .. })
    }

    /// Whether there is, or may be, an image in the store: to be told even by a run that was stopped.
    pub(super) fn outlasts_a_stop(&self) -> bool {
        self.is_of_a_made_image() || matches!(self, Self::Store(StoreError::InDoubt { .. }))
    }

    /// The place on the disk that could not be read.
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

/// What a conversion that failed has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// An upload that could not be ended, and costs money until somebody does; or its file.
    Upload,
    /// A target that was written where it lies, and is empty now.
    EmptyTarget,
}

/// Something that a conversion could not leave as it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub remains: Remains,
    /// Which upload.
    pub upload: Upload,
    /// What it was to become.
    pub url: String,
    /// Why it is still there.
    pub why: String,
}

/// A conversion that did not end in an image.
#[derive(Debug)]
pub struct Failure {
    /// The first real error.
    pub error: ConvertError,
    /// What is left in the store, if anything.
    pub leftover: Option<Leftover>,
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
        Self { error, leftover: None }
    }
}
