//! Classes of errors, which decide on another attempt, and the wait before it.

use std::time::Duration;

use rand::RngExt as _;

use crate::limits;

/// Class of an error, which decides on another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The cause may go away by itself: a timeout, a connection reset, a 5xx. Try again.
    Transient,
    /// The server asks for fewer requests: 429, 503 SlowDown. Try again later, with fewer requests in flight.
    Throttled,
    /// Another attempt would fail in the same way.
    Permanent,
    /// This process stopped the work itself.
    Cancelled,
    /// Another process owns the job now: stop, and change nothing.
    LeaseLost,
}

impl Class {
    /// True if another attempt makes sense.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Transient | Self::Throttled)
    }
}

/// Returns the messages of an error and of all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&limits::message(error));
        next = error.source();
    }
    text
}

/// Wait times between attempts: exponential, with full jitter, bounded.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Number of attempts, the first one included.
    pub attempts: u32,
    /// Upper bound of the random wait before the second attempt.
    pub first: Duration,
    /// Upper bound of every random wait.
    pub longest: Duration,
}

impl Backoff {
    /// Backoff of requests to an object store: twelve attempts over three minutes at most, and over half of
    /// that on average. It bridges an outage of half a minute.
    pub const STORE: Self =
        Self { attempts: 12, first: Duration::from_millis(500), longest: Duration::from_secs(30) };
    /// Backoff of requests for a token: seven attempts over half a minute at most.
    pub const TOKEN: Self =
        Self { attempts: 7, first: Duration::from_millis(500), longest: Duration::from_secs(20) };

    /// Returns the wait before attempt `next` (2, 3, ...), or `None` if no attempt is left.
    #[must_use]
    pub fn wait_before(&self, next: u32) -> Option<Duration> {
        if next > self.attempts {
            return None;
        }
        // "Full jitter": clients that failed at the same time don't all try again at the same time.
        Some(self.ceiling_before(next).mul_f64(rand::rng().random::<f64>()))
    }

    /// Returns the upper bound of the random wait before attempt `next`.
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
        let longest_wait = |backoff: Backoff| {
            let ceilings = (2..=backoff.attempts).map(|next| backoff.ceiling_before(next));
            ceilings.sum::<Duration>()
        };
        assert_eq!(longest_wait(Backoff::STORE), Duration::from_millis(181_500));
        assert_eq!(longest_wait(Backoff::TOKEN), Duration::from_millis(31_500));
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
