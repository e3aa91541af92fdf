//! Locations of the bytes of each guest cluster: an image's L2 tables, with every entry checked.

use std::collections::BTreeMap;
use std::ops::Range;

use snapferry_base::units::{
    ByteCount, ClusterBits, GuestCluster, GuestOffset, HostOffset, SECTOR, to_u64, to_usize,
};

use crate::header::{Header, Version};
use crate::image::{ImageError, TableEntryError};
use crate::l2::{EntryError, L2Entry, Mapping};

/// Number of subclusters in a cluster with extended L2 entries (specification, "Extended L2 Entries").
pub const SUBCLUSTERS: u32 = 32;

/// Location and form of the bytes of one guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// No bytes are stored: the cluster reads as zeros.
    Zero,
    /// Raw, from this offset on. The disk's last cluster may be incomplete in the file.
    Raw(HostOffset),
    /// Raw, from this offset on, but only the subclusters whose bit is set (bit 0 is the first). The others
    /// read as zeros.
    Subclusters(HostOffset, u32),
    /// One compressed body of less than a cluster.
    Compressed {
        /// Offset of the first byte of the body.
        at: HostOffset,
        /// Bytes up to the end of the last sector that the entry covers, or of the file. The body itself may
        /// be shorter.
        len: u64,
    },
}

/// States of a cluster's subclusters: the second word of an extended L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subclusters(u64);

/// State of a subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubclusterState {
    /// The bytes are in the host cluster.
    Data,
    /// Allocated as zeros: it reads as zeros.
    Zero,
    /// Unallocated: it was never written.
    Unallocated,
}

impl Subclusters {
    /// Returns the state of subcluster `number`, 0 to 31.
    #[must_use]
    pub fn state(self, number: u32) -> SubclusterState {
        let bit = |bit: u32| self.0 >> bit & 1 == 1;
        match (bit(number), bit(number + SUBCLUSTERS)) {
            (true, _) => SubclusterState::Data,
            (false, true) => SubclusterState::Zero,
            (false, false) => SubclusterState::Unallocated,
        }
    }
}

/// Locations of the bytes of all guest clusters: the image's L2 tables, checked. Takes 8 bytes of memory for
/// each cluster in the ranges of the disk that have an L2 table, or 16 with extended L2 entries.
#[derive(Clone, Debug)]
pub struct Mappings {
    header: Header,
    file_len: u64,
    /// The words of each L2 table, by L1 index.
    tables: Vec<Option<Box<[u64]>>>,
}

impl Mappings {
    /// Checks each entry of an image's L2 tables, which are given as words by L1 index, and returns the
    /// mappings if all are as in a correct image.
    pub(super) fn checked(
        header: Header,
        file_len: u64,
        tables: Vec<Option<Box<[u64]>>>,
        name: &str,
        metadata: &ClusterSet,
    ) -> Result<Self, ImageError> {
        let mappings = Self { header, file_len, tables };
        mappings.validate(name, metadata)?;
        Ok(mappings)
    }

    /// Returns the cluster size.
    #[must_use]
    pub fn cluster(&self) -> ClusterBits {
        self.header.cluster
    }

