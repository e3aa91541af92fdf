//! Files and stores that fail on command: a clear error, and no file at the target's path.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::Backoff;
use snapferry_base::units::{ByteCount, GuestOffset, HostOffset, MIB};
use snapferry_engine::convert::plan::Options;
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::{LocalImage, StoredImage};
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::source::{Extent, InUse, RawSource, Source, SourceError};
use snapferry_engine::store::{ObjectStore, Pace, Retrying, StoreError};
use snapferry_engine::verify::Sha256Wanted;
use snapferry_qcow2::{FileError, ImageFile};
use snapferry_s3::{S3Config, S3Store};
use snapferry_sim::{Action, Operation as Request, Rule, When};
use snapferry_testkit::disks::{Disk, End, Kind};
use snapferry_testkit::memory::MemoryStore;
use snapferry_testkit::scripted::{Fault, ScriptedStore};
use tokio::runtime::Runtime;

use super::{back_in, into_file, open, restore, verify};
use crate::support::{Bucket, KEY, Made, Running, convert_disk, key, left_in, run, runtime, wait_until};

fn made() -> Made {
    convert_disk(&Disk::new(Kind::Mixed, ByteCount(70 * MIB), 91), &Options::default())
}

/// The image in a store that fails as it is scripted.
fn stored(made: &Made, runtime: &Runtime) -> Arc<ScriptedStore> {
    let memory: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new("images"));
    runtime.block_on(memory.put(&key(), made.image.clone().into())).expect("stored");
    Arc::new(ScriptedStore::new(memory))
}

/// The store's error in a restore's error.
fn store_error(error: &RestoreError) -> &StoreError {
    let RestoreError::File(file) = error else { panic!("{error:?}") };
    file.source.downcast_ref().unwrap_or_else(|| panic!("{file:?}"))
}

fn nothing_in(folder: &Path) {
    assert_eq!(left_in(folder), [KEY, "disk.qcow2.manifest", "disk.raw"]);
}

/// An image that runs `act` at the n-th read of a body.
struct Acting<F> {
    inner: LocalImage,
    reads: AtomicU64,
    at: u64,
    act: F,
}

impl<F: Fn(&LocalImage, HostOffset, &mut [u8]) -> Result<(), FileError> + Send + Sync> ImageFile
    for Acting<F>
{
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size(&self) -> ByteCount {
        self.inner.size()
    }
    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == self.at {
            (self.act)(&self.inner, at, into)
        } else {
            self.inner.read_at(at, into)
        }
    }
}

#[test]
fn an_object_that_is_replaced_half_way_is_an_error_and_not_a_mixture() {
    let (made, runtime) = (made(), runtime());
    let store = stored(&made, &runtime);
    let image = StoredImage::open(store.clone(), key(), runtime.handle().clone()).expect("it is there");
    runtime.block_on(store.put(&key(), made.image.clone().into())).expect("the same bytes, another version");
    let error =
        restore(&image, None, &back_in(made.folder.path()), &Cancel::new()).expect_err("another version");
    assert!(matches!(error, RestoreError::Image(_)), "the first read tells: {error:?}");

    let image = StoredImage::open(store.clone(), key(), runtime.handle().clone()).expect("it is there");
    let half_way =
        Replacing { image, store, runtime: &runtime, bytes: made.image.clone(), reads: AtomicU64::new(0) };
    let error =
        restore(&half_way, None, &back_in(made.folder.path()), &Cancel::new()).expect_err("another version");
    assert!(matches!(store_error(&error), StoreError::Precondition { .. }), "{error:?}");
    nothing_in(made.folder.path());
}

/// An object that is replaced when a body is read.
struct Replacing<'a> {
    image: StoredImage,
    store: Arc<ScriptedStore>,
    runtime: &'a Runtime,
    bytes: Vec<u8>,
    reads: AtomicU64,
}

impl ImageFile for Replacing<'_> {
    fn name(&self) -> &str {
        self.image.name()
    }
    fn size(&self) -> ByteCount {
        self.image.size()
    }
    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == 3 {
            self.runtime.block_on(self.store.put(&key(), self.bytes.clone().into())).expect("replaced");
        }
        self.image.read_at(at, into)
    }
}

#[test]
fn a_short_answer_is_an_error_and_never_zeros() {
    let (made, runtime) = (made(), runtime());
    let store = stored(&made, &runtime);
    let image = StoredImage::open(store.clone(), key(), runtime.handle().clone()).expect("it is there");
    let mut bytes = vec![0xee; 5000];
    store.cut_next(4999);
    let error = image.read_at(HostOffset(100), &mut bytes).expect_err("one is missing");
    assert!(
        error.source.to_string().contains("bytes 100 to 5100 were asked for and 4999 bytes came"),
        "{}",
        error.source
    );
    image.read_at(HostOffset(100), &mut bytes).expect("all of them");
    assert_eq!(bytes, made.image[100..5100]);
}

