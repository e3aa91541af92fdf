//! Records of the queue: jobs, schedules, events.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use snapferry_base::job::JobId;

use super::Token;

/// State of a job in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// The job waits for a worker.
    Ready,
    /// The job waits for its start time.
    Delayed,
    /// A worker holds the lease on the job.
    Running,
    Done,
    /// The job failed and is not attempted again.
    Dead,
    /// A user cancelled the job.
    Cancelled,
}

impl JobState {
    /// All states, in order.
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Delayed, Self::Running, Self::Done, Self::Dead, Self::Cancelled];

    /// True if the state is final unless a user acts.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Dead | Self::Cancelled)
    }

    /// Returns the name that the queue, JSON output and the command line use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for JobState {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|state| state.name() == typed);
        found.ok_or_else(|| {
            format!("{typed:?} is no state: give ready, delayed, running, done, dead or cancelled")
        })
    }
}

/// Priority of a job: 9 before 0; of equal ones, the job that was added first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(u8);

impl Priority {
    /// The most urgent level.
    pub const HIGHEST: u8 = 9;

    /// Checks that the level is between 0 and 9. None if it is not.
    #[must_use]
    pub fn new(level: u8) -> Option<Self> {
        (level <= Self::HIGHEST).then_some(Self(level))
    }

    /// Returns the level, from 0 to 9.
    #[must_use]
    pub fn level(self) -> u8 {
        self.0
    }

    /// Returns the sort key of a job that was added at this time, in milliseconds since 1970: the lowest goes
    /// first. One level outweighs any difference in time until the year 2286.
    pub(super) fn score(self, added_ms: u64) -> u64 {
        const LEVEL: u64 = 10_000_000_000_000;
        u64::from(Self::HIGHEST - self.0) * LEVEL + added_ms
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

impl FromStr for Priority {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        let level = typed.parse().ok().and_then(Self::new);
        level.ok_or_else(|| format!("{typed:?} is no priority: give 0 to 9, 9 goes first"))
    }
}

/// A job to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// Made by the caller, so that adding the job a second time changes nothing.
    pub id: JobId,
    pub server: String,
    /// Region that gets the image.
    pub region: String,
    /// Description of the job for the worker. The queue does not interpret it.
    pub spec: String,
    pub priority: Priority,
    /// Earliest start, counted from now.
    pub wait: Duration,
}

/// Result of adding a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// The job is in the queue.
    Added,
    /// Nothing was added: this job is open for the same server and region.
    OpenAlready(JobId),
}

/// A job as the queue stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobRecord {
    pub id: JobId,
    pub server: String,
    /// Region that gets the image.
    pub region: String,
    /// Description of the job for the worker.
    pub spec: String,
    pub priority: Priority,
    pub state: JobState,
    /// Current or last step. None before the first one.
    pub step: Option<String>,
    /// Progress, in JSON, from the worker's last heartbeat.
    pub progress: Option<String>,
    /// Journal of the steps, as the worker wrote it. None before the first step.
    pub journal: Option<String>,
    /// Number of times that a worker claimed the job.
    pub deliveries: u32,
    /// Number of failed attempts.
    pub attempts: u32,
    /// Number of takeovers since the last progress.
    pub takeovers: u32,
    /// Reason of the last failure.
    pub error: Option<String>,
    /// Result, in JSON, of a job that is done.
    pub result: Option<String>,
    /// Worker that has the job, or had it last.
    pub worker: Option<String>,
    /// True if a user has cancelled the job, even if its worker has not stopped yet.
    pub cancel: bool,
    pub added_at: SystemTime,
    pub changed_at: SystemTime,
}

/// A job that a worker claimed, with its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub job: JobRecord,
    /// Token of the lease.
    pub token: Token,
}

/// Result of one search for expired leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Jobs that are ready again because their leases expired.
    pub taken_back: Vec<JobId>,
    /// Jobs that were taken over too often without progress.
    pub dead: Vec<JobId>,
    /// Number of leases that were extended because the queue had restarted.
    pub amnesty: u64,
}

/// Number of jobs in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Counts(pub BTreeMap<JobState, u64>);

impl Counts {
    /// Returns the number of jobs in one state.
    #[must_use]
    pub fn of(&self, state: JobState) -> u64 {
        self.0.get(&state).copied().unwrap_or_default()
    }
}

/// Result of the last search for leftovers in one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GcSurvey {
    /// Place that was searched.
    pub place: String,
    /// Time of the search.
    pub at: SystemTime,
    /// Leftovers, in JSON.
    pub found: String,
}

/// Last successful replication of one server into one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastSuccess {
    pub server: String,
    pub region: String,
    /// Time at which the job was done.
    pub at: SystemTime,
    /// Id of the job.
    pub id: JobId,
    /// Result of the job, in JSON.
    pub result: String,
}

/// A worker that has contacted the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerSeen {
    /// Name of the worker.
    pub worker: String,
    /// Time of the last contact.
    pub at: SystemTime,
}

/// A schedule, by which jobs are added at certain times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    pub name: String,
    /// Jobs and times of the schedule. The queue does not interpret them.
    pub plan: String,
    /// Time of the last tick that was processed, or of the schedule's creation if there was none.
    pub last: SystemTime,
}

/// Time from which a new version of a schedule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// From now on: ticks before are not made up for.
    Now,
    /// From the last processed tick of the earlier schedule of that name: ticks that are due are still
    /// processed.
    Before,
}

/// A change of a job's state or step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueEvent {
    pub at: SystemTime,
    /// Id of the job.
    pub id: JobId,
    /// Kind: `added`, `claimed`, `step`, `released`, `done`, `failed`, `dead`, `cancelled`, `taken-back` or
    /// `retried`.
    pub what: String,
    /// Details that depend on the kind: a step, an error or a worker, for example.
    pub details: String,
}
