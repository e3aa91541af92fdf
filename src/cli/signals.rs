//! SIGINT, SIGTERM, SIGQUIT and SIGHUP: the first asks the work to stop, a second that somebody meant ends the process at once.

use std::io::Write as _;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::Code;
use crate::cancel::{Cancel, Reason};

/// What work that is not let end leaves behind.
#[derive(Clone, Debug)]
pub enum Left {
    /// An upload, which `uploads list` finds.
    Upload,
    /// A target that holds part of a disk.
    Target,
    /// A job in the cloud, which can be resumed.
    Job,
    /// A worker's jobs. At a second word, which it is told by this one, it gives them back at once; at a third it ends.
    Jobs(Cancel),
    /// A demonstration's folder, with a copy of the disk in it.
    #[cfg(feature = "sim")]
    Demo,
    /// Nothing.
    Nothing,
}

impl Left {
    /// What the work has to do before it ends.
    fn doing(&self) -> Option<&'static str> {
        Some(match self {
            Self::Upload => "ending the upload",
            Self::Target => "giving up the target",
            Self::Job => "detaching and removing the volume, if there is one",
            Self::Jobs(_) => "giving back the jobs at hand; what is being converted comes to its end first",
            #[cfg(feature = "sim")]
            Self::Demo => "removing what was made",
            // Nothing has to be brought to an end, or hardly anything.
            Self::Nothing => return None,
        })
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Upload => "snapferry: stopped at once; `snapferry uploads list` shows an upload that may be left in the bucket\n",
            Self::Target => {
                "snapferry: stopped at once; a device, or a file that is written where it lies, is incomplete, or a hidden file that ends in .partial is left beside the output\n"
            }
            Self::Job => {
                "snapferry: stopped at once; `snapferry replicate --resume` goes on with the job, `snapferry gc` shows what it has left\n"
            }
            Self::Jobs(_) => {
                "snapferry: stopped at once; another worker takes the jobs at hand over when their leases have run out, in two minutes\n"
            }
            #[cfg(feature = "sim")]
            Self::Demo => {
                "snapferry: stopped at once; a folder snapferry-demo-... with a copy of the disk is left in TMPDIR or /tmp\n"
            }
            Self::Nothing => "snapferry: stopped at once\n",
        }
    }
}

/// Listens from now on. Until then nothing has been made, and the system's own end of a process is the right one.
///
/// # Errors
/// Where the handlers can't be installed.
pub fn listen(runtime: &Handle, cancel: &Cancel, left: Left) -> std::io::Result<()> {
    // A worker goes on with its other jobs when one of them dies.
    if !matches!(left, Left::Jobs(_)) {
        super::panics::end(cancel);
    }
    let _inside = runtime.enter();
    let mut words = Words::listen(ignored())?;
    let cancel = cancel.clone();
    runtime.spawn(async move {
        let mut stop = Stop { asked: false, begun: false };
        loop {
            let word = words.next().await;
            match stop.hear(word) {
                Means::Nothing => {}
                Means::Begin => {
                    let doing = left.doing().map(|doing| format!(": {doing}")).unwrap_or_default();
                    tracing::warn!("stopping{doing} (once more to exit at once)");
                    cancel.cancel(Reason::Asked);
                }
                Means::AtOnce => match &left {
                    Left::Jobs(hurry) if !hurry.is_cancelled() => {
                        tracing::warn!("giving back at once what is being converted, too");
                        hurry.cancel(Reason::Asked);
                    }
                    left => {
                        // The user has waited long enough.
                        let _ = std::io::stderr().write_all(left.words().as_bytes());
                        std::process::exit(Code::Interrupted as i32);
                    }
                },
            }
        }
    });
    Ok(())
}

/// A word to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Somebody wants it: SIGINT, SIGTERM, SIGQUIT.
    Asked,
    /// The terminal is gone, or the session ends: SIGHUP.
    HungUp,
}

/// What a word means to the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Nothing,
    /// It is to stop, and to clean up.
    Begin,
    /// It is to end as it is.
    AtOnce,
}

/// What has been heard so far.
struct Stop {
    asked: bool,
    begun: bool,
}

impl Stop {
    /// A terminal that goes away is heard of two or three times (by the kernel, by the shell, by the kernel again when the shell ends), and
    /// systemd sends SIGHUP right beside SIGTERM where it is told to: it begins the stop like any other, and is never a second word.
    fn hear(&mut self, word: Word) -> Means {
        let again = self.asked && word == Word::Asked;
        self.asked |= word == Word::Asked;
        if again {
            return Means::AtOnce;
        }
        if std::mem::replace(&mut self.begun, true) { Means::Nothing } else { Means::Begin }
    }
}

/// The signals that are listened for.
struct Words {
    interrupt: Signal,
    terminate: Signal,
    quit: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Words {
    /// What was ignored at the start stays ignored: SIGHUP under nohup, SIGQUIT in the background of a script.
    fn listen(ignored: u64) -> std::io::Result<Self> {
        let unless_ignored = |kind: SignalKind| {
            let bit = u32::try_from(kind.as_raw_value()).unwrap_or(0).saturating_sub(1);
            (ignored >> bit & 1 == 0).then(|| signal(kind)).transpose()
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: unless_ignored(SignalKind::quit())?,
            hang_up: unless_ignored(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Word {
        tokio::select! {
            _ = self.interrupt.recv() => Word::Asked,
            _ = self.terminate.recv() => Word::Asked,
            () = heard(&mut self.quit) => Word::Asked,
            () = heard(&mut self.hang_up) => Word::HungUp,
        }
    }
}

/// Waits for a signal that may be ignored.
async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The signals that are ignored, a bit for each from 1 on, as the kernel tells (proc(5), "SigIgn"). None where there is no /proc.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_begins_a_stop_and_never_cuts_one_short() {
        let means = |words: &[Word]| {
            let mut stop = Stop { asked: false, begun: false };
            words.iter().map(|&word| stop.hear(word)).collect::<Vec<_>>()
        };
        use Means::{AtOnce, Begin, Nothing};
        use Word::{Asked, HungUp};
        assert_eq!(means(&[Asked, Asked]), [Begin, AtOnce]);
        assert_eq!(means(&[HungUp, HungUp, HungUp]), [Begin, Nothing, Nothing]);
        // As systemd ends a session, in either order.
        assert_eq!(means(&[Asked, HungUp]), [Begin, Nothing]);
        assert_eq!(means(&[HungUp, Asked]), [Begin, Nothing]);
        assert_eq!(means(&[HungUp, Asked, HungUp, Asked]), [Begin, Nothing, Nothing, AtOnce]);
    }

    #[test]
    fn the_kernel_tells_what_is_ignored() {
        // Rust's own start ignores SIGPIPE, which is number 13 on Linux.
        assert_eq!(ignored() >> 12 & 1, 1);
        assert_eq!(ignored() >> 8 & 1, 0, "nobody can ignore SIGKILL");
    }
}
