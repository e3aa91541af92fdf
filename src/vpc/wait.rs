//! Waiting for the cloud: one loop that asks again at growing, jittered intervals until a state is reached, left for good, or overdue.

use std::future::Future;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::error::{VpcError, in_brackets};
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::retry::chain;

/// The first wait between two questions.
const FIRST: Duration = Duration::from_secs(2);
/// The longest: what IBM's own tools take throughout.
const LONGEST: Duration = Duration::from_secs(10);
/// How much each wait is longer than the one before.
const GROWTH: f64 = 1.5;
/// A wait is shorter or longer by up to this share, so that many jobs don't ask in step.
const JITTER: f64 = 0.2;

/// How long to wait for something, and how often to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The wait before the second question.
    pub first: Duration,
    /// The longest wait between two.
    pub longest: Duration,
    /// When to give up.
    pub deadline: Duration,
}

impl Patience {
    /// A snapshot: the first one of a large volume takes hours.
    pub const SNAPSHOT: Self = Self::hours(12);
    /// A copy into another region: IBM names up to 12.5 hours for 3 TB.
    pub const COPY: Self = Self::hours(24);
    /// A fast-restore clone.
    pub const CLONE: Self = Self::hours(6);
    /// A volume from a snapshot.
    pub const VOLUME: Self = Self::hours(1);
    /// An attachment, on or off: IBM's own drivers give it seven minutes.
    pub const ATTACHMENT: Self = Self { deadline: Duration::from_secs(15 * 60), ..Self::hours(0) };
    /// Something to be gone. A snapshot stays while a volume is filled from it.
    pub const DELETION: Self = Self::hours(6);
    /// An image to be imported; how long that takes is not documented.
    pub const IMAGE: Self = Self::hours(6);
    /// An image to be exported.
    pub const EXPORT: Self = Self::hours(12);
    /// A server to come up.
    pub const INSTANCE: Self = Self::hours(1);
    /// Something that is busy with another change, to be through with it; where a step has a deadline of its own, that one counts.
    pub const BUSY: Self = Self { deadline: Duration::from_secs(30 * 60), ..Self::hours(0) };

    const fn hours(hours: u64) -> Self {
        Self { first: FIRST, longest: LONGEST, deadline: Duration::from_secs(hours * 3600) }
    }

    /// The same with another deadline.
    #[must_use]
    pub const fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The wait after `asked` questions, before jitter.
    fn interval(&self, asked: u32) -> Duration {
        let exponent = i32::try_from(asked.saturating_sub(1).min(32)).unwrap_or(32);
        self.first.mul_f64(GROWTH.powi(exponent)).min(self.longest)
    }
}

/// How often the cloud is asked, and for how long, where a user wants it otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Asked so often from the start, in place of growing intervals of 2 to 10 s.
    pub every: Option<Duration>,
    /// Given up after so long, in place of each wait's own deadline.
    pub at_most: Option<Duration>,
}

impl Waits {
    /// Each wait by its own intervals and deadline.
    pub const USUAL: Self = Self { every: None, at_most: None };

    /// `patience` with what the user wants otherwise.
    #[must_use]
    pub fn of(self, patience: Patience) -> Patience {
        let asked = match self.every {
            Some(every) => Patience { first: every, longest: every, ..patience },
            None => patience,
        };
        match self.at_most {
            Some(deadline) => asked.within(deadline),
            None => asked,
        }
    }
}

/// What an answer means for somebody who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as we want it.
    Reached,
    /// It may still get there.
    Underway,
    /// It stays as it is.
    Ended,
}

/// What was seen at one look, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting<T> {
    /// The thing itself.
    pub seen: T,
    /// What it means.
    pub verdict: Verdict,
    /// Its state, with its progress where it tells any.
    pub state: String,
    /// The API's own reasons.
    pub reasons: Vec<String>,
}

/// Somebody who wants to know what is waited for.
pub trait Watch: Send + Sync {
    /// Told at each change: what is waited for, its state with its progress, and the API's own reasons.
    fn waiting(&self, what: &str, state: &str, reasons: &[String]);

    /// Told each answer: what was asked for, as in `GET snapshots`, and its HTTP status.
    fn answered(&self, _operation: &str, _status: u16) {}
}

/// A line in the log at each change.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWatch;

impl Watch for LogWatch {
    fn waiting(&self, what: &str, state: &str, reasons: &[String]) {
        tracing::info!("waiting for {what}: {state}{}", in_brackets(reasons));
    }
}

/// What a wait is for, and what it needs.
pub struct Waiting<'a> {
    /// In words for people: `snapshot web01-20260102`.
    pub what: String,
    /// How long.
    pub patience: Patience,
    /// Time.
    pub clock: &'a dyn Clock,
    /// Ends the wait.
    pub cancel: &'a Cancel,
    /// Told at each change.
    pub watch: &'a dyn Watch,
}

