//! From a method and a path to an operation.

use hyper::Method;
use serde::{Deserialize, Serialize};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $method:ident $template:literal),* $(,)?) => {
        /// What the simulated cloud can do. In scripts and histories the names are in snake case.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RegionOperation {
            $($(#[$doc])* $name,)*
        }

        impl RegionOperation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            fn route(self) -> (Method, &'static str) {
                match self {
                    $(Self::$name => (Method::$method, $template),)*
                }
            }
        }
    };
}

operations! {
    /// All servers.
    ListInstances = GET "instances",
    /// A new server.
    CreateInstance = POST "instances",
    /// One server.
    GetInstance = GET "instances/{}",
    /// A server's name.
    UpdateInstance = PATCH "instances/{}",
    /// The end of a server.
    DeleteInstance = DELETE "instances/{}",
    /// Start, stop, reboot.
    CreateInstanceAction = POST "instances/{}/actions",
    /// A server's volumes.
    ListAttachments = GET "instances/{}/volume_attachments",
    /// A volume to a server.
    CreateAttachment = POST "instances/{}/volume_attachments",
    /// One attachment.
    GetAttachment = GET "instances/{}/volume_attachments/{}",
    /// A volume off a server.
    DeleteAttachment = DELETE "instances/{}/volume_attachments/{}",
    /// Profiles for servers.
    ListInstanceProfiles = GET "instance/profiles",
    /// All volumes.
    ListVolumes = GET "volumes",
    /// A new volume.
    CreateVolume = POST "volumes",
    /// One volume.
    GetVolume = GET "volumes/{}",
    /// A volume's name or tags.
    UpdateVolume = PATCH "volumes/{}",
    /// The end of a volume.
    DeleteVolume = DELETE "volumes/{}",
    /// Profiles for volumes.
    ListVolumeProfiles = GET "volume/profiles",
    /// All snapshots.
    ListSnapshots = GET "snapshots",
    /// A new snapshot, or a copy of another region's.
    CreateSnapshot = POST "snapshots",
    /// All snapshots of a volume at once, which nobody should delete so.
    DeleteSnapshots = DELETE "snapshots",
    /// One snapshot.
    GetSnapshot = GET "snapshots/{}",
    /// A snapshot's name or tags.
    UpdateSnapshot = PATCH "snapshots/{}",
    /// The end of a snapshot.
    DeleteSnapshot = DELETE "snapshots/{}",
    /// A snapshot's clones.
    ListClones = GET "snapshots/{}/clones",
    /// A clone.
    GetClone = GET "snapshots/{}/clones/{}",
    /// A new clone.
    CreateClone = PUT "snapshots/{}/clones/{}",
    /// The end of a clone.
    DeleteClone = DELETE "snapshots/{}/clones/{}",
    /// All images.
    ListImages = GET "images",
    /// A new image.
    CreateImage = POST "images",
    /// One image.
    GetImage = GET "images/{}",
    /// An image's name or schedule.
    UpdateImage = PATCH "images/{}",
    /// The end of an image.
    DeleteImage = DELETE "images/{}",
    /// An image that is no longer recommended.
    DeprecateImage = POST "images/{}/deprecate",
    /// An image that is no longer bootable.
    ObsoleteImage = POST "images/{}/obsolete",
    /// An image's export jobs.
    ListExportJobs = GET "images/{}/export_jobs",
    /// A new export job.
    CreateExportJob = POST "images/{}/export_jobs",
    /// One export job.
    GetExportJob = GET "images/{}/export_jobs/{}",
    /// The end of an export job.
    DeleteExportJob = DELETE "images/{}/export_jobs/{}",
    /// Operating systems.
    ListOperatingSystems = GET "operating_systems",
    /// One operating system.
    GetOperatingSystem = GET "operating_systems/{}",
    /// Regions.
    ListRegions = GET "regions",
    /// One region.
    GetRegion = GET "regions/{}",
    /// A region's zones.
    ListZones = GET "regions/{}/zones",
    /// VPCs.
    ListVpcs = GET "vpcs",
    /// Subnets.
    ListSubnets = GET "subnets",
    /// SSH keys.
    ListKeys = GET "keys",
    /// Security groups.
    ListSecurityGroups = GET "security_groups",
    /// IAM: a token for an API key.
    IdentityToken = POST "identity/token",
    /// The metadata service: a server's own token.
    CreateIdentityToken = PUT "identity/v1/token",
    /// The same, by its older path.
    CreateIdentityTokenOld = PUT "instance_identity/v1/token",
    /// The metadata service: a trusted profile's token.
    CreateIamToken = POST "identity/v1/iam_tokens",
    /// The same, by its older path.
    CreateIamTokenOld = POST "instance_identity/v1/iam_token",
    /// The metadata service: the server itself.
    GetOwnInstance = GET "metadata/v1/instance",
    /// The metadata service: its volumes.
    ListOwnAttachments = GET "metadata/v1/instance/volume_attachments",
    /// Global Tagging: tags on.
    AttachTag = POST "v3/tags/attach",
    /// Global Tagging: tags off.
    DetachTag = POST "v3/tags/detach",
    /// Global Tagging: what there is.
    ListTags = GET "v3/tags",
}

impl RegionOperation {
    /// Whether it belongs to a region's own API, with its version, its tokens and its form of errors.
    pub(super) fn is_vpc(self) -> bool {
        self < Self::IdentityToken
    }

    /// Whether it changes anything.
    pub(super) fn is_change(self) -> bool {
        let (method, _) = self.route();
        method != Method::GET && (self.is_vpc() || matches!(self, Self::AttachTag | Self::DetachTag))
    }

    /// The operation of a path without the region and `v1`, or of one that has neither, and what stands for the `{}`.
    pub(super) fn find(method: &Method, path: &str, in_region: bool) -> Option<(Self, Vec<String>)> {
        Self::ALL.iter().filter(|operation| operation.is_vpc() == in_region).find_map(|&operation| {
            let (wanted, template) = operation.route();
            if wanted != method {
                return None;
            }
            let (mut parts, mut ids) = (path.split('/'), Vec::new());
            for word in template.split('/') {
                match parts.next()? {
                    part if word == "{}" && !part.is_empty() => ids.push(part.to_owned()),
                    part if part == word => {}
                    _ => return None,
                }
            }
            parts.next().is_none().then_some((operation, ids))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_operations() {
        let find = |method, path| RegionOperation::find(&method, path, true);
        assert_eq!(find(Method::GET, "volumes"), Some((RegionOperation::ListVolumes, vec![])));
        let ids = vec!["i".to_owned(), "a".to_owned()];
        assert_eq!(
            find(Method::DELETE, "instances/i/volume_attachments/a"),
            Some((RegionOperation::DeleteAttachment, ids))
        );
        assert_eq!(find(Method::GET, "volumes/"), None);
        assert_eq!(find(Method::GET, "v3/tags"), None);
        assert!(RegionOperation::CreateVolume.is_change() && !RegionOperation::IdentityToken.is_change());
    }

    #[test]
    fn names_in_scripts_are_in_snake_case() {
        let read: RegionOperation = serde_json::from_str("\"create_volume\"").expect("an operation");
        assert_eq!(read, RegionOperation::CreateVolume);
    }
}
