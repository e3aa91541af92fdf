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

use super::context::JobContext;
use super::error::{Fault, JobError, OrphanedResource, ResourceKind, Resumable};
use super::job::{Goal, JobSpec, Restore};
use super::journal::{Entry, Event, Journal};
use super::names::JobNames;
use super::server_locks::ServerLock;
use super::state::JobState;
use super::status::{self, JobStatus};
use super::steps::{Step, convert};

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
        summary: &'a str,
    },
    /// The volume is being converted: the counters of the conversion, and the size of the device.
    Converting(Arc<ConvertCounters>, ByteCount),
    /// The image is being read back: the counters of the reader, and the size of the disk.
    ReadingBack(Arc<RestoreCounters>, ByteCount),
    /// The image was made of all of the disk, without an earlier one: the reason in one word.
    SentInFull(&'a str),
    /// No data is transferred any more.
    Still,
    /// The job has failed, and its things are being cleaned up.
    CleaningUp,
}

/// Observer of a job's progress.
pub trait ProgressObserver: Send + Sync {
    /// Receives each change of the progress. Must not block.
    fn on_progress(&self, progress: Progress<'_>);
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
    pub job: &'a JobSpec,
    pub names: JobNames,
    pub context: &'a JobContext,
    pub state: JobState,
    pub found: FoundObjects,
    pub warnings: Vec<String>,
    /// True if a process had taken the job up before.
    pub resumed: bool,
    journal: &'a dyn Journal,
    observer: &'a dyn ProgressObserver,
}

impl<'a> Run<'a> {
    pub fn new(
        job: &'a JobSpec,
        context: &'a JobContext,
        state: JobState,
        journal: &'a dyn Journal,
        observer: &'a dyn ProgressObserver,
    ) -> Result<Self, Fault> {
        let (names, found) = (job.names()?, FoundObjects::default());
        let resumed = state.taken_up;
        Ok(Self { job, names, context, state, found, warnings: Vec::new(), resumed, journal, observer })
    }

    /// Writes the name of the thing that the step is about to make into the journal.
    pub async fn intend(&self, step: Step, name: impl ToString) -> Result<(), Fault> {
        self.record(Event::Intent { step, name: name.to_string() }).await
    }

    pub async fn record(&self, event: Event) -> Result<(), Fault> {
        Ok(self.journal.record(&Entry::new(self.context.clock.now(), event, &self.state)).await?)
    }

    pub fn patience(&self, patience: Patience) -> Patience {
        self.context.waits.of(patience)
    }

    /// Waits for the lock to attach to a server, or to detach from it.
    pub async fn lock_server(&self, server: &InstanceId) -> Result<ServerLock, Fault> {
        let JobContext { server_locks, clock, cancel, .. } = self.context;
        server_locks.of(server, self.patience(Patience::ATTACHMENT), &**clock, cancel).await
    }

    pub fn report_progress(&self, progress: Progress<'_>) {
        self.observer.on_progress(progress);
    }

    /// Notes a problem that does not make the job fail.
    pub fn warn(&mut self, message: String) {
        tracing::warn!("{message}");
        self.warnings.push(message);
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
    pub state: JobState,
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
    pub fn evidence(&self) -> &str {
        let (Self::Done(evidence) | Self::Superseded(evidence)) = self;
        evidence
    }
}

/// Reason why a job ended early.
enum Stopped {
    /// A step failed.
    At(Step, Fault),
    /// The check if the job still has work to do failed.
    Unknown(Fault),
}

/// Job with everything that it needs. The caller runs it in a [`super::log_span`]. `cleanup_context` is the
/// same environment as `context`, but without its cancellation, for the cleanup after a job was cancelled.
pub struct Saga<'a> {
    pub job: &'a JobSpec,
    /// Environment that the steps run in.
    pub context: &'a JobContext,
    /// Environment that the cleanup runs in.
    pub cleanup_context: &'a JobContext,
    pub journal: &'a dyn Journal,
    pub observer: &'a dyn ProgressObserver,
}

impl<'a> Saga<'a> {
    fn run_on(&self, context: &'a JobContext, state: JobState) -> Result<Run<'a>, Fault> {
        Run::new(self.job, context, state, self.journal, self.observer)
    }

    fn error(
        &self,
        step: Step,
        fault: Fault,
        orphaned: Vec<OrphanedResource>,
        resumable: Resumable,
    ) -> JobError {
        JobError {
            id: self.job.id,
            server: self.job.server.clone(),
            step,
            fault: Box::new(fault),
            orphaned,
            resumable,
        }
    }

    /// Takes the job to its end, from whatever step it reached. `known` is the state in the journal, or an
    /// empty one.
    ///
    /// # Errors
    /// If a step fails; the error names it. Then the things that cost money by the hour are removed, as far
    /// as possible. The snapshot stays, and the job can be resumed.
    pub async fn run(&self, state: JobState) -> Result<Finished, JobError> {
        let mut run = self
            .run_on(self.context, state)
            .map_err(|fault| self.error(Step::Resolve, fault, Vec::new(), Resumable::No))?;
        let mut taken = Vec::new();
        // In a box, because it holds the futures of all steps.
        match Box::pin(self.steps(&mut run, &mut taken)).await {
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
                let came_late = matches!(fault, Fault::UnderWay { .. }) && !run.resumed;
                let made_nothing = came_late
                    || (step <= Step::Preflight
                        && run.state.snapshot.is_none()
                        && run.state.object.is_none());
                let resumable = if made_nothing { Resumable::No } else { Resumable::Yes };
                let orphaned = Box::pin(self.clean_up(step, &fault, run.state, resumable)).await;
                Err(self.error(step, fault, orphaned, resumable))
            }
        }
    }

