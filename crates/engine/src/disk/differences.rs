//! Differences between two disks.

use serde::Serialize;
use snapferry_base::units::{GuestOffset, SECTOR, to_u64, to_usize};

use crate::compress::is_zero;

/// Most differences that are kept, the first ones on the disk. The others are only counted.
const KEPT: usize = 16;

/// One range that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// Offset of the first byte that differs.
    pub offset: GuestOffset,
    /// Bytes from there up to and including the last one that differs.
    pub length: u64,
}

/// All differences between two disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first ranges that differ, in order. A range that crosses a multiple of 2 MiB counts as two.
    pub first: Vec<Difference>,
    /// Number of all ranges that differ.
    pub count: u64,
}

impl Differences {
    /// True if nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn add(&mut self, found: Vec<Difference>) {
        self.count += to_u64(found.len());
        self.first.extend(found);
        self.first.sort_unstable();
        self.first.truncate(KEPT);
    }
}

/// Returns the ranges where `one` differs from `other`, or from zeros. Differences in adjacent sectors are
/// joined into one. `start` is the disk offset at which both begin.
pub(crate) fn differences(one: &[u8], other: Option<&[u8]>, start: GuestOffset) -> Vec<Difference> {
    let same = match other {
        Some(other) => one == other,
        None => is_zero(one),
    };
    if same {
        return Vec::new();
    }
    let sector = to_usize(SECTOR);
    let zeros = vec![0; sector];
    let mut found: Vec<Difference> = Vec::new();
    for (number, piece) in one.chunks(sector).enumerate() {
        let at = number * sector;
        let against = other.map_or(&zeros[..piece.len()], |other| &other[at..at + piece.len()]);
        let differs = |index: &usize| piece[*index] != against[*index];
        let Some(first) = (0..piece.len()).find(differs) else { continue };
        let last = (0..piece.len()).rev().find(differs).unwrap_or(first);
        let (offset, end) = (start + to_u64(at + first), start + (to_u64(at + last) + 1));
        match found.last_mut() {
            Some(before) if (before.offset + before.length + SECTOR) > offset => {
                before.length = end.0 - before.offset.0;
            }
            _ => found.push(Difference { offset, length: end.0 - offset.0 }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones_are_kept_in_order_and_all_are_counted() {
        let mut all = Differences::default();
        for offset in (0..40).rev() {
            all.add(vec![Difference { offset: GuestOffset(offset * 4096), length: 1 }]);
        }
        assert_eq!((all.count, all.first.len()), (40, KEPT));
        assert_eq!(all.first.last().map(|last| last.offset), Some(GuestOffset(15 * 4096)));
    }

    #[test]
    fn a_stretch_is_told_to_the_byte_and_neighbours_are_one() {
        let mut disk = vec![0; 8192];
        for at in [100, 700, 4000] {
            disk[at] = 1;
        }
        let at = |found: Vec<Difference>| {
            found.iter().map(|found| (found.offset.0, found.length)).collect::<Vec<_>>()
        };
        assert_eq!(
            at(differences(&disk, None, GuestOffset(1 << 20))),
            [((1 << 20) + 100, 1), ((1 << 20) + 700, 1), ((1 << 20) + 4000, 1)]
        );
        disk[600] = 1;
        assert_eq!(at(differences(&disk, Some(&[0; 8192]), GuestOffset(0))), [(100, 601), (4000, 1)]);
        assert!(differences(&disk, Some(&disk.clone()), GuestOffset(0)).is_empty());
    }
}
