//! Models of the API's resources, with the fields that this crate reads. Field names and values are IBM's
//! own.
//!
//! IBM documents that each enumeration may grow, so each one here has an `Other` variant. A field that a
//! response may omit is an `Option`.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer};

mod image;
mod instance;
mod network;
mod operating_system;
mod snapshot;
mod volume;

pub use image::{
    ExportFormat, ExportJob, ExportState, ExportedObject, Image, ImageChecksums, ImageFile, ImageState,
    ImageVisibility,
};
pub use instance::{
    AttachedDevice, AttachmentState, BootAttachment, Instance, InstanceState, VolumeAttachment,
    VolumeAttachmentReference,
};
pub use network::{InstanceProfile, Key, Region, SecurityGroup, Subnet, Vpc, Zone};
pub use operating_system::OperatingSystem;
pub use snapshot::{Snapshot, SnapshotClone, SnapshotCopy, SnapshotState};
pub use volume::{AttachmentOfVolume, HealthState, StorageGeneration, Volume, VolumeProfile, VolumeState};

/// Defines an enumeration of the API that may grow: an unknown value is kept as received.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// Value that the API has gained since this list was written.
            Other(String),
        }

        impl $name {
            /// Returns the value as the API writes it.
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

/// Reference to a resource in a response: the identifier, and the name and CRN if the response has them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reference<I> {
    /// Identifier of the resource.
    pub id: I,
    /// Name of the resource, if the response has it.
    #[serde(default)]
    pub name: Option<String>,
    /// CRN of the resource, if it has one.
    #[serde(default)]
    pub crn: Option<super::names::Crn>,
}

/// Reference to a resource by name alone: a zone, a profile or a region.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Named {
    /// Name of the resource, as in `us-south-1`.
    pub name: String,
}

/// Reason why a resource is in its state.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StateReason {
    /// IBM's code, such as `initializing_from_snapshot`.
    pub code: String,
    /// Explanation by the API; may be empty.
    #[serde(default)]
    pub message: String,
}

impl StateReason {
    /// Returns `code: message` for display, or the code alone if there is no message.
    #[must_use]
    pub fn describe(&self) -> String {
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
    text.map(|text| text.parse::<jiff::Timestamp>().map(SystemTime::from).map_err(serde::de::Error::custom))
        .transpose()
}
