//! The one place where requests to a store are tried again.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::{Operation, StoreError};
use super::pace::Pace;
use super::{ETag, ListedObject, ObjectKey, ObjectMeta, ObjectStore, OpenUpload, Part, StoredPart, Upload, UploadPlan, Whole};
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::retry::{Backoff, Class};

/// Attempts on a request whose checksum did not match: a bit flips on the way now and then, but not three times in a row.
const DAMAGED_ATTEMPTS: u32 = 3;
/// A store that asks for more patience than this is asked sooner.
const LONGEST_ASKED: Duration = Duration::from_secs(120);
/// How often an upload is aborted at most: parts that were on their way may arrive after the first time (S3's documentation,
/// "AbortMultipartUpload").
const ABORTS: u32 = 3;

/// Attempts at a store from which nothing was ever heard: its address is likelier misspelt than the store is down.
const STRANGER_ATTEMPTS: u32 = 4;

/// A store whose passing faults pass unseen.
///
/// A request that is told to stop ends at once with [`StoreError::Cancelled`], with three exceptions: [`ObjectStore::abort`] goes on,
/// since that is what one does after being told to stop; an attempt at [`ObjectStore::complete`] is waited for, and where its answer
/// was lost so is a look, since they say whether there is an object; and one at [`ObjectStore::create_upload`], since an upload whose
/// id nobody heard can't be aborted.
pub struct Retrying {
    inner: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    cancel: Cancel,
    pace: Arc<Pace>,
    backoff: Backoff,
    /// Whether the store has ever answered.
    heard: AtomicBool,
}

/// Whether a request may be cut short.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    AtOnce,
    /// Only while it waits for the next attempt.
    BetweenAttempts,
    Never,
}

