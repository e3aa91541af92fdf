//! The S3 client against a store that misbehaves: each permanent fault ends in its class, the client retries
//! transient ones, and no fault leaves an upload behind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::{Backoff, Class};
use snapferry_base::units::{to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    ExpectedObject, ObjectKey, ObjectStore, Pace, Part, PartNumber, Retrying, StoreError, UploadPlan,
};
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource};
use snapferry_s3::PartChecksum;
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{Action, Operation, Rule, SimConfig, SimStore, TlsFiles, When};
use snapferry_testkit::clock::ManualClock;
use snapferry_testkit::store_suite::REAL_PART;
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    sim: SimStore,
    key: ObjectKey,
}

fn hmac(sim: &SimStore) -> Auth {
    Auth::Hmac {
        access_key: sim.config().access_key.clone(),
        secret_key: sim.config().secret_key.clone(),
        session_token: None,
    }
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(|_, config| config).await
    }

    async fn start_with(change: impl FnOnce(&TempDir, SimConfig) -> SimConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = change(&folder, SimConfig::new(folder.path().join("store")));
        let sim = SimStore::start(config).await.unwrap();
        sim.create_bucket("images").await.unwrap();
        Self { folder, sim, key: ObjectKey::new("disk.qcow2").unwrap() }
    }

    fn config(&self) -> S3Config {
        S3Config::new(&self.sim.endpoint(), "us-south", "images", hmac(&self.sim))
    }

    fn store(&self) -> Arc<S3Store> {
        Arc::new(S3Store::connect(self.config()).unwrap())
    }

    /// A client with a short deadline, for requests that get no response.
    fn impatient(&self) -> Arc<S3Store> {
        let deadline = Duration::from_millis(200);
        Arc::new(
            S3Store::connect(S3Config {
                deadline,
                slowest: snapferry_base::units::ByteCount(u64::MAX),
                ..self.config()
            })
            .unwrap(),
        )
    }

    fn fault(&self, operation: Operation, when: When, action: Action) {
        self.sim.faults().add(Rule::on(operation).when(when), action);
    }

    fn requests(&self, operation: Operation) -> u64 {
        self.sim.stats().of(operation).requests
    }

    /// Uploads two parts of the least size and a short one, the first one last, as the converter sends them.
    async fn upload(&self, store: &dyn ObjectStore) -> Result<(), StoreError> {
        let size = to_usize(REAL_PART.0);
        let bodies =
            [Bytes::from(vec![1; size]), Bytes::from(vec![2; size]), Bytes::from_static(b"the last part")];
        let replaces = store.head(&self.key).await?.map(|meta| meta.etag);
        let upload = store
            .create_upload(&self.key, &UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace })
            .await?;
        let sent = async {
            let mut parts = Vec::new();
            for nth in [1, 2, 0] {
                let body = bodies[nth].clone();
                let part = Part {
                    number: PartNumber(u32::try_from(nth + 1).unwrap()),
                    at: to_u64(nth) * REAL_PART.0,
                    crc64: Crc64::of(&body),
                    body,
                };
                parts.push(store.put_part(&upload, part).await?);
            }
            parts.sort_by_key(|part| part.number);
            let all = bodies.concat();
            let whole = ExpectedObject { size: to_u64(all.len()), crc64: Crc64::of(&all), replaces };
            store.complete(&upload, &parts, &whole).await?;
            Ok(all)
        }
        .await;
        let all = match sent {
            Ok(all) => all,
            Err(err) => {
                store.abort(&upload).await?;
                return Err(err);
            }
        };
        let read = store.get_range(&self.key, 0..to_u64(all.len()), None).await?;
        assert!(read == all, "the object is not what was sent");
        Ok(())
    }

    async fn nothing_is_left(&self) {
        self.sim.faults().clear();
        assert_eq!(self.store().list_uploads("").await.unwrap(), []);
    }
}

fn retrying(store: Arc<dyn ObjectStore>) -> Retrying {
    Retrying::new(store, ManualClock::hurried(), Cancel::new(), Pace::new(4), Backoff::STORE)
}

fn error_response(status: u16, code: &str) -> Action {
    Action::answer(status, code)
}

