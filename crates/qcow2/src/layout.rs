//! The write side: assigns each body its offset in the file, and afterwards builds the tables that point to
//! them.
//!
//! Bodies may be placed in any order: compressed ones are packed to the byte, raw ones take host clusters of
//! their own. The converter places a segment's raw bodies first and its compressed ones right after them, so
//! that a segment has at most one gap, in front, and its bytes depend only on its own contents. Zero clusters
//! are never placed: without a backing file an unallocated cluster reads as zeros.
//!
//! The same calls result in the same image, byte for byte.

use snapferry_base::units::{
    ByteCount, ClusterBits, GuestCluster, HostCluster, HostOffset, to_u64, to_usize,
};

use crate::geometry::ENTRY;
use crate::header::Version;
use crate::l2::{L1Entry, L2Entry, Mapping};
use crate::refcount::{Refcounts, clusters_touched};
use crate::{Codec, Geometry, Header};

/// Version of the rules by which an image's bytes follow from its bodies: the place of each body, the order
/// within a segment, head and tables. A change of the rules must change it, because segments of an image of
/// other rules can't be placed in a new one.
pub const VERSION: u32 = 1;

/// Location of a raw body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawLocation {
    /// Number of zero bytes to write before the body, less than a cluster.
    pub gap: u64,
    /// Offset of the body, at the start of a host cluster.
    pub at: HostOffset,
}

/// An image whose bodies are being placed.
#[derive(Debug)]
pub struct Layout {
    geometry: Geometry,
    version: Version,
    compression: Codec,
    /// Offset of the next free byte.
    end: HostOffset,
    tables: L2Tables,
    refcounts: Refcounts,
}

impl Layout {
    /// Creates an image without bodies. Its data begin right after the head.
    #[must_use]
    pub fn new(geometry: Geometry, compression: Codec) -> Self {
        let end = HostOffset(geometry.head_len());
        let mut refcounts = Refcounts::new(geometry.cluster());
        refcounts.add(clusters_touched(HostOffset(0), end, geometry.cluster()));
        Self { geometry, version: Version::V3, compression, end, tables: L2Tables::new(&geometry), refcounts }
    }

    /// Returns the layout with a header of this version. The rest of the image is the same as in version 3.
    #[must_use]
    pub fn in_version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// Returns the offset of the next free byte, which is the length of the file so far.
    #[must_use]
    pub fn end(&self) -> HostOffset {
        self.end
    }

    /// Places a compressed body right after the existing bytes, and returns the offset of its first byte.
    ///
    /// # Panics
    /// If the body is empty or not shorter than a cluster (such a body must be stored raw), or if the cluster
    /// is already placed or lies past the disk. These are mistakes of the caller; each of them would make an
    /// image with wrong data.
    pub fn place_compressed(&mut self, guest: GuestCluster, len: usize) -> HostOffset {
        let cluster = self.cluster();
        let len = to_u64(len);
        assert!(
            len < cluster.size(),
            "a body of {len} bytes is not shorter than its cluster of {}",
            cluster.size()
        );
        let at = self.end;
        self.tables.set(guest, Mapping::compressed(at, len, cluster).encode(cluster));
        // The entry counts whole sectors, but each sector lies in one cluster, so the sectors touch the same
        // clusters as the bytes.
        self.refcounts.add(clusters_touched(at, at + len, cluster));
        self.end = at + len;
        at
    }

    /// Places a raw body: a whole cluster, at the start of a host cluster of its own.
    ///
    /// # Panics
    /// If the cluster is already placed or lies past the disk.
    #[must_use = "the gap is to be written before the body"]
    pub fn place_raw(&mut self, guest: GuestCluster) -> RawLocation {
        let cluster = self.cluster();
        let gap = self.align();
        let at = self.end;
        self.tables.set(guest, Mapping::raw(at).encode(cluster));
        self.end = at + cluster.size();
        self.refcounts.add(clusters_touched(at, self.end, cluster));
        RawLocation { gap, at }
    }

