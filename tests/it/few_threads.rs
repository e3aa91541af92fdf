//! A system that allows few threads: each command either does its work or reports what the system refused.
//! There must be no other end, and above all no image and no verdict from threads that never started.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::store::ObjectStore as _;
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::oracle::QemuImg;
use snapferry_testkit::skip::is_root;
use tempfile::TempDir;

use crate::convert::{BUCKET, Bucket, Ended, left_in};

/// Limits on the user's tasks, which include the program's first thread and the process that starts it.
const FEW: [u32; 15] = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 20, 40];
/// Seconds after which a command counts as hung.
const HANGS: &str = "60";
static SCENES: AtomicU32 = AtomicU32::new(0);
const PRECIOUS: &[u8] = b"precious";

/// A folder in which every user may write, with a disk, its image, and a copy of the program: another user
/// may have no access to the folder in which it was built.
struct Scene {
    home: TempDir,
    qemu: QemuImg,
    bucket: Bucket,
    user: u32,
}

impl Scene {
    fn set() -> Option<Self> {
        let qemu = QemuImg::find().filter(|_| is_root())?;
        let home = tempfile::tempdir().expect("a folder");
        Disk::new(Kind::Mixed, ByteCount(20 * MIB + 512), 17)
            .write(&home.path().join("disk"))
            .expect("a disk");
        std::fs::copy(env!("CARGO_BIN_EXE_snapferry"), home.path().join("snapferry")).expect("the program");
        // The limit counts all tasks of a user, so each scene has a user of its own.
        let user = 1_000_000 + 8 * std::process::id() + SCENES.fetch_add(1, Relaxed);
        let scene = Self { home, qemu, bucket: Bucket::start(), user };
        for folder in [scene.home.path().to_owned(), scene.here()] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).expect("anybody's");
        }
        scene.run(1000, &["convert", "--device", "../disk", "--output", "../image"]).expect(0, &[]);
        Some(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Working folder of the commands, in which they make their files.
    fn here(&self) -> PathBuf {
        let here = self.path("here");
        if !here.exists() {
            std::fs::create_dir(&here).expect("a folder");
        }
        here
    }

    /// Empties the working folder, and puts a file at the target's path.
    fn clear(&self) {
        std::fs::remove_dir_all(self.here()).expect("removed");
        std::fs::set_permissions(self.here(), std::fs::Permissions::from_mode(0o777)).expect("anybody's");
        std::fs::write(self.here().join("target"), PRECIOUS).expect("written");
        std::fs::set_permissions(self.here().join("target"), std::fs::Permissions::from_mode(0o666))
            .expect("anybody's");
    }

    fn run(&self, tasks: u32, args: &[&str]) -> Ended {
        let config = self.bucket.sim.config();
        let mut command = Command::new("setpriv");
        command.args([
            format!("--reuid={}", self.user),
            format!("--regid={}", self.user),
            "--clear-groups".to_owned(),
        ]);
        command
            .args(["prlimit", &format!("--nproc={tasks}"), "timeout", "--signal=KILL", HANGS])
            .arg(self.path("snapferry"))
            .args(args);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")));
        command.envs([
            ("HOME", "/nonexistent"),
            ("AWS_REGION", &config.region),
            ("AWS_ACCESS_KEY_ID", &config.access_key),
        ]);
        command.env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
        command.current_dir(self.here()).stdin(Stdio::null()).output().expect("it runs").into()
    }

    /// Runs a command with few tasks and with more, and checks each end: either its result is `right`, or it
    /// reports the reason and has left everything as it was. With enough tasks the result must be right.
    #[track_caller]
    fn try_all(&self, args: &[&str], right: impl Fn(&Ended) -> Result<(), String>) {
        let mut refused = 0;
        for tasks in FEW {
            self.clear();
            let ended = self.run(tasks, args);
            let here = format!("{args:?} with {tasks} tasks: {ended:?}");
            assert!(!ended.err.contains("panicked") && ended.code.is_some_and(|code| code < 101), "{here}");
            if ended.code == Some(0) {
                right(&ended).unwrap_or_else(|why| panic!("{here}\n{why}"));
                continue;
            }
            // The image is complete, and only the work after it was refused.
            if ended.err.contains("is complete") {
                right(&ended).unwrap_or_else(|why| panic!("{here}\n{why}"));
                continue;
            }
            refused += 1;
            assert!(tasks < 40, "{here}");
            // If the command can't even be started, the shell reports it.
            assert!(ended.err.contains("more") || ended.err.contains("timeout:"), "{here}");
            assert_eq!(std::fs::read(self.here().join("target")).expect("still there"), PRECIOUS, "{here}");
            assert_eq!(left_in(&self.here()), ["target"], "{here}");
        }
        assert!(refused > 0, "{args:?} needs no threads");
    }

    fn same(&self, image: &Path) -> Result<(), String> {
        self.qemu.check(image).and_then(|()| self.qemu.compare(&self.path("disk"), image))
    }

    fn same_raw(&self, raw: &Path) -> Result<(), String> {
        let same = std::fs::read(raw).expect("read") == std::fs::read(self.path("disk")).expect("read");
        if same { Ok(()) } else { Err(format!("{} is not the disk", raw.display())) }
    }
}

