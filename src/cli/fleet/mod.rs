//! The fleet: servers are enqueued in one place and replicated by any worker that is free.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use snapferry_base::job::JobId;
use snapferry_base::retry::{Class, chain};
use snapferry_base::secret::Secret;
use snapferry_fleet::queue::examine::{Finding, ask, judge};
use snapferry_fleet::queue::{JobState, LastSuccess, Queue, QueueError, RedisConfig, RedisQueue, Timing};
use snapferry_fleet::replicate::Age;

use crate::cli::args::QueueArgs;
use crate::cli::environment::Environment;
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::session::Session;

mod change;
pub mod enqueue;
mod follow;
pub mod jobs;
pub mod metrics;
mod notify;
pub mod schedule;
mod sent;
mod servers;
pub mod status;
pub mod worker;

/// Longest outage of the queue that a watching command bears: longer than a restart or a failover takes.
const AWAY: Duration = Duration::from_secs(600);

/// Outage of the queue: the time since which it has not answered, if there is one.
#[derive(Default)]
struct Away(Option<Instant>);

impl Away {
    /// Returns true if the caller is to try again after `error`: it is transient, and the outage is not too
    /// long.
    fn should_retry(&mut self, error: &QueueError) -> bool {
        if self.0.is_none() && error.class() == Class::Transient {
            tracing::warn!("looking again for {} s: {}", AWAY.as_secs(), chain(error));
        }
        error.class() == Class::Transient && self.0.get_or_insert_with(Instant::now).elapsed() < AWAY
    }

    /// Ends the outage, because the queue has answered.
    fn reset(&mut self) {
        self.0 = None;
    }
}

/// Returns the times of a lease. If the user gave its length, the others are in proportion to it.
fn timing(args: &QueueArgs) -> Timing {
    let defaults = Timing::default();
    match args.lease {
        Some(Age(lease)) => {
            Timing { lease, beat: lease / 6, stop: lease * 3 / 4, retry: lease / 2, ..defaults }
        }
        None => defaults,
    }
}

/// Connects to the queue, and runs `work` on it.
fn on_queue(
    args: &QueueArgs,
    session: &Session,
    work: impl AsyncFnOnce(&RedisQueue) -> CommandResult<()>,
) -> CommandResult<Code> {
    session.runtime()?.block_on(async {
        let queue = open(args, &session.environment).await?;
        work(&queue).await
    })?;
    Ok(Code::Done)
}

/// Connects to the queue that the user named.
pub async fn open(args: &QueueArgs, environment: &Environment) -> CommandResult<RedisQueue> {
    Ok(RedisQueue::connect(&config(args, environment)?).await?)
}

/// Returns the open jobs by server and region, each of which has at most one.
async fn open_jobs(queue: &dyn Queue) -> Result<BTreeMap<(String, String), JobId>, QueueError> {
    let open: Vec<JobState> = JobState::ALL.into_iter().filter(|state| !state.is_over()).collect();
    let jobs = queue.jobs_in(&open, usize::MAX).await?;
    Ok(jobs.into_iter().map(|job| ((job.server, job.region), job.id)).collect())
}

/// Checks whether the queue's Redis is fit to keep jobs.
pub async fn examine(args: &QueueArgs, environment: &Environment) -> CommandResult<Vec<Finding>> {
    let config = config(args, environment)?;
    let server_info = ask(&config).await?;
    // A socket on this machine needs no TLS.
    let is_private = config.url.starts_with("rediss:") || config.url.starts_with("unix:");
    Ok(judge(&server_info, is_private, &config.timing, SystemTime::now()))
}

/// Returns the time of the snapshot in a server's last good image, or the time of the success if the result
/// does not contain the snapshot's time.
fn snapshot_time(success: &LastSuccess) -> SystemTime {
    let result: Value = serde_json::from_str(&success.result).unwrap_or_default();
    let taken = result["snapshot"]["taken_at"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    taken.map_or(success.at, SystemTime::from)
}

/// Returns the address of the queue and the credentials for it.
fn config(args: &QueueArgs, environment: &Environment) -> Result<RedisConfig, UsageError> {
    let url = args
        .redis
        .clone()
        .ok_or_else(|| UsageError("which Redis keeps the jobs? Give --redis URL".into()))?;
    // File that systemd provides with LoadCredential=redis-password:...
    let of_systemd =
        environment.get("CREDENTIALS_DIRECTORY").map(|folder| Path::new(folder).join("redis-password"));
    let file = args.redis_password_file.clone().or_else(|| of_systemd.filter(|path| path.exists()));
    let password = match (environment.get("SNAPFERRY_REDIS_PASSWORD"), file) {
        (Some(password), None) => Some(Secret::new(password)),
        (_, Some(path)) => {
            let text = snapferry_base::user_file::read_text(&path).map_err(|error| {
                UsageError(format!("cannot read the password file {}: {error}", path.display()))
            })?;
            Some(Secret::new(text.trim_end()))
        }
        (None, None) => None,
    };
    Ok(RedisConfig {
        url,
        user: args.redis_user.clone(),
        password,
        ca_file: args.redis_ca_file.clone(),
        prefix: args.redis_prefix.clone(),
        timing: timing(args),
    })
}
