//! Tests of retried requests on a store that fails according to a script.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock as _;
use snapferry_base::retry::{Backoff, Class};
use snapferry_base::units::{ByteCount, to_u64};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::retrying::{ABORTS, DAMAGED_ATTEMPTS, FIRST_CONTACT_ATTEMPTS};
use snapferry_engine::store::{
    CopiedPart, ETag, ExpectedObject, ObjectKey, ObjectStore as _, Operation, Pace, Part, PartNumber,
    Retrying, StoreError, StoredPart, Upload, UploadPlan,
};
use snapferry_testkit::clock::ManualClock;
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::scripted::{Fault, ScriptedStore};
use snapferry_testkit::store_suite::copy_source;

const BACKOFF: Backoff =
    Backoff { attempts: 4, first: Duration::from_secs(1), longest: Duration::from_secs(8) };

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

fn whole(replaces: Option<ETag>) -> ExpectedObject {
    ExpectedObject { size: to_u64(BODY.len()), crc64: Crc64::of(BODY), replaces }
}

impl Bench {
    async fn upload(&self) -> Upload {
        let plan = UploadPlan { part_size: ByteCount(1 << 20), overwrite: Overwrite::Replace };
        self.store.create_upload(&self.key, &plan).await.expect("begun")
    }

    async fn put_part(&self, upload: &Upload) -> Result<StoredPart, StoreError> {
        let body = Bytes::from_static(BODY);
        let crc64 = Crc64::of(&body);
        self.store.put_part(upload, Part { number: PartNumber(1), at: 0, body, crc64 }).await
    }
}

#[tokio::test]
async fn passing_faults_pass_unseen_and_the_waits_are_on_the_clock() {
    let bench = bench();
    let upload = bench.upload().await;
    for fault in [refused(500, "InternalError"), lost(), refused(503, "SlowDown")] {
        bench.scripted.next("UploadPart", Fault::Fail(fault));
    }
    bench.put_part(&upload).await.expect("the fourth attempt");
    assert_eq!(bench.scripted.count("UploadPart"), 4);
    assert_eq!(bench.clock.sleeps(), 3);
}

#[tokio::test]
async fn copies_are_tried_again_and_paced_as_parts_are_and_refusals_are_not() {
    let bench = bench();
    let source = ObjectKey::new("base.qcow2").expect("a key");
    bench.scripted.inner().put(&source, Bytes::from_static(BODY)).await.expect("stored");
    let from = copy_source(bench.scripted.inner(), &source).await;
    let copied = CopiedPart { number: PartNumber(1), at: 0, range: 0..from.size, crc64: Crc64::of(BODY) };
    let upload = bench.upload().await;
    for fault in [refused(500, "InternalError"), lost(), refused(503, "SlowDown")] {
        bench.scripted.next("UploadPartCopy", Fault::Fail(fault));
    }
    let window = bench.pace.window();
    let stored = bench.store.copy_part(&upload, copied.clone(), &from).await.expect("the fourth attempt");
    assert_eq!((bench.scripted.count("UploadPartCopy"), bench.clock.sleeps()), (4, 3));
    assert!(bench.pace.window() < window, "a store that throttles copies gets fewer at a time");
    assert_eq!(bench.scripted.inner().list_parts(&upload).await.expect("listed"), [stored]);

    let refusal = StoreError::CopyRefused {
        operation: operation(),
        status: 403,
        code: "AccessDenied".to_owned(),
        message: "scripted".to_owned(),
    };
    bench.scripted.next("UploadPartCopy", Fault::Fail(refusal));
    let err = bench.store.copy_part(&upload, copied, &from).await.expect_err("refused");
    assert!(matches!(err, StoreError::CopyRefused { status: 403, .. }), "{err}");
    assert_eq!(bench.scripted.count("UploadPartCopy"), 5);
}

#[tokio::test]
async fn attempts_end_and_the_last_error_is_the_answer() {
    let bench = bench();
    let upload = bench.upload().await;
    for _ in 0..9 {
        bench.scripted.next("UploadPart", Fault::Fail(refused(429, "TooManyRequests")));
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
        bench.scripted.next(
            "UploadPart",
            Fault::Fail(StoreError::Damaged { operation: operation(), reason: "scripted".to_owned() }),
        );
    }
    assert!(bench.put_part(&upload).await.expect_err("damaged each time").is_damage());
    assert_eq!(bench.scripted.count("UploadPart"), DAMAGED_ATTEMPTS);
    bench.scripted.clear();
    bench.scripted.next("UploadPart", Fault::Fail(refused(400, "EntityTooSmall")));
    let err = bench.put_part(&upload).await.expect_err("refused");
    assert_eq!(err.class(), Class::Permanent);
    assert_eq!(bench.scripted.count("UploadPart"), DAMAGED_ATTEMPTS + 1);
}

