//! Queue of jobs that wait for a worker: on Redis for several machines, in memory for one process.
//!
//! A worker holds a job under a *lease* with a random token, and sends that token with every request about
//! the job. Once the lease has expired and another worker has the job, the old token is refused. All times
//! are times of the queue's own clock, never of a worker's clock.
//!
//! ```text
//!           enqueue            claim                finish
//!   ─▶ delayed ──due──▶ ready ───────▶ running ───────────────▶ done
//!         ▲               ▲   ◀─release──┤ │ └─permanent failure─▶ dead ──retry──▶ ready
//!         └───── fail ────┼──────────────┘ │      ▲
//!                         └─lease expired──┴──────┘ third time without progress      cancel ─▶ cancelled
//! ```
//!
//! | file | content |
//! |---|---|
//! | `job` | the job, its states, and other records of the queue |
//! | `memory` | the queue in one process, on any clock: the rules in Rust |
//! | `redis`, `lua/` | the queue on Redis: the same rules, one script for each change |
//! | `connection` | connection to Redis, and classes of its errors |
//! | `legacy` | import of the plain list of names that was used before |
//! | `rights` | rights that the Redis user needs |
//! | `text` | conversion of values from Redis, which may hold any bytes |
//! | `examine` | checks that a Redis server is fit to keep jobs |
//!
//! Both queues pass the same test suite, and a model test compares them with each other.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use snapferry_base::job::JobId;
use snapferry_base::retry::Class;

mod connection;
pub mod examine;
mod job;
mod legacy;
mod memory;
mod redis;
pub mod rights;
mod text;

pub use connection::RedisConfig;
pub use job::{
    CatchUp, Counts, Delivered, Enqueued, GcSurvey, JobRecord, JobState, LastSuccess, NewJob, Priority,
    QueueEvent, Reaped, Schedule, WorkerSeen,
};
pub use legacy::{Imported, MAX_NAMES, import_legacy, legacy_names};
pub use memory::MemoryQueue;
pub use redis::RedisQueue;

/// Version of the data format in Redis. A queue with a later version is refused.
pub const SCHEMA: u32 = 1;

/// Number of events that the queue keeps. Redis may keep a few more.
pub const EVENTS_KEPT: usize = 10_000;

/// Times of leases and retries. With the defaults, a worker that stops by itself has no request in flight
/// when another worker takes over: it stops 90 s after it sent its last successful heartbeat, no request that
/// changes anything lasts longer than 25 s after that, and the lease lasts 120 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Duration of a lease after each heartbeat.
    pub lease: Duration,
    /// Time between two heartbeats of a worker.
    pub beat: Duration,
    /// Time after which a worker stops by itself, counted from when it sent the last successful heartbeat.
    pub stop: Duration,
    /// Wait before the second attempt. Each further wait is twice as long as the one before.
    pub retry: Duration,
    /// Number of takeovers without progress after which a job is treated as poison.
    pub takeovers: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(120),
            beat: Duration::from_secs(20),
            stop: Duration::from_secs(90),
            retry: Duration::from_secs(60),
            takeovers: 3,
        }
    }
}

/// Proof of a lease: 128 random bits. The claimer makes them itself, so that it can repeat a claim whose
/// response was lost.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// Makes a random token.
    #[must_use]
    pub fn new() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// Returns the token as the queue stores it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Token {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to distinguish two tokens in a log.
        write!(f, "{}...", self.0.get(..6).unwrap_or_default())
    }
}

/// Right of a worker to work on a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: JobId,
    pub token: Token,
}

/// Answer of the queue to the holder of a valid lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseStatus {
    /// The worker continues with the job.
    On,
    /// The user cancelled the job: the worker cleans up and ends it.
    Cancelled,
}

/// Decision about a job after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The queue makes the job ready again after this time.
    RetryAfter(Duration),
    /// The job is dead: no further attempt.
    Dead,
}

/// Error of a queue operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// Another worker has the job, or the job is over: the caller stops and changes nothing more.
    #[error("the lease on job {id} is lost")]
    LeaseLost { id: JobId },
    /// The queue has no job with this id.
    #[error("there is no job {id} in the queue")]
    NoSuchJob { id: JobId },
    /// The operation is not possible in the state that the job is in.
    #[error("job {id} is {state}")]
    WrongState { id: JobId, state: JobState },
    /// Another job is open for the same server and region.
    #[error("job {other} is open for the same server and region")]
    Duplicate {
        /// Id of the open job.
        other: JobId,
    },
    /// Redis can't be reached, is starting, or is out of memory. A later attempt may succeed.
    #[error("Redis at {address}: {reason}")]
    Unavailable {
        /// Address without secrets.
        address: String,
        /// Message of Redis or of the connection.
        reason: String,
    },
    /// Redis refuses the request; a later attempt fails as well.
    #[error("Redis at {address} refuses: {reason}")]
    Refused {
        /// Address without secrets.
        address: String,
        /// Message of Redis.
        reason: String,
    },
    /// The Redis user lacks rights that a queue needs.
    #[error("Redis at {address}: its user lacks rights: {missing}")]
    Rights {
        /// Address without secrets.
        address: String,
        /// Refused commands, with the message of the server.
        missing: String,
    },
    /// The data in Redis are not in a format that this version can read.
    #[error("the queue at {address} makes no sense to this version of snapferry: {reason}")]
    Foreign {
        /// Address without secrets.
        address: String,
        /// Description of the value that can't be read.
        reason: String,
    },
}

impl QueueError {
    /// Returns the class of the error, which decides about another attempt. Every operation may be repeated.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::LeaseLost { .. } => Class::LeaseLost,
            Self::Unavailable { .. } => Class::Transient,
            Self::NoSuchJob { .. }
            | Self::WrongState { .. }
            | Self::Duplicate { .. }
            | Self::Refused { .. }
            | Self::Rights { .. }
            | Self::Foreign { .. } => Class::Permanent,
        }
    }
}

