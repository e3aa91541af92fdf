//! Every call of a job under every fault, in one process: the job ends as done, or as failed with a reason;
//! `gc` finds its leftovers; the image before stays; and the resumed job succeeds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::job::JobId;
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::Backoff;
use snapferry_engine::store::{ObjectStore, Pace, Retrying};
use snapferry_fleet::replicate::device::{DeviceFolder, DeviceKind};
use snapferry_fleet::replicate::gc::{Places, Rules, remove, survey};
use snapferry_fleet::replicate::{
    BaseRule, Encoding, Entry, Fault, Finished, Goal, JobContext, JobError, JobSpec, JobState, Journal,
    JournalError, Keep, Newest, Origin, OwnServer, Progress, ProgressObserver, Restore, Retention, Saga,
    ServerLocks, SnapshotFate, SnapshotHold, Step, Waits,
};
use snapferry_ibmcloud::vpc::{
    ClientConfig, ClientContext, Endpoint, InstanceId, LogWatch, Policy, RegionClient, Tagging, TaggingConfig,
};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{
    Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, When,
};

use crate::support::{AWAY, BUCKET, Bench, HOME, Host, SERVER, tokens};

/// Policy with short deadlines for requests that get no response, and with few attempts.
const HASTY: Policy = Policy {
    connect: Duration::from_secs(5),
    deadline: Duration::from_millis(400),
    budget: Duration::from_secs(4),
    backoff: Backoff { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(20) },
    list_lag: Duration::from_secs(2),
    waits: Waits { interval: Some(Duration::from_millis(10)), deadline: Some(Duration::from_millis(300)) },
};
/// Time that a job waits for a resource that never becomes ready.
const WAIT: Duration = Duration::from_millis(1500);

/// Journal in memory.
#[derive(Default)]
pub(super) struct Notebook(std::sync::Mutex<Vec<Entry>>);

#[async_trait]
impl Journal for Notebook {
    async fn record(&self, entry: &Entry) -> Result<(), JournalError> {
        self.0.lock().unwrap().push(entry.clone());
        Ok(())
    }
}

impl Notebook {
    pub(super) fn state(&self) -> JobState {
        self.0.lock().unwrap().last().map(|entry| entry.state.clone()).unwrap_or_default()
    }
}

struct Nobody;

impl ProgressObserver for Nobody {
    fn on_progress(&self, _progress: Progress<'_>) {}
}

pub(super) fn job() -> JobSpec {
    let keep = |count| Keep { newest: Newest::Count(count), younger_than: None };
    JobSpec {
        bucket_options: Default::default(),
        id: JobId::new(&SystemClock),
        server: SERVER.to_owned(),
        from: HOME.to_owned(),
        to: AWAY.to_owned(),
        bucket: BUCKET.to_owned(),
        bucket_location: AWAY.to_owned(),
        prefix: String::new(),
        bucket_region: None,
        endpoint: None,
        resource_group: None,
        origin: Origin::Server,
        goal: Goal::Image,
        restore: Restore::FastClone,
        snapshot_fate: SnapshotFate::Prunable,
        operating_system: None,
        image_name: None,
        volume_profile: None,
        encoding: Encoding::default(),
        base: BaseRule::Auto,
        retention: Retention { snapshots: keep(1), images: keep(2), objects: keep(2) },
    }
}

impl Bench {
    fn means(&self, cancel: &Cancel) -> ClientContext {
        ClientContext {
            tokens: tokens(&self.sim),
            clock: Arc::new(SystemClock),
            cancel: cancel.clone(),
            watch: Arc::new(LogWatch),
            fence: Arc::new(snapferry_base::fence::Unfenced),
            known_hosts: Default::default(),
        }
    }

    fn hasty_client(&self, region: &str, cancel: &Cancel) -> RegionClient {
        let endpoint = Endpoint::parse(&self.sim.endpoint_template());
        let config = ClientConfig {
            region: region.to_owned(),
            endpoint,
            ca_file: None,
            proxies: Proxies::default(),
            policy: HASTY,
        };
        RegionClient::new(config, self.means(cancel)).unwrap()
    }

    fn tagging(&self, cancel: &Cancel) -> Tagging {
        let config = TaggingConfig {
            endpoint: self.sim.tagging_endpoint(),
            ca_file: None,
            proxies: Proxies::default(),
            policy: HASTY,
        };
        Tagging::new(&config, self.means(cancel)).unwrap()
    }

