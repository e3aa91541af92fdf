//! Sources and stores that fail on command: each failure ends with its exit code and a message that names the
//! failed place, and leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::Backoff;
use snapferry_base::units::{ByteCount, GuestOffset, MIB, to_u64, to_usize};
use snapferry_engine::convert::plan::{ManifestPolicy, Options};
use snapferry_engine::convert::{Conversion, ConvertError, Converted, Failure, Target, plan_for};
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::source::{Extent, InUse, RawSource, Salvaging, Source, SourceError};
use snapferry_engine::store::Location;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{FolderStore, ObjectStore, Operation, Pace, Retrying, StoreError};
use snapferry_s3::{S3Config, S3Store};
use snapferry_sim::{Action, Operation as Request, Rule, TlsFiles, When};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::model::Model;
use snapferry_testkit::scripted::{Fault, ScriptedStore};
use tempfile::TempDir;

use super::prove;
use crate::support::{
    BUCKET, Bucket, KEY, Running, convert, convert_disk, convert_into_file, folder, key, left_in, padded,
    run, runtime, snapferry, wait_until,
};

/// Part size that makes several parts, so that several threads have work.
const PARTS: [&str; 2] = ["--part-size", "8M"];

/// Writes a disk that no codec makes smaller, so that all of its bytes are sent, into a new folder.
fn random_disk(size: u64) -> (TempDir, PathBuf, Disk) {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    let disk = Disk::new(Kind::Random, ByteCount(size), 41);
    disk.write(&raw).expect("a disk");
    (folder, raw, disk)
}

/// Disk in memory of which the range `bad` can't be read.
struct Broken {
    bytes: Vec<u8>,
    bad: std::ops::Range<u64>,
    error: fn(GuestOffset) -> SourceError,
}

impl Source for Broken {
    fn name(&self) -> &str {
        "/dev/broken"
    }
    fn size(&self) -> ByteCount {
        ByteCount(to_u64(self.bytes.len()))
    }
    fn alignment(&self) -> usize {
        512
    }
    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let end = offset.0 + to_u64(into.len());
        if offset.0 < self.bad.end && self.bad.start < end {
            // As in the kernel: the whole read fails, and the error does not name the bad range.
            return Err((self.error)(offset));
        }
        let available = &self.bytes[to_usize(offset.0)..self.bytes.len().min(to_usize(end))];
        into[..available.len()].copy_from_slice(available);
        into[available.len()..].fill(0);
        Ok(())
    }
    fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
        Ok(Extent::Data { end: GuestOffset(to_u64(self.bytes.len())) })
    }
    fn settle(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

fn io_error(offset: GuestOffset) -> SourceError {
    SourceError::Read { path: "/dev/broken".to_owned(), offset, source: rustix::io::Errno::IO.into() }
}

fn device_lost(offset: GuestOffset) -> SourceError {
    SourceError::Vanished { path: "/dev/broken".to_owned(), offset, source: rustix::io::Errno::NODEV.into() }
}

#[test]
fn an_unreadable_sector_is_found_wherever_it_is() {
    let bytes = Disk::new(Kind::Random, ByteCount(21 * MIB + 700), 42).to_vec();
    let len = to_u64(bytes.len());
    for start in [0, 512, 2 * MIB - 512, 2 * MIB, 9 * MIB + 1536, len / 512 * 512] {
        let source = Broken { bytes: bytes.clone(), bad: start..start + 1, error: io_error };
        let memory = Arc::new(MemoryStore::new(BUCKET));
        let store: Arc<dyn ObjectStore> = memory.clone();
        let failure =
            convert(&source, &store, Location::Bucket, &Options::default()).expect_err("a bad sector");
        let ConvertError::Source(SourceError::Read { offset, .. }) = failure.error else {
            panic!("{failure:?}")
        };
        assert_eq!(offset, GuestOffset(start));
        assert_eq!(failure.orphaned_upload, None);
        let left = runtime()
            .block_on(async { (memory.head(&key()).await.ok(), memory.list_uploads("").await.ok()) });
        assert_eq!(left, (Some(None), Some(Vec::new())));

        let salvaging = Salvaging::new(source);
        let done = convert(&salvaging, &store, Location::Bucket, &Options::default()).expect("salvaged");
        let mut salvaged = bytes.clone();
        let end = (start + 512).min(len);
        salvaged[to_usize(start)..to_usize(end)].fill(0);
        assert_eq!(
            done.manifest.salvaged.iter().map(|bad| (bad.offset.0, bad.length)).collect::<Vec<_>>(),
            [(start, end - start)]
        );
        let image = runtime()
            .block_on(store.get_range(&key(), 0..done.manifest.image.size.0, None))
            .expect("the image");
        prove(&salvaged, &image, &done.manifest);
    }
}

#[test]
fn a_device_that_is_gone_is_no_case_for_salvage() {
    let home = folder();
    let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::new(home.path().to_owned()));
    let bytes = Disk::new(Kind::Random, ByteCount(12 * MIB), 43).to_vec();
    let salvaging = Salvaging::new(Broken { bytes, bad: 8 * MIB..12 * MIB, error: device_lost });
    let failure = convert(&salvaging, &store, Location::File, &Options::default()).expect_err("it is gone");
    assert!(matches!(&failure.error, ConvertError::Source(SourceError::Vanished { .. })), "{failure:?}");
    assert_eq!(left_in(home.path()), Vec::<String>::new());
}

