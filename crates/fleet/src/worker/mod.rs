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
//! | `lease_holder` | the lease on a job: heartbeats, journal |
//! | `progress` | progress of a job |
//! | `schedule` | jobs that are added at certain times |
//!
//! Before each change in the cloud or the bucket the worker asks the queue, which gives permission only to
//! the holder of the lease. So a worker that was suspended while another one took over changes nothing more.
//!
//! A job that waits for the cloud costs only its heartbeats, so a worker holds more jobs than it converts at
//! a time. It claims another job only while at most as many jobs as it has conversions still need a volume.
//! This leaves jobs for idle workers.

mod lease_holder;
mod progress;
pub mod schedule;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lease_holder::{FinalReport, LeaseHolder};
use progress::ProgressRecorder;
pub use progress::{HeldJobs, JobProgress};
use rand::RngExt as _;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::fence::Fence;
use snapferry_base::message_id::{JOB_DEAD, JOB_DONE};
use snapferry_base::retry::{Class, chain};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;

use crate::queue::{Delivered, Lease, OnFailure, Queue, QueueError, Timing, Token};
use crate::replicate::context::JobContext;
use crate::replicate::error::{Fault, JobError};
use crate::replicate::job::{JobSpec, log_span};
use crate::replicate::journal::Entry;
use crate::replicate::saga::{Finished, Over, ProgressObserver, Saga};
use crate::replicate::steps::Step;

/// Longest wait between two attempts.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(3600);
/// Number of attempts after which a job is dead even if its errors are temporary.
const MAX_ATTEMPTS: u32 = 8;
/// Average wait of an idle worker before it asks for a job again.
const IDLE: Duration = Duration::from_secs(1);
/// Time between two checks of the schedules.
const SCHEDULE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two removals of jobs that have been over for long.
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);
/// Time between two checks of a draining worker for the end of its conversions.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Number of jobs that no longer need a volume and wait for the cloud, in addition to the others.
const EXTRA_JOBS: usize = 16;

/// An event for the metrics of the worker.
#[derive(Clone, Copy, Debug)]
pub enum WorkerEvent {
    Done,
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
    fn context(&self, job: &JobSpec, cancel: &Cancel, fence: Arc<dyn Fence>) -> Result<JobContext, String>;

    /// Returns the observer of a job's progress.
    fn observer(&self, job: &JobSpec) -> Arc<dyn ProgressObserver>;

    /// Returns the result of a job that is done, in JSON.
    fn result(&self, job: &JobSpec, finished: &Finished) -> String;

    /// Returns the reason of a failure, on one line, with advice on a second line if there is any.
    fn error_text(&self, error: &JobError) -> String;

    /// Receives each event for the metrics.
    fn record(&self, event: WorkerEvent);
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
    pub fn failures(&self) -> Vec<String> {
        self.lock().iter().map(|(request, reason)| format!("{request}: {reason}")).collect()
    }

    /// Records the result of a request. A temporary error does not count as a failure.
    fn note<T>(&self, request: &'static str, result: &Result<T, QueueError>) {
        match result {
            Err(error) if error.class() != Class::Transient => self.lock().insert(request, chain(error)),
            _ => self.lock().remove(request),
        };
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Worker that runs jobs on one machine.
pub struct Worker<'a> {
    queue: Arc<dyn Queue>,
    name: String,
    timing: Timing,
    environment: &'a dyn JobEnvironment,
    clock: Arc<dyn Clock>,
    limits: WorkerLimits,
    drain: Cancel,
    hurry: Cancel,
    /// Permits for jobs that still need a volume.
    early: Arc<Semaphore>,
    /// Allows one claim at a time.
    claim_lock: tokio::sync::Mutex<()>,
    /// Permits to have a volume.
    volume_permits: Arc<Semaphore>,
    held_jobs: Arc<HeldJobs>,
    health: Arc<Health>,
}

impl<'a> Worker<'a> {
    /// Makes a worker with this name.
    #[must_use]
    pub fn new(
        queue: Arc<dyn Queue>,
        name: String,
        timing: Timing,
        limits: WorkerLimits,
        environment: &'a dyn JobEnvironment,
        clock: Arc<dyn Clock>,
        ShutdownSignals { drain, hurry }: ShutdownSignals,
    ) -> Self {
        let early = Arc::new(Semaphore::new(limits.conversions + 1));
        let volume_permits = Arc::new(Semaphore::new(limits.conversions));
        let (claim_lock, held_jobs, health) = (tokio::sync::Mutex::default(), Arc::default(), Arc::default());
        Self {
            queue,
            name,
            timing,
            environment,
            clock,
            limits,
            drain,
            hurry,
            early,
            claim_lock,
            volume_permits,
            held_jobs,
            health,
        }
    }

