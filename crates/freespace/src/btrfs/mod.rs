//! btrfs on one device.
//!
//! Trees are copied on write, and what a transaction frees is not used again before the superblock of that
//! transaction is on the disk. So the extent tree of the superblock is exact for all committed data, also
//! on a mounted filesystem. It does not have what was synced since: the nodes of the log trees, and the
//! extents that those list, are free by the extent tree, and a mount would read them. They count as used.

mod chunks;
mod superblock;
mod tree;

use std::ops::Range;

use crate::bytes::le64;
use crate::disk::Disk;
use crate::doubt::{Doubt, Stop, ensure};
use crate::probe::Evidence;
use crate::ranges::RangeSet;

use chunks::{CHUNK_ITEM, Chunks, damaged};
use superblock::{Root, Superblock};
use tree::{Key, Trees, Visited};

/// Object ids of trees in the root tree: of extents, of devices, of a balance (`BTRFS_BALANCE_OBJECTID`), of
/// what it moves, and of the log (`BTRFS_TREE_LOG_OBJECTID`).
const EXTENT_TREE: u64 = 2;
const DEVICE_TREE: u64 = 4;
const BALANCE: u64 = u64::MAX - 3;
const TREE_RELOCATION: u64 = u64::MAX - 7;
const TREE_LOG: u64 = u64::MAX - 5;

/// Types of items.
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const DEVICE_REPLACE: u8 = 250;
/// Types in a log tree that refer to no extent: inodes, references to them, extended attributes, verity,
/// orphans, ranges of directories, entries of directories, checksums.
const LOGGED: [u8; 13] = [1, 12, 13, 24, 36, 37, 48, 60, 72, 84, 96, 128, ROOT_ITEM];
/// Types of a file's extent: data in the item itself, a written one, a preallocated one.
const INLINE: u8 = 0;
const KINDS_ON_DISK: [u8; 2] = [1, 2];

/// Bytes at the start of the device that btrfs never uses (`BTRFS_DEVICE_RANGE_RESERVED`).
const RESERVED: u64 = 1 << 20;
/// Longest list of what log trees refer to.
const MOST_LOGGED: usize = 1 << 21;

/// Finds the free bytes of the filesystem on `disk`. Returns its UUID, the bytes, and the evidence.
pub(crate) fn probe(disk: &dyn Disk) -> Result<(String, RangeSet, Evidence), Stop> {
    let superblock = Superblock::read(disk)?;
    ensure(superblock.device_bytes <= disk.size(), || Doubt::TooLarge)?;
    let chunks = all_chunks(disk, &superblock)?;
    let trees = Trees { disk, superblock: &superblock, chunks: &chunks, newest: superblock.generation };
    let (extents, devices) = roots(&trees)?;
    refuse_replacement(&trees, devices)?;
    let (free, count) = free_addresses(&trees, extents)?;
    let logged = logged(&trees)?;
    let free = free.without(&logged);

    let copies =
        superblock::PLACES.map(|place| place..place + u64::try_from(superblock::LENGTH).unwrap_or(0));
    let used: Vec<Range<u64>> = std::iter::once(0..RESERVED).chain(copies).collect();
    let unused =
        RangeSet::union_of(chunks.0.iter().flat_map(chunks::Chunk::places).chain(used.clone()).collect());
    let mut ranges: Vec<Range<u64>> = unused.outside(0..superblock.device_bytes).collect();
    for chunk in &chunks.0 {
        for range in free.within(chunk.logical.clone()) {
            ranges.extend(chunk.placed(&range));
        }
    }
    let free = RangeSet::union_of(ranges).without(&RangeSet::union_of(used));
    let evidence =
        Evidence::Btrfs { generation: superblock.generation, extents: count, logged: logged.total() };
    Ok((superblock.uuid, free, evidence))
}

/// Reads the chunk tree, by the chunks that the superblock lists.
fn all_chunks(disk: &dyn Disk, superblock: &Superblock) -> Result<Chunks, Stop> {
    let system = Chunks::system(superblock)?;
    let mut all = Chunks::system(superblock)?;
    let trees = Trees { disk, superblock, chunks: &system, newest: superblock.generation };
    trees.walk(superblock.chunk_root, &mut |found| match found {
        Visited::Item(key, item) if key.kind == CHUNK_ITEM => all.add(superblock, key.offset, item).map(drop),
        _ => Ok(()),
    })?;
    all.check_copies()?;
    Ok(all)
}

/// Finds the extent tree and the device tree in the root tree.
fn roots(trees: &Trees<'_>) -> Result<(Root, Root), Stop> {
    let (mut extents, mut devices) = (None, None);
    trees.walk(trees.superblock.root, &mut |found| {
        let Visited::Item(key, item) = found else { return Ok(()) };
        ensure(![BALANCE, TREE_RELOCATION].contains(&key.object), || {
            Doubt::Unsupported("a balance that is under way")
        })?;
        match key {
            Key { object: EXTENT_TREE, kind: ROOT_ITEM, .. } => extents = Some(root(item)?),
            Key { object: DEVICE_TREE, kind: ROOT_ITEM, .. } => devices = Some(root(item)?),
            _ => {}
        }
        Ok(())
    })?;
    let missing = || damaged("the root tree");
    Ok((extents.ok_or_else(missing)?, devices.ok_or_else(missing)?))
}

