//! The fleet: servers are enqueued in one place and replicated by whichever worker is free.

use crate::cli::credentials::Environment;
use crate::cli::exit::UsageError;
use crate::queue::{RedisConfig, RedisQueue, Timing};
use crate::secret::Secret;
use crate::worker::Age;
use args::QueueArgs;

pub mod args;
pub mod enqueue;
pub mod jobs;
pub mod worker;

/// How leases are timed: all parts in proportion where the whole was given.
fn timing(args: &QueueArgs) -> Timing {
    let usual = Timing::default();
    match args.lease {
        Some(Age(lease)) => Timing { lease, beat: lease / 6, stop: lease * 3 / 4, ..usual },
        None => usual,
    }
}

/// The queue, connected.
async fn open(args: &QueueArgs) -> anyhow::Result<RedisQueue> {
    let url = args.redis.clone().ok_or_else(|| UsageError("which Redis keeps the jobs? Give --redis URL".into()))?;
    let password = match &args.redis_password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| UsageError(format!("cannot read the password file {}: {error}", path.display())))?;
            Some(Secret::new(text.trim_end()))
        }
        None => Environment::of_process().get("SNAPFERRY_REDIS_PASSWORD").map(Secret::new),
    };
    let config = RedisConfig {
        url,
        user: args.redis_user.clone(),
        password,
        ca_file: args.redis_ca_file.clone(),
        prefix: args.redis_prefix.clone(),
        timing: timing(args),
    };
    Ok(RedisQueue::connect(&config).await?)
}