    /// Returns the disk's size as the guest sees it, a whole number of sectors.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount(self.header.virtual_size.0 / SECTOR * SECTOR)
    }

    /// Returns the number of clusters of the disk. The last one may extend past the disk's end.
    #[must_use]
    pub fn guest_clusters(&self) -> u64 {
        self.cluster().clusters_in(self.header.virtual_size.0)
    }

    /// Returns the bytes of memory that the tables take.
    #[must_use]
    pub fn memory(&self) -> ByteCount {
        let word_count: usize = self.tables.iter().flatten().map(|table| table.len()).sum();
        ByteCount(to_u64(word_count) * 8)
    }

    /// Returns where and how a cluster's bytes are stored.
    #[must_use]
    pub fn stored(&self, guest: GuestCluster) -> Stored {
        let per_table = self.entries_per_table();
        match self.tables.get(to_usize(guest.0 / per_table)) {
            Some(Some(table)) => self.stored_in(table, to_usize(guest.0 % per_table)),
            _ => Stored::Zero,
        }
    }

    /// Returns the first cluster after `guest` that an L2 table covers, or the one after the disk's end.
    /// Returns `None` if a table covers `guest` itself.
    #[must_use]
    pub fn unmapped_run_end(&self, guest: GuestCluster) -> Option<GuestCluster> {
        let per_table = self.entries_per_table();
        let remaining = self.tables.get(to_usize(guest.0 / per_table)..).unwrap_or_default();
        let missing = remaining.iter().take_while(|table| table.is_none()).count();
        let next = if missing == remaining.len() {
            self.guest_clusters()
        } else {
            (guest.0 / per_table + to_u64(missing)) * per_table
        };
        (next > guest.0).then_some(GuestCluster(next))
    }

    /// Returns the decoded L2 entry of a cluster.
    ///
    /// # Panics
    /// Never: all entries were checked when they were loaded.
    #[must_use]
    pub fn mapping(&self, guest: GuestCluster) -> Mapping {
        let per_table = self.entries_per_table();
        match self.tables.get(to_usize(guest.0 / per_table)) {
            Some(Some(table)) => L2Entry(table[to_usize(guest.0 % per_table) * self.words_per_entry()])
                .decode(self.cluster())
                .expect(CHECKED),
            _ => Mapping::Unallocated,
        }
    }

    /// Returns the states of a cluster's subclusters, or `None` if the image has no extended L2 entries. Only
    /// valid for a cluster that isn't compressed.
    #[must_use]
    pub fn subclusters(&self, guest: GuestCluster) -> Option<Subclusters> {
        if !self.header.extended_l2 {
            return None;
        }
        let per_table = self.entries_per_table();
        Some(match self.tables.get(to_usize(guest.0 / per_table)) {
            Some(Some(table)) => Subclusters(table[to_usize(guest.0 % per_table) * 2 + 1]),
            _ => Subclusters(0),
        })
    }

    /// Returns each cluster of the disk that has stored bytes, in the order of the disk.
    pub fn iter(&self) -> impl Iterator<Item = (GuestCluster, Stored)> + '_ {
        self.range(GuestCluster(0)..GuestCluster(self.guest_clusters()))
    }

    /// Returns each cluster of `range` that has stored bytes, in the order of the disk.
    pub fn range(&self, range: Range<GuestCluster>) -> impl Iterator<Item = (GuestCluster, Stored)> + '_ {
        let per_table = self.entries_per_table();
        let end = range.end.0.min(self.guest_clusters());
        let tables = range.start.0 / per_table..end.div_ceil(per_table);
        tables
            .filter_map(move |index| self.tables.get(to_usize(index))?.as_deref().map(|table| (index, table)))
            .flat_map(move |(index, table)| {
                let first = index * per_table;
                (range.start.0.max(first)..end.min(first + per_table)).filter_map(move |guest| {
                    let stored = self.stored_in(table, to_usize(guest - first));
                    (stored != Stored::Zero).then_some((GuestCluster(guest), stored))
                })
            })
    }

    fn words_per_entry(&self) -> usize {
        to_usize(self.header.l2_entry_len() / 8)
    }

    fn entries_per_table(&self) -> u64 {
        self.cluster().size() / self.header.l2_entry_len()
    }

    fn stored_in(&self, table: &[u64], index: usize) -> Stored {
        let word = table[index * self.words_per_entry()];
        let entry = L2Entry(word).decode(self.cluster()).expect(CHECKED);
        match entry {
            Mapping::Unallocated | Mapping::Zero { .. } => Stored::Zero,
            Mapping::Raw { host, .. } if self.header.extended_l2 => match allocated(table[index * 2 + 1]) {
                0 => Stored::Zero,
                u32::MAX => Stored::Raw(host),
                mask => Stored::Subclusters(host, mask),
            },
            Mapping::Raw { host, .. } => Stored::Raw(host),
            Mapping::Compressed { host, sectors } => {
                let end = (host.0 / SECTOR + sectors) * SECTOR;
                Stored::Compressed { at: host, len: end.min(self.file_len) - host.0 }
            }
        }
    }

    fn validate(&self, name: &str, metadata: &ClusterSet) -> Result<(), ImageError> {
        let per_table = self.entries_per_table();
        for (index, table) in (0_u64..).zip(&self.tables) {
            let Some(table) = table else { continue };
            for (entry, words) in (index * per_table..).zip(table.chunks(self.words_per_entry())) {
                if words[0] == 0 && words.get(1).is_none_or(|bits| *bits == 0) {
                    continue;
                }
                self.check_entry(entry, words, metadata).map_err(|source| {
                    let guest = GuestOffset(entry.saturating_mul(self.cluster().size()));
                    ImageError::L2Entry { name: name.to_owned(), guest, source }
                })?;
            }
        }
        Ok(())
    }

    /// Checks that an entry is as in a correct image, and points to bytes within the file. `entry` is the
    /// number of the guest cluster.
    fn check_entry(&self, entry: u64, words: &[u64], metadata: &ClusterSet) -> Result<(), TableEntryError> {
        let cluster = self.cluster();
        let file_len = self.file_len;
        let mapping = L2Entry(words[0]).decode(cluster)?;
        // "Bit 0: ... version 3 and up": QEMU also refuses to read such a cluster.
        if matches!(mapping, Mapping::Zero { .. }) && self.header.version == Version::V2 {
            return Err(EntryError::Reserved(words[0]).into());
        }
        if let Some(&bits) = words.get(1) {
            let (data, zero) = (allocated(bits), u32::try_from(bits >> 32).expect("the upper half"));
            let wrong = match mapping {
                Mapping::Compressed { .. } => bits != 0,
                Mapping::Raw { .. } => data & zero != 0,
                Mapping::Unallocated => data != 0,
                // "Bit 0 ... must be 0 with extended L2 entries": there the bitmap marks zeros.
                Mapping::Zero { .. } => true,
            };
            if wrong {
                return Err(TableEntryError::Subclusters(bits));
            }
        }
        let (start, end, max_end) = match mapping {
            Mapping::Unallocated | Mapping::Zero { reserved: None } => return Ok(()),
            // The reserved cluster isn't read, but it must not overlap tables.
            Mapping::Zero { reserved: Some((host, _)) } => (host, host.0, file_len),
            Mapping::Raw { host, .. } => {
                // The file need not contain the bytes past the disk's end, nor those after the last allocated
                // subcluster.
                let disk_remaining =
                    self.virtual_size().0.saturating_sub(entry.saturating_mul(cluster.size()));
                let used = words.get(1).map_or(u64::from(SUBCLUSTERS), |bits| {
                    u64::from(u32::BITS - allocated(*bits).leading_zeros())
                });
                (
                    host,
                    host.0 + (cluster.size() / u64::from(SUBCLUSTERS) * used).min(disk_remaining),
                    file_len,
                )
            }
            // The last sector may be incomplete: a program writes only the bytes of the body itself.
            Mapping::Compressed { host, sectors } => {
                (host, (host.0 / SECTOR + sectors) * SECTOR, file_len.next_multiple_of(SECTOR))
            }
        };
        if (start.0 >= file_len && end > start.0) || end > max_end {
            return Err(TableEntryError::PastEnd { start, end, file_len });
        }
        if metadata.touches(&(start.0..end.max(start.0 + 1))) {
            return Err(TableEntryError::Metadata(start));
        }
        Ok(())
    }
}

