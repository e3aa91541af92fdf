//! Clock that is passed in as a parameter, so that tests can control the time.

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;

/// Source of the current time, and of waits.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall-clock time, for names, expiry dates and logs.
    fn now(&self) -> SystemTime;
    /// Returns the monotonic time, for measuring durations.
    fn instant(&self) -> Instant;
    async fn sleep(&self, duration: Duration);
}

/// The system's real clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Formats a time in UTC to the second, as in `2026-01-02T03:04:05Z`.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    utc(time, "%Y-%m-%dT%H:%M:%SZ")
}

/// Formats a time in UTC to the second without punctuation, as in `20260102030405`. Used in names.
#[must_use]
pub fn compact(time: SystemTime) -> String {
    utc(time, "%Y%m%d%H%M%S")
}

/// Parses a time that [`compact`] formatted. Returns `None` if the text has another form.
#[must_use]
pub fn parse_compact(text: &str) -> Option<SystemTime> {
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().into())
}

fn utc(time: SystemTime, format: &str) -> String {
    // The conversion fails only if the clock is set beyond the year 9999. The epoch is then an obvious sign
    // that the clock is wrong.
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_in_utc() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        assert_eq!(
            (rfc3339(time).as_str(), compact(time).as_str()),
            ("2026-01-02T03:04:05Z", "20260102030405")
        );
    }
}
