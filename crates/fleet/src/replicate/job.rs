//! Description of a job: the server, the region, and the options. It is fixed when the job begins, and kept
//! in its journal.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use snapferry_base::job::JobId;
use snapferry_engine::compress::{Codec, Level};
use snapferry_ibmcloud::vpc::{ResourceGroupId, ResourceName};
use tracing::Span;

use super::names::{JobNames, JobNamesError};
use super::retention::Retention;

/// Returns the span for all work on a job: each log line in it has the job's id, server and region.
#[must_use]
pub fn log_span(id: JobId, server: &str, region: &str) -> Span {
    // A span at a lower level would be left out together with the lines of that level, and errors have to
    // name their job even if nothing else is logged.
    tracing::error_span!("job", job = %id, %server, %region)
}

/// Source that the disk is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A snapshot that the job takes of the server's boot volume.
    #[default]
    Server,
    /// An existing snapshot, by its name or id. It is left unchanged.
    Snapshot(String),
}

/// Final result of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// An image: the object is imported, and the image becomes the latest.
    #[default]
    Image,
    /// The object in the bucket, without an import.
    Object,
}

/// Way in which the volume that is read is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restore {
    /// From the snapshot, while the volume is read.
    #[default]
    Plain,
    /// From a clone in the zone: at full speed at once, at a price by the hour.
    FastClone,
}

/// Use of an earlier image of the server, from which the store copies what did not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseRule {
    /// The newest image of the server that fits. The image that results is the one of a full run.
    #[default]
    Auto,
    /// None: all of the disk is compressed and sent.
    None,
}

impl BaseRule {
    /// All rules.
    pub const ALL: [Self; 2] = [Self::Auto, Self::None];

    /// Returns the name that the command line uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
        }
    }
}

impl FromStr for BaseRule {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rule| rule.name() == typed);
        found.ok_or_else(|| format!("{typed:?} is no rule for the base: give auto or none"))
    }
}

/// Permission for later jobs to prune the job's snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotFate {
    /// Later jobs may prune it by the rules of retention.
    #[default]
    Prunable,
    /// Later jobs never prune it.
    Kept,
}

/// Compression of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Compression format of the clusters. IBM's importer is known to read deflate.
    pub codec: Codec,
    pub level: Level,
}

impl Default for Encoding {
    fn default() -> Self {
        Self { codec: Codec::Deflate, level: Level::Fast }
    }
}

/// Form of [`Encoding`] in the journal.
#[derive(Serialize, Deserialize)]
struct EncodingText {
    codec: String,
    level: String,
}

impl Serialize for Encoding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        EncodingText { codec: self.codec.to_string(), level: self.level.to_string() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Encoding {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = EncodingText::deserialize(deserializer)?;
        let wrong = |err: String| serde::de::Error::custom(err);
        Ok(Self {
            codec: text.codec.parse().map_err(|err| wrong(format!("{err}")))?,
            level: text.level.parse().map_err(|err| wrong(format!("{err}")))?,
        })
    }
}

/// Options that a store or the policy of a bucket requires, as the user gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketOptions {
    /// Place of the bucket's name in addresses.
    #[serde(default)]
    pub addressing: Option<String>,
    /// Encryption of new objects by the store.
    #[serde(default)]
    pub encryption: Option<String>,
    /// Storage class of new objects.
    #[serde(default)]
    pub storage_class: Option<String>,
    /// True if the sender of a request pays for it.
    #[serde(default)]
    pub requester_pays: bool,
}

impl BucketOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Replication of one server's boot volume into one region's image library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Id of the job, from which its names follow.
    pub id: JobId,
    /// Name of the server.
    pub server: String,
    /// Region of the server.
    pub from: String,
    /// Region that the image is for.
    pub to: String,
    /// Name of the bucket that the image goes into.
    pub bucket: String,
    /// Location of the bucket, as an import's address names it: `us-south`, `us-geo`.
    pub bucket_location: String,
    /// Region in the bucket's address; if not given, the recovery region.
    #[serde(default)]
    pub bucket_region: Option<String>,
    /// Address of the store, if the user gave one. It is kept for a process that resumes the job on the same
    /// machine. A worker uses its own address instead, since it would send its credentials to this one.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Options that the store or the bucket requires, if the user gave any.
    #[serde(default, skip_serializing_if = "BucketOptions::is_empty")]
    pub bucket_options: BucketOptions,
    /// Text that the keys of its objects begin with.
    #[serde(default)]
    pub prefix: String,
    /// Id of the resource group for everything that the job makes, if it is not the boot volume's.
    #[serde(default)]
    pub resource_group: Option<String>,
    #[serde(default)]
    pub origin: Origin,
    #[serde(default)]
    pub goal: Goal,
    #[serde(default)]
    pub restore: Restore,
    #[serde(default)]
    pub snapshot_fate: SnapshotFate,
    /// Name of the operating system in the recovery region, if it is not the volume's own.
    #[serde(default)]
    pub operating_system: Option<String>,
    /// Name of the newest image, if it is not `<server>-latest`.
    #[serde(default)]
    pub image_name: Option<String>,
    /// Profile of the volume that is read, if it is not the fastest.
    #[serde(default)]
    pub volume_profile: Option<String>,
    #[serde(default)]
    pub encoding: Encoding,
    #[serde(default)]
    pub base: BaseRule,
    /// Rules for the things that are kept of earlier runs.
    #[serde(default)]
    pub retention: Retention,
}

impl JobSpec {
    /// Returns the resource group that the user named, if any.
    #[must_use]
    pub fn resource_group(&self) -> Option<ResourceGroupId> {
        self.resource_group.clone().map(ResourceGroupId::new)
    }

    /// Returns the names of everything that the job makes.
    ///
    /// # Errors
    /// If the server's name, the image's name or the prefix gives no valid names.
    pub fn names(&self) -> Result<JobNames, JobNamesError> {
        let latest = self.image_name.as_deref().map(ResourceName::new).transpose()?;
        JobNames::of(self.id, &self.server, latest.as_ref(), &self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_from_before_there_were_bases_takes_the_newest_image() {
        let job = super::super::testing::job("web01", 1);
        let mut text = serde_json::to_value(&job).expect("JSON");
        let removed = text.as_object_mut().and_then(|fields| fields.remove("base"));
        assert_eq!(removed, Some("auto".into()));
        assert_eq!(serde_json::from_value::<JobSpec>(text).expect("a job"), job);
        let full = JobSpec { base: BaseRule::None, ..job };
        let text = serde_json::to_string(&full).expect("JSON");
        assert_eq!(serde_json::from_str::<JobSpec>(&text).expect("a job"), full);
    }

    #[test]
    fn rules_are_read_as_they_are_printed() {
        for rule in BaseRule::ALL {
            assert_eq!(rule.name().parse(), Ok(rule));
        }
        assert!("newest".parse::<BaseRule>().expect_err("no rule").contains("auto or none"));
    }
}
