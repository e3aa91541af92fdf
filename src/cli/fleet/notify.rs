//! What a worker tells systemd: that it is ready, that it lives, what it does, that it ends. Without systemd all of it is nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use snapferry_base::cancel::Cancel;
use snapferry_base::threads;
use snapferry_fleet::worker::Sight;
use snapferry_fleet::worker::Worker;
use tokio::sync::oneshot::{self, error::TryRecvError};

/// How often the line that `systemctl status` shows is written.
const STATUS: Duration = Duration::from_secs(5);

/// How much time to end in is asked for each time. The longest part of a clean-up takes hours, where the cloud does.
const MORE: Duration = Duration::from_secs(60);

/// Where the worker is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Ready,
    Works,
    /// It has been told to stop.
    Stops,
    /// It is at that.
    Ends,
}

/// Tells until dropped. Nothing but this task's own turns feed the watchdog: an outage of the queue or the cloud must not end an upload.
pub async fn keep(worker: &Worker<'_>, drain: &Cancel) {
    let every = sd_notify::watchdog_enabled().map_or(STATUS, |limit| (limit / 3).min(STATUS));
    let mut telling = tell(Life::Ready, status(worker, drain));
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            _reason = drain.cancelled(), if !stopping => {
                stopping = true;
                // This one must not be left out.
                let _ = (&mut telling.0).await;
                telling = tell(Life::Stops, status(worker, drain));
            }
            () = tokio::time::sleep(every) => {
                if telling.is_over() {
                    telling = tell(if stopping { Life::Ends } else { Life::Works }, status(worker, drain));
                }
            }
        }
    }
}

/// A message on its way.
struct Telling(oneshot::Receiver<()>);

impl Telling {
    /// Whether it has arrived, or never will.
    fn is_over(&mut self) -> bool {
        !matches!(self.0.try_recv(), Err(TryRecvError::Empty))
    }
}

/// On a thread of its own, not one of the runtime's: systemd's socket takes ten messages, and whoever sends one more waits.
fn tell(life: Life, status: String) -> Telling {
    let (told, telling) = oneshot::channel();
    let started = threads::spawn("tell systemd", move || {
        let mut words = vec![NotifyState::Watchdog, NotifyState::Status(&status)];
        match life {
            Life::Ready => words.push(NotifyState::Ready),
            Life::Stops => words.push(NotifyState::Stopping),
            Life::Works | Life::Ends => {}
        }
        if matches!(life, Life::Stops | Life::Ends) {
            words.push(NotifyState::ExtendTimeoutUsec(u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX)));
        }
        if let Err(err) = sd_notify::notify(&words) {
            tracing::debug!("systemd could not be told: {err}");
        }
        // Nobody waits for all of them.
        let _ = told.send(());
    });
    if let Err(refused) = started {
        tracing::warn!("systemd is told later: {refused}");
    }
    Telling(telling)
}

/// In a line: `web01 convert 43 % of 100 GiB; db01 import`.
fn status(worker: &Worker<'_>, drain: &Cancel) -> String {
    let jobs: Vec<String> = worker.in_hand().iter().map(|sight| words(sight)).collect();
    let jobs = if jobs.is_empty() { "idle".to_owned() } else { jobs.join("; ") };
    if drain.is_cancelled() { format!("ending: {jobs}") } else { jobs }
}

fn words(sight: &Sight) -> String {
    let step = sight.step().map_or("begins", snapferry_fleet::replicate::Step::name);
    match sight.bytes() {
        Some((done, size)) if size.0 > 0 => {
            format!("{} {step} {} % of {size}", sight.server, u128::from(done.0) * 100 / u128::from(size.0))
        }
        _ => format!("{} {step}", sight.server),
    }
}