    /// Returns the jobs that this worker holds, which change while it runs.
    #[must_use]
    pub fn held_jobs(&self) -> Arc<HeldJobs> {
        Arc::clone(&self.held_jobs)
    }

    /// Returns the permanent failures, which change while the worker runs.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Runs until the worker is drained, and every job has ended or been given back.
    pub async fn run(&self) {
        let slots: Vec<_> =
            (0..self.limits.conversions + 1 + EXTRA_JOBS).map(|_| Box::pin(self.run_jobs())).collect();
        tokio::join!(self.reap(), self.tick(), self.purge(), all(slots));
    }

    /// Runs one job after the other.
    async fn run_jobs(&self) {
        while let Some((delivered, early)) = self.claim().await {
            let job = &delivered.job;
            let span = log_span(job.id, &job.server, &job.region);
            Box::pin(self.work(delivered, early)).instrument(span).await;
        }
    }

    /// Claims the next job. None if the worker drains.
    async fn claim(&self) -> Option<(Delivered, OwnedSemaphorePermit)> {
        let waiting = async {
            let early = Arc::clone(&self.early).acquire_owned().await.ok()?;
            Some((early, self.claim_lock.lock().await))
        };
        let (early, _claim_lock) = tokio::select! {
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
        self.environment.record(WorkerEvent::QueueFailed);
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
                        tracing::error!(
                            job = %id,
                            message_id = JOB_DEAD,
                            "it is dead: its workers were lost again and again"
                        );
                    }
                    self.environment.record(WorkerEvent::TakenBack(reaped.taken_back.len()));
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
            self.idle(SCHEDULE_INTERVAL).await;
        }
    }

