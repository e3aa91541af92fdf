//! Identifiers of jobs. The names of a job's resources, its journal and its entry in a queue contain them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use ulid::Ulid;

use crate::clock::Clock;

/// Identifier of a job: a ULID, which sorts by the time at which the job began. It is in lower case, as names
/// and tags in the cloud are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Ulid);

/// Error of a text that is no job identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no job: give its id, 26 letters and digits as in 01kb3v9w6rj0c2xq4m8s5t7yza")]
pub struct JobIdError {
    text: String,
}

impl JobId {
    /// Creates an identifier for a job that begins now.
    #[must_use]
    pub fn new(clock: &dyn Clock) -> Self {
        Self::at(clock.now(), rand::random())
    }

    /// Returns the identifier for a job that began at `time`, with the low 80 bits of `random`.
    #[must_use]
    pub fn at(time: SystemTime, random: u128) -> Self {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(Ulid::from_parts(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX), random))
    }

    /// Returns the time at which the job began, to the millisecond.
    #[must_use]
    pub fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.timestamp_ms())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string().to_ascii_lowercase())
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = JobIdError;
    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let wrong = || JobIdError { text: text.to_owned() };
        // The parser accepts both cases. Identifiers are also compared as text, so only the lower-case form
        // is valid.
        let id = Ulid::from_string(&text.to_ascii_uppercase()).map(Self).map_err(|_| wrong())?;
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (early, late) = (JobId::at(at(1_767_323_045), u128::MAX), JobId::at(at(1_767_323_046), 0));
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.time(), at(1_767_323_045));
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(
            serde_json::from_str::<JobId>(&serde_json::to_string(&late).expect("JSON")).expect("an id"),
            late
        );
        for text in [
            "",
            "01KB3V9W6RJ0C2XQ4M8S5T7YZA",
            "01kb3v9w6rj0c2xq4m8s5t7yz",
            "81kb3v9w6rj0c2xq4m8s5t7yza",
            "../etc/passwd",
        ] {
            assert_eq!(text.parse::<JobId>(), Err(JobIdError { text: text.to_owned() }));
        }
    }
}
