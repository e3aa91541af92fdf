//! Polling of the cloud: one loop that asks again at growing, jittered intervals until the resource reaches
//! the wanted state, ends in another one, or the deadline passes.

use std::future::Future;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::retry::chain;

use super::error::{VpcError, in_brackets};

/// Wait between the first two requests.
const FIRST: Duration = Duration::from_secs(2);
/// Longest wait between two requests: the interval that IBM's own tools use throughout.
const LONGEST: Duration = Duration::from_secs(10);
/// Factor by which each wait is longer than the one before.
const GROWTH: f64 = 1.5;
/// Share by which a wait is made shorter or longer at random, so that many jobs don't poll in step.
const JITTER: f64 = 0.2;

/// Intervals and deadline of one wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Wait before the second request.
    pub first: Duration,
    /// Longest wait between two requests.
    pub longest: Duration,
    /// Time after which the wait fails, measured from its start.
    pub deadline: Duration,
}

impl Patience {
    /// Wait for a snapshot: the first one of a large volume takes hours.
    pub const SNAPSHOT: Self = Self::hours(12);
    /// Wait for a copy into another region: IBM documents up to 12.5 hours for 3 TB.
    pub const COPY: Self = Self::hours(24);
    /// Wait for a fast-restore clone.
    pub const CLONE: Self = Self::hours(6);
    /// Wait for a volume from a snapshot.
    pub const VOLUME: Self = Self::hours(1);
    /// Wait for an attachment or a detachment: IBM's own drivers allow seven minutes.
    pub const ATTACHMENT: Self = Self { deadline: Duration::from_secs(15 * 60), ..Self::hours(0) };
    /// Wait for a deletion. A snapshot stays while a volume is filled from it.
    pub const DELETION: Self = Self::hours(6);
    /// Wait for the import of an image; how long it takes is not documented.
    pub const IMAGE: Self = Self::hours(6);
    /// Wait for the export of an image.
    pub const EXPORT: Self = Self::hours(12);
    /// Wait for a server to run.
    pub const INSTANCE: Self = Self::hours(1);
    /// Wait for a resource that is busy with another change. A step that has a deadline of its own uses that
    /// one.
    pub const BUSY: Self = Self { deadline: Duration::from_secs(30 * 60), ..Self::hours(0) };

    const fn hours(hours: u64) -> Self {
        Self { first: FIRST, longest: LONGEST, deadline: Duration::from_secs(hours * 3600) }
    }

    /// Returns the same intervals with another deadline.
    #[must_use]
    pub const fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Returns the wait after `attempts` requests, before jitter.
    fn interval(&self, attempts: u32) -> Duration {
        let exponent = i32::try_from(attempts.saturating_sub(1).min(32)).unwrap_or(32);
        self.first.mul_f64(GROWTH.powi(exponent)).min(self.longest)
    }
}

/// The user's settings for polling intervals and deadlines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Fixed interval between requests, in place of growing intervals of 2 to 10 s.
    pub interval: Option<Duration>,
    /// Deadline for every wait, in place of each wait's own.
    pub deadline: Option<Duration>,
}

impl Waits {
    /// Default settings: each wait has its own intervals and deadline.
    pub const USUAL: Self = Self { interval: None, deadline: None };

    /// Returns `patience` with the user's settings applied.
    #[must_use]
    pub fn of(self, patience: Patience) -> Patience {
        let adjusted = match self.interval {
            Some(interval) => Patience { first: interval, longest: interval, ..patience },
            None => patience,
        };
        match self.deadline {
            Some(deadline) => adjusted.within(deadline),
            None => adjusted,
        }
    }
}

/// Meaning of a response for a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The resource is in the wanted state.
    Reached,
    /// The resource may still reach the wanted state.
    Underway,
    /// The resource is in a state that it does not leave.
    Ended,
}

/// Result of one request while waiting, with its state as text for users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting<T> {
    /// Resource, as the API returned it.
    pub resource: T,
    /// Meaning of the response for the wait.
    pub verdict: Verdict,
    /// State of the resource, with its progress if the API reports any.
    pub state: String,
    /// Reasons for the state, as the API gives them.
    pub reasons: Vec<String>,
}

/// Observer of waits and responses.
pub trait Watch: Send + Sync {
    /// Called at each change of state with the resource that is waited for, its state and progress, and the
    /// API's reasons.
    fn waiting(&self, subject: &str, state: &str, reasons: &[String]);

    /// Called after each response with the method and the kind of resource, as in `GET` and `snapshots`, and
    /// the HTTP status.
    fn answered(&self, _method: &str, _resource: &str, _status: u16) {}
}

/// Observer that logs one line at each change of state.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWatch;

impl Watch for LogWatch {
    fn waiting(&self, subject: &str, state: &str, reasons: &[String]) {
        tracing::info!("waiting for {subject}: {state}{}", in_brackets(reasons));
    }
}

/// One wait: its subject, and the clock and signals that it uses.
pub struct Waiting<'a> {
    /// Description of the resource for messages: `snapshot web01-20260102`.
    pub subject: String,
    /// Intervals and deadline of the wait.
    pub patience: Patience,
    /// Clock that measures and sleeps.
    pub clock: &'a dyn Clock,
    /// Cancellation signal, which ends the wait.
    pub cancel: &'a Cancel,
    /// Observer that is called at each change of state.
    pub watch: &'a dyn Watch,
}

