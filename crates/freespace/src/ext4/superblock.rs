//! The superblock: geometry, features, state.

use std::ops::Range;

use crate::bytes::{halves, le16, le32, uuid};
use crate::crc::{agrees, crc32c};
use crate::doubt::{Doubt, Stop, ensure};

/// Offset of the superblock in bytes.
pub(super) const OFFSET: u64 = 1024;
/// Length of the superblock in bytes.
pub(super) const LENGTH: usize = 1024;
/// Most block groups that are read: 128 TiB with blocks of 4 KiB.
const MOST_GROUPS: u64 = 1 << 20;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
pub(super) const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// `compat`: directory preallocation, journal, extended attributes, reserved descriptors, directory index,
/// fast commit, stable inodes, orphan file.
const KNOWN_COMPAT: u32 = 0x1 | 0x4 | 0x8 | 0x10 | 0x20 | 0x400 | 0x800 | 0x1000;
/// `incompat`: file types, recovery, meta_bg, extents, 64bit, multiple mount protection, flex_bg, values of
/// extended attributes in inodes, checksum seed, large directories, inline data, encryption, case folding.
const KNOWN_INCOMPAT: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
/// `ro_compat`: sparse superblocks, large files, huge files, checksums of descriptors, many links, extra
/// inode size, quota, bigalloc, metadata checksums, read-only, project quota, verity, orphans present.
const KNOWN_RO_COMPAT: u32 =
    0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x1_0000;
/// Bits of `incompat` and `ro_compat` that come and go on a mounted filesystem: recovery, and large files,
/// orphans present.
const PASSING_INCOMPAT: u32 = INCOMPAT_RECOVER;
const PASSING_RO_COMPAT: u32 = 0x2 | 0x1_0000;
/// Bits of `state`: unmounted, errors.
const STATE_VALID: u16 = 1;
const STATE_ERROR: u16 = 2;

/// Checksum of group descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    /// None, and so no group that was never initialised.
    None,
    /// CRC-16 of descriptors alone.
    Descriptors,
    /// CRC-32C of all metadata.
    All,
}

/// Geometry of a filesystem, which no replay may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) uuid: String,
    uuid_bytes: [u8; 16],
    /// Block size in bytes.
    pub(super) block_size: usize,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    /// Power of two of the blocks in a cluster.
    pub(super) cluster_bits: u32,
    pub(super) clusters_per_group: u64,
    pub(super) inodes_per_group: u64,
    pub(super) inode_size: usize,
    pub(super) descriptor_size: usize,
    reserved_descriptor_blocks: u64,
    first_meta_group: u64,
    pub(super) journal_inode: u32,
    pub(super) seed: u32,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
}

/// Superblock: the geometry, and what changes.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) geometry: Geometry,
    /// True if the filesystem is to be recovered before it is used.
    pub(super) needs_recovery: bool,
    external_journal: bool,
    state: u16,
    errors: u32,
}

