//! One job from its first question to its last: steps in order, a journal beside them, and what is cleaned up when one fails.

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

use super::error::{Fault, JobError, Left, Resumable};
use super::job::{Goal, Job, Restore};
use super::journal::{Entry, Event, Journal};
use super::names::JobNames;
use super::site::Site;
use super::standing::{self, Standing};
use super::state::State;
use super::steps::{Step, convert};
use super::turns::Turn;

/// What is going on, for whoever looks on.
pub enum Progress<'a> {
    /// A step begins.
    Begun(Step),
    /// It is through.
    Done {
        /// Which.
        step: Step,
        /// How long it took.
        took: Duration,
        /// What it did.
        words: &'a str,
    },
    /// The volume is being converted; the counters tell how far.
    Converting(Arc<ConvertCounters>, ByteCount),
    /// The image is being read back.
    ReadingBack(Arc<RestoreCounters>, ByteCount),
    /// No bytes are moved any more.
    Still,
    /// The job failed, and is being cleaned up after.
    CleaningUp,
}

/// Somebody who looks on.
pub trait Onlooker: Send + Sync {
    /// Told at each turn. Must not block.
    fn see(&self, progress: Progress<'_>);
}

/// What was found in the cloud this time.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub server: Option<Instance>,
    pub volume: Option<Volume>,
    pub snapshot: Option<Snapshot>,
}

/// A job under way.
pub(super) struct Run<'a> {
    pub job: &'a Job,
    pub names: JobNames,
    pub site: &'a Site,
    pub state: State,
    pub found: Found,
    pub warnings: Vec<String>,
    /// Somebody had taken the job up before.
    pub resumed: bool,
    journal: &'a dyn Journal,
    onlooker: &'a dyn Onlooker,
}

impl<'a> Run<'a> {
    pub fn new(
        job: &'a Job,
        site: &'a Site,
        state: State,
        journal: &'a dyn Journal,
        onlooker: &'a dyn Onlooker,
    ) -> Result<Self, Fault> {
        let (names, found) = (job.names()?, Found::default());
        let resumed = state.taken_up;
        Ok(Self { job, names, site, state, found, warnings: Vec::new(), resumed, journal, onlooker })
    }

    /// Notes what the step is about to make, before it is made.
    pub async fn intend(&self, step: Step, name: impl ToString) -> Result<(), Fault> {
        self.record(Event::Intent { step, name: name.to_string() }).await
    }

    pub async fn record(&self, event: Event) -> Result<(), Fault> {
        Ok(self.journal.record(&Entry::new(self.site.clock.now(), event, &self.state)).await?)
    }

    pub fn patience(&self, patience: Patience) -> Patience {
        self.site.waits.of(patience)
    }

    /// This machine's turn to attach to a server, or to detach from it.
    pub async fn turn_of(&self, server: &InstanceId) -> Result<Turn, Fault> {
        let Site { turns, clock, cancel, .. } = self.site;
        turns.of(server, self.patience(Patience::ATTACHMENT), &**clock, cancel).await
    }

    pub fn see(&self, progress: Progress<'_>) {
        self.onlooker.see(progress);
    }

    /// Something that is not as it should be, and no reason to fail.
    pub fn warn(&mut self, words: String) {
        tracing::warn!("{words}");
        self.warnings.push(words);
    }
}

/// A step that is through.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Taken {
    /// Which.
    pub step: Step,
    /// In seconds.
    pub seconds: f64,
    /// What it did.
    pub did: String,
}

/// A job that is through.
#[derive(Clone, Debug)]
pub struct Finished {
    /// All that is known.
    pub state: State,
    /// Its names.
    pub names: JobNames,
    /// What was done this time.
    pub steps: Vec<Taken>,
    /// What is not as it should be.
    pub warnings: Vec<String>,
    /// Why there was nothing left to do, where the job was over already.
    pub over: Option<Over>,
}

/// How a job was over before it was taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// It is done, as this shows.
    Done(String),
    /// Nothing of it is there any more, and a newer one is done, as this shows: it comes to no image of its own.
    Superseded(String),
}

impl Over {
    /// What shows it.
    #[must_use]
    pub fn why(&self) -> &str {
        let (Self::Done(why) | Self::Superseded(why)) = self;
        why
    }
}

/// What ends a job early.
enum Stopped {
    /// A step failed.
    At(Step, Fault),
    /// Whether the job is still to be done can't be known.
    Unknown(Fault),
}

/// A job with all it needs. `site` heeds the word to stop; `cleaning` is the same without it, for what has to be done after that word.
pub struct Saga<'a> {
    /// What is to be done.
    pub job: &'a Job,
    /// With what.
    pub site: &'a Site,
    /// To clean up with.
    pub cleaning: &'a Site,
    /// Where it is noted.
    pub journal: &'a dyn Journal,
    /// Who looks on.
    pub onlooker: &'a dyn Onlooker,
}