impl Waiting<'_> {
    /// Calls `poll` until the resource is in the wanted state. Each change of state is reported to the
    /// observer. A request that fails for a transient reason is sent again until the deadline.
    ///
    /// # Errors
    /// [`VpcError::Ended`] in a state that the resource does not leave, [`VpcError::Overdue`] after the
    /// deadline, [`VpcError::Cancelled`], and `poll`'s own error if it is permanent.
    pub async fn until<T, F>(&self, mut poll: impl FnMut() -> F) -> Result<T, VpcError>
    where
        F: Future<Output = Result<Sighting<T>, VpcError>>,
    {
        let started = self.clock.instant();
        let mut attempts = 0;
        let mut last = ("unknown".to_owned(), Vec::new());
        loop {
            match poll().await {
                Ok(sighting) => {
                    let now = (sighting.state, sighting.reasons);
                    match sighting.verdict {
                        Verdict::Reached => return Ok(sighting.resource),
                        Verdict::Ended => {
                            return Err(VpcError::Ended {
                                subject: self.subject.clone(),
                                state: now.0,
                                reasons: now.1,
                            });
                        }
                        Verdict::Underway if now != last => {
                            self.watch.waiting(&self.subject, &now.0, &now.1);
                            last = now;
                        }
                        Verdict::Underway => {}
                    }
                }
                Err(err) if err.class().is_retryable() => {
                    tracing::warn!("while waiting for {}: {}", self.subject, chain(&err));
                }
                Err(err) => return Err(err),
            }
            attempts += 1;
            self.pause(started, attempts, &last).await?;
        }
    }

    /// Sleeps before the next request. The sleep ends at the deadline at the latest, and one more request
    /// follows it.
    pub(super) async fn pause(
        &self,
        started: Instant,
        attempts: u32,
        last: &(String, Vec<String>),
    ) -> Result<(), VpcError> {
        let waited = self.clock.instant().duration_since(started);
        let remaining = self.patience.deadline.saturating_sub(waited);
        if remaining.is_zero() {
            let (state, reasons) = last.clone();
            return Err(VpcError::Overdue { subject: self.subject.clone(), state, waited, reasons });
        }
        let jitter = 1.0 + JITTER * (2.0 * rand::rng().random::<f64>() - 1.0);
        let wait = self.patience.interval(attempts).mul_f64(jitter).min(remaining);
        tokio::select! {
            biased;
            _reason = self.cancel.cancelled() => Err(VpcError::Cancelled { subject: format!("waiting for {}", self.subject) }),
            () = self.clock.sleep(wait) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::cancel::Reason;
    use snapferry_testkit::clock::ManualClock;

    use super::*;

    const SHORT: Patience = Patience {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(4),
        deadline: Duration::from_secs(60),
    };

    fn sighting(verdict: Verdict, state: &str) -> Result<Sighting<u32>, VpcError> {
        Ok(Sighting { resource: 7, verdict, state: state.to_owned(), reasons: vec!["because".to_owned()] })
    }

    async fn wait(
        sightings: Vec<Result<Sighting<u32>, VpcError>>,
        cancel: &Cancel,
    ) -> (Result<u32, VpcError>, Duration, u32) {
        let clock = ManualClock::hurried();
        let started = clock.instant();
        let mut sightings = sightings.into_iter();
        let waiting = Waiting {
            subject: "snapshot a".to_owned(),
            patience: SHORT,
            clock: &*clock,
            cancel,
            watch: &LogWatch,
        };
        let resource = waiting
            .until(|| {
                std::future::ready(sightings.next().unwrap_or_else(|| sighting(Verdict::Underway, "pending")))
            })
            .await;
        (resource, clock.instant().duration_since(started), clock.sleeps())
    }

    #[tokio::test]
    async fn a_passing_fault_is_not_the_end_and_a_terminal_state_is() {
        let lost = || {
            let request = super::super::error::Request {
                method: reqwest::Method::GET,
                host: "https://a".into(),
                path: "/".into(),
                id: "1".into(),
            };
            Err(VpcError::Unreachable { request, reason: "down".to_owned() })
        };
        let cancel = Cancel::new();
        let (resource, ..) = wait(
            vec![sighting(Verdict::Underway, "pending"), lost(), sighting(Verdict::Reached, "stable")],
            &cancel,
        )
        .await;
        assert_eq!(resource.expect("it came"), 7);
        let (resource, ..) =
            wait(vec![sighting(Verdict::Underway, "pending"), sighting(Verdict::Ended, "failed")], &cancel)
                .await;
        assert_eq!(resource.expect_err("it failed").to_string(), "snapshot a is failed (because)");
    }

    #[tokio::test]
    async fn intervals_grow_and_the_deadline_holds() {
        let (resource, passed, sleeps) = wait(Vec::new(), &Cancel::new()).await;
        assert!(matches!(resource, Err(VpcError::Overdue { .. })), "{resource:?}");
        assert_eq!(passed, SHORT.deadline, "it ends at its deadline");
        // 1 + 1.5 + 2.25 + 3.375 s, then 4 s each: 17 waits without jitter.
        assert!((12..=24).contains(&sleeps), "{sleeps}");
    }

    #[tokio::test]
    async fn told_to_stop_it_stops() {
        let cancel = Cancel::new();
        cancel.cancel(Reason::Requested);
        let (resource, ..) = wait(Vec::new(), &cancel).await;
        assert!(matches!(resource, Err(VpcError::Cancelled { .. })), "{resource:?}");
    }
}