    /// Takes the steps that are to be taken. Returns the reason if the job was over already.
    async fn steps(&self, run: &mut Run<'a>, taken: &mut Vec<Taken>) -> Result<Option<Over>, Stopped> {
        let at = |step| move |fault| Stopped::At(step, fault);
        let host = format!("{} ({})", self.context.own.name, self.context.own.id);
        run.state.taken_up = true;
        run.record(Event::TakenUp { host }).await.map_err(at(Step::Resolve))?;
        match self.resume_status(run).await {
            Err(fault) if run.resumed => return Err(Stopped::Unknown(fault)),
            Err(fault) => return Err(Stopped::At(Step::Resolve, fault)),
            Ok(JobStatus::Open) => {}
            Ok(JobStatus::Done(evidence)) => {
                // The process that finished the job may have died before it pruned.
                taken.push(self.run_step(Step::Prune, run).await.map_err(at(Step::Prune))?);
                run.record(Event::Finished).await.map_err(at(Step::Prune))?;
                return Ok(Some(Over::Done(evidence)));
            }
            Ok(JobStatus::Superseded(evidence)) => {
                run.record(Event::Finished).await.map_err(at(Step::Resolve))?;
                return Ok(Some(Over::Superseded(evidence)));
            }
        }
        // With the object in the bucket, the server, its snapshot and a volume are not needed any more.
        let object_exists = convert::adopt(run).await.map_err(at(Step::Preflight))?;
        let mut volume_permit = None;
        for step in Step::ALL {
            let pointless = (object_exists && step.is_for_the_object())
                || (self.job.goal == Goal::Object && step.is_for_the_image())
                || (self.job.restore == Restore::Plain && step == Step::Clone);
            if pointless {
                continue;
            }
            if self.context.cancel.is_cancelled() {
                return Err(Stopped::At(step, Fault::Stopped));
            }
            match step {
                Step::Clone | Step::Volume if volume_permit.is_none() => {
                    volume_permit = Some(self.volume_permit().await.map_err(at(step))?);
                }
                // The volume is gone: a job that waits may have one now.
                _ if step > Step::Release => volume_permit = None,
                _ => {}
            }
            taken.push(self.run_step(step, run).await.map_err(at(step))?);
        }
        run.record(Event::Finished).await.map_err(at(Step::Prune))?;
        Ok(None)
    }

    /// Finds out if the job still has work to do. If it has, this process takes the hold, so that no other
    /// process has the job.
    async fn resume_status(&self, run: &mut Run<'a>) -> Result<JobStatus, Fault> {
        let own = status::own_snapshot(run).await?;
        run.resumed |= own.is_some();
        if !run.resumed {
            return Ok(JobStatus::Open);
        }
        let status = status::of(run, own.as_ref()).await?;
        if let (JobStatus::Open, Some(own)) = (&status, &own) {
            self.context.hold.take(self.job.id, own, &self.context.home).await?;
        }
        Ok(status)
    }

    /// Waits until this process has room for another volume: a volume that waits costs money by the hour.
    async fn volume_permit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        tokio::select! {
            biased;
            _reason = self.context.cancel.cancelled() => Err(Fault::Stopped),
            permit = Arc::clone(&self.context.volume_permits).acquire_owned() => {
                permit.map_err(|_| Fault::Stopped)
            }
        }
    }

