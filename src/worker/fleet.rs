//! Jobs from the queue, on as many servers as there are: each is leased, worked on while its worker beats, and given back, ended or tried again.
//!
//! ```text
//! claim ─▶ saga ──each entry of its journal goes to the queue under the lease──▶ done, dead, again later, given back
//!            └── beside it: a beat every 20 s, which brings back that the job was cancelled, or is somebody else's
//! ```
//!
//! Before anything is changed in the cloud the journal is written, and the queue takes it only from the holder of the lease. So a worker that was
//! asleep while another one took over does nothing any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rand::RngExt as _;

use super::error::JobError;
use super::job::Job;
use super::journal::{Entry, Event, Journal, JournalError};
use super::saga::{Finished, Onlooker, Saga};
use super::site::Site;
use super::state::State;
use crate::cancel::{Cancel, Reason};
use crate::clock::Clock;
use crate::queue::{Delivered, Held, Lease, Queue, QueueError, Then, Timing, Token};
use crate::retry::{Class, chain};

/// The wait before the second attempt; each one after that waits twice as long ...
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// ... up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// Attempts after which a job is dead though its errors might pass.
const MOST_ATTEMPTS: u32 = 8;
/// How long an idle worker waits before it asks again, more or less.
const IDLE: Duration = Duration::from_secs(1);
/// How long a queue that can't be reached is left alone.
const UNREACHABLE: Duration = Duration::from_millis(500);
/// A beat comes earlier or later by up to this share, so that many workers don't beat in step.
const JITTER: f64 = 0.2;

/// A job's journal, kept in the queue under its lease. The last entry has all that is known.
struct QueueJournal<'a> {
    queue: &'a dyn Queue,
    lease: Lease,
    timing: Timing,
    clock: &'a dyn Clock,
    /// When the last good word to the queue was sent.
    sent: Mutex<Instant>,
    cancel: Cancel,
    cancelled: AtomicBool,
    step: Mutex<String>,
}

/// What a worker has to say to the queue.
enum Word<'a> {
    Beat(&'a str),
    Step { step: &'a str, journal: &'a str },
}

impl QueueJournal<'_> {
    async fn send(&self, word: &Word<'_>) -> Result<Held, QueueError> {
        match word {
            Word::Beat(progress) => self.queue.beat(&self.lease, progress).await,
            Word::Step { step, journal } => self.queue.step(&self.lease, step, journal).await,
        }
    }

    fn sent(&self) -> MutexGuard<'_, Instant> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
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
                    self.cancel.cancel(Reason::Asked);
                    return Err(error);
                }
            }
        }
    }

    fn is_overdue(&self) -> bool {
        let sent = *self.sent();
        self.clock.instant().duration_since(sent) >= self.timing.stop
    }

    /// Beats for as long as it is not dropped.
    async fn beats(&self) {
        loop {
            let jitter = 1.0 + JITTER * (2.0 * rand::rng().random::<f64>() - 1.0);
            self.clock.sleep(self.timing.beat.mul_f64(jitter)).await;
            let step = self.step.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let progress = serde_json::json!({ "step": step }).to_string();
            if let Err(error) = self.say(Word::Beat(&progress)).await {
                // The word to stop is out; the journal tells the saga why.
                tracing::warn!(job = %self.lease.id, "{}", chain(&error));
                return;
            }
        }
    }
}

#[async_trait]
impl Journal for QueueJournal<'_> {
    async fn record(&self, entry: &Entry) -> Result<(), JournalError> {
        let step = match &entry.event {
            Event::Intent { step, .. } | Event::Done { step, .. } | Event::Failed { step, .. } => step.name(),
            Event::TakenUp { .. } => "taken-up",
            Event::Finished => "finished",
            Event::Abandoned => "abandoned",
        };
        step.clone_into(&mut self.step.lock().unwrap_or_else(PoisonError::into_inner));
        let text = serde_json::to_string(entry).unwrap_or_default();
        self.say(Word::Step { step, journal: &text }).await.map_err(JournalError::Lease)
    }
}

/// What a worker makes jobs run on.
pub trait Grounds: Send + Sync {
    /// All that a job needs, heeding `cancel`.
    ///
    /// # Errors
    /// In words, where it can't be had.
    fn site(&self, job: &Job, cancel: &Cancel) -> Result<Site, String>;

    /// Who looks on.
    fn onlooker(&self, job: &Job) -> Arc<dyn Onlooker>;

    /// The result of a job that is done, in JSON.
    fn result(&self, job: &Job, finished: &Finished) -> String;
}

/// One server's share in the fleet.
pub struct Worker<'a> {
    /// The jobs.
    pub queue: &'a dyn Queue,
    /// Its name in the queue.
    pub name: String,
    /// How leases are timed.
    pub timing: Timing,
    /// What jobs run on.
    pub grounds: &'a dyn Grounds,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The word to claim nothing more, and to give back what is being worked on.
    pub drain: Cancel,
}

