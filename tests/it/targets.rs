//! Targets that can't be written in the usual manner: the program detects each before it reads the disk, and
//! writes it in another manner, or refuses it with the next step for the user.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::loopdev::{Access, BindMount, BucketMount, LoopDevice, LoopOptions, SmallFs};
use snapferry_testkit::skip::is_root;
use tempfile::TempDir;

use crate::support::{BUCKET, Bucket, Ended, Running, folder, left_in, run, snapferry, wait_until};

/// A disk, and an image of it.
struct Home {
    folder: TempDir,
    raw: PathBuf,
    image: PathBuf,
}

impl Home {
    fn new() -> Self {
        let folder = folder();
        open_to_all(folder.path());
        let (raw, image) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
        Disk::new(Kind::Mixed, ByteCount(5 * MIB), 61).write(&raw).expect("a disk");
        run(convert(&raw, &image, &[])).expect(0, &[]);
        Self { folder, raw, image }
    }

    fn sub(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir(&path).expect("a folder");
        path
    }

    /// Commands that make a file, with their names.
    fn makers(&self, to: &Path) -> [(&'static str, Command); 4] {
        [
            ("convert", convert(&self.raw, to, &["--force"])),
            ("restore", restore(&self.image, to, &["--force"])),
            ("qemu-img convert to qcow2", qemu_img("qcow2", &self.raw, to)),
            ("qemu-img convert to raw", qemu_img("raw", &self.raw, to)),
        ]
    }

    /// Asserts that `to` holds the disk, as a disk or as an image.
    #[track_caller]
    fn expect_disk(&self, what: &str, to: &Path) {
        let mut command = snapferry(["compare", "--quiet"]);
        command.arg(to).arg(&self.raw);
        let ended = run(command);
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
    }
}

fn open_to_all(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("open");
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
}

fn convert(raw: &Path, to: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["convert", "--device"]);
    command.arg(raw).arg("--output").arg(to).args(more);
    command
}

fn restore(image: &Path, to: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["restore"]);
    command.arg(image).arg("--output").arg(to).args(more);
    command
}

fn qemu_img(format: &str, raw: &Path, to: &Path) -> Command {
    let mut command = snapferry(["qemu-img", "convert", "-f", "raw", "-O", format]);
    command.arg(raw).arg(to);
    command
}

fn as_somebody_else(mut command: Command) -> Ended {
    command.uid(65534).gid(65534);
    run(command)
}

/// As with `docker run -v file:file`: the file can be written, but not replaced by another one.
#[test]
fn a_file_that_is_a_mount_of_its_own_is_written_where_it_lies() {
    let home = Home::new();
    let (real, at) = (home.sub("real"), home.sub("at"));
    let (real, at) = (real.join("target"), at.join("target"));
    for path in [&real, &at] {
        std::fs::write(path, vec![7; 9 << 20]).expect("longer than what it will hold");
    }
    let Some(bound) = BindMount::new(&real, &at, Access::ReadWrite) else { return };
    for (what, command) in home.makers(&at) {
        let ended = run(command);
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        // qemu-img prints nothing about it, since it always writes in place.
        assert_eq!(
            ended.err.contains("written where it lies"),
            !what.starts_with("qemu-img"),
            "{what}: {ended:?}"
        );
        home.expect_disk(what, &real);
    }
    let names = left_in(at.parent().expect("its folder"));
    assert_eq!(names, ["target"], "qemu-img convert removes the manifest of the image that it replaces");
    // Without --force the file exists already, like any other.
    run(convert(&home.raw, &at, &[])).expect(4, &["exists already"]);
    run(restore(&home.image, &at, &[])).expect(4, &["exists already"]);
    home.expect_disk("untouched", &real);
    drop(bound);
}

