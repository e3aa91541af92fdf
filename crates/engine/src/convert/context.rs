//! State that the stages of one attempt share.

use std::sync::{Arc, Mutex, PoisonError};

use snapferry_base::cancel::{Cancel, Reason, Stopped};

use super::counters::Counters;
use super::error::{ConvertError, OrphanedUpload};
use super::why_full::WhyFull;
use crate::source::aligned::{BufferPool, PooledBuf, Untaken};

/// State that all stages share.
#[derive(Clone)]
pub(super) struct Context {
    /// Ends this attempt.
    pub cancel: Cancel,
    /// Ends the conversion.
    pub whole: Cancel,
    pub counters: Arc<Counters>,
    /// Size of the source in bytes.
    pub source_size: u64,
    pub outcome: Arc<Mutex<Outcome>>,
}

#[derive(Default)]
pub(super) struct Outcome {
    pub error: Option<ConvertError>,
    pub orphaned_upload: Option<OrphanedUpload>,
    /// Reason why the base was given up.
    pub given_up: Option<WhyFull>,
}

impl Context {
    /// Ends the work with an error, unless it has ended already. An error about an image that is or may be in
    /// the store is kept even then. If several reads fail, the error with the lowest offset on the disk is
    /// kept.
    pub fn fail(&self, error: ConvertError) {
        let ended = self.cancel.is_cancelled();
        let mut outcome = self.outcome();
        let counts = match &outcome.error {
            None => !ended || error.outlasts_a_stop(),
            Some(kept) => error.offset().zip(kept.offset()).is_some_and(|(new, old)| new < old),
        };
        // What follows from a base that is given up does not end the conversion.
        let is_final = counts || outcome.given_up.is_none();
        if counts {
            outcome.error = Some(error);
        }
        drop(outcome);
        self.cancel.cancel(Reason::Failed);
        if is_final {
            self.whole.cancel(Reason::Failed);
        }
    }

    /// Ends this attempt, unless it has ended already, so that another one can send all of the disk.
    pub fn give_up(&self, why: WhyFull) {
        if !self.cancel.is_cancelled() {
            self.outcome().given_up = Some(why);
        }
        self.cancel.cancel(Reason::Failed);
    }

    /// Takes a buffer from a pool. If the system refuses the memory, that ends the work.
    pub fn take(&self, pool: &BufferPool) -> Result<PooledBuf, Stopped> {
        pool.take(&self.cancel).map_err(|untaken| {
            if let Untaken::Memory(refused) = untaken {
                self.fail(refused.into());
            }
            Stopped
        })
    }

    pub fn record_orphan(&self, orphaned_upload: OrphanedUpload) {
        self.outcome().orphaned_upload = Some(orphaned_upload);
    }

    pub fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
