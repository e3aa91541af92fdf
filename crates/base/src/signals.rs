//! Handling of SIGINT, SIGTERM, SIGQUIT and SIGHUP: the first signal begins a stop; a second one from a
//! person ends the process at once.

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Effect of a signal on the work of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The work stops and cleans up.
    Begin,
    /// The process ends at once, without cleaning up.
    AtOnce,
}

/// Calls `stop` on `runtime` for each signal that has an effect, from now on. Before this call a signal ends
/// the process as the system does by default, which is right because the process has created nothing yet.
///
/// # Errors
/// If the handlers can't be installed.
pub fn listen(runtime: &Handle, mut stop: impl FnMut(Stop) + Send + 'static) -> std::io::Result<()> {
    let _inside = runtime.enter();
    let mut signals = Signals::listen(ignored())?;
    runtime.spawn(async move {
        let mut received = Received::default();
        loop {
            if let Some(action) = received.add(signals.next().await) {
                stop(action);
            }
        }
    });
    Ok(())
}

/// Origin of a signal, as far as its number shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// A person or a service manager: SIGINT, SIGTERM, SIGQUIT.
    Person,
    /// A terminal that is gone, or a session that ends: SIGHUP.
    Terminal,
}

/// The signals received so far.
#[derive(Default)]
struct Received {
    from_a_person: bool,
    begun: bool,
}

impl Received {
    /// Records a signal and returns its effect. When a terminal goes away, the kernel, the shell, and the
    /// kernel again report it, so a process may get SIGHUP three times; systemd can send SIGHUP together with
    /// SIGTERM. So SIGHUP begins the stop like any other signal, but never counts as the second one.
    fn add(&mut self, sender: Sender) -> Option<Stop> {
        let second = self.from_a_person && sender == Sender::Person;
        self.from_a_person |= sender == Sender::Person;
        if second {
            return Some(Stop::AtOnce);
        }
        (!std::mem::replace(&mut self.begun, true)).then_some(Stop::Begin)
    }
}

/// The signals that the process listens for.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Signals {
    /// Installs the handlers. A signal that was ignored when the process started stays ignored: SIGHUP under
    /// nohup, SIGQUIT in the background of a script.
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

    async fn next(&mut self) -> Sender {
        tokio::select! {
            _ = self.interrupt.recv() => Sender::Person,
            _ = self.terminate.recv() => Sender::Person,
            () = received(&mut self.quit) => Sender::Person,
            () = received(&mut self.hang_up) => Sender::Terminal,
        }
    }
}

/// Waits for a signal, for ever if the signal is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Returns the signals that the process ignores, one bit each, with SIGHUP (1) in bit 0: the field `SigIgn`
/// of proc(5). Returns 0 if /proc isn't mounted.
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
        let stops = |senders: &[Sender]| {
            let mut received = Received::default();
            senders.iter().map(|&sender| received.add(sender)).collect::<Vec<_>>()
        };
        let (begin, at_once) = (Some(Stop::Begin), Some(Stop::AtOnce));
        use Sender::{Person, Terminal};
        assert_eq!(stops(&[Person, Person]), [begin, at_once]);
        assert_eq!(stops(&[Terminal, Terminal, Terminal]), [begin, None, None]);
        // systemd sends both when it ends a session, in either order.
        assert_eq!(stops(&[Person, Terminal]), [begin, None]);
        assert_eq!(stops(&[Terminal, Person]), [begin, None]);
        assert_eq!(stops(&[Person, Terminal, Person]), [begin, None, at_once]);
        assert_eq!(stops(&[Terminal, Person, Terminal, Person]), [begin, None, None, at_once]);
    }

    #[test]
    fn the_kernel_reports_ignored_signals() {
        // Rust's runtime ignores SIGPIPE at the start; its number on Linux is 13.
        assert_eq!(ignored() >> 12 & 1, 1);
        assert_eq!(ignored() >> 8 & 1, 0, "no process can ignore SIGKILL");
    }
}