impl<'a> Saga<'a> {
    fn run_on(&self, site: &'a Site, state: State) -> Result<Run<'a>, Fault> {
        Run::new(self.job, site, state, self.journal, self.onlooker)
    }

    fn error(&self, step: Step, fault: Fault, left: Vec<Left>, resumable: Resumable) -> JobError {
        JobError {
            id: self.job.id,
            server: self.job.server.clone(),
            step,
            fault: Box::new(fault),
            left,
            resumable,
        }
    }

    /// Takes the job to its end, from wherever it stands. `known` is what the journal told, or nothing.
    ///
    /// # Errors
    /// With the step that failed. What costs money by the hour is removed then, as far as that could be done; the snapshot stays, and the
    /// job can be resumed.
    pub async fn run(&self, known: State) -> Result<Finished, JobError> {
        let mut run = self
            .run_on(self.site, known)
            .map_err(|fault| self.error(Step::Resolve, fault, Vec::new(), Resumable::No))?;
        let mut taken = Vec::new();
        let span =
            tracing::info_span!("job", id = %self.job.id, server = %self.job.server, region = %self.job.to);
        // In a box: it holds the futures of all steps.
        match Box::pin(self.steps(&mut run, &mut taken)).instrument(span.clone()).await {
            Ok(over) => Ok(Finished {
                state: run.state,
                names: run.names,
                steps: taken,
                warnings: run.warnings,
                over,
            }),
            // Nothing was changed, and nothing is: what looks like a leftover may be in somebody's use.
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

    /// Takes what steps there are to take; why there was nothing to do, where the job was over already.
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
                // Whoever finished it may not have come to that.
                taken.push(self.take(Step::Prune, run).await.map_err(at(Step::Prune))?);
                run.record(Event::Finished).await.map_err(at(Step::Prune))?;
                return Ok(Some(Over::Done(why)));
            }
            Ok(Standing::Superseded(why)) => {
                run.record(Event::Finished).await.map_err(at(Step::Resolve))?;
                return Ok(Some(Over::Superseded(why)));
            }
        }
        // With the object there, nobody needs the server, its snapshot or a volume any more.
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
                    turn = Some(self.turn().await.map_err(at(step))?)
                }
                // The volume is gone: whoever waits may have one.
                _ if step > Step::Release => turn = None,
                _ => {}
            }
            taken.push(self.take(step, run).await.map_err(at(step))?);
        }
        run.record(Event::Finished).await.map_err(at(Step::Prune))?;
        Ok(None)
    }

    /// Whether the job is still to be done; if so it is ours from here on, and nobody else's.
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

    /// Waits until this process has hands free for another volume: one that waits costs money by the hour.
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

    /// Removes what is of no use to whoever resumes the job; what can't be removed is told.
    async fn clean_up(&self, step: Step, fault: &Fault, state: State, resumable: Resumable) -> Vec<Left> {
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
                // Another worker has the job, or may have it: nothing that it could use is touched any more.
                self.cleaning.hold.give_up().await;
                return Vec::new();
            }
        }
        if resumable == Resumable::No {
            // What a job has made that comes too late is in nobody's way.
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
            // What failed in the cloud's own hands is of no use, and in the way of the next attempt.
            Step::Stable if fault.is_ended() => undone.push(Step::Snapshot),
            // One that can't be proved may be good all the same.
            Step::Available if fault.is_ended() || matches!(fault, Fault::WrongFile { .. }) => {
                undone.push(Step::Import)
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

    /// Gives the job up: all that it made is removed, but for an image that is the latest or was it.
    ///
    /// # Errors
    /// Where the journal can't be kept, and where the job is done: what it made is in use. What could not be removed is told.
    pub async fn abandon(&self, known: State) -> Result<Vec<Left>, JobError> {
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

async fn undo(steps: &[Step], run: &mut Run<'_>) -> Vec<Left> {
    let mut left = Vec::new();
    for &step in steps {
        if let Err(fault) = step.undo(run).await {
            let (kind, name) = made_by(step, &run.names);
            let why = chain(&fault);
            tracing::warn!("{kind} {name} is left behind: {why}");
            left.push(Left { kind, name, why });
        }
    }
    left
}

/// What a step makes.
fn made_by(step: Step, names: &JobNames) -> (&'static str, String) {
    let kind = match step {
        Step::Snapshot => "snapshot",
        Step::Clone => "clone of snapshot",
        Step::Volume => "volume",
        Step::Attach => "attachment",
        Step::Convert => return ("object", names.key.to_string()),
        Step::Promote => return ("name", names.latest.to_string()),
        _ => "image",
    };
    (kind, names.run.to_string())
}