impl Superblock {
    /// Parses the superblock in `bytes`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Stop> {
        let wrong = |what| move || Doubt::Superblock(what);
        ensure(bytes.len() >= LENGTH && le16(bytes, 0x38) == 0xef53, wrong("its magic number"))?;
        // Revision 0 has neither features nor an inode size.
        ensure(le32(bytes, 0x4c) == 1, wrong("its revision"))?;
        let (compat, incompat, ro_compat) = (le32(bytes, 0x5c), le32(bytes, 0x60), le32(bytes, 0x64));
        for (kind, bits) in [
            ("compat", compat & !KNOWN_COMPAT),
            ("incompat", incompat & !KNOWN_INCOMPAT),
            ("ro_compat", ro_compat & !KNOWN_RO_COMPAT),
        ] {
            ensure(bits == 0, || Doubt::Features { kind, bits })?;
        }
        debug_assert_eq!(KNOWN_COMPAT & COMPAT_SPARSE_SUPER2, 0);
        if ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
            ensure(bytes[0x175] == 1, wrong("its kind of checksum"))?;
            ensure(agrees(crc32c(u32::MAX, &bytes[..0x3fc]), le32(bytes, 0x3fc)), wrong("its checksum"))?;
        }
        let geometry = geometry(bytes, compat, incompat, ro_compat)?;
        Ok(Self {
            geometry,
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            external_journal: le32(bytes, 0xe4) != 0 || le32(bytes, 0xe0) == 0,
            state: le16(bytes, 0x3a),
            errors: le32(bytes, 0x194),
        })
    }

    /// Returns the number of the journal's inode; `None` if there is no journal, and then the filesystem was
    /// unmounted.
    pub(super) fn journal(&self) -> Result<Option<u32>, Stop> {
        if self.geometry.compat & COMPAT_HAS_JOURNAL == 0 {
            // Each mount for writing clears the bit, and each unmount sets it when all else is on the disk.
            ensure(self.state & STATE_VALID != 0 && !self.needs_recovery, || Doubt::NotUnmounted)?;
            return Ok(None);
        }
        ensure(!self.external_journal, || Doubt::ExternalJournal)?;
        Ok(Some(self.geometry.journal_inode))
    }

    /// Refuses a filesystem that knows of errors in itself.
    pub(super) fn check_errors(&self) -> Result<(), Stop> {
        ensure(self.state & STATE_ERROR == 0 && self.errors == 0, || Doubt::Errors)
    }
}

fn geometry(bytes: &[u8], compat: u32, incompat: u32, ro_compat: u32) -> Result<Geometry, Stop> {
    let wrong = |what| move || Doubt::Superblock(what);
    let block_bits = le32(bytes, 0x18);
    ensure(block_bits <= 6, wrong("its block size"))?;
    let block_size = 1024_usize << block_bits;
    let bits = u64::try_from(block_size * 8).unwrap_or(0);
    let bigalloc = ro_compat & RO_COMPAT_BIGALLOC != 0;
    let cluster_bits =
        if bigalloc { le32(bytes, 0x1c).checked_sub(block_bits).unwrap_or(u32::MAX) } else { 0 };
    ensure(cluster_bits <= 16, wrong("its cluster size"))?;
    ensure(!bigalloc || block_size > 1024, || Doubt::Unsupported("bigalloc with blocks of 1 KiB"))?;
    let blocks_per_group = u64::from(le32(bytes, 0x20));
    let clusters_per_group = if bigalloc { u64::from(le32(bytes, 0x24)) } else { blocks_per_group };
    let group_fits = clusters_per_group >= 64
        && clusters_per_group <= bits
        && clusters_per_group.is_multiple_of(8)
        && clusters_per_group << cluster_bits == blocks_per_group;
    ensure(group_fits, wrong("its group size"))?;
    let is_64bit = incompat & INCOMPAT_64BIT != 0;
    let blocks = halves(le32(bytes, 0x4), if is_64bit { le32(bytes, 0x150) } else { 0 });
    let first_block = u64::from(le32(bytes, 0x14));
    ensure(first_block == u64::from(block_size == 1024), wrong("its first block"))?;
    let groups = blocks.saturating_sub(first_block).div_ceil(blocks_per_group);
    ensure((1..=MOST_GROUPS).contains(&groups), wrong("its number of groups"))?;
    let inode_size = usize::from(le16(bytes, 0x58));
    let inode_fits = inode_size.is_power_of_two() && (128..=block_size).contains(&inode_size);
    ensure(inode_fits, wrong("its inode size"))?;
    let inodes_per_group = u64::from(le32(bytes, 0x28));
    ensure((8..=bits).contains(&inodes_per_group), wrong("its number of inodes in a group"))?;
    let descriptor_size = if is_64bit { usize::from(le16(bytes, 0xfe)) } else { 32 };
    let descriptor_fits = descriptor_size.is_power_of_two()
        && (32 + usize::from(is_64bit) * 32..=1024).contains(&descriptor_size);
    ensure(descriptor_fits, wrong("its descriptor size"))?;
    let mut uuid_bytes = [0; 16];
    uuid_bytes.copy_from_slice(&bytes[0x68..0x78]);
    let seed =
        if incompat & INCOMPAT_CSUM_SEED != 0 { le32(bytes, 0x270) } else { crc32c(u32::MAX, &uuid_bytes) };
    let both = RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM;
    ensure(ro_compat & both != both, wrong("its kinds of checksums"))?;
    Ok(Geometry {
        uuid: uuid(bytes, 0x68),
        uuid_bytes,
        block_size,
        blocks,
        first_block,
        cluster_bits,
        clusters_per_group,
        inodes_per_group,
        inode_size,
        descriptor_size,
        reserved_descriptor_blocks: u64::from(le16(bytes, 0xce)),
        first_meta_group: u64::from(le32(bytes, 0x104)),
        journal_inode: le32(bytes, 0xe0),
        seed,
        compat,
        incompat: incompat & !PASSING_INCOMPAT,
        ro_compat: ro_compat & !PASSING_RO_COMPAT,
    })
}

