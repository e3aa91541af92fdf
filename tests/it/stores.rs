//! The store suite on every store, and tests that need a real server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::Backoff;
use snapferry_base::secret::Secret;
use snapferry_base::units::{ByteCount, KIB, MIB, to_u64};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    ExpectedObject, FolderStore, Limited, ObjectKey, ObjectStore, Pace, Part, PartNumber, Retrying,
    StoreError, UploadPlan,
};
use snapferry_s3::PartChecksum;
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{SimConfig, SimStore};
use snapferry_testkit::loopdev::SmallFs;
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::skip::{in_ci, skip};
use snapferry_testkit::store_suite::{REAL_PART, Traits, run};

/// Swift behind its S3 API, stopped when this is dropped.
struct Swift {
    folder: tempfile::TempDir,
    endpoint: String,
}

fn swift_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/swift-s3.sh")
}

impl Swift {
    /// Starts Swift; returns `None`, and reports it, if Swift is not installed.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let started = Command::new(swift_script())
            .arg("start")
            .arg(folder.path())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        if started.status.code() == Some(3) {
            assert!(!in_ci(), "Swift is an oracle, and in CI it must be installed");
            skip("Swift is not installed");
            return None;
        }
        assert!(started.status.success(), "Swift did not start");
        let endpoint = String::from_utf8(started.stdout).unwrap().trim().to_owned();
        Some(Self { folder, endpoint })
    }

    fn config(&self, bucket: &str) -> S3Config {
        S3Config::new(&self.endpoint, "us-east-1", bucket, keys("test:tester", "testing123"))
    }
}

fn keys(access_key: &str, secret_key: &str) -> Auth {
    Auth::Hmac { access_key: access_key.to_owned(), secret_key: Secret::new(secret_key), session_token: None }
}

impl Drop for Swift {
    fn drop(&mut self) {
        let stopped = Command::new(swift_script()).arg("stop").arg(self.folder.path()).status();
        // A test that fails has printed its reason already.
        assert!(
            std::thread::panicking() || stopped.is_ok_and(|status| status.success()),
            "Swift was not stopped"
        );
    }
}

const SMALL: Traits = Traits {
    part_size: ByteCount(64 * KIB),
    keeps_crc64: false,
    forgets_completed: true,
    many_parts: true,
    last_number: true,
};

const FOLDER: Traits = Traits { last_number: false, ..SMALL };

#[tokio::test]
async fn the_suite_on_memory() {
    run(Arc::new(MemoryStore::new("images")), Traits { keeps_crc64: true, ..SMALL }, "suite-").await;
}

#[tokio::test]
async fn the_suite_on_memory_behind_every_decorator() {
    let clock = Arc::new(SystemClock);
    let limited = Limited::new(Arc::new(MemoryStore::new("images")), ByteCount(1 << 40), clock.clone());
    let store = Retrying::new(Arc::new(limited), clock, Cancel::new(), Pace::new(4), Backoff::STORE);
    run(Arc::new(store), Traits { keeps_crc64: true, ..SMALL }, "suite-").await;
}

#[tokio::test]
async fn the_suite_on_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    run(Arc::new(FolderStore::new(folder.path().to_owned())), FOLDER, "suite-").await;
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?} was left behind");
}