    /// Ends a partly filled host cluster, and returns the number of zero bytes to write, less than a cluster.
    /// A second call returns 0. This must be the last call before [`Layout::finish`].
    #[must_use = "the gap is to be written"]
    pub fn pad_to_cluster(&mut self) -> u64 {
        self.align()
    }

    /// Builds the tables of the image, after all bodies are placed.
    ///
    /// # Panics
    /// If the last host cluster is partly filled, because [`Layout::pad_to_cluster`] wasn't called.
    #[must_use]
    pub fn finish(self) -> Finished {
        let Self { geometry, version, compression, end, tables, refcounts } = self;
        let cluster = geometry.cluster();
        assert!(
            end.0.is_multiple_of(cluster.size()),
            "the last cluster is not padded: the data end at byte {end}"
        );

        let mut head = Vec::with_capacity(to_usize(geometry.head_len()));
        Header { version, ..Header::new(&geometry, compression) }.write(&mut head);
        head.resize(to_usize(geometry.refcount_table().0), 0);

        let first_table = end.cluster(cluster);
        let first_block = first_table + to_u64(tables.tables.len());
        let mut refcounts = refcounts;
        if first_table < first_block {
            refcounts.add(first_table..=HostCluster(first_block.0 - 1));
        }
        let blocks = refcounts.close(first_block);
        for block in 0..to_u64(blocks.len()) {
            head.extend((first_block + block).offset(cluster).0.to_be_bytes());
        }
        let refcount_table_end = to_usize(geometry.l1_table().0);
        assert!(
            head.len() <= refcount_table_end,
            "the file is longer than its upper bound: {} refcount blocks",
            blocks.len()
        );
        head.resize(refcount_table_end, 0);

        let order = tables.write_l1(first_table, cluster, &mut head);
        head.resize(to_usize(geometry.head_len()), 0);

        let file_len = ByteCount((first_block + to_u64(blocks.len())).offset(cluster).0);
        debug_assert!(file_len <= geometry.upper_bound());
        Finished {
            head,
            tail: Tail { order: order.into_iter(), tables: tables.tables, blocks: blocks.into_iter() },
            file_len,
        }
    }

    fn cluster(&self) -> ClusterBits {
        self.geometry.cluster()
    }

    /// Moves the end up to a cluster boundary, and returns the number of bytes skipped. They are in a host
    /// cluster that contains bytes of a body.
    fn align(&mut self) -> u64 {
        let aligned = HostOffset(self.cluster().round_up(self.end.0));
        let gap = aligned.0 - self.end.0;
        self.end = aligned;
        gap
    }
}

/// The L2 tables that map any cluster, in the order of their first use.
#[derive(Debug)]
struct L2Tables {
    entries_per_table: u64,
    guest_clusters: u64,
    /// By L1 index: one more than the table's index in `tables`, or 0 for a range without placed clusters.
    slots: Vec<u32>,
    tables: Vec<Box<[L2Entry]>>,
}

impl L2Tables {
    fn new(geometry: &Geometry) -> Self {
        Self {
            entries_per_table: geometry.l2_entries(),
            guest_clusters: geometry.guest_clusters(),
            slots: vec![0; to_usize(geometry.l1_entries())],
            tables: Vec::new(),
        }
    }

    fn set(&mut self, guest: GuestCluster, entry: L2Entry) {
        assert!(
            guest.0 < self.guest_clusters,
            "cluster {} lies past the disk's {}",
            guest.0,
            self.guest_clusters
        );
        let slot = &mut self.slots[to_usize(guest.0 / self.entries_per_table)];
        if *slot == 0 {
            self.tables.push(vec![L2Entry::default(); to_usize(self.entries_per_table)].into_boxed_slice());
            *slot = u32::try_from(self.tables.len()).expect("an L1 table has at most 2^22 entries");
        }
        let table = &mut self.tables[to_usize(u64::from(*slot) - 1)];
        let table_entry = &mut table[to_usize(guest.0 % self.entries_per_table)];
        assert!(*table_entry == L2Entry::default(), "cluster {} is placed twice", guest.0);
        *table_entry = entry;
    }

