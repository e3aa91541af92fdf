//! `snapferry enqueue`: servers into the fleet's queue.

use std::io::{Write as _, stdout};
use std::time::Duration;

use serde_json::json;

use super::args::EnqueueArgs;
use super::open;
use crate::cancel::Cancel;
use crate::cli::cloud::home_region;
use crate::cli::exit::{Code, UsageError};
use crate::cli::replicate::job_of;
use crate::cli::signals::{self, Left};
use crate::clock::SystemClock;
use crate::job::JobId;
use crate::queue::{Enqueued, Job, JobState, NewJob, Queue, QueueError};
use crate::worker::Age;

/// How often is looked whether the jobs are over.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(args: &EnqueueArgs) -> anyhow::Result<Code> {
    let servers = servers(args)?;
    let runtime = crate::cli::runtime()?;
    let cancel = Cancel::new();
    signals::listen(runtime.handle(), &cancel, Left::Nothing)?;
    runtime.block_on(async {
        let home = home_region(&args.cloud).await?;
        // All are checked before the first is added: a name that makes no sense adds nothing.
        let mut jobs = Vec::new();
        for server in &servers {
            let job = job_of(server, &args.how, &args.recovery, JobId::new(&SystemClock), &home)?;
            jobs.push(NewJob {
                id: job.id,
                server: job.server.clone(),
                region: job.to.clone(),
                spec: serde_json::to_string(&job)?,
                priority: args.priority,
                wait: args.later.map_or(Duration::ZERO, |Age(wait)| wait),
            });
        }
        let queue = open(&args.queue).await?;
        let mut watched = Vec::new();
        for job in &jobs {
            let added = queue.enqueue(job).await?;
            let (id, fresh) = match added {
                Enqueued::Added => (job.id, true),
                Enqueued::OpenAlready(id) => (id, false),
            };
            watched.push(id);
            let mut out = stdout().lock();
            if args.output.json {
                writeln!(out, "{}", json!({ "job": id, "server": job.server, "region": job.region, "added": fresh }))?;
            } else {
                writeln!(out, "{id}  {} into {}{}", job.server, job.region, if fresh { "" } else { ", in the queue already" })?;
            }
        }
        if args.wait { wait(&queue, watched, &cancel).await } else { Ok(Code::Done) }
    })
}

fn servers(args: &EnqueueArgs) -> anyhow::Result<Vec<String>> {
    let mut servers = args.servers.clone();
    if let Some(path) = &args.file {
        let text = std::fs::read_to_string(path).map_err(|error| UsageError(format!("cannot read {}: {error}", path.display())))?;
        let names = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|name| !name.is_empty());
        servers.extend(names.map(str::to_owned));
    }
    let mut seen = std::collections::BTreeSet::new();
    servers.retain(|server| seen.insert(server.clone()));
    if servers.is_empty() {
        return Err(UsageError("there are no servers in the file".into()).into());
    }
    Ok(servers)
}

/// Waits until all are over. That somebody stops waiting stops no job.
async fn wait(queue: &dyn Queue, mut open: Vec<JobId>, cancel: &Cancel) -> anyhow::Result<Code> {
    let mut code = Code::Done;
    while !open.is_empty() {
        let mut still = Vec::new();
        for id in open {
            let Some(job) = queue.job(id).await? else { return Err(QueueError::NoSuchJob { id }.into()) };
            if !job.state.is_over() {
                still.push(id);
                continue;
            }
            writeln!(stdout().lock(), "{id}  {} into {}: {}", job.server, job.region, ending(&job))?;
            if job.state != JobState::Done {
                code = Code::Cloud;
            }
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

fn ending(job: &Job) -> String {
    match &job.error {
        Some(error) if job.state != JobState::Done => format!("{}: {error}", job.state),
        _ => job.state.to_string(),
    }
}
