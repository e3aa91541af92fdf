//! What the image of a disk can look like, known before its first byte is read.

use snapferry_base::units::{ByteCount, ClusterBits, GuestCluster, HostOffset, MIB, SECTOR};

use crate::refcount::{self, blocks_for};
use crate::{header, l2};

/// Guest bytes in a segment, the unit of reuse between two images of a disk: 16 MiB store about 6 MB, one smallest part of a
/// multipart upload. Larger segments send more again after a small change, smaller ones pad more.
pub const SEGMENT: ByteCount = ByteCount(16 * MIB);
/// Bytes of one L1 or L2 entry.
pub(super) const ENTRY: u64 = 8;

/// A disk that no image can hold.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GeometryError {
    /// There is nothing to store.
    #[error("the disk is 0 bytes long")]
    Empty,
    /// The format's tables can't reach that far.
    #[error(
        "a disk of {size} is too large for an image with clusters of {cluster}: the largest is {largest}"
    )]
    TooLarge {
        /// The disk.
        size: ByteCount,
        /// The clusters asked for.
        cluster: ClusterBits,
        /// The largest disk that fits with these clusters.
        largest: ByteCount,
    },
}

/// The fixed measures of an image: everything that follows from the disk's size and the cluster size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    virtual_size: u64,
    cluster: ClusterBits,
    l1_entries: u64,
    refcount_table_clusters: u64,
}

impl Geometry {
    /// For a disk of `size` bytes, which is rounded up to whole sectors: QEMU rounds the virtual size *down* when it reads.
    ///
    /// # Errors
    /// With the rule that the disk breaks, and the largest one that keeps it.
    pub fn new(size: ByteCount, cluster: ClusterBits) -> Result<Self, GeometryError> {
        if size.0 == 0 {
            return Err(GeometryError::Empty);
        }
        let too_large = || GeometryError::TooLarge { size, cluster, largest: largest(cluster) };
        let virtual_size = size.0.checked_next_multiple_of(SECTOR).ok_or_else(too_large)?;
        measure(virtual_size, cluster).ok_or_else(too_large)
    }

    /// The disk's size as the guest sees it: a whole number of sectors.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount(self.virtual_size)
    }

    /// The cluster size.
    #[must_use]
    pub fn cluster(&self) -> ClusterBits {
        self.cluster
    }

    /// Clusters in the disk, the last one perhaps partly past its end.
    #[must_use]
    pub fn guest_clusters(&self) -> u64 {
        self.cluster.clusters_in(self.virtual_size)
    }

    /// Entries in the L1 table: exactly as many L2 tables as the disk can need.
    #[must_use]
    pub fn l1_entries(&self) -> u64 {
        self.l1_entries
    }

    /// Entries in one L2 table, which fills a cluster.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        l2_entries(self.cluster)
    }

    /// Host clusters of the refcount table: enough for the longest file.
    #[must_use]
    pub fn refcount_table_clusters(&self) -> u64 {
        self.refcount_table_clusters
    }

    /// Where the refcount table is: right behind the header's cluster.
    #[must_use]
    pub fn refcount_table(&self) -> HostOffset {
        HostOffset(self.cluster.size())
    }

    /// Where the L1 table is: behind the refcount table.
    #[must_use]
    pub fn l1_table(&self) -> HostOffset {
        self.refcount_table() + self.refcount_table_clusters * self.cluster.size()
    }

    /// Bytes before the first body: header, refcount table and L1 table, each in clusters of its own.
    #[must_use]
    pub fn head_len(&self) -> u64 {
        head_clusters(self.l1_entries, self.refcount_table_clusters, self.cluster) * self.cluster.size()
    }

    /// The longest file that any image with this geometry can be: every cluster stored raw, every table written.
    ///
    /// Gaps are in it: a run of compressed bodies before a gap is shorter than the clusters that it stands for, each body being
    /// shorter than a cluster, so run and gap together are never longer.
    #[must_use]
    pub fn upper_bound(&self) -> ByteCount {
        let clusters =
            fixed_clusters(self.virtual_size, self.l1_entries, self.refcount_table_clusters, self.cluster);
        ByteCount((clusters + blocks_for(clusters, self.cluster)) * self.cluster.size())
    }

    /// The most bytes of tables that are in memory when the last body is placed: for the plan of peak memory.
    #[must_use]
    pub fn tables_bound(&self) -> ByteCount {
        let fixed =
            fixed_clusters(self.virtual_size, self.l1_entries, self.refcount_table_clusters, self.cluster);
        let tables = self.l1_entries + blocks_for(fixed, self.cluster);
        // Beside the tables themselves, the head that is made from them and the layout's list of L2 tables.
        let lists = self.l1_entries * 2 * ENTRY;
        ByteCount(self.head_len() + lists + tables * self.cluster.size())
    }

    /// Guest clusters in a segment.
    #[must_use]
    pub fn segment_clusters(&self) -> u64 {
        SEGMENT.0 >> self.cluster.bits()
    }

    /// Bytes of the disk in each segment but the last.
    #[must_use]
    pub fn segment_size(&self) -> ByteCount {
        SEGMENT
    }

    /// Segments in the disk, the last one perhaps short.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.virtual_size.div_ceil(SEGMENT.0)
    }

    /// The number of the segment that a cluster lies in.
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

/// Host clusters of everything but the refcount blocks, at most.
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

/// The geometry of a disk of whole sectors, if it has one.
fn measure(virtual_size: u64, cluster: ClusterBits) -> Option<Geometry> {
    let l1_entries = virtual_size.div_ceil(l2_coverage(cluster));
    // From here on nothing overflows: at most 2^22 L1 entries of at most 2^39 bytes.
    if l1_entries * ENTRY > header::MAX_L1 {
        return None;
    }
    // The table must hold the blocks that count the table too. One more cluster of it is one more cluster to count: it settles at
    // once or after one step more.
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

/// The largest disk with clusters of this size: bisection over the number of sectors.
fn largest(cluster: ClusterBits) -> ByteCount {
    let (mut fits, mut fails) = (1, u64::MAX / SECTOR + 1);
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        // The first number of sectors that fails is past u64::MAX bytes: it stands for every larger one.
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
        // head 3, data, 200 L2 tables, and 51 blocks of 32768 counts
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
            let most = Geometry::new(largest, cluster).expect("the largest disk fits");
            assert!(most.l1_entries() * ENTRY <= header::MAX_L1);
            assert!(most.refcount_table_clusters() * cluster.size() <= header::MAX_REFCOUNT_TABLE);
            let next = ByteCount(largest.0 + 1);
            assert_eq!(
                Geometry::new(next, cluster),
                Err(GeometryError::TooLarge { size: next, cluster, largest })
            );
        }
    }

    #[test]
    fn a_full_refcount_table_is_the_limit_with_small_clusters_and_the_offset_field_with_large_ones() {
        // A refcount table of 8 MiB counts as many bytes of file as an L1 table of 32 MiB covers of disk; what the file's own
        // tables take is missing to that: 2 % with 512 B clusters, less with larger ones.
        for (cluster, covered) in [(9, 128 * GIB), (12, 8 << 40), (14, 128 << 40), (16, 2 << 50)] {
            let largest = largest(bits(cluster)).0;
            assert!((covered - covered / 50..covered).contains(&largest), "{}: {largest}", bits(cluster));
        }
        // Compressed data lie below 1 PiB and 512 TiB.
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
