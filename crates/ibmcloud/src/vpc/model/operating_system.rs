//! Models of the operating systems that the cloud supports.

use serde::{Deserialize, Serialize};

/// Operating system, as volumes, snapshots and images refer to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OperatingSystemReference {
    /// Name that an import has to give, as in `ubuntu-24-04-amd64`.
    pub name: String,
    /// Processor architecture: `amd64` or `s390x`.
    #[serde(default)]
    pub architecture: Option<String>,
    /// Name for display, with vendor and version.
    #[serde(default)]
    pub display_name: Option<String>,
}

/// Operating system, as the region lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OperatingSystem {
    /// Name that an import has to give, as in `ubuntu-24-04-amd64`.
    pub name: String,
    /// Name for display, with vendor and version.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Processor architecture: `amd64` or `s390x`.
    #[serde(default)]
    pub architecture: Option<String>,
    /// Family of operating systems, such as `Ubuntu Linux`.
    #[serde(default)]
    pub family: Option<String>,
    /// True if users may import images with it. Responses from before the API had this field omit it, and
    /// then users may.
    #[serde(default = "yes")]
    pub allow_user_image_creation: bool,
    /// True if servers with it run only on dedicated hosts.
    #[serde(default)]
    pub dedicated_host_only: bool,
    /// Format in which a server gets its user data.
    #[serde(default)]
    pub user_data_format: Option<String>,
}

fn yes() -> bool {
    true
}
