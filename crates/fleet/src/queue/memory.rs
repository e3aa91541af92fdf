//! The queue in one process, on any clock: the rules without a server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use snapferry_base::clock::Clock;
use snapferry_base::job::JobId;

use super::job::{
    CatchUp, Counts, Delivered, Enqueued, GcSurvey, JobRecord, JobState, LastSuccess, NewJob, QueueEvent,
    Reaped, Schedule, WorkerSeen,
};
use super::{EVENTS_KEPT, Lease, LeaseStatus, OnFailure, Queue, QueueError, Timing, Token};

/// A job with the queue's internal fields.
struct Kept {
    job: JobRecord,
    /// Sort key among ready jobs; the lowest goes first.
    score: u64,
    /// Time in milliseconds since 1970: start time of a delayed job, end of the lease of a running one, end
    /// of a job that is over.
    until_ms: u64,
    token: Option<Token>,
    ended_by: Option<Token>,
    failed_by: Option<Token>,
    /// Number of the furthest step that the job has completed, from 1.
    furthest: u32,
}

#[derive(Default)]
struct Inside {
    jobs: BTreeMap<JobId, Kept>,
    events: Vec<QueueEvent>,
    /// Last successes, by server and region.
    last_successes: BTreeMap<(String, String), LastSuccess>,
    workers: BTreeMap<String, SystemTime>,
    schedules: BTreeMap<String, Schedule>,
    surveys: BTreeMap<String, GcSurvey>,
}

/// Jobs in memory, which are lost when the process ends.
pub struct MemoryQueue {
    clock: Arc<dyn Clock>,
    timing: Timing,
    inside: Mutex<Inside>,
}

/// Locked state and current time, for one operation.
struct Change<'a> {
    inside: MutexGuard<'a, Inside>,
    now: SystemTime,
    now_ms: u64,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl MemoryQueue {
    /// Makes an empty queue.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, timing: Timing) -> Self {
        Self { clock, timing, inside: Mutex::default() }
    }

    fn change(&self) -> Change<'_> {
        let now = self.clock.now();
        let now_ms = milliseconds(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        // Rounded down to milliseconds, as Redis stores times.
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms);
        Change { inside: self.inside.lock().unwrap_or_else(PoisonError::into_inner), now, now_ms }
    }

    /// Changes a job for the holder of its lease, and extends the lease.
    fn with_lease(
        &self,
        lease: &Lease,
        change: impl FnOnce(&mut Kept) -> Option<String>,
    ) -> Result<LeaseStatus, QueueError> {
        let mut now = self.change();
        let until = now.now_ms + milliseconds(self.timing.lease);
        let at = now.now;
        let kept = now.holder(lease)?;
        kept.until_ms = until;
        kept.job.changed_at = at;
        let event = change(kept);
        let status = if kept.job.cancel { LeaseStatus::Cancelled } else { LeaseStatus::On };
        if let Some(step) = event {
            now.note(lease.id, "step", &step);
        }
        Ok(status)
    }

    fn end(&self, lease: &Lease, state: JobState, text: &str) -> Result<(), QueueError> {
        let mut now = self.change();
        let same = now
            .inside
            .jobs
            .get(&lease.id)
            .is_some_and(|kept| kept.job.state == state && kept.ended_by.as_ref() == Some(&lease.token));
        if same {
            return Ok(());
        }
        let kept = now.holder(lease)?;
        kept.token = None;
        kept.ended_by = Some(lease.token.clone());
        match state {
            JobState::Done => kept.job.result = Some(text.to_owned()),
            JobState::Dead => {
                kept.job.error = Some(text.to_owned());
                kept.job.attempts += 1;
            }
            _ => {}
        }
        if state == JobState::Done {
            let (server, region) = (kept.job.server.clone(), kept.job.region.clone());
            let success = LastSuccess { server, region, at: now.now, id: lease.id, result: text.to_owned() };
            now.inside.last_successes.insert((success.server.clone(), success.region.clone()), success);
        }
        now.set_state(lease.id, state, None);
        now.note(lease.id, state.name(), if state == JobState::Done { "" } else { text });
        Ok(())
    }

    /// Returns a job to the queue: at once, or after a failed attempt and a wait.
    fn give_back(&self, lease: &Lease, failed: Option<(&str, Duration)>) -> Result<(), QueueError> {
        let mut now = self.change();
        if failed.is_some()
            && now
                .inside
                .jobs
                .get(&lease.id)
                .is_some_and(|kept| kept.failed_by.as_ref() == Some(&lease.token))
        {
            return Ok(());
        }
        let kept = now.holder(lease)?;
        kept.token = None;
        if let Some((error, _)) = failed {
            kept.failed_by = Some(lease.token.clone());
            kept.job.error = Some(error.to_owned());
            kept.job.attempts += 1;
        }
        if kept.job.cancel && kept.job.journal.is_none() {
            now.set_state(lease.id, JobState::Cancelled, None);
            now.note(lease.id, "cancelled", "");
        } else if let Some((error, wait)) = failed {
            let due = now.now_ms + milliseconds(wait);
            now.set_state(lease.id, JobState::Delayed, Some(due));
            now.note(lease.id, "failed", error);
        } else {
            now.set_state(lease.id, JobState::Ready, None);
            now.note(lease.id, "released", "");
        }
        Ok(())
    }
}

