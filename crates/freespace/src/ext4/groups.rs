//! Group descriptors and block bitmaps.

use std::ops::Range;

use super::superblock::{Checksums, Geometry};
use crate::blocks::{Blocks, Copy, State};
use crate::bytes::{halves, le16, le32};
use crate::crc::{agrees, crc16, crc32c};
use crate::doubt::{Doubt, Stop, ensure};
use crate::ranges::RangeSet;

/// Flags of a descriptor: inodes or blocks of the group were never used, and their bitmap holds nothing.
const INODES_UNUSED: u16 = 1;
const BLOCKS_UNUSED: u16 = 2;
/// Least size of a descriptor that has the high half of the bitmap's checksum.
const WITH_HIGH_CHECKSUM: usize = 0x3a;

/// Descriptor of one group.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    free_clusters: u64,
    unused_inodes: u64,
    flags: u16,
    bitmap_sum: u32,
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Self {
        let high = |at| if bytes.len() >= 64 { le32(bytes, at) } else { 0 };
        let high16 = |at| if bytes.len() >= 64 { u32::from(le16(bytes, at)) } else { 0 };
        let low16 = |at| u32::from(le16(bytes, at));
        Self {
            block_bitmap: halves(le32(bytes, 0), high(0x20)),
            inode_bitmap: halves(le32(bytes, 4), high(0x24)),
            inode_table: halves(le32(bytes, 8), high(0x28)),
            free_clusters: u64::from(low16(0x0c) | high16(0x2c) << 16),
            unused_inodes: u64::from(low16(0x1c) | high16(0x32) << 16),
            flags: le16(bytes, 0x12),
            bitmap_sum: low16(0x18) | high16(0x38) << 16,
        }
    }

    /// Returns how many inodes from the first on may be in use, and whether their bitmap is valid.
    pub(super) fn used_inodes(&self, geometry: &Geometry) -> u64 {
        if geometry.checksums() == Checksums::None {
            geometry.inodes_per_group
        } else if self.flags & INODES_UNUSED != 0 {
            0
        } else {
            geometry.inodes_per_group.saturating_sub(self.unused_inodes)
        }
    }

    fn has_bitmap(&self, geometry: &Geometry) -> bool {
        geometry.checksums() == Checksums::None || self.flags & BLOCKS_UNUSED == 0
    }

    fn places(&self) -> (u64, u64, u64) {
        (self.block_bitmap, self.inode_bitmap, self.inode_table)
    }
}

/// All descriptors of a filesystem in one state.
pub(super) struct Groups {
    descriptors: Vec<Descriptor>,
}

impl Groups {
    /// Reads all descriptors. Checksums are compared where `checked`: on a disk, descriptors may be newer or
    /// older than what they describe, but after a replay none is.
    pub(super) fn read(
        geometry: &Geometry,
        blocks: &Blocks<'_>,
        state: State,
        checked: bool,
    ) -> Result<Self, Stop> {
        let count = geometry.groups();
        let mut descriptors = Vec::new();
        let room = usize::try_from(count).unwrap_or(usize::MAX);
        descriptors.try_reserve_exact(room).map_err(|_| Doubt::Superblock("its number of groups"))?;
        let per_block = geometry.descriptors_per_block();
        for index in 0..count.div_ceil(per_block) {
            let block = blocks.read(geometry.descriptor_block(index), state)?;
            let slots = block.chunks_exact(geometry.descriptor_size);
            for (group, bytes) in (index * per_block..count).zip(slots) {
                if checked {
                    check_descriptor(geometry, group, bytes)?;
                }
                let descriptor = Descriptor::parse(bytes);
                let places = descriptor.places();
                let within = |at: u64, length| {
                    at >= geometry.first_block
                        && at.checked_add(length).is_some_and(|end| end <= geometry.blocks)
                };
                let table = geometry.inode_table_blocks();
                ensure(within(places.0, 1) && within(places.1, 1) && within(places.2, table), || {
                    Doubt::Group { group, what: "the place of its bitmaps" }
                })?;
                descriptors.push(descriptor);
            }
        }
        Ok(Self { descriptors })
    }

