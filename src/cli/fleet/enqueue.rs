//! `snapferry enqueue`: adds jobs for servers to the fleet's queue.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args as Group;
use jiff::Timestamp;
use serde_json::json;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::job::JobId;
use snapferry_fleet::queue::Priority;
use snapferry_fleet::queue::{
    Enqueued, Imported, JobRecord, JobState, MAX_NAMES, NewJob, Queue, QueueError, RedisQueue, import_legacy,
    legacy_names,
};
use snapferry_fleet::replicate::Age;

use super::servers::chosen;
use super::{Away, open, open_jobs};
use crate::cli::args::{CloudArgs, HowArgs, OutputArgs, QueueArgs, RecoveryArgs, ServersArgs};
use crate::cli::cloud::home_region;
use crate::cli::error::{CommandError, CommandResult};
use crate::cli::exit::Code;
use crate::cli::print_json;
use crate::cli::printable::{self, Form};
use crate::cli::rehearsal::would_with;
use crate::cli::replicate::job_of;
use crate::cli::session::Session;
use crate::cli::signals::Unfinished;

/// Time between two checks whether the jobs are over.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry enqueue web01 web02 db01\n  snapferry enqueue --file servers.txt --priority 9 --wait\n  snapferry enqueue --tag nightly\n  snapferry enqueue web01 --in 6h\n  snapferry enqueue --import-legacy"
)]
pub struct EnqueueArgs {
    #[command(flatten)]
    pub which: ServersArgs,

    /// Make a job of each name in this plain Redis list, as shell scripts filled it, and empty it
    #[arg(long, value_name = "LIST", num_args = 0..=1, default_missing_value = "queue", conflicts_with_all = ["servers", "file", "tag", "later", "at", "wait"])]
    pub import_legacy: Option<String>,

    /// Priority, 0 to 9; 9 goes first
    #[arg(long, default_value = "5", value_name = "0-9")]
    pub priority: Priority,

    /// Delay before the jobs may start, e.g. 6h
    #[arg(long = "in", value_name = "AGE")]
    pub later: Option<Age>,

    /// Earliest start, e.g. 2026-01-31T02:30:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "later")]
    pub at: Option<Timestamp>,

    /// Wait until all of them are over; the exit code is 5 if one is dead, and 130 if one was cancelled
    #[arg(long)]
    pub wait: bool,

