//! The API's models, as far as we read them: field names and values are IBM's own.
//!
//! IBM says of each enumeration that it may grow, so every one has an `Other` arm, and what may be missing in an answer is an `Option`.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer};

mod image;
mod instance;
mod network;
mod operating_system;
mod snapshot;
mod volume;

pub use image::{
    ExportFormat, ExportJob, ExportState, ExportedObject, Image, ImageChecksums, ImageFile, ImageState, ImageVisibility,
};
pub use instance::{
    AttachedDevice, AttachmentState, BootAttachment, Instance, InstanceState, VolumeAttachment, VolumeAttachmentReference,
};
pub use network::{InstanceProfile, Key, Region, SecurityGroup, Subnet, Vpc, Zone};
pub use operating_system::OperatingSystem;
pub use snapshot::{Snapshot, SnapshotClone, SnapshotCopy, SnapshotState};
pub use volume::{AttachmentOfVolume, HealthState, StorageGeneration, Volume, VolumeProfile, VolumeState};

/// An enumeration of the API's that may grow: what we don't know is kept as it came.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// One that came to the API after this was written.
            Other(String),
        }

        impl $name {
            /// As the API writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(text) => text,
                }
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                match text.as_str() {
                    $($text => Self::$variant,)*
                    _ => Self::Other(text),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from).map(Self::from)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use open_enum;

/// Something named by its id alone, or by more, of which we want the id and the name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reference<I> {
    /// Its id.
    pub id: I,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its CRN, where it has one.
    #[serde(default)]
    pub crn: Option<super::names::Crn>,
}

/// Something that is named by its name: a zone, a profile, a region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// Why something is in the state that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StateReason {
    /// IBM's code, such as `initializing_from_snapshot`.
    pub code: String,
    /// IBM's words.
    #[serde(default)]
    pub message: String,
}

impl StateReason {
    /// `code: message`, as shown to people.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.message.is_empty() { self.code.clone() } else { format!("{}: {}", self.code, self.message) }
    }
}

/// Reads a time in RFC 3339.
fn time<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<jiff::Timestamp>().map(SystemTime::from).map_err(serde::de::Error::custom)
}

/// Reads a time in RFC 3339 that may be missing.
fn time_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
    let text: Option<String> = Option::deserialize(from)?;
    text.map(|text| text.parse::<jiff::Timestamp>().map(SystemTime::from).map_err(serde::de::Error::custom)).transpose()
}