    pub(super) fn get(&self, group: u64) -> Result<&Descriptor, Stop> {
        let found = usize::try_from(group).ok().and_then(|index| self.descriptors.get(index));
        Ok(found.ok_or(Doubt::Group { group, what: "no such group" })?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Descriptor)> {
        (0..).zip(&self.descriptors)
    }

    /// True if bitmaps and inode tables lie where those of `other` do.
    pub(super) fn places_as(&self, other: &Self) -> bool {
        self.descriptors.len() == other.descriptors.len()
            && self
                .descriptors
                .iter()
                .zip(&other.descriptors)
                .all(|(own, other)| own.places() == other.places())
    }

    /// Returns all blocks that hold metadata of groups: superblocks, descriptors, bitmaps and inode tables.
    pub(super) fn metadata(&self, geometry: &Geometry) -> RangeSet {
        let table = geometry.inode_table_blocks();
        let mut ranges = Vec::with_capacity(self.descriptors.len() * 4);
        for (group, descriptor) in self.iter() {
            ranges.push(geometry.base_blocks(group));
            ranges.push(descriptor.block_bitmap..descriptor.block_bitmap + 1);
            ranges.push(descriptor.inode_bitmap..descriptor.inode_bitmap + 1);
            ranges.push(descriptor.inode_table..descriptor.inode_table + table);
        }
        RangeSet::union_of(ranges)
    }
}

fn check_descriptor(geometry: &Geometry, group: u64, bytes: &[u8]) -> Result<(), Stop> {
    const SUM: Range<usize> = 0x1e..0x20;
    let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
    let (front, back) = (&bytes[..SUM.start], &bytes[SUM.end..]);
    let sum = match geometry.checksums() {
        Checksums::None => return Ok(()),
        Checksums::Descriptors => {
            let front = [geometry.uuid_bytes(), &number, front].into_iter().fold(u16::MAX, crc16);
            u32::from(crc16(front, back))
        }
        Checksums::All => [&number, front, &[0; 2], back].into_iter().fold(geometry.seed, crc32c) & 0xffff,
    };
    ensure(agrees(sum, u32::from(le16(bytes, SUM.start))), || Doubt::Group {
        group,
        what: "the checksum of its descriptor",
    })
}

/// Bits of one group, one for each cluster; a set bit is a cluster in use.
struct Bits(Vec<u8>);

impl Bits {
    fn set(&mut self, bit: u64) {
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|index| self.0.get_mut(index)) {
            *byte |= 1 << (bit % 8);
        }
    }

    fn add(&mut self, other: &[u8]) {
        self.0.iter_mut().zip(other).for_each(|(own, other)| *own |= other);
    }

    /// Returns the runs of zeros among the first `count` bits.
    fn zero_runs(&self, count: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut add = |run: Range<u64>| match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        };
        for (byte, start) in self.0.iter().zip((0..count).step_by(8)) {
            let end = count.min(start + 8);
            match byte {
                0xff => {}
                0 => add(start..end),
                byte => (start..end)
                    .filter(|bit| byte >> (bit - start) & 1 == 0)
                    .for_each(|bit| add(bit..bit + 1)),
            }
        }
        runs
    }
}

/// Reader of block bitmaps, as they are after a replay and as they were before.
pub(super) struct Bitmaps<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) blocks: &'a Blocks<'a>,
    /// Descriptors as they lie on the disk.
    pub(super) on_disk: &'a Groups,
    /// Descriptors after the replay.
    pub(super) replayed: &'a Groups,
    /// All metadata of groups.
    pub(super) metadata: &'a RangeSet,
    /// Every copy of a block in the journal, sorted by block.
    pub(super) copies: &'a [Copy],
}

