//! How often each host cluster is pointed at, and by what: counted from the tables, to be held against the image's own counts.

use std::collections::BTreeMap;
use std::ops::Range;

use snapferry_base::units::{ClusterBits, HostCluster, HostOffset, to_usize};

/// What points at a host cluster, or lies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// The header.
    Header,
    /// An L1 table, the active one or a snapshot's.
    L1Table,
    /// An L2 table.
    L2Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The table of snapshots.
    SnapshotTable,
    /// A bitmap, or what leads to one.
    Bitmap,
    /// A cluster of the disk, as it is.
    Raw,
    /// Compressed bodies.
    Compressed,
}

impl Use {
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

    /// For people.
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

/// Counts of one page.
const PAGE: u64 = 4096;
/// The lower bits of a slot hold the count, the upper ones the use that came first, from 1.
const COUNT_BITS: u32 = 28;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// Counts by host cluster. Memory follows what is pointed at, not the file's length: a sparse file can have any.
#[derive(Debug)]
pub(super) struct References {
    cluster: ClusterBits,
    file_len: u64,
    pages: BTreeMap<u64, Box<[u32]>>,
}

/// What one reference showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing.
    Fine,
    /// It reaches a cluster or more past the file's end, and is not counted.
    PastEnd,
    /// The cluster is used for something else already.
    Overlap(HostCluster, Use),
}

impl References {
    pub(super) fn new(file_len: u64, cluster: ClusterBits) -> Self {
        Self { cluster, file_len, pages: BTreeMap::new() }
    }

    /// Host clusters of the file, its last one perhaps partly.
    pub(super) fn clusters(&self) -> u64 {
        self.cluster.clusters_in(self.file_len)
    }

    /// Counts `times` references to every cluster that `len` bytes at `at` touch.
    pub(super) fn add(&mut self, at: HostOffset, len: u64, times: u64, used: Use) -> Noted {
        if len == 0 {
            return Noted::Fine;
        }
        let bits = self.cluster.bits();
        // As QEMU has it: what ends less than a cluster behind the file's end is counted.
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
                .map(|tag| Use::ALL[tag]);
            match first {
                Some(other) if other != used => noted = Noted::Overlap(HostCluster(cluster), other),
                Some(_) => {}
                None => *slot |= tag(used) << COUNT_BITS,
            }
            // More than 2^28 - 1 can't be counted by whoever wrote the image either.
            let room = COUNT - (*slot & COUNT);
            *slot += u32::try_from(times).map_or(room, |times| times.min(room));
        }
        noted
    }

    /// How often a cluster is pointed at.
    pub(super) fn count(&self, cluster: u64) -> u64 {
        self.pages.get(&(cluster / PAGE)).map_or(0, |page| u64::from(page[to_usize(cluster % PAGE)] & COUNT))
    }

    /// The last cluster that is pointed at.
    pub(super) fn highest(&self) -> Option<u64> {
        let (number, page) = self.pages.last_key_value()?;
        (number * PAGE..)
            .zip(page.iter())
            .filter(|(_, slot)| **slot & COUNT > 0)
            .last()
            .map(|(cluster, _)| cluster)
    }

    /// The counts of a range, by cluster, where there may be any that is not 0.
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

/// The number of a use, from 1.
fn tag(used: Use) -> u32 {
    (1..).zip(Use::ALL).find(|(_, other)| *other == used).map_or(0, |(tag, _)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_counted_by_cluster_and_overlaps_seen() {
        let cluster = ClusterBits::KIB4;
        let mut references = References::new(10 * 4096 - 1, cluster);
        assert_eq!(references.clusters(), 10);
        assert_eq!(references.add(HostOffset(0), 4096, 1, Use::Header), Noted::Fine);
        assert_eq!(
            references.add(HostOffset(4000), 200, 1, Use::Compressed),
            Noted::Overlap(HostCluster(0), Use::Header)
        );
        assert_eq!(references.add(HostOffset(8191), 1, 1, Use::Compressed), Noted::Fine);
        assert_eq!([0, 1, 2].map(|cluster| references.count(cluster)), [2, 2, 0]);
        assert_eq!(references.add(HostOffset(10 * 4096), 4094, 1, Use::Raw), Noted::Fine);
        assert_eq!(references.add(HostOffset(10 * 4096), 4095, 1, Use::Raw), Noted::PastEnd);
        assert_eq!(references.add(HostOffset(u64::MAX), 2, 1, Use::Raw), Noted::PastEnd);
        assert_eq!(references.counted(0..11).collect::<Vec<_>>(), [(0, 2), (1, 2), (10, 1)]);
        assert_eq!(references.add(HostOffset(4096), 1, 5, Use::Compressed), Noted::Fine);
        assert_eq!(references.add(HostOffset(8192), 1, u64::MAX, Use::Compressed), Noted::Fine);
        assert_eq!([1, 2].map(|cluster| references.count(cluster)), [7, u64::from(COUNT)]);
    }
}
