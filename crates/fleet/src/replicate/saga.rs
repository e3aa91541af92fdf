//! One job from the first request to the last: its steps in order, the journal, and the cleanup after a
//! failed step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use snapferry_base::retry::{Class, chain};
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters::Counters as ConvertCounters;
use snapferry_engine::image::counters::Counters as RestoreCounters;
use snapferry_ibmcloud::vpc::model::{Instance, Snapshot, Volume};
use snapferry_ibmcloud::vpc::{InstanceId, Patience};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::error::{Fault, JobError, OrphanedResource, ResourceKind, Resumable};
use super::job::{Goal, Job, Restore};
use super::journal::{Entry, Event, Journal};
use super::names::JobNames;
use super::site::JobContext;
use super::standing::{self, Standing};
use super::state::State;
use super::steps::{Step, convert};
use super::turns::Turn;

/// Progress of a job, for an observer.
pub enum Progress<'a> {
    /// A step begins.
    Begun(Step),
    /// A step is done.
    Done {
        step: Step,
        /// Duration of the step.
        took: Duration,
        /// Result of the step, as text for the user.
        words: &'a str,
    },
    /// The volume is being converted: the counters of the conversion, and the size of the device.
    Converting(Arc<ConvertCounters>, ByteCount),
    /// The image is being read back: the counters of the reader, and the size of the disk.
    ReadingBack(Arc<RestoreCounters>, ByteCount),
    /// No data is transferred any more.
    Still,
    /// The job has failed, and its things are being cleaned up.
    CleaningUp,
}

/// Observer of a job's progress.
pub trait ProgressObserver: Send + Sync {
    /// Receives each change of the progress. Must not block.
    fn see(&self, progress: Progress<'_>);
}

/// Things that this run has found in the cloud.
#[derive(Clone, Debug, Default)]
pub(super) struct FoundObjects {
    pub server: Option<Instance>,
    pub volume: Option<Volume>,
    pub snapshot: Option<Snapshot>,
}

/// Job under way, with everything that its steps use.
pub(super) struct Run<'a> {
    pub job: &'a Job,
    pub names: JobNames,
    pub site: &'a JobContext,
    pub state: State,
    pub found: FoundObjects,
    pub warnings: Vec<String>,
    /// True if a process had taken the job up before.
    pub resumed: bool,
    journal: &'a dyn Journal,
    onlooker: &'a dyn ProgressObserver,
}

impl<'a> Run<'a> {
    pub fn new(
        job: &'a Job,
        site: &'a JobContext,
        state: State,
        journal: &'a dyn Journal,
        onlooker: &'a dyn ProgressObserver,
    ) -> Result<Self, Fault> {
        let (names, found) = (job.names()?, FoundObjects::default());
        let resumed = state.taken_up;
        Ok(Self { job, names, site, state, found, warnings: Vec::new(), resumed, journal, onlooker })
    }

    /// Writes the name of the thing that the step is about to make into the journal.
    pub async fn intend(&self, step: Step, name: impl ToString) -> Result<(), Fault> {
        self.record(Event::Intent { step, name: name.to_string() }).await
    }

    pub async fn record(&self, event: Event) -> Result<(), Fault> {
        Ok(self.journal.record(&Entry::new(self.site.clock.now(), event, &self.state)).await?)
    }

    pub fn patience(&self, patience: Patience) -> Patience {
        self.site.waits.of(patience)
    }

    /// Waits for this job's turn to attach to a server, or to detach from it.
    pub async fn turn_of(&self, server: &InstanceId) -> Result<Turn, Fault> {
        let JobContext { turns, clock, cancel, .. } = self.site;
        turns.of(server, self.patience(Patience::ATTACHMENT), &**clock, cancel).await
    }

    pub fn see(&self, progress: Progress<'_>) {
        self.onlooker.see(progress);
    }

    /// Notes a problem that does not make the job fail.
    pub fn warn(&mut self, words: String) {
        tracing::warn!("{words}");
        self.warnings.push(words);
    }
}

