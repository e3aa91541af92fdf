//! A store that does something else than it says, in one way at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Operation, Part, StoreError, StoredPart, Upload, UploadPlan,
};
use snapferry_testkit::memory::MemoryStore;
use tokio::sync::Notify;

/// Lie of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The store does as it says.
    None,
    /// A copy is refused with this status and code.
    Refuse(u16, &'static str),
    /// A copy fails because the base is another version, although HEAD still shows the old one.
    Precondition,
    /// The base is removed before the first copy.
    Remove,
    /// The base is replaced before the first copy.
    Replace,
    /// The base is replaced after the first copy, which succeeds.
    ReplaceLater,
    /// The base is removed after the first copy, which succeeds.
    RemoveLater,
    /// A byte of what is read of the base is another.
    Flip,
    /// Reads of the base are refused.
    RefuseReads,
    /// The list shows the first copied part shorter than it should be.
    CopyShort,
    /// The list shows another checksum of the first copied part.
    ListOtherSum,
    /// The list is refused.
    RefuseList,
    /// The completion is refused with this code.
    RefuseCompletion(&'static str),
    /// No checksum is returned, of a part or of an object.
    NoSums,
    /// No checksum is returned, and other bytes are copied.
    NoSumsOtherBytes,
    /// A copy gets no answer in time.
    TimeOut,
    /// A copy never ends.
    Hang,
    /// A part that is sent is refused.
    RefuseParts,
}

/// Store with one lie about objects under the base's key, and about all copies.
pub struct Liar {
    inner: MemoryStore,
    base: ObjectKey,
    lie: Mutex<Lie>,
    copies: AtomicU32,
    /// Number of uploads with a key that begins with `second`: the first of them has a base.
    attempts: AtomicU32,
    full_runs_fail: AtomicBool,
    /// Told of each copy that hangs.
    copying: Notify,
}

impl Liar {
    pub fn new(base: ObjectKey) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new("images"),
            base,
            lie: Mutex::new(Lie::None),
            copies: AtomicU32::new(0),
            attempts: AtomicU32::new(0),
            full_runs_fail: AtomicBool::new(false),
            copying: Notify::new(),
        })
    }

    /// Changes the lie, for the next conversion.
    pub fn lie(&self, lie: Lie) {
        *self.lie.lock().unwrap_or_else(PoisonError::into_inner) = lie;
        self.copies.store(0, Relaxed);
        self.attempts.store(0, Relaxed);
    }

    /// Waits until a copy hangs. Blocks.
    pub fn wait_for_a_copy(&self) {
        crate::support::runtime().block_on(self.copying.notified());
    }

    fn present(&self) -> Lie {
        *self.lie.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True during the attempt that has a base.
    fn is_on(&self) -> bool {
        self.attempts.load(Relaxed) == 1
    }

    /// Refuses the completion of every upload from now on.
    pub fn full_runs_fail(&self) {
        self.full_runs_fail.store(true, Relaxed);
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    fn refusal(&self, request: &'static str, key: &ObjectKey, status: u16, code: &str) -> StoreError {
        let (operation, code) = (self.operation(request, key), code.to_owned());
        StoreError::Refused { operation, status, code, message: "as planned".into(), retry_after: None }
    }

    fn without_sum(&self, part: StoredPart) -> StoredPart {
        let silent = matches!(self.present(), Lie::NoSums | Lie::NoSumsOtherBytes);
        StoredPart { crc64: part.crc64.filter(|_| !silent), ..part }
    }
}

#[async_trait]
impl ObjectStore for Liar {
    fn url(&self, key: &ObjectKey) -> String {
        self.inner.url(key)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        let silent = matches!(self.present(), Lie::NoSums | Lie::NoSumsOtherBytes);
        let found = self.inner.head(key).await?;
        Ok(found.map(|meta| ObjectMeta { crc64: meta.crc64.filter(|_| !silent), ..meta }))
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.inner.put(key, body).await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        if *key == self.base && self.is_on() {
            if self.present() == Lie::RefuseReads {
                return Err(self.refusal("GetObject", key, 403, "InvalidObjectState"));
            }
            if self.present() == Lie::Flip {
                let mut bytes = self.inner.get_range(key, range, version).await?.to_vec();
                bytes[7] ^= 1;
                return Ok(bytes.into());
            }
        }
        self.inner.get_range(key, range, version).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        if key.as_str().starts_with("second") {
            self.attempts.fetch_add(1, Relaxed);
        }
        self.inner.create_upload(key, plan).await
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        if self.present() == Lie::RefuseParts && self.is_on() {
            return Err(self.refusal("UploadPart", &upload.key, 403, "AccessDenied"));
        }
        self.inner.put_part(upload, part).await.map(|part| self.without_sum(part))
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        let first = self.copies.fetch_add(1, Relaxed) == 0;
        let operation = self.operation("UploadPartCopy", &upload.key);
        let replace = || self.inner.put(&self.base, Bytes::from_static(b"another object"));
        match self.present() {
            Lie::Refuse(status, code) => {
                let (code, message) = (code.to_owned(), "as planned".to_owned());
                return Err(StoreError::CopyRefused { operation, status, code, message });
            }
            Lie::Precondition => {
                return Err(StoreError::Precondition { operation, reason: "as planned".to_owned() });
            }
            Lie::TimeOut => {
                let deadline = std::time::Duration::from_secs(1);
                return Err(StoreError::TimedOut { operation, deadline });
            }
            Lie::Hang => {
                self.copying.notify_one();
                std::future::pending::<()>().await;
            }
            Lie::Remove if first => self.inner.delete(&self.base).await?,
            Lie::Replace if first => replace().await?,
            Lie::NoSumsOtherBytes => {
                let mut bytes = self.inner.get_range(&from.key, part.range.clone(), None).await?.to_vec();
                bytes.iter_mut().for_each(|byte| *byte ^= 1);
                let (number, at) = (part.number, part.at);
                let wrong = Part { number, at, crc64: Crc64::of(&bytes), body: bytes.into() };
                return self.inner.put_part(upload, wrong).await.map(|part| self.without_sum(part));
            }
            _ => {}
        }
        let copied = self.inner.copy_part(upload, part, from).await;
        match self.present() {
            Lie::RemoveLater if first => self.inner.delete(&self.base).await?,
            Lie::ReplaceLater if first => replace().await?,
            _ => {}
        }
        copied.map(|part| self.without_sum(part))
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        self.inner.proves(stored, part)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        if self.is_on() && self.present() == Lie::RefuseList {
            return Err(self.refusal("ListParts", &upload.key, 403, "AccessDenied"));
        }
        let mut parts = self.inner.list_parts(upload).await?;
        // The second part is a copy.
        if let Some(part) = parts.get_mut(1).filter(|_| self.is_on()) {
            match self.present() {
                Lie::CopyShort => part.size -= 1,
                Lie::ListOtherSum => part.crc64 = Some(Crc64(7)),
                _ => {}
            }
        }
        Ok(parts.into_iter().map(|part| self.without_sum(part)).collect())
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        if self.full_runs_fail.load(Relaxed) {
            return Err(self.refusal("CompleteMultipartUpload", &upload.key, 403, "QuotaExceeded"));
        }
        match self.present() {
            Lie::RefuseCompletion(code) if self.is_on() => {
                Err(self.refusal("CompleteMultipartUpload", &upload.key, 400, code))
            }
            Lie::NoSumsOtherBytes if self.is_on() => {
                // A store that keeps no checksums does not compare them.
                let listed = self.inner.list_parts(upload).await?;
                let fold =
                    |sum: Crc64, part: &StoredPart| sum.then(part.crc64.unwrap_or_default(), part.size);
                let crc64 = listed.iter().fold(Crc64::default(), fold);
                self.inner.complete(upload, &listed, &ExpectedObject { crc64, ..whole.clone() }).await
            }
            _ => self.inner.complete(upload, parts, whole).await,
        }
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
