//! How far a job is, for its beats, for whoever looks at the worker, and for the worker's own turns.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use snapferry_base::job::JobId;
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters::Counters as ConvertCounters;
use snapferry_engine::image::counters::Counters as RestoreCounters;
use tokio::sync::OwnedSemaphorePermit;

use crate::replicate::saga::{Onlooker, Progress};
use crate::replicate::steps::Step;

/// What moves bytes just now, and how many there are in all.
#[derive(Clone)]
enum Moving {
    Nothing,
    Converting(Arc<ConvertCounters>, ByteCount),
    ReadingBack(Arc<RestoreCounters>, ByteCount),
}

/// A job as it is seen.
pub struct Sight {
    /// Its id.
    pub id: JobId,
    /// Its server.
    pub server: String,
    /// The region that its image is for.
    pub region: String,
    now: Mutex<(Option<Step>, Moving)>,
}

impl Sight {
    pub(super) fn new(id: JobId, server: &str, region: &str) -> Self {
        Self {
            id,
            server: server.to_owned(),
            region: region.to_owned(),
            now: Mutex::new((None, Moving::Nothing)),
        }
    }

    fn now(&self) -> MutexGuard<'_, (Option<Step>, Moving)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The step that it is at.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        self.now().0
    }

    /// Bytes of the disk that are through, and all of them, while they move.
    #[must_use]
    pub fn bytes(&self) -> Option<(ByteCount, ByteCount)> {
        match &self.now().1 {
            Moving::Nothing => None,
            Moving::Converting(counters, size) => Some((ByteCount(counters.totals().done), *size)),
            Moving::ReadingBack(counters, size) => Some((ByteCount(counters.totals().done), *size)),
        }
    }

    /// As it stands in the queue.
    pub(super) fn progress(&self) -> Value {
        let step = self.step().map(Step::name);
        match self.bytes() {
            Some((done, size)) => json!({ "step": step, "bytes": done, "of": size }),
            None => json!({ "step": step }),
        }
    }
}

/// Looks on for the worker, and passes on what it sees.
pub(super) struct Watched {
    pub sight: Arc<Sight>,
    pub next: Arc<dyn Onlooker>,
    /// The right to be among those that are not yet through with their volume.
    pub early: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Onlooker for Watched {
    fn see(&self, progress: Progress<'_>) {
        {
            let mut now = self.sight.now();
            match &progress {
                Progress::Begun(step) => *now = (Some(*step), Moving::Nothing),
                Progress::Converting(counters, size) => {
                    now.1 = Moving::Converting(Arc::clone(counters), *size)
                }
                Progress::ReadingBack(counters, size) => {
                    now.1 = Moving::ReadingBack(Arc::clone(counters), *size)
                }
                Progress::Still | Progress::CleaningUp => now.1 = Moving::Nothing,
                Progress::Done { .. } => {}
            }
        }
        if matches!(progress, Progress::Begun(step) if step > Step::Release) {
            self.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        self.next.see(progress);
    }
}