/// Transient faults, and faults that only look like ones of the store: the image arrives nevertheless.
#[test]
fn passing_faults_of_the_store_pass_unseen() {
    let (_home, raw, disk) = random_disk(17 * MIB);
    let (part, complete) = (|| Rule::on(Request::UploadPart), || Rule::on(Request::CompleteMultipartUpload));
    let once = When::First(1);
    let code = |code: &str| code.to_owned();
    for (what, rule, action) in [
        ("throttled with 503", part().when(When::FirstOfEach(1)), Action::answer(503, "SlowDown")),
        ("throttled with 429", part().when(When::FirstOfEach(1)), Action::answer(429, "TooManyRequests")),
        ("an inner error", part().when(When::FirstOfEach(1)), Action::answer(500, "InternalError")),
        (
            "a proxy's page",
            part().when(once),
            Action::Answer { status: 502, code: None, retry_after_s: None },
        ),
        ("a reset", part().when(once), Action::Reset),
        ("no answer", part().when(once), Action::DropAfterBody),
        ("a part that came and an answer that did not", part().when(once), Action::ApplyThenDrop),
        ("an answer with another checksum", part().when(once), Action::CorruptChecksum),
        ("an old store", Rule::any(), Action::IgnoreChecksums),
        ("an error inside 200", complete().when(once), Action::ErrorInOk { code: code("InternalError") }),
        ("a completion whose answer was lost", complete().when(once), Action::ApplyThenDrop),
        (
            "a completion that was answered with an error",
            complete().when(once),
            Action::ApplyThenAnswer { status: 500, code: code("InternalError") },
        ),
        ("a completion without an ETag", complete(), Action::EmptyEtag),
        ("no answer to HEAD", Rule::on(Request::HeadObject).when(once), Action::DropAfterBody),
        (
            "a manifest at the second attempt",
            Rule::on(Request::PutObject).when(once),
            Action::answer(503, "SlowDown"),
        ),
    ] {
        let bucket = Bucket::start();
        bucket.sim.faults().add(rule, action);
        let ended = run(bucket.convert(&raw, &[&PARTS[..], &["--json"]].concat()));
        assert_eq!(ended.code, Some(0), "{what}: {}", ended.err);
        assert!(bucket.sim.faults().fired()[0] > 0, "{what}: it never happened");
        bucket.sim.faults().clear();
        prove(&disk.to_vec(), &bucket.object(&key()).expect(what), &bucket.manifest());
        assert_eq!(bucket.open_uploads(), 0, "{what}");
    }
}

#[test]
fn lasting_faults_of_the_store_end_the_run_and_leave_nothing() {
    let (_home, raw, _) = random_disk(17 * MIB);
    let denied = || Action::answer(403, "AccessDenied");
    let part = || Rule::on(Request::UploadPart);
    for (rule, action, messages) in [
        (
            Rule::on(Request::CreateMultipartUpload),
            denied(),
            ["CreateMultipartUpload s3://images/disk.qcow2", "access denied"],
        ),
        (part(), denied(), ["UploadPart s3://images/disk.qcow2 part ", "access denied"]),
        (
            part().part(3),
            Action::answer(400, "EntityTooLarge"),
            ["UploadPart s3://images/disk.qcow2 part 3", "400 EntityTooLarge"],
        ),
        (
            part().part(1),
            Action::CorruptChecksum,
            ["UploadPart s3://images/disk.qcow2 part 1", "damaged on the way"],
        ),
        (
            Rule::on(Request::CompleteMultipartUpload),
            Action::ErrorInOk { code: "InvalidPart".to_owned() },
            ["CompleteMultipartUpload s3://images/disk.qcow2", "InvalidPart"],
        ),
    ] {
        let bucket = Bucket::start();
        bucket.sim.faults().add(rule, action);
        let ended = run(bucket.convert(&raw, &PARTS));
        ended.expect(4, &messages);
        bucket.sim.faults().clear();
        bucket.expect_nothing();
    }
}

