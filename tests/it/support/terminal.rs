//! A terminal of a given size, with a command on it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use console::{measure_text_width, strip_ansi_codes};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::wait_until;

/// What Ctrl-C and Ctrl-D send.
pub const CTRL_C: &str = "\u{3}";
pub const CTRL_D: &str = "\u{4}";

/// Terminal with a command that has it as its controlling terminal, so that Ctrl-C is a signal.
pub struct Terminal {
    child: Child,
    side: File,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

fn size(columns: u16) -> Winsize {
    Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts a command on a terminal of `columns` columns.
    pub fn start(command: &Command, columns: u16) -> Self {
        let side =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&side).expect("granted");
        unlockpt(&side).expect("unlocked");
        tcsetwinsize(&side, size(columns)).expect("sized");
        let name = ptsname(&side, Vec::new()).expect("a name");
        let noctty = i32::try_from(OFlags::NOCTTY.bits()).expect("a flag");
        let inner = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(noctty)
            .open(OsStr::new(name.to_str().expect("UTF-8")))
            .expect("the other side");
        let own = || OwnedFd::from(inner.try_clone().expect("a copy"));
        let mut wrapped = Command::new("/usr/bin/setsid");
        wrapped.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        wrapped
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("TERM", "xterm");
        let child = wrapped.stdin(own()).stdout(own()).stderr(own()).spawn().expect("setsid runs");
        let side = File::from(side);
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let (mut output, into) = (side.try_clone().expect("a copy"), Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The other side is closed once the command and its children have ended.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                into.lock().expect("no panic").extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, side, seen, reader: Some(reader) }
    }

    pub fn press(&mut self, keys: &str) {
        self.side.write_all(keys.as_bytes()).expect("typed");
    }

    pub fn resize(&self, columns: u16) {
        tcsetwinsize(&self.side, size(columns)).expect("sized");
    }

    /// Everything that the command has printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic")).into_owned()
    }

    /// Number of bytes that the command has printed so far.
    pub fn printed(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }

    /// Everything that the command has printed after so many bytes.
    pub fn text_after(&self, bytes: usize) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic")[bytes..]).into_owned()
    }

    /// Waits until the command has printed `text`.
    pub fn until(&self, text: &str) {
        wait_until(&format!("{text:?} in {:?}", self.text()), || self.text().contains(text));
    }

    /// Waits for the command's end, and returns its exit code and all that it printed.
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("our child").code();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("all was read");
        }
        (code, self.text())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines as they were drawn on a terminal, without what a terminal obeys. A line that is drawn over counts
/// each time.
pub fn drawn(text: &str) -> Vec<String> {
    let text = strip_ansi_codes(text);
    text.split(['\r', '\n']).map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
}

/// Asserts that each line fits a terminal of `columns` columns.
#[track_caller]
pub fn assert_fits(lines: &[String], columns: usize) {
    for line in lines {
        assert!(measure_text_width(line) <= columns, "{columns} columns: {line:?}");
    }
}