/// A run that fails or is stopped leaves no part of a disk in a file that it has overwritten, and reports
/// that the file is empty.
#[test]
fn what_was_written_where_it_lies_and_failed_is_empty_and_named() {
    let home = Home::new();
    let (real, at) = (home.sub("real").join("target"), home.sub("at").join("target"));
    for path in [&real, &at] {
        std::fs::write(path, b"old").expect("written");
    }
    let Some(_bound) = BindMount::new(&real, &at, Access::ReadWrite) else { return };
    let long = home.folder.path().join("long.raw");
    Disk::new(Kind::Random, ByteCount(48 * MIB), 62).write(&long).expect("a disk");
    let slowly = |format| {
        let mut command = snapferry(["qemu-img", "convert", "-r", "4M", "-f", "raw", "-O", format]);
        command.arg(&long).arg(&at);
        command
    };
    let message = "written where it lies";
    for (what, command, messages) in [
        (
            "convert",
            convert(&long, &at, &["--force", "--limit", "100k"]),
            &[message, "what it held is gone"][..],
        ),
        ("qcow2", slowly("qcow2"), &["interrupted", message, "empty now"]),
        ("raw", slowly("raw"), &["interrupted", "target is incomplete"]),
    ] {
        std::fs::write(&real, b"old").expect("written");
        let mut running = Running::start(command);
        wait_until("it is written to", || std::fs::metadata(&real).is_ok_and(|found| found.len() > 4 * MIB));
        running.signal(Signal::TERM);
        let ended = running.end();
        ended.expect(130, messages);
        assert_eq!(std::fs::read(&real).expect("there"), b"", "{what}: {ended:?}");
    }
}

/// A target that another user has made in a folder of its own: Cinder, libvirt, a CSI driver.
#[test]
fn a_file_in_a_folder_of_somebody_elses_is_written_where_it_lies() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let theirs = home.sub("theirs");
    let at = theirs.join("target");
    std::fs::write(&at, b"old").expect("written");
    mode(&at, 0o666);
    for (what, command) in home.makers(&at) {
        let ended = as_somebody_else(command);
        if what == "convert" {
            // The user can't create the manifest in that folder.
            ended.expect(
                4,
                &[
                    "target.manifest",
                    "Permission denied",
                    "a folder that you may write to",
                    "qemu-img convert",
                ],
            );
            assert_eq!(std::fs::read(&at).expect("there"), b"old");
            continue;
        }
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        home.expect_disk(what, &at);
    }
    // The sticky bit, as on /tmp: every user may write there, but none may replace another user's files.
    mode(&theirs, 0o1777);
    for (what, command) in home.makers(&at) {
        std::fs::write(&at, b"old").expect("written");
        let ended = as_somebody_else(command);
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        home.expect_disk(what, &at);
        let _made_by_one_of_them = std::fs::remove_file(theirs.join("target.manifest"));
    }
    assert_eq!(left_in(&theirs), ["target"]);
}

#[test]
fn what_can_neither_be_replaced_nor_written_is_refused_before_the_disk_is_read() {
    let home = Home::new();
    // No byte of this disk can be read, so a program that reads it first reports that.
    let gone = home.folder.path().join("gone.raw");
    std::fs::copy(&home.raw, &gone).expect("copied");
    let Some(unreadable) = LoopDevice::attach(&gone, LoopOptions::default()) else { return };
    unreadable.truncate_backing(0).expect("cut");
    mode(unreadable.path(), 0o666);
    let theirs = home.sub("theirs");
    let (existing, missing) = (theirs.join("there"), theirs.join("missing"));
    std::fs::write(&existing, b"old").expect("written");
    let advice = "a folder that you may write to";
    for (to, force) in [(&missing, &[][..]), (&missing, &["--force"]), (&existing, &["--force"])] {
        as_somebody_else(convert(unreadable.path(), to, force)).expect(4, &["Permission denied", advice]);
        as_somebody_else(restore(&home.image, to, force)).expect(4, &["Permission denied", advice]);
        for format in ["qcow2", "raw"] {
            as_somebody_else(qemu_img(format, unreadable.path(), to))
                .expect(1, &["Could not create", "Permission denied"]);
        }
    }
    assert_eq!(
        (left_in(&theirs), std::fs::read(&existing).expect("there")),
        (vec!["there".to_owned()], b"old".to_vec())
    );

    let at = home.sub("at");
    let Some(_bound) = BindMount::new(&theirs, &at, Access::ReadOnly) else { return };
    for name in ["there", "missing"] {
        let to = at.join(name);
        run(convert(unreadable.path(), &to, &["--force"])).expect(4, &["Read-only file system", advice]);
        run(restore(&home.image, &to, &["--force"])).expect(4, &["Read-only file system", advice]);
        for format in ["qcow2", "raw"] {
            run(qemu_img(format, unreadable.path(), &to))
                .expect(1, &["Could not create", "Read-only file system"]);
        }
    }
    // No space even for a directory entry.
    let Some(full) = SmallFs::ext4(8 * MIB) else { return };
    let fill = full.path().join("fill");
    let _until_it_is_full = std::fs::write(&fill, vec![1; 9 << 20]);
    for number in 0.. {
        if std::fs::File::create(full.path().join(format!("file{number}"))).is_err() {
            break;
        }
    }
    run(convert(unreadable.path(), &full.path().join("x.qcow2"), &[])).expect(4, &["No space left"]);
}

