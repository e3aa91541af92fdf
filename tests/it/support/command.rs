//! The program under test, and what a run of it leaves.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::wait_until;

/// Path of the program under test.
pub fn program() -> &'static str {
    env!("CARGO_BIN_EXE_snapferry")
}

/// A folder on the build's file system, which supports O_DIRECT and holes; the system's temporary folder may
/// not.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// Names in a folder, sorted.
pub fn left_in(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A `snapferry` command that inherits nothing of the caller's environment.
pub fn snapferry<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program());
    command.args(args).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// Exit code and output of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Ended {
    /// Asserts that stdout holds the object of the error, with the exit code, and nothing else.
    #[track_caller]
    pub fn prints_only_an_error(&self) {
        let object: Value =
            serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {}", self.out));
        let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["error"], "{object}");
        assert_eq!(object["error"]["code"].as_i64(), self.code.map(i64::from), "{object}");
    }

    /// Asserts that the command ended with this exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self
    }

    /// Asserts that the output contains each of these texts.
    #[track_caller]
    pub fn says(self, messages: &[&str]) -> Self {
        let all = format!("{}\n{}", self.out, self.err);
        for message in messages {
            assert!(all.contains(message), "{message:?} is not in:\n{all}");
        }
        self
    }

    /// Parses the report of `--json`; the exit code must be 0.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.report()
    }

    /// Parses the report of `--json`, whatever the exit code.
    pub fn report(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// Asserts that the command ended with this code, and that stderr contains each of these texts.
    #[track_caller]
    pub fn expect(&self, code: i32, messages: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        for message in messages {
            assert!(self.err.contains(message), "{message:?} is not in: {}", self.err);
        }
    }
}

pub fn run(mut command: Command) -> Ended {
    command.output().expect("the command runs").into()
}

/// The command `snapferry convert --device DISK --output IMAGE`, with `more` arguments.
pub fn convert_into_file(disk: &Path, image: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["convert", "--device"]);
    command.arg(disk).arg("--output").arg(image).args(more);
    command
}

/// A running command, killed when this is dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts")))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("taken only at the end")
    }

    pub fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).expect("it is there to be signalled");
    }

    pub fn is_running(&mut self) -> bool {
        self.child().try_wait().expect("our child").is_none()
    }

    /// Waits for the command's end; fails if it does not come in time.
    pub fn end(mut self) -> Ended {
        wait_until("the command ends", || !self.is_running());
        self.0.take().expect("not taken yet").wait_with_output().expect("its output").into()
    }

    /// Reads stdout up to the first line that begins with `prefix`, and returns the rest of that line.
    pub fn line(&mut self, prefix: &str) -> String {
        // Borrowed, not taken: the pipe must stay open for the command's later output.
        let out = self.child().stdout.as_mut().expect("piped");
        let mut line = String::new();
        let mut byte = [0];
        while out.read(&mut byte).expect("its output") == 1 {
            match byte[0] {
                b'\n' if line.starts_with(prefix) => return line.split_off(prefix.len()),
                b'\n' => line.clear(),
                other => line.push(char::from(other)),
            }
        }
        panic!("no line begins with {prefix}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // The command may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
