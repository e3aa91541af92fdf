//! The disk that is probed, and parts of it.

use std::io;
use std::ops::Range;

/// Disk that holds still: its bytes are those of one moment.
pub trait Disk {
    /// Returns the size in bytes.
    fn size(&self) -> u64;

    /// Fills `into` with the bytes from `offset`. The callers of this crate stay within the size.
    ///
    /// # Errors
    /// If any of the bytes can't be read.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Range of a disk, read as a disk of its own: a partition.
pub(crate) struct Part<'a> {
    disk: &'a dyn Disk,
    range: Range<u64>,
}

impl<'a> Part<'a> {
    /// Takes a range that lies within the disk.
    pub(crate) fn new(disk: &'a dyn Disk, range: Range<u64>) -> Self {
        debug_assert!(range.end <= disk.size(), "a partition ends with its disk");
        Self { disk, range }
    }
}

impl Disk for Part<'_> {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(self.range.start + offset, into)
    }
}

/// Reads up to `length` bytes from `offset`, fewer where the disk ends.
pub(crate) fn read_up_to(disk: &dyn Disk, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let left = usize::try_from(disk.size().saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(left)];
    if !bytes.is_empty() {
        disk.read_at(offset, &mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Disk in memory.
    impl Disk for Vec<u8> {
        fn size(&self) -> u64 {
            u64::try_from(self.len()).expect("it is in memory")
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            let from = usize::try_from(offset).expect("within the disk");
            into.copy_from_slice(&self[from..from + into.len()]);
            Ok(())
        }
    }

    #[test]
    fn a_read_ends_with_the_disk() {
        let disk: Vec<u8> = (0..100).collect();
        let part = Part::new(&disk, 10..20);
        assert_eq!(part.size(), 10);
        assert_eq!(read_up_to(&part, 8, 5).expect("read"), [18, 19]);
        assert_eq!(read_up_to(&part, 11, 5).expect("read"), [0_u8; 0]);
    }
}