    fn bucket(&self, cancel: &Cancel) -> Arc<dyn ObjectStore> {
        let config = self.sim.store().config();
        let auth = Auth::Hmac {
            access_key: config.access_key.clone(),
            secret_key: config.secret_key.clone(),
            session_token: None,
        };
        let usual = S3Config::new(&self.sim.store().endpoint(), &config.region, BUCKET, auth);
        let hasty = S3Config {
            deadline: HASTY.deadline,
            complete: HASTY.deadline,
            slowest: snapferry_base::units::ByteCount(50 << 20),
            ..usual
        };
        let store = Arc::new(S3Store::connect(hasty).unwrap());
        Arc::new(Retrying::new(store, Arc::new(SystemClock), cancel.clone(), Pace::new(6), HASTY.backoff))
    }

    pub(super) fn site(&self, cancel: &Cancel) -> JobContext {
        let id = InstanceId::new(self.sim.own_instance_id());
        let devices = DeviceFolder {
            folder: self.sim.device_folder(),
            device_kind: DeviceKind::DeviceOrFile,
            deadline: Duration::from_secs(5),
        };
        JobContext {
            own: OwnServer {
                id,
                name: "ferry".to_owned(),
                zone: format!("{HOME}-1"),
                region: HOME.to_owned(),
            },
            home: self.hasty_client(HOME, cancel),
            away: self.hasty_client(AWAY, cancel),
            tagging: self.tagging(cancel),
            store: self.bucket(cancel),
            devices,
            clock: Arc::new(SystemClock),
            cancel: cancel.clone(),
            volume_permits: Arc::new(tokio::sync::Semaphore::new(1)),
            runtime: tokio::runtime::Handle::current(),
            waits: Waits { interval: Some(Duration::from_millis(10)), deadline: Some(WAIT) },
            hold: Arc::new(SnapshotHold::new(
                "ferry",
                None,
                Arc::new(snapferry_base::fence::Unfenced),
                Arc::new(SystemClock),
            )),
            server_locks: ServerLocks::default(),
        }
    }

    pub(super) async fn saga(
        &self,
        job: &JobSpec,
        site: &JobContext,
        notes: &Notebook,
    ) -> Result<Finished, JobError> {
        let cleaning = self.site(&Cancel::new());
        Saga { job, context: site, cleanup_context: &cleaning, journal: notes, observer: &Nobody }
            .run(notes.state())
            .await
    }

    /// Places that `gc` searches, and its rules.
    fn yard(&self) -> (Places, Rules) {
        let cancel = Cancel::new();
        let places = Places {
            home: self.client(HOME),
            away: Some((self.client(AWAY), self.tagging(&cancel))),
            bucket: Some((self.bucket(&cancel), String::new(), BUCKET.to_owned())),
            server_locks: ServerLocks::default(),
        };
        let waits = Waits { interval: Some(Duration::from_millis(10)), deadline: None };
        (
            places,
            Rules {
                min_age: Duration::ZERO,
                live: BTreeSet::new(),
                known: BTreeSet::new(),
                clock: Arc::new(SystemClock),
                waits,
            },
        )
    }

    /// Leftovers that `gc` finds.
    async fn found(&self) -> Vec<String> {
        let (places, rules) = self.yard();
        survey(&places, &rules).await.unwrap().leftovers().map(ToString::to_string).collect()
    }

    /// Removes the leftovers that `gc` finds.
    pub(super) async fn collect(&self) {
        let (places, rules) = self.yard();
        let found = survey(&places, &rules).await.unwrap();
        assert_eq!((&found.could_not_list, &found.not_looked_at), (&Vec::new(), &Vec::new()));
        for leftover in found.leftovers() {
            assert!(remove(leftover, &places, &rules).await.unwrap(), "{leftover}");
        }
    }
}

/// Expected end of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// The fault passes: the job is done.
    Done,
    /// The fault stays: the job fails.
    Failed,
    /// Either end is right: the fault may have passed before the next attempt.
    Either,
}

