//! What was typed, for the fleet: `enqueue`, `worker`, `jobs`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args as Group, Subcommand};

use crate::cli::cloud::args::{CloudArgs, OutputArgs, RecoveryArgs};
use crate::cli::replicate::args::{HowArgs, PlaceArgs};
use crate::job::JobId;
use crate::queue::{JobState, Priority};
use crate::worker::Age;

/// Where the fleet's queue is.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// The Redis that keeps the jobs: redis://HOST:PORT, rediss:// with TLS, unix:///SOCKET; the password comes from
    /// SNAPFERRY_REDIS_PASSWORD or --redis-password-file
    #[arg(long, value_name = "URL", required = true)]
    pub redis: Option<String>,

    /// The user's name, where Redis has users
    #[arg(long, value_name = "NAME")]
    pub redis_user: Option<String>,

    /// A file with the password
    #[arg(long, value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,

    /// A private certificate authority that signed Redis' certificate
    #[arg(long, value_name = "PEM")]
    pub redis_ca_file: Option<PathBuf>,

    /// What all keys begin with, where several fleets share a server [default: snapferry]
    #[arg(long, value_name = "NAME")]
    pub redis_prefix: Option<String>,

    /// How long a lease lasts; all workers of a fleet must have the same
    #[arg(long, value_name = "AGE", hide = true)]
    pub lease: Option<Age>,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry enqueue web01 web02 db01\n  snapferry enqueue --file servers.txt --priority 9 --wait\n  snapferry enqueue web01 --in 6h"
)]
pub struct EnqueueArgs {
    /// The servers
    #[arg(value_name = "SERVER", required_unless_present = "file")]
    pub servers: Vec<String>,

    /// More servers, one a line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Who goes first: 9 before 0
    #[arg(long, default_value = "5", value_name = "0-9")]
    pub priority: Priority,

    /// Not before so long from now, as in 6h
    #[arg(long = "in", value_name = "AGE")]
    pub later: Option<Age>,

    /// Wait until all of them are over; the exit code is that of the worst
    #[arg(long)]
    pub wait: bool,

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

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry worker\n  snapferry worker --concurrency 3\n\nSIGTERM: nothing more is claimed, what is being worked on is cleaned up after and given back; another worker goes on with it."
)]
pub struct WorkerArgs {
    /// Jobs at once; a server takes 12 volumes at most
    #[arg(long, default_value = "2", value_name = "N")]
    pub concurrency: NonZeroUsize,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

#[derive(Debug, Group)]
pub struct JobsArgs {
    #[command(subcommand)]
    pub action: JobsAction,
}

#[derive(Debug, Subcommand)]
pub enum JobsAction {
    /// List jobs: those that run, that wait, and that were over last
    List {
        /// Only in this state
        #[arg(long, value_name = "STATE")]
        state: Option<JobState>,

        /// At most so many of each state
        #[arg(long, default_value = "20", value_name = "N")]
        most: usize,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Show all that is known of a job
    Show {
        /// The job
        #[arg(value_name = "JOB")]
        job: JobId,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Cancel jobs: at once where they wait; where they run, their worker removes what they made
    Cancel {
        /// The jobs
        #[arg(value_name = "JOB", required = true)]
        jobs: Vec<JobId>,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Ready jobs once more that are dead or cancelled
    Retry {
        /// The jobs
        #[arg(value_name = "JOB", required = true)]
        jobs: Vec<JobId>,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Forget jobs that have been over for long
    Purge {
        /// For so long
        #[arg(long, default_value = "30d", value_name = "AGE")]
        older_than: Age,

        #[command(flatten)]
        queue: QueueArgs,
    },
}
