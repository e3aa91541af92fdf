//! Store decorator that retries requests. No other code retries requests to a store.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::retry::{Backoff, Class};

use super::error::{Operation, StoreError};
use super::pace::Pace;
use super::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Part, StoredPart, Upload, UploadPlan,
};

/// Most attempts of a request whose checksum did not match: a bit flips in transit now and then, but not
/// three times in a row.
pub const DAMAGED_ATTEMPTS: u32 = 3;
/// Longest wait that the store can ask for. If it asks for more, the next attempt comes after this time.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// Most requests to abort one upload: parts that were in transit may arrive after the first one (S3's
/// documentation, "AbortMultipartUpload").
pub const ABORTS: u32 = 3;

/// Most attempts of a request to a store that has never answered: its address is more likely misspelt than
/// the store is down.
pub const FIRST_CONTACT_ATTEMPTS: u32 = 4;

/// Store that hides transient errors by retrying.
///
/// Cancelling ends a request at once with [`StoreError::Cancelled`], with three exceptions.
/// [`ObjectStore::abort`] goes on, because it is part of stopping. An attempt of [`ObjectStore::complete`] is
/// waited for, and so is one HEAD request if its response was lost, because their responses show whether the
/// object exists. An attempt of [`ObjectStore::create_upload`] is waited for, because an upload whose id is
/// lost can't be aborted.
pub struct Retrying {
    inner: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    cancel: Cancel,
    pace: Arc<Pace>,
    backoff: Backoff,
    /// True if the store has ever answered.
    has_answered: AtomicBool,
}

/// Points at which cancelling may end a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    AtOnce,
    /// Only while the request waits for the next attempt.
    BetweenAttempts,
    Never,
}

impl Retrying {
    /// Creates the decorator around `inner`, with as many concurrent parts as `pace` allows.
    #[must_use]
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        clock: Arc<dyn Clock>,
        cancel: Cancel,
        pace: Arc<Pace>,
        backoff: Backoff,
    ) -> Self {
        Self { inner, clock, cancel, pace, backoff, has_answered: AtomicBool::new(false) }
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    /// Returns the wait before attempt `next`, if the error allows another attempt.
    fn wait_after(&self, err: &StoreError, next: u32) -> Option<Duration> {
        // The token source has retried its own requests already.
        if matches!(err, StoreError::Identity { .. }) {
            return None;
        }
        if !err.class().is_retryable() || (err.is_damage() && next > DAMAGED_ATTEMPTS) {
            return None;
        }
        if is_no_response(err) && next > FIRST_CONTACT_ATTEMPTS && !self.has_answered.load(Relaxed) {
            return None;
        }
        let wait = self.backoff.wait_before(next)?;
        Some(match err {
            StoreError::Refused { retry_after: Some(requested), .. } => {
                wait.max(MAX_RETRY_AFTER.min(*requested))
            }
            _ => wait,
        })
    }

    async fn pause(
        &self,
        operation: &Operation,
        next: u32,
        wait: Duration,
        stop: Stop,
        err: &StoreError,
    ) -> Result<(), StoreError> {
        tracing::warn!(%operation, attempt = next, wait_ms = wait.as_millis(), "trying again: {err}");
        self.unless_stopped(operation, stop, self.clock.sleep(wait)).await
    }

    async fn unless_stopped<T>(
        &self,
        operation: &Operation,
        stop: Stop,
        work: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        match stop {
            Stop::Never => Ok(work.await),
            Stop::AtOnce | Stop::BetweenAttempts => tokio::select! {
                biased;
                _reason = self.cancel.cancelled() => Err(StoreError::Cancelled { operation: operation.clone() }),
                answer = work => Ok(answer),
            },
        }
    }

    async fn attempts<T, F>(
        &self,
        operation: Operation,
        stop: Stop,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut next = 1;
        let attempts_end = if stop == Stop::BetweenAttempts { Stop::Never } else { stop };
        loop {
            let err = match self.unless_stopped(&operation, attempts_end, attempt()).await? {
                Ok(answer) => {
                    self.has_answered.store(true, Relaxed);
                    return Ok(answer);
                }
                Err(err) => err,
            };
            if !is_no_response(&err) {
                self.has_answered.store(true, Relaxed);
            }
            next += 1;
            match self.wait_after(&err, next) {
                Some(wait) => self.pause(&operation, next, wait, stop, &err).await?,
                None => return Err(err),
            }
        }
    }

    /// Makes one attempt at a part, among as many others as the pace permits. The permit is held during the
    /// attempt, not during the wait after it.
    async fn with_permit<T>(
        &self,
        attempt: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let permit = self.pace.permit().await;
        let answer = attempt.await;
        match &answer {
            Ok(_) => permit.succeeded(),
            Err(err) if err.class() == Class::Throttled => permit.was_throttled(),
            // A connection that is too slow for so many parts may be fast enough for fewer.
            Err(StoreError::TimedOut { .. }) => permit.was_throttled(),
            Err(_) => drop(permit),
        }
        answer
    }

    /// Checks whether the object under the key of the upload is the one that `whole` describes, made by this
    /// upload. Sends one HEAD request even after a cancellation, because its response shows whether the
    /// object exists.
    async fn object_exists(
        &self,
        upload: &Upload,
        whole: &ExpectedObject,
        err: &StoreError,
    ) -> Result<bool, StoreError> {
        let head = || self.inner.head(&upload.key);
        let response =
            match self.attempts(self.operation("HeadObject", &upload.key), Stop::AtOnce, head).await {
                Err(StoreError::Cancelled { .. }) => head().await,
                answer => answer,
            };
        let Some(meta) = response? else { return Ok(false) };
        let same_sum = meta.crc64.map(|crc64| crc64 == whole.crc64);
        let other_version = whole.replaces.as_ref() != Some(&meta.etag);
        // Stores that compute the ETag from the bytes return the same ETag if the same parts replace the same
        // object. If the upload no longer exists either, an equal checksum is proof enough.
        let gone = matches!(err, StoreError::NoSuchUpload { .. });
        Ok(meta.size == whole.size
            && same_sum != Some(false)
            && (other_version || (gone && same_sum == Some(true))))
    }
}