    /// Removes jobs that have been over for long, because the queue keeps all jobs in memory.
    async fn purge(&self) {
        while !self.drain.is_cancelled() {
            let purged = self.queue.purge(self.limits.remembered).await;
            self.health.note("jobs that are over are not forgotten", &purged);
            match purged {
                Ok(_) => self.idle(PURGE_INTERVAL).await,
                Err(error) => {
                    self.failed(&error);
                    self.idle(SCHEDULE_INTERVAL).await;
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
        let progress = Arc::new(JobProgress::new(queued.id, &queued.server, &queued.region));
        let holder = LeaseHolder::new(
            Arc::clone(&self.queue),
            lease,
            self.timing,
            Arc::clone(&self.clock),
            Arc::clone(&progress),
        );
        let holder = Arc::new(holder);
        self.held_jobs.add(&progress);
        let mut saga = std::pin::pin!(self.run_saga(&queued.spec, queued.journal.as_deref(), &holder, early));
        let mut keep_alive = std::pin::pin!(holder.keep_alive());
        let mut drained = std::pin::pin!(self.drained(&progress));
        let (mut stop_sent, mut lost) = (false, false);
        let ending = loop {
            tokio::select! {
                biased;
                ended = &mut saga => break ended,
                () = &mut drained, if !stop_sent => {
                    stop_sent = true;
                    holder.cancel.cancel(Reason::Requested);
                }
                // The saga has received the signal and must end by itself: a request may be in progress, and
                // its response shows which resources exist.
                () = &mut keep_alive, if !lost => lost = true,
            }
        };
        self.end(&holder, ending, queued.attempts).await;
        self.held_jobs.remove(progress.id);
    }

    /// Returns when the worker drains and the job is not converting, or when the job's grace period is over.
    async fn drained(&self, progress: &JobProgress) {
        self.drain.cancelled().await;
        let begun = self.clock.instant();
        let in_time =
            || !self.hurry.is_cancelled() && self.clock.instant().duration_since(begun) < self.limits.grace;
        while progress.step() == Some(Step::Convert) && in_time() {
            self.clock.sleep(DRAIN_POLL_INTERVAL).await;
        }
    }

    /// Runs the job to its end, and cleans up after a cancelled one.
    async fn run_saga(
        &self,
        spec: &str,
        journal: Option<&str>,
        holder: &Arc<LeaseHolder>,
        early: OwnedSemaphorePermit,
    ) -> Ending {
        let job: JobSpec = match serde_json::from_str(spec) {
            Ok(job) => job,
            Err(err) => {
                return Ending::Failed(
                    format!("the job makes no sense to this version of snapferry: {err}"),
                    Class::Permanent,
                );
            }
        };
        let state = journal
            .and_then(|text| serde_json::from_str::<Entry>(text).ok())
            .map(|entry| entry.state)
            .unwrap_or_default();
        let context = |cancel: &Cancel| {
            let fence: Arc<dyn Fence> = Arc::<LeaseHolder>::clone(holder);
            self.environment
                .context(&job, cancel, fence)
                .map(|context| JobContext { volume_permits: Arc::clone(&self.volume_permits), ..context })
        };
        let (context, cleanup_context) = match (context(&holder.cancel), context(&Cancel::new())) {
            (Ok(context), Ok(cleanup_context)) => (context, cleanup_context),
            (Err(reason), _) | (_, Err(reason)) => return Ending::Failed(reason, Class::Transient),
        };
        let observer = ProgressRecorder {
            progress: Arc::clone(&holder.progress),
            next: self.environment.observer(&job),
            early: Mutex::new(Some(early)),
        };
        let saga = Saga {
            job: &job,
            context: &context,
            cleanup_context: &cleanup_context,
            journal: &**holder,
            observer: &observer,
        };
        match Box::pin(saga.run(state.clone())).await {
            Ok(Finished { over: Some(Over::Superseded(evidence)), .. }) => {
                // This is no success: it must not count as the newest image of the server.
                tracing::warn!("nothing of it is left, and a newer job is done: {evidence}");
                Ending::Stopped
            }
            Ok(finished) => Ending::Done(self.environment.result(&job, &finished)),
            Err(_) if holder.is_lost() => Ending::Lost,
            Err(error) if error.class() == Class::Cancelled && holder.is_cancelled() => {
                let abandoning = Saga { context: &cleanup_context, ..saga };
                match Box::pin(abandoning.abandon(state)).await {
                    Ok(orphaned) if orphaned.is_empty() => Ending::Stopped,
                    Ok(orphaned) => Ending::Failed(
                        format!("cancelled, and not all of it could be removed: {}", orphaned[0]),
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
            class => Ending::Failed(self.environment.error_text(error), class),
        }
    }

    /// Reports the result of a job to the queue.
    async fn end(&self, holder: &LeaseHolder, ending: Ending, attempts: u32) {
        let lost = || {
            tracing::warn!("it is somebody else's by now, and nothing more was changed");
            self.environment.record(WorkerEvent::LeaseLost);
        };
        let report = match &ending {
            Ending::Done(result) => FinalReport::Finish(result),
            Ending::Stopped => FinalReport::Stop,
            Ending::Lost => return lost(),
            Ending::Failed(_, Class::Cancelled) if !holder.is_cancelled() => FinalReport::Release,
            Ending::Failed(reason, class) => {
                let again =
                    (class.is_retryable() || *class == Class::Cancelled) && attempts + 1 < MAX_ATTEMPTS;
                let then = if again {
                    OnFailure::RetryAfter(retry_after(self.timing.retry, attempts))
                } else {
                    OnFailure::Dead
                };
                tracing::warn!(?then, "{}", reason.replace('\n', "; "));
                self.environment.record(WorkerEvent::Failed(*class));
                FinalReport::Fail(reason, then)
            }
        };
        match holder.end(&report).await {
            Ok(()) => {
                if matches!(ending, Ending::Done(_)) {
                    tracing::info!(message_id = JOB_DONE, "the job is done");
                    self.environment.record(WorkerEvent::Done);
                }
                if matches!(report, FinalReport::Fail(_, OnFailure::Dead)) {
                    tracing::error!(message_id = JOB_DEAD, "the job is dead after {} attempts", attempts + 1);
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
    /// The job is done, with this result in JSON.
    Done(String),
    Stopped,
    Lost,
    Failed(String, Class),
}

fn retry_after(first: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.min(16)).min(MAX_RETRY_WAIT)
}

/// Runs all futures concurrently in this task: they only wait, and long work runs on other threads.
async fn all<F: Future<Output = ()> + Unpin>(mut slots: Vec<F>) {
    std::future::poll_fn(|context| {
        slots.retain_mut(|slot| std::pin::Pin::new(slot).poll(context).is_pending());
        if slots.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_ever_later_up_to_an_hour() {
        let minutes: Vec<u64> = (0..MAX_ATTEMPTS)
            .map(|attempts| retry_after(Timing::default().retry, attempts).as_secs() / 60)
            .collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(retry_after(Timing::default().retry, u32::MAX), MAX_RETRY_WAIT);
    }
}
