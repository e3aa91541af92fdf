//! Bytes in: raw block devices and image files, read past the page cache.

use std::fmt;
use std::io;

use snapferry_base::limits::OutOfMemory;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, GuestOffset};

pub mod aligned;
mod joined;
mod paced;
mod raw;
mod salvage;

pub use joined::Joined;
pub use paced::Paced;
pub use raw::{InUse, RawSource};
pub use salvage::Salvaging;
pub use snapferry_base::units::BadRange;

/// What a stretch of a source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Bytes that have to be read, up to this offset.
    Data {
        /// First byte after the stretch.
        end: GuestOffset,
    },
    /// Zeros that need not be read, up to this offset: a hole in a sparse file.
    Hole {
        /// First byte after the stretch.
        end: GuestOffset,
    },
}

/// A disk that is read at any offset by many threads at once.
pub trait Source: Send + Sync {
    /// Where the bytes come from, for people.
    fn name(&self) -> &str;

    /// Bytes, exactly.
    fn size(&self) -> ByteCount;

    /// The alignment that reads need, in bytes: a power of two, at most 4096.
    fn alignment(&self) -> usize;

    /// Fills `into` from `offset`: all of it, or an error. `offset`, `into`'s address and its length are aligned to
    /// [`Source::alignment`]; bytes past the end of the disk read as zeros.
    ///
    /// # Errors
    /// Where anything before the end of the disk can't be read; the error names the offset.
    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError>;

    /// What lies at `from`, and up to where. A source that can't tell says data.
    ///
    /// # Errors
    /// Where the file system fails to answer.
    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError>;

    /// Called after the last read: whether the source is still what it was at the first.
    ///
    /// # Errors
    /// Where it grew, shrank, or was written to meanwhile, as far as that can be seen.
    fn settle(&self) -> Result<(), SourceError>;
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
}

/// What can be wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It can't be opened.
    #[error("cannot open {path}")]
    Open {
        /// The source.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It is something else than a disk.
    #[error("{path} is a {kind}, not a block device or a regular file")]
    Kind {
        /// The source.
        path: String,
        /// What it is.
        kind: Kind,
    },
    /// There is nothing in it.
    #[error("{path} is empty: there are no bytes to convert")]
    Empty {
        /// The source.
        path: String,
    },
    /// Somebody has mounted it, or uses it exclusively.
    #[error("{path} is in use: it is mounted, or part of something that is")]
    Busy {
        /// The source.
        path: String,
    },
    /// A read failed.
    #[error("{path}: read error at offset {offset}")]
    Read {
        /// The source.
        path: String,
        /// Where the failing read began.
        offset: GuestOffset,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The device went away.
    #[error("{path}: the device vanished; the read at offset {offset} found it gone")]
    Vanished {
        /// The source.
        path: String,
        /// Where the failing read began.
        offset: GuestOffset,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It ended before the size it had when it was opened.
    #[error("{path}: ends at offset {offset}, but was {size} bytes long when it was opened")]
    Shrunk {
        /// The source.
        path: String,
        /// Where a read found the end.
        offset: GuestOffset,
        /// Bytes at the start.
        size: u64,
    },
    /// It is not what it was.
    #[error("{path}: changed while it was read: {what}")]
    Changed {
        /// The source.
        path: String,
        /// What differs.
        what: &'static str,
    },
    /// There is no memory to read it with.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// A question about it failed.
    #[error("{path}: {question} failed")]
    Ask {
        /// The source.
        path: String,
        /// What was asked.
        question: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// What the error means for another attempt. A source that fails is looked at by a person first.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// What a path turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Folder,
    /// A character device, such as `/dev/zero`.
    CharacterDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// None of these.
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
