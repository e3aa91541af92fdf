//! Jobs that wait for a worker, on Redis for a fleet and in memory for one process.
//!
//! A job is *leased* to a worker under a random token, and everything that the worker says of it carries that token: once the lease has run
//! out and somebody else has the job, the old token is good for nothing. Time is the queue's own, never a worker's.
//!
//! ```text
//!           enqueue            claim                finish
//!   ─▶ delayed ──due──▶ ready ───────▶ running ───────────────▶ done
//!         ▲               ▲   ◀─release──┤ │ └──fail for good──▶ dead ──retry──▶ ready
//!         └───── fail ────┼──────────────┘ │      ▲
//!                         └──lease ran out─┴──────┘ a third time, no further      cancel ─▶ cancelled
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `job` | what a job is to the queue, and its states |
//! | `memory` | the queue in one process, on any clock; the rules in Rust |
//! | `redis`, `lua/` | the queue on Redis; the same rules, each change one script |
//! | `connection` | how a Redis is reached, and what its errors mean |
//! | `legacy` | the plain list of names that came before |
//! | `rights` | what a user of that Redis has to be allowed |
//! | `text` | what Redis holds, which may be anything |
//! | `examine` | whether a Redis is fit to keep jobs |
//!
//! Both pass one suite, and a model test holds the one to the other.

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
    Counts, Delivered, Enqueued, Good, Happening, Heard, Job, JobState, NewJob, Priority, Reaped, Schedule,
    Since, Surveyed,
};
pub use legacy::{Imported, MOST_NAMES, import_legacy};
pub use memory::MemoryQueue;
pub use redis::RedisQueue;

/// The form of what is kept in Redis. A queue that holds a later one is refused.
pub const SCHEMA: u32 = 1;

/// So many events are kept, or a few more.
pub const EVENTS_KEPT: usize = 10_000;

/// How leases are timed. With these, a worker that has stopped by itself has nothing in flight when another one takes over: it stops 90 s after
/// the last beat that it sent, no request that changes anything lasts longer than 25 s after that, and the lease lasts 120 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease lasts after each beat.
    pub lease: Duration,
    /// How often a worker beats.
    pub beat: Duration,
    /// After so long without a good beat, reckoned from when that was sent, a worker stops by itself.
    pub stop: Duration,
    /// The wait before a second attempt; each one after that waits twice as long.
    pub retry: Duration,
    /// Takeovers after which a job that got no step further meanwhile is taken for poison.
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

/// Proof of a lease: 128 random bits that the claimer makes itself, so that a claim whose answer was lost can be sent again.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// As the queue keeps it.
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
        // Enough to tell two apart in a log.
        write!(f, "{}...", self.0.get(..6).unwrap_or_default())
    }
}

/// A job in a worker's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which job.
    pub id: JobId,
    /// The proof.
    pub token: Token,
}

/// What the queue answers to somebody who holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Go on.
    On,
    /// The job was cancelled: clean up, and end it.
    Cancelled,
}

/// What becomes of a job that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another attempt after that time.
    RetryAfter(Duration),
    /// None.
    Dead,
}

/// Why the queue did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// Somebody else has the job, or it is over: stop, and touch nothing.
    #[error("the lease on job {id} is lost")]
    LeaseLost {
        /// Which.
        id: JobId,
    },
    /// There is no such job.
    #[error("there is no job {id} in the queue")]
    NoSuchJob {
        /// Which.
        id: JobId,
    },
    /// The job is in a state in which that can't be done.
    #[error("job {id} is {state}")]
    WrongState {
        /// Which.
        id: JobId,
        /// Its state.
        state: JobState,
    },
    /// Another job is open for the same server and region.
    #[error("job {other} is open for the same server and region")]
    Duplicate {
        /// That one.
        other: JobId,
    },
    /// Redis can't be reached, is starting, or out of memory: it may pass.
    #[error("Redis at {address}: {reason}")]
    Unavailable {
        /// Where, without secrets.
        address: String,
        /// Its own words.
        reason: String,
    },
    /// Redis refuses, for good.
    #[error("Redis at {address} refuses: {reason}")]
    Refused {
        /// Where, without secrets.
        address: String,
        /// Its own words.
        reason: String,
    },
    /// The user that we are to Redis may not do what a queue needs.
    #[error("Redis at {address}: its user lacks rights: {missing}")]
    Rights {
        /// Where, without secrets.
        address: String,
        /// Which, with the server's own words.
        missing: String,
    },
    /// What is kept there is not what this program keeps.
    #[error("the queue at {address} makes no sense to this version of snapferry: {reason}")]
    Foreign {
        /// Where, without secrets.
        address: String,
        /// In what.
        reason: String,
    },
}

impl QueueError {
    /// What the error means for another attempt. Every operation may be sent again.
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

/// Jobs that wait for a worker. Each operation is one attempt, and may be sent again after any error.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Tries all that a worker does to the queue, without doing any of it: an error says what would fail later.
    async fn rights(&self) -> Result<(), QueueError>;

