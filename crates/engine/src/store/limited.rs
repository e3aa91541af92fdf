//! Store decorator that limits the bytes sent per second. It counts each attempt, so it goes around the store
//! and inside `retrying`.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::clock::Clock;
use snapferry_base::units::{ByteCount, to_u64};

use super::error::StoreError;
use super::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Part, StoredPart, Upload, UploadPlan,
};

/// Store behind a rate limit. A part is sent whole, and the next one waits for as long as a connection of
/// that rate would have needed for it: in any period the store receives at most rate times time, plus one
/// part.
pub struct Limited {
    inner: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    per_second: ByteCount,
    /// Time at which the rate allows the next part, after all that were let through.
    paid_until: Mutex<Option<Instant>>,
}

impl Limited {
    /// Limits uploads to `inner` to `per_second` bytes a second. Zero counts as one.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, per_second: ByteCount, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, per_second: ByteCount(per_second.0.max(1)), paid_until: Mutex::new(None) }
    }

    /// Waits until the rate allows `len` bytes to be sent.
    async fn turn(&self, len: usize) {
        let now = self.clock.instant();
        let start = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let start = paid_until.map_or(now, |paid| paid.max(now));
            *paid_until = Some(start + time_for(len, self.per_second));
            start
        };
        let wait = start.saturating_duration_since(now);
        if !wait.is_zero() {
            self.clock.sleep(wait).await;
        }
    }
}

fn time_for(len: usize, per_second: ByteCount) -> Duration {
    let nanos = u128::from(to_u64(len)) * 1_000_000_000 / u128::from(per_second.0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[async_trait]
impl ObjectStore for Limited {
    fn url(&self, key: &ObjectKey) -> String {
        self.inner.url(key)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        self.inner.head(key).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.turn(body.len()).await;
        self.inner.put(key, body).await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range, version).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        self.inner.create_upload(key, plan).await
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        self.turn(part.body.len()).await;
        self.inner.put_part(upload, part).await
    }

    /// Copies without a wait: the bytes stay in the store.
    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        self.inner.copy_part(upload, part, from).await
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        self.inner.proves(stored, part)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        self.inner.list_parts(upload).await
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        self.inner.complete(upload, parts, whole).await
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        self.inner.abort(upload).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.inner.list(prefix).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.inner.list_uploads(prefix).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_lines_and_large_parts_do_not_overflow() {
        assert_eq!(time_for(5 << 30, ByteCount(1)), Duration::from_secs(5 << 30));
        assert_eq!(time_for(1, ByteCount(u64::MAX)), Duration::ZERO);
    }
}