impl Retrying {
    /// Around `inner`, with as many parts at once as `pace` allows.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, cancel: Cancel, pace: Arc<Pace>, backoff: Backoff) -> Self {
        Self { inner, clock, cancel, pace, backoff, heard: AtomicBool::new(false) }
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    /// The wait before attempt `next`, where `err` allows for one.
    fn wait_after(&self, err: &StoreError, next: u32) -> Option<Duration> {
        // A token source has made its own attempts.
        if matches!(err, StoreError::Identity { .. }) {
            return None;
        }
        if !err.class().is_retryable() || (err.is_damage() && next > DAMAGED_ATTEMPTS) {
            return None;
        }
        if is_silence(err) && next > STRANGER_ATTEMPTS && !self.heard.load(Relaxed) {
            return None;
        }
        let wait = self.backoff.wait_before(next)?;
        Some(match err {
            StoreError::Refused { retry_after: Some(asked), .. } => wait.max(LONGEST_ASKED.min(*asked)),
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

    async fn unless_stopped<T>(&self, operation: &Operation, stop: Stop, work: impl Future<Output = T>) -> Result<T, StoreError> {
        match stop {
            Stop::Never => Ok(work.await),
            Stop::AtOnce | Stop::BetweenAttempts => tokio::select! {
                biased;
                _reason = self.cancel.cancelled() => Err(StoreError::Cancelled { operation: operation.clone() }),
                answer = work => Ok(answer),
            },
        }
    }

    async fn attempts<T, F>(&self, operation: Operation, stop: Stop, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut next = 1;
        let attempts_end = if stop == Stop::BetweenAttempts { Stop::Never } else { stop };
        loop {
            let err = match self.unless_stopped(&operation, attempts_end, attempt()).await? {
                Ok(answer) => {
                    self.heard.store(true, Relaxed);
                    return Ok(answer);
                }
                Err(err) => err,
            };
            if !is_silence(&err) {
                self.heard.store(true, Relaxed);
            }
            next += 1;
            match self.wait_after(&err, next) {
                Some(wait) => self.pause(&operation, next, wait, stop, &err).await?,
                None => return Err(err),
            }
        }
    }

    /// Whether the object under the upload's key is the one that `whole` describes, made by this upload. Asked once even after being
    /// told to stop: the answer says whether there is an object.
    async fn is_there(&self, upload: &Upload, whole: &Whole, err: &StoreError) -> Result<bool, StoreError> {
        let look = || self.inner.head(&upload.key);
        let looked = match self.attempts(self.operation("HeadObject", &upload.key), Stop::AtOnce, look).await {
            Err(StoreError::Cancelled { .. }) => look().await,
            answer => answer,
        };
        let Some(meta) = looked? else { return Ok(false) };
        let same_sum = meta.crc64.map(|crc64| crc64 == whole.crc64);
        let other_version = whole.replaces.as_ref() != Some(&meta.etag);
        // The same parts over the same object give the same mark on stores that make it from the bytes. Once the upload is
        // gone too, an equal sum is proof enough.
        let gone = matches!(err, StoreError::NoSuchUpload { .. });
        Ok(meta.size == whole.size && same_sum != Some(false) && (other_version || (gone && same_sum == Some(true))))
    }
}

/// Whether nothing came back from the store.
fn is_silence(err: &StoreError) -> bool {
    matches!(err, StoreError::Connection { .. } | StoreError::TimedOut { .. } | StoreError::Identity { .. })
}

/// Whether the store may have done as asked all the same: the answer was lost, or was one that says nothing.
fn says_nothing(err: &StoreError) -> bool {
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
        self.attempts(self.operation("PutObject", key), Stop::AtOnce, || self.inner.put(key, body.clone())).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>, version: Option<&ETag>) -> Result<Bytes, StoreError> {
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
            // Who asks for less has surely done nothing.
            let may_be_done = |err: &StoreError| says_nothing(err) && err.class() != Class::Throttled;
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
        let operation = Operation { request: "UploadPart", target: format!("{} part {}", self.url(&upload.key), part.number) };
        self.attempts(operation, Stop::AtOnce, || {
            let part = part.clone();
            async {
                // Held for the attempt and not for the wait after it.
                let permit = self.pace.permit().await;
                let answer = self.inner.put_part(upload, part).await;
                match &answer {
                    Ok(_) => permit.went_well(),
                    Err(err) if err.class() == Class::Throttled => permit.was_throttled(),
                    // A line that can't carry so many parts in time may well carry fewer.
                    Err(StoreError::TimedOut { .. }) => permit.was_throttled(),
                    Err(_) => drop(permit),
                }
                answer
            }
        })
        .await
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        self.attempts(self.operation("ListParts", &upload.key), Stop::AtOnce, || self.inner.list_parts(upload)).await
    }

    /// Makes the object. An answer that was lost is not a failure: HEAD tells whether the object is there, and only when it isn't the
    /// request is repeated. Stores answer a repeat after success with 200, 403 or 404, so that is looked into as well.
    async fn complete(&self, upload: &Upload, parts: &[StoredPart], whole: &Whole) -> Result<(), StoreError> {
        let operation = self.operation("CompleteMultipartUpload", &upload.key);
        let mut next = 1;
        let mut in_doubt = false;
        // Why nobody knows, at the moment, whether the object was made.
        let mut unseen = None;
        let ended = |err: StoreError, unseen: Option<StoreError>| match unseen {
            Some(source) => StoreError::InDoubt { operation: operation.clone(), source: Box::new(source) },
            None => err,
        };
        loop {
            if self.cancel.is_cancelled() {
                return Err(ended(StoreError::Cancelled { operation: operation.clone() }, unseen));
            }
            let err = match self.inner.complete(upload, parts, whole).await {
                Ok(()) => return Ok(()),
                Err(err @ StoreError::Completed { .. }) => return Err(err),
                Err(err) => err,
            };
            let doubted = in_doubt;
            in_doubt |= says_nothing(&err);
            if in_doubt {
                unseen = match self.is_there(upload, whole, &err).await {
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
            // After an answer that was lost, "no such upload" may mean that the store is still at it.
            let wait = match &err {
                StoreError::NoSuchUpload { .. } if doubted => self.backoff.wait_before(next),
                err => self.wait_after(err, next),
            };
            let Some(wait) = wait else { return Err(ended(err, unseen)) };
            if let Err(stopped) = self.pause(&operation, next, wait, Stop::AtOnce, &err).await {
                return Err(ended(stopped, unseen));
            }
        }
    }

    /// Aborts until the store holds no part of the upload any more.
    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        let operation = self.operation("AbortMultipartUpload", &upload.key);
        for _ in 0..ABORTS {
            self.attempts(operation.clone(), Stop::Never, || self.inner.abort(upload)).await?;
            match self.inner.list_parts(upload).await {
                Ok(parts) if !parts.is_empty() => {
                    tracing::debug!(%operation, parts = parts.len(), "parts arrived after the upload was aborted: once more");
                }
                Ok(_) | Err(StoreError::NoSuchUpload { .. }) => return Ok(()),
                Err(err) => {
                    tracing::debug!(%operation, "can't tell whether parts are left: {err}");
                    return Ok(());
                }
            }
        }
        Err(StoreError::Mismatch { operation, reason: format!("it was aborted {ABORTS} times, and still has parts") })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Reason;
    use crate::hash::Crc64;
    use crate::store::PartNumber;
    use crate::testing::clock::ManualClock;
    use crate::testing::memory::MemoryStore;
    use crate::testing::scripted::{Fault, ScriptedStore};
    use crate::units::{ByteCount, to_u64};

    const BACKOFF: Backoff = Backoff { attempts: 4, first: Duration::from_secs(1), longest: Duration::from_secs(8) };

    struct Bench {
        scripted: Arc<ScriptedStore>,
        store: Retrying,
        clock: Arc<ManualClock>,
        cancel: Cancel,
        pace: Arc<Pace>,
        key: ObjectKey,
    }

    fn bench() -> Bench {
        let scripted = Arc::new(ScriptedStore::new(Arc::new(MemoryStore::new("images"))));
        let (clock, cancel, pace) = (ManualClock::hurried(), Cancel::new(), Pace::new(4));
        let store = Retrying::new(scripted.clone(), clock.clone(), cancel.clone(), pace.clone(), BACKOFF);
        Bench { scripted, store, clock, cancel, pace, key: ObjectKey::new("disk.qcow2").expect("a key") }
    }

    fn operation() -> Operation {
        Operation { request: "UploadPart", target: "s3://images/disk.qcow2".to_owned() }
    }

    fn refused(status: u16, code: &str) -> StoreError {
        let (code, message) = (code.to_owned(), "scripted".to_owned());
        StoreError::Refused { operation: operation(), status, code, message, retry_after: None }
    }

    fn lost() -> StoreError {
        StoreError::TimedOut { operation: operation(), deadline: Duration::from_secs(30) }
    }

    const BODY: &[u8] = b"the whole object";

    fn whole(replaces: Option<ETag>) -> Whole {
        Whole { size: to_u64(BODY.len()), crc64: Crc64::of(BODY), replaces }
    }

    impl Bench {
        async fn upload(&self) -> Upload {
            let plan = UploadPlan { part_size: ByteCount(1 << 20), replace: true };
            self.store.create_upload(&self.key, &plan).await.expect("begun")
        }

        async fn put_part(&self, upload: &Upload) -> Result<StoredPart, StoreError> {
            let body = Bytes::from_static(BODY);
            let crc64 = Crc64::of(&body);
            self.store.put_part(upload, Part { number: PartNumber(1), body, crc64 }).await
        }
    }

    #[tokio::test]
    async fn passing_faults_pass_unseen_and_the_waits_are_on_the_clock() {
        let bench = bench();
        let upload = bench.upload().await;
        for fault in [refused(500, "InternalError"), lost(), refused(503, "SlowDown")] {
            bench.scripted.next("UploadPart", Fault::Answer(fault));
        }
        bench.put_part(&upload).await.expect("the fourth attempt");
        assert_eq!(bench.scripted.count("UploadPart"), 4);
        assert_eq!(bench.clock.sleeps(), 3);
    }

    #[tokio::test]
    async fn attempts_end_and_the_last_error_is_the_answer() {
        let bench = bench();
        let upload = bench.upload().await;
        for _ in 0..9 {
            bench.scripted.next("UploadPart", Fault::Answer(refused(429, "TooManyRequests")));
        }
        let err = bench.put_part(&upload).await.expect_err("four attempts are not enough");
        assert!(matches!(err, StoreError::Refused { status: 429, .. }), "{err}");
        assert_eq!(bench.scripted.count("UploadPart"), 4);
        assert_eq!(bench.pace.window(), 1);
    }

    #[tokio::test]
    async fn damage_is_given_up_sooner_and_a_refusal_at_once() {
        let bench = bench();
        let upload = bench.upload().await;
        for _ in 0..9 {
            bench
                .scripted
                .next("UploadPart", Fault::Answer(StoreError::Damaged { operation: operation(), reason: "scripted".to_owned() }));
        }
        assert!(bench.put_part(&upload).await.expect_err("damaged each time").is_damage());
        assert_eq!(bench.scripted.count("UploadPart"), DAMAGED_ATTEMPTS);
        bench.scripted.clear();
        bench.scripted.next("UploadPart", Fault::Answer(refused(400, "EntityTooSmall")));
        let err = bench.put_part(&upload).await.expect_err("refused");
        assert_eq!(err.class(), Class::Permanent);
        assert_eq!(bench.scripted.count("UploadPart"), DAMAGED_ATTEMPTS + 1);
    }

    #[tokio::test]
    async fn who_is_told_to_stop_stops_but_still_aborts() {
        let bench = bench();
        let upload = bench.upload().await;
        bench.cancel.cancel(Reason::Asked);
        let err = bench.put_part(&upload).await.expect_err("stopped");
        assert_eq!(err.class(), Class::Cancelled);
        let err = bench.store.complete(&upload, &[], &whole(None)).await.expect_err("stopped");
        assert_eq!(err.class(), Class::Cancelled);
        bench.scripted.next("AbortMultipartUpload", Fault::Answer(refused(500, "InternalError")));
        bench.store.abort(&upload).await.expect("aborted all the same");
        assert!(bench.scripted.inner().list_uploads("").await.expect("listed").is_empty());
    }

    #[tokio::test]
    async fn a_stop_ends_a_wait() {
        let bench = bench();
        let upload = bench.upload().await;
        bench.scripted.next("UploadPart", Fault::Hang);
        let mut sending = Box::pin(bench.put_part(&upload));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(sending.as_mut().poll(&mut context).is_pending());
        bench.cancel.cancel(Reason::Failed);
        assert_eq!(sending.await.expect_err("stopped").class(), Class::Cancelled);
        // The permit came back.
        for _ in 0..4 {
            std::mem::forget(bench.pace.permit().await);
        }
    }

    #[tokio::test]
    async fn a_complete_whose_answer_was_lost_is_settled_by_head() {
        let bench = bench();
        let upload = bench.upload().await;
        let part = bench.put_part(&upload).await.expect("stored");
        bench.scripted.next("CompleteMultipartUpload", Fault::ApplyThen(lost()));
        bench.store.complete(&upload, &[part], &whole(None)).await.expect("the object is there");
        assert_eq!(bench.scripted.count("CompleteMultipartUpload"), 1);
    }

    #[tokio::test]
    async fn a_complete_that_was_not_done_is_repeated() {
        let bench = bench();
        let upload = bench.upload().await;
        let part = bench.put_part(&upload).await.expect("stored");
        bench.scripted.next("CompleteMultipartUpload", Fault::Answer(refused(200, "InternalError")));
        bench.store.complete(&upload, &[part], &whole(None)).await.expect("done the second time");
        assert_eq!(bench.scripted.count("CompleteMultipartUpload"), 2);
        assert_eq!(bench.scripted.count("HeadObject"), 1);
    }

    #[tokio::test]
    async fn the_object_that_is_being_replaced_is_not_taken_for_the_new_one() {
        let bench = bench();
        let key = bench.key.clone();
        bench.store.put(&key, Bytes::from_static(b"another version!")).await.expect("stored");
        let before = bench.store.head(&key).await.expect("asked").expect("there");
        assert_eq!(before.size, to_u64(BODY.len()));
        let upload = bench.upload().await;
        bench.put_part(&upload).await.expect("stored");
        for _ in 0..9 {
            bench.scripted.next("CompleteMultipartUpload", Fault::Answer(lost()));
        }
        let parts = bench.store.list_parts(&upload).await.expect("listed");
        let err = bench.store.complete(&upload, &parts, &whole(Some(before.etag))).await.expect_err("never done");
        assert!(matches!(err, StoreError::TimedOut { .. }), "{err}");
    }

    #[tokio::test]
    async fn no_such_upload_after_a_lost_answer_is_success_where_the_object_is_there() {
        let bench = bench();
        let upload = bench.upload().await;
        let part = bench.put_part(&upload).await.expect("stored");
        bench.scripted.next("CompleteMultipartUpload", Fault::ApplyThen(lost()));
        // The first look fails for good, so the request is repeated and the store no longer knows the upload.
        bench.scripted.next("HeadObject", Fault::Answer(refused(400, "BadRequest")));
        bench.store.complete(&upload, &[part], &whole(None)).await.expect("settled by the second look");
        assert_eq!(bench.scripted.count("CompleteMultipartUpload"), 2);
    }

    #[tokio::test]
    async fn no_such_upload_from_the_start_is_an_error_without_a_look() {
        let bench = bench();
        let upload = bench.upload().await;
        bench.store.abort(&upload).await.expect("aborted");
        let err = bench.store.complete(&upload, &[], &whole(None)).await.expect_err("gone");
        assert!(matches!(err, StoreError::NoSuchUpload { .. }), "{err}");
        assert_eq!(bench.scripted.count("HeadObject"), 0);
    }

    #[tokio::test]
    async fn a_store_that_asks_for_time_gets_it_within_reason() {
        for (asked, least) in [(60, 60), (86_400, 120)] {
            let bench = bench();
            let throttled = StoreError::Refused {
                operation: operation(),
                status: 503,
                code: "SlowDown".to_owned(),
                message: "scripted".to_owned(),
                retry_after: Some(Duration::from_secs(asked)),
            };
            bench.scripted.next("HeadObject", Fault::Answer(throttled));
            let begun = bench.clock.instant();
            bench.store.head(&bench.key).await.expect("the second attempt");
            assert_eq!(bench.clock.instant() - begun, Duration::from_secs(least));
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_slow_for_all_parts_carries_fewer() {
        let bench = bench();
        let upload = bench.upload().await;
        bench.scripted.next("UploadPart", Fault::Answer(lost()));
        bench.put_part(&upload).await.expect("the second attempt");
        assert_eq!(bench.pace.window(), 2);
    }

    #[tokio::test]
    async fn a_store_that_was_never_heard_of_is_given_up_sooner() {
        let backoff = Backoff { attempts: 9, ..BACKOFF };
        for (heard, attempts) in [(false, STRANGER_ATTEMPTS), (true, 9)] {
            let Bench { scripted, clock, cancel, pace, key, .. } = bench();
            let store = Retrying::new(scripted.clone(), clock, cancel, pace, backoff);
            if heard {
                assert_eq!(store.list("").await.expect("an answer"), []);
            }
            for _ in 0..9 {
                scripted.next("HeadObject", Fault::Answer(lost()));
            }
            store.head(&key).await.expect_err("never an answer");
            assert_eq!(scripted.count("HeadObject"), attempts);
        }
    }

    #[tokio::test]
    async fn a_stop_does_not_hide_that_the_object_is_there() {
        let bench = bench();
        let upload = bench.upload().await;
        let (parts, whole) = ([bench.put_part(&upload).await.expect("stored")], whole(None));
        bench.scripted.next("CompleteMultipartUpload", Fault::ApplyThen(lost()));
        bench.scripted.next("HeadObject", Fault::Hang);
        let mut completing = Box::pin(bench.store.complete(&upload, &parts, &whole));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(completing.as_mut().poll(&mut context).is_pending());
        bench.cancel.cancel(Reason::Asked);
        completing.await.expect("one more look finds it");
    }

    #[tokio::test]
    async fn what_cannot_be_found_out_is_told_as_such() {
        let bench = bench();
        let upload = bench.upload().await;
        let part = bench.put_part(&upload).await.expect("stored");
        bench.scripted.next("CompleteMultipartUpload", Fault::ApplyThen(lost()));
        for _ in 0..9 {
            bench.scripted.next("HeadObject", Fault::Answer(refused(400, "BadRequest")));
        }
        let err = bench.store.complete(&upload, &[part], &whole(None)).await.expect_err("nobody could look");
        assert!(matches!(&err, StoreError::InDoubt { source, .. } if matches!(**source, StoreError::Refused { .. })), "{err}");
    }

    #[tokio::test]
    async fn parts_that_arrive_after_an_abort_are_aborted_too() {
        for (late, succeeds) in [(0, true), (2, true), (3, false)] {
            let bench = bench();
            let upload = bench.upload().await;
            bench.put_part(&upload).await.expect("stored");
            bench.scripted.late_parts(late);
            let ended = bench.store.abort(&upload).await;
            assert_eq!(ended.is_ok(), succeeds, "{ended:?}");
            assert_eq!(bench.scripted.count("AbortMultipartUpload"), ABORTS.min(late + 1));
        }
    }
}
