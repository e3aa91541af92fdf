//! Reasons for which a filesystem is copied whole.

use std::io;

/// Reason to trust no allocation map of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    #[error("not a filesystem that is known here")]
    Unknown,
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("it has the signatures of {0} and of {1}")]
    TwoSignatures(&'static str, &'static str),
    #[error("the disk has a partition table and, outside of its partitions, the signature of {0}")]
    BesidePartitions(&'static str),
    #[error("the partition table is damaged: {0}")]
    PartitionTable(&'static str),
    #[error("it ends behind the disk")]
    BehindDisk,
    #[error("the superblock is damaged: {0}")]
    Superblock(&'static str),
    #[error("it has features that are not known here: {kind} {bits:#x}")]
    Features {
        /// `compat`, `incompat` or `ro_compat`.
        kind: &'static str,
        bits: u32,
    },
    #[error("the filesystem has recorded errors")]
    Errors,
    #[error("it has no journal and was not unmounted")]
    NotUnmounted,
    #[error("it is larger than its partition")]
    TooLarge,
    #[error("group {group}: {what}")]
    Group { group: u64, what: &'static str },
    #[error("its journal is on another device")]
    ExternalJournal,
    #[error("the journal {0}")]
    Journal(&'static str),
    #[error("the journal has features that are not known here: {0:#x}")]
    JournalFeatures(u32),
    #[error("the journal holds fast commits")]
    FastCommit,
    #[error("the journal's transactions are committed asynchronously")]
    AsyncCommit,
    #[error("transaction {tid} of the journal is damaged: {what}")]
    Transaction { tid: u32, what: &'static str },
    #[error("the journal ends at transaction {end}, but holds a commit of transaction {beyond}")]
    CommitBeyondEnd { end: u32, beyond: u32 },
    #[error("the journal changes the filesystem's geometry")]
    Resized,
    #[error("its trees are damaged, or unusual: {what}")]
    Tree { what: &'static str },
    #[error("inode {inode}: {what}")]
    Inode { inode: u64, what: &'static str },
    #[error("inode {inode} refers to block {block}, which is marked free")]
    ReferenceToFree { inode: u64, block: u64 },
    #[error("block {block} of the filesystem's own metadata is marked free")]
    MetadataFree { block: u64 },
    /// A system that is resumed goes on with maps that it holds in memory.
    #[error("a hibernated system is on the disk")]
    Hibernated,
}

/// End of a probe before its result: a doubt, or a failed read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    #[error(transparent)]
    Doubt(#[from] Doubt),
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// Returns the doubt unless `sound`.
pub(crate) fn ensure(sound: bool, doubt: impl FnOnce() -> Doubt) -> Result<(), Stop> {
    if sound { Ok(()) } else { Err(doubt().into()) }
}
