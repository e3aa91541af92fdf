//! Inodes, and the blocks that they refer to.

use std::ops::Range;

use super::groups::Groups;
use super::superblock::{Checksums, Geometry};
use crate::blocks::{Blocks, State};
use crate::bytes::{halves, le16, le32};
use crate::crc::{agrees, crc32c};
use crate::doubt::{Doubt, Stop, ensure};

/// Length of the part of an inode that every filesystem has, in bytes.
const BASE: usize = 128;
/// Offset and length of the map of blocks.
const MAP: usize = 0x28;
const MAP_LENGTH: usize = 60;
/// Blocks that the map of an inode without extents refers to directly (`EXT4_NDIR_BLOCKS`).
const DIRECT: usize = 12;
/// Levels of an extent tree below the inode (`EXT4_MAX_EXTENT_DEPTH`).
const DEEPEST: u16 = 5;
/// Magic number of a node of an extent tree.
const NODE_MAGIC: u16 = 0xf30a;
/// Longest extent whose blocks hold data. A longer one stands for that much less, unwritten.
const LONGEST: u16 = 1 << 15;

const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
const TYPE_MASK: u16 = 0xf000;
const DIRECTORY: u16 = 0x4000;
const REGULAR: u16 = 0x8000;
const SYMLINK: u16 = 0xa000;

/// One inode.
pub(super) struct Inode {
    number: u64,
    bytes: Vec<u8>,
    /// Seed of the checksums of what belongs to the inode.
    seed: u32,
}

/// Blocks that lie side by side, and that one file holds.
pub(super) struct FilePiece {
    /// First block of the file, for its content; `None` for a block of its map or of attributes.
    pub(super) logical: Option<u64>,
    /// Blocks of the filesystem.
    pub(super) blocks: Range<u64>,
}

/// Reader of inodes in one state of the filesystem.
pub(super) struct Inodes<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) blocks: &'a Blocks<'a>,
    pub(super) groups: &'a Groups,
    pub(super) state: State,
}

type Visit<'v> = &'v mut dyn FnMut(FilePiece) -> Result<(), Stop>;

impl Inode {
    /// Takes an inode as it lies in its table. `None` if it was never used; the checksum of one in use must
    /// be right.
    pub(super) fn new(geometry: &Geometry, number: u64, bytes: &[u8]) -> Result<Option<Self>, Stop> {
        if le16(bytes, 0) == 0 && le16(bytes, 0x1a) == 0 {
            return Ok(None);
        }
        let id = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let seed = crc32c(crc32c(geometry.seed, &id), bytes.get(0x64..0x68).unwrap_or(&[]));
        if geometry.checksums() == Checksums::All {
            check_sum(seed, bytes, number)?;
        }
        Ok(Some(Self { number, bytes: bytes.to_vec(), seed }))
    }

    fn doubt(&self, what: &'static str) -> impl FnOnce() -> Doubt + use<> {
        let inode = self.number;
        move || Doubt::Inode { inode, what }
    }

    fn flags(&self) -> u32 {
        le32(&self.bytes, 0x20)
    }

    /// True if the map refers to blocks, and does not hold data or a device's number itself.
    fn has_map(&self) -> bool {
        if self.flags() & FLAG_INLINE_DATA != 0 {
            return false;
        }
        match le16(&self.bytes, 0) & TYPE_MASK {
            REGULAR | DIRECTORY => true,
            // A short target lies in the inode: ext4 then clears the flag for extents.
            SYMLINK => {
                self.flags() & FLAG_EXTENTS != 0
                    || halves(le32(&self.bytes, 4), 0) >= u64::try_from(MAP_LENGTH).unwrap_or(0)
            }
            _ => false,
        }
    }
}

fn check_sum(seed: u32, bytes: &[u8], inode: u64) -> Result<(), Stop> {
    // Offsets of the two halves of the checksum; the second is there if the inode says so.
    const LOW: usize = 0x7c;
    const HIGH: usize = 0x82;
    let has_high = bytes.len() > BASE && usize::from(le16(bytes, 0x80)) >= HIGH + 2 - BASE;
    let mut summed = bytes.to_vec();
    summed[LOW..LOW + 2].fill(0);
    let mut expected = u32::from(le16(bytes, LOW));
    let mut mask = 0xffff;
    if has_high {
        summed[HIGH..HIGH + 2].fill(0);
        expected |= u32::from(le16(bytes, HIGH)) << 16;
        mask = u32::MAX;
    }
    ensure(agrees(crc32c(seed, &summed) & mask, expected), || Doubt::Inode { inode, what: "its checksum" })
}

