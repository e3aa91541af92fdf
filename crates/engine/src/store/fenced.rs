//! Store decorator that changes nothing after this process has lost the ownership of the work. It checks the
//! ownership for each attempt, so it goes inside `retrying`.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::fence::{Fence, Fenced};

use super::error::{Operation, StoreError};
use super::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Part, StoredPart, Upload, UploadPlan,
};

/// Store behind a fence. Reads pass without a check.
pub struct FencedStore {
    inner: Arc<dyn ObjectStore>,
    fence: Arc<dyn Fence>,
}

impl FencedStore {
    /// Creates the decorator around `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, fence: Arc<dyn Fence>) -> Self {
        Self { inner, fence }
    }

    async fn pass(&self, request: &'static str, key: &ObjectKey) -> Result<(), StoreError> {
        self.fence.pass_uncached().await.map_err(|source| self.fenced(request, key, source))
    }

    fn fenced(&self, request: &'static str, key: &ObjectKey, source: Fenced) -> StoreError {
        StoreError::Fenced { operation: Operation { request, target: self.inner.url(key) }, source }
    }
}

#[async_trait]
impl ObjectStore for FencedStore {
    fn url(&self, key: &ObjectKey) -> String {
        self.inner.url(key)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        self.inner.head(key).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.pass("PutObject", key).await?;
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
        self.pass("DeleteObject", key).await?;
        self.inner.delete(key).await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        self.pass("CreateMultipartUpload", key).await?;
        self.inner.create_upload(key, plan).await
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        // The part is invisible until its upload is completed, so a recent check is enough.
        self.fence.pass().await.map_err(|source| self.fenced("UploadPart", &upload.key, source))?;
        self.inner.put_part(upload, part).await
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        // Invisible until the upload is completed, as a part that is sent.
        self.fence.pass().await.map_err(|source| self.fenced("UploadPartCopy", &upload.key, source))?;
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
        self.pass("CompleteMultipartUpload", &upload.key).await?;
        self.inner.complete(upload, parts, whole).await
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        self.pass("AbortMultipartUpload", &upload.key).await?;
        self.inner.abort(upload).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.inner.list(prefix).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.inner.list_uploads(prefix).await
    }
}
