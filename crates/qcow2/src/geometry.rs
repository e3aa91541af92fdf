//! The fixed measures of a disk's image, computed before its first byte is written.

use snapferry_base::units::{ByteCount, ClusterBits, GuestCluster, HostOffset, MIB, SECTOR};

use crate::refcount::{self, blocks_for};
use crate::{header, l2};

/// Bytes of the disk in a segment, the unit of reuse between two images of a disk. 16 MiB are stored in about
/// 6 MB, just above the smallest part of a multipart upload. With larger segments, more is sent again after a
/// small change; with smaller ones, more is padding.
pub const SEGMENT: ByteCount = ByteCount(16 * MIB);
/// Bytes of one L1 or L2 entry.
pub(super) const ENTRY: u64 = 8;

/// Error of a disk that can't be stored in an image.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GeometryError {
    /// The disk has 0 bytes.
    #[error("the disk is 0 bytes long")]
    Empty,
    /// The disk is larger than the format's tables can address.
    #[error(
        "a disk of {size} is too large for an image with clusters of {cluster}: the largest is {largest}"
    )]
    TooLarge {
        /// Size of the disk.
        size: ByteCount,
        /// The requested cluster size.
        cluster: ClusterBits,
        /// Size of the largest disk that fits with this cluster size.
        largest: ByteCount,
    },
}

/// The fixed measures of an image, which follow from the disk's size and the cluster size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    virtual_size: u64,
    cluster: ClusterBits,
    l1_entries: u64,
    refcount_table_clusters: u64,
}

impl Geometry {
    /// Computes the measures for a disk of `size` bytes, which is rounded up to whole sectors, because QEMU
    /// rounds the virtual size *down* when it reads.
    ///
    /// # Errors
    /// If the disk is empty or too large; the error then contains the largest size.
    pub fn new(size: ByteCount, cluster: ClusterBits) -> Result<Self, GeometryError> {
        if size.0 == 0 {
            return Err(GeometryError::Empty);
        }
        let too_large = || GeometryError::TooLarge { size, cluster, largest: largest(cluster) };
        let virtual_size = size.0.checked_next_multiple_of(SECTOR).ok_or_else(too_large)?;
        measure(virtual_size, cluster).ok_or_else(too_large)
    }

    /// Returns the disk's size as the guest sees it, a whole number of sectors.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount(self.virtual_size)
    }

    /// Returns the cluster size.
    #[must_use]
    pub fn cluster(&self) -> ClusterBits {
        self.cluster
    }

    /// Returns the number of clusters in the disk. The last one may extend past the disk's end.
    #[must_use]
    pub fn guest_clusters(&self) -> u64 {
        self.cluster.clusters_in(self.virtual_size)
    }

    /// Returns the number of entries in the L1 table: the number of L2 tables that the disk can need.
    #[must_use]
    pub fn l1_entries(&self) -> u64 {
        self.l1_entries
    }

    /// Returns the number of entries in one L2 table, which fills a cluster.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        l2_entries(self.cluster)
    }

    /// Returns the number of host clusters of the refcount table, which is enough for the longest file.
    #[must_use]
    pub fn refcount_table_clusters(&self) -> u64 {
        self.refcount_table_clusters
    }

    /// Returns the offset of the refcount table: the end of the header's cluster.
    #[must_use]
    pub fn refcount_table(&self) -> HostOffset {
        HostOffset(self.cluster.size())
    }

    /// Returns the offset of the L1 table: the end of the refcount table.
    #[must_use]
    pub fn l1_table(&self) -> HostOffset {
        self.refcount_table() + self.refcount_table_clusters * self.cluster.size()
    }

    /// Returns the number of bytes before the first body: header, refcount table and L1 table, each in its
    /// own clusters.
    #[must_use]
    pub fn head_len(&self) -> u64 {
        head_clusters(self.l1_entries, self.refcount_table_clusters, self.cluster) * self.cluster.size()
    }

    /// Returns the length of the longest file with this geometry: every cluster stored raw, every table
    /// written.
    ///
    /// This includes gaps: in a run of compressed bodies before a gap, each body is shorter than its cluster,
    /// so the run and the gap together are never longer than the run's clusters.
    #[must_use]
    pub fn upper_bound(&self) -> ByteCount {
        let clusters =
            fixed_clusters(self.virtual_size, self.l1_entries, self.refcount_table_clusters, self.cluster);
        ByteCount((clusters + blocks_for(clusters, self.cluster)) * self.cluster.size())
    }

    /// Returns the largest size of the tables that are in memory when the last body is placed. The plan of
    /// peak memory uses it.
    #[must_use]
    pub fn tables_bound(&self) -> ByteCount {
        let fixed =
            fixed_clusters(self.virtual_size, self.l1_entries, self.refcount_table_clusters, self.cluster);
        let tables = self.l1_entries + blocks_for(fixed, self.cluster);
        // Also counted, besides the tables: the head that is built from them, and the layout's list of L2
        // tables.
        let lists = self.l1_entries * 2 * ENTRY;
        ByteCount(self.head_len() + lists + tables * self.cluster.size())
    }

    /// Returns the number of guest clusters in a segment.
    #[must_use]
    pub fn segment_clusters(&self) -> u64 {
        SEGMENT.0 >> self.cluster.bits()
    }

    /// Returns the bytes of the disk in each segment but the last.
    #[must_use]
    pub fn segment_size(&self) -> ByteCount {
        SEGMENT
    }

    /// Returns the number of segments in the disk. The last one may be shorter.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.virtual_size.div_ceil(SEGMENT.0)
    }

    /// Returns the number of the segment that contains a cluster.
    #[must_use]
    pub fn segment_of(&self, guest: GuestCluster) -> u64 {
        guest.0 / self.segment_clusters()
    }
}

