//! What is to be done: a server, a region, and how. Fixed when the job begins; its journal keeps it.

use serde::{Deserialize, Serialize};
use snapferry_base::job::JobId;
use snapferry_engine::compress::{Codec, Level};
use snapferry_ibmcloud::vpc::{ResourceGroupId, ResourceName};

use super::names::{JobNames, JobNamesError};
use super::retention::Retention;

/// What the disk is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A snapshot that the job takes of the server's boot volume.
    #[default]
    Server,
    /// A snapshot that there is already, by its name or id. It is left as it is.
    Snapshot(String),
}

/// What becomes of the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// It is imported, and the image becomes the latest.
    #[default]
    Image,
    /// It stays as it is.
    Object,
}

/// How the volume that is read comes by its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restore {
    /// From the snapshot, while it is read.
    #[default]
    Plain,
    /// From a clone in the zone: at full speed at once, at a price by the hour.
    FastClone,
}

/// Whether the job's snapshot may be pruned by later jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotFate {
    /// By the rules of retention.
    #[default]
    Prunable,
    /// Never.
    Kept,
}

/// How the image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// How clusters are compressed. IBM's importer is known to read deflate.
    pub codec: Codec,
    /// How hard.
    pub level: Level,
}

impl Default for Encoding {
    fn default() -> Self {
        Self { codec: Codec::Deflate, level: Level::Fast }
    }
}

/// As the journal has it.
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

/// One server's boot volume into one region's image library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id, from which its names follow.
    pub id: JobId,
    /// The server.
    pub server: String,
    /// The server's region.
    pub from: String,
    /// The region that the image is for.
    pub to: String,
    /// The bucket that the image goes into.
    pub bucket: String,
    /// Where the bucket is, as an import's address names it: `us-south`, `us-geo`.
    pub bucket_location: String,
    /// The bucket's region, as its address names it; without, the recovery region.
    #[serde(default)]
    pub bucket_region: Option<String>,
    /// The store's address, where the job was begun with one: kept for whoever resumes it on the same machine. A worker goes by its own, since
    /// it would send its credentials there.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// What the keys of its objects begin with.
    #[serde(default)]
    pub prefix: String,
    /// The resource group's id of all that it makes, where it is not the boot volume's.
    #[serde(default)]
    pub resource_group: Option<String>,
    /// What is read.
    #[serde(default)]
    pub origin: Origin,
    /// What is made.
    #[serde(default)]
    pub goal: Goal,
    /// How the volume is restored.
    #[serde(default)]
    pub restore: Restore,
    /// What becomes of the snapshot.
    #[serde(default)]
    pub snapshot_fate: SnapshotFate,
    /// The operating system's name in the recovery region, where it is not the volume's own.
    #[serde(default)]
    pub operating_system: Option<String>,
    /// The newest image's name, where it is not `<server>-latest`.
    #[serde(default)]
    pub image_name: Option<String>,
    /// The profile of the volume that is read, where it is not the fastest.
    #[serde(default)]
    pub volume_profile: Option<String>,
    /// How the image is made.
    #[serde(default)]
    pub encoding: Encoding,
    /// What is kept of earlier runs.
    #[serde(default)]
    pub retention: Retention,
}

impl Job {
    /// The resource group that was named, if one was.
    #[must_use]
    pub fn resource_group(&self) -> Option<ResourceGroupId> {
        self.resource_group.clone().map(ResourceGroupId::new)
    }

    /// The names of all that it makes.
    ///
    /// # Errors
    /// Where the server, the image's name or the prefix makes none.
    pub fn names(&self) -> Result<JobNames, JobNamesError> {
        let latest = self.image_name.as_deref().map(ResourceName::new).transpose()?;
        JobNames::of(self.id, &self.server, latest.as_ref(), &self.prefix)
    }
}