impl Inodes<'_> {
    /// Reads one inode; `None` if it is not in use.
    pub(super) fn read(&self, number: u64) -> Result<Option<Inode>, Stop> {
        let geometry = self.geometry;
        let index = number.checked_sub(1).ok_or(Doubt::Inode { inode: number, what: "no such inode" })?;
        let group = self.groups.get(index / geometry.inodes_per_group)?;
        let per_block = u64::try_from(geometry.block_size / geometry.inode_size).unwrap_or(1);
        let within = index % geometry.inodes_per_group;
        let block = self.blocks.read(group.inode_table + within / per_block, self.state)?;
        let at = usize::try_from(within % per_block).unwrap_or(0) * geometry.inode_size;
        Inode::new(geometry, number, &block[at..at + geometry.inode_size])
    }

    /// Visits all blocks that the inode refers to: of its content, its map and its extended attributes.
    pub(super) fn for_each_piece(&self, inode: &Inode, visit: Visit<'_>) -> Result<(), Stop> {
        let attributes = halves(le32(&inode.bytes, 0x68), u32::from(le16(&inode.bytes, 0x76)));
        if attributes != 0 {
            self.visit(inode, None, attributes, 1, visit)?;
        }
        if !inode.has_map() {
            return Ok(());
        }
        let map = &inode.bytes[MAP..MAP + MAP_LENGTH];
        if inode.flags() & FLAG_EXTENTS != 0 {
            let depth = le16(map, 6);
            ensure(depth <= DEEPEST, inode.doubt("the depth of its extents"))?;
            return self.extents(inode, map, depth, visit);
        }
        for (logical, slot) in (0..).zip(map[..DIRECT * 4].chunks_exact(4)) {
            self.mapped(inode, logical, u64::from(le32(slot, 0)), 0, visit)?;
        }
        let per_block = u64::try_from(self.geometry.block_size / 4).unwrap_or(1);
        let mut logical = u64::try_from(DIRECT).unwrap_or(0);
        for (level, slot) in (1..=3).zip(map[DIRECT * 4..].chunks_exact(4)) {
            self.mapped(inode, logical, u64::from(le32(slot, 0)), level, visit)?;
            logical += per_block.pow(level);
        }
        Ok(())
    }

    fn visit(
        &self,
        inode: &Inode,
        logical: Option<u64>,
        first: u64,
        count: u64,
        visit: Visit<'_>,
    ) -> Result<(), Stop> {
        let end = first.checked_add(count).filter(|end| *end <= self.geometry.blocks);
        let end = end.filter(|_| first > 0).ok_or_else(inode.doubt("a block outside of the filesystem"))?;
        visit(FilePiece { logical, blocks: first..end })
    }

    /// Visits a node of an extent tree, and what is below it.
    fn extents(&self, inode: &Inode, node: &[u8], depth: u16, visit: Visit<'_>) -> Result<(), Stop> {
        let (count, room) = (usize::from(le16(node, 2)), usize::from(le16(node, 4)));
        let sound = le16(node, 0) == NODE_MAGIC
            && le16(node, 6) == depth
            && count <= room
            && 12 + room * 12 <= node.len();
        ensure(sound, inode.doubt("a node of its extents"))?;
        for entry in node[12..12 + count * 12].chunks_exact(12) {
            if depth > 0 {
                let child = halves(le32(entry, 4), u32::from(le16(entry, 8)));
                self.visit(inode, None, child, 1, visit)?;
                let block = self.blocks.read(child, self.state)?;
                self.check_node(inode, &block)?;
                self.extents(inode, &block, depth - 1, visit)?;
            } else {
                let length = le16(entry, 4);
                let length = if length > LONGEST { length - LONGEST } else { length };
                let first = halves(le32(entry, 8), u32::from(le16(entry, 6)));
                ensure(length > 0, inode.doubt("an empty extent"))?;
                self.visit(inode, Some(u64::from(le32(entry, 0))), first, u64::from(length), visit)?;
            }
        }
        Ok(())
    }

    /// Checks the checksum behind the last place for an entry.
    fn check_node(&self, inode: &Inode, node: &[u8]) -> Result<(), Stop> {
        if self.geometry.checksums() != Checksums::All {
            return Ok(());
        }
        let end = 12 + usize::from(le16(node, 4)) * 12;
        let (Some(body), Some(tail)) = (node.get(..end), node.get(end..end + 4)) else {
            return Err(inode.doubt("a node of its extents")().into());
        };
        ensure(
            agrees(crc32c(inode.seed, body), le32(tail, 0)),
            inode.doubt("the checksum of a node of its extents"),
        )
    }

    /// Visits a block of a map without extents: data at level 0, else a block of numbers.
    fn mapped(
        &self,
        inode: &Inode,
        logical: u64,
        block: u64,
        level: u32,
        visit: Visit<'_>,
    ) -> Result<(), Stop> {
        if block == 0 {
            return Ok(());
        }
        if level == 0 {
            return self.visit(inode, Some(logical), block, 1, visit);
        }
        self.visit(inode, None, block, 1, visit)?;
        let numbers = self.blocks.read(block, self.state)?;
        let per_block = u64::try_from(self.geometry.block_size / 4).unwrap_or(1);
        let below = per_block.pow(level - 1);
        for (index, slot) in (0..).zip(numbers.chunks_exact(4)) {
            self.mapped(inode, logical + index * below, u64::from(le32(slot, 0)), level - 1, visit)?;
        }
        Ok(())
    }
}