#[test]
fn an_image_in_a_file_is_the_disk_or_is_not_there() {
    let Some(scene) = Scene::set() else { return };
    let target = scene.here().join("target");
    scene.try_all(
        &["convert", "--device", "../disk", "--output", "target", "--force", "--no-hash", "-q"],
        |_| scene.same(&target),
    );
    scene.try_all(&["convert", "--device", "../disk", "--output", "target", "--force", "--verify"], |_| {
        scene.same(&target)
    });
    scene.try_all(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "../disk", "target"], |_| {
        scene.same(&target)
    });
}

#[test]
fn an_image_in_a_bucket_is_the_disk_or_is_not_there() {
    let Some(scene) = Scene::set() else { return };
    let store = scene.bucket.sim.endpoint();
    let back = scene.path("back");
    let args = [
        "convert",
        "--device",
        "../disk",
        "--bucket",
        BUCKET,
        "--key",
        "k",
        "--force",
        "--endpoint",
        &store,
        "-q",
    ];
    scene.try_all(&args, |_| {
        // Read back by a command without the limit.
        let read = scene
            .bucket
            .in_other_words(&["restore", "s3://images/k", "--force"])
            .arg("--output")
            .arg(&back)
            .output();
        assert!(read.is_ok_and(|ended| ended.status.success()), "it comes back");
        scene.same_raw(&back)
    });
    let open = scene.bucket.runtime.block_on(scene.bucket.client().list_uploads("")).expect("a list");
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_is_read_back_is_the_disk_or_is_not_there() {
    let Some(scene) = Scene::set() else { return };
    let target = scene.here().join("target");
    scene.try_all(&["restore", "../image", "--output", "target", "--force", "-q"], |_| {
        scene.same_raw(&target)
    });
    scene.try_all(&["verify", "../image", "--against", "../disk"], |ended| {
        if ended.err.contains("good") { Ok(()) } else { Err("no verdict".to_owned()) }
    });
    // One thread is enough for these commands.
    for args in [
        ["qemu-img", "convert", "-O", "raw", "../image", "target"],
        ["qemu-img", "compare", "-q", "../image", "../disk", "--"],
    ] {
        for tasks in FEW {
            scene.clear();
            let args: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--").collect();
            let ended = scene.run(tasks, &args);
            let here = format!("{args:?} with {tasks} tasks: {ended:?}");
            assert!(!ended.err.contains("panicked") && ended.code.is_some_and(|code| code < 101), "{here}");
            assert!(tasks < 8 || ended.code == Some(0), "{here}");
            if ended.code == Some(0) && args[1] == "convert" {
                scene.same_raw(&target).unwrap_or_else(|why| panic!("{here}\n{why}"));
            }
        }
    }
}

#[test]
fn an_answer_about_a_disk_is_right_or_is_not_given() {
    let Some(scene) = Scene::set() else { return };
    for args in [
        &["info", "../image", "--json"][..],
        &["map", "../image"],
        &["measure", "../image", "--sample", "3", "--seed", "1", "--json"],
        &["compare", "../image", "../disk"],
        &["check", "../image"],
    ] {
        let right = scene.run(1000, args);
        assert_eq!(right.code, Some(0), "{right:?}");
        for tasks in FEW {
            let ended = scene.run(tasks, args);
            let here = format!("{args:?} with {tasks} tasks: {ended:?}");
            assert!(!ended.err.contains("panicked") && ended.code.is_some_and(|code| code < 101), "{here}");
            assert!(ended.code != Some(0) || ended.out == right.out, "{here}");
            assert!(tasks < 40 || ended.code == Some(0), "{here}");
        }
    }
}

/// The limit has an effect; without it, the other tests would prove nothing.
#[test]
fn the_limit_is_kept() {
    let Some(scene) = Scene::set() else { return };
    let ended = scene.run(3, &["verify", "../image"]);
    ended.expect(1, &["cannot start a thread", "ulimit -u"]);
}
