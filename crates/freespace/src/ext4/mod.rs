//! ext4, and ext3 and ext2, which are the same format with less in it.
//!
//! The allocation maps are the block bitmaps of the groups. On a filesystem that was in use, the newest
//! bitmaps are in the journal, and those on the disk are older by minutes; neither checksums nor the state in
//! the superblock show it. So the journal is replayed first, in memory. A block then counts as free if all
//! of these hold:
//!
//! - its bit is clear in the replayed bitmap, in the one on the disk, and in every copy in the journal;
//! - every group's descriptor, bitmap and number of free blocks agree with each other after the replay;
//! - no inode that is in use refers to it, nor do the filesystem's own tables.

mod groups;
mod inodes;
mod superblock;
mod walk;

use crate::blocks::{Blocks, State};
use crate::disk::{Disk, read_up_to};
use crate::doubt::{Doubt, Stop, ensure};
use crate::jbd2::{self, Piece, Replay};
use crate::probe::Evidence;
use crate::ranges::RangeSet;

use groups::{Bitmaps, Groups};
use inodes::{Inode, Inodes};
use superblock::Superblock;

/// Finds the free bytes of the filesystem on `disk`. Returns its UUID, the bytes, and the evidence.
pub(crate) fn probe(disk: &dyn Disk) -> Result<(String, RangeSet, Evidence), Stop> {
    let bytes = read_up_to(disk, superblock::OFFSET, superblock::LENGTH)?;
    let on_disk = Superblock::parse(&bytes)?;
    let geometry = &on_disk.geometry;
    ensure(geometry.bytes().is_some_and(|bytes| bytes <= disk.size()), || Doubt::TooLarge)?;
    on_disk.check_errors()?;

    let mut blocks = Blocks::new(disk, geometry.block_size, geometry.blocks);
    let groups_on_disk = Groups::read(geometry, &blocks, State::OnDisk, false)?;
    let replay = match on_disk.journal()? {
        None => Replay::default(),
        Some(number) => {
            let inodes = Inodes { geometry, blocks: &blocks, groups: &groups_on_disk, state: State::OnDisk };
            let pieces = journal_pieces(&inodes, u64::from(number))?;
            jbd2::replay(&blocks, &pieces, on_disk.needs_recovery)?
        }
    };
    let (transactions, copies) = (replay.transactions, replay.copies);
    blocks.replay(replay.overlay);
    check_superblocks(&on_disk, &blocks, &copies)?;

    let groups = Groups::read(geometry, &blocks, State::Replayed, true)?;
    ensure(groups.places_as(&groups_on_disk), || Doubt::Resized)?;
    let metadata = groups.metadata(geometry);
    let bitmaps = Bitmaps {
        geometry,
        blocks: &blocks,
        on_disk: &groups_on_disk,
        replayed: &groups,
        metadata: &metadata,
        copies: &copies,
    };
    let free = bitmaps.free()?;
    let in_free = metadata.as_slice().iter().find_map(|range| free.first_within(range.clone()));
    if let Some(block) = in_free {
        return Err(Doubt::MetadataFree { block }.into());
    }
    let inodes = Inodes { geometry, blocks: &blocks, groups: &groups, state: State::Replayed };
    let walked = walk::check_references(&inodes, &free)?;

    let size = u64::try_from(geometry.block_size).unwrap_or(0);
    let mut free_bytes = RangeSet::default();
    free.as_slice().iter().for_each(|range| free_bytes.push(range.start * size..range.end * size));
    let evidence = Evidence::Ext4 { replayed: transactions, groups: geometry.groups(), inodes: walked };
    Ok((geometry.uuid.clone(), free_bytes, evidence))
}

/// Returns where the journal lies, as both the kernel and e2fsck find it: from the inode on the disk.
fn journal_pieces(inodes: &Inodes<'_>, number: u64) -> Result<Vec<Piece>, Stop> {
    let inode: Inode = inodes.read(number)?.ok_or(Doubt::Journal("has no inode"))?;
    let mut pieces: Vec<Piece> = Vec::new();
    inodes.for_each_piece(&inode, &mut |piece| {
        if let Some(logical) = piece.logical {
            pieces.push(Piece {
                logical: logical..logical + (piece.blocks.end - piece.blocks.start),
                physical: piece.blocks.start,
            });
        }
        Ok(())
    })?;
    let ordered = pieces.windows(2).all(|pair| pair[0].logical.end <= pair[1].logical.start);
    ensure(ordered, || Doubt::Journal("has blocks in disorder"))?;
    Ok(pieces)
}

/// Checks that no superblock in the journal has another geometry, and that the newest one knows of no
/// errors.
fn check_superblocks(
    on_disk: &Superblock,
    blocks: &Blocks<'_>,
    copies: &[crate::blocks::Copy],
) -> Result<(), Stop> {
    let size = u64::try_from(blocks.size()).unwrap_or(u64::MAX);
    let number = superblock::OFFSET / size;
    let within = usize::try_from(superblock::OFFSET % size).unwrap_or(0);
    let parse =
        |block: &[u8]| Superblock::parse(block.get(within..within + superblock::LENGTH).unwrap_or(&[]));
    for copy in copies.iter().filter(|copy| copy.of == number) {
        let logged = parse(&blocks.read_copy(*copy)?)?;
        ensure(logged.geometry == on_disk.geometry, || Doubt::Resized)?;
        logged.check_errors()?;
    }
    parse(&blocks.read(number, State::Replayed)?)?.check_errors()
}
