//! The calls of a second night under every fault, in one process; and the image that it copies from, removed
//! or replaced between any two calls. Whatever happens, the image that results is the one of a full run.

use std::sync::Arc;
use std::time::Duration;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::{Backoff, Class};
use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::store::{ObjectKey, ObjectStore, Pace, Retrying};
use snapferry_fleet::replicate::{Fault, Finished, JobContext, Step};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{Action, Operation as Store, Rule, When};

use super::faults::{Notebook, job, words};
use crate::support::{BUCKET, Bench};

/// A cloud after one night, with the image of that night. The server's disk does not change, so that the
/// second night's image has the same bytes.
struct SecondNight {
    bench: Bench,
    base: ObjectKey,
    expected: Vec<u8>,
}

/// Change of the image that the night copies from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Removed,
    Replaced,
}

impl SecondNight {
    async fn start() -> Self {
        let bench = Bench::with_large_night().await;
        let base = ObjectKey::new(&bench.stored_images().pop().expect("the first night's")).unwrap();
        let expected = std::fs::read(bench.stored(base.as_str())).unwrap();
        Self { bench, base, expected }
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        let config = self.bench.sim.store().config();
        let auth = Auth::Hmac {
            access_key: config.access_key.clone(),
            secret_key: config.secret_key.clone(),
            session_token: None,
        };
        // Long deadlines, because the parts are large: a fault that hangs is none of those below.
        let config = S3Config {
            slowest: ByteCount(MIB),
            ..S3Config::new(&self.bench.sim.store().endpoint(), &config.region, BUCKET, auth)
        };
        let store = Arc::new(S3Store::connect(config).unwrap());
        let backoff =
            Backoff { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(20) };
        Arc::new(Retrying::new(store, Arc::new(SystemClock), Cancel::new(), Pace::new(6), backoff))
    }

    fn site(&self) -> JobContext {
        JobContext { store: self.store(), ..self.bench.site(&Cancel::new()) }
    }

    async fn change(&self, change: Change) {
        let store = self.store();
        match change {
            Change::Removed => {
                store.delete(&self.base).await.unwrap();
                store.delete(&self.base.manifest()).await.unwrap();
            }
            // Few bytes, so that they are there before the answer comes that the night waits for.
            Change::Replaced => store.put(&self.base, self.expected[..4096].to_vec().into()).await.unwrap(),
        }
    }

    /// Asserts that the job has made the image of a full run, with its base or with one of these reasons.
    /// Returns the reason.
    async fn check(self, finished: &Finished, case: &str) -> Option<String> {
        let object = finished.state.object.as_ref().expect("an object");
        assert_eq!(object.base.is_none(), object.full_because.is_some(), "{case}: {object:?}");
        let stored = std::fs::read(self.bench.stored(object.key.as_str())).unwrap();
        assert!(stored == self.expected, "{case}: not the image of a full run");
        assert_eq!(
            finished.state.image.as_ref().map(|image| image.name.as_str()),
            Some("web01-latest"),
            "{case}"
        );
        self.bench.collect().await;
        assert_eq!(self.bench.leaks().await, Vec::<String>::new(), "{case}");
        let because = object.full_because.clone();
        self.bench.sim.shutdown().await;
        because
    }

    async fn run(&self, notes: &Notebook) -> Result<Finished, Box<snapferry_fleet::replicate::JobError>> {
        self.bench.saga(&job(), &self.site(), notes).await.map_err(Box::new)
    }
}

/// A fault that passes changes nothing: the night copies from its base.
async fn passes(call: Store, nth: u32, action: Action) {
    let night = SecondNight::start().await;
    let case = format!("{call} {nth} {action:?}");
    night.bench.sim.store().faults().add(Rule::on(call).when(When::Nth(nth)), action);
    let finished =
        night.run(&Notebook::default()).await.unwrap_or_else(|error| panic!("{case}: {}", words(&error)));
    assert_eq!(night.bench.sim.store().faults().fired(), [1], "{case}");
    assert_eq!(night.check(&finished, &case).await, None, "{case}");
}

macro_rules! passing {
    ($($name:ident: $call:ident, $nth:expr;)*) => {
        mod every_call_throttled {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let action = super::Action::Answer {
                    status: 503, code: Some("SlowDown".to_owned()), retry_after_s: Some(0),
                };
                super::passes(super::Store::$call, $nth, action).await;
            }
        )*}

        mod every_call_reset {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::passes(super::Store::$call, $nth, super::Action::Reset).await;
            }
        )*}

        mod every_call_done_and_the_answer_dropped {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::passes(super::Store::$call, $nth, super::Action::ApplyThenDrop).await;
            }
        )*}
    };
}

// The first HEAD is of the job's own key, and the first three reads are of the base.
passing! {
    list_of_earlier_images: ListObjectsV2, 1;
    head_of_the_base: HeadObject, 2;
    head_of_its_manifest: HeadObject, 3;
    read_of_its_manifest: GetObject, 1;
    read_of_its_head: GetObject, 2;
    read_of_its_tables: GetObject, 3;
    upload_part_copy: UploadPartCopy, 1;
    list_parts: ListParts, 1;
    complete_multipart_upload: CompleteMultipartUpload, 1;
}

