//! Why a step did not go through, and why a job did not.

use std::fmt;
use std::time::{Duration, SystemTime};

use snapferry_base::job::JobId;
use snapferry_base::retry::Class;
use snapferry_engine::convert::ConvertError;
use snapferry_engine::error::RestoreError;
use snapferry_engine::source::SourceError;
use snapferry_engine::store::StoreError;
use snapferry_ibmcloud::vpc::{NameError, VpcError};

use super::gc::GcError;
use super::journal::JournalError;
use super::names::JobNamesError;
use super::steps::Step;
use crate::replicate::device::DeviceError;

/// Why a step did not go through.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The cloud.
    #[error(transparent)]
    Cloud(#[from] VpcError),
    /// The bucket.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The volume did not turn up, or is not the one.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The volume can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no image.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The image can't be read back.
    #[error("the image can't be read back")]
    ReadBack(#[source] RestoreError),
    /// A name can't be.
    #[error(transparent)]
    Names(#[from] JobNamesError),
    /// The journal can't be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Things stand in the way, all that were found.
    #[error("{}", listed(obstacles))]
    Obstacles {
        /// All that were found.
        obstacles: Vec<Obstacle>,
    },
    /// Somebody else replicates the same server into the same region, and was first.
    #[error(
        "job {job} for {server} into {region} is under way on {host} since {}, and not done: two at once would be in each other's way",
        snapferry_base::clock::rfc3339(*since)
    )]
    UnderWay {
        /// The other job.
        job: JobId,
        /// The server.
        server: String,
        /// The recovery region.
        region: String,
        /// Who has it.
        host: String,
        /// Since when.
        since: SystemTime,
    },
    /// Somebody else has taken this job up.
    #[error("{host} has taken job {job} over: nothing more is changed here")]
    TakenOver {
        /// The job.
        job: JobId,
        /// Who has it.
        host: String,
    },
    /// It can't be given up any more.
    #[error("job {job} is done, and what it made is in use: {why}")]
    Over {
        /// The job.
        job: JobId,
        /// What shows it.
        why: String,
    },
    /// Another job of this machine attaches or detaches all the time.
    #[error("server {server} is still being attached to, or detached from, by another job of this machine after {} s", waited.as_secs())]
    NoTurn {
        /// The server.
        server: String,
        /// How long the turn was waited for.
        waited: Duration,
    },
    /// What was read back is not what was read from the disk.
    #[error("the image {url} does not hold what was read from the volume: {finding}")]
    NotTheSame {
        /// The object.
        url: String,
        /// What differs first.
        finding: String,
    },
    /// The cloud imported another file than the one that was sent.
    #[error("image {image} was made from a file with SHA-256 {theirs}, and ours has {ours}")]
    WrongFile {
        /// The image's id.
        image: String,
        /// By the image library.
        theirs: String,
        /// By what was read back.
        ours: String,
    },
    /// The image library does not say which file it has imported.
    #[error(
        "image {image} is available, and does not tell the SHA-256 of its file: it can't be proved to be ours"
    )]
    NoSum {
        /// The image's id.
        image: String,
    },
    /// A step was run without what an earlier one finds out: a bug.
    #[error("step {step} was run before its time: this is a bug in snapferry")]
    OutOfTurn {
        /// Which.
        step: Step,
    },
    /// A thread died: a bug.
    #[error("the conversion died: this is a bug in snapferry")]
    Died,
    /// Somebody asked us to stop.
    #[error("stopped")]
    Stopped,
}

/// Something that would stop the job later.
#[derive(Debug)]
pub enum Obstacle {
    /// In a sentence, with what to do.
    Told(String),
    /// The bucket is not there, or not ours to write to.
    Bucket(StoreError),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told(words) => f.write_str(words),
            Self::Bucket(error) => error.fmt(f),
        }
    }
}

fn listed(obstacles: &[Obstacle]) -> String {
    match obstacles {
        [only] => only.to_string(),
        several => {
            let words: Vec<String> = several.iter().map(Obstacle::to_string).collect();
            format!("{} things are in the way: {}", several.len(), words.join("; "))
        }
    }
}

impl From<Obstacle> for Fault {
    fn from(obstacle: Obstacle) -> Self {
        Self::Obstacles { obstacles: vec![obstacle] }
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Self {
        Self::Names(error.into())
    }
}

impl Fault {
    /// What it means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Cloud(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Device(error) => error.class(),
            Self::Source(error) => error.class(),
            Self::Convert(error) => error.class(),
            Self::ReadBack(error) => error.class(),
            Self::Journal(error) => error.class(),
            Self::Stopped => Class::Cancelled,
            Self::NotTheSame { .. } | Self::UnderWay { .. } | Self::NoTurn { .. } => Class::Transient,
            Self::TakenOver { .. } => Class::LeaseLost,
            Self::Names(_)
            | Self::Obstacles { .. }
            | Self::Over { .. }
            | Self::WrongFile { .. }
            | Self::NoSum { .. }
            | Self::OutOfTurn { .. }
            | Self::Died => Class::Permanent,
        }
    }

    /// Whether the cloud has told that a thing came to an end that is of no use.
    #[must_use]
    pub(super) fn is_ended(&self) -> bool {
        matches!(self, Self::Cloud(VpcError::Ended { .. }))
    }
}

/// Something that a job has left behind.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Left {
    /// What it is: `volume`, `upload`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why it is still there.
    pub why: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.why)
    }
}

/// Whether there is anything to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumable {
    /// There is.
    Yes,
    /// Nothing was made yet: the job is over, and another one may begin.
    No,
}

/// A job that did not go through.
#[derive(Debug, thiserror::Error)]
#[error("job {id} for {server}, step {step}")]
pub struct JobError {
    /// Which.
    pub id: JobId,
    /// Whose.
    pub server: String,
    /// Where it stopped.
    pub step: Step,
    /// Why.
    #[source]
    pub fault: Box<Fault>,
    /// What could not be cleaned up.
    pub left: Vec<Left>,
    /// Whether it can be resumed.
    pub resumable: Resumable,
}

impl JobError {
    /// What it means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        self.fault.class()
    }
}

impl From<GcError> for Fault {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Cloud { source, .. } => Self::Cloud(source),
            GcError::Store { source, .. } => Self::Store(source),
            GcError::Retention(fault) => *fault,
            GcError::Names(error) => Self::Names(error.into()),
        }
    }
}
