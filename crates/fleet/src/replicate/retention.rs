//! Decision which things of earlier runs are kept and which may go. It uses lists only, and sends no
//! requests.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Rules for the things of one kind that are kept for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Number of the newest things that are kept, at least one.
    pub newest: Newest,
    /// Age up to which further things are kept.
    #[serde(default)]
    pub younger_than: Option<Age>,
}

/// Number of things to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newest {
    /// All of them are kept.
    All,
    /// So many are kept; 0 counts as 1.
    Count(u32),
}

impl FromStr for Newest {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "all" => Ok(Self::All),
            number => match number.parse() {
                Ok(0) => Err("the newest one is always kept: give 1 or more, or all".to_owned()),
                Ok(count) => Ok(Self::Count(count)),
                Err(_) => Err(format!("{number:?} is neither a number nor all")),
            },
        }
    }
}

impl fmt::Display for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// Length of time as users type it: `90s`, `15m`, `36h`, `30d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(pub Duration);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

impl FromStr for Age {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        let wrong = || format!("{typed:?} is no length of time: give a number and s, m, h or d, as in 36h");
        let digits = typed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &typed[digits.len()..] {
            "s" => 1,
            "m" => MINUTE,
            "h" => HOUR,
            "d" => DAY,
            _ => return Err(wrong()),
        };
        let seconds =
            digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl TryFrom<String> for Age {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> Self {
        age.to_string()
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (unit, letter) in [(DAY, 'd'), (HOUR, 'h'), (MINUTE, 'm')] {
            if seconds >= unit && seconds.is_multiple_of(unit) {
                return write!(f, "{}{letter}", seconds / unit);
            }
        }
        write!(f, "{seconds}s")
    }
}

/// Rules of retention for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Snapshots in the server's region. At least one stays, so that the next one is quick.
    pub snapshots: Keep,
    /// Images in the recovery region, including the latest.
    pub images: Keep,
    /// Objects in the bucket.
    pub objects: Keep,
}

impl Default for Retention {
    /// Keeps one snapshot, so that the next ones are incremental, and two images and objects, in case the
    /// newest turns out bad.
    fn default() -> Self {
        let keep = |count| Keep { newest: Newest::Count(count), younger_than: None };
        Self { snapshots: keep(1), images: keep(2), objects: keep(2) }
    }
}

/// Reason why a thing must not be removed, however old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Thing without snapferry's tags, or with a name that snapferry does not give.
    NotOurs,
    /// The newest image, by its name.
    Latest,
    /// The user wants to keep it.
    Kept,
    /// A job that is under way or can be resumed needs it.
    InUse,
    /// Incomplete thing, which does not count as a good copy: it is left to `gc`.
    NotWhole,
}

/// Thing that retention decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    /// Time at which the thing was made; of a snapshot, the moment whose data it holds.
    pub made: SystemTime,
    /// Reason why the thing must not be removed, if there is one.
    pub protection: Option<Protection>,
}

