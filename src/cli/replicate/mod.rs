//! `snapferry replicate`: copies a server's boot volume into another region's image library. Its helpers
//! `plan` and `gc` are here too.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args as Group;
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};
use show::Shown;
use site::{SiteArgs, bucket, recovery_region, state_folder, waits};
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::{SystemClock, rfc3339};
use snapferry_base::job::JobId;
use snapferry_base::message_id::JOB_DONE;
use snapferry_base::retry::chain;
use snapferry_fleet::replicate::catchup::{self, Overdue};
use snapferry_fleet::replicate::gc::own_snapshots;
use snapferry_fleet::replicate::holdings::{CloudStores, Holdings};
use snapferry_fleet::replicate::journal::Read;
use snapferry_fleet::replicate::names::{self, has};
use snapferry_fleet::replicate::{
    Encoding, Event, Finished, Goal, JobError, JobSpec, JobState, JournalFolder, Keep, Origin, Over,
    OwnServer, Restore, Resumable, Retention, Saga, SnapshotFate, log_span,
};
use snapferry_ibmcloud::vpc::{SnapshotFilter, SnapshotOrder, Watch};
use tracing::{Instrument as _, Level};

use super::cloud::{Cloud, RequestContext, run_leaving};
use super::duration::{approximate, clock_face};
use super::error::UsageError;
use super::exit::Code;
use super::log::{self, LogFormat, Verbosity};
use super::metrics_file::MetricsFileArgs;
use super::signals::Unfinished;
use super::throughput::Metered;
use crate::cli::args::{CloudArgs, ConsentArgs, HowArgs, OutputArgs, PlaceArgs, RecoveryArgs};
use crate::cli::completions::names as completion;
use crate::cli::consent::{Consent, Unasked};
use crate::cli::error::{CommandError, CommandResult};
use crate::cli::print_json;
use crate::cli::printable::{self, Form};
use crate::cli::session::Session;

pub mod gc;
pub mod plan;
mod rehearse;
pub mod show;
pub mod site;

/// Command on jobs, with its arguments and context.
struct Command<'a> {
    args: &'a ReplicateArgs,
    session: &'a Session,
    site_args: SiteArgs<'a>,
    journals: JournalFolder,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry replicate web01 --to us-east --bucket images-us-east\n  snapferry replicate web01 --to us-east --bucket images-us-east --dry-run\n  snapferry replicate --resume\n  snapferry replicate --abandon 01kb3v9w6rj0c2xq4m8s5t7yza"
)]
pub struct ReplicateArgs {
    /// The server; its boot volume is replicated, data volumes are not
    #[arg(value_name = "SERVER", required_unless_present_any = ["resume", "abandon"],
        add = ArgValueCompleter::new(completion::servers))]
    pub server: Option<String>,

    /// Resume this job, or every unfinished one
    ///
    /// Resumes the unfinished jobs that this machine knows of; with a server's name also one that another
    /// machine began. --os, --bucket-location and --volume-profile may be given anew.
    #[arg(long, value_name = "JOB", num_args = 0..=1, default_missing_value = "all",
        conflicts_with = "abandon", add = ArgValueCompleter::new(completion::journals))]
    pub resume: Option<Resumed>,

    /// Give up an unfinished job, and remove what it has made
    #[arg(long, value_name = "JOB", conflicts_with = "server",
        add = ArgValueCompleter::new(completion::journals))]
    pub abandon: Option<JobId>,

    /// Print what would be done: names, sizes, what would be pruned
    #[arg(short = 'n', long, conflicts_with = "metrics_file")]
    pub dry_run: bool,

    #[command(flatten)]
    pub consent: ConsentArgs,

    #[command(flatten)]
    pub output: OutputArgs,

    // Groups with a heading follow the options without one: a heading applies to all options after it.
    #[command(flatten)]
    pub how: HowArgs,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,

    #[command(flatten)]
    pub metrics_file: MetricsFileArgs,
}

/// Choice of the jobs to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    All,
    One(JobId),
}