/// The base is changed while the night waits for the answer to that call.
async fn changed_at(call: Store, nth: u32, change: Change) {
    let night = SecondNight::start().await;
    let case = format!("{change:?} at {call} {nth}");
    let faults = night.bench.sim.store().faults();
    faults.add(Rule::on(call).when(When::Nth(nth)), Action::Delay { milliseconds: 500 });
    let notes = Notebook::default();
    let changing = async {
        while faults.fired() != [1] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        night.change(change).await;
    };
    let (finished, ()) = tokio::join!(night.run(&notes), changing);
    let finished = finished.unwrap_or_else(|error| panic!("{case}: {}", words(&error)));
    let because = night.check(&finished, &case).await;
    // What was copied stays good.
    let is_over = call == Store::CompleteMultipartUpload;
    assert!(is_over || because.is_some(), "{case}: it was copied");
    let known = ["none", "unreadable", "vanished", "replaced", "damaged"];
    assert!(because.as_deref().is_none_or(|because| known.contains(&because)), "{case}: {because:?}");
}

macro_rules! changing {
    ($($name:ident: $call:ident, $nth:expr;)*) => {
        mod the_base_is_removed {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::changed_at(super::Store::$call, $nth, super::Change::Removed).await;
            }
        )*}

        mod the_base_is_replaced {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::changed_at(super::Store::$call, $nth, super::Change::Replaced).await;
            }
        )*}
    };
}

changing! {
    before_it_is_looked_for: ListObjectsV2, 1;
    before_its_head: HeadObject, 2;
    before_its_manifest_is_looked_for: HeadObject, 3;
    before_its_manifest_is_read: GetObject, 1;
    before_its_head_is_read: GetObject, 2;
    before_its_tables_are_read: GetObject, 3;
    before_the_upload: CreateMultipartUpload, 1;
    before_the_first_copy: UploadPartCopy, 1;
    before_the_completion: CompleteMultipartUpload, 1;
}

/// Copies are refused for good: the image is sent in full, and the job is done.
#[tokio::test(flavor = "multi_thread")]
async fn copies_that_are_refused_lead_to_a_full_run() {
    let refusals = [(403, "AccessDenied"), (501, "NotImplemented"), (400, "InvalidRequest")];
    for (status, code) in refusals {
        let night = SecondNight::start().await;
        let refusal = Action::Answer { status, code: Some(code.to_owned()), retry_after_s: None };
        night.bench.sim.store().faults().add(Rule::on(Store::UploadPartCopy), refusal);
        let finished = night.run(&Notebook::default()).await.expect(code);
        let warned = finished.warnings.iter().any(|warning| warning.contains(night.base.as_str()));
        assert!(warned, "{code}: {:?}", finished.warnings);
        assert_eq!(night.check(&finished, code).await.as_deref(), Some("refused"), "{code}");
    }
}

/// The image is wrong when it is read back: it is removed and never imported, and the next attempt takes
/// nothing from the base.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_proves_wrong_is_removed_and_sent_in_full_the_next_time() {
    let night = SecondNight::start().await;
    let (job, notes) = (job(), Notebook::default());
    let key = job.names().unwrap().key;
    let faults = night.bench.sim.store().faults();
    // The manifest is put once the upload is complete.
    faults.add(Rule::on(Store::PutObject).when(When::Nth(1)), Action::Delay { milliseconds: 500 });
    let site = night.site();
    let tampering = async {
        while faults.fired() != [1] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let path = night.bench.stored(key.as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[50 << 20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    let (ended, ()) = tokio::join!(night.bench.saga(&job, &site, &notes), tampering);
    let error = ended.map(|finished| finished.state).expect_err("it is wrong");
    assert!(matches!(*error.fault, Fault::NotTheSame { .. }), "{}", words(&error));
    assert_eq!((error.step, error.class()), (Step::Convert, Class::Transient));
    let state = notes.state();
    assert!(state.full && state.object.is_none(), "{state:?}");
    assert_eq!(state.base.map(|base| base.key), Some(night.base.clone()));
    let store = night.store();
    assert_eq!(store.head(&key).await.unwrap(), None, "it is still there");
    assert_eq!(store.head(&key.manifest()).await.unwrap(), None, "its manifest is still there");
    assert_eq!(night.bench.images().await.len(), 1, "it was imported");
    let finished = night.bench.saga(&job, &night.site(), &notes).await.expect("a full run");
    assert_eq!(night.check(&finished, "after a wrong image").await.as_deref(), Some("disproved"));
}

/// The process that made a wrong image has died before it could read it back. The next one finds that it is
/// wrong, removes it, and makes another one of all of the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_image_of_a_dead_process_is_replaced_by_a_full_one() {
    let night = SecondNight::start().await;
    let (job, notes) = (job(), Notebook::default());
    let key = job.names().unwrap().key;
    let gone = Action::Answer { status: 404, code: Some("NoSuchBucket".to_owned()), retry_after_s: None };
    // The second one is put once the image is proved.
    let faults = night.bench.sim.store().faults();
    faults.add(Rule::on(Store::PutObject).when(When::Nth(2)), gone);
    night.bench.saga(&job, &night.site(), &notes).await.expect_err("it can't be recorded");
    faults.clear();
    let path = night.bench.stored(key.as_str());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[50 << 20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let finished = night.bench.saga(&job, &night.site(), &notes).await.expect("a full run");
    assert!(
        finished.warnings.iter().any(|warning| warning.contains(night.base.as_str())),
        "{:?}",
        finished.warnings
    );
    assert_eq!(night.check(&finished, "after a dead process").await.as_deref(), Some("disproved"));
}
