//! Server that this process runs on: its description, and its identifier from cloud-init.

use std::fmt;
use std::path::Path;

use serde::Deserialize;

/// Link of cloud-init whose target is named after the server's identifier.
pub const CLOUD_INIT: &str = "/var/lib/cloud/instance";

/// Source of a fact about this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Response of the instance metadata service.
    Metadata,
    /// Link that cloud-init has created.
    CloudInit,
    /// Setting by the user, on the command line or in the configuration.
    Setting,
}

impl fmt::Display for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metadata => "the instance metadata service",
            Self::CloudInit => "cloud-init",
            Self::Setting => "the command line or configuration",
        })
    }
}

/// Description of this server by the instance metadata service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Identifier of the server, as in `0717_e21b7391-2ca2-4ab5-84a8-b92157a633b0`.
    pub id: String,
    /// Name of the server; may be empty.
    pub name: String,
    /// CRN of the server; may be empty.
    pub crn: String,
    /// Zone of the server, as in `us-south-1`.
    pub zone: String,
    /// Region of the server: the zone without its number.
    pub region: String,
    /// Identifier of the server's VPC.
    pub vpc: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

/// Response of the service about this server.
#[derive(Deserialize)]
pub(super) struct CloudInitData {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    crn: String,
    zone: Named,
    #[serde(default)]
    vpc: Option<Identified>,
}

impl CloudInitData {
    pub(super) fn into_instance(self) -> Option<Instance> {
        let zone = self.zone.name;
        let region = region_of_zone(&zone)?.to_owned();
        Some(Instance {
            id: self.id,
            name: self.name,
            crn: self.crn,
            zone,
            region,
            vpc: self.vpc.map(|vpc| vpc.id),
        })
    }
}

/// Returns the region of a zone such as `us-south-1`: the name without the number.
#[must_use]
pub fn region_of_zone(zone: &str) -> Option<&str> {
    let (region, number) = zone.rsplit_once('-')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(region)
}

/// Returns the server's identifier from cloud-init's link, usually [`CLOUD_INIT`]: the name of its target.
/// None if there is no such link, or if the name is not an identifier of a VPC server (other clouds use
/// cloud-init too).
#[must_use]
pub fn instance_of_cloud_init(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    let id = target.file_name()?.to_str()?;
    // `0717_...` and `0717-...`: four characters of the zone, and a UUID.
    let fits = id.len() > 5 && id.is_char_boundary(4) && matches!(id.as_bytes().get(4), Some(b'-' | b'_'));
    (fits && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_the_zone_without_its_number() {
        let data = |zone: &str| CloudInitData {
            id: "0717-1".into(),
            name: "ferry".into(),
            crn: String::new(),
            zone: Named { name: zone.into() },
            vpc: None,
        };
        assert_eq!(data("eu-de-2").into_instance().expect("a zone").region, "eu-de");
        assert_eq!(data("somewhere").into_instance(), None);
        assert_eq!(data("eu-de-").into_instance(), None);
    }

    #[test]
    fn cloud_inits_link_names_the_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("instance");
        assert_eq!(instance_of_cloud_init(&link), None);
        let id = "0717_e21b7391-2ca2-4ab5-84a8-b92157a633b0";
        std::os::unix::fs::symlink(format!("/var/lib/cloud/instances/{id}"), &link).expect("a link");
        assert_eq!(instance_of_cloud_init(&link).as_deref(), Some(id));
        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink("/var/lib/cloud/instances/i-nocloud", &link).expect("a link");
        assert_eq!(instance_of_cloud_init(&link), None, "another cloud's");
    }
}
