//! An image file in memory.

use std::sync::Arc;

use snapferry_base::units::{ByteCount, HostOffset, to_u64, to_usize};

use crate::image::{FileError, ImageFile};

/// A file in memory.
#[derive(Clone, Debug)]
pub struct MemoryFile(Arc<[u8]>);

impl MemoryFile {
    /// Of these bytes.
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
        let at = to_usize(at.0);
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }
}
