//! What an error means for the next attempt, and how long to wait before it.

use std::time::Duration;

use rand::RngExt as _;

use crate::limits;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// May go away by itself: a timeout, a reset, a 5xx. Try again.
    Transient,
    /// The other side asks for less: 429, 503 SlowDown. Try again later, and with less in flight.
    Throttled,
    /// Will be the same next time.
    Permanent,
    /// We stopped it ourselves.
    Cancelled,
    /// Somebody else owns the job now: stop, touch nothing.
    LeaseLost,
}

impl Class {
    /// Whether another attempt makes sense.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Transient | Self::Throttled)
    }
}

/// An error's own words and those of everything behind it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&limits::words(error));
        next = error.source();
    }
    text
}

/// Waits between attempts: exponential, with full jitter, bounded.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Attempts in all, the first one included.
    pub attempts: u32,
    /// The wait before the second attempt is drawn from zero to this.
    pub first: Duration,
    /// No wait is drawn from more than this.
    pub longest: Duration,
}

impl Backoff {
    /// For requests to an object store: twelve attempts spread over three minutes at most, and over half of that on average. An outage
    /// of half a minute is survived.
    pub const STORE: Self = Self { attempts: 12, first: Duration::from_millis(500), longest: Duration::from_secs(30) };
    /// For a token: seven attempts spread over half a minute at most.
    pub const TOKEN: Self = Self { attempts: 7, first: Duration::from_millis(500), longest: Duration::from_secs(20) };

    /// The wait before attempt `next` (2, 3, ...), or none when the attempts are used up.
    #[must_use]
    pub fn wait_before(&self, next: u32) -> Option<Duration> {
        if next > self.attempts {
            return None;
        }
        // "Full jitter": many clients that failed together don't come back together.
        Some(self.ceiling_before(next).mul_f64(rand::rng().random::<f64>()))
    }

    /// What the wait before attempt `next` is drawn up to.
    fn ceiling_before(&self, next: u32) -> Duration {
        let doublings = next.saturating_sub(2).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_given_minutes_and_a_token_half_a_minute() {
        let most = |backoff: Backoff| {
            let ceilings = (2..=backoff.attempts).map(|next| backoff.ceiling_before(next));
            ceilings.sum::<Duration>()
        };
        assert_eq!(most(Backoff::STORE), Duration::from_millis(181_500));
        assert_eq!(most(Backoff::TOKEN), Duration::from_millis(31_500));
    }

    #[test]
    fn waits_grow_stay_bounded_and_end() {
        let backoff = Backoff { attempts: 4, first: Duration::from_secs(1), longest: Duration::from_secs(3) };
        for _ in 0..100 {
            assert!(backoff.wait_before(2).expect("a second attempt") <= Duration::from_secs(1));
            assert!(backoff.wait_before(4).expect("a fourth attempt") <= Duration::from_secs(3));
        }
        assert_eq!(backoff.wait_before(5), None);
    }
}
