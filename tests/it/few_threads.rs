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

use crate::support::{BUCKET, Bucket, Ended, left_in, program};

/// Limits on the user's tasks, which include the program's first thread and the process that starts it.
const FEW: [u32; 15] = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 20, 40];
/// Seconds after which a command counts as hung.
const HANGS: &str = "60";
static SANDBOXES: AtomicU32 = AtomicU32::new(0);
const PRECIOUS: &[u8] = b"precious";

/// A folder in which every user may write, with a disk, its image, and a copy of the program: another user
/// may have no access to the folder in which it was built.
struct Sandbox {
    home: TempDir,
    qemu: QemuImg,
    bucket: Bucket,
    user: u32,
}

impl Sandbox {
    fn new() -> Option<Self> {
        let qemu = QemuImg::find().filter(|_| is_root())?;
        let home = tempfile::tempdir().expect("a folder");
        Disk::new(Kind::Mixed, ByteCount(20 * MIB + 512), 17)
            .write(&home.path().join("disk"))
            .expect("a disk");
        std::fs::copy(program(), home.path().join("snapferry")).expect("the program");
        // The limit counts all tasks of a user, so each scene has a user of its own.
        let user = 1_000_000 + 8 * std::process::id() + SANDBOXES.fetch_add(1, Relaxed);
        let sandbox = Self { home, qemu, bucket: Bucket::start(), user };
        for folder in [sandbox.home.path().to_owned(), sandbox.work_folder()] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).expect("anybody's");
        }
        sandbox.run(1000, &["convert", "--device", "../disk", "--output", "../image"]).expect(0, &[]);
        Some(sandbox)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Working folder of the commands, in which they make their files.
    fn work_folder(&self) -> PathBuf {
        let folder = self.path("here");
        if !folder.exists() {
            std::fs::create_dir(&folder).expect("a folder");
        }
        folder
    }

    /// Empties the working folder, and puts a file at the target's path.
    fn clear(&self) {
        std::fs::remove_dir_all(self.work_folder()).expect("removed");
        std::fs::set_permissions(self.work_folder(), std::fs::Permissions::from_mode(0o777))
            .expect("anybody's");
        std::fs::write(self.work_folder().join("target"), PRECIOUS).expect("written");
        std::fs::set_permissions(self.work_folder().join("target"), std::fs::Permissions::from_mode(0o666))
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
        command.current_dir(self.work_folder()).stdin(Stdio::null()).output().expect("it runs").into()
    }

    /// Runs a command with few tasks and with more, and checks each end: either its result passes `check`, or
    /// it reports the reason and has left everything as it was. With enough tasks the result must be right.
    #[track_caller]
    fn try_all(&self, args: &[&str], check: impl Fn(&Ended) -> Result<(), String>) {
        let mut refused = 0;
        for tasks in FEW {
            self.clear();
            let ended = self.run(tasks, args);
            let case = format!("{args:?} with {tasks} tasks: {ended:?}");
            assert!(!ended.err.contains("panicked") && ended.code.is_some_and(|code| code < 101), "{case}");
            if ended.code == Some(0) {
                check(&ended).unwrap_or_else(|reason| panic!("{case}\n{reason}"));
                continue;
            }
            // The image is complete, and only the work after it was refused.
            if ended.err.contains("is complete") {
                check(&ended).unwrap_or_else(|reason| panic!("{case}\n{reason}"));
                continue;
            }
            refused += 1;
            assert!(tasks < 40, "{case}");
            // If the command can't even be started, the shell reports it.
            assert!(ended.err.contains("more") || ended.err.contains("timeout:"), "{case}");
            assert_eq!(
                std::fs::read(self.work_folder().join("target")).expect("still there"),
                PRECIOUS,
                "{case}"
            );
            assert_eq!(left_in(&self.work_folder()), ["target"], "{case}");
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
    let Some(sandbox) = Sandbox::new() else { return };
    let target = sandbox.work_folder().join("target");
    sandbox.try_all(
        &["convert", "--device", "../disk", "--output", "target", "--force", "--no-hash", "-q"],
        |_| sandbox.same(&target),
    );
    sandbox.try_all(&["convert", "--device", "../disk", "--output", "target", "--force", "--verify"], |_| {
        sandbox.same(&target)
    });
    sandbox.try_all(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "../disk", "target"], |_| {
        sandbox.same(&target)
    });
}

#[test]
fn an_image_in_a_bucket_is_the_disk_or_is_not_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    let store = sandbox.bucket.sim.endpoint();
    let back = sandbox.path("back");
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
    sandbox.try_all(&args, |_| {
        // Read back by a command without the limit.
        let read = sandbox
            .bucket
            .command_without_bucket(&["restore", "s3://images/k", "--force"])
            .arg("--output")
            .arg(&back)
            .output();
        assert!(read.is_ok_and(|ended| ended.status.success()), "it comes back");
        sandbox.same_raw(&back)
    });
    let open = sandbox.bucket.runtime.block_on(sandbox.bucket.client().list_uploads("")).expect("a list");
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_is_read_back_is_the_disk_or_is_not_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    let target = sandbox.work_folder().join("target");
    sandbox.try_all(&["restore", "../image", "--output", "target", "--force", "-q"], |_| {
        sandbox.same_raw(&target)
    });
    sandbox.try_all(&["verify", "../image", "--against", "../disk"], |ended| {
        if ended.err.contains("good") { Ok(()) } else { Err("no verdict".to_owned()) }
    });
    // One thread is enough for these commands.
    for args in [
        ["qemu-img", "convert", "-O", "raw", "../image", "target"],
        ["qemu-img", "compare", "-q", "../image", "../disk", "--"],
    ] {
        for tasks in FEW {
            sandbox.clear();
            let args: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--").collect();
            let ended = sandbox.run(tasks, &args);
            let case = format!("{args:?} with {tasks} tasks: {ended:?}");
            assert!(!ended.err.contains("panicked") && ended.code.is_some_and(|code| code < 101), "{case}");
            assert!(tasks < 8 || ended.code == Some(0), "{case}");
            if ended.code == Some(0) && args[1] == "convert" {
                sandbox.same_raw(&target).unwrap_or_else(|reason| panic!("{case}\n{reason}"));
            }
        }
    }
}

#[test]
fn an_answer_about_a_disk_is_right_or_is_not_given() {
    let Some(sandbox) = Sandbox::new() else { return };
    for args in [
        &["info", "../image", "--json"][..],
        &["map", "../image"],
        &["measure", "../image", "--sample", "3", "--seed", "1", "--json"],
        &["compare", "../image", "../disk"],
        &["check", "../image"],
    ] {
        let expected = sandbox.run(1000, args);
        assert_eq!(expected.code, Some(0), "{expected:?}");
        for tasks in FEW {
            let ended = sandbox.run(tasks, args);
            let case = format!("{args:?} with {tasks} tasks: {ended:?}");
            assert!(!ended.err.contains("panicked") && ended.code.is_some_and(|code| code < 101), "{case}");
            assert!(ended.code != Some(0) || ended.out == expected.out, "{case}");
            assert!(tasks < 40 || ended.code == Some(0), "{case}");
        }
    }
}

/// The limit has an effect; without it, the other tests would prove nothing.
#[test]
fn the_limit_is_kept() {
    let Some(sandbox) = Sandbox::new() else { return };
    let ended = sandbox.run(3, &["verify", "../image"]);
    ended.expect(1, &["cannot start a thread", "ulimit -u"]);
}
