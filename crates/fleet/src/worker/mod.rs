//! Worker that runs jobs from the queue, on any number of machines. It leases each job, sends heartbeats
//! while it runs the job, and then ends it, schedules another attempt, or gives it back.
//!
//! ```text
//! claim ─▶ saga ──journal entries go to the queue under the lease──▶ done, dead, retry later, given back
//!            └── meanwhile: a heartbeat every 20 s, whose response reports a cancelled job or a lost lease
//! ```
//!
//! | file | content |
//! |---|---|
//! | `hold` | the lease on a job: heartbeats, journal |
//! | `watched` | progress of a job |
//! | `schedule` | jobs that are added at certain times |
//!
//! Before each change in the cloud or the bucket the worker asks the queue, which gives permission only to
//! the holder of the lease. So a worker that was suspended while another one took over changes nothing more.
//!
//! A job that waits for the cloud costs only its heartbeats, so a worker holds more jobs than it converts at
//! a time. It claims another job only while at most as many jobs as it has conversions still need a volume.
//! This leaves jobs for idle workers.

mod hold;
pub mod schedule;
mod watched;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hold::{FinalReport, LeaseHolder};
use rand::RngExt as _;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::fence::Fence;
use snapferry_base::retry::{Class, chain};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
pub use watched::JobProgress;
use watched::ProgressRecorder;

use crate::queue::{Delivered, Lease, OnFailure, Queue, QueueError, Timing, Token};
use crate::replicate::error::{Fault, JobError};
use crate::replicate::job::Job;
use crate::replicate::journal::Entry;
use crate::replicate::saga::{Finished, Over, ProgressObserver, Saga};
use crate::replicate::site::JobContext;
use crate::replicate::steps::Step;

/// Longest wait between two attempts.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// Number of attempts after which a job is dead even if its errors are temporary.
const MOST_ATTEMPTS: u32 = 8;
/// Average wait of an idle worker before it asks for a job again.
const IDLE: Duration = Duration::from_secs(1);
/// Time between two checks of the schedules.
const LOOK: Duration = Duration::from_secs(10);
/// Time between two removals of jobs that have been over for long.
const TIDY: Duration = Duration::from_secs(3600);
/// Time between two checks of a draining worker for the end of its conversions.
const DRAINING: Duration = Duration::from_millis(200);
/// Number of jobs that no longer need a volume and wait for the cloud, in addition to the others.
const WAITING: usize = 16;

/// An event for the metrics of the worker.
#[derive(Clone, Copy, Debug)]
pub enum WorkerEvent<'a> {
    Done(&'a Finished),
    Failed(Class),
    LeaseLost,
    /// Number of jobs that were taken back from lost workers.
    TakenBack(usize),
    /// A request to the queue failed.
    QueueFailed,
}

/// Environment in which a worker runs jobs.
pub trait JobEnvironment: Send + Sync {
    /// Builds the context of a job. It stops when `cancel` is set, and changes nothing unless `fence` permits
    /// it.
    ///
    /// # Errors
    /// If the context can't be built, a message for the user.
    fn site(&self, job: &Job, cancel: &Cancel, fence: Arc<dyn Fence>) -> Result<JobContext, String>;

    /// Returns the observer of a job's progress.
    fn onlooker(&self, job: &Job) -> Arc<dyn ProgressObserver>;

    /// Returns the result of a job that is done, in JSON.
    fn result(&self, job: &Job, finished: &Finished) -> String;

    /// Returns the reason of a failure, on one line, with advice on a second line if there is any.
    fn words(&self, error: &JobError) -> String;

    /// Receives each event for the metrics.
    fn told(&self, told: WorkerEvent<'_>);
}

/// Limits on a worker's concurrent work, on its shutdown, and on the queue's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Largest number of conversions at a time. Each has a volume attached.
    pub conversions: usize,
    /// Time for which a conversion may continue after the signal to drain.
    pub grace: Duration,
    /// Time for which the queue keeps jobs that are over.
    pub remembered: Duration,
}

/// Signals to a worker to end.
#[derive(Clone, Debug)]
pub struct ShutdownSignals {
    /// Signal to claim no more jobs, to finish the conversions, and to give back all other jobs.
    pub drain: Cancel,
    /// Later signal to give back the conversions, too.
    pub hurry: Cancel,
}

