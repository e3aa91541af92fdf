//! Panic hook, so that a panic in any thread ends the program in order. The hook prints one line with the
//! message and the place, and cancels the work as a signal does; the cleanup after that (abort the upload,
//! remove the hidden file, detach the volume) has a time limit.
//!
//! If an allocation fails in code that can't return the error (a library's `Box`, a growing list), Rust
//! aborts the process at once. Nothing runs after that, and what is left is what a `kill -9` leaves.

use std::backtrace::Backtrace;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::panic::{PanicHookInfo, set_hook};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::limits::Allowance;
use tracing::Level;

use super::exit::Code;
use super::json_log::{Record, write_timestamp};
use super::log::{self, LogFormat};

/// Time limit of the cleanup: an upload's abort has half a minute, a volume is detached and deleted in a few
/// minutes.
const WAY_OUT: Duration = Duration::from_secs(600);
/// Stack size in bytes of the thread that waits for the time limit.
const WATCHER_STACK: usize = 64 << 10;
/// Longest line in bytes, because it is built without the heap.
const LINE: usize = 1024;
/// Number of panics that are printed. Later ones add nothing: they are in threads that fail because another
/// thread did.
const TOLD: u32 = 3;

/// Work that a panic cancels.
static WORK: Mutex<Vec<Cancel>> = Mutex::new(Vec::new());
static PANICS: AtomicU32 = AtomicU32::new(0);
static ENDED: AtomicBool = AtomicBool::new(false);

/// Replaces Rust's own hook, whose backtrace can take more memory than there is, and then hangs.
pub fn install() {
    let allowance = Allowance::of_process();
    let backtraces = allowance.address_space.is_none() && allowance.data.is_none();
    set_hook(Box::new(move |panic| hook(panic, backtraces)));
}

/// Makes any panic from now on cancel this work.
pub fn end(work: &Cancel) {
    WORK.lock().unwrap_or_else(PoisonError::into_inner).push(work.clone());
}

/// True if a panic has cancelled the work.
pub fn ended_the_work() -> bool {
    ENDED.load(Relaxed)
}

fn hook(panic: &PanicHookInfo<'_>, backtraces: bool) {
    let before = PANICS.fetch_add(1, Relaxed);
    if before < TOLD {
        let _ = std::io::stderr().write_all(line(panic, log::format()).bytes());
    }
    // The hook doesn't wait for the lock: a thread that panics while it holds the lock must not hang here.
    if let Ok(work) = WORK.try_lock() {
        for cancel in work.iter() {
            ENDED.store(true, Relaxed);
            cancel.cancel(Reason::Failed);
        }
    }
    if before > 0 {
        return;
    }
    if ended_the_work() {
        // If no thread can be started, the user can still end the process by two signals.
        let _ = thread::Builder::new().name("way-out".into()).stack_size(WATCHER_STACK).spawn(|| {
            thread::sleep(WAY_OUT);
            log::print_last(Level::ERROR, "giving up does not come to its end: stopped at once");
            std::process::exit(Code::Unexpected as i32);
        });
    }
    if backtraces {
        // Empty unless RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            if log::format() == LogFormat::Json {
                Record::new(Level::ERROR, "backtrace").with("backtrace", backtrace.to_string()).print();
            } else {
                let _ = writeln!(std::io::stderr(), "{backtrace}");
            }
        }
    }
}

fn line(panic: &PanicHookInfo<'_>, format: LogFormat) -> OneLine {
    let mut line = OneLine::begin(format);
    let thread = thread::current();
    let _ = write!(
        line,
        "this is a bug in snapferry, please report it: {} stopped",
        thread.name().unwrap_or("a thread")
    );
    if let Some(location) = panic.location() {
        let _ = write!(line, " at {location}");
    }
    if let Some(message) = panic.payload_as_str() {
        let _ = write!(line, ": {message}");
    }
    line
}

/// Text of bounded length on one line, or an object of JSON with the text as its message: control characters
/// become blanks, and a line break ends it.
struct OneLine {
    bytes: [u8; LINE],
    len: usize,
    /// Bytes that follow the text.
    end: &'static [u8],
    is_json: bool,
}

