//! Names of everything that a job makes. Every name follows from the job's id and its server alone, so a
//! process that resumes the job on another server, without its journal, finds the existing things.
//!
//! ```text
//! web01-20260102030405-k3x9q2    a job's snapshot, volume, attachment and image; with .qcow2 its object:
//!                                server, time, end of the job's id
//! web01-latest                   the newest image, once it is available
//! web01-20260101030512           the image before it, by the time at which it was made
//! ```

use std::time::SystemTime;

use snapferry_base::clock::{compact, parse_compact};
use snapferry_base::job::JobId;
use snapferry_engine::store::{ObjectKey, ObjectKeyError};
use snapferry_ibmcloud::vpc::{NameError, ResourceName, Tag};

/// Tag of everything that snapferry makes.
const OURS: &str = "snapferry";
/// Number of digits of a time in a name.
const STAMP_LENGTH: usize = 14;
/// Number of characters of the job's id at the end of its names: 30 random bits, in addition to the second at
/// which the job began.
const TAIL_LENGTH: usize = 6;
/// End of an object's key, in the case that IBM insists on.
const SUFFIX: &str = ".qcow2";

/// Names of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobNames {
    /// Name of its snapshot, volume and attachment, and of its image until that becomes the latest.
    pub run: ResourceName,
    /// Name of the newest image.
    pub latest: ResourceName,
    /// Start of its images' names: the server, unless the user gives another one.
    pub series: String,
    /// Key of the job's object.
    pub key: ObjectKey,
    /// Tags of everything that the job makes.
    pub tags: Vec<Tag>,
}

/// Reason why a job's names are not valid.
#[derive(Debug, thiserror::Error)]
pub enum JobNamesError {
    /// A name or a tag breaks the cloud's rules.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The key breaks the store's rules.
    #[error(transparent)]
    Key(#[from] ObjectKeyError),
    /// The prefix is not safe in an import's address, since IBM does not document how that is escaped.
    #[error(
        "the prefix {prefix:?} has characters that an import may not find: give letters in lower case, digits and . _ - /"
    )]
    Prefix { prefix: String },
}

/// Joins `parts` with colons to a tag. The parts of snapferry's tags have only lower-case letters, digits,
/// dashes and dots.
fn tag(parts: &[&str]) -> Result<Tag, NameError> {
    Tag::new(&parts.join(":"))
}

impl JobNames {
    /// Returns the names of job `id` for `server`. `latest` is the newest image's name if it is not to be
    /// `<server>-latest`.
    ///
    /// # Errors
    /// If the server's name or the prefix gives no valid names.
    pub fn of(
        id: JobId,
        server: &str,
        latest: Option<&ResourceName>,
        prefix: &str,
    ) -> Result<Self, JobNamesError> {
        // The server's name is checked by itself first, so that an error shows the name that the user typed.
        ResourceName::new(server)?;
        let text = id.to_string();
        let tail = &text[text.len() - TAIL_LENGTH..];
        let run = ResourceName::suffixed(server, &format!("{}-{tail}", compact(id.time())))?;
        let series = latest
            .map_or(server, |latest| latest.as_str().strip_suffix("-latest").unwrap_or(latest.as_str()))
            .to_owned();
        let latest = match latest {
            Some(latest) => latest.clone(),
            None => ResourceName::suffixed(server, "latest")?,
        };
        let fits =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if !prefix.bytes().all(fits) {
            return Err(JobNamesError::Prefix { prefix: prefix.to_owned() });
        }
        let key = ObjectKey::new(&format!("{}{run}{SUFFIX}", folder(prefix, server)))?;
        let tags = vec![ours()?, tag(&[OURS, "job", &text])?, server_tag(server)?];
        Ok(Self { run, latest, series, key, tags })
    }

    /// Returns the name that the image with the name `-latest` gets when a newer one replaces it: after the
    /// time at which it was made.
    ///
    /// # Errors
    /// If the series gives no valid name.
    pub fn dated(&self, made: SystemTime) -> Result<ResourceName, NameError> {
        ResourceName::suffixed(&self.series, &compact(made))
    }