#[test]
fn an_image_without_its_manifest_is_told_as_such() {
    let (_home, raw, _) = random_disk(MIB);
    let bucket = Bucket::start();
    bucket.sim.faults().add(Rule::on(Request::PutObject), Action::answer(403, "AccessDenied"));
    run(bucket.convert(&raw, &[]))
        .expect(4, &["s3://images/disk.qcow2 is complete", "manifest", "the image can be used"]);
    bucket.sim.faults().clear();
    assert!(bucket.object(&key()).is_some() && bucket.object(&key().manifest()).is_none());
    assert_eq!(bucket.open_uploads(), 0);
}

#[test]
fn an_image_that_cannot_be_looked_at_is_there_all_the_same() {
    let (_home, raw, disk) = random_disk(MIB);
    let bucket = Bucket::start();
    // The first two HEAD requests look for existing objects; the third one looks at the new image.
    bucket
        .sim
        .faults()
        .add(Rule::on(Request::HeadObject).when(When::Nth(3)), Action::answer(403, "AccessDenied"));
    let ended = run(bucket.convert(&raw, &[]));
    ended.expect(
        4,
        &["s3://images/disk.qcow2 is complete", "access denied", "`snapferry verify s3://images/disk.qcow2`"],
    );
    assert!(!ended.err.contains("aborted"), "{}", ended.err);
    assert_eq!(bucket.sim.stats().of(Request::AbortMultipartUpload).requests, 0);
    let image = bucket.object(&key()).expect("the image");
    assert!(
        Model::read(&image).expect("a sound image").disk().expect("its bodies") == padded(&disk.to_vec())
    );
}

/// A missing size is no error: the client asks for it by other requests, and only if none of them returns it,
/// reports that.
#[test]
fn an_image_whose_size_head_does_not_tell_is_looked_at_otherwise() {
    let (_home, raw, disk) = random_disk(MIB);
    let silent = || Rule::on(Request::HeadObject);
    let unsupported = |request| (Rule::on(request), Action::answer(501, "NotImplemented"));
    let bucket = Bucket::start();
    bucket.sim.faults().add(silent(), Action::NoLength);
    run(bucket.convert(&raw, &[])).expect(0, &[]);
    assert!(bucket.object(&key().manifest()).is_some());
    // Without range requests, the list has the size.
    let bucket = Bucket::start();
    bucket.sim.faults().add(silent(), Action::NoLength);
    let (get, refused) = unsupported(Request::GetObject);
    bucket.sim.faults().add(get, refused);
    run(bucket.convert(&raw, &[])).expect(0, &[]);
    // Without either, the object exists but can't be checked.
    let bucket = Bucket::start();
    bucket.sim.faults().add(silent(), Action::NoLength);
    for request in [Request::GetObject, Request::ListObjectsV2] {
        let (rule, refused) = unsupported(request);
        bucket.sim.faults().add(rule, refused);
    }
    let ended = run(bucket.convert(&raw, &[]));
    bucket.sim.faults().clear();
    ended.expect(
        4,
        &[
            "s3://images/disk.qcow2 is complete",
            "did not tell the object's size",
            "`snapferry verify s3://images/disk.qcow2`",
        ],
    );
    assert!(!ended.err.contains("does not hold"), "{}", ended.err);
    let image = bucket.object(&key()).expect("the image");
    assert!(
        Model::read(&image).expect("a sound image").disk().expect("its bodies") == padded(&disk.to_vec())
    );
}

#[test]
fn an_image_that_proves_wrong_is_named() {
    let (_home, raw, _) = random_disk(MIB);
    let bucket = Bucket::start();
    bucket.sim.faults().add(Rule::on(Request::CompleteMultipartUpload), Action::CorruptChecksum);
    let ended = run(bucket.convert(&raw, &[]));
    ended.expect(
        4,
        &["s3://images/disk.qcow2 does not hold the image that was sent", "CRC64NVME", "don't use it"],
    );
    assert!(bucket.object(&key()).is_some());
    assert_eq!(bucket.sim.stats().of(Request::AbortMultipartUpload).requests, 0);
}

