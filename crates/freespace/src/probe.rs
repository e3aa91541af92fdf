//! The probe of a whole disk: partitions, and the filesystem in each.

use std::fmt;
use std::io;
use std::ops::Range;

use crate::disk::{Disk, Part};
use crate::doubt::{Doubt, Stop};
use crate::partitions::{self, Partition};
use crate::ranges::RangeSet;
use crate::signatures::{self, Format};
use crate::{btrfs, ext4, swap};

/// Grounds on which a filesystem's map is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// Swap space that holds no hibernated system.
    Swap,
    /// ext2, ext3 or ext4.
    Ext4 {
        /// First and last transaction that the replay of the journal applied. `None` if the journal was
        /// empty, or if there is none and the filesystem was unmounted.
        replayed: Option<(u32, u32)>,
        /// Number of block groups, each of which passed its checks.
        groups: u64,
        /// Number of inodes whose references were followed.
        inodes: u64,
    },
    /// btrfs on one device.
    Btrfs {
        /// Last committed transaction.
        generation: u64,
        /// Number of extents in the extent tree.
        extents: u64,
        /// Bytes that the log trees hold or refer to.
        logged: u64,
    },
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swap => f.write_str("swap space in use by no hibernated system"),
            Self::Btrfs { generation, extents, logged } => {
                write!(f, "transaction {generation}, {extents} extents, {logged} bytes in the log kept")
            }
            Self::Ext4 { replayed, groups, inodes } => {
                match replayed {
                    Some((first, last)) => write!(f, "transactions {first} to {last} replayed")?,
                    None => f.write_str("nothing to replay")?,
                }
                write!(f, ", {groups} groups and {inodes} inodes checked")
            }
        }
    }
}

/// Result for one filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its free blocks need not be copied.
    Skipped { uuid: String, free: RangeSet, evidence: Evidence },
    /// It is to be copied whole.
    Whole { why: Doubt },
}

/// One partition, or a disk without any, and what was found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `p1`, or `disk` for a disk without partitions.
    pub name: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Format, such as `ext4`; `unknown` if it has no signature.
    pub kind: &'static str,
    pub outcome: Outcome,
}

impl Verdict {
    /// Returns the bytes that need not be copied.
    #[must_use]
    pub fn free(&self) -> Option<&RangeSet> {
        match &self.outcome {
            Outcome::Skipped { free, .. } => Some(free),
            Outcome::Whole { .. } => None,
        }
    }
}

/// Result of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// Bytes of the disk that need not be copied.
    pub free: RangeSet,
    /// A verdict on each partition, in the order of the disk.
    pub filesystems: Vec<Verdict>,
}

/// Error of a probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The disk can't be read. Filesystems whose metadata can't be read are not taken for doubtful: a disk
    /// that fails needs attention.
    #[error("cannot read the filesystem's metadata")]
    Read(#[source] io::Error),
}

/// Finds what the filesystems on `disk` call free.
///
/// # Errors
/// If a read fails.
pub fn probe(disk: &dyn Disk) -> Result<Probed, ProbeError> {
    let mut found = Probed::default();
    let whole = Partition { number: 0, range: 0..disk.size() };
    match layout(disk) {
        Ok(partitions) if partitions.is_empty() => {
            found.filesystems.push(verdict(disk, &whole)?);
        }
        Ok(partitions) => {
            for partition in &partitions {
                found.filesystems.push(verdict(disk, partition)?);
            }
        }
        Err(Stop::Doubt(why)) => found.filesystems.push(Verdict {
            name: name(&whole),
            offset: 0,
            length: disk.size(),
            kind: "unknown",
            outcome: Outcome::Whole { why },
        }),
        Err(Stop::Read(error)) => return Err(ProbeError::Read(error)),
    }
    let hibernated = Outcome::Whole { why: Doubt::Hibernated };
    if found.filesystems.iter().any(|verdict| verdict.outcome == hibernated) {
        found.filesystems.iter_mut().for_each(|verdict| verdict.outcome = hibernated.clone());
    }
    for free in found.filesystems.iter().filter_map(Verdict::free) {
        free.as_slice().iter().for_each(|range| found.free.push(range.clone()));
    }
    Ok(found)
}

