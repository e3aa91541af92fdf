//! The superblock of btrfs.

use crate::bytes::{le16, le32, le64, uuid};
use crate::crc::{agrees, crc32c};
use crate::disk::{Disk, read_up_to};
use crate::doubt::{Doubt, Stop, ensure};

/// Offsets of the superblock and its mirrors in bytes.
pub(super) const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// Length of the superblock in bytes.
pub(super) const LENGTH: usize = 4096;
/// Offset and length of the list of chunks that hold the chunk tree.
const SYSTEM_CHUNKS: usize = 0x32b;
const SYSTEM_CHUNKS_LENGTH: usize = 2048;

/// `incompat`: mixed back references, default subvolume, mixed block groups, LZO, zstd, big metadata,
/// extended references, skinny metadata, no holes, metadata UUID, simple quotas.
const KNOWN_INCOMPAT: u64 =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | INCOMPAT_METADATA_UUID | 0x1_0000;
const INCOMPAT_METADATA_UUID: u64 = 0x400;
/// `compat_ro`: free space tree and its validity, verity, block group tree.
const KNOWN_COMPAT_RO: u64 = 0x1 | 0x2 | 0x4 | 0x8;
/// Flags: written, and nothing else.
const WRITTEN: u64 = 1;

/// Root of a tree: its block and its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) address: u64,
    pub(super) level: u8,
}

/// Superblock.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) uuid: String,
    /// UUID that every node has.
    pub(super) node_uuid: [u8; 16],
    pub(super) generation: u64,
    pub(super) root: Root,
    pub(super) chunk_root: Root,
    /// Root of the trees of what was synced since the last transaction.
    pub(super) log_root: Option<Root>,
    /// Number of this device.
    pub(super) device: u64,
    /// Bytes of this device that the filesystem uses.
    pub(super) device_bytes: u64,
    pub(super) node_size: usize,
    pub(super) system_chunks: Vec<u8>,
}

impl Superblock {
    /// Reads the superblock, and checks that no mirror is newer.
    pub(super) fn read(disk: &dyn Disk) -> Result<Self, Stop> {
        let own = Self::parse(&read_up_to(disk, PLACES[0], LENGTH)?, PLACES[0])?;
        for place in &PLACES[1..] {
            let bytes = read_up_to(disk, *place, LENGTH)?;
            let newer = bytes.len() == LENGTH
                && bytes[0x40..0x48] == *b"_BHRfS_M"
                && le64(&bytes, 0x30) == *place
                && bytes[0x20..0x30] == own.1
                && le64(&bytes, 0x48) > own.0.generation;
            ensure(!newer, || Doubt::Superblock("a mirror of it is newer"))?;
        }
        Ok(own.0)
    }

    /// Returns the superblock and its UUID as bytes.
    fn parse(bytes: &[u8], place: u64) -> Result<(Self, [u8; 16]), Stop> {
        let wrong = |what| move || Doubt::Superblock(what);
        ensure(bytes.len() == LENGTH, wrong("its length"))?;
        ensure(le16(bytes, 0xc4) == 0, || Doubt::Unsupported("btrfs with checksums other than CRC-32C"))?;
        ensure(agrees(!crc32c(u32::MAX, &bytes[0x20..]), le32(bytes, 0)), wrong("its checksum"))?;
        ensure(le64(bytes, 0x30) == place, wrong("its place"))?;
        ensure(le64(bytes, 0x38) == WRITTEN, wrong("its flags"))?;
        let (incompat, compat_ro) = (le64(bytes, 0xbc), le64(bytes, 0xb4));
        for (kind, bits) in
            [("incompat", incompat & !KNOWN_INCOMPAT), ("compat_ro", compat_ro & !KNOWN_COMPAT_RO)]
        {
            let bits = u32::try_from(bits).unwrap_or(u32::MAX);
            ensure(bits == 0, || Doubt::Features { kind, bits })?;
        }
        ensure(le64(bytes, 0x88) == 1, || Doubt::Unsupported("btrfs on several devices"))?;
        let (sector_size, node_size) = (u64::from(le32(bytes, 0x90)), le32(bytes, 0x94));
        let sound = |size: u64| size.is_power_of_two() && (4096..=65536).contains(&size);
        ensure(sound(sector_size) && sound(u64::from(node_size)), wrong("its block sizes"))?;
        let used = usize::try_from(le32(bytes, 0xa0)).unwrap_or(usize::MAX);
        ensure(used <= SYSTEM_CHUNKS_LENGTH, wrong("its list of chunks"))?;
        let mut own_uuid = [0; 16];
        own_uuid.copy_from_slice(&bytes[0x20..0x30]);
        let mut node_uuid = own_uuid;
        if incompat & INCOMPAT_METADATA_UUID != 0 {
            node_uuid.copy_from_slice(&bytes[0x23b..0x24b]);
        }
        let root = |address, level: usize| Root { address: le64(bytes, address), level: bytes[level] };
        let log_root = root(0x60, 0xc8);
        let superblock = Self {
            uuid: uuid(bytes, 0x20),
            node_uuid,
            generation: le64(bytes, 0x48),
            root: root(0x50, 0xc6),
            chunk_root: root(0x58, 0xc7),
            log_root: (log_root.address != 0).then_some(log_root),
            device: le64(bytes, 0xc9),
            device_bytes: le64(bytes, 0xc9 + 8),
            node_size: usize::try_from(node_size).unwrap_or(0),
            system_chunks: bytes[SYSTEM_CHUNKS..SYSTEM_CHUNKS + used].to_vec(),
        };
        Ok((superblock, own_uuid))
    }
}
