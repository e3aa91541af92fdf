//! Real devices and file systems, sound and failing. All tests here need root and loop devices.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use snapferry_base::units::{ByteCount, GuestOffset, MIB, to_u64, to_usize};
use snapferry_engine::convert::ConvertError;
use snapferry_engine::convert::plan::Options;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{Extent, InUse, RawSource, Source, SourceError};
use snapferry_engine::store::Location;
use snapferry_engine::store::{FolderStore, ObjectStore};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::loopdev::{
    Access, BAD_UNIT, BadRangeDevice, LoopDevice, LoopOptions, MountedDevice, SmallFs,
};
use snapferry_testkit::oracle::QemuImg;

use super::prove;
use crate::support::{Bucket, KEY, convert, convert_into_file, folder, key, left_in, run};

#[test]
fn a_device_converts_whatever_its_sector_size() {
    let folder = folder();
    let (raw, image) = (folder.path().join("disk.raw"), folder.path().join(KEY));
    let disk = Disk::new(Kind::Mixed, ByteCount(19 * MIB + 4096), 31);
    disk.write(&raw).expect("a disk");
    for logical_sector in [512, 4096] {
        let options = LoopOptions { logical_sector, access: Access::ReadOnly };
        let Some(device) = LoopDevice::attach(&raw, options) else { return };
        let report = run(convert_into_file(device.path(), &image, &["--json", "--force"])).json();
        assert_eq!(
            report["bytes_read"].as_u64(),
            Some(disk.size.0),
            "a device has no holes that we could ask for"
        );
        let manifest: Manifest = serde_json::from_slice(
            &std::fs::read(folder.path().join(key().manifest().as_str())).expect("the manifest"),
        )
        .expect("JSON");
        assert_eq!(manifest.source.name, device.path().to_str().expect("UTF-8"));
        prove(&disk.to_vec(), &std::fs::read(&image).expect("the image"), &manifest);
        if let Some(qemu) = QemuImg::find() {
            assert_eq!(qemu.check(&image), Ok(()));
            assert_eq!(qemu.compare(&raw, &image), Ok(()));
        }
    }
}

/// A disk of random bytes, and a device of these bytes on which the range `bad` can't be read.
fn damaged(bad: Range<u64>) -> Option<(Vec<u8>, BadRangeDevice)> {
    let contents = Disk::new(Kind::Random, ByteCount(12 * MIB), 32).to_vec();
    BadRangeDevice::new(&contents, bad).map(|device| (contents, device))
}

/// Bad range in the middle of a chunk, aligned to no larger unit.
const BAD: Range<u64> = 5 * MIB + 7 * BAD_UNIT..5 * MIB + 9 * BAD_UNIT;

#[test]
fn a_read_error_is_told_with_its_offset_and_leaves_nothing() {
    let Some((_, device)) = damaged(BAD) else { return };
    let (folder, bucket) = (folder(), Bucket::start());
    let message = format!("{}: read error at offset {}", device.path().display(), BAD.start);
    let ended = run(convert_into_file(device.path(), &folder.path().join(KEY), &["--json"]));
    ended.expect(3, &[&message, "Input/output error", "--salvage"]);
    ended.prints_only_an_error();
    assert_eq!(left_in(folder.path()), Vec::<String>::new());
    run(bucket.convert(device.path(), &["--part-size", "8M"])).expect(3, &[&message, "--salvage"]);
    bucket.expect_nothing();
}

#[test]
fn salvage_stores_all_that_can_be_read_and_reports_the_rest() {
    let Some((mut contents, device)) = damaged(BAD) else { return };
    contents[to_usize(BAD.start)..to_usize(BAD.end)].fill(0);
    let folder = folder();
    let image = folder.path().join(KEY);
    let ended = run(convert_into_file(device.path(), &image, &["--salvage", "--json"]));
    let message = format!("{} bytes at offset {}", BAD.end - BAD.start, BAD.start);
    ended.expect(3, &["unreadable", &message]);
    let range = serde_json::json!([{"offset": BAD.start, "length": BAD.end - BAD.start}]);
    assert_eq!(ended.report()["salvaged"], range);
    let manifest = std::fs::read(folder.path().join(key().manifest().as_str())).expect("the manifest");
    let manifest: Manifest = serde_json::from_slice(&manifest).expect("a manifest");
    assert_eq!(serde_json::to_value(&manifest.salvaged).expect("JSON"), range);
    prove(&contents, &std::fs::read(&image).expect("the image"), &manifest);

    // `--quiet` still reports errors, and unreadable ranges are errors.
    run(convert_into_file(device.path(), &image, &["--salvage", "--quiet", "--force"]))
        .expect(3, &["unreadable", &message]);
    // A disk without read errors ends with exit code 0 under `--salvage` too.
    let sound = folder.path().join("sound.raw");
    std::fs::write(&sound, &contents).expect("a disk");
    let report = run(convert_into_file(&sound, &image, &["--salvage", "--json", "--force"])).json();
    assert_eq!(report["salvaged"], serde_json::json!([]));
}

#[test]
fn a_mounted_device_is_refused_unless_the_user_insists() {
    let Some(mounted) = MountedDevice::new(8 * MIB) else { return };
    let folder = folder();
    let image = folder.path().join(KEY);
    let device = mounted.path().to_str().expect("UTF-8");
    run(convert_into_file(mounted.path(), &image, &[]))
        .expect(3, &[device, "is in use", "findmnt", "--in-use"]);
    assert_eq!(left_in(folder.path()), Vec::<String>::new());
    run(convert_into_file(mounted.path(), &image, &["--in-use", "--json"])).json();
}

