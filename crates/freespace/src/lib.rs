//! What a disk's filesystems call free, read from their metadata without mounting anything.
//!
//! A block counts as free only if no recovery of the filesystem could read what it holds. The allocation map
//! on a disk does not show that: on a filesystem that was mounted when the disk was copied, the newest maps
//! lie in its journal. So the journal is replayed in memory first, and every block that a reference leads to
//! is compared with the result. Whatever is damaged, unknown or unusual is doubt, and doubt means that the
//! filesystem is to be copied whole, for a reason that the caller can report.
//!
//! Everything here reads bytes that a stranger may have chosen: arithmetic is checked, loops and memory are
//! bounded by what the disk can hold.

mod blocks;
mod btrfs;
mod bytes;
mod crc;
mod disk;
mod doubt;
mod ext4;
mod jbd2;
mod partitions;
mod probe;
mod ranges;
mod signatures;
mod swap;

pub use disk::Disk;
pub use doubt::Doubt;
pub use probe::{Evidence, Outcome, ProbeError, Probed, Verdict, probe};
pub use ranges::RangeSet;