#[test]
fn an_old_manifest_does_not_outlive_its_image() {
    let (_home, raw, _) = random_disk(MIB);
    let (_other_home, other, _) = random_disk(2 * MIB);
    let bucket = Bucket::start();
    run(bucket.convert(&raw, &[])).expect(0, &[]);
    assert!(bucket.object(&key().manifest()).is_some());
    bucket.sim.faults().add(Rule::on(Request::PutObject), Action::answer(403, "AccessDenied"));
    run(bucket.convert(&other, &["--force"])).expect(4, &["s3://images/disk.qcow2 is complete", "manifest"]);
    assert_eq!(bucket.object(&key().manifest()), None);
}

#[test]
fn an_image_without_a_manifest_takes_the_place_of_one_that_had_it() {
    let made = convert_disk(&Disk::new(Kind::Text, ByteCount(MIB), 46), &Options::default());
    let manifest = made.folder.path().join(key().manifest().as_str());
    let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::new(made.folder.path().to_owned()));
    let source = RawSource::open(&made.raw, InUse::Refuse).expect("a source");
    let options = Options { manifest_policy: ManifestPolicy::Nothing, ..Options::default() };
    let somebody_elses = b"{\"name\": \"not ours\"}";
    for (before, after) in [(None, None), (Some(&somebody_elses[..]), Some(&somebody_elses[..]))] {
        if let Some(bytes) = before {
            std::fs::write(&manifest, bytes).expect("written");
        }
        std::fs::remove_file(&made.path).expect("removed");
        convert(&source, &store, Location::File, &options).expect("an image");
        assert_eq!(std::fs::read(&manifest).ok().as_deref(), after);
    }
}

/// Converts 17 MiB in parts of 8 MiB into a store that fails as `script` sets it up.
fn into_scripted(script: impl FnOnce(&ScriptedStore)) -> (Arc<ScriptedStore>, Result<Converted, Failure>) {
    let scripted = Arc::new(ScriptedStore::new(Arc::new(MemoryStore::new(BUCKET))));
    script(&scripted);
    let store: Arc<dyn ObjectStore> = scripted.clone();
    let source = Broken {
        bytes: Disk::new(Kind::Random, ByteCount(17 * MIB), 47).to_vec(),
        bad: 0..0,
        error: device_lost,
    };
    let options = Options { part_size: Some(ByteCount(8 * MIB)), ..Options::default() };
    let ended = convert(&source, &store, Location::Bucket, &options);
    (scripted, ended)
}

fn expect_nothing_in(scripted: &ScriptedStore) {
    let memory = scripted.inner();
    let left =
        runtime().block_on(async { (memory.head(&key()).await.ok(), memory.list_uploads("").await.ok()) });
    assert_eq!(left, (Some(None), Some(Vec::new())));
}

#[test]
fn a_stop_before_the_upload_has_begun_is_told_as_one() {
    let operation = Operation { request: "CreateMultipartUpload", target: KEY.to_owned() };
    let (scripted, ended) = into_scripted(|script| {
        script.next("CreateMultipartUpload", Fault::Fail(StoreError::Cancelled { operation }));
    });
    let failure = ended.expect_err("stopped");
    assert!(matches!(failure.error, ConvertError::Pipeline(PipelineError::Interrupted)), "{failure:?}");
    expect_nothing_in(&scripted);
}

#[test]
fn a_sender_that_dies_is_told_as_a_bug() {
    let (scripted, ended) = into_scripted(|script| script.next("UploadPart", Fault::Panic));
    let failure = ended.expect_err("it died");
    assert!(
        matches!(failure.error, ConvertError::Pipeline(PipelineError::StageDied { stage: "upload" })),
        "{failure:?}"
    );
    expect_nothing_in(&scripted);
}

#[test]
fn a_panic_while_the_upload_is_ended_still_aborts_it() {
    let scripted = Arc::new(ScriptedStore::new(Arc::new(MemoryStore::new(BUCKET))));
    scripted.next("CompleteMultipartUpload", Fault::Panic);
    let store: Arc<dyn ObjectStore> = scripted.clone();
    let source = Broken { bytes: vec![7; 4096], bad: 0..0, error: device_lost };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        convert(&source, &store, Location::Bucket, &Options::default())
    }));
    assert!(ended.is_err(), "as planned");
    expect_nothing_in(&scripted);
}