    /// Appends the L1 table, for L2 tables that are stored from cluster `first` on in the order of the disk.
    /// Returns that order as indices in `tables`.
    fn write_l1(&self, first: HostCluster, cluster: ClusterBits, into: &mut Vec<u8>) -> Vec<u32> {
        let mut order = Vec::with_capacity(self.tables.len());
        for &slot in &self.slots {
            let entry = if slot == 0 {
                L1Entry::default()
            } else {
                let table = first + to_u64(order.len());
                order.push(slot - 1);
                L1Entry::new(table.offset(cluster), cluster)
            };
            into.extend(entry.0.to_be_bytes());
        }
        order
    }
}

/// The head and the tables of a finished layout.
#[derive(Debug)]
pub struct Finished {
    /// The file's first bytes, exactly [`Geometry::head_len`] of them.
    pub head: Vec<u8>,
    /// The file's last clusters, in the order of the file.
    pub tail: Tail,
    /// Length of the whole file in bytes: head, data, tail. A whole number of clusters.
    pub file_len: ByteCount,
}

/// Iterator over the L2 tables and refcount blocks in the order of the file; each item holds the bytes of one
/// cluster. A returned table is freed, so that at most one table is in memory twice.
#[derive(Debug)]
pub struct Tail {
    order: std::vec::IntoIter<u32>,
    tables: Vec<Box<[L2Entry]>>,
    blocks: std::vec::IntoIter<Box<[u16]>>,
}

impl Iterator for Tail {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(table) = self.order.next() {
            let table = std::mem::take(&mut self.tables[to_usize(u64::from(table))]);
            let mut bytes = Vec::with_capacity(table.len() * to_usize(ENTRY));
            table.iter().for_each(|entry| bytes.extend(entry.0.to_be_bytes()));
            return Some(bytes);
        }
        let block = self.blocks.next()?;
        Some(block.iter().flat_map(|count| count.to_be_bytes()).collect())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let remaining = self.order.len() + self.blocks.len();
        (remaining, Some(remaining))
    }
}

impl ExactSizeIterator for Tail {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 1 MiB with clusters of 64 KiB: the head has three clusters, and there is one L2 table.
    fn small() -> Layout {
        let geometry = Geometry::new(ByteCount(1 << 20), ClusterBits::DEFAULT).expect("a disk that fits");
        Layout::new(geometry, Codec::Deflate)
    }