/// Permanent failures of a worker's requests to the queue, for readiness checks.
#[derive(Debug, Default)]
pub struct Health(Mutex<BTreeMap<&'static str, String>>);

impl Health {
    /// Returns each permanent failure, with its reason. A failure is removed when the same request succeeds.
    #[must_use]
    pub fn ails(&self) -> Vec<String> {
        self.ailing().iter().map(|(what, why)| format!("{what}: {why}")).collect()
    }

    /// Records the result of a request. A temporary error does not count as a failure.
    fn note<T>(&self, what: &'static str, went: &Result<T, QueueError>) {
        match went {
            Err(error) if error.class() != Class::Transient => self.ailing().insert(what, chain(error)),
            _ => self.ailing().remove(what),
        };
    }

    fn ailing(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Worker that runs jobs on one machine.
pub struct Worker<'a> {
    queue: Arc<dyn Queue>,
    name: String,
    timing: Timing,
    grounds: &'a dyn JobEnvironment,
    clock: Arc<dyn Clock>,
    share: WorkerLimits,
    drain: Cancel,
    hurry: Cancel,
    /// Permits for jobs that still need a volume.
    early: Arc<Semaphore>,
    /// Allows one claim at a time.
    asking: tokio::sync::Mutex<()>,
    /// Permits to have a volume.
    turn: Arc<Semaphore>,
    in_hand: Mutex<Vec<Arc<JobProgress>>>,
    health: Arc<Health>,
}

impl<'a> Worker<'a> {
    /// Makes a worker with this name.
    #[must_use]
    pub fn new(
        queue: Arc<dyn Queue>,
        name: String,
        timing: Timing,
        share: WorkerLimits,
        grounds: &'a dyn JobEnvironment,
        clock: Arc<dyn Clock>,
        ShutdownSignals { drain, hurry }: ShutdownSignals,
    ) -> Self {
        let early = Arc::new(Semaphore::new(share.conversions + 1));
        let turn = Arc::new(Semaphore::new(share.conversions));
        let (asking, in_hand, health) = (tokio::sync::Mutex::default(), Mutex::default(), Arc::default());
        Self {
            queue,
            name,
            timing,
            grounds,
            clock,
            share,
            drain,
            hurry,
            early,
            asking,
            turn,
            in_hand,
            health,
        }
    }

    /// Returns the progress of the jobs that this worker holds.
    #[must_use]
    pub fn in_hand(&self) -> Vec<Arc<JobProgress>> {
        self.in_hand.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Returns the permanent failures, which change while the worker runs.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Runs until the worker is drained, and every job has ended or been given back.
    pub async fn run(&self) {
        let hands: Vec<_> =
            (0..self.share.conversions + 1 + WAITING).map(|_| Box::pin(self.hand())).collect();
        tokio::join!(self.reap(), self.tick(), self.tidy(), all(hands));
    }

    /// Runs one job after the other.
    async fn hand(&self) {
        while let Some((delivered, early)) = self.claim().await {
            Box::pin(self.work(delivered, early)).await;
        }
    }

    /// Claims the next job. None if the worker drains.
    async fn claim(&self) -> Option<(Delivered, OwnedSemaphorePermit)> {
        let waiting = async {
            let early = Arc::clone(&self.early).acquire_owned().await.ok()?;
            Some((early, self.asking.lock().await))
        };
        let (early, _asking) = tokio::select! {
            biased;
            _reason = self.drain.cancelled() => None,
            ready = waiting => ready,
        }?;
        let mut token = Token::new();
        while !self.drain.is_cancelled() {
            let claimed = self.queue.claim(&self.name, &token).await;
            self.health.note("jobs are not claimed", &claimed);
            match claimed {
                Ok(Some(delivered)) => return Some((delivered, early)),
                Ok(None) => self.idle(IDLE).await,
                Err(error) => {
                    self.failed(&error);
                    // If the response was lost, there may be a job under this token.
                    if error.class() != Class::Transient {
                        token = Token::new();
                    }
                    self.idle(IDLE * 2).await;
                }
            }
        }
        None
    }

    fn failed(&self, error: &QueueError) {
        tracing::warn!("{}", chain(error));
        self.grounds.told(WorkerEvent::QueueFailed);
    }

    /// Takes back the jobs of lost workers, from time to time.
    async fn reap(&self) {
        while !self.drain.is_cancelled() {
            let reaped = self.queue.reap().await;
            self.health.note("lost jobs are not taken back", &reaped);
            match reaped {
                Ok(reaped) => {
                    for id in &reaped.taken_back {
                        tracing::warn!(job = %id, "its worker is gone; it is ready again");
                    }
                    for id in &reaped.dead {
                        tracing::error!(job = %id, "it is dead: its workers were lost again and again");
                    }
                    self.grounds.told(WorkerEvent::TakenBack(reaped.taken_back.len()));
                }
                Err(error) => self.failed(&error),
            }
            self.idle(self.timing.lease / 4).await;
        }
    }

    /// Adds the jobs of schedules that are due, and checks the rights of the Redis user, because Redis does
    /// not always report which command of a script it refused.
    async fn tick(&self) {
        while !self.drain.is_cancelled() {
            let rights = self.queue.rights().await;
            self.health.note("rights", &rights);
            // If the error is temporary, the next request reports it.
            if let Err(error) = &rights
                && error.class() != Class::Transient
            {
                self.failed(error);
            }
            let added = async {
                schedule::add_due(&*self.queue, &self.queue.schedules().await?, self.queue.now().await?).await
            };
            let added = added.await;
            self.health.note("jobs of schedules are not added", &added);
            if let Err(error) = added {
                self.failed(&error);
            }
            self.idle(LOOK).await;
        }
    }

    /// Removes jobs that have been over for long, because the queue keeps all jobs in memory.
    async fn tidy(&self) {
        while !self.drain.is_cancelled() {
            let purged = self.queue.purge(self.share.remembered).await;
            self.health.note("jobs that are over are not forgotten", &purged);
            match purged {
                Ok(_) => self.idle(TIDY).await,
                Err(error) => {
                    self.failed(&error);
                    self.idle(LOOK).await;
                }
            }
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

    async fn work(&self, Delivered { job: queued, token }: Delivered, early: OwnedSemaphorePermit) {
        let lease = Lease { id: queued.id, token };
        let sight = Arc::new(JobProgress::new(queued.id, &queued.server, &queued.region));
        let hold = LeaseHolder::new(
            Arc::clone(&self.queue),
            lease,
            self.timing,
            Arc::clone(&self.clock),
            Arc::clone(&sight),
        );
        let hold = Arc::new(hold);
        self.note(|in_hand| in_hand.push(Arc::clone(&sight)));
        let mut saga = std::pin::pin!(self.saga(&queued.spec, queued.journal.as_deref(), &hold, early));
        let mut beats = std::pin::pin!(hold.beats());
        let mut drained = std::pin::pin!(self.drained(&sight));
        let (mut told, mut lost) = (false, false);
        let ending = loop {
            tokio::select! {
                biased;
                ended = &mut saga => break ended,
                () = &mut drained, if !told => {
                    told = true;
                    hold.cancel.cancel(Reason::Asked);
                }
                // The saga has received the signal and must end by itself: a request may be in progress, and
                // its response shows which resources exist.
                () = &mut beats, if !lost => lost = true,
            }
        };
        self.end(&hold, ending, queued.attempts).await;
        self.note(|in_hand| in_hand.retain(|other| other.id != sight.id));
    }

    fn note(&self, change: impl FnOnce(&mut Vec<Arc<JobProgress>>)) {
        change(&mut self.in_hand.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Returns when the worker drains and the job is not converting, or when the job's grace period is over.
    async fn drained(&self, sight: &JobProgress) {
        self.drain.cancelled().await;
        let begun = self.clock.instant();
        let in_time =
            || !self.hurry.is_cancelled() && self.clock.instant().duration_since(begun) < self.share.grace;
        while sight.step() == Some(Step::Convert) && in_time() {
            self.clock.sleep(DRAINING).await;
        }
    }

    /// Runs the job to its end, and cleans up after a cancelled one.
    async fn saga(
        &self,
        spec: &str,
        known: Option<&str>,
        hold: &Arc<LeaseHolder>,
        early: OwnedSemaphorePermit,
    ) -> Ending {
        let job: Job = match serde_json::from_str(spec) {
            Ok(job) => job,
            Err(err) => {
                return Ending::Failed(
                    format!("the job makes no sense to this version of snapferry: {err}"),
                    Class::Permanent,
                );
            }
        };
        let known = known
            .and_then(|text| serde_json::from_str::<Entry>(text).ok())
            .map(|entry| entry.state)
            .unwrap_or_default();
        let site = |cancel: &Cancel| {
            let fence: Arc<dyn Fence> = Arc::<LeaseHolder>::clone(hold);
            self.grounds
                .site(&job, cancel, fence)
                .map(|site| JobContext { turn: Arc::clone(&self.turn), ..site })
        };
        let (site, cleaning) = match (site(&hold.cancel), site(&Cancel::new())) {
            (Ok(site), Ok(cleaning)) => (site, cleaning),
            (Err(why), _) | (_, Err(why)) => return Ending::Failed(why, Class::Transient),
        };
        let onlooker = ProgressRecorder {
            sight: Arc::clone(&hold.sight),
            next: self.grounds.onlooker(&job),
            early: Mutex::new(Some(early)),
        };
        let saga =
            Saga { job: &job, site: &site, cleaning: &cleaning, journal: &**hold, onlooker: &onlooker };
        match Box::pin(saga.run(known.clone())).await {
            Ok(Finished { over: Some(Over::Superseded(why)), .. }) => {
                // This is no success: it must not count as the newest image of the server.
                tracing::warn!(job = %job.id, "nothing of it is left, and a newer job is done: {why}");
                Ending::Stopped
            }
            Ok(finished) => {
                let result = self.grounds.result(&job, &finished);
                Ending::Done(Box::new(finished), result)
            }
            Err(_) if hold.is_lost() => Ending::Lost,
            Err(error) if error.class() == Class::Cancelled && hold.is_cancelled() => {
                let abandoning = Saga { site: &cleaning, ..saga };
                match Box::pin(abandoning.abandon(known)).await {
                    Ok(left) if left.is_empty() => Ending::Stopped,
                    Ok(left) => Ending::Failed(
                        format!("cancelled, and not all of it could be removed: {}", left[0]),
                        Class::Transient,
                    ),
                    // The cancellation came too late: the job is done, and stays done.
                    Err(error) if matches!(*error.fault, Fault::Over { .. }) => Ending::Stopped,
                    Err(error) => self.ending(&error),
                }
            }
            Err(error) => self.ending(&error),
        }
    }

    fn ending(&self, error: &JobError) -> Ending {
        match error.class() {
            Class::LeaseLost => Ending::Lost,
            class => Ending::Failed(self.grounds.words(error), class),
        }
    }

    /// Reports the result of a job to the queue.
    async fn end(&self, hold: &LeaseHolder, ending: Ending, attempts: u32) {
        let lost = || {
            tracing::warn!(job = %hold.lease.id, "it is somebody else's by now, and nothing more was changed");
            self.grounds.told(WorkerEvent::LeaseLost);
        };
        let last = match &ending {
            Ending::Done(_, result) => FinalReport::Finish(result),
            Ending::Stopped => FinalReport::Stop,
            Ending::Lost => return lost(),
            Ending::Failed(_, Class::Cancelled) if !hold.is_cancelled() => FinalReport::Release,
            Ending::Failed(why, class) => {
                let again =
                    (class.is_retryable() || *class == Class::Cancelled) && attempts + 1 < MOST_ATTEMPTS;
                let then = if again {
                    OnFailure::RetryAfter(retry_after(self.timing.retry, attempts))
                } else {
                    OnFailure::Dead
                };
                tracing::warn!(job = %hold.lease.id, ?then, "{}", why.replace('\n', "; "));
                self.grounds.told(WorkerEvent::Failed(*class));
                FinalReport::Fail(why, then)
            }
        };
        match hold.end(&last).await {
            Ok(()) => {
                if let Ending::Done(finished, _) = &ending {
                    self.grounds.told(WorkerEvent::Done(finished));
                }
            }
            Err(error) if error.class() == Class::LeaseLost => lost(),
            // The lease expires, and the worker that takes the job over finds its status in the cloud.
            Err(error) => self.failed(&error),
        }
    }
}

/// Result of a job on this worker.
enum Ending {
    Done(Box<Finished>, String),
    Stopped,
    Lost,
    Failed(String, Class),
}

fn retry_after(first: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.min(16)).min(LONGEST_RETRY)
}

/// Runs all futures concurrently in this task: they only wait, and long work runs on other threads.
async fn all<F: Future<Output = ()> + Unpin>(mut hands: Vec<F>) {
    std::future::poll_fn(|context| {
        hands.retain_mut(|hand| std::pin::Pin::new(hand).poll(context).is_pending());
        if hands.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_ever_later_up_to_an_hour() {
        let minutes: Vec<u64> = (0..MOST_ATTEMPTS)
            .map(|attempts| retry_after(Timing::default().retry, attempts).as_secs() / 60)
            .collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(retry_after(Timing::default().retry, u32::MAX), LONGEST_RETRY);
    }
}