#[test]
fn parts_are_held_against_the_stores_own_list() {
    let (scripted, ended) = into_scripted(ScriptedStore::hide_a_part);
    let failure = ended.expect_err("a part is missing");
    let ConvertError::Store(error @ StoreError::Mismatch { .. }) = &failure.error else {
        panic!("{failure:?}")
    };
    assert!(error.to_string().contains("3 parts were sent, and the store holds 2"), "{error}");
    assert_eq!(scripted.count("CompleteMultipartUpload"), 0);
    expect_nothing_in(&scripted);

    let operation = Operation { request: "ListParts", target: KEY.to_owned() };
    let unknown = StoreError::Unsupported { operation, reason: "scripted".to_owned() };
    let (scripted, ended) = into_scripted(|script| script.next("ListParts", Fault::Fail(unknown)));
    ended.expect("a store without a list does as well");
    assert_eq!(scripted.count("ListParts"), 1);
}

#[test]
fn an_upload_that_may_have_begun_unheard_is_warned_of() {
    let (_home, raw, _) = random_disk(MIB);
    let bucket = Bucket::start();
    let create = Rule::on(Request::CreateMultipartUpload).when(When::First(1));
    bucket.sim.faults().add(create, Action::ApplyThenDrop);
    run(bucket.convert(&raw, &[])).expect(0, &["may have begun another upload", "snapferry uploads list"]);
    assert_eq!(bucket.open_uploads(), 1);
}

#[test]
fn an_upload_that_cannot_be_aborted_is_named_with_the_command_that_does() {
    let (_home, raw, _) = random_disk(17 * MIB);
    let bucket = Bucket::start();
    bucket.sim.faults().add(Rule::on(Request::UploadPart), Action::answer(403, "AccessDenied"));
    bucket.sim.faults().add(Rule::on(Request::AbortMultipartUpload), Action::answer(403, "AccessDenied"));
    let ended = run(bucket.convert(&raw, &PARTS));
    ended.expect(4, &["could not be aborted", "billed"]);
    bucket.sim.faults().clear();
    assert_eq!(bucket.open_uploads(), 1);
    // The command in the message works as printed, apart from the store's address.
    let (_, printed) = ended.err.split_once("snapferry uploads abort ").expect("a command");
    assert!(printed.starts_with("--bucket images --key disk.qcow2 --id "), "{printed}");
    let mut command = bucket.command(["uploads", "abort"]);
    let args: Vec<&str> = printed.split_whitespace().skip_while(|word| *word != "--key").take(4).collect();
    command.args(args);
    run(command).expect(0, &[]);
    bucket.expect_nothing();
}

#[test]
fn a_store_that_does_not_let_us_in_says_why() {
    let (_home, raw, _) = random_disk(MIB);
    let bucket = Bucket::start();
    let at = |args: &[&str]| {
        let mut command = bucket.keyless(["convert", "--key", KEY]);
        command.arg("--device").arg(&raw).args(args);
        command
    };
    let config = bucket.sim.config();
    let mut wrong_keys = at(&[]);
    wrong_keys.env("AWS_ACCESS_KEY_ID", &config.access_key).env("AWS_SECRET_ACCESS_KEY", "another");
    run(wrong_keys).expect(
        4,
        &["s3://images/disk.qcow2", "access denied: SignatureDoesNotMatch", "check the access key"],
    );
    let mut unknown_user = at(&[]);
    unknown_user.env("AWS_ACCESS_KEY_ID", "nobody").env("AWS_SECRET_ACCESS_KEY", "another");
    run(unknown_user).expect(4, &["access denied: InvalidAccessKeyId", "check the access key"]);
    let mut wrong_api_key = at(&["--iam-endpoint", &bucket.sim.iam_endpoint()]);
    wrong_api_key.env("IBMCLOUD_API_KEY", "another");
    run(wrong_api_key).expect(4, &[&bucket.sim.iam_endpoint(), "BXNIM0415E"]);
    bucket.expect_nothing();

    let keys = |mut command: std::process::Command| {
        command
            .env("AWS_ACCESS_KEY_ID", &config.access_key)
            .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
        command
    };
    let convert = |args: &[&str]| {
        let mut command =
            snapferry(["convert", "--key", KEY, "--endpoint", &bucket.sim.endpoint(), "--device"]);
        command.arg(&raw).args(args);
        keys(command)
    };
    run(convert(&["--bucket", "nowhere", "--region", "us-south"]))
        .expect(4, &["bucket \"nowhere\" does not exist", "check the bucket's name"]);
    run(convert(&["--bucket", BUCKET, "--region", "eu-de"])).expect(4, &["not in region \"eu-de\""]);
    bucket.expect_nothing();
}