/// Reads the root that a root item describes.
fn root(item: &[u8]) -> Result<Root, Stop> {
    let level = item.get(238).ok_or_else(|| damaged("a root item"))?;
    Ok(Root { address: le64(item, 176), level: *level })
}

/// Refuses a device that is being replaced.
fn refuse_replacement(trees: &Trees<'_>, devices: Root) -> Result<(), Stop> {
    trees.walk(devices, &mut |found| match found {
        // States: never started 0, finished 2, cancelled 3.
        Visited::Item(key, item) if key.kind == DEVICE_REPLACE => {
            ensure([0, 2, 3].contains(&le64(item, 32)), || {
                Doubt::Unsupported("a device replacement that is under way")
            })
        }
        _ => Ok(()),
    })
}

/// Returns the logical addresses in chunks that the extent tree has no extent for, and the number of extents.
fn free_addresses(trees: &Trees<'_>, extents: Root) -> Result<(RangeSet, u64), Stop> {
    let node_size = u64::try_from(trees.superblock.node_size).unwrap_or(u64::MAX);
    let mut free = RangeSet::default();
    let mut chunks = trees.chunks.0.iter();
    let mut chunk = chunks.next();
    let (mut at, mut count) = (chunk.map_or(0, |chunk| chunk.logical.start), 0);
    trees.walk(extents, &mut |found| {
        let Visited::Item(key, _) = found else { return Ok(()) };
        let length = match key.kind {
            EXTENT_ITEM => key.offset,
            METADATA_ITEM => node_size,
            _ => return Ok(()),
        };
        let end = key.object.checked_add(length).filter(|end| *end > key.object);
        let extent = key.object..end.ok_or_else(|| damaged("an extent"))?;
        count += 1;
        while let Some(own) = chunk.filter(|own| own.logical.end <= extent.start) {
            free.push(at..own.logical.end);
            chunk = chunks.next();
            at = chunk.map_or(u64::MAX, |next| next.logical.start);
        }
        let inside = chunk.is_some_and(|own| extent.end <= own.logical.end) && extent.start >= at;
        ensure(inside, || damaged("an extent"))?;
        free.push(at..extent.start);
        at = extent.end;
        Ok(())
    })?;
    while let Some(own) = chunk {
        free.push(at..own.logical.end);
        chunk = chunks.next();
        at = chunk.map_or(u64::MAX, |next| next.logical.start);
    }
    Ok((free, count))
}

/// Returns the logical addresses of all nodes of the log trees, and of the extents that they list.
fn logged(trees: &Trees<'_>) -> Result<RangeSet, Stop> {
    let Some(log_root) = trees.superblock.log_root else { return Ok(RangeSet::default()) };
    // What is logged belongs to the transaction that was under way.
    let trees = Trees { newest: trees.superblock.generation.saturating_add(1), ..*trees };
    let node_size = u64::try_from(trees.superblock.node_size).unwrap_or(u64::MAX);
    let (mut used, mut roots) = (Vec::new(), Vec::new());
    trees.walk(log_root, &mut |found| {
        match found {
            Visited::Node(address) => add(&mut used, address, node_size)?,
            Visited::Item(key, item) => {
                let known = key.object == TREE_LOG && key.kind == ROOT_ITEM;
                ensure(known, || damaged("an item of the log"))?;
                roots.push(root(item)?);
            }
        }
        Ok(())
    })?;
    for root in roots {
        trees.walk(root, &mut |found| match found {
            Visited::Node(address) => add(&mut used, address, node_size),
            Visited::Item(Key { kind: EXTENT_DATA, .. }, item) => {
                let kind = item.get(20).copied().unwrap_or(u8::MAX);
                if kind == INLINE {
                    return Ok(());
                }
                ensure(KINDS_ON_DISK.contains(&kind), || damaged("an extent of the log"))?;
                // Address 0 is a hole.
                match le64(item, 21) {
                    0 => Ok(()),
                    address => add(&mut used, address, le64(item, 29)),
                }
            }
            Visited::Item(key, _) => ensure(LOGGED.contains(&key.kind), || damaged("an item of the log")),
        })?;
    }
    for range in &used {
        trees.chunks.of(range)?;
    }
    Ok(RangeSet::union_of(used))
}

fn add(to: &mut Vec<Range<u64>>, address: u64, length: u64) -> Result<(), Stop> {
    ensure(to.len() < MOST_LOGGED, || damaged("the length of the log"))?;
    let end = address.checked_add(length).filter(|end| *end > address);
    to.push(address..end.ok_or_else(|| damaged("an extent of the log"))?);
    Ok(())
}
