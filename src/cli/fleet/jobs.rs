//! `snapferry jobs`: lists, shows and changes the jobs in the fleet's queue.

use std::io::Write as _;
use std::time::SystemTime;

use clap::{Args as Group, Subcommand};
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};
use snapferry_base::clock::rfc3339;
use snapferry_base::job::JobId;
use snapferry_base::units::to_u64;
use snapferry_fleet::queue::{EVENTS_KEPT, JobRecord, JobState, Queue, QueueError};
use snapferry_fleet::replicate::Age;

use super::sent::Sent;
use super::{change, follow, on_queue};
use crate::cli::args::{ConsentArgs, OutputArgs, QueueArgs, RehearsalArgs};
use crate::cli::completions::names;
use crate::cli::consent::Consent;
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::print_json;
use crate::cli::printable::{self, LONGEST_SHOWN, cut, padded};
use crate::cli::session::Session;
use crate::cli::table::{self, Table};
use crate::cli::values;

/// Jobs of each state that are listed at most without `--json`.
const LISTED: usize = 20;

#[derive(Debug, Group)]
pub struct JobsArgs {
    #[command(subcommand)]
    pub action: JobsAction,
}

#[derive(Debug, Subcommand)]
pub enum JobsAction {
    /// List jobs: running, waiting, and most recently finished
    #[command(visible_alias = "ls")]
    List {
        /// Only in this state
        #[arg(long, value_name = "STATE", value_parser = values::states())]
        state: Option<JobState>,

        /// At most so many of each state [default: 20, and all with --json]
        #[arg(long, value_name = "N")]
        most: Option<usize>,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Show everything known about a job
    Show {
        /// Id of the job
        #[arg(value_name = "JOB", add = ArgValueCompleter::new(names::jobs))]
        job: JobId,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Show the events of all jobs, or of one
    Logs {
        /// Id of the job
        #[arg(value_name = "JOB", add = ArgValueCompleter::new(names::jobs))]
        job: Option<JobId>,

        /// Keep printing new events
        #[arg(short, long)]
        follow: bool,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Watch jobs: what runs and how far it is, what waits, which workers there are
    Watch {
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Cancel jobs: at once if they wait; if they run, their worker removes what they made
    Cancel {
        /// Ids of the jobs
        #[arg(value_name = "JOB", required = true, add = ArgValueCompleter::new(names::open_jobs))]
        jobs: Vec<JobId>,

        #[command(flatten)]
        rehearsal: RehearsalArgs,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Queue dead or cancelled jobs again
    Retry {
        /// Ids of the jobs
        #[arg(value_name = "JOB", required = true, add = ArgValueCompleter::new(names::ended_jobs))]
        jobs: Vec<JobId>,

        #[command(flatten)]
        rehearsal: RehearsalArgs,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Delete the records of jobs that finished long ago
    Purge {
        /// Minimum time since they finished
        #[arg(long, default_value = "30d", value_name = "AGE")]
        older_than: Age,

        #[command(flatten)]
        rehearsal: RehearsalArgs,

        #[command(flatten)]
        consent: ConsentArgs,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
}

pub fn run(args: &JobsArgs, session: &Session) -> CommandResult<Code> {
    match &args.action {
        JobsAction::List { state, most, output, queue } => on_queue(queue, session, async |queue| {
            let states = state.map_or_else(|| JobState::ALL.to_vec(), |state| vec![state]);
            let most = most.unwrap_or(if output.json { usize::MAX } else { LISTED });
            let jobs = queue.jobs_in(&states, most).await?;
            if output.json {
                print_json(&jobs.iter().map(job_json).collect::<Value>())?;
                return Ok(());
            }
            let mut table =
                Table::new(&["job", "server", "region", "state", "step", "since", "worker", "error"]);
            for job in &jobs {
                table.row(vec![
                    job.id.to_string(),
                    job.server.clone(),
                    job.region.clone(),
                    job.state.to_string(),
                    if job.state == JobState::Running {
                        at(job)
                    } else {
                        job.step.clone().unwrap_or_default()
                    },
                    rfc3339(job.changed_at),
                    job.worker.clone().unwrap_or_default(),
                    job.error.clone().unwrap_or_default(),
                ]);
            }
            table.print("no jobs", session.verbosity)?;
            let counts = queue.counts().await?;
            let cut: Vec<&str> = states
                .iter()
                .filter(|&&state| counts.of(state) > to_u64(most))
                .map(|state| state.name())
                .collect();
            if !cut.is_empty() {
                tracing::warn!("there are more jobs that are {}: --most N shows them", cut.join(", "));
            }
            Ok(())
        }),
        JobsAction::Show { job, output, queue } => on_queue(queue, session, async |queue| {
            let found = queue.job(*job).await?.ok_or(QueueError::NoSuchJob { id: *job })?;
            let events: Vec<_> =
                queue.events(EVENTS_KEPT).await?.into_iter().filter(|event| event.id == *job).collect();
            if output.json {
                let mut all = job_json(&found);
                all["spec"] = serde_json::from_str(&found.spec).unwrap_or_default();
                if all["spec"].is_object() {
                    // Everywhere else the job's id is in `job`; its `id` is deprecated.
                    all["spec"]["job"] = json!(found.id);
                }
                all["journal"] = found
                    .journal
                    .as_deref()
                    .and_then(|text| serde_json::from_str(text).ok())
                    .unwrap_or_default();
                all["events"] = events
                    .iter()
                    .map(|event| json!({ "at": rfc3339(event.at), "what": event.what, "details": event.details }))
                    .collect();
                print_json(&all)?;
                return Ok(());
            }
            let mut out = printable::out();
            let sent = found.result.as_deref().and_then(Sent::of_result);
            let pairs = [
                ("job", found.id.to_string()),
                ("server", format!("{} into {}", found.server, found.region)),
                ("state", format!("{} since {}", found.state, rfc3339(found.changed_at))),
                ("step", found.step.clone().unwrap_or_default()),
                ("worker", found.worker.clone().unwrap_or_default()),
                ("claimed", format!("{} times, {} attempts failed", found.deliveries, found.attempts)),
                ("error", found.error.clone().unwrap_or_default()),
                ("base", sent.map(|sent| sent.long()).unwrap_or_default()),
            ];
            table::pairs(&pairs, &mut out)?;
            for event in &events {
                let (what, details) =
                    (cut(&event.what, LONGEST_SHOWN), cut(table::first_line(&event.details), LONGEST_SHOWN));
                writeln!(out, "  {}  {} {details}", rfc3339(event.at), padded(&what, 10))?;
            }
            Ok(())
        }),
        JobsAction::Logs { job, follow, output, queue } => {
            follow::logs(*job, *follow, output.json, queue, session)
        }
        JobsAction::Watch { queue } => follow::watch(queue, session),
        JobsAction::Cancel { jobs, rehearsal, output, queue } => {
            change::cancel(jobs, *rehearsal, *output, queue, session)
        }
        JobsAction::Retry { jobs, rehearsal, output, queue } => {
            change::retry(jobs, *rehearsal, *output, queue, session)
        }
        JobsAction::Purge { older_than, rehearsal, consent, output, queue } => {
            let consent = Consent::of(*consent, session)?;
            change::purge(*older_than, *rehearsal, consent, *output, queue, session)
        }
    }
}

/// Returns the step of a running job, with the percentage if it is known; for any other job, its state.
pub fn at(job: &JobRecord) -> String {
    let step = job.step.as_deref().unwrap_or("begins");
    let progress: Value =
        job.progress.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match (job.state, progress["bytes"].as_u64(), progress["of"].as_u64()) {
        (JobState::Running, Some(done), Some(all)) if all > 0 => {
            format!(
                "{} {} %",
                progress["step"].as_str().unwrap_or(step),
                u128::from(done) * 100 / u128::from(all)
            )
        }
        (JobState::Running, ..) => step.to_owned(),
        (state, ..) => state.to_string(),
    }
}

/// Returns a job as `--json` prints it.
fn job_json(job: &JobRecord) -> Value {
    let parsed =
        |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({
        "job": job.id,
        "server": job.server,
        "region": job.region,
        "state": job.state,
        "priority": job.priority,
        "step": job.step,
        "progress": parsed(&job.progress),
        "worker": job.worker,
        "deliveries": job.deliveries,
        "attempts": job.attempts,
        "error": job.error,
        "result": parsed(&job.result),
        "cancelling": job.cancel,
        "added_at": rfc3339(job.added_at),
        "changed_at": rfc3339(job.changed_at),
        "age_seconds": SystemTime::now().duration_since(job.changed_at).unwrap_or_default().as_secs(),
    })
}