impl std::str::FromStr for Resumed {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "all" => Ok(Self::All),
            id => id.parse().map(Self::One).map_err(|err: snapferry_base::job::JobIdError| err.to_string()),
        }
    }
}

pub fn run(args: &ReplicateArgs, session: &Session) -> CommandResult<Code> {
    let site_args =
        SiteArgs { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place, session };
    let consent = Consent::of(args.consent, session)?;
    let journals = JournalFolder::new(&state_folder(&args.place, &session.environment));
    let command = Command { args, session, site_args, journals };
    run_leaving(&args.cloud, session, Unfinished::Job, async |cloud| {
        let own = command.site_args.own(cloud).await?;
        match (args.resume, args.abandon) {
            (_, Some(id)) => command.abandon(cloud, &own, id, consent).await,
            (Some(which), None) => command.resume(cloud, &own, which).await,
            (None, None) if args.dry_run => command.dry_run(cloud, &own).await,
            (None, None) => command.begin(cloud, &own).await,
        }
    })
}

/// Returns a server's jobs that are not done, wherever they began: the tags of their snapshots show them.
async fn open_jobs(cloud: &Cloud, server: &str) -> CommandResult<Vec<JobId>> {
    let (server_tag, done) = (names::server_tag(server)?, names::done_tag()?);
    let filter =
        SnapshotFilter { tag: Some(server_tag), source_volume: None, order: SnapshotOrder::NewestFirst };
    let snapshots = cloud.client()?.snapshots(&filter).await?;
    let open = snapshots.iter().filter(|snapshot| !has(&snapshot.user_tags, &done));
    Ok(open.filter_map(|snapshot| names::job_of(&snapshot.user_tags)).collect())
}

/// Makes a job from the arguments.
pub fn job_of(
    server: &str,
    how: &HowArgs,
    recovery: &RecoveryArgs,
    id: JobId,
    home: &str,
) -> CommandResult<JobSpec> {
    let to = recovery_region(recovery)?.to_owned();
    let region = recovery.bucket_region.clone().unwrap_or_else(|| to.clone());
    let retention = &how.retention;
    let job = JobSpec {
        id,
        server: server.to_owned(),
        from: home.to_owned(),
        bucket: bucket(recovery)?.to_owned(),
        bucket_location: how.bucket_location.clone().unwrap_or_else(|| region.clone()),
        bucket_region: Some(region),
        endpoint: recovery.endpoint.clone(),
        bucket_options: recovery.requirements.for_job(),
        prefix: how.prefix.clone(),
        resource_group: how.resource_group.clone(),
        to,
        origin: how.from_snapshot.clone().map_or(Origin::Server, Origin::Snapshot),
        goal: if how.no_import { Goal::Object } else { Goal::Image },
        restore: if how.fast_restore_clone { Restore::FastClone } else { Restore::Plain },
        snapshot_fate: if how.keep_snapshot { SnapshotFate::Kept } else { SnapshotFate::Prunable },
        operating_system: how.os.clone(),
        image_name: how.image_name.as_ref().map(ToString::to_string),
        volume_profile: how.volume_profile.clone(),
        encoding: Encoding { codec: how.codec, level: how.level },
        base: how.base,
        retention: Retention {
            snapshots: Keep { newest: retention.keep_snapshots, younger_than: retention.snapshot_age },
            images: Keep { newest: retention.keep_images, younger_than: retention.image_age },
            objects: Keep { newest: retention.keep_objects, younger_than: retention.object_age },
        },
    };
    job.names()?;
    Ok(job)
}

