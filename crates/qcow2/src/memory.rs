//! Image files in memory, whole or without their bodies.

use std::io;
use std::sync::Arc;

use snapferry_base::units::{ByteCount, HostOffset, to_u64, to_usize};

use crate::image::{FileError, ImageFile};

/// An image file whose bytes are all in memory.
#[derive(Clone, Debug)]
pub struct MemoryFile(Arc<[u8]>);

impl MemoryFile {
    /// Creates a file with these bytes.
    #[must_use]
    pub fn new(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}

impl ImageFile for MemoryFile {
    fn name(&self) -> &str {
        "memory"
    }

    fn size(&self) -> ByteCount {
        ByteCount(to_u64(self.0.len()))
    }

    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        let from = to_usize(at.0);
        match from.checked_add(into.len()).and_then(|end| self.0.get(from..end)) {
            Some(bytes) => {
                into.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(FileError {
                name: self.name().to_owned(),
                at,
                len: to_u64(into.len()),
                source: Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }),
        }
    }
}

/// An image file whose first and last bytes are in memory: the head, and the tables behind the bodies. The
/// bytes between them read as zeros, so it shows where bodies are, and not what they hold.
#[derive(Clone, Debug)]
pub struct HeadAndTables {
    name: String,
    head: Vec<u8>,
    /// Offset of the first byte of `tables`.
    offset: u64,
    tables: Vec<u8>,
}

impl HeadAndTables {
    /// Creates a file that begins with `head`, and ends with `tables` from `offset` on. `name` is for
    /// messages.
    ///
    /// Returns `None` if the two overlap, or the file would end past the largest offset.
    #[must_use]
    pub fn new(name: String, head: Vec<u8>, offset: HostOffset, tables: Vec<u8>) -> Option<Self> {
        let is_behind =
            to_u64(head.len()) <= offset.0 && offset.0.checked_add(to_u64(tables.len())).is_some();
        is_behind.then_some(Self { name, head, offset: offset.0, tables })
    }
}

impl ImageFile for HeadAndTables {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.offset + to_u64(self.tables.len()))
    }

    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        let end = at.0.checked_add(to_u64(into.len())).filter(|&end| end <= self.size().0);
        let end = end.ok_or_else(|| FileError {
            name: self.name.clone(),
            at,
            len: to_u64(into.len()),
            source: Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)),
        })?;
        into.fill(0);
        for (from, piece) in [(0, &self.head), (self.offset, &self.tables)] {
            // The bytes that are both in the piece and in the read.
            let (first, last) = (at.0.max(from), end.min(from + to_u64(piece.len())));
            if first < last {
                into[to_usize(first - at.0)..to_usize(last - at.0)]
                    .copy_from_slice(&piece[to_usize(first - from)..to_usize(last - from)]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_head_and_tables_there_are_zeros() {
        let head_and_tables =
            |offset| HeadAndTables::new("x".to_owned(), vec![1, 2], HostOffset(offset), vec![3, 4, 5]);
        let file = head_and_tables(4).expect("one behind the other");
        assert_eq!(file.size(), ByteCount(7));
        let whole = [1, 2, 0, 0, 3, 4, 5];
        for start in 0..=7 {
            for end in start..=7 {
                let mut read = vec![9; end - start];
                file.read_at(HostOffset(to_u64(start)), &mut read).expect("in the file");
                assert_eq!(read, whole[start..end]);
            }
        }
        for at in [7, 8, u64::MAX] {
            file.read_at(HostOffset(at), &mut [0]).expect_err("past the end");
        }
        assert!(head_and_tables(2).is_some_and(|file| file.size().0 == 5), "an image without bodies");
        assert!(head_and_tables(1).is_none() && head_and_tables(u64::MAX - 2).is_none());
    }

    #[test]
    fn a_read_past_the_end_is_an_error() {
        let file = MemoryFile::new(Arc::from(*b"0123"));
        let mut two = [0; 2];
        file.read_at(HostOffset(2), &mut two).expect("the last two bytes");
        assert_eq!(&two, b"23");
        for at in [3, 4, u64::MAX] {
            let refused = file.read_at(HostOffset(at), &mut two).expect_err("past the end");
            assert_eq!((refused.at, refused.len), (HostOffset(at), 2));
        }
    }
}
