//! Errors of a step, and of a whole job.

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

/// Reason why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A request to the cloud failed.
    #[error(transparent)]
    Cloud(#[from] VpcError),
    /// A request to the bucket failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The volume's device did not appear, or is not the right one.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The volume can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The conversion made no image.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("the image can't be read back")]
    ReadBack(#[source] RestoreError),
    /// A name that the job needs is not valid.
    #[error(transparent)]
    Names(#[from] JobNamesError),
    /// The journal can't be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Preflight found one or more obstacles.
    #[error("{}", listed(obstacles))]
    Obstacles {
        /// All obstacles that were found, at least one.
        obstacles: Vec<Obstacle>,
    },
    /// Another job replicates the same server into the same region, and was first.
    #[error(
        "job {job} for {server} into {region} is under way on {host} since {}, and not done: two at once would be in each other's way",
        snapferry_base::clock::rfc3339(*since)
    )]
    UnderWay {
        /// Id of the other job.
        job: JobId,
        server: String,
        /// Recovery region of both jobs.
        region: String,
        /// Server that works on the other job.
        host: String,
        /// Time at which the other job was last taken up.
        since: SystemTime,
    },
    /// Another process has taken this job over.
    #[error("{host} has taken job {job} over: nothing more is changed here")]
    TakenOver {
        job: JobId,
        /// Server that works on the job now.
        host: String,
    },
    /// The job is done, so it can't be abandoned any more.
    #[error("job {job} is done, and what it made is in use: {evidence}")]
    Over {
        job: JobId,
        /// Proof that the job is done, as text.
        evidence: String,
    },
    /// Another job of this machine attached or detached volumes until the deadline.
    #[error("server {server} is still being attached to, or detached from, by another job of this machine after {} s", waited.as_secs())]
    ServerBusy {
        server: String,
        /// Time that this job waited for its turn.
        waited: Duration,
    },
    /// The image that was read back differs from the data that was read from the disk.
    #[error("the image {url} does not hold what was read from the volume: {finding}")]
    NotTheSame {
        /// URL of the object.
        url: String,
        /// The first difference that was found.
        finding: String,
    },
    /// The cloud imported another file than the one that was sent.
    #[error("image {image} was made from a file with SHA-256 {theirs}, and ours has {ours}")]
    WrongFile {
        /// Id of the image.
        image: String,
        /// SHA-256 that the image library reports.
        theirs: String,
        /// SHA-256 of the file as it was read back.
        ours: String,
    },
    /// The image library does not report the SHA-256 of the imported file.
    #[error(
        "image {image} is available, and does not tell the SHA-256 of its file: it can't be proved to be ours"
    )]
    NoSum {
        /// Id of the image.
        image: String,
    },
    /// A step ran without a result of an earlier step: a bug.
    #[error("step {step} was run before its time: this is a bug in snapferry")]
    OutOfTurn { step: Step },
    /// A thread died: a bug.
    #[error("the conversion died: this is a bug in snapferry")]
    Died,
    /// The job was cancelled.
    #[error("stopped")]
    Stopped,
}

/// Condition that would stop the job later.
#[derive(Debug)]
pub enum Obstacle {
    /// Sentence for the user: the condition, and what to do about it.
    Message(String),
    /// The bucket does not exist, or this account can't write to it.
    Bucket(StoreError),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => f.write_str(message),
            Self::Bucket(error) => error.fmt(f),
        }
    }
}

fn listed(obstacles: &[Obstacle]) -> String {
    match obstacles {
        [only] => only.to_string(),
        several => {
            let messages: Vec<String> = several.iter().map(Obstacle::to_string).collect();
            format!("{} things are in the way: {}", several.len(), messages.join("; "))
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
    /// Returns what the fault means for another attempt.
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
            Self::NotTheSame { .. } | Self::UnderWay { .. } | Self::ServerBusy { .. } => Class::Transient,
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

    /// True if the job has made an image that is not what was read.
    #[must_use]
    pub(super) fn is_of_a_wrong_image(&self) -> bool {
        matches!(self, Self::NotTheSame { .. } | Self::Convert(ConvertError::Disproved { .. }))
    }

    /// True if the cloud reported a final state that makes a thing useless, such as a failed snapshot.
    #[must_use]
    pub(super) fn is_ended(&self) -> bool {
        matches!(self, Self::Cloud(VpcError::Ended { .. }))
    }
}

/// Kind of a thing that a job makes in the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    Snapshot,
    #[serde(rename = "clone of snapshot")]
    Clone,
    Volume,
    Attachment,
    Object,
    /// The name `-latest`, which belongs to one image at a time.
    Name,
    Image,
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::Clone => "clone of snapshot",
            Self::Volume => "volume",
            Self::Attachment => "attachment",
            Self::Object => "object",
            Self::Name => "name",
            Self::Image => "image",
        })
    }
}

/// Thing that a job has left behind in the cloud.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OrphanedResource {
    pub kind: ResourceKind,
    pub name: String,
    /// Reason why the thing is still there.
    pub why: String,
}

impl fmt::Display for OrphanedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.why)
    }
}

/// Possibility to resume a failed job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumable {
    /// Another run can continue the job.
    Yes,
    /// The job is over and left nothing to continue with; another job may begin.
    No,
}

/// Error of a job that failed.
#[derive(Debug, thiserror::Error)]
#[error("job {id} for {server}, step {step}")]
pub struct JobError {
    pub id: JobId,
    pub server: String,
    /// Step that failed.
    pub step: Step,
    #[source]
    pub fault: Box<Fault>,
    /// Things that could not be cleaned up.
    pub orphaned: Vec<OrphanedResource>,
    pub resumable: Resumable,
}

impl JobError {
    /// Returns what the error means for another attempt.
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