/// Step that is done.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Taken {
    pub step: Step,
    /// Duration of the step in seconds.
    pub seconds: f64,
    /// Result of the step, as text for the user.
    pub did: String,
}

/// Result of a job that is done.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Last state of the job.
    pub state: State,
    pub names: JobNames,
    /// Steps that this run has taken.
    pub steps: Vec<Taken>,
    /// Problems that did not make the job fail.
    pub warnings: Vec<String>,
    /// Reason why there was nothing to do, if the job was over already.
    pub over: Option<Over>,
}

/// Way in which a job was over before it was taken up. The text is the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// The job is done.
    Done(String),
    /// Nothing of the job exists any more, and a newer job is done: this one makes no image of its own.
    Superseded(String),
}

impl Over {
    /// Returns the evidence, as text for the user.
    #[must_use]
    pub fn why(&self) -> &str {
        let (Self::Done(why) | Self::Superseded(why)) = self;
        why
    }
}

/// Reason why a job ended early.
enum Stopped {
    /// A step failed.
    At(Step, Fault),
    /// The check if the job still has work to do failed.
    Unknown(Fault),
}

/// Job with everything that it needs. `cleaning` is the same environment as `site`, but without its
/// cancellation, for the cleanup after a job was cancelled.
pub struct Saga<'a> {
    pub job: &'a Job,
    /// Environment that the steps run in.
    pub site: &'a JobContext,
    /// Environment that the cleanup runs in.
    pub cleaning: &'a JobContext,
    pub journal: &'a dyn Journal,
    pub onlooker: &'a dyn ProgressObserver,
}