fn l2_entries(cluster: ClusterBits) -> u64 {
    cluster.size() / ENTRY
}

fn l2_coverage(cluster: ClusterBits) -> u64 {
    l2_entries(cluster) * cluster.size()
}

fn head_clusters(l1_entries: u64, refcount_table_clusters: u64, cluster: ClusterBits) -> u64 {
    1 + refcount_table_clusters + cluster.clusters_in(l1_entries * ENTRY)
}

/// Returns the largest number of host clusters without the refcount blocks.
fn fixed_clusters(
    virtual_size: u64,
    l1_entries: u64,
    refcount_table_clusters: u64,
    cluster: ClusterBits,
) -> u64 {
    head_clusters(l1_entries, refcount_table_clusters, cluster)
        + cluster.clusters_in(virtual_size)
        + l1_entries
}

/// Returns the geometry of a disk of whole sectors, or `None` if the disk is too large.
fn measure(virtual_size: u64, cluster: ClusterBits) -> Option<Geometry> {
    let l1_entries = virtual_size.div_ceil(l2_coverage(cluster));
    // From here on nothing overflows: at most 2^22 L1 entries cover at most 2^39 bytes each.
    if l1_entries * ENTRY > header::MAX_L1 {
        return None;
    }
    // The refcount table must hold the blocks that count the table itself. Each additional cluster of the
    // table is one more cluster to count, so the loop ends after the first or the second step.
    let mut refcount_table_clusters = 1;
    loop {
        let blocks =
            blocks_for(fixed_clusters(virtual_size, l1_entries, refcount_table_clusters, cluster), cluster);
        let needed = cluster.clusters_in(blocks * refcount::TABLE_ENTRY);
        if needed <= refcount_table_clusters {
            break;
        }
        refcount_table_clusters = needed;
    }
    let geometry = Geometry { virtual_size, cluster, l1_entries, refcount_table_clusters };
    let fits = refcount_table_clusters * cluster.size() <= header::MAX_REFCOUNT_TABLE
        && geometry.upper_bound().0 <= l2::compressed_limit(cluster).0.min(l2::cluster_limit().0);
    fits.then_some(geometry)
}