#[test]
fn a_token_is_fetched_for_an_api_key_and_again_when_it_expires() {
    let (home, raw, disk) = random_disk(25 * MIB);
    let file = home.path().join("apikey");
    for (life, least) in [(3600, 1), (30, 3)] {
        let bucket = Bucket::start_with(None, |config| config.token_life = Duration::from_secs(life));
        std::fs::write(&file, bucket.sim.config().api_keys[0].reveal()).expect("written");
        let mut command =
            bucket.keyless(["convert", "--key", KEY, "--json", "--part-size", "8M", "--connections", "1"]);
        command
            .arg("--device")
            .arg(&raw)
            .args(["--iam-endpoint", &bucket.sim.iam_endpoint(), "--api-key-file"])
            .arg(&file);
        run(command).json();
        let requests = bucket.sim.stats().of(Request::IdentityToken).requests;
        assert!(
            requests >= least && (life < 3600 || requests == 1),
            "a token that lives {life} s was asked for {requests} times"
        );
        prove(&disk.to_vec(), &bucket.object(&key()).expect("the image"), &bucket.manifest());
    }
}

#[test]
fn an_expired_token_is_told_as_such() {
    let (_home, raw, _) = random_disk(MIB);
    let bucket = Bucket::start_with(None, |config| config.token_life = Duration::ZERO);
    let mut command = bucket.keyless(["convert", "--key", KEY, "--iam-endpoint", &bucket.sim.iam_endpoint()]);
    command.arg("--device").arg(&raw).env("IBMCLOUD_API_KEY", bucket.sim.config().api_keys[0].reveal());
    run(command).expect(4, &["s3://images/disk.qcow2", "access denied"]);
    bucket.expect_nothing();
}

/// A certificate authority, and a certificate that it has issued for this machine.
fn certificates(folder: &TempDir) -> (PathBuf, TlsFiles) {
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = write("ca.pem", authority.self_signed(&authority_key).expect("a certificate").pem());
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    let files =
        TlsFiles { certificate: write("own.pem", own.pem()), key: write("key.pem", key.serialize_pem()) };
    (ca, files)
}

#[test]
fn a_private_authority_is_trusted_once_it_is_named() {
    let (home, raw, disk) = random_disk(9 * MIB);
    let (ca, files) = certificates(&home);
    let bucket = Bucket::start_with(Some(ca.clone()), |config| config.tls = Some(files));
    run(bucket.convert(&raw, &[]))
        .expect(4, &["s3://images/disk.qcow2", "certificate is not trusted", "--ca-file"]);
    let ca = ca.to_str().expect("UTF-8");
    run(bucket.convert(&raw, &["--ca-file", "/nonexistent/ca.pem"])).expect(4, &["/nonexistent/ca.pem"]);
    bucket.expect_nothing();
    run(bucket.convert(&raw, &["--ca-file", ca, "--json"])).json();
    prove(&disk.to_vec(), &bucket.object(&key()).expect("the image"), &bucket.manifest());
    // The same authority has issued IAM's certificate.
    let mut command = bucket.keyless([
        "convert",
        "--key",
        KEY,
        "--force",
        "--json",
        "--iam-endpoint",
        &bucket.sim.iam_endpoint(),
    ]);
    command
        .arg("--device")
        .arg(&raw)
        .args(["--ca-file", ca])
        .env("IBMCLOUD_API_KEY", bucket.sim.config().api_keys[0].reveal());
    run(command).json();
}

/// A sound disk that asks for a stop after its last byte: the upload is completed nevertheless, since the
/// program can't tell this case from a completion that was sent already.
struct StopsAtEnd<'a> {
    disk: Broken,
    store: &'a ScriptedStore,
}

impl Source for StopsAtEnd<'_> {
    fn name(&self) -> &str {
        self.disk.name()
    }
    fn size(&self) -> ByteCount {
        self.disk.size()
    }
    fn alignment(&self) -> usize {
        self.disk.alignment()
    }
    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        self.disk.read_at(offset, into)
    }
    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.disk.extent_at(from)
    }
    fn settle(&self) -> Result<(), SourceError> {
        for request in ["HeadObject", "PutObject"] {
            let operation = Operation { request, target: KEY.to_owned() };
            self.store.next(request, Fault::Fail(StoreError::Cancelled { operation }));
        }
        Ok(())
    }
}

