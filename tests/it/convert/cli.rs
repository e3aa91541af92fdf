//! `convert` and `uploads` on the command line: refusals that name the next step, the plan, and uploads that
//! an earlier run left behind.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::Operation;
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::skip::{is_root, skip};

use crate::support::{
    BUCKET, Bucket, KEY, Running, convert_into_file, folder, key, left_in, run, snapferry, wait_until,
};

/// Writes a disk of 1 MiB to `disk.raw` in `folder`.
fn small_disk(folder: &Path) -> std::path::PathBuf {
    let raw = folder.join("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(MIB), 1).write(&raw).expect("a disk");
    raw
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("empty"), b"").expect("an empty file");
    assert!(Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo runs").success());
    let before = left_in(folder.path());
    for (device, messages) in [
        (at("missing"), &["cannot open", "missing", "No such file", "lsblk"][..]),
        (at("empty"), &["empty", "no bytes"]),
        (at("pipe"), &["is a pipe", "/dev/vdc"]),
        (folder.path().to_owned(), &["is a folder"]),
        ("/dev/null".into(), &["/dev/null", "is a character device"]),
    ] {
        let ended = run(convert_into_file(&device, &at("image.qcow2"), &["--json"]));
        ended.expect(3, messages);
        ended.prints_only_an_error();
        assert_eq!(left_in(folder.path()), before);
    }
}

#[test]
fn what_one_may_not_read_or_write_is_refused_with_a_hint() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let raw = small_disk(folder.path());
    std::fs::set_permissions(&raw, std::fs::Permissions::from_mode(0o600)).expect("closed");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("open");
    let mut command = convert_into_file(&raw, &folder.path().join(KEY), &[]);
    // The user id of a user other than root.
    command.uid(65534).gid(65534);
    let Ok(output) = command.output() else { return skip("somebody else can't run the program from here") };
    crate::support::Ended::from(output).expect(3, &["cannot open", "Permission denied", "run as root"]);

    std::fs::set_permissions(&raw, std::fs::Permissions::from_mode(0o644)).expect("open");
    let mut command = convert_into_file(&raw, &folder.path().join(KEY), &[]);
    command.uid(65534).gid(65534);
    run(command).expect(4, &[KEY, "Permission denied"]);
    assert_eq!(left_in(folder.path()), ["disk.raw"]);
}

#[test]
fn the_output_must_not_be_the_input() {
    let folder = folder();
    let raw = small_disk(folder.path());
    let before = std::fs::read(&raw).expect("the disk");
    let (soft, hard) = (folder.path().join("soft.qcow2"), folder.path().join("hard.qcow2"));
    symlink(&raw, &soft).expect("a symlink");
    std::fs::hard_link(&raw, &hard).expect("a hard link");
    for (device, output) in [(&raw, &raw), (&raw, &soft), (&soft, &raw), (&raw, &hard), (&hard, &soft)] {
        run(convert_into_file(device, output, &["--force"]))
            .expect(2, &["the output is the input", device.to_str().expect("UTF-8")]);
    }
    assert!(std::fs::read(&raw).expect("the disk") == before);
    assert_eq!(left_in(folder.path()), ["disk.raw", "hard.qcow2", "soft.qcow2"]);
}

#[test]
fn what_is_there_stays_unless_it_may_be_replaced() {
    let (folder, bucket) = (folder(), Bucket::start());
    let raw = small_disk(folder.path());
    let image = folder.path().join(KEY);
    std::fs::write(&image, "mine").expect("written");
    run(convert_into_file(&raw, &image, &[])).expect(4, &["disk.qcow2 exists already", "--force"]);
    assert_eq!(std::fs::read(&image).expect("still there"), b"mine");
    assert_eq!(left_in(folder.path()), ["disk.qcow2", "disk.raw"]);
    run(convert_into_file(&raw, &image, &["--force", "--json"])).json();
    assert!(std::fs::read(&image).expect("replaced").starts_with(b"QFI\xfb"));

    run(bucket.convert(&raw, &["--json"])).json();
    let first = bucket.object(&key()).expect("an image");
    run(bucket.convert(&raw, &["--codec", "zstd"]))
        .expect(4, &["s3://images/disk.qcow2 exists already", "--force"]);
    assert!(bucket.object(&key()).expect("an image") == first);
    run(bucket.convert(&raw, &["--codec", "zstd", "--force", "--json"])).json();
    assert!(bucket.object(&key()).expect("an image") != first);
    assert_eq!(bucket.open_uploads(), 0);
}

