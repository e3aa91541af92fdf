//! Operating systems that the cloud knows.

use serde::{Deserialize, Serialize};

/// An operating system, as volumes, snapshots and images tell of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OperatingSystemReference {
    /// Its name, which an import has to give.
    pub name: String,
    /// `amd64`, `s390x`.
    #[serde(default)]
    pub architecture: Option<String>,
    /// As people call it.
    #[serde(default)]
    pub display_name: Option<String>,
}

/// An operating system, as its region tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OperatingSystem {
    /// Its name, which an import has to give.
    pub name: String,
    /// As people call it.
    #[serde(default)]
    pub display_name: Option<String>,
    /// `amd64`, `s390x`.
    #[serde(default)]
    pub architecture: Option<String>,
    /// `Ubuntu Linux`.
    #[serde(default)]
    pub family: Option<String>,
    /// Whether users may import images of it. Absent before the field came: then they may.
    #[serde(default = "yes")]
    pub allow_user_image_creation: bool,
    /// Whether servers with it run on dedicated hosts alone.
    #[serde(default)]
    pub dedicated_host_only: bool,
    /// How a server gets its user data.
    #[serde(default)]
    pub user_data_format: Option<String>,
}

fn yes() -> bool {
    true
}
