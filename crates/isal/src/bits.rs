//! Writer of bits: the first bit is the lowest of the first byte.

use crate::tables::wide;

/// Bytes that a write may touch at a time. Their contents count only up to the last bit.
pub(crate) const SLOP: usize = size_of::<u64>();

/// Writes bits into the front of a buffer. Callers check beforehand that all they write fits, with [`SLOP`]
/// bytes to spare.
pub(crate) struct Bits<'a> {
    pub(crate) out: &'a mut [u8],
    /// Whole bytes that are written.
    pub(crate) at: usize,
    /// Bits that are not yet a byte, and their number.
    pub(crate) held: u64,
    pub(crate) count: u32,
}

impl<'a> Bits<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, held: 0, count: 0 }
    }

    /// Returns whether so many bits fit.
    pub(crate) fn has_room(&self, bits: u64) -> bool {
        let bytes = (u64::from(self.count) + bits).div_ceil(8);
        usize::try_from(bytes).is_ok_and(|bytes| bytes + SLOP <= self.out.len() - self.at)
    }

    /// Writes the lowest `len` bits of a value that has no others: at most 56.
    pub(crate) fn put(&mut self, value: u64, len: u32) {
        self.held |= value << self.count;
        self.count += len;
        self.out[self.at..self.at + SLOP].copy_from_slice(&self.held.to_le_bytes());
        self.at += wide(self.count / 8);
        self.held >>= self.count & !7;
        self.count &= 7;
    }

    /// Fills up the byte that has been begun.
    pub(crate) fn align(&mut self) {
        if self.count > 0 {
            // put() has written it already.
            self.at += 1;
        }
        (self.held, self.count) = (0, 0);
    }

    /// Writes bytes at the end of a whole one.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Ends the stream. Returns its number of bytes.
    pub(crate) fn finish(mut self) -> usize {
        self.align();
        self.at
    }
}