#[tokio::test]
async fn the_suite_on_a_folder_without_direct_writes() {
    // tmpfs, which has no O_DIRECT before Linux 6.6.
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        skip("there is no /dev/shm");
        return;
    };
    run(Arc::new(FolderStore::new(folder.path().to_owned())), FOLDER, "suite-").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_on_the_embedded_store() {
    let folder = tempfile::tempdir().unwrap();
    let sim = SimStore::start(SimConfig::new(folder.path())).await.unwrap();
    sim.create_bucket("images").await.unwrap();
    let auth = Auth::Hmac {
        access_key: sim.config().access_key.clone(),
        secret_key: sim.config().secret_key.clone(),
        session_token: None,
    };
    let store =
        Arc::new(S3Store::connect(S3Config::new(&sim.endpoint(), "us-south", "images", auth)).unwrap());
    let traits = Traits {
        part_size: REAL_PART,
        keeps_crc64: true,
        forgets_completed: true,
        many_parts: false,
        last_number: true,
    };
    run(store.clone(), traits, "suite/").await;
    assert_eq!(store.part_checksum(), PartChecksum::Crc64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_and_the_refusals_on_swift() {
    let Some(swift) = Swift::start() else { return };
    let store = S3Store::connect(swift.config("images")).unwrap();

    let key = ObjectKey::new("disk.qcow2").unwrap();
    let plan = UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace };
    let err = store.create_upload(&key, &plan).await.unwrap_err();
    assert!(matches!(&err, StoreError::NoSuchBucket { bucket, .. } if bucket == "images"), "{err}");
    store.create_bucket().await.unwrap();
    store.create_bucket().await.unwrap();

    let store = Arc::new(store);
    let traits = Traits {
        part_size: REAL_PART,
        keeps_crc64: false,
        forgets_completed: false,
        many_parts: false,
        last_number: true,
    };
    run(store.clone(), traits, "suite/").await;
    assert_eq!(store.part_checksum(), PartChecksum::Md5, "Swift does not echo CRC64NVME");

    let mut config = swift.config("images");
    config.auth = Auth::Hmac {
        access_key: "test:tester".to_owned(),
        secret_key: Secret::new("hunter2-the-wrong-one"),
        session_token: None,
    };
    let err = S3Store::connect(config).unwrap().list_uploads("").await.unwrap_err();
    assert!(matches!(&err, StoreError::Denied { code, .. } if code == "SignatureDoesNotMatch"), "{err:?}");
    assert!(!format!("{err} {err:?}").contains("hunter2"), "{err:?}");

    let mut config = swift.config("images");
    config.region = "us-south".to_owned();
    let err = S3Store::connect(config).unwrap().list_uploads("").await.unwrap_err();
    assert!(
        matches!(&err, StoreError::WrongRegion { expected: Some(region), .. } if region == "us-east-1"),
        "{err:?} does not name the right region"
    );
}

#[tokio::test]
async fn a_part_in_an_aligned_buffer_and_one_in_any_other_land_where_they_belong() {
    let folder = crate::support::folder();
    let store = FolderStore::new(folder.path().to_owned());
    let key = ObjectKey::new("disk.qcow2").unwrap();
    let upload = store
        .create_upload(&key, &UploadPlan { part_size: ByteCount(MIB), overwrite: Overwrite::Refuse })
        .await
        .unwrap();
    let mut all = Vec::new();
    let mut stored = Vec::new();
    // Aligned and unaligned buffers, lengths that are multiples of a block and others: around the page cache,
    // through it, and both in one file.
    for (number, (skip, len)) in (1..).zip([(0, MIB), (1, MIB), (0, MIB), (0, 4096 * 3 + 17)]) {
        let len = usize::try_from(len).unwrap();
        let room = Bytes::from_owner(vec![u8::try_from(number).unwrap(); len + 3 * 4096]);
        let start = room.as_ptr().align_offset(4096) + skip;
        let body = room.slice(start..start + len);
        assert_eq!(body.as_ptr().addr() % 4096, skip);
        all.extend_from_slice(&body);
        let crc64 = Crc64::of(&body);
        let part = Part { number: PartNumber(number), at: u64::from(number - 1) * MIB, body, crc64 };
        stored.push(store.put_part(&upload, part).await.unwrap());
    }
    let whole = ExpectedObject { size: to_u64(all.len()), crc64: Crc64::of(&all), replaces: None };
    store.complete(&upload, &stored, &whole).await.unwrap();
    assert!(std::fs::read(folder.path().join("disk.qcow2")).unwrap() == all);
}

#[tokio::test]
async fn a_file_that_turns_up_meanwhile_is_not_overwritten_and_odd_targets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = FolderStore::new(folder.path().to_owned());
    let key = ObjectKey::new("disk.qcow2").unwrap();
    let upload = store
        .create_upload(&key, &UploadPlan { part_size: ByteCount(MIB), overwrite: Overwrite::Refuse })
        .await
        .unwrap();
    let body = Bytes::from_static(b"image");
    let whole = ExpectedObject { size: 5, crc64: Crc64::of(&body), replaces: None };
    let stored = store
        .put_part(&upload, Part { number: PartNumber(1), at: 0, crc64: whole.crc64, body })
        .await
        .unwrap();
    std::fs::write(folder.path().join("disk.qcow2"), "somebody else's").unwrap();
    let err = store.complete(&upload, &[stored], &whole).await.unwrap_err();
    assert!(matches!(err, StoreError::Precondition { .. }), "{err}");
    assert_eq!(std::fs::read(folder.path().join("disk.qcow2")).unwrap(), b"somebody else's");
    // Another process, which knows only the files in the folder, finds the upload and removes it.
    let other = FolderStore::new(folder.path().to_owned());
    let found = other.list_uploads("disk").await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].started.is_some());
    assert_eq!(found[0].upload, upload);
    other.abort(&found[0].upload).await.unwrap();
    assert_eq!(other.list_uploads("").await.unwrap(), []);

    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.path().join("device")).unwrap();
    for name in ["folder", "device", "folder/file"] {
        let key = ObjectKey::new(name).unwrap();
        let err = store
            .create_upload(&key, &UploadPlan { part_size: ByteCount(MIB), overwrite: Overwrite::Replace })
            .await
            .unwrap_err();
        assert!(matches!(&err, StoreError::Setup(text) if text.contains(name)), "{err}");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_as_such_and_abort_makes_room_again() {
    let Some(disk) = SmallFs::tmpfs(MIB) else { return };
    let store = FolderStore::new(disk.path().to_owned());
    let key = ObjectKey::new("disk.qcow2").unwrap();
    let upload = store
        .create_upload(&key, &UploadPlan { part_size: ByteCount(2 * MIB), overwrite: Overwrite::Refuse })
        .await
        .unwrap();
    let body = Bytes::from(vec![1; usize::try_from(2 * MIB).unwrap()]);
    let part = Part { number: PartNumber(1), at: 0, crc64: Crc64::of(&body), body };
    let err = store.put_part(&upload, part).await.unwrap_err();
    assert!(matches!(err, StoreError::Full { .. }), "{err:?}");
    store.abort(&upload).await.unwrap();
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    store.put(&key.manifest(), Bytes::from_static(b"{}")).await.unwrap();
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_told_with_the_address() {
    // The port was bound and released: no process listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config =
        S3Config::new(&format!("http://127.0.0.1:{port}"), "us-south", "images", keys("key", "hunter2"));
    let key = ObjectKey::new("disk.qcow2").unwrap();
    let err = S3Store::connect(config.clone()).unwrap().head(&key).await.unwrap_err();
    assert!(
        matches!(&err, StoreError::Connection { endpoint, .. } if endpoint.contains(&port.to_string())),
        "{err:?}"
    );
    let refused = S3Config { endpoint: "https://s3.invalid".to_owned(), ..config.clone() };
    let err = S3Store::connect(refused).unwrap().head(&key).await.unwrap_err();
    assert!(
        matches!(&err, StoreError::Connection { endpoint, .. } if endpoint.contains("s3.invalid")),
        "{err:?}"
    );
    for endpoint in [
        "",
        "s3.example.com",
        "ftp://s3.example.com",
        "https://user:hunter2@s3.example.com",
        "https://s3.example.com/?x",
        "https://s3.example.com/#x",
    ] {
        let err = S3Store::connect(S3Config { endpoint: endpoint.to_owned(), ..config.clone() }).unwrap_err();
        assert!(matches!(err, StoreError::Setup(_)), "{err}");
    }
    assert!(!format!("{config:?}").contains("hunter2"));
}
