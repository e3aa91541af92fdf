//! Refcounts of a new image: the number of entries that point to each host cluster.
//!
//! Counts are 16 bits wide (refcount_order 4, QEMU's default and the only width that every reader accepts).
//! They are kept in the same blocks that are written to the file, so no count is stored twice and nothing is
//! copied as the file grows.

use std::ops::RangeInclusive;

use snapferry_base::units::{ClusterBits, HostCluster, HostOffset, to_u64, to_usize};

/// log2 of a refcount's width in bits.
pub const ORDER: u32 = 4;
/// Bytes of one refcount.
const WIDTH: u64 = 2;
/// Bytes of one entry of the refcount table: the host offset of a block.
pub const TABLE_ENTRY: u64 = 8;

/// Returns the number of counts in one block, which fills a cluster.
#[must_use]
pub fn counts_per_block(cluster: ClusterBits) -> u64 {
    cluster.size() / WIDTH
}

/// Returns the number of blocks needed to count `clusters` host clusters and the blocks themselves.
///
/// This is the smallest `b` with `b * per_block >= clusters + b`, because each block uses one count for a
/// block.
#[must_use]
pub fn blocks_for(clusters: u64, cluster: ClusterBits) -> u64 {
    clusters.div_ceil(counts_per_block(cluster) - 1)
}

/// The refcounts of a growing file.
#[derive(Debug)]
pub(super) struct Refcounts {
    cluster: ClusterBits,
    blocks: Vec<Box<[u16]>>,
}

impl Refcounts {
    /// Creates refcounts that are all 0.
    pub(super) fn new(cluster: ClusterBits) -> Self {
        Self { cluster, blocks: Vec::new() }
    }

    /// Adds one reference to every cluster of `clusters`.
    ///
    /// # Panics
    /// If a count passes 65,535. For that, more than 65,535 bodies would have to share a host cluster; with
    /// clusters of 2 MiB they would be shorter than 33 bytes. No codec reaches that: one byte repeated over 2
    /// MiB takes zstd about 70 bytes and deflate 2 KiB.
    pub(super) fn add(&mut self, clusters: RangeInclusive<HostCluster>) {
        for cluster in clusters.start().0..=clusters.end().0 {
            let count = self.count_mut(cluster);
            *count = count
                .checked_add(1)
                .expect("more than 65,535 bodies in one host cluster: shorter than any codec writes");
        }
    }

    /// Counts the blocks themselves, which will be stored from cluster `first` on, and returns them.
    pub(super) fn close(mut self, first: HostCluster) -> Vec<Box<[u16]>> {
        let blocks = blocks_for(first.0, self.cluster);
        if blocks > 0 {
            self.add(first..=first + (blocks - 1));
        }
        debug_assert_eq!(to_u64(self.blocks.len()), blocks, "every cluster of the file has its count");
        self.blocks
    }

    fn count_mut(&mut self, cluster: u64) -> &mut u16 {
        let per_block = counts_per_block(self.cluster);
        let block = to_usize(cluster / per_block);
        while self.blocks.len() <= block {
            self.blocks.push(vec![0; to_usize(per_block)].into_boxed_slice());
        }
        &mut self.blocks[block][to_usize(cluster % per_block)]
    }
}

/// Returns the clusters that contain bytes from `start` up to, but not including, `end`.
pub(super) fn clusters_touched(
    start: HostOffset,
    end: HostOffset,
    cluster: ClusterBits,
) -> RangeInclusive<HostCluster> {
    debug_assert!(start < end);
    start.cluster(cluster)..=HostOffset(end.0 - 1).cluster(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(bits: u32) -> ClusterBits {
        ClusterBits::new(bits).expect("a cluster size of the format")
    }

    #[test]
    fn one_block_counts_half_a_cluster_of_clusters() {
        // "one block covers cluster_size^2 / 2 bytes at 16 bit": 2 GiB at 64 KiB, 2 TiB at 2 MiB.
        assert_eq!(counts_per_block(bits(16)) * bits(16).size(), 2 << 30);
        assert_eq!(counts_per_block(bits(21)) * bits(21).size(), 2 << 40);
    }

    #[test]
    fn blocks_count_themselves() {
        for cluster in [bits(9), bits(16)] {
            let per_block = counts_per_block(cluster);
            for clusters in (1..4 * per_block)
                .step_by(7)
                .chain(per_block - 2..per_block + 3)
                .chain(2 * per_block - 4..2 * per_block)
            {
                let blocks = blocks_for(clusters, cluster);
                assert!(
                    blocks * per_block >= clusters + blocks,
                    "{clusters} clusters, {blocks} blocks: too few"
                );
                assert!(
                    (blocks - 1) * per_block < clusters + blocks - 1,
                    "{clusters} clusters, {blocks} blocks: too many"
                );
            }
        }
    }

    #[test]
    fn a_closed_file_counts_each_cluster_and_block_once() {
        let cluster = bits(9);
        for used in [1, 254, 255, 256, 257, 510, 511, 1000] {
            let mut refcounts = Refcounts::new(cluster);
            refcounts.add(HostCluster(0)..=HostCluster(used - 1));
            refcounts.add(HostCluster(used / 2)..=HostCluster(used / 2));
            let counts = refcounts.close(HostCluster(used)).concat();
            let blocks = blocks_for(used, cluster);
            let counted = counts.iter().filter(|&&count| count > 0).count();
            assert_eq!(counted, to_usize(used + blocks), "{used} clusters");
            assert_eq!(counts[to_usize(used / 2)], 2);
        }
    }

    #[test]
    #[should_panic(expected = "shorter than any codec writes")]
    fn a_count_never_wraps() {
        let mut refcounts = Refcounts::new(bits(9));
        for _ in 0..=u32::from(u16::MAX) {
            refcounts.add(HostCluster(3)..=HostCluster(3));
        }
    }
}
