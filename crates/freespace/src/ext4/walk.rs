//! The walk over all inodes: whether what they refer to is in use.

use snapferry_base::units::to_u64;

use super::inodes::{Inode, Inodes};
use crate::bytes::le16;
use crate::doubt::{Doubt, Stop, ensure};
use crate::ranges::RangeSet;

/// Blocks of inode tables that are read at once.
const READ_AT_ONCE: usize = 64;
/// Pieces of files that a walk looks at, beyond the number of the filesystem's blocks. A sound filesystem has
/// fewer, since each block belongs to one file; a made one may refer to the same block again and again.
const SPARE_STEPS: u64 = 1 << 16;

/// Checks that no inode in use refers to a block in `free`, and returns how many there are. A filesystem in
/// which one does was damaged before, and a recovery might bring the reference back.
pub(super) fn check_references(inodes: &Inodes<'_>, free: &RangeSet) -> Result<u64, Stop> {
    let geometry = inodes.geometry;
    let mut walked = 0;
    let mut steps = geometry.blocks.saturating_add(SPARE_STEPS);
    let per_block = u64::try_from(geometry.block_size / geometry.inode_size).unwrap_or(1);
    for (group, descriptor) in inodes.groups.iter() {
        let used = descriptor.used_inodes(geometry);
        if used == 0 {
            continue;
        }
        let marked = inodes.blocks.read(descriptor.inode_bitmap, inodes.state)?;
        let is_marked = |index: u64| {
            let byte = usize::try_from(index / 8).ok().and_then(|at| marked.get(at));
            byte.is_some_and(|byte| byte >> (index % 8) & 1 == 1)
        };
        let table = descriptor.inode_table;
        let end = table + used.div_ceil(per_block);
        let mut index = 0;
        for start in (table..end).step_by(READ_AT_ONCE) {
            let until = end.min(start + to_u64(READ_AT_ONCE));
            let run = inodes.blocks.read_run(start..until, inodes.state)?;
            for bytes in run.chunks_exact(geometry.inode_size) {
                // An inode with links counts even if its bitmap denies it: e2fsck brings those back.
                let in_use = index < used && (is_marked(index) || le16(bytes, 0x1a) > 0);
                let number = group * geometry.inodes_per_group + index + 1;
                index += 1;
                if !in_use {
                    continue;
                }
                let Some(inode) = Inode::new(geometry, number, bytes)? else { continue };
                inodes.for_each_piece(&inode, &mut |held| {
                    steps = steps
                        .checked_sub(1)
                        .ok_or(Doubt::Inode { inode: number, what: "more blocks than the filesystem has" })?;
                    let in_free = free.first_within(held.blocks);
                    ensure(in_free.is_none(), || Doubt::ReferenceToFree {
                        inode: number,
                        block: in_free.unwrap_or_default(),
                    })
                })?;
                walked += 1;
            }
        }
    }
    Ok(walked)
}
