//! Trees of btrfs: nodes with checksums, keys in order.

use super::chunks::{Chunks, damaged};
use super::superblock::{Root, Superblock};
use crate::bytes::{le32, le64};
use crate::crc::{agrees, crc32c};
use crate::disk::Disk;
use crate::doubt::{Stop, ensure};

/// Deepest level of a root (`BTRFS_MAX_LEVEL` is 8).
const DEEPEST: u8 = 7;
/// Lengths of a node's header, a key, an item's place in a leaf, and a pointer to a child.
const HEADER: usize = 101;
const KEY: usize = 17;
const ITEM: usize = KEY + 8;
const POINTER: usize = KEY + 16;

/// Key of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    fn parse(bytes: &[u8]) -> Self {
        Self { object: le64(bytes, 0), kind: bytes.get(8).copied().unwrap_or(0), offset: le64(bytes, 9) }
    }
}

/// Event of a walk over a tree.
pub(super) enum Visited<'n> {
    /// Logical address of a node, of whichever level.
    Node(u64),
    /// Item of a leaf.
    Item(Key, &'n [u8]),
}

/// Reader of trees.
pub(super) struct Trees<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) superblock: &'a Superblock,
    pub(super) chunks: &'a Chunks,
    /// Newest transaction that a node may be of.
    pub(super) newest: u64,
}

/// Receiver of the events of a walk.
pub(super) type Visit<'v> = &'v mut dyn FnMut(Visited<'_>) -> Result<(), Stop>;

impl Trees<'_> {
    /// Walks over a tree, in the order of its keys.
    pub(super) fn walk(&self, root: Root, visit: Visit<'_>) -> Result<(), Stop> {
        ensure(root.level <= DEEPEST, || damaged("the level of a tree"))?;
        self.node(root, None, &mut None, visit)
    }

    /// Walks over a node, whose first key is `first` if its parent is known. `last` is the last key before.
    fn node(
        &self,
        node: Root,
        first: Option<(Key, u64)>,
        last: &mut Option<Key>,
        visit: Visit<'_>,
    ) -> Result<(), Stop> {
        let bytes = self.read(node, first.map(|(_, generation)| generation))?;
        visit(Visited::Node(node.address))?;
        let count = usize::try_from(le32(&bytes, 0x60)).unwrap_or(usize::MAX);
        let slot = if node.level == 0 { ITEM } else { POINTER };
        let room = (bytes.len() - HEADER) / slot;
        // The root of an empty tree alone has no items.
        let sound = count <= room && (count > 0 || first.is_none() && node.level == 0);
        ensure(sound, || damaged("the number of items of a node"))?;
        for (index, entry) in bytes[HEADER..HEADER + count * slot].chunks_exact(slot).enumerate() {
            let key = Key::parse(entry);
            if let (0, Some((expected, _))) = (index, first) {
                ensure(key == expected, || damaged("the first key of a node"))?;
            }
            if node.level == 0 {
                ensure(last.is_none_or(|last| last < key), || damaged("the order of keys"))?;
                *last = Some(key);
                let at = usize::try_from(le32(entry, KEY)).unwrap_or(usize::MAX);
                let length = usize::try_from(le32(entry, KEY + 4)).unwrap_or(usize::MAX);
                let from = HEADER.saturating_add(at);
                let item = bytes.get(from..from.saturating_add(length));
                visit(Visited::Item(key, item.ok_or_else(|| damaged("the place of an item"))?))?;
            } else {
                ensure(last.is_none_or(|last| last < key), || damaged("the order of keys"))?;
                let child = Root { address: le64(entry, KEY), level: node.level - 1 };
                self.node(child, Some((key, le64(entry, KEY + 8))), last, visit)?;
            }
        }
        Ok(())
    }

    /// Reads a node and checks its header. Its parent names the transaction that wrote it.
    fn read(&self, node: Root, generation: Option<u64>) -> Result<Vec<u8>, Stop> {
        let size = self.superblock.node_size;
        let length = u64::try_from(size).unwrap_or(u64::MAX);
        let end = node.address.checked_add(length).ok_or_else(|| damaged("the address of a node"))?;
        let range = node.address..end;
        let place = self.chunks.of(&range)?.placed(&range).next().ok_or_else(|| damaged("a chunk"))?;
        let mut bytes = vec![0; size];
        self.disk.read_at(place.start, &mut bytes)?;
        ensure(agrees(!crc32c(u32::MAX, &bytes[0x20..]), le32(&bytes, 0)), || {
            damaged("the checksum of a node")
        })?;
        let own = le64(&bytes, 0x50);
        let sound = bytes[0x20..0x30] == self.superblock.node_uuid
            && le64(&bytes, 0x30) == node.address
            && bytes[0x64] == node.level
            && own <= self.newest
            && generation.is_none_or(|generation| generation == own);
        ensure(sound, || damaged("the header of a node"))?;
        Ok(bytes)
    }
}
