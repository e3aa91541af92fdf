//! Image in a bucket: the only bridge from the reading threads to the asynchronous tasks of the store.

use std::sync::Arc;

use snapferry_base::units::{ByteCount, HostOffset, MIB, to_u64, to_usize};
use snapferry_qcow2::{FileError, ImageFile};
use tokio::runtime::Handle;

use crate::store::{ObjectKey, ObjectMeta, ObjectStore, Operation, StoreError};

/// Most bytes in one request. A table or a batch that is longer is requested in pieces, so that a broken
/// connection costs little.
pub(super) const LONGEST_RANGE: u64 = 8 * MIB;

/// Object that holds an image. Reads accept only the version that was opened: once the object is replaced,
/// they fail.
pub struct StoredImage {
    store: Arc<dyn ObjectStore>,
    key: ObjectKey,
    url: String,
    meta: ObjectMeta,
    runtime: Handle,
}

impl StoredImage {
    /// Requests the size and the version of the object from the store. Blocks, and must not be called from a
    /// thread of the runtime; this holds for reads too.
    ///
    /// # Errors
    /// With the error of the store, or [`StoreError::NoSuchKey`] if there is no such object.
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