const CHECKED: &str = "entries are checked when they are loaded";

/// Returns one bit for each subcluster; a set bit means that its bytes are in the file.
fn allocated(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).expect("the lower half")
}

/// A set of host clusters, stored as runs. Its memory depends on the number of runs, not on the length of the
/// file, because a sparse file can have any length.
#[derive(Debug)]
pub(super) struct ClusterSet {
    cluster: ClusterBits,
    clusters: u64,
    /// The first cluster of each run, and the one after its last. No two runs touch.
    runs: BTreeMap<u64, u64>,
}

impl ClusterSet {
    pub(super) fn new(file_len: u64, cluster: ClusterBits) -> Self {
        Self { cluster, clusters: cluster.clusters_in(file_len), runs: BTreeMap::new() }
    }

    /// Adds each cluster that contains any of `bytes` and lies within the file.
    pub(super) fn insert(&mut self, bytes: Range<u64>) {
        let Range { mut start, mut end } = self.clusters(&bytes);
        end = end.min(self.clusters);
        if start >= end {
            return;
        }
        // Merges the new run with all runs that it overlaps or touches.
        while let Some((&first, &last)) =
            self.runs.range(..=end).next_back().filter(|&(_, &last)| last >= start)
        {
            (start, end) = (start.min(first), end.max(last));
            self.runs.remove(&first);
        }
        self.runs.insert(start, end);
    }

    /// True if any of `bytes` is in a cluster of the set.
    pub(super) fn touches(&self, bytes: &Range<u64>) -> bool {
        let Range { start, end } = self.clusters(bytes);
        self.runs.range(..end).next_back().is_some_and(|(_, &last)| last > start)
    }

    fn clusters(&self, bytes: &Range<u64>) -> Range<u64> {
        let bits = self.cluster.bits();
        let end = if bytes.is_empty() { bytes.start >> bits } else { ((bytes.end - 1) >> bits) + 1 };
        bytes.start >> bits..end
    }
}