/// True if there was no response from the store.
fn is_no_response(err: &StoreError) -> bool {
    matches!(
        err,
        StoreError::Connection { .. }
            | StoreError::TimedOut { .. }
            | StoreError::Identity { .. }
            | StoreError::Proxy { .. }
    )
}

/// True if the store may have executed the request in spite of the error: the response was lost, or does not
/// show the result.
fn may_have_executed(err: &StoreError) -> bool {
    err.class().is_retryable() && !err.is_damage()
}

#[async_trait]
impl ObjectStore for Retrying {
    fn url(&self, key: &ObjectKey) -> String {
        self.inner.url(key)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        self.attempts(self.operation("HeadObject", key), Stop::AtOnce, || self.inner.head(key)).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.attempts(self.operation("PutObject", key), Stop::AtOnce, || self.inner.put(key, body.clone()))
            .await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        let attempt = || self.inner.get_range(key, range.clone(), version);
        self.attempts(self.operation("GetObject", key), Stop::AtOnce, attempt).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.attempts(self.operation("DeleteObject", key), Stop::AtOnce, || self.inner.delete(key)).await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        let lost = AtomicBool::new(false);
        let attempt = || async {
            let answer = self.inner.create_upload(key, plan).await;
            // A store that throttles a request has surely not executed it.
            let may_be_done = |err: &StoreError| may_have_executed(err) && err.class() != Class::Throttled;
            lost.fetch_or(answer.as_ref().is_err_and(may_be_done), Relaxed);
            answer
        };
        let operation = self.operation("CreateMultipartUpload", key);
        let created = self.attempts(operation.clone(), Stop::BetweenAttempts, attempt).await;
        if lost.into_inner() {
            tracing::warn!(%operation, "an attempt whose answer was lost may have begun another upload: `snapferry uploads list` shows it");
        }
        created
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        let operation = Operation {
            request: "UploadPart",
            target: format!("{} part {}", self.url(&upload.key), part.number),
        };
        self.attempts(operation, Stop::AtOnce, || self.with_permit(self.inner.put_part(upload, part.clone())))
            .await
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        let operation = Operation {
            request: "UploadPartCopy",
            target: format!("{} part {}", self.url(&upload.key), part.number),
        };
        self.attempts(operation, Stop::AtOnce, || {
            self.with_permit(self.inner.copy_part(upload, part.clone(), from))
        })
        .await
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        self.inner.proves(stored, part)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        self.attempts(self.operation("ListParts", &upload.key), Stop::AtOnce, || {
            self.inner.list_parts(upload)
        })
        .await
    }