/// Runs a job on `site` after `arm` has set up the fault, and checks the final state.
pub(super) async fn case(
    bench: Bench,
    what: &str,
    ends: Ends,
    site: JobContext,
    arm: impl FnOnce(&Bench),
) -> Option<JobError> {
    let (job, notes) = (job(), Notebook::default());
    let before = bench.latest().await.expect("there is one");
    let since = bench.sim.history().len();
    arm(&bench);
    let outcome = bench.saga(&job, &site, &notes).await;
    bench.sim.faults().clear();
    bench.sim.store().faults().clear();
    let images = bench.images().await;
    assert!(images.iter().any(|image| image.id == before.id), "{what}: the image before is gone");
    let mut unpruned = 0;
    let failed = match outcome {
        Ok(finished) => {
            unpruned = finished.warnings.len();
            assert_ne!(ends, Ends::Failed, "{what}: it went through");
            assert_eq!(
                finished.state.image.map(|image| image.name).as_deref(),
                Some("web01-latest"),
                "{what}"
            );
            None
        }
        Err(error) => {
            assert_ne!(ends, Ends::Done, "{what}: {error}: {:?}", error.fault);
            // Until a new image is there, the one before keeps its name.
            let latest = bench.latest().await.unwrap_or_else(|| panic!("{what}: there is no latest image"));
            assert!(latest.id == before.id || error.step > Step::Promote, "{what}: {error}");
            Some(error)
        }
    };
    // `gc` sees all leftovers; the resumed job makes again the resources that `gc` has removed.
    if ends == Ends::Failed {
        bench.collect().await;
        assert_eq!(bench.leaks().await, Vec::<String>::new(), "{what}: gc does not see it");
    }
    if failed.is_some() {
        let resumed = bench.saga(&job, &bench.site(&Cancel::new()), &notes).await;
        resumed.unwrap_or_else(|error| panic!("{what}: resumed: {error}: {:?}", error.fault));
    }
    // If lists lag, wait until they show the image.
    let latest = loop {
        match bench.latest().await {
            Some(latest) => break latest,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_ne!(latest.id, before.id, "{what}");
    bench.collect().await;
    assert_eq!(bench.leaks().await, Vec::<String>::new(), "{what}");
    let promoted = bench
        .sim
        .history()
        .iter()
        .skip(since)
        .filter(|deed| deed.operation == Op::CreateImage && deed.status == 201)
        .count();
    assert!(promoted == 1 || failed.is_some(), "{what}: {promoted} imports");
    let images = bench.images().await.len();
    assert!(images == 2 || (images == 3 && unpruned > 0), "{what}: {images} images");
    bench.sim.shutdown().await;
    failed
}

/// The message of the error and of all its sources.
pub(super) fn words(error: &JobError) -> String {
    let mut words = error.to_string();
    let mut next: Option<&dyn std::error::Error> = Some(&*error.fault);
    while let Some(cause) = next {
        words.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    words
}

/// Passes all requests of a job to the cloud to the macro `$then`, after `$arguments`.
macro_rules! with_calls {
    ($then:ident! $($arguments:tt)*) => {
        $then! {
            $($arguments)*
            [
                list_instances: ListInstances,
                get_volume: GetVolume,
                get_operating_system: GetOperatingSystem,
                list_attachments: ListAttachments,
                create_snapshot: CreateSnapshot,
                get_snapshot: GetSnapshot,
                list_clones: ListClones,
                create_clone: CreateClone,
                get_clone: GetClone,
                create_volume: CreateVolume,
                list_volumes: ListVolumes,
                create_attachment: CreateAttachment,
                get_attachment: GetAttachment,
                delete_attachment: DeleteAttachment,
                delete_volume: DeleteVolume,
                delete_clone: DeleteClone,
                list_images: ListImages,
                create_image: CreateImage,
                attach_tag: AttachTag,
                get_image: GetImage,
                list_tags: ListTags,
                update_image: UpdateImage,
                list_snapshots: ListSnapshots,
                update_snapshot: UpdateSnapshot,
                delete_snapshot: DeleteSnapshot,
                delete_image: DeleteImage,
                identity_token: IdentityToken,
            ]
        }
    };
}

/// One test for each call: `check(call)`.
macro_rules! test_each {
    ($check:ident [$($name:ident: $call:ident,)*]) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            super::$check(super::Op::$call).await;
        }
    )*};
}