    /// Returns such a dated name with the end of the image's id, for the case that another image of the same
    /// second has the plain one.
    ///
    /// # Errors
    /// If the series gives no valid name.
    pub fn dated_apart(&self, made: SystemTime, id: &str) -> Result<ResourceName, NameError> {
        let kept: String =
            id.bytes().rev().filter(u8::is_ascii_alphanumeric).take(TAIL_LENGTH).map(char::from).collect();
        let tail: String = kept.chars().rev().collect();
        ResourceName::suffixed(&self.series, &format!("{}-{}", compact(made), tail.to_ascii_lowercase()))
    }
}

/// Returns the tag of everything that snapferry makes.
///
/// # Errors
/// Never: the text is always a valid tag.
pub fn ours() -> Result<Tag, NameError> {
    tag(&[OURS])
}

/// Returns the tag of everything that snapferry makes for that server.
///
/// # Errors
/// If the server's name gives no valid tag.
pub fn server_tag(server: &str) -> Result<Tag, NameError> {
    tag(&[OURS, "server", server])
}

/// Returns the tag that a snapshot gets once its job is done. A snapshot without it belongs to a job that is
/// under way, or dead.
///
/// # Errors
/// Never: the text is always a valid tag.
pub fn done_tag() -> Result<Tag, NameError> {
    tag(&[OURS, "done"])
}

/// Returns the tag of a snapshot that the user wants to keep.
///
/// # Errors
/// Never: the text is always a valid tag.
pub fn keep_tag() -> Result<Tag, NameError> {
    tag(&[OURS, "keep"])
}

/// True if `tags`, as the cloud returns them, include `tag`.
#[must_use]
pub fn has(tags: &[String], tag: &Tag) -> bool {
    tags.iter().any(|found| found.eq_ignore_ascii_case(tag.as_str()))
}

/// Returns the job that a thing with these tags belongs to.
#[must_use]
pub fn job_of(tags: &[String]) -> Option<JobId> {
    tags.iter().find_map(|tag| tag.to_ascii_lowercase().strip_prefix("snapferry:job:")?.parse().ok())
}

/// Returns the server that a thing with these tags belongs to.
#[must_use]
pub fn server_of(tags: &[String]) -> Option<String> {
    tags.iter().find_map(|tag| Some(tag.to_ascii_lowercase().strip_prefix("snapferry:server:")?.to_owned()))
}

/// Returns the start of the keys of a server's objects: `prefix` as given, and a folder named after the
/// server.
#[must_use]
pub fn folder(prefix: &str, server: &str) -> String {
    format!("{prefix}{server}/")
}

/// Form of a name that snapferry gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Name that follows from a job's id: `<server>-<time>-<end of id>`.
    Run,
    /// Name of an image that was the latest before: `<series>-<time>`.
    Dated,
}

/// Returns the form of `name` if it is one that snapferry gives to things of `series`. The whole name must
/// match: `web-db-...` is no name of `web`.
#[must_use]
pub fn form_of(series: &str, name: &str) -> Option<Form> {
    let made_of =
        |suffix: &str| ResourceName::suffixed(series, suffix).is_ok_and(|made| made.as_str() == name);
    let stamp = |text: &str| text.len() == STAMP_LENGTH && text.bytes().all(|b| b.is_ascii_digit());
    let tail = |text: &str| {
        text.len() == TAIL_LENGTH && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let dated = name.len().checked_sub(STAMP_LENGTH).and_then(|at| name.get(at..));
    if dated.is_some_and(|suffix| stamp(suffix) && made_of(suffix)) {
        return Some(Form::Dated);
    }
    let run = name.len().checked_sub(STAMP_LENGTH + 1 + TAIL_LENGTH).and_then(|at| name.get(at..))?;
    let (time, end) = run.split_once('-')?;
    (stamp(time) && tail(end) && made_of(run)).then_some(Form::Run)
}

/// Returns the run's name in a key of `server`'s objects, if snapferry gave that key.
#[must_use]
pub fn run_of_key<'a>(prefix: &str, server: &str, key: &'a ObjectKey) -> Option<&'a str> {
    let run = key.as_str().strip_prefix(&folder(prefix, server))?.strip_suffix(SUFFIX)?;
    (form_of(server, run) == Some(Form::Run)).then_some(run)
}

