//! Sources: raw block devices and image files, read past the page cache.

use std::fmt;
use std::io;

use snapferry_base::limits::OutOfMemory;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, GuestOffset};

use crate::manifest::FreeRecord;

pub mod aligned;
mod joined;
mod paced;
mod raw;
mod salvage;
mod skipping;

pub use joined::Joined;
pub use paced::Paced;
pub use raw::{InUse, RawSource};
pub use salvage::Salvaging;
pub use skipping::{Skipping, find_free};
pub use snapferry_base::units::BadRange;

/// Content of a range of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Bytes that have to be read, up to this offset.
    Data {
        /// First offset after the range.
        end: GuestOffset,
    },
    /// Zeros that need not be read, up to this offset: a hole in a sparse file.
    Hole {
        /// First offset after the range.
        end: GuestOffset,
    },
}

/// Disk that many threads read at any offset at the same time.
pub trait Source: Send + Sync {
    /// Returns the name of the source, for messages.
    fn name(&self) -> &str;

    /// Returns the exact size in bytes.
    fn size(&self) -> ByteCount;

    /// Returns the alignment that reads need, in bytes: a power of two, at most 4096.
    fn alignment(&self) -> usize;

    /// Fills `into` from `offset`: all of it, or an error. The caller aligns `offset`, the address of `into`
    /// and its length to [`Source::alignment`]. Bytes past the end of the disk read as zeros.
    ///
    /// # Errors
    /// If anything before the end of the disk can't be read; the error names the offset.
    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError>;

    /// Returns the kind of content at `from`, and its end. A source that does not know reports data.
    ///
    /// # Errors
    /// If the file system fails to answer.
    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError>;

    /// Checks after the last read that the source is still what it was at the first one.
    ///
    /// # Errors
    /// If it grew, shrank, or was written to meanwhile, as far as that can be seen.
    fn settle(&self) -> Result<(), SourceError>;

    /// Ranges that could not be read and came as zeros instead, in the order of the disk, neighbours joined.
    /// Empty for a source that fails at the first one.
    fn bad_ranges(&self) -> Vec<BadRange> {
        Vec::new()
    }

    /// Filesystems whose free blocks read as zeros, whatever the disk holds there. Empty for a source that
    /// reads as the disk does.
    fn skipped(&self) -> Vec<FreeRecord> {
        Vec::new()
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn size(&self) -> ByteCount {
        (**self).size()
    }

    fn alignment(&self) -> usize {
        (**self).alignment()
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        (**self).read_at(offset, into)
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        (**self).extent_at(from)
    }

    fn settle(&self) -> Result<(), SourceError> {
        (**self).settle()
    }

    fn bad_ranges(&self) -> Vec<BadRange> {
        (**self).bad_ranges()
    }

    fn skipped(&self) -> Vec<FreeRecord> {
        (**self).skipped()
    }
}

/// Error of a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source can't be opened.
    #[error("cannot open {path}")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The path is not a disk.
    #[error("{path} is a {kind}, not a block device or a regular file")]
    Kind { path: String, kind: Kind },
    /// The source has no bytes.
    #[error("{path} is empty: there are no bytes to convert")]
    Empty { path: String },
    /// The source is mounted, or another process uses it exclusively.
    #[error("{path} is in use: it is mounted, or part of something that is")]
    Busy { path: String },
    /// A read of the source failed.
    #[error("{path}: read error at offset {offset}")]
    Read {
        path: String,
        /// Offset where the failed read began.
        offset: GuestOffset,
        #[source]
        source: io::Error,
    },
    /// The device is no longer there.
    #[error("{path}: the device vanished; the read at offset {offset} found it gone")]
    Vanished {
        path: String,
        /// Offset where the failed read began.
        offset: GuestOffset,
        #[source]
        source: io::Error,
    },
    /// The source ended before the size that it had when it was opened.
    #[error("{path}: ends at offset {offset}, but was {size} bytes long when it was opened")]
    Shrunk {
        path: String,
        /// Offset where a read found the end.
        offset: GuestOffset,
        /// Size in bytes when it was opened.
        size: u64,
    },
    /// The source changed while it was read.
    #[error("{path}: changed while it was read: {reason}")]
    Changed { path: String, reason: &'static str },
    /// There is no memory to read the source with.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// A system call about the source failed.
    #[error("{path}: {question} failed")]
    Ask {
        path: String,
        /// Purpose of the system call, for the message.
        question: &'static str,
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// Returns the class of the error for a retry: permanent, because a person has to look at a source that
    /// fails.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// Type of a path that is not a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    /// A character device, such as `/dev/zero`.
    CharacterDevice,
    Pipe,
    Socket,
    /// A file of any other type.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "folder",
            Self::CharacterDevice => "character device",
            Self::Pipe => "pipe",
            Self::Socket => "socket",
            Self::Unknown => "special file",
        })
    }
}
