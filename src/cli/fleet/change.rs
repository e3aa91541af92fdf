//! `snapferry jobs cancel`, `jobs retry` and `jobs purge`: changes to jobs in the fleet's queue.

use std::io::Write as _;
use std::time::Duration;

use serde_json::json;
use snapferry_base::job::JobId;
use snapferry_fleet::queue::{JobRecord, JobState, Queue, QueueError};
use snapferry_fleet::replicate::Age;

use super::on_queue;
use crate::cli::args::{OutputArgs, QueueArgs, RehearsalArgs};
use crate::cli::consent::{Consent, Unasked};
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::print_json;
use crate::cli::printable;
use crate::cli::rehearsal::would_with;
use crate::cli::session::Session;

/// States of a job that is over, which `jobs purge` looks at.
const OVER: [JobState; 3] = [JobState::Done, JobState::Dead, JobState::Cancelled];

async fn found(queue: &dyn Queue, id: JobId) -> Result<JobRecord, QueueError> {
    queue.job(id).await?.ok_or(QueueError::NoSuchJob { id })
}

/// Prints the result for one job.
fn print(output: OutputArgs, id: JobId, state: JobState, text: &str) -> CommandResult<()> {
    if output.json {
        return print_json(&json!({ "job": id, "state": state, "outcome": text }));
    }
    Ok(writeln!(printable::out(), "{id}  {text}")?)
}

/// Describes the effect of a cancellation on a job that is in this state after it.
fn effect(id: JobId, state: JobState) -> String {
    match state {
        JobState::Ready => "a worker is told, and removes what was made".to_owned(),
        JobState::Running => "its worker is told, and removes what it made".to_owned(),
        JobState::Dead => format!(
            "dead already, and nothing was removed: `snapferry gc` removes what it left, or `snapferry jobs retry {id}` and then \
             cancel"
        ),
        JobState::Done => "done already".to_owned(),
        state => state.to_string(),
    }
}

pub fn cancel(
    jobs: &[JobId],
    rehearsal: RehearsalArgs,
    output: OutputArgs,
    queue: &QueueArgs,
    session: &Session,
) -> CommandResult<Code> {
    on_queue(queue, session, async |queue| {
        for &id in jobs {
            if !rehearsal.dry_run {
                let state = queue.cancel(id).await?;
                print(output, id, state, &effect(id, state))?;
                continue;
            }
            let job = found(queue, id).await?;
            let (server, region, state) = (&job.server, &job.region, job.state);
            let more = json!({ "job": id, "state": state });
            if state.is_over() {
                let what = format_args!("leave job {id} as it is: {state} already");
                would_with(output.form(), what, &more)?;
            } else {
                let what = format_args!("cancel job {id} for {server} into {region}, which is {state}");
                would_with(output.form(), what, &more)?;
            }
        }
        Ok(())
    })
}

pub fn retry(
    jobs: &[JobId],
    rehearsal: RehearsalArgs,
    output: OutputArgs,
    queue: &QueueArgs,
    session: &Session,
) -> CommandResult<Code> {
    on_queue(queue, session, async |queue| {
        for &id in jobs {
            if !rehearsal.dry_run {
                queue.retry(id).await?;
                print(output, id, JobState::Ready, "ready")?;
                continue;
            }
            let job = found(queue, id).await?;
            check_retry(queue, &job).await?;
            let (server, region, state) = (&job.server, &job.region, job.state);
            let what = format_args!("queue job {id} for {server} into {region} again, which is {state}");
            would_with(output.form(), what, &json!({ "job": id, "state": state }))?;
        }
        Ok(())
    })
}

/// Checks as the queue does whether a job can be queued again.
async fn check_retry(queue: &dyn Queue, job: &JobRecord) -> Result<(), QueueError> {
    if !matches!(job.state, JobState::Dead | JobState::Cancelled) {
        return Err(QueueError::WrongState { id: job.id, state: job.state });
    }
    match super::open_jobs(queue).await?.get(&(job.server.clone(), job.region.clone())) {
        Some(&other) => Err(QueueError::Duplicate { other }),
        None => Ok(()),
    }
}

pub fn purge(
    older_than: Age,
    rehearsal: RehearsalArgs,
    consent: Consent,
    output: OutputArgs,
    queue: &QueueArgs,
    session: &Session,
) -> CommandResult<Code> {
    let Age(age) = older_than;
    on_queue(queue, session, async |queue| {
        // The jobs are counted only for the user: there may be very many.
        if rehearsal.dry_run || consent.is_asked(session) {
            let old = old_jobs(queue, age).await?;
            let plural = if old == 1 { "" } else { "s" };
            let what = format!("forget {old} job{plural} that ended more than {older_than} ago");
            if rehearsal.dry_run {
                return would_with(output.form(), format_args!("{what}"), &json!({ "jobs": old }));
            }
            if old > 1 {
                consent.ask(session, Unasked::GoOn, &what)?;
            }
        }
        let purged = queue.purge(age).await?;
        if output.json {
            return print_json(&json!({ "purged": purged }));
        }
        Ok(writeln!(printable::out(), "{purged} jobs forgotten")?)
    })
}

/// Counts the jobs that have been over for longer than `age`.
async fn old_jobs(queue: &dyn Queue, age: Duration) -> Result<usize, QueueError> {
    let now = queue.now().await?;
    let is_old = |job: &&JobRecord| now.duration_since(job.changed_at).is_ok_and(|over_for| over_for > age);
    Ok(queue.jobs_in(&OVER, usize::MAX).await?.iter().filter(is_old).count())
}