#[test]
fn a_device_that_is_taken_away_is_told_with_the_offset() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    Disk::new(Kind::Random, ByteCount(12 * MIB), 33).write(&raw).expect("a disk");
    let Some(device) = LoopDevice::attach(&raw, LoopOptions::default()) else { return };
    device.truncate_backing(7 * MIB).expect("cut");
    let bucket = Bucket::start();
    let message = format!("{}: read error at offset {}", device.path().display(), 7 * MIB);
    run(bucket.convert(device.path(), &["--part-size", "8M"])).expect(3, &[&message]);
    bucket.expect_nothing();
}

/// Source on which `act` runs once, just before the first read at or after `from`.
struct ChangingSource<'a> {
    inner: RawSource,
    from: u64,
    done: AtomicBool,
    act: &'a (dyn Fn() + Send + Sync),
}

impl Source for ChangingSource<'_> {
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
        if offset.0 + to_u64(into.len()) > self.from && !self.done.swap(true, Ordering::SeqCst) {
            (self.act)();
        }
        self.inner.read_at(offset, into)
    }
    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.inner.extent_at(from)
    }
    fn settle(&self) -> Result<(), SourceError> {
        self.inner.settle()
    }
}

/// Converts `path` while `act` changes it, and returns the source's error. Panics if anything is left behind.
fn convert_while(path: &Path, from: u64, act: &(dyn Fn() + Send + Sync)) -> SourceError {
    let folder = folder();
    let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::new(folder.path().to_owned()));
    let inner = RawSource::open(path, InUse::Refuse).expect("a source");
    let source = ChangingSource { inner, from, done: AtomicBool::new(false), act };
    // One read at a time, so that it is known which bytes were read before.
    let options = Options { readers: std::num::NonZeroUsize::new(1), ..Options::default() };
    let failure = convert(&source, &store, Location::File, &options).expect_err("it was meddled with");
    assert_eq!(failure.orphaned_upload, None);
    assert_eq!(left_in(folder.path()), Vec::<String>::new());
    match failure.error {
        ConvertError::Source(error) => error,
        other => panic!("not the source's error: {other:?}"),
    }
}

fn random_file(folder: &Path) -> std::path::PathBuf {
    let raw = folder.join("disk.raw");
    Disk::new(Kind::Random, ByteCount(24 * MIB), 34).write(&raw).expect("a disk");
    raw
}

fn open_for_writing(path: &Path) -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open(path).expect("the disk")
}

#[test]
fn a_file_that_shrinks_meanwhile_is_told_with_its_new_end() {
    let home = folder();
    let raw = random_file(home.path());
    let error = convert_while(&raw, 20 * MIB, &|| open_for_writing(&raw).set_len(19 * MIB).expect("cut"));
    assert!(
        matches!(error, SourceError::Shrunk { offset: GuestOffset(at), size, .. } if (at, size) == (20 * MIB, 24 * MIB)),
        "{error:?}"
    );
    // Grown behind the bytes that were read already: only the comparison at the end finds it.
    let raw = random_file(home.path());
    let error = convert_while(&raw, 23 * MIB, &|| open_for_writing(&raw).set_len(25 * MIB).expect("grown"));
    assert!(matches!(&error, SourceError::Changed { .. }), "{error:?}");
}

#[test]
fn a_file_that_is_written_meanwhile_makes_no_image() {
    let home = folder();
    let raw = random_file(home.path());
    let error =
        convert_while(&raw, 20 * MIB, &|| open_for_writing(&raw).write_all_at(b"new", MIB).expect("written"));
    assert!(matches!(&error, SourceError::Changed { .. }), "{error:?}");
    assert!(error.to_string().contains("it was written to"), "{error}");
}

#[test]
fn a_device_that_vanishes_or_shrinks_meanwhile_makes_no_image() {
    let home = folder();
    let raw = random_file(home.path());
    let attach = || LoopDevice::attach(&raw, LoopOptions::default());
    let Some(device) = attach() else { return };
    let error = convert_while(device.path(), 20 * MIB, &|| device.truncate_backing(10 * MIB).expect("cut"));
    assert!(
        matches!(error, SourceError::Read { offset: GuestOffset(at), .. } if at == 20 * MIB),
        "{error:?}"
    );
    drop(device);

    random_file(home.path());
    let Some(device) = attach() else { return };
    let error = convert_while(device.path(), 20 * MIB, &|| device.resize(10 * MIB).expect("resized"));
    assert!(
        matches!(error, SourceError::Shrunk { offset: GuestOffset(at), .. } if at == 20 * MIB),
        "{error:?}"
    );
    drop(device);

    random_file(home.path());
    let Some(device) = attach() else { return };
    let error = convert_while(device.path(), 23 * MIB, &|| device.resize(25 * MIB).expect("resized"));
    assert!(matches!(error, SourceError::Changed { .. }), "{error:?}");
}

#[test]
fn a_full_disk_is_told_and_left_as_it_was() {
    let home = folder();
    let raw = random_file(home.path());
    for small in [SmallFs::tmpfs(8 * MIB), SmallFs::ext4(16 * MIB)] {
        let Some(small) = small else { return };
        let before = left_in(small.path());
        let ended = run(convert_into_file(&raw, &small.path().join(KEY), &["--json"]));
        ended.expect(4, &[KEY, "the disk is full", "No space left", "--bucket"]);
        ended.prints_only_an_error();
        assert_eq!(left_in(small.path()), before);
    }
}