macro_rules! list {
    ([$($name:ident: $call:ident,)*]) => { [$(Op::$call),*] };
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_calls_is_whole() {
    let bench = Bench::with_history().await;
    let before: Vec<u64> = Op::ALL.iter().map(|&operation| bench.sim.request_count(operation)).collect();
    bench.saga(&job(), &bench.site(&Cancel::new()), &Notebook::default()).await.unwrap();
    for (&operation, before) in Op::ALL.iter().zip(before) {
        let asked = bench.sim.request_count(operation) > before;
        assert_eq!(asked, with_calls!(list!).contains(&operation), "{operation:?}");
    }
    bench.sim.shutdown().await;
}

/// The first request of that kind gets `action`, and the job succeeds all the same.
async fn passes(call: Op, action: RegionAction) {
    let bench = Bench::with_history().await;
    let site = bench.site(&Cancel::new());
    let rule = RegionRule::on(call).when(When::First(1));
    let arm = |bench: &Bench| bench.sim.faults().add(rule, action.clone());
    case(bench, &format!("{call:?} {action:?} once"), Ends::Done, site, arm).await;
}

macro_rules! passing {
    ($($name:ident: $action:expr;)*) => {$(
        mod $name {
            use super::{Op, RegionAction};

            async fn check(call: Op) {
                super::passes(call, $action).await;
            }

            mod once {
                with_calls!(test_each! check);
            }
        }
    )*};
}

passing! {
    every_call_throttled: RegionAction::Answer { status: 429, code: Some("rate_limit".to_owned()), retry_after_s: Some(0) };
    every_call_failing: RegionAction::answer(500, "internal_error");
    every_call_behind_a_broken_gateway: RegionAction::Answer { status: 503, code: None, retry_after_s: None };
    every_call_hanging: RegionAction::Hang;
    every_call_reset: RegionAction::Reset;
    every_call_done_and_the_answer_dropped: RegionAction::ApplyThenDrop;
    every_call_done_and_never_answered: RegionAction::ApplyThenHang;
    every_call_done_and_told_as_failed: RegionAction::ApplyThenAnswer { status: 502, code: "internal_error".to_owned() };
}

/// A permanent refusal by the cloud ends the job, with the reason and the request.
async fn refused(call: Op) {
    let bench = Bench::with_history().await;
    let site = bench.site(&Cancel::new());
    let arm = |bench: &Bench| {
        bench.sim.faults().add(RegionRule::on(call), RegionAction::answer(403, "not_authorized"));
    };
    // A job does not fail because it can't tag or prune.
    let ends = match call {
        Op::AttachTag | Op::DeleteSnapshot | Op::DeleteImage => Ends::Done,
        Op::ListTags | Op::GetVolume | Op::GetSnapshot | Op::ListVolumes | Op::ListSnapshots => Ends::Either,
        _ => Ends::Failed,
    };
    if let Some(error) = case(bench, &format!("{call:?} refused"), ends, site, arm).await {
        let words = words(&error);
        assert!(words.contains("not_authorized") || call == Op::IdentityToken, "{words}");
    }
}

mod every_call_refused_for_good {
    with_calls!(test_each! refused);
}

/// A resource that fails after its creation is removed, so that it is in the way of no later job; and the job
/// waits for a resource that lists show late.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_fails_or_shows_late() {
    for call in [Op::CreateSnapshot, Op::CreateVolume, Op::CreateAttachment, Op::CreateImage] {
        // An attachment has no failed state.
        if call != Op::CreateAttachment {
            let bench = Bench::with_history().await;
            let site = bench.site(&Cancel::new());
            let fails = RegionAction::FailLater { code: "image_data_corrupted".to_owned() };
            let arm = |bench: &Bench| bench.sim.faults().add(RegionRule::on(call), fails);
            let error = case(bench, &format!("{call:?} fails later"), Ends::Failed, site, arm).await.unwrap();
            assert!(
                words(&error).contains("is failed") && words(&error).contains("image_data_corrupted"),
                "{}",
                words(&error)
            );
            assert!(error.orphaned.is_empty(), "{:?}", error.orphaned);
        }
        let bench = Bench::with_history().await;
        let site = bench.site(&Cancel::new());
        let arm = |bench: &Bench| {
            bench
                .sim
                .faults()
                .add(RegionRule::on(call).when(When::First(1)), RegionAction::ListLag { milliseconds: 300 });
        };
        case(bench, &format!("{call:?} does not show in lists at once"), Ends::Done, site, arm).await;
    }
}

/// The list lags until after the job: the new image counts among the images to keep.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_list_shows_yet_counts_where_older_ones_are_pruned() {
    let bench = Bench::with_history().await;
    let lag = RegionAction::ListLag { milliseconds: 3_600_000 };
    bench.sim.faults().add(RegionRule::on(Op::CreateImage), lag);
    let done = bench.run(Host::Own, &["--json"]).await.json();
    let shown: Vec<String> = bench.images().await.into_iter().map(|image| image.id.to_string()).collect();
    assert_eq!(
        shown,
        [done["replaced"]["id"].as_str().unwrap()],
        "two are kept, and the newest is not shown"
    );
    bench.sim.shutdown().await;
}

