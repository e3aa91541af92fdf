//! The commands to run, and the result that each of them must have.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snapferry_base::units::{ByteCount, MIB};
use snapferry_testkit::disks::{Disk, Kind};
use tempfile::TempDir;

use crate::support::{BUCKET, Bucket, KEY, folder, key, left_in, snapferry};

/// Bytes of the disk: a few segments, of which the last one is not full.
const SIZE: u64 = 12 * MIB + 4096;

/// Correct ends of a command.
pub enum End {
    Right,
    Refused,
}

/// Result of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Makes {
    /// Output on stdout, and nothing else.
    Output,
    /// A file in [`Work::out`], with these bytes.
    Image,
    ImageByZstd,
    Disk,
    /// An image that holds the disk, read back by another command.
    Other,
    /// An object in the bucket.
    Object,
}

pub struct Job {
    pub name: String,
    pub command: Command,
    makes: Makes,
    /// Output of the command without a limit.
    stdout: Vec<u8>,
}

/// A disk, its image in a file and in a bucket, and a folder for the results.
pub struct Work {
    home: TempDir,
    bucket: Bucket,
    zstd: Vec<u8>,
}

const OLD: &[u8] = b"what was there before";

impl Work {
    pub fn new() -> Self {
        let work = Self { home: folder(), bucket: Bucket::start(), zstd: Vec::new() };
        Disk::new(Kind::Mixed, ByteCount(SIZE), 23).write(&work.disk()).expect("a disk");
        std::fs::create_dir(work.made()).expect("a folder");
        let done = |mut command: Command| {
            let output = command.output().expect("it runs");
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        done(work.convert_into(&work.image(), &[]));
        let zstd = work.home.path().join("zstd.qcow2");
        done(work.convert_into(&zstd, &["--codec", "zstd"]));
        done(work.bucket.convert(&work.disk(), &["-q"]));
        let zstd = std::fs::read(zstd).expect("an image");
        Self { zstd, ..work }
    }

    /// Makes this user the owner of all files.
    pub fn give_to(&self, user: &str) {
        let status =
            Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(self.home.path()).status();
        assert!(status.expect("chown is there").success());
        let _ = Command::new("chmod").arg("a+rx").args(self.home.path().ancestors().take(4)).status();
    }

    pub fn disk(&self) -> PathBuf {
        self.home.path().join("disk.raw")
    }

    fn image(&self) -> PathBuf {
        self.home.path().join(KEY)
    }

    fn made(&self) -> PathBuf {
        self.home.path().join("made")
    }

    fn out(&self) -> PathBuf {
        self.made().join("out")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = snapferry(args);
        command.env("SNAPFERRY_CONFIG", "/dev/null");
        command
    }

    /// A command that does as little as possible.
    pub fn bare(&self) -> Command {
        self.command(&["--version"])
    }

    fn convert_into(&self, to: &Path, more: &[&str]) -> Command {
        let mut command = self.command(&["convert", "-q", "--force", "--device"]);
        command.arg(self.disk()).arg("--output").arg(to).args(more);
        command
    }

    /// Every command, with its output without a limit.
    pub fn jobs(&self) -> Vec<Job> {
        let (disk, image, out) = (self.disk(), self.image(), self.out());
        let with = |args: &[&str], files: &[&Path]| {
            let mut command = self.command(args);
            command.args(files);
            command
        };
        let object = format!("s3://{BUCKET}/{KEY}");
        let restore = |args: &[&str], from: &Path| {
            let mut command = with(args, &[from]);
            command.args(["-q", "--force", "--output"]).arg(&out);
            command
        };
        let from_bucket = |args: &[&str]| self.bucket.command_without_bucket(args);
        let jobs = [
            (Makes::Image, self.convert_into(&out, &[])),
            (Makes::ImageByZstd, self.convert_into(&out, &["--codec", "zstd"])),
            (Makes::Object, self.bucket.convert(&disk, &["-q", "--force"])),
            (Makes::Disk, restore(&["restore"], &image)),
            (
                Makes::Disk,
                from_bucket(&["restore", &object, "-q", "--force", "--output", &out.to_string_lossy()]),
            ),
            (Makes::Output, with(&["verify", "-q"], &[&image])),
            (Makes::Output, with(&["verify", "-q", "--against"], &[&disk, &image])),
            (Makes::Output, from_bucket(&["verify", "-q", &object])),
            (Makes::Output, with(&["compare"], &[&image, &disk])),
            (Makes::Output, with(&["check"], &[&image])),
            (Makes::Output, with(&["map", "--json"], &[&image])),
            (Makes::Output, with(&["info", "--json"], &[&image])),
            (Makes::Output, from_bucket(&["info", "--json", &object])),
            (Makes::Output, with(&["measure", "--json"], &[&disk])),
            (Makes::Output, self.bucket.command(["uploads", "list"])),
            (Makes::Output, with(&["completions", "bash"], &[])),
            (Makes::Other, with(&["qemu-img", "convert", "-O", "qcow2"], &[&disk, &out])),
            (Makes::Other, with(&["qemu-img", "convert", "-c", "-O", "qcow2"], &[&disk, &out])),
            (Makes::Disk, with(&["qemu-img", "convert", "-O", "raw"], &[&image, &out])),
            (Makes::Output, with(&["qemu-img", "compare"], &[&image, &disk])),
            (Makes::Output, with(&["qemu-img", "check"], &[&image])),
            (Makes::Output, with(&["qemu-img", "map", "--output=json"], &[&image])),
            (Makes::Output, with(&["qemu-img", "info", "--output=json"], &[&image])),
            (Makes::Output, with(&["qemu-img", "measure", "-O", "qcow2"], &[&image])),
        ];
        let name = |command: &Command| {
            let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
            let names =
                args.map(|arg| arg.rsplit('/').next().unwrap_or_default().to_owned()).collect::<Vec<_>>();
            names.iter().take(6).map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        let jobs = jobs.into_iter().map(|(makes, mut command)| {
            self.reset();
            let output = command.output().expect("it runs");
            let job = Job { name: name(&command), command, makes, stdout: output.stdout.clone() };
            assert!(
                matches!(self.judge(&job, &output), Ok(End::Right)),
                "{} without a limit: {output:?}",
                job.name
            );
            job
        });
        jobs.collect()
    }

    /// Puts back the state before a command.
    pub fn reset(&self) {
        for name in left_in(&self.made()) {
            std::fs::remove_file(self.made().join(name)).expect("removed");
        }
        std::fs::write(self.out(), OLD).expect("written");
        // The owner of the folder may write over the file.
        let _ = std::fs::set_permissions(self.out(), std::os::unix::fs::PermissionsExt::from_mode(0o666));
    }

    /// Checks that the command succeeded with the right result, or was refused and left nothing.
    ///
    /// # Errors
    /// If the end or the result is wrong. The text is the reason.
    pub fn judge(&self, job: &Job, output: &Output) -> Result<End, String> {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let left = left_in(&self.made());
        if let Some(hidden) = left.iter().find(|name| name.starts_with('.')) {
            return Err(format!("{hidden} is left: {stderr}"));
        }
        if self.bucket.open_uploads() > 0 {
            return Err(format!("an upload is left: {stderr}"));
        }
        if stderr.contains("panicked") || stderr.contains("this is a bug") {
            return Err(format!("a bug: {stderr}"));
        }
        match output.status.code() {
            Some(0) => self.check_result(job, output).map(|()| End::Right),
            Some(1..=8) if stderr.trim().is_empty() => Err("refused without a word".to_owned()),
            Some(1..=8) => {
                let kept = std::fs::read(self.out()).is_ok_and(|bytes| bytes == OLD) && left.len() == 1;
                if kept { Ok(End::Refused) } else { Err(format!("refused, and {left:?} is there: {stderr}")) }
            }
            Some(137) => Err(format!("hangs, or was killed for its memory: {stderr}")),
            code => Err(format!("ended with {code:?}: {stderr}")),
        }
    }

    /// Checks the result of a command that succeeded.
    fn check_result(&self, job: &Job, output: &Output) -> Result<(), String> {
        let out = || std::fs::read(self.out()).expect("what was made");
        let disk = || {
            let mut disk = std::fs::read(self.disk()).expect("the disk");
            disk.resize(disk.len().next_multiple_of(512), 0);
            disk
        };
        let same = match job.makes {
            Makes::Output => output.stdout == job.stdout,
            Makes::Image => out() == std::fs::read(self.image()).expect("the image"),
            Makes::ImageByZstd => self.zstd.is_empty() || out() == self.zstd,
            Makes::Disk => out() == disk(),
            Makes::Other => snapferry_testkit::model::Model::read(&out())
                .map_err(|error| format!("{error:?}"))?
                .disk()
                .is_ok_and(|read| read == disk()),
            Makes::Object => {
                self.bucket.object(&key()) == Some(std::fs::read(self.image()).expect("the image"))
            }
        };
        if same {
            Ok(())
        } else {
            Err(format!("ended well, and it is wrong: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }
}