impl Worker<'_> {
    /// Works on one job after the other until told to stop.
    pub async fn run(&self) {
        while !self.drain.is_cancelled() {
            match self.queue.claim(&self.name, &Token::new()).await {
                Ok(Some(delivered)) => Box::pin(self.work(delivered)).await,
                Ok(None) => self.idle(IDLE).await,
                Err(error) => {
                    tracing::warn!("{}", chain(&error));
                    self.idle(IDLE * 2).await;
                }
            }
        }
    }

    /// Takes back what dead workers had, every now and then, until told to stop.
    pub async fn reap(&self) {
        while !self.drain.is_cancelled() {
            match self.queue.reap().await {
                Ok(reaped) => {
                    for id in &reaped.taken_back {
                        tracing::warn!(job = %id, "its worker is gone; it is ready again");
                    }
                    for id in &reaped.dead {
                        tracing::error!(job = %id, "it is dead: its workers were lost again and again");
                    }
                }
                Err(error) => tracing::warn!("{}", chain(&error)),
            }
            self.idle(self.timing.lease / 4).await;
        }
    }

    async fn idle(&self, wait: Duration) {
        let wait = wait.mul_f64(0.5 + rand::rng().random::<f64>());
        tokio::select! {
            biased;
            _reason = self.drain.cancelled() => {}
            () = self.clock.sleep(wait) => {}
        }
    }

    async fn work(&self, Delivered { job: queued, token }: Delivered) {
        let lease = Lease { id: queued.id, token };
        let cancel = Cancel::new();
        let journal = QueueJournal {
            queue: self.queue,
            lease: lease.clone(),
            timing: self.timing,
            clock: &*self.clock,
            sent: Mutex::new(self.clock.instant()),
            cancel: cancel.clone(),
            cancelled: AtomicBool::new(false),
            step: Mutex::default(),
        };
        let mut saga = std::pin::pin!(self.saga(&queued.spec, queued.journal.as_deref(), &cancel, &journal));
        let mut beats = std::pin::pin!(journal.beats());
        let (mut drained, mut lost) = (false, false);
        let ending = loop {
            tokio::select! {
                biased;
                ended = &mut saga => break if lost { Ending::Lost } else { ended },
                _reason = self.drain.cancelled(), if !drained => {
                    drained = true;
                    cancel.cancel(Reason::Asked);
                }
                // The saga was told, and is let end: a request may be under way, whose answer says what there is.
                () = &mut beats, if !lost => lost = true,
            }
        };
        self.end(&lease, ending, queued.attempts, journal.cancelled.load(Ordering::Relaxed)).await;
    }

    /// Runs the job to its end, and cleans up after one that was cancelled.
    async fn saga(&self, spec: &str, known: Option<&str>, cancel: &Cancel, journal: &QueueJournal<'_>) -> Ending {
        let job: Job = match serde_json::from_str(spec) {
            Ok(job) => job,
            Err(err) => {
                return Ending::Failed(format!("the job makes no sense to this version of snapferry: {err}"), Class::Permanent);
            }
        };
        let known = known.and_then(|text| serde_json::from_str::<Entry>(text).ok()).map(|entry| entry.state).unwrap_or_default();
        let sites = (self.grounds.site(&job, cancel), self.grounds.site(&job, &Cancel::new()));
        let (site, cleaning) = match sites {
            (Ok(site), Ok(cleaning)) => (site, cleaning),
            (Err(why), _) | (_, Err(why)) => return Ending::Failed(why, Class::Transient),
        };
        let onlooker = self.grounds.onlooker(&job);
        let saga = Saga { job: &job, site: &site, cleaning: &cleaning, journal, onlooker: &*onlooker };
        match Box::pin(saga.run(known)).await {
            Ok(finished) => Ending::Done(self.grounds.result(&job, &finished)),
            Err(error) if error.class() == Class::Cancelled && journal.cancelled.load(Ordering::Relaxed) => {
                let abandoning = Saga { site: &cleaning, ..saga };
                match Box::pin(abandoning.abandon(State::default())).await {
                    Ok(left) if left.is_empty() => Ending::Stopped,
                    Ok(left) => {
                        Ending::Failed(format!("cancelled, and not all of it could be removed: {}", left[0]), Class::Permanent)
                    }
                    Err(error) => Ending::of(&error),
                }
            }
            Err(error) => Ending::of(&error),
        }
    }

    /// Tells the queue what became of a job.
    async fn end(&self, lease: &Lease, ending: Ending, attempts: u32, cancelled: bool) {
        let told = match &ending {
            Ending::Done(result) => self.queue.finish(lease, result).await,
            Ending::Stopped => self.queue.stop(lease).await,
            Ending::Lost => return,
            Ending::Failed(_, Class::Cancelled) if !cancelled => self.queue.release(lease).await,
            Ending::Failed(why, class) => {
                let again = class.is_retryable() && attempts + 1 < MOST_ATTEMPTS;
                let then = if again { Then::RetryAfter(retry_after(attempts)) } else { Then::Dead };
                tracing::warn!(job = %lease.id, ?then, "{why}");
                self.queue.fail(lease, why, then).await
            }
        };
        match told {
            Ok(()) => {}
            // Its lease runs out, and whoever takes it over finds it done in the cloud.
            Err(error) => tracing::warn!(job = %lease.id, "what became of it could not be told: {}", chain(&error)),
        }
    }
}

/// What became of a job.
enum Ending {
    Done(String),
    Stopped,
    Lost,
    Failed(String, Class),
}

impl Ending {
    fn of(error: &JobError) -> Self {
        match error.class() {
            Class::LeaseLost => Self::Lost,
            class => Self::Failed(format!("{error}: {}", chain(&*error.fault)), class),
        }
    }
}

fn retry_after(attempts: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << attempts.min(16)).min(LONGEST_RETRY)
}