#[test]
fn bytes_of_another_place_do_not_pass_the_manifest() {
    let made = made();
    for step in [1, 512, 65_536] {
        // Reads 0 and 1 are the header and the tables.
        let wrong = Acting {
            inner: open(&made.path),
            reads: AtomicU64::new(0),
            at: 3,
            act: move |inner: &LocalImage, at: HostOffset, into: &mut [u8]| {
                inner.read_at(HostOffset(at.0 - step), into)
            },
        };
        let error = restore(&wrong, Some(&made.manifest), &back_in(made.folder.path()), &Cancel::new())
            .expect_err("wrong bytes");
        assert!(
            matches!(error, RestoreError::Body { .. } | RestoreError::Manifest { .. }),
            "{step}: {error:?}"
        );
        nothing_in(made.folder.path());
    }
}

#[test]
fn a_file_that_is_written_to_meanwhile_is_an_error() {
    let made = made();
    let path = made.path.clone();
    let touched = Acting {
        inner: open(&made.path),
        reads: AtomicU64::new(0),
        at: 3,
        act: move |inner: &LocalImage, at: HostOffset, into: &mut [u8]| {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("another time");
            inner.read_at(at, into)
        },
    };
    let error =
        restore(&touched, None, &back_in(made.folder.path()), &Cancel::new()).expect_err("it changed");
    assert!(
        matches!(&error, RestoreError::File(file) if file.source.to_string().contains("changed")),
        "{error:?}"
    );
    nothing_in(made.folder.path());
}

#[test]
fn a_store_that_stalls_resets_and_throttles_is_asked_again() {
    let (made, bucket) = (made(), Bucket::start());
    bucket.runtime.block_on(bucket.client().put(&key(), made.image.clone().into())).expect("stored");
    let faults = bucket.sim.faults();
    faults.add(Rule::on(Request::GetObject).when(When::Nth(3)), Action::Hang);
    faults.add(Rule::on(Request::GetObject).when(When::Nth(4)), Action::Reset);
    faults.add(Rule::on(Request::GetObject).when(When::Nth(5)), Action::answer(503, "SlowDown"));
    faults.add(Rule::on(Request::GetObject).when(When::Nth(6)), Action::DropAfterBody);
    let cancel = Cancel::new();
    let store: Arc<dyn ObjectStore> = {
        let _inside = bucket.runtime.enter();
        let config = S3Config { deadline: Duration::from_secs(1), ..bucket.client_config() };
        let bare = Arc::new(S3Store::connect(config).expect("a client"));
        Arc::new(Retrying::new(bare, Arc::new(SystemClock), cancel.clone(), Pace::new(8), Backoff::STORE))
    };
    let image = StoredImage::open(store, key(), bucket.runtime.handle().clone()).expect("it is there");
    let back = back_in(made.folder.path());
    restore(&image, Some(&made.manifest), &back, &cancel).expect("restored");
    assert!(std::fs::read(&back).expect("the disk") == std::fs::read(&made.raw).expect("the disk"));
    assert_eq!(faults.fired(), [1, 1, 1, 1]);
}

#[test]
fn a_store_that_never_answers_lets_go_when_asked_to_stop() {
    let (made, runtime) = (made(), runtime());
    let store = stored(&made, &runtime);
    let cancel = Cancel::new();
    let patient: Arc<dyn ObjectStore> = Arc::new(Retrying::new(
        store.clone(),
        Arc::new(SystemClock),
        cancel.clone(),
        Pace::new(8),
        Backoff::STORE,
    ));
    let image = StoredImage::open(patient, key(), runtime.handle().clone()).expect("it is there");
    let hanging = HangingFrom { image, store, from: 2, reads: AtomicU64::new(0), cancel: cancel.clone() };
    let error = restore(&hanging, None, &back_in(made.folder.path()), &cancel).expect_err("stopped");
    assert!(matches!(error, RestoreError::Pipeline(PipelineError::Interrupted)), "{error:?}");
    nothing_in(made.folder.path());
}

/// An object whose reads hang from the n-th on, and then the user cancels.
struct HangingFrom {
    image: StoredImage,
    store: Arc<ScriptedStore>,
    from: u64,
    reads: AtomicU64,
    cancel: Cancel,
}

impl ImageFile for HangingFrom {
    fn name(&self) -> &str {
        self.image.name()
    }
    fn size(&self) -> ByteCount {
        self.image.size()
    }
    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) >= self.from {
            self.store.next("GetObject", Fault::Hang);
            let (store, cancel) = (Arc::clone(&self.store), self.cancel.clone());
            let before = store.count("GetObject");
            std::thread::spawn(move || {
                wait_until("the request is on its way", || store.count("GetObject") > before);
                cancel.cancel(Reason::Requested);
            });
        }
        self.image.read_at(at, into)
    }
}