impl Command<'_> {
    /// Makes the job that the arguments describe, with this id.
    fn job(&self, id: JobId, home: &str) -> CommandResult<JobSpec> {
        let server =
            self.args.server.as_deref().ok_or_else(|| UsageError("which server? Give its name".into()))?;
        job_of(server, &self.args.how, &self.args.recovery, id, home)
    }

    async fn begin(&self, cloud: &Cloud, own: &OwnServer) -> CommandResult<Code> {
        let job = self.job(JobId::new(&SystemClock), &cloud.home)?;
        for unfinished in self.unfinished()? {
            if unfinished.job.server == job.server && unfinished.job.to == job.to {
                let id = unfinished.job.id;
                if self.journals.is_busy(id) {
                    return Err(UsageError(format!(
                        "job {id} for {} into {} is being worked on already",
                        job.server, job.to
                    ))
                    .into());
                }
                tracing::warn!(
                    job = %id,
                    "job {id} for {} was broken off: `snapferry replicate --resume {id}` would go on with it",
                    job.server
                );
            }
        }
        for id in open_jobs(cloud, &job.server).await? {
            if self.journals.read(id)?.is_none() {
                tracing::warn!(
                    job = %id,
                    "job {id} for {} was begun elsewhere {} ago, and is not done: where it is not under way, `snapferry replicate {} \
                     --resume` would go on with it",
                    job.server,
                    approximate(SystemTime::now().duration_since(id.time()).unwrap_or_default()),
                    job.server
                );
            }
        }
        self.work(cloud, own, &job).await?;
        Ok(Code::Done)
    }

    fn unfinished(&self) -> CommandResult<Vec<Read>> {
        Ok(self.journals.all()?.into_iter().filter(|read| !read.is_over()).collect())
    }

    async fn resume(&self, cloud: &Cloud, own: &OwnServer, which: Resumed) -> CommandResult<Code> {
        let mut chosen: Vec<JobSpec> = self.unfinished()?.into_iter().map(|read| read.job).collect();
        chosen.retain(|job| match which {
            Resumed::All => self.args.server.as_ref().is_none_or(|server| *server == job.server),
            Resumed::One(id) => job.id == id,
        });
        let started_here = !chosen.is_empty();
        if !started_here {
            chosen = self.started_elsewhere(cloud, which).await?;
        }
        if self.args.dry_run && (which == Resumed::All || !chosen.is_empty()) {
            return rehearse::resume(&chosen, self.args.output.form());
        }
        if chosen.is_empty() {
            if !self.args.dry_run {
                self.catch_up_if_possible(cloud).await?;
            }
            let mut out = printable::out_as(Form::of(self.args.output.json));
            match which {
                Resumed::One(id) => {
                    let message = format!(
                        "there is no unfinished job {id} here: give the server too, --to and --bucket, if another machine began it"
                    );
                    return Err(UsageError(message).into());
                }
                Resumed::All if self.args.output.json => writeln!(out, "[]")?,
                Resumed::All => writeln!(
                    out,
                    "nothing to resume in {}",
                    state_folder(&self.args.place, &self.session.environment).display()
                )?,
            }
            return Ok(Code::Done);
        }
        let chosen: Vec<JobSpec> = chosen.into_iter().map(|job| self.with_overrides(job)).collect();
        let mut first_failure = None;
        let mut worked = false;
        for job in &chosen {
            match self.work(cloud, own, job).await {
                Ok(done) => worked |= done,
                Err(error) if chosen.len() == 1 || cloud.cancel().is_cancelled() => return Err(error),
                Err(error) => {
                    // The other jobs are resumed all the same.
                    super::exit::report(&error, Form::Text);
                    first_failure.get_or_insert(error);
                }
            }
        }
        match first_failure {
            Some(error) => {
                Err(error.during("not every job could be resumed; of those that could not, the first"))
            }
            // The jobs that began here are over, so the server's unfinished job may have begun on another
            // machine.
            None if started_here && !worked && which == Resumed::All => {
                match self.started_elsewhere(cloud, which).await?.pop() {
                    Some(job) => {
                        self.work(cloud, own, &job).await?;
                    }
                    None => self.catch_up_if_possible(cloud).await?,
                }
                Ok(Code::Done)
            }
            None => Ok(Code::Done),
        }
    }

    /// Runs `catch_up`. If it fails, logs a warning: what could not be pruned is no reason to fail.
    async fn catch_up_if_possible(&self, cloud: &Cloud) -> CommandResult<()> {
        match self.catch_up(cloud).await {
            Err(error) if cloud.cancel().is_cancelled() => Err(error),
            Err(error) => {
                tracing::warn!("whether there is anything left to prune could not be found out: {error:#}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Removes what finished jobs of the server should have pruned but did not, by each job's own rules.
    async fn catch_up(&self, cloud: &Cloud) -> CommandResult<()> {
        let Some(server) = &self.args.server else { return Ok(()) };
        let cloud = cloud.waiting(waits(&self.args.place));
        let places = gc::places(&self.site_args, &self.args.how.prefix, &cloud)?;
        let snapshots = own_snapshots(&places.home).await?;
        let mut live = BTreeSet::new();
        for read in self.journals.all()?.into_iter().filter(|read| self.journals.is_busy(read.job.id)) {
            live.insert(read.job.names()?.run.to_string());
        }
        let overdue = catchup::look(&snapshots, &places, Some(server), &live, SystemTime::now()).await?;
        let away = places.away.as_ref().map(|(away, tagging)| (away, tagging));
        let stores = CloudStores {
            home: &places.home,
            away,
            store: places.bucket.as_ref().map(|(store, ..)| &**store),
        };
        for Overdue { resource: thing, by, .. } in &overdue {
            match thing.remove(&stores).await {
                Ok(()) => tracing::info!("{thing} is pruned, which {by} does not keep"),
                Err(error) if cloud.cancel().is_cancelled() => return Err(error.into()),
                Err(error) => tracing::warn!("{thing} is not pruned: {}", chain(&error)),
            }
        }
        Ok(())
    }

    /// Returns the job with the arguments of this call, for a job that stopped because one of them was
    /// missing.
    fn with_overrides(&self, job: JobSpec) -> JobSpec {
        let how = &self.args.how;
        JobSpec {
            operating_system: how.os.clone().or(job.operating_system),
            bucket_location: how.bucket_location.clone().unwrap_or(job.bucket_location),
            volume_profile: how.volume_profile.clone().or(job.volume_profile),
            ..job
        }
    }

    /// Returns the newest job of a server that another machine began and whose journal is not here: its
    /// snapshot shows it.
    async fn started_elsewhere(&self, cloud: &Cloud, which: Resumed) -> CommandResult<Vec<JobSpec>> {
        let Some(server) = &self.args.server else { return Ok(Vec::new()) };
        let mut ids = open_jobs(cloud, server).await?;
        ids.retain(|&id| match which {
            Resumed::All => !self.journals.is_busy(id),
            Resumed::One(requested) => id == requested,
        });
        // Only the newest job is worth it: the others are older disks of the same server.
        ids.sort_unstable();
        ids.pop().map(|id| self.job(id, &cloud.home)).into_iter().collect()
    }

    async fn abandon(
        &self,
        cloud: &Cloud,
        own: &OwnServer,
        id: JobId,
        consent: Consent,
    ) -> CommandResult<Code> {
        let read = self.journals.read(id)?;
        let read = read.ok_or_else(|| {
            UsageError(format!("there is no job {id} here; `snapferry gc` finds what others have left"))
        })?;
        if matches!(read.entries.last().map(|entry| &entry.event), Some(Event::Finished)) {
            let message = format!(
                "job {id} is done, and what it made is in use: `snapferry images delete` and `snapferry snapshot delete` remove single things"
            );
            return Err(UsageError(message).into());
        }
        if self.args.dry_run {
            return rehearse::abandon(&read, self.args.output.form());
        }
        let what = rehearse::abandoning(&read.job, &rehearse::made_by(&read));
        consent.ask(self.session, Unasked::GoOn, &what)?;
        let (journal, _) = self.journals.open(&read.job)?;
        let shown = Arc::new(Shown::new(&self.session.console, self.session.verbosity));
        let watch: Arc<dyn Watch> = shown.clone();
        let site =
            self.site_args.site(cloud, &read.job, own, &RequestContext::alone(cloud.cancel(), &watch))?;
        let saga = Saga {
            job: &read.job,
            context: &site,
            cleanup_context: &site,
            journal: &journal,
            observer: &*shown,
        };
        let span = log_span(id, &read.job.server, &read.job.to);
        let remaining = saga.abandon(read.state()).instrument(span).await?;
        drop(shown);
        if self.args.output.json {
            print_json(&json!({ "job": id, "abandoned": remaining.is_empty(), "left": remaining }))?;
        } else if remaining.is_empty() {
            writeln!(printable::out(), "job {id} is given up, and what it made is removed")?;
        }
        match remaining.first() {
            Some(first) => {
                let error = CommandError::Failed(format!("not all of job {id} could be removed: {first}"));
                Err(if self.args.output.json { error.recorded() } else { error })
            }
            None => Ok(Code::Done),
        }
    }

    /// Works on a job until it is done. Returns false if it was over already.
    async fn work(&self, cloud: &Cloud, own: &OwnServer, job: &JobSpec) -> CommandResult<bool> {
        self.run_job(cloud, own, job).instrument(log_span(job.id, &job.server, &job.to)).await
    }

    async fn run_job(&self, cloud: &Cloud, own: &OwnServer, job: &JobSpec) -> CommandResult<bool> {
        let (journal, before) = self.journals.open(job)?;
        let state = before.map(|read| read.state()).unwrap_or_default();
        let shown = Arc::new(Shown::new(&self.session.console, self.session.verbosity));
        let watch: Arc<dyn Watch> = shown.clone();
        let site = self.site_args.site(cloud, job, own, &RequestContext::alone(cloud.cancel(), &watch))?;
        // For the jobs that began on this machine, the journals show whether a process works on them.
        let idle =
            self.unfinished()?.into_iter().map(|read| read.job.id).filter(|&id| !self.journals.is_busy(id));
        site.hold.note_idle(idle.collect());
        // The signal to stop does not cancel the clean-up; a second signal ends the process.
        let cleaning =
            self.site_args.site(cloud, job, own, &RequestContext::alone(&Cancel::new(), &watch))?;
        if self.session.verbosity != Verbosity::Quiet && self.session.console.is_terminal() {
            let headline = format!(
                "job {}: {} in {} -> {}, through bucket {}\n",
                job.id, job.server, job.from, job.to, job.bucket
            );
            let _ = printable::err().write_all(headline.as_bytes());
        }
        let begun = SystemTime::now();
        let observer = Metered::new(&self.session.throughput, shown.clone());
        let saga =
            Saga { job, context: &site, cleanup_context: &cleaning, journal: &journal, observer: &observer };
        let outcome = saga.run(state).await;
        drop((observer, shown));
        match outcome {
            Ok(finished) => {
                self.report(job, &finished, begun)?;
                Ok(finished.over.is_none())
            }
            Err(error) => {
                if self.args.output.json {
                    print_json(&failure(&error))?;
                    return Err(CommandError::from(error).recorded());
                }
                Err(error.into())
            }
        }
    }

    fn report(&self, job: &JobSpec, finished: &Finished, begun: SystemTime) -> CommandResult<Code> {
        if self.args.output.json {
            print_json(&record(job, finished, begun))?;
        }
        if let Some(over) = &finished.over {
            if !self.args.output.json {
                writeln!(
                    printable::out(),
                    "job {} for {} is over, nothing was made: {}",
                    job.id,
                    job.server,
                    over.evidence()
                )?;
            }
            return Ok(Code::Done);
        }
        if log::format() != LogFormat::Text {
            tracing::info!(message_id = JOB_DONE, "the job is done");
        }
        if self.session.verbosity != Verbosity::Quiet {
            let took = SystemTime::now().duration_since(begun).unwrap_or_default();
            let state = &finished.state;
            let object = state
                .object
                .as_ref()
                .map(|object| format!("{}, {}", object.url, object.size))
                .unwrap_or_default();
            let image = match (&state.image, job.goal) {
                (Some(image), Goal::Image) => {
                    format!("image {} ({}) in {}, from ", image.name, image.id, job.to)
                }
                _ => String::new(),
            };
            let took = clock_face(took);
            let summary = format!("{}: {image}{object}, in {took}", job.server);
            log::print_report(Level::INFO, &summary, &record(job, finished, begun), |to| {
                writeln!(to, "{summary}")
            });
        }
        Ok(Code::Done)
    }

    /// Prints what the job would do. Fails if there is an obstacle.
    async fn dry_run(&self, cloud: &Cloud, own: &OwnServer) -> CommandResult<Code> {
        let job = self.job(JobId::new(&SystemClock), &cloud.home)?;
        let names = job.names()?;
        let watch: Arc<dyn Watch> = Arc::new(snapferry_ibmcloud::vpc::LogWatch);
        let site = self.site_args.site(cloud, &job, own, &RequestContext::alone(cloud.cancel(), &watch))?;
        let preflight = plan::preflight(&job, &site).await?;
        let prunable = Holdings::of_job(&job, &site, None)
            .await
            .map_err(|fault| CommandError::from(fault).during("what would be pruned"))?
            .beyond(&job.retention, SystemTime::now());
        let pruned: Vec<String> = prunable.iter().map(ToString::to_string).collect();
        let mut out = printable::out_as(Form::of(self.args.output.json));
        if self.args.output.json {
            let plan = json!({
                "server": job.server, "from": job.from, "to": job.to, "object": site.store.url(&names.key),
                "snapshot": names.run, "volume": names.run, "volume_profile": preflight.profile, "capacity_gb": preflight.disk.capacity,
                "operating_system": preflight.disk.operating_system, "image": names.latest, "would_prune_now": pruned,
            });
            writeln!(out, "{plan}")?;
            return Ok(Code::Done);
        }
        writeln!(out, "server     {} in {}, {} GB", job.server, job.from, preflight.disk.capacity)?;
        match &job.origin {
            Origin::Server => writeln!(out, "snapshot   {}", names.run)?,
            Origin::Snapshot(named) => writeln!(out, "snapshot   {named}, as it is")?,
        }
        writeln!(out, "volume     {}, {}, on {} in {}", names.run, preflight.profile, own.name, own.zone)?;
        writeln!(out, "object     {}", site.store.url(&names.key))?;
        if job.goal == Goal::Image {
            let system = preflight.disk.operating_system.as_deref().unwrap_or("unknown");
            writeln!(out, "image      {}, {system}, then {} in {}", names.run, names.latest, job.to)?;
        }
        match pruned.is_empty() {
            true => writeln!(out, "prune      nothing of what there is now; what this run adds counts, too")?,
            false => writeln!(out, "prune      {}; what this run adds counts, too", pruned.join(", "))?,
        }
        Ok(Code::Done)
    }
}

/// Returns the whole job as JSON, for programs.
pub fn record(job: &JobSpec, finished: &Finished, begun: SystemTime) -> Value {
    let Finished { state, names, steps, warnings, over } = finished;
    let JobState { snapshot, object, image, replaced, pruned, .. } = state;
    json!({
        "job": job.id,
        "result": if matches!(over, Some(Over::Superseded(_))) { "superseded" } else { "done" },
        "over": over.as_ref().map(Over::evidence),
        "server": job.server,
        "from": job.from,
        "to": job.to,
        "begun_at": rfc3339(begun),
        "seconds": SystemTime::now().duration_since(begun).unwrap_or_default().as_secs_f64(),
        "snapshot": snapshot.as_ref().map(|snapshot| json!({
            "id": snapshot.id, "name": snapshot.name, "taken_at": snapshot.taken_at.map(rfc3339),
        })),
        "object": object,
        "manifest": names.key.manifest().as_str(),
        "image": image,
        "replaced": replaced,
        "pruned": pruned,
        "steps": steps,
        "warnings": warnings,
    })
}

fn failure(error: &JobError) -> Value {
    json!({
        "job": error.id,
        "result": "failed",
        "server": error.server,
        "step": error.step,
        "error": chain(&*error.fault),
        "retryable": error.class().is_retryable(),
        "left": error.orphaned,
        "next": (error.resumable == Resumable::Yes).then(|| format!("snapferry replicate --resume {}", error.id)),
    })
}
