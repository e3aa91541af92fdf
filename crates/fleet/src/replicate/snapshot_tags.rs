//! Tags by which a job's snapshot informs all other servers: the destination of its image, the rules of
//! retention, and the holder of the job. The tags that name its job and server are in `names`.

use std::time::SystemTime;

use snapferry_base::clock::{compact, parse_compact};
use snapferry_engine::hash::Crc64;
use snapferry_ibmcloud::vpc::{NameError, Tag};

use super::job::JobSpec;
use super::names::JobNames;
use super::retention::{Age, Keep, Newest, Retention};

const TO: &str = "snapferry:to:";
const RULES: &str = "snapferry:rules:";
const HELD: &str = "snapferry:held:";
/// Most characters of a host's name in a tag.
const LONGEST_HOST: usize = 63;

/// Destination of a job's image and object. Jobs of one server with the same destination replace each other's
/// image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Name of the recovery region.
    pub region: String,
    /// CRC64 of the bucket, the keys' prefix and the newest image's name, in hex.
    pub digest: String,
}

impl Destination {
    /// Returns the destination of jobs with these names through that bucket.
    #[must_use]
    pub fn new(region: &str, bucket: &str, prefix: &str, names: &JobNames) -> Self {
        let Crc64(digest) = Crc64::of(format!("{bucket}\0{prefix}\0{}", names.latest).as_bytes());
        Self { region: region.to_owned(), digest: format!("{digest:016x}") }
    }

    /// Returns the destination of a job.
    #[must_use]
    pub fn of_job(job: &JobSpec, names: &JobNames) -> Self {
        Self::new(&job.to, &job.bucket, &job.prefix, names)
    }

    /// Returns the destination as a tag.
    ///
    /// # Errors
    /// If the region's name gives no valid tag.
    pub fn tag(&self) -> Result<Tag, NameError> {
        Tag::new(&format!("{TO}{}:{}", self.region, self.digest))
    }

    /// Reads the destination from tags; none if they have none, as in versions that did not set it.
    #[must_use]
    pub fn of(tags: &[String]) -> Option<Self> {
        let (region, digest) = after(tags, TO)?
            .rsplit_once(':')
            .map(|(region, digest)| (region.to_owned(), digest.to_owned()))?;
        Some(Self { region, digest })
    }
}

/// Returns the rest of the first tag that begins with `start`, in lower case.
fn after(tags: &[String], start: &str) -> Option<String> {
    tags.iter().find_map(|tag| Some(tag.to_ascii_lowercase().strip_prefix(start)?.to_owned()))
}

/// Returns the rules of retention as a tag: `snapferry:rules:1:2_30d:all` for snapshots, images and objects.
///
/// # Errors
/// Never: the text is always a valid tag.
pub fn rules_tag(retention: &Retention) -> Result<Tag, NameError> {
    let keep = |keep: &Keep| match keep.younger_than {
        Some(age) => format!("{}_{age}", keep.newest),
        None => keep.newest.to_string(),
    };
    Tag::new(&format!(
        "{RULES}{}:{}:{}",
        keep(&retention.snapshots),
        keep(&retention.images),
        keep(&retention.objects)
    ))
}

/// Reads the rules of retention from tags; none if they are missing or in a form of another version. The
/// caller must not guess them then.
#[must_use]
pub fn rules_of(tags: &[String]) -> Option<Retention> {
    let keep = |text: &str| {
        let (newest, age) = text.split_once('_').map_or((text, None), |(newest, age)| (newest, Some(age)));
        let younger_than = age.map(str::parse::<Age>).transpose().ok()?;
        Some(Keep { newest: newest.parse::<Newest>().ok()?, younger_than })
    };
    let text = after(tags, RULES)?;
    let parts: Vec<&str> = text.split(':').collect();
    let [snapshots, images, objects] = parts[..] else { return None };
    Some(Retention { snapshots: keep(snapshots)?, images: keep(images)?, objects: keep(objects)? })
}

/// Process that works on a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Time at which the process took the job up, to the second, by its own clock.
    pub since: SystemTime,
    /// Random token, which is new each time that a process takes a job up.
    pub token: String,
    /// Name of the server that the process runs on.
    pub host: String,
}

impl Holder {
    /// Makes a holder on `host` with a new token.
    #[must_use]
    pub fn new(now: SystemTime, host: &str) -> Self {
        let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
        let host: String = host.to_ascii_lowercase().chars().filter(fits).take(LONGEST_HOST).collect();
        let since = parse_compact(&compact(now)).unwrap_or(now);
        Self { since, token: format!("{:016x}", rand::random::<u64>()), host }
    }

    /// Returns the holder as a tag.
    ///
    /// # Errors
    /// Never: the text is always a valid tag.
    pub fn tag(&self) -> Result<Tag, NameError> {
        Tag::new(&format!("{HELD}{}:{}:{}", self.token, compact(self.since), self.host))
    }

    /// Reads the holder from tags; none if they name none.
    #[must_use]
    pub fn of(tags: &[String]) -> Option<Self> {
        let text = after(tags, HELD)?;
        let (token, rest) = text.split_once(':')?;
        let (since, host) = rest.split_once(':')?;
        Some(Self { since: parse_compact(since)?, token: token.to_owned(), host: host.to_owned() })
    }

    /// True if the tag names a holder.
    #[must_use]
    pub fn is_tag(tag: &str) -> bool {
        tag.to_ascii_lowercase().starts_with(HELD)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replicate::testing::job;

    #[test]
    fn what_is_kept_and_where_it_goes_comes_back_from_tags() {
        let keep = |newest, days: Option<u64>| Keep {
            newest,
            younger_than: days.map(|days| Age(Duration::from_secs(days * 86_400))),
        };
        for retention in [
            Retention::default(),
            Retention {
                snapshots: keep(Newest::All, None),
                images: keep(Newest::Count(7), Some(30)),
                objects: keep(Newest::All, Some(1)),
            },
        ] {
            let tag = rules_tag(&retention).expect("a tag").to_string();
            assert_eq!(rules_of(&["other".to_owned(), tag.clone()]), Some(retention), "{tag}");
        }
        for strange in [
            "snapferry:rules:1:2",
            "snapferry:rules:1:2:x",
            "snapferry:rules:1:2:3:4",
            "snapferry:rules:0:1:1",
            "rules",
        ] {
            assert_eq!(rules_of(&[strange.to_owned()]), None, "{strange}");
        }
        let job = job("web01", 1);
        let to = Destination::of_job(&job, &job.names().expect("names"));
        assert_eq!(Destination::of(&[to.tag().expect("a tag").to_string()]), Some(to.clone()));
        let nightly = JobSpec { prefix: "nightly/".to_owned(), ..job };
        assert_ne!(Destination::of_job(&nightly, &nightly.names().expect("names")), to);
    }

    #[test]
    fn a_holder_comes_back_from_its_tag_and_is_another_one_each_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        let (one, two) = (Holder::new(now, "Ferry 1.example"), Holder::new(now, "ferry"));
        assert_eq!(one.host, "ferry1.example");
        assert_ne!(one.token, two.token);
        let tag = one.tag().expect("a tag").to_string();
        assert!(Holder::is_tag(&tag));
        assert_eq!(Holder::of(&[tag]), Some(one));
        assert_eq!(Holder::of(&["snapferry:held:x".to_owned(), "snapferry".to_owned()]), None);
    }
}