impl Waiting<'_> {
    /// Asks by `look` until it is as we want it. Each change of state is logged, and a question that fails for a passing reason is
    /// asked again until the deadline.
    ///
    /// # Errors
    /// [`VpcError::Ended`] in a state that it does not leave, [`VpcError::Overdue`] after the deadline, [`VpcError::Cancelled`], and
    /// `look`'s own error where that is for good.
    pub async fn until<T, F>(&self, mut look: impl FnMut() -> F) -> Result<T, VpcError>
    where
        F: Future<Output = Result<Sighting<T>, VpcError>>,
    {
        let begun = self.clock.instant();
        let mut asked = 0;
        let mut last = ("unknown".to_owned(), Vec::new());
        loop {
            match look().await {
                Ok(sighting) => {
                    let now = (sighting.state, sighting.reasons);
                    match sighting.verdict {
                        Verdict::Reached => return Ok(sighting.seen),
                        Verdict::Ended => {
                            return Err(VpcError::Ended { what: self.what.clone(), state: now.0, reasons: now.1 });
                        }
                        Verdict::Underway if now != last => {
                            self.watch.waiting(&self.what, &now.0, &now.1);
                            last = now;
                        }
                        Verdict::Underway => {}
                    }
                }
                Err(err) if err.class().is_retryable() => {
                    tracing::warn!("while waiting for {}: {}", self.what, chain(&err));
                }
                Err(err) => return Err(err),
            }
            asked += 1;
            self.pause(begun, asked, &last).await?;
        }
    }

    /// The wait before the next look, cut at the deadline, after which there is one more look.
    pub(super) async fn pause(&self, begun: Instant, asked: u32, last: &(String, Vec<String>)) -> Result<(), VpcError> {
        let waited = self.clock.instant().duration_since(begun);
        let left = self.patience.deadline.saturating_sub(waited);
        if left.is_zero() {
            let (state, reasons) = last.clone();
            return Err(VpcError::Overdue { what: self.what.clone(), state, waited, reasons });
        }
        let jitter = 1.0 + JITTER * (2.0 * rand::rng().random::<f64>() - 1.0);
        let wait = self.patience.interval(asked).mul_f64(jitter).min(left);
        tokio::select! {
            biased;
            _reason = self.cancel.cancelled() => Err(VpcError::Cancelled { what: format!("waiting for {}", self.what) }),
            () = self.clock.sleep(wait) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Reason;
    use crate::testing::clock::ManualClock;

    const SHORT: Patience =
        Patience { first: Duration::from_secs(1), longest: Duration::from_secs(4), deadline: Duration::from_secs(60) };

    fn sighting(verdict: Verdict, state: &str) -> Result<Sighting<u32>, VpcError> {
        Ok(Sighting { seen: 7, verdict, state: state.to_owned(), reasons: vec!["because".to_owned()] })
    }

    async fn wait(answers: Vec<Result<Sighting<u32>, VpcError>>, cancel: &Cancel) -> (Result<u32, VpcError>, Duration, u32) {
        let clock = ManualClock::hurried();
        let begun = clock.instant();
        let mut answers = answers.into_iter();
        let waiting = Waiting { what: "snapshot a".to_owned(), patience: SHORT, clock: &*clock, cancel, watch: &LogWatch };
        let seen =
            waiting.until(|| std::future::ready(answers.next().unwrap_or_else(|| sighting(Verdict::Underway, "pending")))).await;
        (seen, clock.instant().duration_since(begun), clock.sleeps())
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
        let (seen, ..) =
            wait(vec![sighting(Verdict::Underway, "pending"), lost(), sighting(Verdict::Reached, "stable")], &cancel).await;
        assert_eq!(seen.expect("it came"), 7);
        let (seen, ..) = wait(vec![sighting(Verdict::Underway, "pending"), sighting(Verdict::Ended, "failed")], &cancel).await;
        assert_eq!(seen.expect_err("it failed").to_string(), "snapshot a is failed (because)");
    }

    #[tokio::test]
    async fn intervals_grow_and_the_deadline_holds() {
        let (seen, passed, sleeps) = wait(Vec::new(), &Cancel::new()).await;
        assert!(matches!(seen, Err(VpcError::Overdue { .. })), "{seen:?}");
        assert_eq!(passed, SHORT.deadline, "it ends at its deadline");
        // 1 + 1.5 + 2.25 + 3.375 s, then 4 s each: 17 waits without jitter.
        assert!((12..=24).contains(&sleeps), "{sleeps}");
    }

    #[tokio::test]
    async fn told_to_stop_it_stops() {
        let cancel = Cancel::new();
        cancel.cancel(Reason::Asked);
        let (seen, ..) = wait(Vec::new(), &cancel).await;
        assert!(matches!(seen, Err(VpcError::Cancelled { .. })), "{seen:?}");
    }
}