impl Bitmaps<'_> {
    /// Returns the blocks that are free in the replayed bitmaps, in those on the disk, and in every copy of
    /// them in the journal. Whichever part of the journal a driver replays, its bitmaps are among these.
    pub(super) fn free(&self) -> Result<RangeSet, Stop> {
        let geometry = self.geometry;
        let mut free = RangeSet::default();
        for (group, descriptor) in self.replayed.iter() {
            let (blocks, clusters) = self.extent(group);
            let mut bits = self.read(group, descriptor, State::Replayed)?;
            self.check(group, descriptor, &bits, clusters)?;
            if !self.copies.is_empty() {
                bits.add(&self.read(group, self.on_disk.get(group)?, State::OnDisk)?.0);
                let from = self.copies.partition_point(|copy| copy.of < descriptor.block_bitmap);
                for copy in self.copies[from..].iter().take_while(|copy| copy.of == descriptor.block_bitmap) {
                    bits.add(&self.blocks.read_copy(*copy)?);
                }
            }
            for run in bits.zero_runs(clusters) {
                let block = |cluster: u64| blocks.start + (cluster << geometry.cluster_bits);
                free.push(block(run.start)..block(run.end).min(blocks.end));
            }
        }
        Ok(free)
    }

    /// Returns the blocks and the number of clusters of a group.
    fn extent(&self, group: u64) -> (Range<u64>, u64) {
        let blocks = self.geometry.group(group);
        let clusters = (blocks.end - blocks.start).div_ceil(1 << self.geometry.cluster_bits);
        (blocks, clusters)
    }

    /// Reads a bitmap. The one of a group whose blocks were never used is not on the disk: it has the
    /// metadata in it, and nothing else.
    fn read(&self, group: u64, descriptor: &Descriptor, state: State) -> Result<Bits, Stop> {
        let bytes = usize::try_from(self.geometry.clusters_per_group / 8).unwrap_or(0);
        if descriptor.has_bitmap(self.geometry) {
            let mut block = self.blocks.read(descriptor.block_bitmap, state)?;
            block.truncate(bytes);
            return Ok(Bits(block));
        }
        let mut bits = Bits(vec![0; bytes]);
        let (blocks, _) = self.extent(group);
        for range in self.metadata.within(blocks.clone()) {
            let cluster = |block: u64| (block - blocks.start) >> self.geometry.cluster_bits;
            (cluster(range.start)..=cluster(range.end - 1)).for_each(|cluster| bits.set(cluster));
        }
        Ok(bits)
    }

    /// Checks the checksum of a replayed bitmap and the number of its free clusters.
    fn check(&self, group: u64, descriptor: &Descriptor, bits: &Bits, clusters: u64) -> Result<(), Stop> {
        let geometry = self.geometry;
        if geometry.checksums() == Checksums::All && descriptor.has_bitmap(geometry) {
            let sum = crc32c(geometry.seed, &bits.0);
            let sum = if geometry.descriptor_size >= WITH_HIGH_CHECKSUM { sum } else { sum & 0xffff };
            ensure(agrees(sum, descriptor.bitmap_sum), || Doubt::Group {
                group,
                what: "the checksum of its bitmap",
            })?;
        }
        let free: u64 = bits.zero_runs(clusters).iter().map(|run| run.end - run.start).sum();
        ensure(free == descriptor.free_clusters, || Doubt::Group {
            group,
            what: "its bitmap and its number of free blocks differ",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_zeros_end_with_the_count() {
        let mut bits = Bits(vec![0xff, 0, 0, 0b1010_0001, 0xff, 0]);
        assert_eq!(bits.zero_runs(48), [8..24, 25..29, 30..31, 40..48]);
        assert_eq!(bits.zero_runs(27), [8..24, 25..27]);
        bits.set(10);
        bits.set(1000);
        assert_eq!(bits.zero_runs(16), [8..10, 11..16]);
        bits.add(&[0, 0xff]);
        assert_eq!(bits.zero_runs(16), []);
    }
}
