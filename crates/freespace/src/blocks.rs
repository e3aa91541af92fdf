//! Blocks of one filesystem: as they lie on the disk, and as they are after a replay of the journal.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use crate::disk::Disk;
use crate::doubt::{Doubt, Stop, ensure};

/// Bytes that one read of a single block fetches at least. With flex_bg, the sixteen bitmaps of a flex group
/// lie side by side: 64 KiB.
const WINDOW: u64 = 64 * 1024;
/// Number of windows that are kept.
const WINDOWS: usize = 8;

/// First bytes of every block of jbd2's own, which the journal's copies of other blocks have not: where a
/// block begins with them, its copy has zeros in their place.
pub(crate) const JBD2_MAGIC: [u8; 4] = 0xC03B_3998_u32.to_be_bytes();

/// Copy of a block in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Block of the filesystem that the copy is of.
    pub(crate) of: u64,
    /// Block of the filesystem where the copy lies, in the journal.
    pub(crate) at: u64,
    /// True if the copy has zeros in place of [`JBD2_MAGIC`].
    pub(crate) escaped: bool,
}

/// State of a filesystem's blocks to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// As they lie on the disk.
    OnDisk,
    /// As they are once the journal has been replayed.
    Replayed,
}

/// Reader of blocks.
pub(crate) struct Blocks<'a> {
    disk: &'a dyn Disk,
    size: usize,
    count: u64,
    /// Newest copy of each block that a replay writes, sorted by block.
    overlay: Vec<Copy>,
    windows: RefCell<Vec<(u64, Vec<u8>)>>,
}

impl<'a> Blocks<'a> {
    /// Reads `count` blocks of `size` bytes, which the disk has.
    pub(crate) fn new(disk: &'a dyn Disk, size: usize, count: u64) -> Self {
        Self { disk, size, count, overlay: Vec::new(), windows: RefCell::default() }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Takes what a replay writes, sorted by block and each block once.
    pub(crate) fn replay(&mut self, overlay: Vec<Copy>) {
        debug_assert!(overlay.windows(2).all(|pair| pair[0].of < pair[1].of), "each block once");
        self.overlay = overlay;
    }

    fn offset(&self, block: u64) -> u64 {
        // The filesystem lies within the disk, whose size is a u64.
        block.saturating_mul(u64::try_from(self.size).unwrap_or(u64::MAX))
    }

    /// Reads one block.
    pub(crate) fn read(&self, block: u64, state: State) -> Result<Vec<u8>, Stop> {
        ensure(block < self.count, || Doubt::Superblock("a block number behind its end"))?;
        if state == State::Replayed
            && let Ok(index) = self.overlay.binary_search_by_key(&block, |copy| copy.of)
        {
            return self.read_copy(self.overlay[index]);
        }
        let mut bytes = vec![0; self.size];
        self.read_raw(block, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads one block from the journal.
    pub(crate) fn read_copy(&self, copy: Copy) -> Result<Vec<u8>, Stop> {
        let mut bytes = self.read(copy.at, State::OnDisk)?;
        if copy.escaped {
            bytes[..JBD2_MAGIC.len()].copy_from_slice(&JBD2_MAGIC);
        }
        Ok(bytes)
    }

    /// Reads blocks that lie side by side, past the windows.
    pub(crate) fn read_run(&self, blocks: Range<u64>, state: State) -> Result<Vec<u8>, Stop> {
        ensure(blocks.start <= blocks.end && blocks.end <= self.count, || {
            Doubt::Superblock("a block number behind its end")
        })?;
        let count = usize::try_from(blocks.end - blocks.start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; count.saturating_mul(self.size)];
        self.disk.read_at(self.offset(blocks.start), &mut bytes)?;
        if state == State::Replayed {
            let from = self.overlay.partition_point(|copy| copy.of < blocks.start);
            for copy in self.overlay[from..].iter().take_while(|copy| copy.of < blocks.end) {
                let at = usize::try_from(copy.of - blocks.start).unwrap_or(0) * self.size;
                bytes[at..at + self.size].copy_from_slice(&self.read_copy(*copy)?);
            }
        }
        Ok(bytes)
    }

    fn read_raw(&self, block: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = self.offset(block);
        let start = offset - offset % WINDOW;
        let within = usize::try_from(offset - start).unwrap_or(0);
        let mut windows = self.windows.borrow_mut();
        let found = match windows.iter().position(|(at, _)| *at == start) {
            Some(found) => windows.remove(found),
            None => {
                let length = WINDOW.min(self.disk.size() - start);
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                self.disk.read_at(start, &mut bytes)?;
                windows.truncate(WINDOWS - 1);
                (start, bytes)
            }
        };
        into.copy_from_slice(&found.1[within..within + into.len()]);
        windows.insert(0, found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replayed_block_comes_from_the_journal_with_its_magic() {
        let disk: Vec<u8> = (0..400_u32).flat_map(|block| [block.to_le_bytes()[0]; 1024]).collect();
        let mut blocks = Blocks::new(&disk, 1024, 400);
        blocks.replay(vec![Copy { of: 5, at: 300, escaped: true }, Copy { of: 7, at: 301, escaped: false }]);
        let mut escaped = vec![300_u32.to_le_bytes()[0]; 1024];
        escaped[..4].copy_from_slice(&JBD2_MAGIC);
        let read = |block, state| blocks.read(block, state).expect("read");
        assert_eq!(read(5, State::Replayed), escaped);
        assert_eq!(read(5, State::OnDisk), [5; 1024]);
        assert_eq!(read(7, State::Replayed), [301_u32.to_le_bytes()[0]; 1024]);
        let run = blocks.read_run(4..8, State::Replayed).expect("read");
        let one_by_one: Vec<u8> = (4..8).flat_map(|block| read(block, State::Replayed)).collect();
        assert_eq!(run, one_by_one);
        assert_eq!(blocks.read_run(4..8, State::OnDisk).expect("read"), disk[4096..8192]);
        assert!(blocks.read(400, State::OnDisk).is_err());
        assert!(blocks.read_run(399..401, State::OnDisk).is_err());
    }
}