    /// Makes the object. A lost response is not a failure: a HEAD request shows whether the object exists,
    /// and only if it does not, the request is repeated. Stores answer a repeat after success with 200, 403
    /// or 404, so these responses are checked with HEAD as well.
    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        let operation = self.operation("CompleteMultipartUpload", &upload.key);
        let mut next = 1;
        let mut in_doubt = false;
        // Error of the last HEAD request, if it is unknown whether the object was made.
        let mut head_error = None;
        let ended = |err: StoreError, head_error: Option<StoreError>| match head_error {
            Some(source) => StoreError::InDoubt { operation: operation.clone(), source: Box::new(source) },
            None => err,
        };
        loop {
            if self.cancel.is_cancelled() {
                return Err(ended(StoreError::Cancelled { operation: operation.clone() }, head_error));
            }
            let err = match self.inner.complete(upload, parts, whole).await {
                Ok(()) => return Ok(()),
                Err(err @ StoreError::Completed { .. }) => return Err(err),
                Err(err) => err,
            };
            let was_in_doubt = in_doubt;
            in_doubt |= may_have_executed(&err);
            if in_doubt {
                head_error = match self.object_exists(upload, whole, &err).await {
                    Ok(true) => {
                        tracing::info!(%operation, "the answer was lost, but the object is there: {err}");
                        return Ok(());
                    }
                    Ok(false) => None,
                    Err(head) => {
                        tracing::warn!(%operation, "can't tell whether the object is there: {head}");
                        Some(head)
                    }
                };
            }
            next += 1;
            // After a lost response, "no such upload" may mean that the store is still completing it.
            let wait = match &err {
                StoreError::NoSuchUpload { .. } if was_in_doubt => self.backoff.wait_before(next),
                err => self.wait_after(err, next),
            };
            let Some(wait) = wait else { return Err(ended(err, head_error)) };
            if let Err(stopped) = self.pause(&operation, next, wait, Stop::AtOnce, &err).await {
                return Err(ended(stopped, head_error));
            }
        }
    }

    /// Aborts until the store holds no more parts of the upload.
    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        let operation = self.operation("AbortMultipartUpload", &upload.key);
        for _ in 0..ABORTS {
            self.attempts(operation.clone(), Stop::Never, || self.inner.abort(upload)).await?;
            // A list that fails for a passing reason is asked for again: it is no list without parts.
            let listing = self.operation("ListParts", &upload.key);
            match self.attempts(listing, Stop::Never, || self.inner.list_parts(upload)).await {
                Ok(parts) if !parts.is_empty() => {
                    tracing::debug!(%operation, parts = parts.len(), "parts arrived after the upload was aborted: once more");
                }
                Ok(_) | Err(StoreError::NoSuchUpload { .. }) => return Ok(()),
                Err(err) if err.class().is_retryable() => return Err(err),
                // The store has confirmed the abort, and does not let this identity list parts.
                Err(err) => {
                    tracing::warn!(%operation, "aborted, but whether parts are left can't be seen: {err}");
                    return Ok(());
                }
            }
        }
        Err(StoreError::Mismatch {
            operation,
            reason: format!("it was aborted {ABORTS} times, and still has parts"),
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let operation = Operation { request: "ListObjectsV2", target: format!("prefix {prefix:?}") };
        self.attempts(operation, Stop::AtOnce, || self.inner.list(prefix)).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let operation = Operation { request: "ListMultipartUploads", target: format!("prefix {prefix:?}") };
        self.attempts(operation, Stop::AtOnce, || self.inner.list_uploads(prefix)).await
    }
}
