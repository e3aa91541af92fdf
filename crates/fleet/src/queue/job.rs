//! What a job is to the queue.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use snapferry_base::job::JobId;

use super::Token;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for a worker.
    Ready,
    /// It waits for its time.
    Delayed,
    /// A worker has it.
    Running,
    /// It is done.
    Done,
    /// It failed for good.
    Dead,
    /// Somebody did not want it any more.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Delayed, Self::Running, Self::Done, Self::Dead, Self::Cancelled];

    /// Whether nothing more happens to it by itself.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Dead | Self::Cancelled)
    }

    /// Its name.
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

/// Who goes first: 9 before 0, and of the same, who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(u8);

impl Priority {
    /// The most urgent.
    pub const HIGHEST: u8 = 9;

    /// From 0 to 9.
    #[must_use]
    pub fn new(level: u8) -> Option<Self> {
        (level <= Self::HIGHEST).then_some(Self(level))
    }

    /// 0 to 9.
    #[must_use]
    pub fn level(self) -> u8 {
        self.0
    }

    /// The place in line of somebody who came at that time, in milliseconds: less is sooner. A level weighs more than any time until the year 2286.
    pub(super) fn score(self, came_ms: u64) -> u64 {
        const LEVEL: u64 = 10_000_000_000_000;
        u64::from(Self::HIGHEST - self.0) * LEVEL + came_ms
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
    /// Made by whoever adds it, so that adding it twice is adding it once.
    pub id: JobId,
    /// The server.
    pub server: String,
    /// The region that its image is for.
    pub region: String,
    /// What the worker has to know, which is nothing to the queue.
    pub spec: String,
    /// Who goes first.
    pub priority: Priority,
    /// Not before so long from now.
    pub wait: Duration,
}

/// What adding a job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is in the queue.
    Added,
    /// This one is open for the same server and region.
    OpenAlready(JobId),
}

/// A job as the queue has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The server.
    pub server: String,
    /// The region that its image is for.
    pub region: String,
    /// What the worker has to know.
    pub spec: String,
    /// Who goes first.
    pub priority: Priority,
    /// Where it is in its life.
    pub state: JobState,
    /// The step that it is at, once there was one.
    pub step: Option<String>,
    /// How far it is, in JSON, as its worker told with the last beat.
    pub progress: Option<String>,
    /// Its journal, as its worker keeps it.
    pub journal: Option<String>,
    /// How often it was claimed.
    pub deliveries: u32,
    /// Attempts that failed.
    pub attempts: u32,
    /// Takeovers since it last got a step further.
    pub takeovers: u32,
    /// Why it failed last.
    pub error: Option<String>,
    /// Its result, once it is done.
    pub result: Option<String>,
    /// Who has it, or had it last.
    pub worker: Option<String>,
    /// Whether it is to be cancelled.
    pub cancel: bool,
    /// When it was added.
    pub added_at: SystemTime,
    /// When it last changed.
    pub changed_at: SystemTime,
}

/// A job that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The job.
    pub job: Job,
    /// Under which token.
    pub token: Token,
}

/// What reaping came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Jobs that are ready again, since their leases had run out.
    pub taken_back: Vec<JobId>,
    /// Jobs that were taken over too often without getting anywhere.
    pub dead: Vec<JobId>,
    /// Leases that were extended since the queue had restarted.
    pub amnesty: u64,
}

/// How many jobs there are in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Counts(pub BTreeMap<JobState, u64>);

impl Counts {
    /// In one state.
    #[must_use]
    pub fn of(&self, state: JobState) -> u64 {
        self.0.get(&state).copied().unwrap_or_default()
    }
}

/// What the last look for leftovers has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Surveyed {
    /// Where was looked.
    pub place: String,
    /// When.
    pub at: SystemTime,
    /// What was found, in JSON.
    pub found: String,
}

/// The last time that a server's image arrived in a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Good {
    /// The server.
    pub server: String,
    /// The region.
    pub region: String,
    /// When its job was done.
    pub at: SystemTime,
    /// That job.
    pub id: JobId,
    /// Its result, in JSON.
    pub result: String,
}

/// A worker that was heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// Its name.
    pub worker: String,
    /// When last.
    pub at: SystemTime,
}

/// Jobs that are added at certain times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// What is added, and when, which is nothing to the queue.
    pub plan: String,
    /// The last tick that was seen to, or when it was made.
    pub last: SystemTime,
}

/// Since when a schedule that is kept counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// From now on: what lies before is not made up for.
    Now,
    /// As the one of that name did before, whose times it has: what was due then is still due.
    Before,
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// When.
    pub at: SystemTime,
    /// To which job.
    pub id: JobId,
    /// What: `added`, `claimed`, `step`, `released`, `done`, `failed`, `dead`, `cancelled`, `taken-back`, `retried`.
    pub what: String,
    /// Its step, its error, its worker: whatever belongs to it.
    pub details: String,
}
