//! `convert --base`: the second night of the same disk. The image is the one of a full run, and an image that
//! can't be a base leads to a full run with its reason.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::store::ObjectKey;
use snapferry_sim::Operation;
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::oracle::QemuImg;
use tempfile::TempDir;

use crate::support::{BUCKET, Bucket, Ended, convert_into_file, folder, run};

/// A disk of 104 MiB in a file, most of it random, so that its image is large enough to be a base.
struct Nightly {
    folder: TempDir,
}

impl Nightly {
    fn new() -> Self {
        let nightly = Self { folder: folder() };
        Disk::new(Kind::Random, ByteCount(72 * MIB), 1).write(&nightly.disk()).expect("a disk");
        let text = Disk::new(Kind::Mixed, ByteCount(32 * MIB), 2).to_vec();
        nightly.write(72 * MIB, &text);
        nightly
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("disk.raw")
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(self.disk()).expect("the disk");
        file.write_all_at(bytes, at).expect("written");
    }

    /// Changes a few bytes in two of the seven segments.
    fn use_it(&self, night: u8) {
        self.write(20 * MIB, &[night; 5000]);
        self.write(100 * MIB, &[night; 300]);
    }
}

fn convert(bucket: &Bucket, disk: &Path, key: &str, more: &[&str]) -> Ended {
    let mut command = bucket.command(["convert", "--key", key, "--json"]);
    command.arg("--device").arg(disk).args(more);
    run(command)
}

fn object(bucket: &Bucket, key: &str) -> Vec<u8> {
    bucket.object(&ObjectKey::new(key).expect("a key")).expect("an image")
}

#[test]
fn the_second_night_sends_what_changed_and_makes_the_image_of_a_full_run() {
    let (bucket, nightly) = (Bucket::start(), Nightly::new());
    let disk = nightly.disk();
    let first = convert(&bucket, &disk, "first.qcow2", &[]).code(0).report();
    assert_eq!((&first["base"], &first["full_because"]), (&serde_json::Value::Null, &"not-asked".into()));
    assert_eq!(first["bytes_sent"], first["bytes_stored"]);
    nightly.use_it(1);
    convert(&bucket, &disk, "full.qcow2", &[]).code(0);
    let before = bucket.sim.stats().of(Operation::UploadPartCopy).requests;
    let made = convert(&bucket, &disk, "second.qcow2", &["--base", "first.qcow2", "--verify"]).code(0);
    let report = made.report();
    let base = &report["base"];
    assert_eq!(
        (&base["key"], &base["segments"], &base["segments_unchanged"]),
        (&"first.qcow2".into(), &7.into(), &5.into())
    );
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let (sent, copied, stored) =
        (number(&report["bytes_sent"]), number(&base["bytes_copied"]), number(&report["bytes_stored"]));
    assert_eq!(sent + copied, stored, "{report}");
    let fetched = number(&base["bytes_fetched"]);
    assert!(copied > stored / 3 && sent - fetched < stored / 3, "{report}");
    let copies = bucket.sim.stats().of(Operation::UploadPartCopy).requests - before;
    assert_eq!(number(&base["copies"]), copies);
    assert_eq!(report["full_because"], serde_json::Value::Null);
    made.says(&["first.qcow2: 5 of 7 segments unchanged;", "copied in the store,", "sent"]);
    assert!(object(&bucket, "second.qcow2") == object(&bucket, "full.qcow2"), "the images differ");
    assert_eq!(bucket.open_uploads(), 0);
    let Some(qemu) = QemuImg::find() else { return };
    let image = nightly.path("second.qcow2");
    std::fs::write(&image, object(&bucket, "second.qcow2")).expect("written");
    qemu.check(&image).expect("a clean image");
    qemu.compare(&disk, &image).expect("the disk's content");
}

