//! Output of `qemu-img measure`: the largest size of an uncompressed image of a disk.

use std::io::{self, Write};

use serde::Serialize;
use snapferry_base::units::{ByteCount, ClusterBits, SECTOR};
use snapferry_qcow2::bitmaps::Bitmap;

use super::map::Stretch;

/// Size of a table entry in bytes.
const ENTRY: u64 = 8;

/// Sizes of an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measured {
    /// Size of the bitmaps. None if the source can't have any.
    #[serde(skip_serializing_if = "Option::is_none")]
    bitmaps: Option<u64>,
    /// Size with the data that is stored now.
    pub required: u64,
    /// Size with every cluster stored.
    pub fully_allocated: u64,
}

/// Source of the disk's data. If it is an image, QEMU reports its bitmaps too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From<'a> {
    /// A size, or a raw disk.
    Raw,
    /// A qcow2 image of version 3, with these bitmaps.
    Image(&'a [Bitmap]),
}

/// Returns the sizes of a raw copy of a disk of `size` bytes.
#[must_use]
pub fn raw(size: u64) -> Measured {
    let size = size.next_multiple_of(SECTOR);
    Measured { bitmaps: None, required: size, fully_allocated: size }
}

/// Returns the sizes of an uncompressed image of a disk of `size` bytes. `stored` of them, in whole clusters,
/// are not known to be zeros.
#[must_use]
pub fn qcow2(size: u64, stored: u64, from: From<'_>, cluster: ClusterBits) -> Measured {
    let virtual_size = cluster.round_up(size.next_multiple_of(SECTOR));
    let fully_allocated = longest(virtual_size, cluster);
    let bitmaps = match from {
        From::Raw => None,
        From::Image(bitmaps) => Some(space_of(bitmaps, ByteCount(size), cluster)),
    };
    Measured { bitmaps, required: fully_allocated - virtual_size + stored, fully_allocated }
}

/// Returns the bytes of the bitmaps, and of the directory that lists them.
fn space_of(bitmaps: &[Bitmap], size: ByteCount, cluster: ClusterBits) -> u64 {
    let spaces = bitmaps.iter().map(|bitmap| bitmap.space(size, cluster));
    let (bytes, directory) =
        spaces.fold((0, 0), |(bytes, directory), (own, entry)| (bytes + own, directory + entry));
    bytes + cluster.round_up(directory)
}

/// Returns the bytes of the disk's clusters that are not known to be zeros.
#[must_use]
pub fn stored(map: &[Stretch], cluster: ClusterBits) -> u64 {
    let (mut counted, mut stored) = (0, 0);
    for data in map.iter().filter_map(Stretch::data) {
        // Counts from the cluster that the range begins in to the end of the one that it ends in, none of
        // them twice.
        let start = (data.start / cluster.size() * cluster.size()).max(counted);
        let end = cluster.round_up(data.end);
        stored += end.saturating_sub(start);
        counted = counted.max(end);
    }
    stored
}

/// Returns QEMU's own bound (`qcow2_calc_prealloc_size`): the header, tables for every cluster, and the
/// clusters.
fn longest(virtual_size: u64, cluster: ClusterBits) -> u64 {
    let per_cluster = cluster.size() / ENTRY;
    let l2_entries = (virtual_size / cluster.size()).next_multiple_of(per_cluster);
    let l1_entries = (l2_entries / per_cluster).next_multiple_of(per_cluster);
    let counted = virtual_size + cluster.size() + (l2_entries + l1_entries) * ENTRY;
    let clusters = counted / cluster.size();
    let per_block = cluster.size() / 2;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let next_blocks = (clusters + table + blocks).div_ceil(per_block);
        let next_table = next_blocks.div_ceil(per_cluster);
        if (next_blocks, next_table) == (blocks, table) {
            return counted + (blocks + table) * cluster.size();
        }
        (blocks, table) = (next_blocks, next_table);
    }
}

impl Measured {
    /// Writes the sizes as `qemu-img measure` prints them for people.
    ///
    /// # Errors
    /// If `to` can't be written to.
    pub fn write_text(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(to, "required size: {}", self.required)?;
        writeln!(to, "fully allocated size: {}", self.fully_allocated)?;
        match self.bitmaps {
            Some(bitmaps) => writeln!(to, "bitmaps size: {bitmaps}"),
            None => Ok(()),
        }
    }
}