/// s3fs, rclone, gcsfuse, vboxsf: no hard links, and no rename without replacing.
#[test]
fn on_a_file_system_without_links_a_file_gets_its_name_all_the_same() {
    let (home, bucket) = (Home::new(), Bucket::start());
    let config = bucket.sim.config();
    let keys = (config.access_key.as_str(), config.secret_key.reveal());
    let mounted = BucketMount::new(home.folder.path(), BUCKET, &bucket.sim.endpoint(), &config.region, keys);
    let Some(mounted) = mounted else { return };
    wait_until("the bucket is there", || std::fs::read_dir(mounted.path()).is_ok());
    let path_of = |name: &str| mounted.path().join(name);
    for round in ["new", "replaced"] {
        for (number, (what, command)) in home.makers(&path_of("x")).into_iter().enumerate() {
            // Another name for each, and the same in both rounds.
            let to = path_of(&format!("target{number}"));
            let mut own = Command::new(command.get_program());
            own.env_clear()
                .args(command.get_args().map(|arg| if arg == path_of("x") { to.as_os_str() } else { arg }));
            let ended = run(own);
            assert_eq!(ended.code, Some(0), "{what}, {round}: {ended:?}");
            home.expect_disk(what, &to);
        }
    }
    run(convert(&home.raw, &path_of("unforced"), &[])).expect(0, &[]);
    run(convert(&home.raw, &path_of("unforced"), &[])).expect(4, &["exists already"]);
    let names =
        ["target0", "target0.manifest", "target1", "target2", "target3", "unforced", "unforced.manifest"];
    assert_eq!(left_in(mounted.path()), names);
}

#[test]
fn names_may_be_as_long_as_the_file_system_takes_them() {
    let home = Home::new();
    let to = home.sub("to");
    for length in [109, 110, 221, 222, 246, 247, 255] {
        for (what, command) in home.makers(&to.join("n".repeat(length))) {
            let ended = run(command);
            if what == "convert" && length > 246 {
                ended.expect(4, &["File name too long", "9 more"]);
            } else {
                assert_eq!(ended.code, Some(0), "{what}, {length} bytes: {ended:?}");
                home.expect_disk(what, &to.join("n".repeat(length)));
            }
        }
    }
    let longest = left_in(&to).into_iter().map(|name| name.len()).collect::<Vec<_>>();
    assert!(!longest.contains(&256) && left_in(&to).iter().all(|name| !name.ends_with(".partial")));
    for (what, command) in home.makers(&to.join("n".repeat(256))) {
        let ended = run(command);
        assert!(ended.code != Some(0) && ended.err.contains("File name too long"), "{what}: {ended:?}");
    }
    // A hidden file with a long name is found and removed when the run is stopped.
    let mut running = Running::start(convert(&home.raw, &to.join("k".repeat(240)), &["--limit", "1k"]));
    let hidden = || left_in(&to).into_iter().find(|name| name.starts_with(".kkk"));
    wait_until("it has begun", || hidden().is_some());
    running.signal(Signal::TERM);
    running.end().expect(130, &["interrupted"]);
    assert_eq!(hidden(), None);
}

#[test]
fn names_need_not_be_text() {
    let home = Home::new();
    let to = home.sub("to");
    for name in [&b"bad\xff\xfename"[..], b"two\nlines", b"\x1b[31mred"] {
        let at = to.join(OsStr::from_bytes(name));
        for (what, command) in home.makers(&at) {
            let ended = run(command);
            assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
            home.expect_disk(what, &at);
            if what == "convert" {
                let mut verify = snapferry(["verify", "--json"]);
                verify.arg(&at);
                assert_eq!(run(verify).json()["manifest"], true, "{what}");
            }
        }
        let mut names: Vec<_> =
            std::fs::read_dir(&to).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
        names.sort();
        assert_eq!(names, [OsStr::from_bytes(name)], "and the manifest went with its image");
        std::fs::remove_file(&at).expect("removed");
    }
}
