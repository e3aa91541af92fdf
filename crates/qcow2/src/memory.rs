//! An image file in memory.

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

#[cfg(test)]
mod tests {
    use super::*;

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
