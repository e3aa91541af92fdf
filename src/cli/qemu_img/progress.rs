//! QEMU's progress line: `    (12.34/100%)`, drawn over itself, on stdout.

use std::io::{Write as _, stdout};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::units::ByteCount;

/// How often it is drawn anew, if it changed.
const REDRAW: Duration = Duration::from_millis(100);

/// Whether the line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Yes,
    No,
}

/// Draws until it is dropped, and ends the line then.
pub struct Progress {
    shown: Shown,
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts with `(0.00/100%)`. `done` tells how much of `size` is through.
    pub fn start(shown: Shown, size: ByteCount, done: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        if shown == Shown::No {
            return Self { shown, stop: None, thread: None };
        }
        draw(0);
        let (stop, stopped) = bounded(0);
        let thread = thread::spawn(move || {
            let mut last = 0;
            while stopped.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
                let now = hundredths(done().min(size.0), size.0);
                // A percent at a time, as QEMU does.
                if now >= last + 100 {
                    draw(now);
                    last = now;
                }
            }
        });
        Self { shown, stop: Some(stop), thread: Some(thread) }
    }

    /// Draws `(100.00/100%)`, for work that is done.
    pub fn complete(&mut self) {
        self.end();
        if self.shown == Shown::Yes {
            draw(10_000);
        }
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A line that was not drawn is no reason to fail the work.
            let _ = thread.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
        if self.shown == Shown::Yes {
            let _ = stdout().write_all(b"\n");
        }
    }
}

/// Hundredths of a percent.
fn hundredths(done: u64, size: u64) -> u64 {
    u64::try_from(u128::from(done) * 10_000 / u128::from(size.max(1))).unwrap_or(10_000)
}

fn draw(hundredths: u64) {
    let mut out = stdout().lock();
    // Nobody has to look.
    let _ = write!(out, "    ({}.{:02}/100%)\r", hundredths / 100, hundredths % 100);
    let _ = out.flush();
}