    /// Adds a job, unless one is open for the same server and region: then that one's id comes back. The same job again is no second one.
    async fn enqueue(&self, job: &NewJob) -> Result<Enqueued, QueueError>;

    /// Leases the next job to `worker` under `token`; the same token again gives the same job. None where none is ready.
    async fn claim(&self, worker: &str, token: &Token) -> Result<Option<Delivered>, QueueError>;

    /// Extends a lease, and tells how far the job is, in JSON.
    async fn beat(&self, lease: &Lease, progress: &str) -> Result<Held, QueueError>;

    /// Keeps a job's journal and the step that it is at, and extends the lease. `through` is the place of the step that this ends, from 1, where
    /// it ends one: only a step further than ever before is progress, since whoever takes a job over goes through the earlier ones again.
    async fn step(
        &self,
        lease: &Lease,
        step: &str,
        journal: &str,
        through: Option<u32>,
    ) -> Result<Held, QueueError>;

    /// Gives a job back at once, in its old place; nothing is counted against it.
    async fn release(&self, lease: &Lease) -> Result<(), QueueError>;

    /// Ends a job that is done, with its result in JSON. The same again is success.
    async fn finish(&self, lease: &Lease, result: &str) -> Result<(), QueueError>;

    /// Ends an attempt that failed.
    async fn fail(&self, lease: &Lease, error: &str, then: Then) -> Result<(), QueueError>;

    /// Ends a job that was cancelled and has been cleaned up after.
    async fn stop(&self, lease: &Lease) -> Result<(), QueueError>;

    /// Cancels a job: at once where it waits, and through the next beat where it runs; its state after that.
    async fn cancel(&self, id: JobId) -> Result<JobState, QueueError>;

    /// Readies a job that is dead or cancelled once more, with a clean slate.
    async fn retry(&self, id: JobId) -> Result<(), QueueError>;

    /// Takes the jobs back whose leases have run out. After a restart of the queue each lease is extended, since nobody could beat meanwhile;
    /// but only once after each word of its holder, however often the queue restarts.
    async fn reap(&self) -> Result<Reaped, QueueError>;

    /// The queue's own time, by which everything in it happens.
    async fn now(&self) -> Result<SystemTime, QueueError>;

    /// Keeps a schedule under a name, in place of the one before.
    async fn set_schedule(&self, name: &str, plan: &str, since: Since) -> Result<(), QueueError>;

    /// Removes a schedule; whether there was one.
    async fn remove_schedule(&self, name: &str) -> Result<bool, QueueError>;

    /// The schedules, by name.
    async fn schedules(&self) -> Result<Vec<Schedule>, QueueError>;

    /// Notes that a tick of a schedule was seen to. False where that, or a later one, was noted before, or the schedule is no more.
    async fn tick(&self, name: &str, at: SystemTime) -> Result<bool, QueueError>;

    /// For each server and region the last time that its image arrived, however long ago, by server and region.
    async fn good(&self) -> Result<Vec<Good>, QueueError>;

    /// Forgets the last time that a server's image arrived in a region, and its dead jobs; whether there was anything of that.
    async fn forget(&self, server: &str, region: &str) -> Result<bool, QueueError>;

    /// Keeps what a look for leftovers in a place has found, in JSON, in place of the one before.
    async fn set_survey(&self, place: &str, found: &str) -> Result<(), QueueError>;

    /// The last look for leftovers in each place, by place.
    async fn surveys(&self) -> Result<Vec<Surveyed>, QueueError>;

    /// The workers that were heard of, by name.
    async fn workers(&self) -> Result<Vec<Heard>, QueueError>;

    /// Forgets jobs that have been over, and workers that were not heard of, for longer than that; how many jobs.
    async fn purge(&self, over_for: Duration) -> Result<u64, QueueError>;

    /// One job.
    async fn job(&self, id: JobId) -> Result<Option<Job>, QueueError>;

    /// The jobs in some states, state by state, the next or newest first, at most so many of each. One that moves from one of these states
    /// to another meanwhile is in it once.
    async fn jobs_in(&self, states: &[JobState], most: usize) -> Result<Vec<Job>, QueueError>;

    /// The jobs in a state, the next or newest first, at most so many.
    async fn jobs(&self, state: JobState, most: usize) -> Result<Vec<Job>, QueueError> {
        self.jobs_in(&[state], most).await
    }

    /// How many there are in each state.
    async fn counts(&self) -> Result<Counts, QueueError>;

    /// For how long the job has been ready that has been so the longest. None where none is.
    async fn waiting(&self) -> Result<Option<Duration>, QueueError>;

    /// What has happened, the newest last, at most so many.
    async fn events(&self, most: usize) -> Result<Vec<Happening>, QueueError>;
}
