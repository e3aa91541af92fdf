//! A store whose requests fail as a test's script specifies.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Part, StoreError, StoredPart, Upload, UploadPlan,
};

/// Fault of one request.
#[derive(Debug)]
pub enum Fault {
    /// The request has no effect and returns this error.
    Fail(StoreError),
    /// The request takes effect, but returns this error.
    ApplyThen(StoreError),
    /// The request never returns.
    Hang,
    /// The request panics.
    Panic,
}

#[derive(Default)]
struct Script {
    faults: HashMap<&'static str, VecDeque<Fault>>,
    counts: HashMap<&'static str, u32>,
    cut: Option<usize>,
    hide_part: bool,
    late_parts: u32,
}

/// Store that passes requests on to another store, except those with a fault in the script. Requests have
/// S3's names.
pub struct ScriptedStore {
    inner: Arc<dyn ObjectStore>,
    script: Mutex<Script>,
}

impl ScriptedStore {
    /// Makes a store without faults.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, script: Mutex::default() }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fault for the next request of this name that has none yet.
    pub fn next(&self, request: &'static str, fault: Fault) {
        self.script().faults.entry(request).or_default().push_back(fault);
    }

    /// Cuts the content that the next GetObject returns to this length.
    pub fn cut_next(&self, bytes: usize) {
        self.script().cut = Some(bytes);
    }

    /// Leaves out the last part in the next list of an upload's parts.
    pub fn hide_a_part(&self) {
        self.script().hide_part = true;
    }

    /// The next `times` aborts of an upload succeed but keep its parts, as if the parts had arrived after the
    /// abort.
    pub fn late_parts(&self, times: u32) {
        self.script().late_parts = times;
    }

    /// Removes the faults that have not occurred yet.
    pub fn clear(&self) {
        self.script().faults.clear();
    }

    /// Returns the number of requests of this name so far.
    #[must_use]
    pub fn count(&self, request: &str) -> u32 {
        self.script().counts.get(request).copied().unwrap_or(0)
    }

    /// Returns the store that gets the requests.
    #[must_use]
    pub fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    async fn run<T>(
        &self,
        request: &'static str,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut script = self.script();
            *script.counts.entry(request).or_default() += 1;
            script.faults.get_mut(request).and_then(VecDeque::pop_front)
        };
        match fault {
            None => work.await,
            Some(Fault::Fail(err)) => Err(err),
            Some(Fault::ApplyThen(err)) => {
                work.await?;
                Err(err)
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Panic) => panic!("as planned"),
        }
    }
}

#[async_trait]
impl ObjectStore for ScriptedStore {
    fn url(&self, key: &ObjectKey) -> String {
        self.inner.url(key)
    }
    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        self.run("HeadObject", self.inner.head(key)).await
    }
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.run("PutObject", self.inner.put(key, body)).await
    }
    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        let bytes = self.run("GetObject", self.inner.get_range(key, range, version)).await?;
        let cut = self.script().cut.take();
        Ok(cut.map_or(bytes.clone(), |len| bytes.slice(..len.min(bytes.len()))))
    }
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.run("DeleteObject", self.inner.delete(key)).await
    }
    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        self.run("CreateMultipartUpload", self.inner.create_upload(key, plan)).await
    }
    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        self.run("UploadPart", self.inner.put_part(upload, part)).await
    }
    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        self.run("UploadPartCopy", self.inner.copy_part(upload, part, from)).await
    }
    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        self.inner.proves(stored, part)
    }
    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        let mut parts = self.run("ListParts", self.inner.list_parts(upload)).await?;
        if std::mem::take(&mut self.script().hide_part) {
            parts.pop();
        }
        Ok(parts)
    }
    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        expected: &ExpectedObject,
    ) -> Result<(), StoreError> {
        self.run("CompleteMultipartUpload", self.inner.complete(upload, parts, expected)).await
    }
    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        let late = {
            let mut script = self.script();
            let late = script.late_parts > 0;
            script.late_parts = script.late_parts.saturating_sub(1);
            late
        };
        let abort = async { if late { Ok(()) } else { self.inner.abort(upload).await } };
        self.run("AbortMultipartUpload", abort).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.run("ListObjectsV2", self.inner.list(prefix)).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.run("ListMultipartUploads", self.inner.list_uploads(prefix)).await
    }
}