impl<'a> Saga<'a> {
    fn run_on(&self, site: &'a JobContext, state: State) -> Result<Run<'a>, Fault> {
        Run::new(self.job, site, state, self.journal, self.onlooker)
    }

    fn error(&self, step: Step, fault: Fault, left: Vec<OrphanedResource>, resumable: Resumable) -> JobError {
        JobError {
            id: self.job.id,
            server: self.job.server.clone(),
            step,
            fault: Box::new(fault),
            left,
            resumable,
        }
    }

    /// Takes the job to its end, from whatever step it reached. `known` is the state in the journal, or an
    /// empty one.
    ///
    /// # Errors
    /// If a step fails; the error names it. Then the things that cost money by the hour are removed, as far
    /// as possible. The snapshot stays, and the job can be resumed.
    pub async fn run(&self, known: State) -> Result<Finished, JobError> {
        let mut run = self
            .run_on(self.site, known)
            .map_err(|fault| self.error(Step::Resolve, fault, Vec::new(), Resumable::No))?;
        let mut taken = Vec::new();
        let span =
            tracing::info_span!("job", id = %self.job.id, server = %self.job.server, region = %self.job.to);
        // In a box, because it holds the futures of all steps.
        match Box::pin(self.steps(&mut run, &mut taken)).instrument(span.clone()).await {
            Ok(over) => Ok(Finished {
                state: run.state,
                names: run.names,
                steps: taken,
                warnings: run.warnings,
                over,
            }),
            // Nothing was changed or is cleaned up: another process may use the things that look like
            // leftovers.
            Err(Stopped::Unknown(fault)) => Err(self.error(Step::Resolve, fault, Vec::new(), Resumable::Yes)),
            Err(Stopped::At(step, fault)) => {
                let late = matches!(fault, Fault::UnderWay { .. }) && !run.resumed;
                let nothing = late
                    || (step <= Step::Preflight
                        && run.state.snapshot.is_none()
                        && run.state.object.is_none());
                let resumable = if nothing { Resumable::No } else { Resumable::Yes };
                let left = Box::pin(self.clean_up(step, &fault, run.state, resumable)).instrument(span).await;
                Err(self.error(step, fault, left, resumable))
            }
        }
    }

    /// Takes the steps that are to be taken. Returns the reason if the job was over already.
    async fn steps(&self, run: &mut Run<'a>, taken: &mut Vec<Taken>) -> Result<Option<Over>, Stopped> {
        let at = |step| move |fault| Stopped::At(step, fault);
        let host = format!("{} ({})", self.site.own.name, self.site.own.id);
        run.state.taken_up = true;
        run.record(Event::TakenUp { host }).await.map_err(at(Step::Resolve))?;
        match self.look_back(run).await {
            Err(fault) if run.resumed => return Err(Stopped::Unknown(fault)),
            Err(fault) => return Err(Stopped::At(Step::Resolve, fault)),
            Ok(Standing::Open) => {}
            Ok(Standing::Done(why)) => {
                // The process that finished the job may have died before it pruned.
                taken.push(self.take(Step::Prune, run).await.map_err(at(Step::Prune))?);
                run.record(Event::Finished).await.map_err(at(Step::Prune))?;
                return Ok(Some(Over::Done(why)));
            }
            Ok(Standing::Superseded(why)) => {
                run.record(Event::Finished).await.map_err(at(Step::Resolve))?;
                return Ok(Some(Over::Superseded(why)));
            }
        }
        // With the object in the bucket, the server, its snapshot and a volume are not needed any more.
        let there = convert::adopt(run).await.map_err(at(Step::Preflight))?;
        let mut turn = None;
        for step in Step::ALL {
            let pointless = (there && step.is_for_the_object())
                || (self.job.goal == Goal::Object && step.is_for_the_image())
                || (self.job.restore == Restore::Plain && step == Step::Clone);
            if pointless {
                continue;
            }
            if self.site.cancel.is_cancelled() {
                return Err(Stopped::At(step, Fault::Stopped));
            }
            match step {
                Step::Clone | Step::Volume if turn.is_none() => {
                    turn = Some(self.turn().await.map_err(at(step))?);
                }
                // The volume is gone: a job that waits may have one now.
                _ if step > Step::Release => turn = None,
                _ => {}
            }
            taken.push(self.take(step, run).await.map_err(at(step))?);
        }
        run.record(Event::Finished).await.map_err(at(Step::Prune))?;
        Ok(None)
    }

    /// Finds out if the job still has work to do. If it has, this process takes the hold, so that no other
    /// process has the job.
    async fn look_back(&self, run: &mut Run<'a>) -> Result<Standing, Fault> {
        let own = standing::own_snapshot(run).await?;
        run.resumed |= own.is_some();
        if !run.resumed {
            return Ok(Standing::Open);
        }
        let standing = standing::of(run, own.as_ref()).await?;
        if let (Standing::Open, Some(own)) = (&standing, &own) {
            self.site.hold.take(self.job.id, own, &self.site.home).await?;
        }
        Ok(standing)
    }

    /// Waits until this process has room for another volume: a volume that waits costs money by the hour.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Fault> {
        tokio::select! {
            biased;
            _reason = self.site.cancel.cancelled() => Err(Fault::Stopped),
            turn = Arc::clone(&self.site.turn).acquire_owned() => turn.map_err(|_| Fault::Stopped),
        }
    }