#[tokio::test]
async fn who_is_told_to_stop_stops_but_still_aborts() {
    let bench = bench();
    let upload = bench.upload().await;
    bench.cancel.cancel(Reason::Requested);
    let err = bench.put_part(&upload).await.expect_err("stopped");
    assert_eq!(err.class(), Class::Cancelled);
    let err = bench.store.complete(&upload, &[], &whole(None)).await.expect_err("stopped");
    assert_eq!(err.class(), Class::Cancelled);
    bench.scripted.next("AbortMultipartUpload", Fault::Fail(refused(500, "InternalError")));
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
    // The permit was returned, so all four are available.
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
    bench.scripted.next("CompleteMultipartUpload", Fault::Fail(refused(200, "InternalError")));
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
        bench.scripted.next("CompleteMultipartUpload", Fault::Fail(lost()));
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
    // The first HEAD request fails for good, so the completion is repeated, and the store no longer knows the
    // upload.
    bench.scripted.next("HeadObject", Fault::Fail(refused(400, "BadRequest")));
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
    for (requested, least) in [(60, 60), (86_400, 120)] {
        let bench = bench();
        let throttled = StoreError::Refused {
            operation: operation(),
            status: 503,
            code: "SlowDown".to_owned(),
            message: "scripted".to_owned(),
            retry_after: Some(Duration::from_secs(requested)),
        };
        bench.scripted.next("HeadObject", Fault::Fail(throttled));
        let begun = bench.clock.instant();
        bench.store.head(&bench.key).await.expect("the second attempt");
        assert_eq!(bench.clock.instant() - begun, Duration::from_secs(least));
    }
}

#[tokio::test]
async fn a_line_that_is_too_slow_for_all_parts_carries_fewer() {
    let bench = bench();
    let upload = bench.upload().await;
    bench.scripted.next("UploadPart", Fault::Fail(lost()));
    bench.put_part(&upload).await.expect("the second attempt");
    assert_eq!(bench.pace.window(), 2);
}

#[tokio::test]
async fn a_store_that_was_never_heard_of_is_given_up_sooner() {
    let backoff = Backoff { attempts: 9, ..BACKOFF };
    for (has_answered, attempts) in [(false, FIRST_CONTACT_ATTEMPTS), (true, 9)] {
        let Bench { scripted, clock, cancel, pace, key, .. } = bench();
        let store = Retrying::new(scripted.clone(), clock, cancel, pace, backoff);
        if has_answered {
            assert_eq!(store.list("").await.expect("an answer"), []);
        }
        for _ in 0..9 {
            scripted.next("HeadObject", Fault::Fail(lost()));
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
    bench.cancel.cancel(Reason::Requested);
    completing.await.expect("one more look finds it");
}

#[tokio::test]
async fn what_cannot_be_found_out_is_told_as_such() {
    let bench = bench();
    let upload = bench.upload().await;
    let part = bench.put_part(&upload).await.expect("stored");
    bench.scripted.next("CompleteMultipartUpload", Fault::ApplyThen(lost()));
    for _ in 0..9 {
        bench.scripted.next("HeadObject", Fault::Fail(refused(400, "BadRequest")));
    }
    let err = bench.store.complete(&upload, &[part], &whole(None)).await.expect_err("nobody could look");
    assert!(
        matches!(&err, StoreError::InDoubt { source, .. } if matches!(**source, StoreError::Refused { .. })),
        "{err}"
    );
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

#[tokio::test]
async fn a_list_that_fails_does_not_pass_for_an_empty_one() {
    let bench = bench();
    let upload = bench.upload().await;
    bench.put_part(&upload).await.expect("stored");
    bench.scripted.late_parts(1);
    bench.scripted.next("ListParts", Fault::Fail(refused(503, "SlowDown")));
    bench.store.abort(&upload).await.expect("aborted twice");
    assert_eq!(
        bench.scripted.count("AbortMultipartUpload"),
        2,
        "the list, asked for again, still has a part"
    );
    // Where the store answers no list at all, it is unknown whether the parts are gone.
    let upload = bench.upload().await;
    for _ in 0..9 {
        bench.scripted.next("ListParts", Fault::Fail(refused(503, "SlowDown")));
    }
    bench.store.abort(&upload).await.expect_err("nothing was seen");
}