impl Geometry {
    pub(super) fn checksums(&self) -> Checksums {
        if self.ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
            Checksums::All
        } else if self.ro_compat & RO_COMPAT_GDT_CSUM != 0 {
            Checksums::Descriptors
        } else {
            Checksums::None
        }
    }

    pub(super) fn uuid_bytes(&self) -> &[u8] {
        &self.uuid_bytes
    }

    /// Returns the size in bytes.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.blocks.checked_mul(u64::try_from(self.block_size).ok()?)
    }

    pub(super) fn blocks_per_group(&self) -> u64 {
        self.clusters_per_group << self.cluster_bits
    }

    pub(super) fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.blocks_per_group())
    }

    /// Returns the blocks of a group; the last one may be short.
    pub(super) fn group(&self, group: u64) -> Range<u64> {
        let start = self.first_block + group * self.blocks_per_group();
        start..(start + self.blocks_per_group()).min(self.blocks)
    }

    /// Returns the number of blocks in the inode table of one group.
    pub(super) fn inode_table_blocks(&self) -> u64 {
        (self.inodes_per_group * u64::try_from(self.inode_size).unwrap_or(0))
            .div_ceil(u64::try_from(self.block_size).unwrap_or(1))
    }

    /// Returns the number of descriptors in one block.
    pub(super) fn descriptors_per_block(&self) -> u64 {
        u64::try_from(self.block_size / self.descriptor_size).unwrap_or(1)
    }

    fn has_meta_groups(&self) -> bool {
        self.incompat & INCOMPAT_META_BG != 0
    }

    /// True if the group has a superblock or its backup.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        group <= 1 || self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 || [3, 5, 7].into_iter().any(is_power_of)
    }

    /// Returns the block of the descriptors of the groups from `index` times the descriptors in a block.
    pub(super) fn descriptor_block(&self, index: u64) -> u64 {
        if !self.has_meta_groups() || index < self.first_meta_group {
            return self.first_block + 1 + index;
        }
        let group = index * self.descriptors_per_block();
        self.group(group).start + u64::from(self.has_superblock(group))
    }

    /// Returns the blocks at the start of a group that hold the superblock and descriptors or their backups,
    /// and the room that is reserved for more descriptors.
    pub(super) fn base_blocks(&self, group: u64) -> Range<u64> {
        let start = self.group(group).start;
        let per_block = self.descriptors_per_block();
        let own = u64::from(self.has_superblock(group));
        let meta = group / per_block;
        let count = if self.has_meta_groups() && meta >= self.first_meta_group {
            own + u64::from([0, 1, per_block - 1].contains(&(group % per_block)))
        } else if own == 1 {
            let blocks = if self.has_meta_groups() {
                self.first_meta_group
            } else {
                self.groups().div_ceil(per_block)
            };
            own + blocks + self.reserved_descriptor_blocks
        } else {
            0
        };
        start..(start + count).min(self.blocks)
    }
}
