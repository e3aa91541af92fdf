//! Machinery that the two pipelines share: the one that converts, and the one that reads images back.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use snapferry_base::limits::{OutOfMemory, TooTight};
use snapferry_base::retry::Class;
use snapferry_base::threads::Refused;

/// Most threads of a pool: past the cores of any machine they only cost memory.
pub(crate) const MAX_THREADS: usize = 512;

/// Most requests in flight: far past the point where more of them are faster.
pub(crate) const MAX_IN_FLIGHT: usize = 128;

/// Failure of a pipeline that neither its source nor its target caused.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// More at once than makes sense, or than a machine starts.
    #[error("{requested} {resource} are too many: give at most {limit}")]
    TooMany { resource: &'static str, requested: usize, limit: usize },
    /// The system refuses threads.
    #[error(transparent)]
    Threads(Refused),
    /// The system refuses memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The limits of this process leave too little for any plan.
    #[error(transparent)]
    TooTight(#[from] TooTight),
    /// A stage ended without a result: a bug.
    #[error("the {stage} stage died: this is a bug in snapferry")]
    StageDied { stage: &'static str },
    /// The caller cancelled the work.
    #[error("interrupted")]
    Interrupted,
}

impl PipelineError {
    /// Class of the error for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Interrupted => Class::Cancelled,
            Self::TooMany { .. }
            | Self::Threads(_)
            | Self::Memory(_)
            | Self::TooTight(_)
            | Self::StageDied { .. } => Class::Permanent,
        }
    }
}

/// Returns `requested`, if it is not more than `limit`.
///
/// # Errors
/// [`PipelineError::TooMany`] with `resource` in its text.
pub(crate) fn bounded(
    resource: &'static str,
    requested: usize,
    limit: usize,
) -> Result<usize, PipelineError> {
    if requested > limit { Err(PipelineError::TooMany { resource, requested, limit }) } else { Ok(requested) }
}

/// Counts a job that waits or runs, until the value is dropped: by the end of the job, or by its panic.
pub(crate) struct JobGuard<'a>(pub &'a AtomicUsize);

impl Drop for JobGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
