//! Messages of a worker to systemd: that it is ready, that it is alive, what it does, that it ends. Without
//! systemd nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use snapferry_base::cancel::Cancel;
use snapferry_base::threads;
use snapferry_fleet::worker::JobProgress;
use snapferry_fleet::worker::Worker;
use tokio::sync::oneshot::{self, error::TryRecvError};

/// Time between two updates of the line that `systemctl status` shows.
const STATUS: Duration = Duration::from_secs(5);

/// Extension of the stop timeout that each message asks for. The longest part of a clean-up takes hours, if
/// the cloud does.
const MORE: Duration = Duration::from_secs(60);

/// Stage of the worker's life that a message reports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watchdog {
    Ready,
    Works,
    /// The worker begins to stop.
    Stops,
    /// The worker is still stopping.
    Ends,
}

/// Sends messages until it is dropped. Only the turns of this task feed the watchdog: an outage of the queue
/// or the cloud must not end an upload.
pub async fn keep(worker: &Worker<'_>, drain: &Cancel) {
    let every = sd_notify::watchdog_enabled().map_or(STATUS, |limit| (limit / 3).min(STATUS));
    let mut sending = send(Watchdog::Ready, status(worker, drain));
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            _reason = drain.cancelled(), if !stopping => {
                stopping = true;
                // The message that the worker stops must not be left out, so the previous one has to arrive
                // first.
                let _ = (&mut sending.0).await;
                sending = send(Watchdog::Stops, status(worker, drain));
            }
            () = tokio::time::sleep(every) => {
                if sending.is_done() {
                    sending = send(if stopping { Watchdog::Ends } else { Watchdog::Works }, status(worker, drain));
                }
            }
        }
    }
}

/// Message that is being sent.
struct Telling(oneshot::Receiver<()>);

impl Telling {
    /// Returns true if the message has arrived, or never will.
    fn is_done(&mut self) -> bool {
        !matches!(self.0.try_recv(), Err(TryRecvError::Empty))
    }
}

/// Sends a message from a thread of its own, not one of the runtime's: systemd's socket holds ten messages,
/// and sending one more blocks.
fn send(stage: Watchdog, status: String) -> Telling {
    let (sent, receiver) = oneshot::channel();
    let started = threads::spawn("tell systemd", move || {
        let mut states = vec![NotifyState::Watchdog, NotifyState::Status(&status)];
        match stage {
            Watchdog::Ready => states.push(NotifyState::Ready),
            Watchdog::Stops => states.push(NotifyState::Stopping),
            Watchdog::Works | Watchdog::Ends => {}
        }
        if matches!(stage, Watchdog::Stops | Watchdog::Ends) {
            states.push(NotifyState::ExtendTimeoutUsec(u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX)));
        }
        if let Err(err) = sd_notify::notify(&states) {
            tracing::debug!("systemd could not be told: {err}");
        }
        // The receiver may be gone: the worker does not wait for every message.
        let _ = sent.send(());
    });
    if let Err(refused) = started {
        tracing::warn!("systemd is told later: {refused}");
    }
    Telling(receiver)
}

/// Returns the jobs in one line: `web01 convert 43 % of 100 GiB; db01 import`.
fn status(worker: &Worker<'_>, drain: &Cancel) -> String {
    let jobs: Vec<String> = worker.held_jobs().all().iter().map(|job| describe(job)).collect();
    let jobs = if jobs.is_empty() { "idle".to_owned() } else { jobs.join("; ") };
    if drain.is_cancelled() { format!("ending: {jobs}") } else { jobs }
}

fn describe(job: &JobProgress) -> String {
    let step = job.step().map_or("begins", snapferry_fleet::replicate::Step::name);
    match job.bytes() {
        Some((done, size)) if size.0 > 0 => {
            format!("{} {step} {} % of {size}", job.server, u128::from(done.0) * 100 / u128::from(size.0))
        }
        _ => format!("{} {step}", job.server),
    }
}
