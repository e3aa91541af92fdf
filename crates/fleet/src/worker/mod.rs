//! Jobs from the queue, on as many servers as there are: each is leased, worked on while its worker beats, and given back, ended or tried again.
//!
//! ```text
//! claim ─▶ saga ──each entry of its journal goes to the queue under the lease──▶ done, dead, again later, given back
//!            └── beside it: a beat every 20 s, which brings back that the job was cancelled, or is somebody else's
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `hold` | a job in a worker's hands: lease, beats, journal |
//! | `watched` | how far a job is |
//! | `schedule` | jobs that are added at certain times |
//!
//! Before anything is changed in the cloud or the bucket the queue is asked, and it answers well only to the holder of the lease. So a worker
//! that was asleep while another one took over does nothing any more.
//!
//! A job that only waits costs nothing but its beats, so a worker has more of them in its hands than it converts at a time. It claims
//! another one only while those that still need a volume are no more than its conversions and one: who has nothing to do finds work.

mod hold;
pub mod schedule;
mod watched;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hold::{Hold, Last};
use rand::RngExt as _;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::fence::Fence;
use snapferry_base::retry::{Class, chain};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
pub use watched::Sight;
use watched::Watched;

use crate::queue::{Delivered, Lease, Queue, QueueError, Then, Timing, Token};
use crate::replicate::error::{Fault, JobError};
use crate::replicate::job::Job;
use crate::replicate::journal::Entry;
use crate::replicate::saga::{Finished, Onlooker, Over, Saga};
use crate::replicate::site::Site;
use crate::replicate::steps::Step;

/// No attempt waits longer for the next one.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// Attempts after which a job is dead though its errors might pass.
const MOST_ATTEMPTS: u32 = 8;
/// How long an idle worker waits before it asks again, more or less.
const IDLE: Duration = Duration::from_secs(1);
/// How often is looked whether a schedule's time has come.
const LOOK: Duration = Duration::from_secs(10);
/// How often the queue is rid of what has been over for long.
const TIDY: Duration = Duration::from_secs(3600);
/// How often a worker that drains looks whether its conversions are through.
const DRAINING: Duration = Duration::from_millis(200);
/// Jobs that are through with their volumes and wait for the cloud, beside those that are not.
const WAITING: usize = 16;

/// Something to be counted.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A job is done.
    Done(&'a Finished),
    /// An attempt at a job failed.
    Failed(Class),
    /// A lease was lost.
    LeaseLost,
    /// Jobs of workers that are gone were taken back.
    TakenBack(usize),
    /// The queue could not be asked.
    QueueFailed,
}

/// What a worker makes jobs run on.
pub trait Grounds: Send + Sync {
    /// All that a job needs, heeding `cancel`, and changed only where `fence` lets it.
    ///
    /// # Errors
    /// In words, where it can't be had.
    fn site(&self, job: &Job, cancel: &Cancel, fence: Arc<dyn Fence>) -> Result<Site, String>;

    /// Who looks on.
    fn onlooker(&self, job: &Job) -> Arc<dyn Onlooker>;

    /// The result of a job that is done, in JSON.
    fn result(&self, job: &Job, finished: &Finished) -> String;

    /// Why a job failed: a line, and what to do about it in another, where that is known.
    fn words(&self, error: &JobError) -> String;

    /// Told what is to be counted.
    fn told(&self, told: Told<'_>);
}

/// How much a worker does at a time, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Conversions at a time; each has a volume attached.
    pub conversions: usize,
    /// How long a conversion may go on once the worker is told to end.
    pub grace: Duration,
    /// How long the queue remembers jobs that are over.
    pub remembered: Duration,
}

/// What a worker is told from outside.
#[derive(Clone, Debug)]
pub struct Words {
    /// To claim nothing more, to end its conversions, and to give back everything else.
    pub drain: Cancel,
    /// After that: to give back its conversions, too.
    pub hurry: Cancel,
}

