//! Lease on a job: its heartbeats, the job's journal in the queue, and the check that this worker still holds
//! it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rand::RngExt as _;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::fence::{Fence, Fenced};
use snapferry_base::retry::{Class, chain};

use super::progress::JobProgress;
use crate::queue::{Lease, LeaseStatus, OnFailure, Queue, QueueError, Timing};
use crate::replicate::journal::{Entry, Event, Journal, JournalError};

/// Wait before the next attempt if the queue can't be reached.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Largest share by which a heartbeat comes earlier or later, so that many workers don't send heartbeats at
/// the same time.
const JITTER: f64 = 0.2;

/// A message to the queue that extends the lease.
enum Report<'a> {
    Beat(&'a str),
    Step { event: &'a Event, journal: &'a str },
}

/// The message to the queue that ends the lease.
pub(super) enum FinalReport<'a> {
    Finish(&'a str),
    Fail(&'a str, OnFailure),
    Stop,
    Release,
}

/// Lease on a claimed job, with all that this worker knows about its state.
pub(super) struct LeaseHolder {
    pub lease: Lease,
    /// Signal to the job to stop: a user cancelled it, its lease is lost, or the worker drains.
    pub cancel: Cancel,
    pub progress: Arc<JobProgress>,
    queue: Arc<dyn Queue>,
    timing: Timing,
    clock: Arc<dyn Clock>,
    /// Time at which the last successful message to the queue was sent.
    last_sent: Mutex<Instant>,
    cancelled: AtomicBool,
    lost: AtomicBool,
}

impl LeaseHolder {
    pub fn new(
        queue: Arc<dyn Queue>,
        lease: Lease,
        timing: Timing,
        clock: Arc<dyn Clock>,
        progress: Arc<JobProgress>,
    ) -> Self {
        let last_sent = Mutex::new(clock.instant());
        let (cancelled, lost) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { lease, cancel: Cancel::new(), progress, queue, timing, clock, last_sent, cancelled, lost }
    }

    /// True if a user has cancelled the job.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// True if another worker has the job, or may have it.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    async fn send(&self, report: &Report<'_>) -> Result<LeaseStatus, QueueError> {
        match report {
            Report::Beat(progress) => self.queue.beat(&self.lease, progress).await,
            Report::Step { event, journal } => {
                self.queue.step(&self.lease, event.at(), journal, event.through()).await
            }
        }
    }

    fn last_sent(&self) -> MutexGuard<'_, Instant> {
        self.last_sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_overdue(&self) -> bool {
        let last_sent = *self.last_sent();
        self.clock.instant().duration_since(last_sent) >= self.timing.stop
    }

    /// Sends a message. Repeats it until the queue answers or refuses, or until another worker may soon have
    /// the job.
    async fn send_with_retries(&self, report: Report<'_>) -> Result<(), QueueError> {
        loop {
            let sent_at = self.clock.instant();
            match self.send(&report).await {
                Ok(status) => {
                    *self.last_sent() = sent_at;
                    if status == LeaseStatus::Cancelled && !self.cancelled.swap(true, Ordering::Relaxed) {
                        self.cancel.cancel(Reason::Requested);
                    }
                    return Ok(());
                }
                Err(error) if error.class() == Class::Transient && !self.is_overdue() => {
                    tracing::warn!("the queue does not answer: {}", chain(&error));
                    self.clock.sleep(RETRY_WAIT).await;
                }
                Err(error) => {
                    self.lost.store(true, Ordering::Relaxed);
                    self.cancel.cancel(Reason::Requested);
                    return Err(error);
                }
            }
        }
    }

    /// Ends the lease. Repeats the message until the queue answers or refuses, or until another worker may
    /// soon have the job.
    pub async fn end(&self, report: &FinalReport<'_>) -> Result<(), QueueError> {
        let mut repeated = false;
        loop {
            let result = match report {
                FinalReport::Finish(result) => self.queue.finish(&self.lease, result).await,
                FinalReport::Fail(reason, then) => self.queue.fail(&self.lease, reason, *then).await,
                FinalReport::Stop => self.queue.stop(&self.lease).await,
                FinalReport::Release => self.queue.release(&self.lease).await,
            };
            match result {
                // The queue recognizes a repeated message of the other kinds. After a repeated release,
                // another worker may have the job.
                Err(error)
                    if repeated
                        && error.class() == Class::LeaseLost
                        && matches!(report, FinalReport::Release) =>
                {
                    return Ok(());
                }
                Err(error) if error.class() == Class::Transient && !self.is_overdue() => {
                    tracing::warn!("the queue does not answer: {}", chain(&error));
                    repeated = true;
                    self.clock.sleep(RETRY_WAIT).await;
                }
                result => return result,
            }
        }
    }

    async fn beat(&self) -> Result<(), QueueError> {
        let progress = self.progress.to_json().to_string();
        self.send_with_retries(Report::Beat(&progress)).await
    }

    /// Sends heartbeats until the lease is lost.
    pub async fn keep_alive(&self) {
        while !self.is_lost() {
            let jitter = 1.0 + JITTER * (2.0 * rand::rng().random::<f64>() - 1.0);
            self.clock.sleep(self.timing.beat.mul_f64(jitter)).await;
            if let Err(error) = self.beat().await {
                tracing::warn!("{}", chain(&error));
            }
        }
    }
}

#[async_trait]
impl Journal for LeaseHolder {
    async fn record(&self, entry: &Entry) -> Result<(), JournalError> {
        let text = serde_json::to_string(entry).unwrap_or_default();
        self.send_with_retries(Report::Step { event: &entry.event, journal: &text })
            .await
            .map_err(JournalError::Lease)
    }
}

/// Each check asks the queue, because a machine that was suspended may not notice that time has passed.
#[async_trait]
impl Fence for LeaseHolder {
    async fn pass(&self) -> Result<(), Fenced> {
        self.beat().await.map_err(|error| Fenced(chain(&error)))
    }
}
