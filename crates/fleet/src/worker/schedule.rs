//! Jobs that are added at certain times. The first worker that checks adds them, and a second one adds
//! nothing, because the ids of the jobs follow from the schedule and the tick.

use std::str::FromStr;
use std::time::SystemTime;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use snapferry_base::job::JobId;
use snapferry_base::retry::chain;

use crate::queue::{Enqueued, NewJob, Priority, Queue, QueueError, Schedule};
use crate::replicate::job::JobSpec;

/// Jobs of a schedule, and the times at which they are added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Five fields as in cron(5), in UTC.
    pub cron: String,
    pub priority: Priority,
    /// Templates of the jobs. Each tick replaces their ids.
    pub jobs: Vec<JobSpec>,
}

/// A cron pattern that can't be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{pattern:?} is no time for a schedule: {reason}; give five fields, minute hour day month weekday, as in \"30 2 * * *\" (UTC)"
)]
pub struct CronError {
    pattern: String,
    reason: String,
}

/// A parsed cron pattern.
#[derive(Clone, Debug)]
pub struct Ticks(Cron);

impl Ticks {
    /// Parses a pattern of five fields, or a nickname such as `@daily`.
    ///
    /// # Errors
    /// If the pattern is not valid.
    pub fn read(pattern: &str) -> Result<Self, CronError> {
        let wrong = |reason: String| CronError { pattern: pattern.to_owned(), reason };
        let fields = pattern.split_whitespace().count();
        if fields != 5 && !pattern.starts_with('@') {
            return Err(wrong(format!("it has {fields} fields")));
        }
        Cron::from_str(pattern).map(Self).map_err(|err| wrong(err.to_string()))
    }

    /// Returns the last tick at or before `now`. None if there was none for years.
    #[must_use]
    pub fn last(&self, now: SystemTime) -> Option<SystemTime> {
        let at = Timestamp::try_from(now).ok()?.to_zoned(TimeZone::UTC);
        self.0.find_previous_occurrence(&at, true).ok().map(|tick| whole_seconds(tick.timestamp()))
    }

    /// Returns the first tick after `now`. None if there will be none for years.
    #[must_use]
    pub fn next(&self, now: SystemTime) -> Option<SystemTime> {
        let at = Timestamp::try_from(now).ok()?.to_zoned(TimeZone::UTC);
        self.0.find_next_occurrence(&at, false).ok().map(|tick| whole_seconds(tick.timestamp()))
    }
}

/// Cuts a time to whole seconds, so that every worker computes the same id.
fn whole_seconds(at: Timestamp) -> SystemTime {
    Timestamp::from_second(at.as_second()).unwrap_or(at).into()
}

/// Returns the id of a schedule's job for a server at a tick.
fn id_of(schedule: &str, tick: SystemTime, job: &JobSpec) -> JobId {
    let input = format!("{schedule}\n{}\n{}", job.to, job.server);
    let hash = blake3::hash(input.as_bytes());
    let bits = hash.as_bytes().iter().take(16).fold(0_u128, |bits, &byte| bits << 8 | u128::from(byte));
    JobId::at(tick, bits)
}

/// Adds the jobs that are due by `now`, and returns their number. If several ticks were missed, only the last
/// one counts.
///
/// # Errors
/// If the queue can't be reached, or refuses a request.
pub async fn add_due(queue: &dyn Queue, schedules: &[Schedule], now: SystemTime) -> Result<u64, QueueError> {
    let mut added = 0;
    for schedule in schedules {
        let (plan, ticks) = match read(schedule) {
            Ok(read) => read,
            Err(reason) => {
                tracing::error!(schedule = %schedule.name, "the schedule makes no sense to this version of snapferry: {reason}");
                continue;
            }
        };
        let Some(tick) = ticks.last(now).filter(|&tick| tick > schedule.last) else { continue };
        for template in &plan.jobs {
            let job = JobSpec { id: id_of(&schedule.name, tick, template), ..template.clone() };
            let new = NewJob {
                id: job.id,
                server: job.server.clone(),
                region: job.to.clone(),
                spec: serde_json::to_string(&job).unwrap_or_default(),
                priority: plan.priority,
                wait: std::time::Duration::ZERO,
            };
            match queue.enqueue(&new).await? {
                Enqueued::Added => added += 1,
                Enqueued::OpenAlready(other) => {
                    tracing::warn!(schedule = %schedule.name, server = %job.server, job = %other, "it is not over yet, so no other is added");
                }
            }
        }
        // This comes last: if the worker dies before it, the jobs are added again, with the same ids.
        if queue.tick(&schedule.name, tick).await? {
            tracing::info!(schedule = %schedule.name, jobs = plan.jobs.len(), "its time has come");
        }
    }
    Ok(added)
}

/// Parses the plan and the times of a stored schedule.
///
/// # Errors
/// If they are not valid, a message for the user.
pub fn read(schedule: &Schedule) -> Result<(Plan, Ticks), String> {
    let plan: Plan = serde_json::from_str(&schedule.plan).map_err(|err| chain(&err))?;
    let ticks = Ticks::read(&plan.cron).map_err(|err| err.to_string())?;
    Ok((plan, ticks))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOON: u64 = 1_767_355_200; // 2026-01-02T12:00:00Z, a Friday

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn ticks_are_found_before_and_after() {
        let nightly = Ticks::read("30 2 * * *").expect("a pattern");
        assert_eq!(nightly.last(at(NOON)), Some(at(NOON - 9 * 3600 - 1800)));
        assert_eq!(nightly.next(at(NOON)), Some(at(NOON + 14 * 3600 + 1800)));
        let hourly = Ticks::read("0 * * * *").expect("a pattern");
        assert_eq!(hourly.last(at(NOON)), Some(at(NOON)), "a tick counts from its own second on");
        assert_eq!(hourly.next(at(NOON)), Some(at(NOON + 3600)));
        assert_eq!(hourly.last(at(NOON) + Duration::from_millis(999)), Some(at(NOON)));
        let sundays = Ticks::read("0 12 * * 0").expect("a pattern");
        assert_eq!(sundays.next(at(NOON)), Some(at(NOON + 2 * 86_400)));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for pattern in ["", "nightly", "* * * *", "61 * * * *", "0 0 2 * * *", "30 2 * * * 2026"] {
            let err = Ticks::read(pattern).expect_err(pattern);
            assert!(err.to_string().contains("five fields"), "{err}");
        }
        assert_eq!(
            Ticks::read("0 0 30 2 *").expect("a pattern").next(at(NOON)),
            None,
            "the 30th of February"
        );
    }
}