/// Jobs that wait for a worker. Each operation makes one attempt, and may be repeated after any error.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Checks that all operations of a worker are permitted, without changing the queue. An error names what
    /// would fail later.
    async fn rights(&self) -> Result<(), QueueError>;

    /// Adds a job. If another job is open for the same server and region, adds nothing and returns that job's
    /// id. Adding the same job again changes nothing.
    async fn enqueue(&self, job: &NewJob) -> Result<Enqueued, QueueError>;

    /// Leases the next job to `worker` under `token`; the same token again gives the same job. None if no job
    /// is ready.
    async fn claim(&self, worker: &str, token: &Token) -> Result<Option<Delivered>, QueueError>;

    /// Extends a lease, and stores the progress of the job, in JSON.
    async fn beat(&self, lease: &Lease, progress: &str) -> Result<LeaseStatus, QueueError>;

    /// Stores a job's journal and its current step, and extends the lease. `through` is the number of the
    /// step that this ends, from 1, if it ends one. Only a step beyond the furthest one so far counts as
    /// progress, because a worker that takes over a job repeats the earlier steps.
    async fn step(
        &self,
        lease: &Lease,
        step: &str,
        journal: &str,
        through: Option<u32>,
    ) -> Result<LeaseStatus, QueueError>;

    /// Gives a job back at once. It keeps its old rank, and no failed attempt is counted.
    async fn release(&self, lease: &Lease) -> Result<(), QueueError>;

    /// Ends a job that is done, with its result in JSON. Repeating the call succeeds.
    async fn finish(&self, lease: &Lease, result: &str) -> Result<(), QueueError>;

    /// Ends a failed attempt.
    async fn fail(&self, lease: &Lease, error: &str, then: OnFailure) -> Result<(), QueueError>;

    /// Ends a cancelled job after the cleanup.
    async fn stop(&self, lease: &Lease) -> Result<(), QueueError>;

    /// Cancels a job and returns its new state. A waiting job without a journal is cancelled at once; a
    /// running one at its worker's next heartbeat.
    async fn cancel(&self, id: JobId) -> Result<JobState, QueueError>;

    /// Makes a dead or cancelled job ready again, with all failure counts reset.
    async fn retry(&self, id: JobId) -> Result<(), QueueError>;

    /// Takes back the jobs whose leases have expired. After a restart of the queue it extends each lease
    /// instead, because workers could not send heartbeats in the meantime: once for each lease, and again
    /// only after its worker has extended the lease itself, however often the queue restarts.
    async fn reap(&self) -> Result<Reaped, QueueError>;

    /// Returns the time of the queue's own clock, which applies to everything in it.
    async fn now(&self) -> Result<SystemTime, QueueError>;

    /// Stores a schedule under a name, and replaces an earlier one of that name.
    async fn set_schedule(&self, name: &str, plan: &str, since: CatchUp) -> Result<(), QueueError>;

    /// Removes a schedule. False if there was none of that name.
    async fn remove_schedule(&self, name: &str) -> Result<bool, QueueError>;

    /// Returns the schedules, sorted by name.
    async fn schedules(&self) -> Result<Vec<Schedule>, QueueError>;

    /// Records that the tick `at` of a schedule has been processed. False if this or a later tick was
    /// recorded before, or if the schedule no longer exists.
    async fn tick(&self, name: &str, at: SystemTime) -> Result<bool, QueueError>;

    /// Returns the last success of each server in each region, however old, sorted by server and region.
    async fn last_successes(&self) -> Result<Vec<LastSuccess>, QueueError>;

    /// Removes the last success of a server in a region, and its dead jobs. False if there was nothing to
    /// remove.
    async fn forget(&self, server: &str, region: &str) -> Result<bool, QueueError>;

    /// Stores the result of a search for leftovers in `place`, in JSON, and replaces the earlier one.
    async fn set_survey(&self, place: &str, found: &str) -> Result<(), QueueError>;

    /// Returns the last search for leftovers of each place, sorted by place.
    async fn surveys(&self) -> Result<Vec<GcSurvey>, QueueError>;

    /// Returns the workers that have contacted the queue, sorted by name.
    async fn workers(&self) -> Result<Vec<WorkerSeen>, QueueError>;

    /// Removes jobs that have been over, and workers that have been silent, for longer than `over_for`.
    /// Returns the number of jobs.
    async fn purge(&self, over_for: Duration) -> Result<u64, QueueError>;

    /// Returns the job with this id. None if there is none.
    async fn job(&self, id: JobId) -> Result<Option<JobRecord>, QueueError>;

    /// Returns the jobs in `states`, state by state, at most `limit` of each: the newest first in a state
    /// that is over, otherwise the next one first. A job that moves from one of these states to another
    /// meanwhile appears once.
    async fn jobs_in(&self, states: &[JobState], limit: usize) -> Result<Vec<JobRecord>, QueueError>;

    /// Returns at most `limit` jobs in a state, in the order of `jobs_in`.
    async fn jobs(&self, state: JobState, limit: usize) -> Result<Vec<JobRecord>, QueueError> {
        self.jobs_in(&[state], limit).await
    }

    /// Returns the number of jobs in each state.
    async fn counts(&self) -> Result<Counts, QueueError>;

    /// Returns the time for which the longest-waiting ready job has been ready. None if no job is ready.
    async fn waiting(&self) -> Result<Option<Duration>, QueueError>;

    /// Returns at most `limit` of the latest events, the newest last.
    async fn events(&self, limit: usize) -> Result<Vec<QueueEvent>, QueueError>;
}