#[test]
fn auto_takes_the_image_that_is_replaced_or_the_newest_of_the_device() {
    let (bucket, nightly) = (Bucket::start(), Nightly::new());
    let disk = nightly.disk();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let key = |time: &str| format!("{host}-disk-{time}.qcow2");
    let none = convert(&bucket, &disk, &key("20260101000000"), &["--base", "auto"]).code(0);
    assert_eq!(none.report()["full_because"], "none");
    none.says(&["base      none: there is no older image of this device"]);
    // Not of this device, though it begins alike.
    convert(&bucket, &disk, &format!("{host}-disk-other.qcow2"), &[]).code(0);
    nightly.use_it(1);
    let second = convert(&bucket, &disk, &key("20260102000000"), &["--base", "auto"]).code(0).report();
    assert_eq!(second["base"]["key"], *key("20260101000000"));
    nightly.use_it(2);
    let third = convert(&bucket, &disk, &key("20260103000000"), &["--base", "auto"]).code(0).report();
    assert_eq!(third["base"]["key"], *key("20260102000000"));
    nightly.use_it(3);
    let again =
        convert(&bucket, &disk, &key("20260101000000"), &["--base", "auto", "--force"]).code(0).report();
    assert_eq!(again["base"]["key"], *key("20260101000000"), "the one that is replaced");
    convert(&bucket, &disk, "full.qcow2", &[]).code(0);
    assert!(object(&bucket, &key("20260101000000")) == object(&bucket, "full.qcow2"), "the images differ");
}

#[test]
fn an_image_that_can_be_no_base_is_reported_with_its_reason() {
    let (bucket, nightly) = (Bucket::start(), Nightly::new());
    let disk = nightly.disk();
    convert(&bucket, &disk, "first.qcow2", &["--level", "balanced"]).code(0);
    let other = convert(&bucket, &disk, "second.qcow2", &["--base", "first.qcow2"]).code(0);
    assert_eq!(other.report()["full_because"], "other-encoder");
    other.says(&["base      none: first.qcow2: its library is"]);
    let small = nightly.path("small.raw");
    Disk::new(Kind::Mixed, ByteCount(MIB), 1).write(&small).expect("a disk");
    convert(&bucket, &small, "small.qcow2", &[]).code(0);
    let report = convert(&bucket, &small, "small2.qcow2", &["--base", "small.qcow2"]).code(0).report();
    assert_eq!(report["full_because"], "too-small");
    convert(&bucket, &disk, "third.qcow2", &["--base", "absent.qcow2"])
        .expect(2, &[&format!("the base s3://{BUCKET}/absent.qcow2 does not exist")]);
    convert(&bucket, &disk, "third.qcow2", &["--base", "s3://others/first.qcow2"])
        .expect(2, &["must be in the bucket of the image"]);
    convert(&bucket, &disk, "third.qcow2", &["--base", "auto", "--no-hash"])
        .expect(2, &["exclude each other"]);
}

#[test]
fn a_file_takes_from_a_file_beside_it() {
    let nightly = Nightly::new();
    let (disk, old, new) = (nightly.disk(), nightly.path("old.qcow2"), nightly.path("new.qcow2"));
    run(convert_into_file(&disk, &old, &["--json"])).code(0);
    nightly.use_it(1);
    let full = nightly.path("full.qcow2");
    run(convert_into_file(&disk, &full, &[])).code(0);
    let base = old.to_str().expect("UTF-8");
    let report = run(convert_into_file(&disk, &new, &["--base", base, "--json"])).code(0).report();
    assert_eq!(
        (&report["base"]["segments_unchanged"], &report["full_because"]),
        (&5.into(), &serde_json::Value::Null)
    );
    assert!(
        std::fs::read(&new).expect("an image") == std::fs::read(&full).expect("an image"),
        "the images differ"
    );
    let elsewhere = folder();
    run(convert_into_file(&disk, &elsewhere.path().join("new.qcow2"), &["--base", base]))
        .expect(2, &["must be in the folder of the image"]);
    run(convert_into_file(&disk, &nightly.path("third.qcow2"), &["--base", &format!("{base}.none")]))
        .expect(2, &["does not exist"]);
    let Some(qemu) = QemuImg::find() else { return };
    qemu.check(&new).expect("a clean image");
    qemu.compare(&disk, &new).expect("the disk's content");
}