    /// Print what would be queued, and change nothing
    #[arg(short = 'n', long, conflicts_with = "wait")]
    pub dry_run: bool,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub how: HowArgs,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

pub fn run(args: &EnqueueArgs, session: &Session) -> CommandResult<Code> {
    let servers = match args.import_legacy {
        Some(_) => Vec::new(),
        None => chosen(&args.which, &args.cloud, session)?,
    };
    session.start(Unfinished::Nothing)?.block_on(async {
        let home = home_region(&args.cloud).await?;
        let new = |server: &str| -> CommandResult<NewJob> {
            let job = job_of(server, &args.how, &args.recovery, JobId::new(&SystemClock), &home)?;
            Ok(NewJob {
                id: job.id,
                spec: serde_json::to_string(&job)?,
                server: job.server,
                region: job.to,
                priority: args.priority,
                wait: wait_until_due(args),
            })
        };
        let queue = open(&args.queue, &session.environment).await?;
        if let Some(list) = &args.import_legacy {
            return import(&queue, list, args, |server| new(server)).await;
        }
        // All jobs are checked before the first is added, so that a wrong name adds nothing.
        let jobs = servers.iter().map(|server| new(server)).collect::<CommandResult<Vec<NewJob>>>()?;
        if args.dry_run {
            return rehearse(&queue, jobs.into_iter().map(Ok), args.output.form()).await;
        }
        let mut watched = Vec::new();
        for job in &jobs {
            let added = queue.enqueue(job).await?;
            let (id, fresh) = match added {
                Enqueued::Added => (job.id, true),
                Enqueued::OpenAlready(id) => (id, false),
            };
            watched.push(id);
            let mut out = printable::out_as(Form::of(args.output.json));
            if args.output.json {
                writeln!(
                    out,
                    "{}",
                    json!({ "job": id, "server": job.server, "region": job.region, "added": fresh })
                )?;
            } else {
                writeln!(
                    out,
                    "{id}  {} into {}{}",
                    job.server,
                    job.region,
                    if fresh { "" } else { ", in the queue already" }
                )?;
            }
        }
        if args.wait { wait(&queue, watched, &args.output, &session.cancel).await } else { Ok(Code::Done) }
    })
}

/// Prints which jobs would be added. Each is a job, or a name that makes none, with the reason.
async fn rehearse(
    queue: &dyn Queue,
    jobs: impl IntoIterator<Item = Result<NewJob, (String, CommandError)>>,
    form: Form,
) -> CommandResult<Code> {
    let open = open_jobs(queue).await?;
    for job in jobs {
        let NewJob { server, region, .. } = match job {
            Ok(job) => job,
            Err((name, error)) => {
                let what = format_args!("put {name:?} aside, which makes no job: {error:#}");
                would_with(form, what, &json!({ "server": name, "added": false }))?;
                continue;
            }
        };
        let found = open.get(&(server.clone(), region.clone()));
        let more = json!({ "server": server, "region": region, "added": found.is_none(), "job": found });
        match found {
            None => would_with(form, format_args!("queue {server} into {region}"), &more)?,
            Some(id) => {
                let what = format_args!("leave {server} into {region}, in the queue already as job {id}");
                would_with(form, what, &more)?;
            }
        }
    }
    Ok(Code::Done)
}

/// Returns the shortest time that the jobs have to wait.
fn wait_until_due(args: &EnqueueArgs) -> Duration {
    match (args.later, args.at) {
        (Some(Age(wait)), _) => wait,
        (None, Some(at)) => SystemTime::from(at).duration_since(SystemTime::now()).unwrap_or_default(),
        (None, None) => Duration::ZERO,
    }
}

/// Makes jobs of the names in a plain Redis list.
async fn import(
    queue: &RedisQueue,
    list: &str,
    args: &EnqueueArgs,
    new: impl Fn(&str) -> CommandResult<NewJob>,
) -> CommandResult<Code> {
    if args.dry_run {
        let names = legacy_names(queue, list, MAX_NAMES).await?;
        let jobs = names.into_iter().map(|name| new(&name).map_err(|error| (name, error)));
        return rehearse(queue, jobs, args.output.form()).await;
    }
    let imported = import_legacy(queue, list, MAX_NAMES, |server| match new(server) {
        Ok(job) => Some(job),
        Err(error) => {
            tracing::warn!("{server:?} makes no job: {error:#}");
            None
        }
    })
    .await?;
    let Imported { added, open_already, refused, left } = imported;
    if args.output.json {
        print_json(&json!({
            "list": list, "added": added, "open_already": open_already, "refused": refused, "left": left,
        }))?;
    } else {
        writeln!(
            printable::out(),
            "{added} jobs from the list {list}, {open_already} were in the queue already"
        )?;
    }
    if !refused.is_empty() {
        tracing::warn!("what makes no job is kept in the list {list}:snapferry-refused");
    }
    if left > 0 {
        tracing::warn!("{left} names are left in the list {list}: run the same command again");
    }
    Ok(match (left, refused.is_empty()) {
        (0, true) => Code::Done,
        (0, false) => Code::Usage,
        _ => Code::Queue,
    })
}

/// Waits until all jobs are over. Interrupting the wait stops no job.
async fn wait(
    queue: &dyn Queue,
    mut open: Vec<JobId>,
    output: &OutputArgs,
    cancel: &Cancel,
) -> CommandResult<Code> {
    let (mut code, mut outage) = (Code::Done, Away::default());
    while !open.is_empty() {
        let mut still = Vec::new();
        for id in open {
            let job = match queue.job(id).await {
                Ok(job) => job.ok_or(QueueError::NoSuchJob { id })?,
                Err(error) if outage.should_retry(&error) => {
                    still.push(id);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            outage.reset();
            if !job.state.is_over() {
                still.push(id);
                continue;
            }
            let mut out = printable::out_as(Form::of(output.json));
            if output.json {
                let ended = json!({ "job": id, "server": job.server, "region": job.region, "state": job.state, "error": job.error });
                writeln!(out, "{ended}")?;
            } else {
                writeln!(out, "{id}  {} into {}: {}", job.server, job.region, ending(&job))?;
            }
            code = worse(code, job.state);
        }
        open = still;
        if open.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            _reason = cancel.cancelled() => {
                tracing::warn!("not waiting any longer; the jobs go on: `snapferry jobs list`");
                return Ok(Code::Interrupted);
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    Ok(code)
}

/// Returns the exit code after one more job has ended in `state`.
fn worse(code: Code, state: JobState) -> Code {
    match (code, state) {
        (code, JobState::Done) => code,
        (Code::Done, JobState::Cancelled) => Code::Interrupted,
        (code, JobState::Cancelled) => code,
        _ => Code::Cloud,
    }
}

fn ending(job: &JobRecord) -> String {
    match &job.error {
        // The hint is in a line of its own, which is indented.
        Some(error) if job.state != JobState::Done => {
            format!("{}: {}", job.state, error.replace('\n', "\n  "))
        }
        _ => job.state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_job_is_worse_than_a_cancelled_one() {
        let code = |states: &[JobState]| states.iter().fold(Code::Done, |code, &state| worse(code, state));
        assert_eq!(code(&[JobState::Done, JobState::Done]), Code::Done);
        assert_eq!(code(&[JobState::Done, JobState::Cancelled, JobState::Done]), Code::Interrupted);
        assert_eq!(code(&[JobState::Cancelled, JobState::Dead, JobState::Cancelled]), Code::Cloud);
    }
}