/// Whether a worker does all that it is there for, for who asks whether it is ready.
#[derive(Debug, Default)]
pub struct Health(Mutex<BTreeMap<&'static str, String>>);

impl Health {
    /// What fails for good, and why: the next time that it works ends that.
    #[must_use]
    pub fn ails(&self) -> Vec<String> {
        self.ailing().iter().map(|(what, why)| format!("{what}: {why}")).collect()
    }

    /// Notes how something went. What may pass is no ailment.
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

/// One server's share in the fleet.
pub struct Worker<'a> {
    queue: Arc<dyn Queue>,
    name: String,
    timing: Timing,
    grounds: &'a dyn Grounds,
    clock: Arc<dyn Clock>,
    share: Share,
    drain: Cancel,
    hurry: Cancel,
    /// Those that still need a volume.
    early: Arc<Semaphore>,
    /// One asks for work at a time.
    asking: tokio::sync::Mutex<()>,
    /// Who may have a volume.
    turn: Arc<Semaphore>,
    in_hand: Mutex<Vec<Arc<Sight>>>,
    health: Arc<Health>,
}

impl<'a> Worker<'a> {
    /// A worker of that name.
    #[must_use]
    pub fn new(
        queue: Arc<dyn Queue>,
        name: String,
        timing: Timing,
        share: Share,
        grounds: &'a dyn Grounds,
        clock: Arc<dyn Clock>,
        Words { drain, hurry }: Words,
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

    /// The jobs in its hands.
    #[must_use]
    pub fn in_hand(&self) -> Vec<Arc<Sight>> {
        self.in_hand.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Whether it does all that it is there for.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Works until told to stop, and everything is given back or at its end.
    pub async fn run(&self) {
        let hands: Vec<_> =
            (0..self.share.conversions + 1 + WAITING).map(|_| Box::pin(self.hand())).collect();
        tokio::join!(self.reap(), self.tick(), self.tidy(), all(hands));
    }

    /// Works on one job after the other.
    async fn hand(&self) {
        while let Some((delivered, early)) = self.claim().await {
            Box::pin(self.work(delivered, early)).await;
        }
    }

    /// The next job. None where the worker is to stop.
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
                    // Where the answer was lost, there may be a job under this token.
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
        self.grounds.told(Told::QueueFailed);
    }

    /// Takes back what dead workers had, every now and then.
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
                    self.grounds.told(Told::TakenBack(reaped.taken_back.len()));
                }
                Err(error) => self.failed(&error),
            }
            self.idle(self.timing.lease / 4).await;
        }
    }

    /// Adds the jobs of schedules whose time has come, and looks whether this worker may still do all that it is there for: what a script was
    /// refused, Redis does not always name.
    async fn tick(&self) {
        while !self.drain.is_cancelled() {
            let rights = self.queue.rights().await;
            self.health.note("rights", &rights);
            // What may pass is told by whatever comes next.
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

    /// Has the queue forget what has been over for long: it keeps all in memory.
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
        let sight = Arc::new(Sight::new(queued.id, &queued.server, &queued.region));
        let hold = Hold::new(
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
                // The saga was told, and is let end: a request may be under way, whose answer says what there is.
                () = &mut beats, if !lost => lost = true,
            }
        };
        self.end(&hold, ending, queued.attempts).await;
        self.note(|in_hand| in_hand.retain(|other| other.id != sight.id));
    }

    fn note(&self, change: impl FnOnce(&mut Vec<Arc<Sight>>)) {
        change(&mut self.in_hand.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Returns once the worker is to end and the job is not converting, or has had its grace.
    async fn drained(&self, sight: &Sight) {
        self.drain.cancelled().await;
        let begun = self.clock.instant();
        let in_time =
            || !self.hurry.is_cancelled() && self.clock.instant().duration_since(begun) < self.share.grace;
        while sight.step() == Some(Step::Convert) && in_time() {
            self.clock.sleep(DRAINING).await;
        }
    }

    /// Runs the job to its end, and cleans up after one that was cancelled.
    async fn saga(
        &self,
        spec: &str,
        known: Option<&str>,
        hold: &Arc<Hold>,
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
            let fence: Arc<dyn Fence> = Arc::<Hold>::clone(hold);
            self.grounds.site(&job, cancel, fence).map(|site| Site { turn: Arc::clone(&self.turn), ..site })
        };
        let (site, cleaning) = match (site(&hold.cancel), site(&Cancel::new())) {
            (Ok(site), Ok(cleaning)) => (site, cleaning),
            (Err(why), _) | (_, Err(why)) => return Ending::Failed(why, Class::Transient),
        };
        let onlooker = Watched {
            sight: Arc::clone(&hold.sight),
            next: self.grounds.onlooker(&job),
            early: Mutex::new(Some(early)),
        };
        let saga =
            Saga { job: &job, site: &site, cleaning: &cleaning, journal: &**hold, onlooker: &onlooker };
        match Box::pin(saga.run(known.clone())).await {
            Ok(Finished { over: Some(Over::Superseded(why)), .. }) => {
                // No success: whoever asks how old the newest image is must not be told of this one.
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
                    // Too late: it is done, and stays so.
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

    /// Tells the queue what became of a job.
    async fn end(&self, hold: &Hold, ending: Ending, attempts: u32) {
        let lost = || {
            tracing::warn!(job = %hold.lease.id, "it is somebody else's by now, and nothing more was changed");
            self.grounds.told(Told::LeaseLost);
        };
        let last = match &ending {
            Ending::Done(_, result) => Last::Finish(result),
            Ending::Stopped => Last::Stop,
            Ending::Lost => return lost(),
            Ending::Failed(_, Class::Cancelled) if !hold.is_cancelled() => Last::Release,
            Ending::Failed(why, class) => {
                let again =
                    (class.is_retryable() || *class == Class::Cancelled) && attempts + 1 < MOST_ATTEMPTS;
                let then = if again {
                    Then::RetryAfter(retry_after(self.timing.retry, attempts))
                } else {
                    Then::Dead
                };
                tracing::warn!(job = %hold.lease.id, ?then, "{}", why.replace('\n', "; "));
                self.grounds.told(Told::Failed(*class));
                Last::Fail(why, then)
            }
        };
        match hold.end(&last).await {
            Ok(()) => {
                if let Ending::Done(finished, _) = &ending {
                    self.grounds.told(Told::Done(finished));
                }
            }
            Err(error) if error.class() == Class::LeaseLost => lost(),
            // Its lease runs out, and whoever takes it over finds in the cloud how far it is.
            Err(error) => self.failed(&error),
        }
    }
}

/// What became of a job.
enum Ending {
    Done(Box<Finished>, String),
    Stopped,
    Lost,
    Failed(String, Class),
}

fn retry_after(first: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.min(16)).min(LONGEST_RETRY)
}

/// Runs all of them side by side, in this task: they wait, and what takes time is on threads of its own.
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