fn html(status: u16) -> Action {
    Action::Answer { status, code: None, retry_after_s: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_part_ends_in_its_class_and_passing_ones_pass_unseen() {
    use Class::{Permanent, Throttled, Transient};
    let bench = Bench::start().await;
    for (action, class) in [
        (error_response(500, "InternalError"), Transient),
        (html(502), Transient),
        (html(504), Transient),
        (error_response(503, "SlowDown"), Throttled),
        (error_response(503, "ServiceUnavailable"), Throttled),
        (error_response(429, "TooManyRequests"), Throttled),
        (html(429), Throttled),
        (error_response(400, "RequestTimeout"), Transient),
        (error_response(400, "BadDigest"), Transient),
        (error_response(400, "XAmzContentSHA256Mismatch"), Transient),
        (Action::Reset, Transient),
        (Action::DropBeforeBody, Transient),
        (Action::DropAfterBody, Transient),
        (Action::ApplyThenDrop, Transient),
        (Action::ApplyThenAnswer { status: 500, code: "InternalError".to_owned() }, Transient),
        (Action::CorruptChecksum, Transient),
        (error_response(403, "AccessDenied"), Permanent),
        (error_response(400, "ExpiredToken"), Permanent),
        (error_response(404, "NoSuchUpload"), Permanent),
        (error_response(404, "NoSuchBucket"), Permanent),
        (error_response(400, "EntityTooLarge"), Permanent),
    ] {
        bench.fault(Operation::UploadPart, When::Nth(2), action.clone());
        let err = bench.upload(&*bench.store()).await.expect_err("a bare client makes one attempt");
        assert_eq!(err.class(), class, "{action:?} gave {err:?}");
        bench.nothing_is_left().await;

        bench.fault(Operation::UploadPart, When::Nth(2), action.clone());
        let uploaded = bench.upload(&retrying(bench.store())).await;
        assert_eq!(bench.sim.faults().fired(), [1], "{action:?} did not come to pass");
        assert_eq!(uploaded.is_ok(), class.is_retryable(), "{action:?} gave {uploaded:?}");
        bench.nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_asks_for_time_is_heard() {
    let bench = Bench::start().await;
    let throttled = Action::Answer { status: 503, code: Some("SlowDown".to_owned()), retry_after_s: Some(7) };
    bench.fault(Operation::ListObjectsV2, When::First(1), throttled);
    let err = bench.store().list("").await.unwrap_err();
    assert!(
        matches!(&err, StoreError::Refused { retry_after: Some(delay), .. } if delay.as_secs() == 7),
        "{err:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_never_answers_is_given_up_at_the_deadline() {
    let bench = Bench::start().await;
    let store = bench.store();
    let upload = store
        .create_upload(&bench.key, &UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace })
        .await
        .unwrap();
    let body = Bytes::from(vec![7; to_usize(REAL_PART.0)]);
    let part = Part { number: PartNumber(1), at: 0, crc64: Crc64::of(&body), body };
    for action in [Action::Hang, Action::StopReading, Action::Trickle { bytes_per_second: 64 }] {
        bench.fault(Operation::UploadPart, When::Always, action.clone());
        let err = bench.impatient().put_part(&upload, part.clone()).await.unwrap_err();
        assert!(matches!(err, StoreError::TimedOut { .. }), "{action:?} gave {err:?}");
        assert_eq!(err.class(), Class::Transient);
        bench.sim.faults().clear();
    }
    store.abort(&upload).await.unwrap();
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_is_settled_whatever_the_store_answers() {
    let bench = Bench::start().await;
    let complete = Operation::CompleteMultipartUpload;
    for (action, requests) in [
        // The upload is complete, and the response was lost: HEAD finds the object, and nothing is repeated.
        (Action::ApplyThenDrop, 1),
        (Action::ApplyThenAnswer { status: 500, code: "InternalError".to_owned() }, 1),
        (Action::ApplyThenAnswer { status: 503, code: "SlowDown".to_owned() }, 1),
        // The upload is not complete: HEAD finds nothing new, and the request is repeated.
        (Action::ErrorInOk { code: "InternalError".to_owned() }, 2),
        (error_response(500, "InternalError"), 2),
        (html(502), 2),
        (Action::DropAfterBody, 2),
        (Action::Reset, 2),
        (error_response(429, "TooManyRequests"), 2),
        // Ceph's first response has an empty ETag.
        (Action::EmptyEtag, 1),
    ] {
        bench.store().delete(&bench.key).await.unwrap();
        let before = bench.requests(complete);
        bench.fault(complete, When::First(1), action.clone());
        let uploaded = bench.upload(&retrying(bench.store())).await;
        assert!(uploaded.is_ok(), "{action:?} gave {uploaded:?}");
        assert_eq!(bench.requests(complete) - before, requests, "after {action:?}");
        bench.nothing_is_left().await;
    }
    for action in [
        error_response(403, "AccessDenied"),
        error_response(400, "InvalidPart"),
        Action::ErrorInOk { code: "InvalidPart".to_owned() },
    ] {
        bench.store().delete(&bench.key).await.unwrap();
        bench.fault(complete, When::First(1), action.clone());
        let err = bench.upload(&retrying(bench.store())).await.unwrap_err();
        assert_eq!(err.class(), Class::Permanent, "{action:?} gave {err:?}");
        bench.nothing_is_left().await;
        assert_eq!(bench.store().head(&bench.key).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_may_take_its_time_to_be_put_together() {
    let bench = Bench::start().await;
    let store = bench.store();
    let upload = store
        .create_upload(&bench.key, &UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace })
        .await
        .unwrap();
    let body = Bytes::from_static(b"the only part");
    let crc64 = Crc64::of(&body);
    let whole = ExpectedObject { size: to_u64(body.len()), crc64, replaces: None };
    let part = store.put_part(&upload, Part { number: PartNumber(1), at: 0, body, crc64 }).await.unwrap();
    // Longer than the deadline of any other request.
    bench.fault(Operation::CompleteMultipartUpload, When::Always, Action::Delay { milliseconds: 400 });
    bench.impatient().complete(&upload, &[part], &whole).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_of_before_2022_get_content_md5_and_remember_it_is_so() {
    let bench = Bench::start().await;
    for action in [Action::IgnoreChecksums, Action::RefuseChecksums] {
        bench.sim.faults().add(Rule::any(), action.clone());
        let store = bench.store();
        bench.upload(&*store).await.unwrap();
        assert_eq!(store.part_checksum(), PartChecksum::Md5, "after {action:?}");
        let (parts, creates) =
            (bench.requests(Operation::UploadPart), bench.requests(Operation::CreateMultipartUpload));
        bench.upload(&*store).await.unwrap();
        assert_eq!(bench.requests(Operation::UploadPart) - parts, 3, "each part goes once");
        assert_eq!(bench.requests(Operation::CreateMultipartUpload) - creates, 1);
        bench.nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_the_listing_says_so() {
    let bench = Bench::start().await;
    bench.fault(Operation::ListMultipartUploads, When::Always, error_response(501, "NotImplemented"));
    let err = bench.store().list_uploads("").await.unwrap_err();
    assert!(matches!(err, StoreError::Unsupported { .. }), "{err:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_region_is_told_as_such() {
    let bench = Bench::start().await;
    let config = S3Config { region: "eu-de".to_owned(), ..bench.config() };
    let err = S3Store::connect(config).unwrap().list_uploads("").await.unwrap_err();
    assert!(matches!(&err, StoreError::WrongRegion { reason, .. } if reason.contains("eu-de")), "{err:?}");
    assert!(err.to_string().contains("us-south"), "{err}");
}

fn with_tls(folder: &TempDir, config: SimConfig) -> SimConfig {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    SimConfig { tls: Some(TlsFiles { certificate, key }), ..config }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_trusted_only_by_its_authority_and_tokens_travel_under_it() {
    let bench = Bench::start_with(with_tls).await;
    let err = bench.store().head(&bench.key).await.unwrap_err();
    assert!(matches!(err, StoreError::Untrusted { .. }), "{err:?}");
    assert_eq!(err.class(), Class::Permanent);

    let ca_file = Some(bench.folder.path().join("cert.pem"));
    let store = S3Store::connect(S3Config { ca_file: ca_file.clone(), ..bench.config() }).unwrap();
    bench.upload(&store).await.unwrap();

    let source = ApiKeyConfig {
        api_key: bench.sim.config().api_keys[0].clone(),
        endpoint: bench.sim.iam_endpoint(),
        ca_file: ca_file.clone(),
        proxies: Proxies::default(),
    };
    let untrusting =
        ApiKeySource::new(ApiKeyConfig { ca_file: None, ..source.clone() }, ManualClock::hurried()).unwrap();
    let source = ApiKeySource::new(source, Arc::new(SystemClock)).unwrap();
    let store = |source: ApiKeySource| {
        S3Store::connect(S3Config {
            ca_file: ca_file.clone(),
            auth: Auth::Bearer(Arc::new(source)),
            ..bench.config()
        })
        .unwrap()
    };
    let trusting = store(source);
    bench.upload(&trusting).await.unwrap();
    let requests = bench.requests(Operation::IdentityToken);
    assert_eq!(requests, 1, "one token does for all requests");
    bench.sim.expire_tokens();
    let err = trusting
        .create_upload(&bench.key, &UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace })
        .await
        .unwrap_err();
    assert!(matches!(err, StoreError::Denied { .. }), "{err:?}");

    let err = store(untrusting).head(&bench.key).await.unwrap_err();
    assert!(matches!(err, StoreError::Identity { .. }), "{err:?}");
}

#[tokio::test]
async fn a_token_is_not_sent_in_the_clear() {
    let bench = Bench::start().await;
    let key = bench.sim.config().api_keys[0].clone();
    let source = ApiKeyConfig {
        api_key: key,
        endpoint: "https://iam.example.com".to_owned(),
        ca_file: None,
        proxies: Proxies::default(),
    };
    let source = ApiKeySource::new(source, Arc::new(SystemClock)).unwrap();
    let config = S3Config {
        endpoint: "http://s3.example.com".to_owned(),
        auth: Auth::Bearer(Arc::new(source)),
        ..bench.config()
    };
    assert!(matches!(S3Store::connect(config), Err(StoreError::Setup(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_broke_off_is_no_list() {
    let bench = Bench::start().await;
    let store = bench.store();
    let upload = store
        .create_upload(&bench.key, &UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace })
        .await
        .unwrap();
    let body = Bytes::from_static(b"the only part");
    store
        .put_part(&upload, Part { number: PartNumber(1), at: 0, crc64: Crc64::of(&body), body: body.clone() })
        .await
        .unwrap();
    store.put(&ObjectKey::new("small").unwrap(), body).await.unwrap();
    let lists = [Operation::ListMultipartUploads, Operation::ListParts, Operation::ListObjectsV2];
    let retrying = retrying(bench.store());
    for bytes in [0, 1, 60, 120, 180, 240, 300, 360] {
        for list in lists {
            bench.fault(list, When::Always, Action::CutAnswer { bytes });
        }
        let outcomes = [
            retrying.list_uploads("").await.map(|found| found.len()),
            retrying.list_parts(&upload).await.map(|found| found.len()),
            retrying.list("").await.map(|found| found.len()),
        ];
        for outcome in outcomes {
            // The next list may be complete, so the client has asked again.
            let err = outcome.expect_err("a list that is not whole");
            assert!(
                matches!(&err, StoreError::Connection { .. }) && err.to_string().contains("can't be read"),
                "{bytes} bytes: {err:?}"
            );
        }
        bench.sim.faults().clear();
    }
    for list in lists {
        bench.fault(list, When::First(1), Action::CutAnswer { bytes: 200 });
    }
    assert_eq!(retrying.list_uploads("").await.unwrap().len(), 1);
    assert_eq!(retrying.list_parts(&upload).await.unwrap().len(), 1);
    assert_eq!(retrying.list("").await.unwrap().len(), 1);
    // A page that is not the last one, and has no marker for the next one.
    store.abort(&upload).await.unwrap();
    for number in 0..1001 {
        store
            .create_upload(
                &ObjectKey::new(&format!("k{number}")).unwrap(),
                &UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace },
            )
            .await
            .unwrap();
    }
    assert_eq!(store.list_uploads("").await.unwrap().len(), 1001);
    bench.fault(Operation::ListMultipartUploads, When::Always, Action::LoseMarkers);
    let err = store.list_uploads("").await.expect_err("it goes on");
    assert!(
        matches!(&err, StoreError::Mismatch { .. })
            && err.to_string().contains("goes on without saying where"),
        "{err:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_the_store_says_it_has_is_looked_at() {
    let bench = Bench::start().await;
    let store = bench.store();
    let key = ObjectKey::new("disk.qcow2.manifest").unwrap();
    bench.fault(Operation::PutObject, When::First(2), Action::Pretend);
    let err = store.put(&key, Bytes::from_static(b"{}")).await.expect_err("there is none");
    assert!(matches!(&err, StoreError::Mismatch { .. }) && err.to_string().contains("has none"), "{err:?}");
    // An object with this key exists already, of another size or of the same.
    bench.sim.faults().clear();
    store.put(&key, Bytes::from_static(b"{\"as\": \"it was\"}")).await.unwrap();
    for body in [&b"{}"[..], b"{\"as\": \"it is \"}"] {
        bench.fault(Operation::PutObject, When::Always, Action::Pretend);
        let err = store.put(&key, Bytes::from_static(body)).await.expect_err("the old one");
        assert!(
            matches!(&err, StoreError::Mismatch { .. }) && err.to_string().contains("the store holds"),
            "{err:?}"
        );
        bench.sim.faults().clear();
    }
    store.put(&key, Bytes::from_static(b"{}")).await.unwrap();
}