    #[test]
    fn bodies_are_packed_to_the_byte_and_raw_ones_aligned() {
        let mut layout = small();
        assert_eq!(layout.end(), HostOffset(0x3_0000));
        assert_eq!(layout.place_compressed(GuestCluster(0), 100), HostOffset(0x3_0000));
        assert_eq!(layout.place_compressed(GuestCluster(3), 65_535), HostOffset(0x3_0064));
        assert_eq!(
            layout.place_raw(GuestCluster(1)),
            RawLocation { gap: 0x1_0000 - 99, at: HostOffset(0x5_0000) }
        );
        assert_eq!(layout.place_raw(GuestCluster(2)), RawLocation { gap: 0, at: HostOffset(0x6_0000) });
        assert_eq!((layout.pad_to_cluster(), layout.end()), (0, HostOffset(0x7_0000)));
        assert_eq!(layout.place_compressed(GuestCluster(4), 1), HostOffset(0x7_0000));
        assert_eq!(
            (layout.pad_to_cluster(), layout.pad_to_cluster(), layout.end()),
            (0xffff, 0, HostOffset(0x8_0000))
        );

        let image = layout.finish();
        assert_eq!((image.head.len(), image.tail.len(), image.file_len), (0x3_0000, 2, ByteCount(0xa_0000)));
        // L1 table: the entry of the only L2 table, with COPIED set. Refcount table: the only block.
        assert_eq!(image.head[0x2_0000..0x2_0008], 0x8000_0000_0008_0000_u64.to_be_bytes());
        assert_eq!(image.head[0x1_0000..0x1_0008], 0x9_0000_u64.to_be_bytes());
        let tables: Vec<Vec<u8>> = image.tail.collect();
        let entries: Vec<u64> = tables[0]
            .chunks(8)
            .take(6)
            .map(|raw| u64::from_be_bytes(raw.try_into().expect("eight")))
            .collect();
        let expected = [
            0x4000_0000_0003_0000,
            0x8000_0000_0005_0000,
            0x8000_0000_0006_0000,
            // 65,535 bytes from byte 100 of a sector on touch 129 sectors: 128 after the first.
            0x4000_0000_0003_0064 | 128 << 54,
            0x4000_0000_0007_0000,
            0,
        ];
        assert_eq!(entries, expected);
        let counts: Vec<u16> = tables[1]
            .chunks(2)
            .take(11)
            .map(|raw| u16::from_be_bytes(raw.try_into().expect("two")))
            .collect();
        assert_eq!(counts, [1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn an_empty_image_is_its_head_and_one_refcount_block() {
        let image = small().finish();
        assert_eq!((image.tail.len(), image.file_len), (1, ByteCount(4 * 65_536)));
        assert!(image.head[0x2_0000..].iter().all(|&byte| byte == 0), "nothing is mapped");
    }

    #[test]
    fn tables_follow_the_guest_not_the_order_of_placing() {
        let geometry = Geometry::new(ByteCount(3 << 30), ClusterBits::DEFAULT).expect("a disk that fits");
        let mut layout = Layout::new(geometry, Codec::Zstd);
        for guest in [5 * 8192, 2 * 8192] {
            let _ = layout.place_raw(GuestCluster(guest));
        }
        let image = layout.finish();
        let l1: Vec<u64> = image.head[0x2_0000..]
            .chunks(8)
            .take(6)
            .map(|raw| u64::from_be_bytes(raw.try_into().expect("eight")))
            .collect();
        assert_eq!(l1, [0, 0, 0x8000_0000_0005_0000, 0, 0, 0x8000_0000_0006_0000]);
        let first_entries: Vec<Vec<u8>> = image.tail.take(2).map(|table| table[..8].to_vec()).collect();
        assert_eq!(
            first_entries,
            [0x8000_0000_0004_0000_u64.to_be_bytes(), 0x8000_0000_0003_0000_u64.to_be_bytes()]
        );
    }

    #[test]
    fn a_pebibyte_of_nothing_costs_no_table() {
        let geometry = Geometry::new(ByteCount(1 << 50), ClusterBits::DEFAULT).expect("a disk that fits");
        let mut layout = Layout::new(geometry, Codec::Deflate);
        let last = GuestCluster(geometry.guest_clusters() - 1);
        let at = layout.place_compressed(last, 10);
        assert_eq!(at, HostOffset(geometry.head_len()));
        let _ = layout.pad_to_cluster();
        let image = layout.finish();
        assert_eq!((image.tail.len(), image.file_len), (2, ByteCount(geometry.head_len() + 3 * 65_536)));
    }

    #[test]
    #[should_panic(expected = "placed twice")]
    fn a_cluster_is_placed_once() {
        let mut layout = small();
        layout.place_compressed(GuestCluster(7), 5);
        layout.place_compressed(GuestCluster(7), 5);
    }

    #[test]
    #[should_panic(expected = "past the disk's 16")]
    fn a_cluster_past_the_disk_has_no_place() {
        small().place_compressed(GuestCluster(16), 5);
    }

    #[test]
    #[should_panic(expected = "not shorter than its cluster")]
    fn a_body_as_long_as_its_cluster_is_not_compressed() {
        small().place_compressed(GuestCluster(0), 65_536);
    }

    #[test]
    #[should_panic(expected = "not padded")]
    fn the_last_segment_is_ended() {
        let mut layout = small();
        layout.place_compressed(GuestCluster(0), 5);
        let _ = layout.finish();
    }
}