#[test]
fn wrong_usage_is_told_and_touches_nothing() {
    let folder = folder();
    let raw = small_disk(folder.path());
    let raw = raw.to_str().expect("UTF-8");
    let output = folder.path().join(KEY);
    let output = output.to_str().expect("UTF-8");
    let to_bucket = ["--bucket", BUCKET, "--endpoint", "http://127.0.0.1:9"];
    for (args, message) in [
        (&[][..], "--bucket"),
        (&["--output", "-"], "header is known last"),
        (&["--output", output, "--bucket", BUCKET], "--bucket"),
        (&["--output", output, "--key", KEY], "--key"),
        (&["--output", output, "--codec", "gzip"], "possible values: deflate, zstd"),
        (&["--output", output, "--level", "9"], "possible values: fast, balanced, small, smallest"),
        (&["--output", output, "--cluster-size", "2k"], "too small"),
        (&["--output", output, "--cluster-size", "4M"], "power of two"),
        (&["--output", output, "--cluster-size", "65k"], "power of two"),
        (&["--output", output, "--part-size", "5M"], "multiple of 4 MiB"),
        (&["--output", output, "--threads", "0"], "--threads"),
        (&["--output", output, "--threads", "200000"], "200000 threads are too many: give at most 512"),
        (&["--output", output, "--connections", "1025"], "1025 connections are too many: give at most 128"),
        (&["--output", output, "--limit", "0"], "--limit 0"),
        (&["--output", output, "--quiet", "--verbose"], "--quiet"),
        (&["--output", "/"], "does not name a file"),
        (&["--bucket", BUCKET], "--region"),
        (&["--bucket", BUCKET, "--endpoint", "s3.example.com"], "neither a URL"),
        (&[&to_bucket[..], &["--key", "a//b"]].concat(), "between slashes"),
        (&to_bucket, "no credentials for the object store"),
        (&[&to_bucket[..], &["--credentials-file", "/nonexistent/keys"]].concat(), "/nonexistent/keys"),
        (&[&to_bucket[..], &["--part-size", "4M"]].concat(), "at least 5 MiB"),
    ] {
        let ended = run(snapferry([&["convert", "--device", raw], args].concat()));
        ended.expect(2, &[message]);
        assert_eq!(ended.out, "", "{args:?}");
        assert_eq!(left_in(folder.path()), ["disk.raw"], "{args:?}");
    }
    let mut half = snapferry([&["convert", "--device", raw], &to_bucket[..]].concat());
    half.env("AWS_ACCESS_KEY_ID", "key");
    run(half).expect(2, &["AWS_SECRET_ACCESS_KEY is not"]);
    run(snapferry(["convert", "--device", raw, "--output", "/nonexistent/disk.qcow2"]))
        .expect(4, &["/nonexistent/disk.qcow2", "No such file"]);
}

#[test]
fn a_disk_that_no_store_takes_is_refused_before_anything_is_read() {
    let (folder, bucket) = (folder(), Bucket::start());
    let raw = folder.path().join("disk.raw");
    let sized = std::fs::File::create(&raw).and_then(|file| file.set_len(10_000_000_000_000));
    if let Err(err) = sized {
        return skip(&format!("a sparse file of 10 TB: {err}"));
    }
    run(bucket.convert(&raw, &[])).expect(2, &["9.09 TiB", "a store holds objects of at most"]);
    run(bucket.convert(&raw, &["--dry-run"])).expect(2, &["a store holds objects of at most"]);
    bucket.expect_nothing();
}

#[test]
fn the_plan_is_told_and_nothing_is_done() {
    let (folder, bucket) = (folder(), Bucket::start());
    let raw = small_disk(folder.path());
    let planned = run(bucket.convert(&raw, &["--dry-run", "--cluster-size", "256k", "--connections", "3"]));
    planned.expect(0, &[]);
    for text in ["(1 MiB)", "s3://images/disk.qcow2", "256 KiB", "32 MiB, 3 at once", "memory    at most"] {
        assert!(planned.out.contains(text), "{text} is not in: {}", planned.out);
    }
    let plan = run(bucket.convert(&raw, &["--dry-run", "--json"])).json();
    assert_eq!((plan["virtual_size"].as_u64(), plan["part_size"].as_u64()), (Some(MIB), Some(32 * MIB)));
    // A dry run needs no keys.
    run(bucket.keyless(["convert", "--dry-run", "--device", raw.to_str().expect("UTF-8")])).expect(0, &[]);
    bucket.expect_nothing();
    assert_eq!(bucket.sim.stats().of(Operation::CreateMultipartUpload).requests, 0);
    run(convert_into_file(&raw, &folder.path().join(KEY), &["--dry-run"])).expect(0, &[]);
    assert_eq!(left_in(folder.path()), ["disk.raw"]);
}

#[test]
fn a_quiet_run_says_nothing_and_an_ordinary_one_what_was_made() {
    let folder = folder();
    let raw = small_disk(folder.path());
    let image = folder.path().join(KEY);
    let ended = run(convert_into_file(&raw, &image, &["--quiet"]));
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(0), "", ""));
    let ended = run(convert_into_file(&raw, &image, &["--force"]));
    ended.expect(0, &["disk.qcow2", "1 MiB", "ratio", "CRC64NVME", "disk.qcow2.manifest"]);
    assert_eq!(ended.out, "");
    // A stderr that can't be written to is no error.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has one");
    let mut command = convert_into_file(&raw, &image, &["--force"]);
    assert_eq!(command.stderr(full).status().expect("it runs").code(), Some(0));
    let help = run(snapferry(["convert", "--help"]));
    assert!(
        help.code == Some(0) && help.out.contains("snapferry convert --device /dev/vdc --bucket images"),
        "{help:?}"
    );
}

