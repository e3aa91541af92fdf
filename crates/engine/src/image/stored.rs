//! An image in a bucket: the one bridge from the reading threads to the store's tasks.

use std::sync::Arc;

use snapferry_base::units::{ByteCount, HostOffset, MIB, to_u64, to_usize};
use snapferry_qcow2::{FileError, ImageFile};
use tokio::runtime::Handle;

use crate::store::{ObjectKey, ObjectMeta, ObjectStore, Operation, StoreError};

/// Bytes in one request at most: a table or a batch that is longer is asked for in pieces, so that a line that breaks costs little.
pub(super) const LONGEST_RANGE: u64 = 8 * MIB;

/// An object that holds an image. Only one version of it is read: once it is replaced, reads fail.
pub struct StoredImage {
    store: Arc<dyn ObjectStore>,
    key: ObjectKey,
    url: String,
    meta: ObjectMeta,
    runtime: Handle,
}

impl StoredImage {
    /// Asks the store for the object's size and version. Blocks, and may not be called from the runtime's own threads; nor may reads.
    ///
    /// # Errors
    /// With the store's error, or [`StoreError::NoSuchKey`] where there is no such object.
    pub fn open(store: Arc<dyn ObjectStore>, key: ObjectKey, runtime: Handle) -> Result<Self, StoreError> {
        let url = store.url(&key);
        let found = runtime.block_on(store.head(&key))?;
        let meta = found.ok_or_else(|| StoreError::NoSuchKey {
            operation: Operation { request: "HeadObject", target: url.clone() },
        })?;
        Ok(Self { store, key, url, meta, runtime })
    }

    fn fill(&self, start: HostOffset, into: &mut [u8]) -> Result<(), StoreError> {
        let mut at = start.0;
        for piece in into.chunks_mut(to_usize(LONGEST_RANGE)) {
            let end = at + to_u64(piece.len());
            let bytes =
                self.runtime.block_on(self.store.get_range(&self.key, at..end, Some(&self.meta.etag)))?;
            if bytes.len() != piece.len() {
                let operation = Operation { request: "GetObject", target: self.url.clone() };
                let reason = format!("bytes {at} to {end} were asked for and {} bytes came", bytes.len());
                return Err(StoreError::Mismatch { operation, reason });
            }
            piece.copy_from_slice(&bytes);
            at = end;
        }
        Ok(())
    }
}

impl ImageFile for StoredImage {
    fn name(&self) -> &str {
        &self.url
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.meta.size)
    }

    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        self.fill(at, into).map_err(|source| FileError {
            name: self.url.clone(),
            at,
            len: to_u64(into.len()),
            source: Box::new(source),
        })
    }
}