    async fn take(&self, step: Step, run: &mut Run<'a>) -> Result<Taken, Fault> {
        let begun: Instant = self.site.clock.instant();
        self.onlooker.see(Progress::Begun(step));
        let span = tracing::info_span!("step", name = step.name());
        let words = step.run(run).instrument(span).await?;
        let took = self.site.clock.instant().duration_since(begun);
        run.record(Event::Done { step, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) })
            .await?;
        self.onlooker.see(Progress::Done { step, took, words: &words });
        Ok(Taken { step, seconds: took.as_secs_f64(), did: words })
    }

    /// Removes things that are of no use when the job is resumed. Returns the things that can't be removed.
    async fn clean_up(
        &self,
        step: Step,
        fault: &Fault,
        state: State,
        resumable: Resumable,
    ) -> Vec<OrphanedResource> {
        if fault.class() == Class::LeaseLost {
            self.site.hold.give_up().await;
            return Vec::new();
        }
        self.onlooker.see(Progress::CleaningUp);
        self.cleaning.hold.follow(&self.site.hold);
        if let Err(lost) = self.cleaning.hold.look().await {
            tracing::warn!("nothing is cleaned up here: {lost}");
            return Vec::new();
        }
        let Ok(mut run) = self.run_on(self.cleaning, state) else { return Vec::new() };
        if let Err(err) = run.record(Event::Failed { step, reason: chain(fault) }).await {
            tracing::warn!("{}", chain(&err));
            if err.class() == Class::LeaseLost {
                // Another worker has the job, or may have it: nothing that it could use is changed any more.
                self.cleaning.hold.give_up().await;
                return Vec::new();
            }
        }
        if resumable == Resumable::No {
            // The job came too late or has nothing to continue with: everything that it made is removed.
            let made: Vec<Step> =
                if run.state.snapshot.is_some() { Step::ALL.into_iter().rev().collect() } else { Vec::new() };
            let left = Box::pin(undo(&made, &mut run)).await;
            if let Err(err) = run.record(Event::Abandoned).await {
                tracing::warn!("{}", chain(&err));
            }
            return left;
        }
        let mut undone = vec![Step::Attach, Step::Volume, Step::Clone];
        match step {
            // A snapshot or an image that the cloud failed to make is of no use, and would block its name for
            // the next attempt.
            Step::Stable if fault.is_ended() => undone.push(Step::Snapshot),
            // An image without a SHA-256 can't be proved, but may be good: it stays.
            Step::Available if fault.is_ended() || matches!(fault, Fault::WrongFile { .. }) => {
                undone.push(Step::Import);
            }
            Step::Convert if matches!(fault, Fault::NotTheSame { .. }) => undone.push(Step::Convert),
            Step::Promote => undone.push(Step::Promote),
            _ => {}
        }
        let left = undo(&undone, &mut run).await;
        self.cleaning.hold.release(&self.cleaning.home).await;
        if let Err(err) = run.record(Event::Failed { step, reason: chain(fault) }).await {
            tracing::warn!("{}", chain(&err));
        }
        left
    }

    /// Gives the job up: removes everything that it made, except an image that is or was the latest. Returns
    /// the things that could not be removed.
    ///
    /// # Errors
    /// If the journal can't be written. Also if the job is done, since its image is in use then, or if its
    /// status can't be found out.
    pub async fn abandon(&self, known: State) -> Result<Vec<OrphanedResource>, JobError> {
        let failed = |fault| self.error(Step::Resolve, fault, Vec::new(), Resumable::Yes);
        let mut run = self.run_on(self.site, known).map_err(failed)?;
        let own = standing::own_snapshot(&run).await.map_err(failed)?;
        if let Standing::Done(why) = standing::of(&run, own.as_ref()).await.map_err(failed)? {
            run.record(Event::Finished).await.map_err(failed)?;
            return Err(self.error(
                Step::Resolve,
                Fault::Over { job: self.job.id, why },
                Vec::new(),
                Resumable::No,
            ));
        }
        let steps: Vec<Step> = Step::ALL.into_iter().rev().collect();
        let left = Box::pin(undo(&steps, &mut run)).await;
        if left.is_empty() {
            run.record(Event::Abandoned).await.map_err(failed)?;
        }
        Ok(left)
    }
}

async fn undo(steps: &[Step], run: &mut Run<'_>) -> Vec<OrphanedResource> {
    let mut left = Vec::new();
    for &step in steps {
        if let Err(fault) = step.undo(run).await {
            let (kind, name) = made_by(step, &run.names);
            let why = chain(&fault);
            tracing::warn!("{kind} {name} is left behind: {why}");
            left.push(OrphanedResource { kind, name, why });
        }
    }
    left
}

/// Returns the kind and name of the thing that a step makes.
fn made_by(step: Step, names: &JobNames) -> (ResourceKind, String) {
    let kind = match step {
        Step::Snapshot => ResourceKind::Snapshot,
        Step::Clone => ResourceKind::Clone,
        Step::Volume => ResourceKind::Volume,
        Step::Attach => ResourceKind::Attachment,
        Step::Convert => return (ResourceKind::Object, names.key.to_string()),
        Step::Promote => return (ResourceKind::Name, names.latest.to_string()),
        _ => ResourceKind::Image,
    };
    (kind, names.run.to_string())
}