/// A resource that never becomes ready can't be removed either, while the cloud works on it: the job names
/// its leftovers, and `gc` finds them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_never_gets_ready() {
    for (call, step) in [
        (Op::CreateSnapshot, Step::Stable),
        (Op::CreateVolume, Step::Volume),
        (Op::CreateAttachment, Step::Attach),
        (Op::CreateImage, Step::Available),
    ] {
        let bench = Bench::with_history().await;
        let before = bench.latest().await.unwrap();
        bench.sim.faults().add(RegionRule::on(call), RegionAction::StuckPending);
        let error = bench.saga(&job(), &bench.site(&Cancel::new()), &Notebook::default()).await.unwrap_err();
        assert_eq!(error.step, step);
        assert!(error.fault.to_string().contains("is still"), "{}", error.fault);
        let (leaks, found) = (bench.leaks().await, bench.found().await);
        assert!(!leaks.is_empty(), "{call:?}: what is stuck is gone");
        for leak in leaks.iter().filter(|leak| !leak.starts_with("attachment")) {
            let name = leak.split(' ').nth(1).unwrap();
            assert!(
                found.iter().any(|found| found.contains(name)),
                "{call:?}: gc does not see {leak}: {found:?}"
            );
        }
        assert_eq!(bench.latest().await.map(|latest| latest.id), Some(before.id), "{call:?}");
        bench.sim.shutdown().await;
    }
}

/// Request number `nth` of that kind to the bucket gets each of the faults that pass, and then the bucket is
/// gone.
async fn bucket_faults(call: Store, nth: u32) {
    let passing = [
        Action::Answer { status: 503, code: Some("SlowDown".to_owned()), retry_after_s: Some(0) },
        Action::Hang,
        Action::Reset,
        Action::ApplyThenDrop,
    ];
    for action in &passing {
        let bench = Bench::with_history().await;
        let site = bench.site(&Cancel::new());
        let arm = |bench: &Bench| {
            bench.sim.store().faults().add(Rule::on(call).when(When::Nth(nth)), action.clone());
        };
        case(bench, &format!("{call} {nth} {action:?} once"), Ends::Done, site, arm).await;
    }
    if nth > 1 {
        return;
    }
    let bench = Bench::with_history().await;
    let gone = Action::Answer { status: 404, code: Some("NoSuchBucket".to_owned()), retry_after_s: None };
    let arm = |bench: &Bench| bench.sim.store().faults().add(Rule::on(call), gone);
    let site = bench.site(&Cancel::new());
    let ends = match call {
        // A HEAD response has no body with a reason, and a job does not fail because it can't prune.
        Store::HeadObject => Ends::Either,
        Store::ListObjectsV2 | Store::DeleteObject => Ends::Done,
        _ => Ends::Failed,
    };
    if let Some(error) = case(bench, &format!("{call}: the bucket is gone"), ends, site, arm).await
        && call != Store::HeadObject
    {
        assert!(words(&error).contains("bucket \"images\" does not exist"), "{}", words(&error));
    }
}

macro_rules! bucket_calls {
    ($($name:ident: $call:ident, $nth:expr;)*) => {
        mod every_call_to_the_bucket {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::bucket_faults(super::Store::$call, $nth).await;
            }
        )*}
    };
}