#[test]
fn a_stop_that_comes_too_late_is_told_as_an_image_without_its_manifest() {
    let scripted = Arc::new(ScriptedStore::new(Arc::new(MemoryStore::new(BUCKET))));
    let store: Arc<dyn ObjectStore> = scripted.clone();
    let bytes = Disk::new(Kind::Text, ByteCount(MIB), 44).to_vec();
    let source = StopsAtEnd { disk: Broken { bytes, bad: 0..0, error: device_lost }, store: &scripted };
    let failure =
        convert(&source, &store, Location::Bucket, &Options::default()).expect_err("it was stopped");
    let is_cancelled =
        matches!(&failure.error, ConvertError::Manifest { source: StoreError::Cancelled { .. }, .. });
    assert!(is_cancelled && failure.orphaned_upload.is_none(), "{failure:?}");
    assert_eq!(scripted.count("AbortMultipartUpload"), 0, "there is nothing to abort");
    assert!(runtime().block_on(store.head(&key())).expect("an answer").is_some());
}

/// A sound disk on which `event` runs at read number `at`, counted from 1.
struct Eventful<'a> {
    disk: Broken,
    at: usize,
    reads: AtomicUsize,
    event: &'a (dyn Fn() + Send + Sync),
}

impl Source for Eventful<'_> {
    fn name(&self) -> &str {
        self.disk.name()
    }
    fn size(&self) -> ByteCount {
        self.disk.size()
    }
    fn alignment(&self) -> usize {
        self.disk.alignment()
    }
    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        if self.reads.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            (self.event)();
        }
        self.disk.read_at(offset, into)
    }
    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.disk.extent_at(from)
    }
    fn settle(&self) -> Result<(), SourceError> {
        self.disk.settle()
    }
}

/// Converts 41 MiB (21 reads, several parts) into memory, runs `event` at read `at`, and returns the error.
/// Panics if anything is left behind.
fn with_event(at: usize, cancel: &Cancel, event: &(dyn Fn() + Send + Sync)) -> ConvertError {
    let bytes = Disk::new(Kind::Mixed, ByteCount(41 * MIB), 45).to_vec();
    let source = Eventful {
        disk: Broken { bytes, bad: 0..0, error: device_lost },
        at,
        reads: AtomicUsize::new(0),
        event,
    };
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new(BUCKET));
    let options = Options { part_size: Some(ByteCount(8 * MIB)), ..Options::default() };
    let plan = plan_for(&source, &options, Location::Bucket).expect("a plan");
    let target = Target { store: Arc::clone(&store), key: key(), overwrite: Overwrite::Refuse };
    let runtime = runtime();
    let conversion = Conversion {
        source: &source,
        target,
        plan: &plan,
        host: String::new(),
        clock: &SystemClock,
        cancel: cancel.clone(),
        counters: Arc::default(),
        base: None,
        refused: None,
    };
    let failure = conversion.run(runtime.handle()).expect_err("it can't succeed");
    assert_eq!(failure.orphaned_upload, None);
    let left = runtime.block_on(async { (store.head(&key()).await.ok(), store.list_uploads("").await.ok()) });
    assert_eq!(left, (Some(None), Some(Vec::new())), "at read {at}");
    failure.error
}

#[test]
fn a_stop_at_any_read_ends_the_run_and_leaves_nothing() {
    for at in 1..=21 {
        let cancel = Cancel::new();
        let error = with_event(at, &cancel, &|| cancel.cancel(Reason::Requested));
        assert!(
            matches!(error, ConvertError::Pipeline(PipelineError::Interrupted)),
            "at read {at}: {error:?}"
        );
    }
}

#[test]
fn a_stage_that_dies_ends_the_run_and_leaves_nothing() {
    for at in [1, 11, 21] {
        let error = with_event(at, &Cancel::new(), &|| panic!("as planned"));
        assert!(
            matches!(error, ConvertError::Pipeline(PipelineError::StageDied { .. })),
            "at read {at}: {error:?}"
        );
    }
}

#[test]
fn a_store_that_stalls_is_given_up_at_the_deadline_and_asked_again() {
    let (_home, raw, disk) = random_disk(17 * MIB);
    for action in [Action::Hang, Action::StopReading] {
        let bucket = Bucket::start();
        bucket.sim.faults().add(Rule::on(Request::UploadPart).when(When::First(2)), action);
        let cancel = Cancel::new();
        let impatient = {
            let config = bucket.client_config();
            let _inside = bucket.runtime.enter();
            // The same deadline as in production, only shorter.
            S3Store::connect(S3Config {
                deadline: Duration::from_secs(2),
                slowest: ByteCount(16 * MIB),
                ..config
            })
            .expect("a client")
        };
        let store: Arc<dyn ObjectStore> = Arc::new(Retrying::new(
            Arc::new(impatient),
            Arc::new(SystemClock),
            cancel,
            Pace::new(4),
            Backoff::STORE,
        ));
        let source = RawSource::open(&raw, InUse::Refuse).expect("a source");
        let options = Options { part_size: Some(ByteCount(8 * MIB)), ..Options::default() };
        convert(&source, &store, Location::Bucket, &options).expect("an image");
        assert_eq!(bucket.sim.faults().fired(), [2]);
        prove(&disk.to_vec(), &bucket.object(&key()).expect("the image"), &bucket.manifest());
        assert_eq!(bucket.open_uploads(), 0);
    }
}

