//! Snapferry in place of `qemu-img`: the same command lines, run by QEMU's own tool and by Snapferry, end
//! alike and leave the same disks.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use snapferry_base::units::{ByteCount, MIB};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::oracle::QemuImg;
use tempfile::TempDir;

use crate::support::{Ended, left_in, program, run};

mod convert;
mod create;
mod devices;
mod output;
mod refused;

/// Two folders with the same files: QEMU's tool works in one, Snapferry in the other.
struct Pair {
    home: TempDir,
}

/// A command that runs `program` in `folder`, and inherits only PATH from the caller's environment.
fn run_in<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, folder: &Path, args: &[S]) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(args).current_dir(folder).env_clear().env("PATH", path).stdin(Stdio::null());
    command
}

impl Pair {
    /// Makes folders with a disk of 5 MiB and 1,000 bytes as `a.raw`, one of 1 MiB as `b.raw`, and QEMU's
    /// images of both.
    fn new(qemu: QemuImg) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        symlink(program(), home.path().join("qemu-img")).expect("a link");
        let pair = Self { home };
        for folder in [pair.theirs(), pair.ours()] {
            std::fs::create_dir(&folder).expect("a folder");
            let (a, b) = (folder.join("a.raw"), folder.join("b.raw"));
            Disk::new(Kind::Mixed, ByteCount(5 * MIB + 1000), 7).write(&a).expect("a disk");
            Disk::new(Kind::Text, ByteCount(MIB), 8).write(&b).expect("a disk");
            qemu.run(&["convert", "-f", "raw", "-O", "qcow2", "-c"], &[&a, &folder.join("a.qcow2")])
                .expect("an image");
            qemu.run(&["convert", "-f", "raw", "-O", "qcow2"], &[&b, &folder.join("b.qcow2")])
                .expect("an image");
        }
        pair
    }

    fn theirs(&self) -> PathBuf {
        self.home.path().join("theirs")
    }

    fn ours(&self) -> PathBuf {
        self.home.path().join("ours")
    }

    /// Link to Snapferry under the name `qemu-img`.
    fn link(&self) -> PathBuf {
        self.home.path().join("qemu-img")
    }

    /// Runs the same command line in both folders; returns QEMU's result, then Snapferry's.
    fn run(&self, args: &[&str]) -> (Ended, Ended) {
        (run(run_in("qemu-img", &self.theirs(), args)), run(run_in(self.link(), &self.ours(), args)))
    }

    /// Asserts that both commands succeed, and that `name` holds the same disk.
    fn expect_same_disk(&self, args: &[&str], name: &str, qemu: QemuImg) {
        let (theirs, ours) = self.run(args);
        assert_eq!((theirs.code, ours.code), (Some(0), Some(0)), "{args:?}: {theirs:?} {ours:?}");
        assert_eq!(shape(&ours.out), shape(&theirs.out), "{args:?}");
        let (theirs, ours) = (self.theirs().join(name), self.ours().join(name));
        let format = |path: &Path| {
            if std::fs::read(path).expect("a file").starts_with(b"QFI\xfb") { "qcow2" } else { "raw" }
        };
        assert_eq!(format(&ours), format(&theirs), "{args:?}");
        if format(&ours) == "qcow2" {
            assert_eq!(qemu.check(&ours), Ok(()), "{args:?}");
        } else {
            let len = |path: &Path| std::fs::metadata(path).expect("a file").len();
            assert_eq!(len(&ours), len(&theirs), "{args:?}");
        }
        let format = format(&ours);
        // Strict, so that the sizes count; for a raw file, whose length was compared above, it would also
        // compare the positions of holes.
        let strict: &[&str] = if format == "qcow2" { &["-s"] } else { &[] };
        let compared =
            qemu.run(&[&["compare", "-f", format, "-F", format], strict].concat(), &[&theirs, &ours]);
        assert!(compared.is_ok(), "{args:?}: {compared:?}");
    }

    /// Asserts that both commands end with the same code and the same output.
    fn expect_same_output(&self, args: &[&str]) {
        let (theirs, ours) = self.run(args);
        assert_eq!(ours, theirs, "{args:?}");
    }

    /// Names in Snapferry's folder, sorted.
    fn left(&self) -> Vec<String> {
        left_in(&self.ours())
    }
}

/// Removes the repeated progress lines from the output, except the first and the last one.
fn shape(out: &str) -> String {
    let lines: Vec<&str> = out.split('\r').collect();
    match &lines[..] {
        [first, .., last, end] if first.contains("/100%)") => format!("{first}\r...{last}\r{end}"),
        _ => out.to_owned(),
    }
}
