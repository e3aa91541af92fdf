//! What was typed, for the fleet: `enqueue`, `worker`, `jobs`, `status`, `schedule`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as Group, Subcommand};
use jiff::Timestamp;

use crate::cli::cloud::args::{CloudArgs, OutputArgs, RecoveryArgs};
use crate::cli::replicate::args::{HowArgs, PlaceArgs};
use crate::job::JobId;
use crate::queue::{JobState, Priority};
use crate::vpc::Tag;
use crate::worker::Age;

/// Where the fleet's queue is.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// The Redis that keeps the jobs: redis://HOST:PORT, rediss:// with TLS, unix:///SOCKET; the password comes from
    /// SNAPFERRY_REDIS_PASSWORD or --redis-password-file
    #[arg(long, value_name = "URL")]
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

    /// Prefix of all keys, where several fleets share a Redis [default: snapferry]
    #[arg(long, value_name = "NAME")]
    pub redis_prefix: Option<String>,

    /// How long a lease lasts; all workers of a fleet must have the same
    #[arg(long, value_name = "AGE", hide = true)]
    pub lease: Option<Age>,
}

/// Which servers.
#[derive(Clone, Debug, Group)]
pub struct ServersArgs {
    /// The servers
    #[arg(value_name = "SERVER")]
    pub servers: Vec<String>,

    /// File with more servers, one per line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// All servers of the region that have this user tag now
    #[arg(long, value_name = "TAG")]
    pub tag: Option<Tag>,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry enqueue web01 web02 db01\n  snapferry enqueue --file servers.txt --priority 9 --wait\n  snapferry enqueue --tag nightly\n  snapferry enqueue web01 --in 6h\n  snapferry enqueue --import-legacy"
)]
pub struct EnqueueArgs {
    #[command(flatten)]
    pub which: ServersArgs,

    /// Make a job of each name in this plain Redis list, as shell scripts filled it, and empty it
    #[arg(long, value_name = "LIST", num_args = 0..=1, default_missing_value = "queue", conflicts_with_all = ["servers", "file", "tag", "later", "at", "wait", "json"])]
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

    /// Wait until all of them are over; the exit code is 5 where one is dead, and 130 where one was cancelled
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
    after_help = "Examples:\n  snapferry worker\n  snapferry worker --concurrency 3\n\nSIGTERM: nothing more is claimed, what is being converted comes to its end, and then everything is given back; another worker goes on with it."
)]
pub struct WorkerArgs {
    /// Conversions at once, each with a volume attached; jobs that only wait for the cloud do not count
    #[arg(long, default_value = "2", value_name = "N")]
    pub concurrency: NonZeroUsize,

    /// On SIGTERM, how long conversions may continue before they are given back unfinished
    #[arg(long, default_value = "14m", value_name = "AGE")]
    pub stop_within: Age,

    /// How long jobs that are over are remembered
    #[arg(long, default_value = "30d", value_name = "AGE")]
    pub keep_jobs: Age,

    /// Address that serves /metrics, /healthz and /readyz, or off
    #[arg(long, default_value = "127.0.0.1:9419", value_name = "ADDRESS|off")]
    pub metrics: MetricsAddress,

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
    /// List jobs: running, waiting, and most recently finished
    List {
        /// Only in this state: ready, delayed, running, done, dead or cancelled
        #[arg(long, value_name = "STATE")]
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
        /// The job
        #[arg(value_name = "JOB")]
        job: JobId,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Show the events of all jobs, or of one
    Logs {
        /// The job
        #[arg(value_name = "JOB")]
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
    /// Cancel jobs: at once where they wait; where they run, their worker removes what they made
    Cancel {
        /// The jobs
        #[arg(value_name = "JOB", required = true)]
        jobs: Vec<JobId>,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Queue dead or cancelled jobs again
    Retry {
        /// The jobs
        #[arg(value_name = "JOB", required = true)]
        jobs: Vec<JobId>,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Delete the records of jobs that finished long ago
    Purge {
        /// Minimum time since they finished
        #[arg(long, default_value = "30d", value_name = "AGE")]
        older_than: Age,

        #[command(flatten)]
        queue: QueueArgs,
    },
}

/// Where a worker is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    At(SocketAddr),
    Off,
}

impl FromStr for MetricsAddress {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        if typed == "off" {
            return Ok(Self::Off);
        }
        typed.parse().map(Self::At).map_err(|_| format!("{typed:?} is no address: give one as in 127.0.0.1:9419, or off"))
    }
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry status\n  snapferry status --check --max-age 26h\n  snapferry status --forget web07\n\nWith --check: exit code 0 where every image is young enough, 8 where one is not, 6 where the queue can't be asked."
)]
pub struct StatusArgs {
    /// Exit with 8 if an image is older than --max-age, or was never made
    #[arg(long)]
    pub check: bool,

    /// Maximum allowed age
    #[arg(long, default_value = "26h", value_name = "AGE")]
    pub max_age: Age,

    /// Only these servers
    #[arg(value_name = "SERVER")]
    pub servers: Vec<String>,

    /// Forget these servers, which are no more: their last image, and their jobs that are dead
    #[arg(long, requires = "servers", conflicts_with_all = ["check", "json"])]
    pub forget: bool,

    /// Forget them for this region alone
    #[arg(long, value_name = "REGION", requires = "forget")]
    pub to: Option<String>,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub queue: QueueArgs,
}

#[derive(Debug, Group)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    pub action: ScheduleAction,
}

#[derive(Debug, Subcommand)]
pub enum ScheduleAction {
    /// List schedules, when they were last due and will be next
    List {
        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Add a schedule, or replace the one of that name; workers carry it out
    #[command(
        after_help = "Examples:\n  snapferry schedule add nightly --cron '30 2 * * *' web01 web02 db01\n  snapferry schedule add weekly --cron '0 4 * * 0' --file servers.txt --priority 3"
    )]
    Add(Box<ScheduleAddArgs>),
    /// Remove schedules; jobs they have added stay
    Rm {
        /// Their names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,

        #[command(flatten)]
        queue: QueueArgs,
    },
}

#[derive(Debug, Group)]
pub struct ScheduleAddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// When: minute, hour, day, month, weekday, in UTC, see cron(5)
    #[arg(long, value_name = "FIELDS")]
    pub cron: String,

    #[command(flatten)]
    pub which: ServersArgs,

    /// Priority, 0 to 9; 9 goes first
    #[arg(long, default_value = "5", value_name = "0-9")]
    pub priority: Priority,

    #[command(flatten)]
    pub how: HowArgs,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}