#[test]
fn a_link_stays_and_the_file_behind_it_is_replaced() {
    let folder = folder();
    let raw = small_disk(folder.path());
    let (link_target, link) = (folder.path().join("behind.qcow2"), folder.path().join("link.qcow2"));
    std::fs::write(&link_target, b"old").expect("written");
    std::os::unix::fs::symlink("behind.qcow2", &link).expect("a link");
    run(convert_into_file(&raw, &link, &[])).expect(4, &["behind.qcow2 exists already"]);
    run(convert_into_file(&raw, &link, &["--force"])).expect(0, &[]);
    assert_eq!(left_in(folder.path()), ["behind.qcow2", "behind.qcow2.manifest", "disk.raw", "link.qcow2"]);
    assert!(link.is_symlink() && std::fs::read(&link_target).expect("the image").starts_with(b"QFI\xfb"));
}

#[test]
fn a_key_without_room_for_the_manifests_is_refused_at_once() {
    let (folder, bucket) = (folder(), Bucket::start());
    let raw = small_disk(folder.path());
    let key = format!("{}.qcow2", "x".repeat(1016 - ".qcow2".len()));
    let mut command = bucket.command(["convert", "--key", &key]);
    command.arg("--device").arg(&raw);
    run(command).expect(2, &["manifest", "1024 bytes"]);
    assert_eq!(bucket.sim.stats().of(Operation::CreateMultipartUpload).requests, 0);
}

#[test]
fn a_stdout_that_is_closed_or_full_is_no_accident() {
    for args in [&["config", "show"][..], &["completions", "bash"], &["man"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut closed = snapferry(args);
        closed.stdout(writer);
        let ended = run(closed);
        assert_eq!((ended.code, ended.err.as_str()), (Some(141), ""), "{args:?}");
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has one");
        let mut command = snapferry(args);
        command.stdout(full);
        run(command).expect(1, &["error: No space left on device"]);
    }
}

#[test]
fn uploads_of_a_run_that_was_killed_are_listed_and_removed() {
    let (folder, bucket) = (folder(), Bucket::start());
    let raw = folder.path().join("disk.raw");
    Disk::new(Kind::Random, ByteCount(40 * MIB), 2).write(&raw).expect("a disk");
    let none = run(bucket.command(["uploads", "list"]));
    assert_eq!(
        (none.code, none.out.as_str(), none.err.as_str()),
        (Some(0), "", "no incomplete uploads in images\n")
    );
    for name in ["disk.qcow2", "disk.qcow2.other"] {
        let mut command = bucket.command(["convert", "--key", name, "--part-size", "8M", "--limit", "100k"]);
        command.arg("--device").arg(&raw);
        let before = bucket.sim.stats().of(Operation::UploadPart).succeeded;
        let mut killed = Running::start(command);
        wait_until("a part has arrived", || bucket.sim.stats().of(Operation::UploadPart).succeeded > before);
        killed.signal(Signal::KILL);
        assert_eq!(killed.end().code, None);
    }
    let listed = run(bucket.command(["uploads", "list", "--json"])).json();
    let listed: Vec<&serde_json::Value> = listed.as_array().expect("a list").iter().collect();
    assert_eq!(
        listed.iter().map(|upload| upload["key"].as_str().expect("a key")).collect::<Vec<_>>(),
        ["disk.qcow2", "disk.qcow2.other"]
    );
    assert!(
        listed
            .iter()
            .all(|upload| upload["started"].as_str().is_some_and(|started| started.starts_with("20"))),
        "{listed:?}"
    );
    let id = listed[0]["id"].as_str().expect("an id");
    let text = run(bucket.command(["uploads", "list", "--prefix", "disk.qcow2.o"])).out;
    assert!(text.contains("disk.qcow2.other") && !text.contains(id), "{text}");

    run(bucket.command(["uploads", "abort"])).expect(2, &["--key"]);
    // A key given alone means exactly that key, not every key that begins with it.
    let aborted = run(bucket.command(["uploads", "abort", "--key", "disk.qcow2"]));
    assert_eq!((aborted.code, aborted.out), (Some(0), format!("aborted disk.qcow2  {id}\n")));
    assert_eq!(bucket.open_uploads(), 1);
    // Aborting the same upload again, by its id, is no error.
    run(bucket.command(["uploads", "abort", "--key", "disk.qcow2", "--id", id])).expect(0, &[]);
    assert_eq!(bucket.open_uploads(), 1);
    // Uploads of other programs may be among all: without a terminal that takes a --yes.
    run(bucket.command(["uploads", "abort", "--all"])).expect(2, &["--yes", "--dry-run"]);
    assert_eq!(bucket.open_uploads(), 1);
    run(bucket.command(["uploads", "abort", "--all", "--yes"])).expect(0, &[]);
    bucket.expect_nothing();
    let none = run(bucket.command(["uploads", "abort", "--all", "--yes"]));
    assert_eq!(
        (none.code, none.out.as_str(), none.err.as_str()),
        (Some(0), "", "no incomplete uploads to abort in images\n")
    );
}