    async fn run_step(&self, step: Step, run: &mut Run<'a>) -> Result<Taken, Fault> {
        let begun: Instant = self.context.clock.instant();
        self.observer.on_progress(Progress::Begun(step));
        let span = tracing::error_span!("step", %step);
        let summary = step.run(run).instrument(span.clone()).await?;
        let took = self.context.clock.instant().duration_since(begun);
        run.record(Event::Done { step, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) })
            .await?;
        span.in_scope(|| self.observer.on_progress(Progress::Done { step, took, summary: &summary }));
        Ok(Taken { step, seconds: took.as_secs_f64(), did: summary })
    }

    /// Removes things that are of no use when the job is resumed. Returns the things that can't be removed.
    async fn clean_up(
        &self,
        step: Step,
        fault: &Fault,
        state: JobState,
        resumable: Resumable,
    ) -> Vec<OrphanedResource> {
        if fault.class() == Class::LeaseLost {
            self.context.hold.give_up().await;
            return Vec::new();
        }
        self.observer.on_progress(Progress::CleaningUp);
        self.cleanup_context.hold.follow(&self.context.hold);
        if let Err(refused) = self.cleanup_context.hold.check().await {
            tracing::warn!("nothing is cleaned up here: {refused}");
            return Vec::new();
        }
        let Ok(mut run) = self.run_on(self.cleanup_context, state) else { return Vec::new() };
        if let Err(err) = run.record(Event::Failed { step, reason: chain(fault) }).await {
            tracing::warn!("{}", chain(&err));
            if err.class() == Class::LeaseLost {
                // Another worker has the job, or may have it: nothing that it could use is changed any more.
                self.cleanup_context.hold.give_up().await;
                return Vec::new();
            }
        }
        if resumable == Resumable::No {
            // The job came too late or has nothing to continue with: everything that it made is removed.
            let made: Vec<Step> =
                if run.state.snapshot.is_some() { Step::ALL.into_iter().rev().collect() } else { Vec::new() };
            let orphaned = Box::pin(undo(&made, &mut run)).await;
            if let Err(err) = run.record(Event::Abandoned).await {
                tracing::warn!("{}", chain(&err));
            }
            return orphaned;
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
            Step::Convert if fault.is_of_a_wrong_image() => undone.push(Step::Convert),
            Step::Promote => undone.push(Step::Promote),
            _ => {}
        }
        let orphaned = undo(&undone, &mut run).await;
        self.cleanup_context.hold.release(&self.cleanup_context.home).await;
        if let Err(err) = run.record(Event::Failed { step, reason: chain(fault) }).await {
            tracing::warn!("{}", chain(&err));
        }
        orphaned
    }

    /// Gives the job up: removes everything that it made, except an image that is or was the latest. Returns
    /// the things that could not be removed.
    ///
    /// # Errors
    /// If the journal can't be written. Also if the job is done, since its image is in use then, or if its
    /// status can't be found out.
    pub async fn abandon(&self, state: JobState) -> Result<Vec<OrphanedResource>, JobError> {
        let failed = |fault| self.error(Step::Resolve, fault, Vec::new(), Resumable::Yes);
        let mut run = self.run_on(self.context, state).map_err(failed)?;
        let own = status::own_snapshot(&run).await.map_err(failed)?;
        if let JobStatus::Done(evidence) = status::of(&run, own.as_ref()).await.map_err(failed)? {
            run.record(Event::Finished).await.map_err(failed)?;
            return Err(self.error(
                Step::Resolve,
                Fault::Over { job: self.job.id, evidence },
                Vec::new(),
                Resumable::No,
            ));
        }
        let steps: Vec<Step> = Step::ALL.into_iter().rev().collect();
        let orphaned = Box::pin(undo(&steps, &mut run)).await;
        if orphaned.is_empty() {
            run.record(Event::Abandoned).await.map_err(failed)?;
        }
        Ok(orphaned)
    }
}

async fn undo(steps: &[Step], run: &mut Run<'_>) -> Vec<OrphanedResource> {
    let mut orphaned = Vec::new();
    for &step in steps {
        if let Err(fault) = step.undo(run).instrument(tracing::error_span!("undo", %step)).await {
            let (kind, name) = made_by(step, &run.names);
            let why = chain(&fault);
            tracing::warn!("{kind} {name} is left behind: {why}");
            orphaned.push(OrphanedResource { kind, name, why });
        }
    }
    orphaned
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