/// Starts a slow conversion, and returns once its first part has arrived.
fn under_way(bucket: &Bucket, raw: &std::path::Path) -> Running {
    let running = Running::start(bucket.convert(raw, &["--part-size", "8M", "--limit", "100k"]));
    wait_until("a part has arrived", || bucket.sim.stats().of(Request::UploadPart).succeeded > 0);
    running
}

#[test]
fn a_signal_ends_the_upload_and_leaves_nothing() {
    let (_home, raw, _) = random_disk(40 * MIB);
    for signal in [Signal::INT, Signal::TERM] {
        let bucket = Bucket::start();
        let mut running = under_way(&bucket, &raw);
        running.signal(signal);
        running.end().expect(130, &["stopping", "interrupted"]);
        bucket.expect_nothing();
        assert_eq!(bucket.sim.stats().of(Request::AbortMultipartUpload).succeeded, 1);
    }
}

#[test]
fn a_second_signal_ends_the_run_at_once() {
    let (_home, raw, _) = random_disk(40 * MIB);
    let bucket = Bucket::start();
    bucket.sim.faults().add(Rule::on(Request::AbortMultipartUpload), Action::Hang);
    let mut running = under_way(&bucket, &raw);
    running.signal(Signal::INT);
    wait_until("it aborts the upload", || bucket.sim.stats().of(Request::AbortMultipartUpload).requests > 0);
    assert!(running.is_running());
    running.signal(Signal::INT);
    running.end().expect(130, &["uploads list"]);
    bucket.sim.faults().clear();
    assert_eq!((bucket.object(&key()), bucket.open_uploads()), (None, 1));
}

#[test]
fn a_signal_leaves_no_file() {
    let (home, raw, _) = random_disk(40 * MIB);
    let folder = folder();
    let image = folder.path().join(KEY);
    let mut running = Running::start(convert_into_file(&raw, &image, &["--limit", "100k"]));
    let hidden = || left_in(folder.path()).into_iter().find(|name| name.ends_with(".partial"));
    wait_until("something is written", || {
        hidden()
            .and_then(|name| std::fs::metadata(folder.path().join(name)).ok())
            .is_some_and(|file| file.len() >= 4 * MIB)
    });
    running.signal(Signal::TERM);
    running.end().expect(130, &["interrupted"]);
    assert_eq!(left_in(folder.path()), Vec::<String>::new());
    assert_eq!(left_in(home.path()), ["disk.raw"]);
}

#[test]
fn a_manifest_that_the_store_only_says_it_has_is_told() {
    let (_home, raw, _disk) = random_disk(MIB);
    let bucket = Bucket::start();
    bucket.sim.faults().add(Rule::on(Request::PutObject), Action::Pretend);
    let mut command = bucket.command(["convert", "--key", KEY]);
    command.arg("--device").arg(&raw);
    run(command).expect(4, &["is complete, but its manifest could not be written", "has none"]);
}

#[test]
fn uploads_are_not_none_because_the_list_broke_off() {
    let bucket = Bucket::start();
    let plan =
        snapferry_engine::store::UploadPlan { part_size: ByteCount(8 * MIB), overwrite: Overwrite::Refuse };
    bucket.runtime.block_on(bucket.client().create_upload(&key(), &plan)).expect("begun");
    bucket
        .sim
        .faults()
        .add(Rule::on(Request::ListMultipartUploads).when(When::First(1)), Action::CutAnswer { bytes: 0 });
    let listed = run(bucket.command_without_bucket(&["uploads", "list", "--bucket", BUCKET]));
    listed.expect(0, &[]);
    assert!(listed.out.contains(KEY), "{listed:?}");
    // As a caching proxy does: the same page again and again.
    bucket.sim.faults().add(Rule::on(Request::ListMultipartUploads), Action::LoseMarkers);
    assert!(
        run(bucket.command_without_bucket(&["uploads", "list", "--bucket", BUCKET])).out.contains(KEY),
        "one page has no marker to lose"
    );
}
