//! Number and kinds of references to each host cluster, counted from the tables. The audit compares them with
//! the refcounts in the image.

use std::collections::BTreeMap;
use std::ops::Range;

use snapferry_base::units::{ClusterBits, HostCluster, HostOffset, to_usize};

/// Kind of a reference to a host cluster, or of the data in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterUse {
    /// The header, in the file's first cluster.
    Header,
    /// An L1 table, the active one or a snapshot's.
    L1Table,
    /// An L2 table of the active disk or of a snapshot.
    L2Table,
    /// The refcount table, which the header points to.
    RefcountTable,
    /// A refcount block, which the refcount table points to.
    RefcountBlock,
    /// The snapshot table, which the header points to.
    SnapshotTable,
    /// A cluster of a bitmap, its table, or the directory of bitmaps.
    Bitmap,
    /// A cluster of the disk that is stored raw.
    Raw,
    /// Compressed clusters of the disk.
    Compressed,
}

impl ClusterUse {
    const ALL: [Self; 9] = [
        Self::Header,
        Self::L1Table,
        Self::L2Table,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::SnapshotTable,
        Self::Bitmap,
        Self::Raw,
        Self::Compressed,
    ];

    /// Returns the name for messages, such as `an L2 table`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::L1Table => "an L1 table",
            Self::L2Table => "an L2 table",
            Self::RefcountTable => "the refcount table",
            Self::RefcountBlock => "a refcount block",
            Self::SnapshotTable => "the snapshot table",
            Self::Bitmap => "a bitmap",
            Self::Raw => "a raw cluster",
            Self::Compressed => "compressed clusters",
        }
    }
}

/// Number of counts in one page.
const PAGE: u64 = 4096;
/// Width of the count in the low bits of a slot. The bits above hold the first kind of reference, from 1.
const COUNT_BITS: u32 = 28;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// Reference counts by host cluster. Their memory depends on the number of referenced clusters, not on the
/// length of the file, because a sparse file can have any length.
#[derive(Debug)]
pub(super) struct References {
    cluster: ClusterBits,
    file_len: u64,
    pages: BTreeMap<u64, Box<[u32]>>,
}

/// Result of counting one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// The reference is counted and is consistent with all others so far.
    Fine,
    /// The range ends a cluster or more past the end of the file, and is not counted.
    PastEnd,
    /// The cluster is already in use for another purpose.
    Overlap(HostCluster, ClusterUse),
}

impl References {
    pub(super) fn new(file_len: u64, cluster: ClusterBits) -> Self {
        Self { cluster, file_len, pages: BTreeMap::new() }
    }

    /// Returns the number of host clusters of the file. The last one may be incomplete.
    pub(super) fn clusters(&self) -> u64 {
        self.cluster.clusters_in(self.file_len)
    }

    /// Counts `times` references to every cluster that contains any of the `len` bytes at `at`.
    pub(super) fn add(&mut self, at: HostOffset, len: u64, times: u64, used: ClusterUse) -> Noted {
        if len == 0 {
            return Noted::Fine;
        }
        let bits = self.cluster.bits();
        // As in QEMU: a range that ends less than a cluster past the end of the file is counted.
        let last = match at.0.checked_add(len) {
            Some(end) if end.saturating_sub(self.file_len) < self.cluster.size() => (end - 1) >> bits,
            _ => return Noted::PastEnd,
        };
        let mut noted = Noted::Fine;
        for cluster in at.0 >> bits..=last {
            let slot = self.slot(cluster);
            let first = usize::try_from(*slot >> COUNT_BITS)
                .ok()
                .and_then(|tag| tag.checked_sub(1))
                .map(|tag| ClusterUse::ALL[tag]);
            match first {
                Some(other) if other != used => noted = Noted::Overlap(HostCluster(cluster), other),
                Some(_) => {}
                None => *slot |= tag(used) << COUNT_BITS,
            }
            // Counts stop at 2^28 - 1. No program that writes images could store a larger count either.
            let headroom = COUNT - (*slot & COUNT);
            *slot += u32::try_from(times).map_or(headroom, |times| times.min(headroom));
        }
        noted
    }

    /// Returns the number of references to a cluster.
    pub(super) fn count(&self, cluster: u64) -> u64 {
        self.pages.get(&(cluster / PAGE)).map_or(0, |page| u64::from(page[to_usize(cluster % PAGE)] & COUNT))
    }

    /// Returns the number of the last cluster with a reference.
    pub(super) fn highest(&self) -> Option<u64> {
        let (number, page) = self.pages.last_key_value()?;
        (number * PAGE..)
            .zip(page.iter())
            .filter(|(_, slot)| **slot & COUNT > 0)
            .last()
            .map(|(cluster, _)| cluster)
    }

    /// Returns each cluster in `range` with a count other than 0, and the count.
    pub(super) fn counted(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let pages = self.pages.range(range.start / PAGE..range.end.div_ceil(PAGE));
        pages
            .flat_map(|(number, page)| {
                (number * PAGE..).zip(page.iter().map(|slot| u64::from(*slot & COUNT)))
            })
            .filter(move |(cluster, count)| *count > 0 && range.contains(cluster))
    }

    fn slot(&mut self, cluster: u64) -> &mut u32 {
        let page =
            self.pages.entry(cluster / PAGE).or_insert_with(|| vec![0; to_usize(PAGE)].into_boxed_slice());
        &mut page[to_usize(cluster % PAGE)]
    }
}

/// Returns the number of a kind of reference, from 1.
fn tag(used: ClusterUse) -> u32 {
    (1..).zip(ClusterUse::ALL).find(|(_, other)| *other == used).map_or(0, |(tag, _)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_counted_by_cluster_and_overlaps_seen() {
        let cluster = ClusterBits::KIB4;
        let mut references = References::new(10 * 4096 - 1, cluster);
        assert_eq!(references.clusters(), 10);
        assert_eq!(references.add(HostOffset(0), 4096, 1, ClusterUse::Header), Noted::Fine);
        assert_eq!(
            references.add(HostOffset(4000), 200, 1, ClusterUse::Compressed),
            Noted::Overlap(HostCluster(0), ClusterUse::Header)
        );
        assert_eq!(references.add(HostOffset(8191), 1, 1, ClusterUse::Compressed), Noted::Fine);
        assert_eq!([0, 1, 2].map(|cluster| references.count(cluster)), [2, 2, 0]);
        assert_eq!(references.add(HostOffset(10 * 4096), 4094, 1, ClusterUse::Raw), Noted::Fine);
        assert_eq!(references.add(HostOffset(10 * 4096), 4095, 1, ClusterUse::Raw), Noted::PastEnd);
        assert_eq!(references.add(HostOffset(u64::MAX), 2, 1, ClusterUse::Raw), Noted::PastEnd);
        assert_eq!(references.counted(0..11).collect::<Vec<_>>(), [(0, 2), (1, 2), (10, 1)]);
        assert_eq!(references.add(HostOffset(4096), 1, 5, ClusterUse::Compressed), Noted::Fine);
        assert_eq!(references.add(HostOffset(8192), 1, u64::MAX, ClusterUse::Compressed), Noted::Fine);
        assert_eq!([1, 2].map(|cluster| references.count(cluster)), [7, u64::from(COUNT)]);
    }
}