#[test]
fn a_restore_that_is_stopped_leaves_nothing_and_one_that_is_killed_only_its_hidden_file() {
    let (made, bucket) = (made(), Bucket::start());
    bucket.runtime.block_on(bucket.client().put(&key(), made.image.clone().into())).expect("stored");
    let folder = crate::support::folder();
    let back = back_in(folder.path());
    for (signal, code) in [(Signal::TERM, Some(130)), (Signal::KILL, None)] {
        let faults = bucket.sim.faults();
        faults.clear();
        // The header and the tables arrive, and the first body never does.
        faults.add(Rule::on(Request::GetObject).key(KEY).when(When::Nth(3)), Action::Hang);
        let to = back.to_str().expect("UTF-8");
        let mut restoring = Running::start(bucket.command_without_bucket(&[
            "restore",
            "s3://images/disk.qcow2",
            "--output",
            to,
        ]));
        wait_until("a body hangs", || faults.fired() == [1]);
        wait_until("the target is begun", || !left_in(folder.path()).is_empty());
        restoring.signal(signal);
        assert_eq!(restoring.end().code, code);
        let left = left_in(folder.path());
        match signal {
            Signal::TERM => assert_eq!(left, Vec::<String>::new()),
            _ => assert!(
                left.len() == 1 && left[0].starts_with(".back.raw.") && left[0].ends_with(".partial"),
                "{left:?}"
            ),
        }
    }
}

#[test]
fn a_truncated_image_is_refused_with_what_is_missing() {
    let made = made();
    let cut = made.folder.path().join("cut.qcow2");
    for keep in [0, 100, 70_000, made.image.len() / 2] {
        std::fs::write(&cut, &made.image[..keep]).expect("written");
        let ended = run(into_file(&cut, &back_in(made.folder.path()), &["--manifest", "none"]));
        ended.expect(7, &["cut.qcow2"]);
    }
    std::fs::remove_file(&cut).expect("removed");
    nothing_in(made.folder.path());
}

#[test]
fn a_reader_that_dies_at_any_read_leaves_nothing_and_gives_no_verdict() {
    let made = made();
    let back = back_in(made.folder.path());
    let acting = |at, act: fn()| Acting {
        inner: LocalImage::open(&made.path).expect("an image"),
        reads: AtomicU64::new(0),
        at,
        act: move |inner: &LocalImage, at, into: &mut [u8]| {
            act();
            inner.read_at(at, into)
        },
    };
    let whole = acting(u64::MAX, || {});
    restore(&whole, Some(&made.manifest), &back, &Cancel::new()).expect("it comes back");
    std::fs::remove_file(&back).expect("removed");
    let reads = whole.reads.into_inner();
    // The calling thread has read the tables before.
    for at in [reads / 2, reads - 2, reads - 1] {
        let error =
            restore(&acting(at, || panic!("as planned")), Some(&made.manifest), &back, &Cancel::new())
                .expect_err("it died");
        assert!(
            matches!(error, RestoreError::Pipeline(PipelineError::StageDied { .. })),
            "at read {at} of {reads}: {error:?}"
        );
        nothing_in(made.folder.path());
        let verdict =
            verify(&acting(at, || panic!("as planned")), Some(&made.manifest), Sha256Wanted::No, None);
        assert!(
            matches!(verdict, Err(RestoreError::Pipeline(PipelineError::StageDied { .. }))),
            "at read {at} of {reads}: {verdict:?}"
        );
    }
}

/// A disk to compare with, whose reading thread panics at the offset `from`.
struct Dying {
    inner: RawSource,
    from: u64,
}

impl Source for Dying {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size(&self) -> ByteCount {
        self.inner.size()
    }
    fn alignment(&self) -> usize {
        self.inner.alignment()
    }
    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        assert!(offset.0 < self.from, "as planned");
        self.inner.read_at(offset, into)
    }
    fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
        Ok(Extent::Data { end: GuestOffset(self.size().0) })
    }
    fn settle(&self) -> Result<(), SourceError> {
        self.inner.settle()
    }
}

#[test]
fn a_comparison_whose_threads_die_is_no_verdict() {
    // Mostly zeros, so that clusters that the image does not store are compared too.
    let made = convert_disk(
        &Disk::new(Kind::Only { end: End::First, len: MIB }, ByteCount(70 * MIB), 92),
        &Options::default(),
    );
    let image = LocalImage::open(&made.path).expect("an image");
    for from in [0, 40 * MIB, 68 * MIB] {
        let disk = Dying { inner: RawSource::open(&made.raw, InUse::Read).expect("a disk"), from };
        let verdict = verify(&image, None, Sha256Wanted::No, Some(&disk));
        assert!(
            matches!(verdict, Err(RestoreError::Pipeline(PipelineError::StageDied { .. }))),
            "from {from}: {verdict:?}"
        );
    }
    let disk = RawSource::open(&made.raw, InUse::Read).expect("a disk");
    assert!(verify(&image, None, Sha256Wanted::No, Some(&disk)).expect("a verdict").good);
}