/// Returns the indices of those `candidates` that may go, the oldest first. Of the good ones, the newest
/// `keep.newest` stay, and always at least one. Things that are younger than `keep.younger_than` stay too,
/// and so do things with a time that is later than `now`, from a clock that is ahead.
#[must_use]
pub fn beyond(candidates: &[Candidate], keep: &Keep, now: SystemTime) -> Vec<usize> {
    let Newest::Count(count) = keep.newest else { return Vec::new() };
    // The latest image and a kept thing are good and count among the newest; a foreign or an incomplete one
    // does not.
    let is_good_copy = |candidate: &Candidate| {
        matches!(candidate.protection, None | Some(Protection::Latest | Protection::Kept))
    };
    let mut good_copies: Vec<usize> =
        (0..candidates.len()).filter(|&at| is_good_copy(&candidates[at])).collect();
    // For the same time the name decides, so that each process decides alike.
    good_copies.sort_by(|&a, &b| {
        (candidates[b].made, &candidates[b].name).cmp(&(candidates[a].made, &candidates[a].name))
    });
    let kept = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
    let old = |at: &usize| match keep.younger_than {
        None => true,
        Some(Age(age)) => now.duration_since(candidates[*at].made).is_ok_and(|passed| passed > age),
    };
    let mut expired: Vec<usize> = good_copies
        .into_iter()
        .skip(kept)
        .filter(|&at| candidates[at].protection.is_none())
        .filter(old)
        .collect();
    expired.reverse();
    expired
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn candidate(name: &str, made: u64, protection: Option<Protection>) -> Candidate {
        Candidate { name: name.to_owned(), made: at(made), protection }
    }

    fn keep(count: u32, age: Option<u64>) -> Keep {
        Keep { newest: Newest::Count(count), younger_than: age.map(|age| Age(Duration::from_secs(age))) }
    }

    #[test]
    fn the_oldest_go_first_and_what_is_protected_stays() {
        let all = [
            candidate("b", 200, None),
            candidate("a", 100, None),
            candidate("latest", 300, Some(Protection::Latest)),
            candidate("foreign", 50, Some(Protection::NotOurs)),
            candidate("c", 250, None),
            candidate("half", 400, Some(Protection::NotWhole)),
            candidate("kept", 10, Some(Protection::Kept)),
        ];
        assert_eq!(beyond(&all, &keep(1, None), at(1000)), [1, 0, 4]);
        assert_eq!(beyond(&all, &keep(2, None), at(1000)), [1, 0]);
        assert_eq!(beyond(&all, &keep(1, Some(800)), at(1000)), [1], "the others are not older than 800 s");
        assert_eq!(beyond(&all, &Keep { newest: Newest::All, younger_than: None }, at(1000)), [0_usize; 0]);
        assert_eq!(beyond(&all, &keep(1, Some(0)), at(150)), [1], "what is from the future is young");
    }

    #[test]
    fn lengths_of_time_are_typed_and_told() {
        for (typed, seconds) in [("90s", 90), ("15m", 900), ("36h", 129_600), ("30d", 2_592_000), ("0s", 0)] {
            let age: Age = typed.parse().expect(typed);
            assert_eq!((age.0, age.to_string().parse()), (Duration::from_secs(seconds), Ok(age)));
        }
        for typed in ["", "h", "1", "1w", "-1h", "1.5h", "99999999999999999999d", "9999999999999999999d"] {
            assert!(typed.parse::<Age>().expect_err(typed).contains("is no length of time"), "{typed}");
        }
        assert!("0".parse::<Newest>().expect_err("nothing is kept").contains("always kept"));
    }

    fn protection() -> impl Strategy<Value = Option<Protection>> {
        prop_oneof![
            4 => Just(None),
            1 => Just(Some(Protection::NotOurs)),
            1 => Just(Some(Protection::Latest)),
            1 => Just(Some(Protection::Kept)),
            1 => Just(Some(Protection::InUse)),
            1 => Just(Some(Protection::NotWhole)),
        ]
    }

    proptest! {
        #[test]
        fn nothing_goes_that_must_stay(
            list in proptest::collection::vec(("[a-z]{1,3}", 0_u64..1000, protection()), 0..20),
            count in 0_u32..6,
            age in proptest::option::of(0_u64..1200),
            now in 0_u64..2000,
        ) {
            let all: Vec<Candidate> = list.iter().map(|(name, made, protection)| candidate(name, *made, *protection)).collect();
            let keep = keep(count, age);
            let expired = beyond(&all, &keep, at(now));
            for &at in &expired {
                prop_assert_eq!(all[at].protection, None);
            }
            // At least as many good ones stay as the rules ask for, and none that goes is newer than one that
            // stays and may go.
            let is_good = |candidate: &&Candidate| {
                matches!(candidate.protection, None | Some(Protection::Latest | Protection::Kept))
            };
            let good_count = all.iter().filter(is_good).count();
            prop_assert!(good_count - expired.len() >= good_count.min(usize::try_from(count.max(1)).expect("small")));
            let newest = all.iter().filter(is_good).map(|candidate| candidate.made).max();
            for &at in &expired {
                let newer = all.iter().filter(is_good).filter(|other| other.made >= all[at].made).count();
                prop_assert!(Some(all[at].made) < newest || newer > 1, "the newest good one would go");
            }
            // A second decision on the rest removes nothing.
            let remaining: Vec<Candidate> =
                all.iter().enumerate().filter(|(at, _)| !expired.contains(at)).map(|(_, candidate)| candidate.clone()).collect();
            prop_assert_eq!(beyond(&remaining, &keep, at(now)), Vec::<usize>::new());
        }
    }
}