impl OneLine {
    fn begin(format: LogFormat) -> Self {
        let mut line = Self { bytes: [0; LINE], len: 0, end: b"\n", is_json: false };
        // The beginning is far shorter than a line.
        let _ = if format == LogFormat::Json {
            line.write_str("{\"timestamp\":\"").and_then(|()| write_timestamp(&mut line)).and_then(|()| {
                line.write_str("\",\"level\":\"ERROR\",\"target\":\"snapferry\",\"message\":\"")
            })
        } else {
            line.write_str("error: ")
        };
        line.is_json = format == LogFormat::Json;
        if line.is_json {
            line.end = b"\"}\n";
        }
        line
    }

    fn bytes(&mut self) -> &[u8] {
        let end = self.len + self.end.len();
        self.bytes[self.len..end].copy_from_slice(self.end);
        &self.bytes[..end]
    }
}

impl fmt::Write for OneLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let char = if char.is_control() { ' ' } else { char };
            let escape: &[u8] = if self.is_json && matches!(char, '"' | '\\') { b"\\" } else { b"" };
            if self.len + escape.len() + char.len_utf8() + self.end.len() > LINE {
                return Err(fmt::Error);
            }
            self.bytes[self.len..self.len + escape.len()].copy_from_slice(escape);
            self.len += escape.len();
            self.len += char.encode_utf8(&mut self.bytes[self.len..]).len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs a test of this file, which is ignored otherwise, in its own process.
    fn in_a_process(name: &str, backtrace: &str, space: Option<u64>) -> (Option<i32>, String) {
        let mut command = Command::new("prlimit");
        let limit = space.map_or("unlimited".to_owned(), |limit| limit.to_string());
        command.arg(format!("--as={limit}")).arg(std::env::current_exe().expect("a program"));
        command.args([
            &format!("cli::panics::tests::{name}"),
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ]);
        let output =
            command.env("RUST_BACKTRACE", backtrace).stdin(Stdio::null()).output().expect("prlimit is there");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    #[ignore = "run by another test, in a process of its own"]
    fn dies() {
        install();
        let work = Cancel::new();
        end(&work);
        let joined = thread::scope(|scope| scope.spawn(|| panic!("it came\x1b[2J to this")).join().is_err());
        assert!(joined && ended_the_work());
        let failed = work.reason() == Some(Reason::Failed);
        // No test harness ends with these codes.
        std::process::exit(if failed { 42 } else { 43 });
    }

    #[test]
    fn a_panic_is_one_line_and_ends_the_work_also_where_there_is_hardly_any_memory() {
        let (code, stderr) = in_a_process("dies", "0", None);
        assert_eq!(code, Some(42), "{stderr}");
        let line = stderr.lines().find(|line| line.contains("it came")).expect("the line");
        assert!(
            line.starts_with(
                "error: this is a bug in snapferry, please report it: a thread stopped at src/cli/panics.rs:"
            ),
            "{line}"
        );
        assert!(line.ends_with(": it came [2J to this"), "{line}");
        let (_, stderr) = in_a_process("dies", "1", None);
        assert!(stderr.contains("panics::tests::dies"), "the backtrace that was asked for: {stderr}");
        let (code, stderr) = in_a_process("dies", "1", Some(1 << 30));
        assert_eq!(code, Some(42), "{stderr}");
        assert!(!stderr.contains("panics::tests::dies"), "none where address space is short: {stderr}");
    }

    #[test]
    fn a_long_message_is_cut_and_still_a_line() {
        let mut line = OneLine::begin(LogFormat::Text);
        let _ = write!(line, "{}", "ä".repeat(LINE));
        let bytes = line.bytes();
        assert!(bytes.len() <= LINE && bytes.ends_with(b"\n") && std::str::from_utf8(bytes).is_ok());
    }

    #[test]
    fn a_long_message_is_an_object_where_the_log_is_json() {
        for start in 0..4 {
            let mut line = OneLine::begin(LogFormat::Json);
            let message = format!("{}{}", "x".repeat(start), "\"\\\n".repeat(LINE));
            let _ = write!(line, "{message}");
            let object: serde_json::Value = serde_json::from_slice(line.bytes()).expect("an object");
            let kept = object["message"].as_str().expect("a message");
            assert!(kept.len() > 300 && message.replace('\n', " ").starts_with(kept), "{object}");
            assert_eq!(object["level"], "ERROR");
        }
    }
}