/// Finds the partitions; none if the disk is to be taken for one filesystem.
fn layout(disk: &dyn Disk) -> Result<Vec<Partition>, Stop> {
    let partitions = partitions::find(disk)?;
    if !partitions.is_empty()
        && let Some(format) = signatures::find(disk)??
    {
        return Err(Doubt::BesidePartitions(format.name()).into());
    }
    Ok(partitions)
}

fn name(partition: &Partition) -> String {
    match partition.number {
        0 => "disk".into(),
        number => format!("p{number}"),
    }
}

fn verdict(disk: &dyn Disk, partition: &Partition) -> Result<Verdict, ProbeError> {
    let range = &partition.range;
    let mut kind = "unknown";
    let outcome = match outcome(disk, range, &mut kind) {
        Ok(outcome) => outcome,
        Err(Stop::Doubt(why)) => Outcome::Whole { why },
        Err(Stop::Read(error)) => return Err(ProbeError::Read(error)),
    };
    Ok(Verdict { name: name(partition), offset: range.start, length: range.end - range.start, kind, outcome })
}

fn outcome(disk: &dyn Disk, range: &Range<u64>, kind: &mut &'static str) -> Result<Outcome, Stop> {
    if range.end > disk.size() {
        return Err(Doubt::BehindDisk.into());
    }
    let part = Part::new(disk, range.clone());
    let format = signatures::find(&part)??.ok_or(Doubt::Unknown)?;
    *kind = format.name();
    let (uuid, free, evidence) = match format {
        Format::Ext4 => ext4::probe(&part)?,
        Format::Btrfs => btrfs::probe(&part)?,
        Format::Swap { page } => {
            let (uuid, free) = swap::probe(&part, page)?;
            (uuid, RangeSet::union_of(vec![free]), Evidence::Swap)
        }
        Format::Hibernated => return Err(Doubt::Hibernated.into()),
        Format::Other(name) => return Err(Doubt::Unsupported(name).into()),
    };
    let mut placed = RangeSet::default();
    for own in free.as_slice() {
        placed.push(range.start + own.start..range.start + own.end);
    }
    Ok(Outcome::Skipped { uuid, free: placed, evidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_a_filesystem_is_one_unknown() {
        let found = probe(&vec![0; 1 << 20]).expect("it is in memory");
        assert!(found.free.is_empty());
        let [only] = &found.filesystems[..] else { panic!("{found:?}") };
        assert_eq!((only.name.as_str(), only.kind, only.length), ("disk", "unknown", 1 << 20));
        assert_eq!(only.outcome, Outcome::Whole { why: Doubt::Unknown });
    }

    #[test]
    fn a_hibernated_system_knows_more_than_its_disk() {
        let mut disk = vec![0; 4 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (slot, first) in [(0, 2048_u32), (1, 4096)] {
            let at = 446 + slot * 16;
            disk[at + 4] = 0x82;
            disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            disk[at + 12..at + 16].copy_from_slice(&2048_u32.to_le_bytes());
            let start = usize::try_from(first).expect("small") * 512;
            disk[start + 1024] = 1;
            disk[start + 1028] = 100;
            disk[start + 4086..start + 4096].copy_from_slice(b"SWAPSPACE2");
        }
        assert_eq!(probe(&disk).expect("in memory").free.total(), 2 * 100 * 4096);
        disk[4096 * 512 + 4086..4096 * 512 + 4096].copy_from_slice(b"S1SUSPEND\0");
        let found = probe(&disk).expect("in memory");
        assert!(found.free.is_empty());
        assert!(found.filesystems.iter().all(|one| one.outcome == Outcome::Whole { why: Doubt::Hibernated }));
    }
}
