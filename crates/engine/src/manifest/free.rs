//! Free space that an image leaves out.

use serde::{Deserialize, Serialize};
use snapferry_base::units::{ByteCount, GuestOffset};
use snapferry_freespace::{Evidence, Outcome, Probed, RangeSet, Verdict};

/// Filesystem whose free blocks are zeros in the image, whatever the disk holds there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeRecord {
    /// Offset of the filesystem's partition in the disk.
    pub offset: GuestOffset,
    /// Length of the partition.
    pub length: ByteCount,
    /// Format, such as `ext4`.
    pub kind: String,
    /// UUID of the filesystem.
    pub uuid: String,
    /// Bytes that are free.
    pub bytes: ByteCount,
    /// Grounds on which the filesystem's maps were trusted.
    pub evidence: EvidenceRecord,
    /// BLAKE3 of the free ranges in lower-case hex: of each, the offset of its first byte in the disk and the
    /// offset behind its last, as 64-bit numbers with the lowest byte first.
    pub map: String,
}

/// Checks that a filesystem's maps have passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceRecord {
    /// First transaction of the journal that was replayed; `None` if there was nothing to replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_tid: Option<u32>,
    /// Last transaction of the journal that was replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tid: Option<u32>,
    /// Number of block groups, each of which passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<u64>,
    /// Number of inodes whose references were followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// Last committed transaction of a btrfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Number of extents of a btrfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<u64>,
}

impl FreeRecord {
    /// Returns a record of each filesystem whose free blocks need not be copied.
    #[must_use]
    pub fn all_of(found: &Probed) -> Vec<Self> {
        found.filesystems.iter().filter_map(Self::of).collect()
    }

    fn of(verdict: &Verdict) -> Option<Self> {
        let Outcome::Skipped { uuid, free, evidence } = &verdict.outcome else { return None };
        Some(Self {
            offset: GuestOffset(verdict.offset),
            length: ByteCount(verdict.length),
            kind: verdict.kind.to_owned(),
            uuid: uuid.clone(),
            bytes: ByteCount(free.total()),
            evidence: evidence_of(evidence),
            map: hash_of(free),
        })
    }

    /// True if `other` is the same filesystem with the same free space.
    #[must_use]
    pub fn is_same_map(&self, other: &Self) -> bool {
        (self.offset, self.length, &self.uuid, &self.map)
            == (other.offset, other.length, &other.uuid, &other.map)
    }
}

fn evidence_of(evidence: &Evidence) -> EvidenceRecord {
    match evidence {
        Evidence::Ext4 { replayed, groups, inodes } => EvidenceRecord {
            first_tid: replayed.map(|(first, _)| first),
            last_tid: replayed.map(|(_, last)| last),
            groups: Some(*groups),
            inodes: Some(*inodes),
            ..EvidenceRecord::default()
        },
        Evidence::Btrfs { generation, extents, .. } => EvidenceRecord {
            generation: Some(*generation),
            extents: Some(*extents),
            ..EvidenceRecord::default()
        },
        _ => EvidenceRecord::default(),
    }
}

fn hash_of(free: &RangeSet) -> String {
    let mut hasher = blake3::Hasher::new();
    for range in free.as_slice() {
        hasher.update(&range.start.to_le_bytes());
        hasher.update(&range.end.to_le_bytes());
    }
    hasher.finalize().to_hex().as_str().to_owned()
}
