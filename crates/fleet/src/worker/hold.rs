//! A job in a worker's hands: its lease, its beats, its journal in the queue, and the word of all of them on whether it is still ours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rand::RngExt as _;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::fence::{Fence, Fenced};
use snapferry_base::retry::{Class, chain};

use super::watched::Sight;
use crate::queue::{Held, Lease, Queue, QueueError, Then, Timing};
use crate::replicate::journal::{Entry, Event, Journal, JournalError};

/// How long a queue that can't be reached is left alone.
const UNREACHABLE: Duration = Duration::from_millis(500);
/// A beat comes earlier or later by up to this share, so that many workers don't beat in step.
const JITTER: f64 = 0.2;

/// What a worker has to say to the queue of a job.
enum Word<'a> {
    Beat(&'a str),
    Step { event: &'a Event, journal: &'a str },
}

/// The last word on a job.
pub(super) enum Last<'a> {
    Finish(&'a str),
    Fail(&'a str, Then),
    Stop,
    Release,
}

/// A job that was claimed.
pub(super) struct Hold {
    pub lease: Lease,
    /// The word to the job to stop: it was cancelled, is lost, or the worker drains.
    pub cancel: Cancel,
    /// How far it is.
    pub sight: Arc<Sight>,
    queue: Arc<dyn Queue>,
    timing: Timing,
    clock: Arc<dyn Clock>,
    /// When the last good word to the queue was sent.
    sent: Mutex<Instant>,
    cancelled: AtomicBool,
    lost: AtomicBool,
}

impl Hold {
    pub fn new(
        queue: Arc<dyn Queue>,
        lease: Lease,
        timing: Timing,
        clock: Arc<dyn Clock>,
        sight: Arc<Sight>,
    ) -> Self {
        let sent = Mutex::new(clock.instant());
        let (cancelled, lost) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { lease, cancel: Cancel::new(), sight, queue, timing, clock, sent, cancelled, lost }
    }

    /// Whether a user has cancelled it.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether it is somebody else's by now, or may be.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    async fn send(&self, word: &Word<'_>) -> Result<Held, QueueError> {
        match word {
            Word::Beat(progress) => self.queue.beat(&self.lease, progress).await,
            Word::Step { event, journal } => {
                self.queue.step(&self.lease, event.at(), journal, event.through()).await
            }
        }
    }

    fn sent(&self) -> MutexGuard<'_, Instant> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_overdue(&self) -> bool {
        let sent = *self.sent();
        self.clock.instant().duration_since(sent) >= self.timing.stop
    }

    /// Sends a word until it is answered, refused, or so much time has passed that somebody else may soon have the job.
    async fn say(&self, word: Word<'_>) -> Result<(), QueueError> {
        loop {
            let sending = self.clock.instant();
            match self.send(&word).await {
                Ok(held) => {
                    *self.sent() = sending;
                    if held == Held::Cancelled && !self.cancelled.swap(true, Ordering::Relaxed) {
                        self.cancel.cancel(Reason::Asked);
                    }
                    return Ok(());
                }
                Err(error) if error.class() == Class::Transient && !self.is_overdue() => {
                    tracing::warn!(job = %self.lease.id, "the queue does not answer: {}", chain(&error));
                    self.clock.sleep(UNREACHABLE).await;
                }
                Err(error) => {
                    self.lost.store(true, Ordering::Relaxed);
                    self.cancel.cancel(Reason::Asked);
                    return Err(error);
                }
            }
        }
    }

    /// Sends the last word until it is answered, refused, or so much time has passed that somebody else may soon have the job.
    pub async fn end(&self, last: &Last<'_>) -> Result<(), QueueError> {
        let mut again = false;
        loop {
            let sent = match last {
                Last::Finish(result) => self.queue.finish(&self.lease, result).await,
                Last::Fail(why, then) => self.queue.fail(&self.lease, why, *then).await,
                Last::Stop => self.queue.stop(&self.lease).await,
                Last::Release => self.queue.release(&self.lease).await,
            };
            match sent {
                // The queue knows the other words when they come again. A job that was given back may be anybody's by now.
                Err(error) if again && error.class() == Class::LeaseLost && matches!(last, Last::Release) => {
                    return Ok(());
                }
                Err(error) if error.class() == Class::Transient && !self.is_overdue() => {
                    tracing::warn!(job = %self.lease.id, "the queue does not answer: {}", chain(&error));
                    again = true;
                    self.clock.sleep(UNREACHABLE).await;
                }
                sent => return sent,
            }
        }
    }

    async fn beat(&self) -> Result<(), QueueError> {
        let progress = self.sight.progress().to_string();
        self.say(Word::Beat(&progress)).await
    }

    /// Beats until the job is lost.
    pub async fn beats(&self) {
        while !self.is_lost() {
            let jitter = 1.0 + JITTER * (2.0 * rand::rng().random::<f64>() - 1.0);
            self.clock.sleep(self.timing.beat.mul_f64(jitter)).await;
            if let Err(error) = self.beat().await {
                tracing::warn!(job = %self.lease.id, "{}", chain(&error));
            }
        }
    }
}

#[async_trait]
impl Journal for Hold {
    async fn record(&self, entry: &Entry) -> Result<(), JournalError> {
        let text = serde_json::to_string(entry).unwrap_or_default();
        self.say(Word::Step { event: &entry.event, journal: &text }).await.map_err(JournalError::Lease)
    }
}

/// The queue is asked each time: a machine that was asleep may not know that time has passed.
#[async_trait]
impl Fence for Hold {
    async fn pass(&self) -> Result<(), Fenced> {
        self.beat().await.map_err(|error| Fenced(chain(&error)))
    }
}