/// Finds the largest disk with clusters of this size by bisection over the number of sectors.
fn largest(cluster: ClusterBits) -> ByteCount {
    let (mut fits, mut fails) = (1, u64::MAX / SECTOR + 1);
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        // The first number of sectors whose size exceeds u64::MAX bytes stands for all larger ones.
        if middle.checked_mul(SECTOR).and_then(|size| measure(size, cluster)).is_some() {
            fits = middle;
        } else {
            fails = middle;
        }
    }
    ByteCount(fits * SECTOR)
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::{GIB, KIB};

    use super::*;

    fn bits(bits: u32) -> ClusterBits {
        ClusterBits::new(bits).expect("a cluster size of the format")
    }

    fn geometry(size: u64, cluster: u32) -> Geometry {
        Geometry::new(ByteCount(size), bits(cluster)).expect("a disk that fits")
    }

    #[test]
    fn one_l2_table_covers_what_the_specification_says() {
        for (cluster, coverage) in
            [(9, 32 * KIB), (10, 128 * KIB), (12, 2 * MIB), (14, 32 * MIB), (16, 512 * MIB), (18, 8 * GIB)]
        {
            assert_eq!(l2_coverage(bits(cluster)), coverage);
        }
        assert_eq!((l2_coverage(bits(20)), l2_coverage(bits(21))), (128 * GIB, 512 * GIB));
    }

    #[test]
    fn a_hundred_gigabytes_with_the_default_clusters() {
        let disk = geometry(100 * GIB, 16);
        assert_eq!((disk.l1_entries(), disk.refcount_table_clusters(), disk.head_len()), (200, 1, 3 * 65536));
        assert_eq!((disk.guest_clusters(), disk.segments(), disk.segment_clusters()), (1_638_400, 6400, 256));
        // The head has 3 clusters; then data, 200 L2 tables, and 51 blocks of 32768 counts.
        assert_eq!(disk.upper_bound(), ByteCount((3 + 1_638_400 + 200 + 51) * 65536));
    }

    #[test]
    fn virtual_sizes_are_whole_sectors() {
        for (size, virtual_size) in [(1, 512), (512, 512), (513, 1024), (524_188, 524_288)] {
            assert_eq!(geometry(size, 16).virtual_size(), ByteCount(virtual_size));
        }
        assert_eq!(Geometry::new(ByteCount(0), ClusterBits::DEFAULT), Err(GeometryError::Empty));
    }

    #[test]
    fn the_largest_disk_fits_and_the_next_sector_does_not() {
        for cluster in 9..=21 {
            let cluster = bits(cluster);
            let Err(GeometryError::TooLarge { largest, .. }) = Geometry::new(ByteCount(u64::MAX), cluster)
            else {
                panic!("16 EiB fit clusters of {cluster}");
            };
            let largest_geometry = Geometry::new(largest, cluster).expect("the largest disk fits");
            assert!(largest_geometry.l1_entries() * ENTRY <= header::MAX_L1);
            assert!(
                largest_geometry.refcount_table_clusters() * cluster.size() <= header::MAX_REFCOUNT_TABLE
            );
            let next = ByteCount(largest.0 + 1);
            assert_eq!(
                Geometry::new(next, cluster),
                Err(GeometryError::TooLarge { size: next, cluster, largest })
            );
        }
    }

    #[test]
    fn a_full_refcount_table_is_the_limit_with_small_clusters_and_the_offset_field_with_large_ones() {
        // A refcount table of 8 MiB counts as many bytes of the file as an L1 table of 32 MiB covers of the
        // disk. The space of the file's own tables reduces that, by 2 % with clusters of 512 B, by less with
        // larger ones.
        for (cluster, covered) in [(9, 128 * GIB), (12, 8 << 40), (14, 128 << 40), (16, 2 << 50)] {
            let largest = largest(bits(cluster)).0;
            assert!((covered - covered / 50..covered).contains(&largest), "{}: {largest}", bits(cluster));
        }
        // Compressed data must lie below 1 PiB with clusters of 1 MiB, and below 512 TiB with clusters of 2
        // MiB.
        assert!((1023 << 40..1024 << 40).contains(&largest(bits(20)).0));
        assert!((511 << 40..512 << 40).contains(&largest(bits(21)).0));
        assert_eq!(
            Geometry::new(ByteCount(9 << 40), bits(12)).expect_err("too large").to_string(),
            "a disk of 9 TiB is too large for an image with clusters of 4 KiB: the largest is 7.98 TiB"
        );
    }

    #[test]
    fn the_refcount_table_has_room_for_the_longest_file() {
        for cluster in 9..=21 {
            for size in [1, MIB, GIB - 512, 3 * GIB, 64 * GIB, 119 * GIB] {
                let geometry = geometry(size, cluster);
                let clusters = geometry.upper_bound().0 / geometry.cluster().size();
                let counted = geometry.refcount_table_clusters() * geometry.cluster().size()
                    / refcount::TABLE_ENTRY
                    * refcount::counts_per_block(geometry.cluster());
                assert!(
                    clusters <= counted,
                    "{size} bytes, {}: {clusters} clusters, {counted} counts",
                    geometry.cluster()
                );
            }
        }
    }
}