/// Returns the time at which the job of a run began, by the run's name.
#[must_use]
pub fn time_of_run(run: &str) -> Option<SystemTime> {
    let stamp = run.get(run.len().checked_sub(STAMP_LENGTH + 1 + TAIL_LENGTH)?..)?.get(..STAMP_LENGTH)?;
    parse_compact(stamp)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn names(seconds: u64, random: u128, server: &str) -> JobNames {
        JobNames::of(JobId::at(at(seconds), random), server, None, "").expect("names")
    }

    #[test]
    fn names_follow_from_the_job_alone() {
        let names = names(1_767_323_045, 0x2_f00d, "web01");
        assert_eq!(names.run.as_str(), "web01-20260102030405-005w0d");
        assert_eq!(names.key.as_str(), "web01/web01-20260102030405-005w0d.qcow2");
        assert_eq!(names.latest.as_str(), "web01-latest");
        assert_eq!(names.dated(at(1_767_323_046)).expect("a name").as_str(), "web01-20260102030406");
        let apart = names.dated_apart(at(0), "r006-35db69bb-d09b-4A9E").expect("a name");
        assert_eq!(apart.as_str(), "web01-19700101000000-9b4a9e");
        assert_eq!(form_of("web01", apart.as_str()), Some(Form::Run));
        let tags: Vec<String> = names.tags.iter().map(ToString::to_string).collect();
        assert_eq!(
            (job_of(&tags), server_of(&tags).as_deref()),
            (Some(JobId::at(at(1_767_323_045), 0x2_f00d)), Some("web01"))
        );
        let golden = ResourceName::new("golden-latest").expect("a name");
        let named = JobNames::of(JobId::at(at(0), 0), "web01", Some(&golden), "nightly/").expect("names");
        assert_eq!((named.latest.as_str(), named.series.as_str()), ("golden-latest", "golden"));
        assert_eq!(named.key.as_str(), "nightly/web01/web01-19700101000000-000000.qcow2");
        let odd = JobNames::of(JobId::at(at(0), 0), "web01", None, "a b/");
        assert!(matches!(odd, Err(JobNamesError::Prefix { .. })), "{odd:?}");
    }

    #[test]
    fn nobody_elses_names_are_ours() {
        for (series, name) in [
            ("web", "web-db-20260102030405"),
            ("web", "web-db-20260102030405-abc123"),
            ("web", "web-2026010203040"),
            ("web", "web-20260102030405-abc12"),
            ("web", "web-20260102030405-ABC123"),
            ("web", "web-latest"),
            ("web", "xweb-20260102030405"),
            ("web", "20260102030405"),
            ("web", "ü0260102030405"),
            ("", "-20260102030405"),
        ] {
            assert_eq!(form_of(series, name), None, "{series} {name}");
        }
    }

    prop_compose! {
        fn server()(name in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?") -> String { name }
    }

    proptest! {
        #[test]
        fn every_name_fits_and_is_known_again(server in server(), seconds in 0_u64..20_000_000_000, random: u128, id in "[a-z0-9-]{0,40}") {
            let names = names(seconds, random, &server);
            let dated = names.dated(at(seconds)).expect("a name");
            prop_assert!(names.run.as_str().len() <= 63 && dated.as_str().len() <= 63 && names.latest.as_str().len() <= 63);
            prop_assert_eq!(form_of(&server, names.run.as_str()), Some(Form::Run));
            prop_assert_eq!(form_of(&server, dated.as_str()), Some(Form::Dated));
            prop_assert_eq!(form_of(&server, names.latest.as_str()), None);
            prop_assert_eq!(run_of_key("", &server, &names.key), Some(names.run.as_str()));
            prop_assert_eq!(time_of_run(names.run.as_str()), Some(at(seconds)));
            if let Ok(apart) = names.dated_apart(at(seconds), &id) {
                prop_assert_ne!(apart.as_str(), dated.as_str());
            }
        }

        #[test]
        fn other_servers_and_other_jobs_have_other_names(one in server(), two in server(), seconds in 0_u64..20_000_000_000, a: u128, b: u128) {
            let (first, second) = (names(seconds, a, &one), names(seconds, b, &two));
            if one != two {
                prop_assert_ne!(&first.run, &second.run);
                prop_assert_ne!(&first.latest, &second.latest);
                prop_assert_eq!(form_of(&one, second.run.as_str()), None);
                prop_assert_ne!(&first.key, &second.key);
            } else if a & 0x3fff_ffff != b & 0x3fff_ffff {
                prop_assert_ne!(&first.run, &second.run);
            }
        }
    }
}