impl Change<'_> {
    fn holder(&mut self, lease: &Lease) -> Result<&mut Kept, QueueError> {
        let lost = QueueError::LeaseLost { id: lease.id };
        let kept = self.inside.jobs.get_mut(&lease.id);
        kept.filter(|kept| kept.job.state == JobState::Running && kept.token.as_ref() == Some(&lease.token))
            .ok_or(lost)
    }

    fn note(&mut self, id: JobId, what: &str, details: &str) {
        let at = self.now;
        self.inside.events.push(QueueEvent { at, id, what: what.to_owned(), details: details.to_owned() });
        let beyond = self.inside.events.len().saturating_sub(EVENTS_KEPT);
        self.inside.events.drain(..beyond);
    }

    fn set_state(&mut self, id: JobId, state: JobState, until_ms: Option<u64>) {
        let (now, now_ms) = (self.now, self.now_ms);
        if let Some(kept) = self.inside.jobs.get_mut(&id) {
            kept.job.state = state;
            kept.job.changed_at = now;
            kept.until_ms = until_ms.unwrap_or(now_ms);
        }
    }

    fn open(&self, server: &str, region: &str) -> Option<JobId> {
        let same = |kept: &&Kept| {
            !kept.job.state.is_over() && kept.job.server == server && kept.job.region == region
        };
        self.inside.jobs.values().find(same).map(|kept| kept.job.id)
    }

    fn promote_due(&mut self) {
        let now_ms = self.now_ms;
        let due = |kept: &&Kept| kept.job.state == JobState::Delayed && kept.until_ms <= now_ms;
        for id in self.inside.jobs.values().filter(due).map(|kept| kept.job.id).collect::<Vec<_>>() {
            self.set_state(id, JobState::Ready, None);
        }
    }

    fn find(&mut self, id: JobId) -> Result<&mut Kept, QueueError> {
        self.inside.jobs.get_mut(&id).ok_or(QueueError::NoSuchJob { id })
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn rights(&self) -> Result<(), QueueError> {
        Ok(())
    }

    async fn enqueue(&self, job: &NewJob) -> Result<Enqueued, QueueError> {
        let mut now = self.change();
        if now.inside.jobs.contains_key(&job.id) {
            return Ok(Enqueued::Added);
        }
        if let Some(open) = now.open(&job.server, &job.region) {
            return Ok(Enqueued::OpenAlready(open));
        }
        let kept = Kept {
            job: JobRecord {
                id: job.id,
                server: job.server.clone(),
                region: job.region.clone(),
                spec: job.spec.clone(),
                priority: job.priority,
                state: JobState::Ready,
                step: None,
                progress: None,
                journal: None,
                deliveries: 0,
                attempts: 0,
                takeovers: 0,
                error: None,
                result: None,
                worker: None,
                cancel: false,
                added_at: now.now,
                changed_at: now.now,
            },
            score: job.priority.score(now.now_ms),
            until_ms: now.now_ms,
            token: None,
            ended_by: None,
            failed_by: None,
            furthest: 0,
        };
        now.inside.jobs.insert(job.id, kept);
        if !job.wait.is_zero() {
            let due = now.now_ms + milliseconds(job.wait);
            now.set_state(job.id, JobState::Delayed, Some(due));
        }
        now.note(job.id, "added", &format!("{} into {}", job.server, job.region));
        Ok(Enqueued::Added)
    }

    async fn claim(&self, worker: &str, token: &Token) -> Result<Option<Delivered>, QueueError> {
        let mut now = self.change();
        let at = now.now;
        now.inside.workers.insert(worker.to_owned(), at);
        let again = now
            .inside
            .jobs
            .values()
            .find(|kept| kept.job.state == JobState::Running && kept.token.as_ref() == Some(token));
        if let Some(again) = again {
            return Ok(Some(Delivered { job: again.job.clone(), token: token.clone() }));
        }
        now.promote_due();
        let ready = now.inside.jobs.values().filter(|kept| kept.job.state == JobState::Ready);
        let Some(next) = ready.min_by_key(|kept| (kept.score, kept.job.id)).map(|kept| kept.job.id) else {
            return Ok(None);
        };
        let until = now.now_ms + milliseconds(self.timing.lease);
        now.set_state(next, JobState::Running, Some(until));
        let kept = now.find(next)?;
        kept.token = Some(token.clone());
        kept.job.worker = Some(worker.to_owned());
        kept.job.deliveries += 1;
        let job = kept.job.clone();
        now.note(next, "claimed", worker);
        Ok(Some(Delivered { job, token: token.clone() }))
    }

    async fn beat(&self, lease: &Lease, progress: &str) -> Result<LeaseStatus, QueueError> {
        let mut worker = None;
        let status = self.with_lease(lease, |kept| {
            kept.job.progress = Some(progress.to_owned());
            worker.clone_from(&kept.job.worker);
            None
        })?;
        let mut now = self.change();
        let at = now.now;
        now.inside.workers.extend(worker.map(|worker| (worker, at)));
        Ok(status)
    }

    async fn step(
        &self,
        lease: &Lease,
        step: &str,
        journal: &str,
        through: Option<u32>,
    ) -> Result<LeaseStatus, QueueError> {
        self.with_lease(lease, |kept| {
            let other = kept.job.step.as_deref() != Some(step);
            kept.job.step = Some(step.to_owned());
            kept.job.journal = Some(journal.to_owned());
            if let Some(through) = through.filter(|&through| through > kept.furthest) {
                (kept.furthest, kept.job.takeovers) = (through, 0);
            }
            other.then(|| step.to_owned())
        })
    }

    async fn release(&self, lease: &Lease) -> Result<(), QueueError> {
        self.give_back(lease, None)
    }

    async fn finish(&self, lease: &Lease, result: &str) -> Result<(), QueueError> {
        self.end(lease, JobState::Done, result)
    }

    async fn fail(&self, lease: &Lease, error: &str, then: OnFailure) -> Result<(), QueueError> {
        match then {
            OnFailure::Dead => self.end(lease, JobState::Dead, error),
            OnFailure::RetryAfter(wait) => self.give_back(lease, Some((error, wait))),
        }
    }

    async fn stop(&self, lease: &Lease) -> Result<(), QueueError> {
        self.end(lease, JobState::Cancelled, "")
    }

    async fn cancel(&self, id: JobId) -> Result<JobState, QueueError> {
        let mut now = self.change();
        let (state, at) = (now.find(id)?.job.state, now.now);
        match state {
            JobState::Ready | JobState::Delayed => {
                let kept = now.find(id)?;
                kept.job.cancel = true;
                if kept.job.journal.is_some() {
                    // A worker has to remove the resources that were created.
                    now.set_state(id, JobState::Ready, None);
                } else {
                    now.set_state(id, JobState::Cancelled, None);
                    now.note(id, "cancelled", "");
                }
            }
            JobState::Running => {
                let kept = now.find(id)?;
                kept.job.cancel = true;
                kept.job.changed_at = at;
            }
            JobState::Done | JobState::Dead | JobState::Cancelled => {}
        }
        Ok(now.find(id)?.job.state)
    }

    async fn retry(&self, id: JobId) -> Result<(), QueueError> {
        let mut now = self.change();
        let job = &now.find(id)?.job;
        let (state, server, region) = (job.state, job.server.clone(), job.region.clone());
        if !matches!(state, JobState::Dead | JobState::Cancelled) {
            return Err(QueueError::WrongState { id, state });
        }
        if let Some(other) = now.open(&server, &region) {
            return Err(QueueError::Duplicate { other });
        }
        let kept = now.find(id)?;
        kept.job = JobRecord { cancel: false, error: None, attempts: 0, takeovers: 0, ..kept.job.clone() };
        (kept.ended_by, kept.failed_by, kept.furthest) = (None, None, 0);
        now.set_state(id, JobState::Ready, None);
        now.note(id, "retried", "");
        Ok(())
    }

    async fn reap(&self) -> Result<Reaped, QueueError> {
        let mut now = self.change();
        now.promote_due();
        let mut reaped = Reaped::default();
        let now_ms = now.now_ms;
        let is_expired = |kept: &&Kept| kept.job.state == JobState::Running && kept.until_ms <= now_ms;
        let mut expired: Vec<(u64, JobId)> =
            now.inside.jobs.values().filter(is_expired).map(|kept| (kept.until_ms, kept.job.id)).collect();
        expired.sort_unstable();
        for (_, id) in expired {
            let kept = now.find(id)?;
            kept.token = None;
            kept.job.takeovers += 1;
            let cancel_now = kept.job.cancel && kept.job.journal.is_none();
            let (takeovers, worker) = (kept.job.takeovers, kept.job.worker.clone().unwrap_or_default());
            if cancel_now {
                now.set_state(id, JobState::Cancelled, None);
                now.note(id, "cancelled", "");
            } else if takeovers >= self.timing.takeovers {
                kept.job.error =
                    Some(format!("its worker was lost {takeovers} times before it got a step further"));
                now.set_state(id, JobState::Dead, None);
                now.note(id, "dead", "poison");
                reaped.dead.push(id);
            } else {
                now.set_state(id, JobState::Ready, None);
                now.note(id, "taken-back", &worker);
                reaped.taken_back.push(id);
            }
        }
        Ok(reaped)
    }

    async fn purge(&self, over_for: Duration) -> Result<u64, QueueError> {
        let mut now = self.change();
        let before = now.now_ms.saturating_sub(milliseconds(over_for));
        let count_before = now.inside.jobs.len();
        now.inside.jobs.retain(|_, kept| !kept.job.state.is_over() || kept.until_ms >= before);
        let oldest = SystemTime::UNIX_EPOCH + Duration::from_millis(before);
        now.inside.workers.retain(|_, at| *at >= oldest);
        Ok(snapferry_base::units::to_u64(count_before - now.inside.jobs.len()))
    }

    async fn now(&self) -> Result<SystemTime, QueueError> {
        Ok(self.change().now)
    }

    async fn set_schedule(&self, name: &str, plan: &str, since: CatchUp) -> Result<(), QueueError> {
        let mut now = self.change();
        let before = now.inside.schedules.get(name).filter(|_| since == CatchUp::Before);
        let last = before.map_or(now.now, |before| before.last);
        let schedule = Schedule { name: name.to_owned(), plan: plan.to_owned(), last };
        now.inside.schedules.insert(name.to_owned(), schedule);
        Ok(())
    }

    async fn remove_schedule(&self, name: &str) -> Result<bool, QueueError> {
        Ok(self.change().inside.schedules.remove(name).is_some())
    }

    async fn schedules(&self) -> Result<Vec<Schedule>, QueueError> {
        Ok(self.change().inside.schedules.values().cloned().collect())
    }

    async fn tick(&self, name: &str, at: SystemTime) -> Result<bool, QueueError> {
        let mut now = self.change();
        let found = now.inside.schedules.get_mut(name).filter(|schedule| schedule.last < at);
        Ok(found.is_some_and(|schedule| {
            schedule.last = at;
            true
        }))
    }

    async fn last_successes(&self) -> Result<Vec<LastSuccess>, QueueError> {
        Ok(self.change().inside.last_successes.values().cloned().collect())
    }

    async fn forget(&self, server: &str, region: &str) -> Result<bool, QueueError> {
        let mut now = self.change();
        let was_removed = now.inside.last_successes.remove(&(server.to_owned(), region.to_owned())).is_some();
        let count_before = now.inside.jobs.len();
        let is_match =
            |job: &JobRecord| job.state == JobState::Dead && job.server == server && job.region == region;
        now.inside.jobs.retain(|_, kept| !is_match(&kept.job));
        Ok(was_removed || now.inside.jobs.len() < count_before)
    }

    async fn set_survey(&self, place: &str, found: &str) -> Result<(), QueueError> {
        let mut now = self.change();
        let surveyed = GcSurvey { place: place.to_owned(), at: now.now, found: found.to_owned() };
        now.inside.surveys.insert(place.to_owned(), surveyed);
        Ok(())
    }

    async fn surveys(&self) -> Result<Vec<GcSurvey>, QueueError> {
        Ok(self.change().inside.surveys.values().cloned().collect())
    }

    async fn workers(&self) -> Result<Vec<WorkerSeen>, QueueError> {
        let now = self.change();
        Ok(now.inside.workers.iter().map(|(worker, &at)| WorkerSeen { worker: worker.clone(), at }).collect())
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>, QueueError> {
        Ok(self.change().inside.jobs.get(&id).map(|kept| kept.job.clone()))
    }

    async fn jobs_in(&self, states: &[JobState], limit: usize) -> Result<Vec<JobRecord>, QueueError> {
        let now = self.change();
        let jobs_of = |&state: &JobState| {
            let mut found: Vec<&Kept> =
                now.inside.jobs.values().filter(|kept| kept.job.state == state).collect();
            match state {
                JobState::Ready => found.sort_by_key(|kept| (kept.score, kept.job.id)),
                _ => found.sort_by_key(|kept| (kept.until_ms, kept.job.id)),
            }
            if state.is_over() {
                found.reverse();
            }
            found.into_iter().take(limit).map(|kept| kept.job.clone()).collect::<Vec<JobRecord>>()
        };
        Ok(states.iter().flat_map(jobs_of).collect())
    }

    async fn counts(&self) -> Result<Counts, QueueError> {
        let now = self.change();
        let count = |state| now.inside.jobs.values().filter(|kept| kept.job.state == state).count();
        Ok(Counts(
            JobState::ALL
                .into_iter()
                .map(|state| (state, snapferry_base::units::to_u64(count(state))))
                .collect(),
        ))
    }

    async fn waiting(&self) -> Result<Option<Duration>, QueueError> {
        let now = self.change();
        let ready = now.inside.jobs.values().filter(|kept| kept.job.state == JobState::Ready);
        let since = ready.map(|kept| kept.job.changed_at).min();
        Ok(since.map(|since| now.now.duration_since(since).unwrap_or_default()))
    }

    async fn events(&self, limit: usize) -> Result<Vec<QueueEvent>, QueueError> {
        let now = self.change();
        let from = now.inside.events.len().saturating_sub(limit);
        Ok(now.inside.events[from..].to_vec())
    }
}