// Two earlier images are looked at before the conversion: HEAD of each and of its manifest, and the manifest.
bucket_calls! {
    head_object: HeadObject, 1;
    head_object_of_an_earlier_image: HeadObject, 2;
    head_object_of_an_earlier_manifest: HeadObject, 3;
    list_multipart_uploads: ListMultipartUploads, 1;
    list_multipart_uploads_to_abort: ListMultipartUploads, 2;
    list_multipart_uploads_to_prune: ListMultipartUploads, 3;
    create_multipart_upload: CreateMultipartUpload, 1;
    upload_part: UploadPart, 1;
    complete_multipart_upload: CompleteMultipartUpload, 1;
    put_object: PutObject, 1;
    get_object_of_an_earlier_manifest: GetObject, 1;
    get_object: GetObject, 3;
    list_objects_for_an_earlier_image: ListObjectsV2, 1;
    list_objects_to_prune: ListObjectsV2, 2;
    delete_object: DeleteObject, 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_turns_up() {
    let bench = Bench::with_history().await;
    let mut site = bench.site(&Cancel::new());
    let empty = crate::support::folder();
    site.devices = DeviceFolder {
        folder: empty.path().to_owned(),
        deadline: Duration::from_millis(200),
        ..site.devices
    };
    let error = case(bench, "no device", Ends::Failed, site, |_| {}).await.unwrap();
    assert_eq!(error.step, Step::Attach);
    assert!(error.fault.to_string().contains("did not turn up within"), "{}", error.fault);
    assert!(error.orphaned.is_empty(), "{:?}", error.orphaned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_another_size() {
    let bench = Bench::with_history().await;
    let mut site = bench.site(&Cancel::new());
    let links = crate::support::folder();
    let small = links.path().join("small");
    std::fs::File::create(&small).unwrap().set_len(1 << 20).unwrap();
    site.devices.folder = links.path().to_owned();
    // Every link that appears leads to a disk that is not the volume.
    let (home, own, folder) = (bench.client(HOME), site.own.id.clone(), links.path().to_owned());
    let linking = tokio::spawn(async move {
        loop {
            for attachment in home.attachments(&own).await.unwrap() {
                if let Some(device) = attachment.device {
                    let _ = std::os::unix::fs::symlink(
                        &small,
                        folder.join(format!("virtio-{}", &device.id[..20])),
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let error = case(bench, "a small device", Ends::Failed, site, |_| {}).await.unwrap();
    linking.abort();
    assert!(error.fault.to_string().contains("has 1 MiB, the volume 1 GiB"), "{}", error.fault);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_another_file() {
    let bench = Bench::with_history().await;
    let site = bench.site(&Cancel::new());
    bench.sim.faults().add(
        RegionRule::on(Op::CreateImage).when(When::First(1)),
        RegionAction::delay(Duration::from_millis(300)),
    );
    let (job, notes) = (job(), Notebook::default());
    let names = job.names().unwrap();
    let stored = bench.sim.store().config().folder.join(BUCKET).join(names.key.as_str().replace('/', "%2F"));
    let faults = bench.sim.faults().clone();
    let copy = stored.clone();
    let tampering = tokio::spawn(async move {
        while faults.fired() != [1] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let good = std::fs::read(&copy).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        std::fs::write(&copy, bad).unwrap();
        good
    });
    let before = bench.latest().await.unwrap();
    let error = bench.saga(&job, &site, &notes).await.unwrap_err();
    assert!(matches!(*error.fault, Fault::WrongFile { .. }), "{:?}", error.fault);
    assert_eq!(
        (error.step, bench.latest().await.map(|latest| latest.id)),
        (Step::Available, Some(before.id))
    );
    // The image of the wrong file was removed, and with the right file the job succeeds.
    assert_eq!(bench.images().await.len(), 2);
    std::fs::write(&stored, tampering.await.unwrap()).unwrap();
    bench.saga(&job, &bench.site(&Cancel::new()), &notes).await.unwrap();
    bench.collect().await;
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}

async fn token_ends(call: Op) {
    let bench = Bench::with_history().await;
    let site = bench.site(&Cancel::new());
    let rule = RegionRule::on(call).when(When::First(1));
    let arm = |bench: &Bench| bench.sim.faults().add(rule, RegionAction::answer(401, "token_invalid"));
    let ends = if call == Op::IdentityToken { Ends::Either } else { Ends::Done };
    case(bench, &format!("{call:?}: the token has ended"), ends, site, arm).await;
}

mod tokens_that_end_early {
    with_calls!(test_each! token_ends);
}

/// A job that is stopped at any call cleans up after itself, and can be resumed.
async fn stopped(call: Op) {
    let bench = Bench::with_history().await;
    let cancel = Cancel::new();
    let site = bench.site(&cancel);
    let rule = RegionRule::on(call).when(When::First(1));
    let arm = |bench: &Bench| bench.sim.faults().add(rule, RegionAction::delay(Duration::from_millis(50)));
    let faults = bench.sim.faults().clone();
    let stopping = tokio::spawn(async move {
        while faults.fired() != [1] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cancel.cancel(snapferry_base::cancel::Reason::Requested);
    });
    let failed = case(bench, &format!("stopped at {call:?}"), Ends::Either, site, arm).await;
    stopping.abort();
    if let Some(error) = failed {
        assert_eq!(error.class(), snapferry_base::retry::Class::Cancelled, "{call:?}: {:?}", error.fault);
        assert!(error.orphaned.is_empty(), "{call:?}: {:?}", error.orphaned);
    }
}

mod stopped_at_every_call {
    with_calls!(test_each! stopped);
}
