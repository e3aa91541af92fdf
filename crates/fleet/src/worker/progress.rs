//! Progress of a job, for its heartbeats, for observers of the worker, and for the order of the worker's own
//! jobs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use snapferry_base::job::JobId;
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters::Counters as ConvertCounters;
use snapferry_engine::image::counters::Counters as RestoreCounters;
use tokio::sync::OwnedSemaphorePermit;

use crate::replicate::saga::{Progress, ProgressObserver};
use crate::replicate::steps::Step;

/// Current transfer of data, with its counters and the size of the disk.
#[derive(Clone)]
enum Moving {
    Nothing,
    Converting(Arc<ConvertCounters>, ByteCount),
    ReadingBack(Arc<RestoreCounters>, ByteCount),
}

/// Progress of one job.
pub struct JobProgress {
    pub id: JobId,
    pub server: String,
    /// Region that gets the image.
    pub region: String,
    current: Mutex<(Option<Step>, Moving)>,
}

impl JobProgress {
    pub(super) fn new(id: JobId, server: &str, region: &str) -> Self {
        Self {
            id,
            server: server.to_owned(),
            region: region.to_owned(),
            current: Mutex::new((None, Moving::Nothing)),
        }
    }

    fn current(&self) -> MutexGuard<'_, (Option<Step>, Moving)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current step. None before the first one.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        self.current().0
    }

    /// Returns the finished and the total bytes of the disk. None if no data is being transferred.
    #[must_use]
    pub fn bytes(&self) -> Option<(ByteCount, ByteCount)> {
        match &self.current().1 {
            Moving::Nothing => None,
            Moving::Converting(counters, size) => Some((ByteCount(counters.totals().done), *size)),
            Moving::ReadingBack(counters, size) => Some((ByteCount(counters.totals().done), *size)),
        }
    }

    /// Returns the progress as the queue stores it, in JSON.
    pub(super) fn to_json(&self) -> Value {
        let step = self.step().map(Step::name);
        match self.bytes() {
            Some((done, size)) => json!({ "step": step, "bytes": done, "of": size }),
            None => json!({ "step": step }),
        }
    }
}

/// Jobs that a worker holds, with their progress.
#[derive(Default)]
pub struct HeldJobs(Mutex<Vec<Arc<JobProgress>>>);

impl HeldJobs {
    fn jobs(&self) -> MutexGuard<'_, Vec<Arc<JobProgress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the progress of each job.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<JobProgress>> {
        self.jobs().clone()
    }

    pub(super) fn add(&self, job: &Arc<JobProgress>) {
        self.jobs().push(Arc::clone(job));
    }

    pub(super) fn remove(&self, id: JobId) {
        self.jobs().retain(|job| job.id != id);
    }
}

/// Observer that keeps the progress for the worker and passes it on.
pub(super) struct ProgressRecorder {
    pub progress: Arc<JobProgress>,
    pub next: Arc<dyn ProgressObserver>,
    /// Permit of a job that may still need its volume. It is returned after that.
    pub early: Mutex<Option<OwnedSemaphorePermit>>,
}

impl ProgressObserver for ProgressRecorder {
    fn on_progress(&self, progress: Progress<'_>) {
        {
            let mut current = self.progress.current();
            match &progress {
                Progress::Begun(step) => *current = (Some(*step), Moving::Nothing),
                Progress::Converting(counters, size) => {
                    current.1 = Moving::Converting(Arc::clone(counters), *size);
                }
                Progress::ReadingBack(counters, size) => {
                    current.1 = Moving::ReadingBack(Arc::clone(counters), *size);
                }
                Progress::Still | Progress::CleaningUp => current.1 = Moving::Nothing,
                Progress::Done { .. } | Progress::SentInFull(_) => {}
            }
        }
        if matches!(progress, Progress::Begun(step) if step > Step::Release) {
            self.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        self.next.on_progress(progress);
    }
}
