//! Routes: from a method and a path to an operation.

use hyper::Method;
use serde::{Deserialize, Serialize};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $method:ident $template:literal),* $(,)?) => {
        /// Operations of the simulated cloud. In scripts and histories the names are in snake case.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RegionOperation {
            $($(#[$doc])* $name,)*
        }

        impl RegionOperation {
            /// All operations, in the order of their definition.
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
    /// Lists the region's servers.
    ListInstances = GET "instances",
    /// Creates a server with a boot volume.
    CreateInstance = POST "instances",
    /// Returns one server.
    GetInstance = GET "instances/{}",
    /// Changes the name of a server.
    UpdateInstance = PATCH "instances/{}",
    /// Deletes a server.
    DeleteInstance = DELETE "instances/{}",
    /// Starts, stops or reboots a server.
    CreateInstanceAction = POST "instances/{}/actions",
    /// Lists the volume attachments of a server.
    ListAttachments = GET "instances/{}/volume_attachments",
    /// Attaches a volume to a server.
    CreateAttachment = POST "instances/{}/volume_attachments",
    /// Returns one volume attachment.
    GetAttachment = GET "instances/{}/volume_attachments/{}",
    /// Detaches a volume from a server.
    DeleteAttachment = DELETE "instances/{}/volume_attachments/{}",
    /// Lists the profiles for servers.
    ListInstanceProfiles = GET "instance/profiles",
    /// Lists the region's volumes.
    ListVolumes = GET "volumes",
    /// Creates a volume, empty or from a snapshot.
    CreateVolume = POST "volumes",
    /// Returns one volume.
    GetVolume = GET "volumes/{}",
    /// Changes the name or the tags of a volume.
    UpdateVolume = PATCH "volumes/{}",
    /// Deletes a volume.
    DeleteVolume = DELETE "volumes/{}",
    /// Lists the profiles for volumes.
    ListVolumeProfiles = GET "volume/profiles",
    /// Lists the region's snapshots.
    ListSnapshots = GET "snapshots",
    /// Creates a snapshot, or a copy of another region's snapshot.
    CreateSnapshot = POST "snapshots",
    /// Deletes all snapshots of a volume at once; clients should never do that.
    DeleteSnapshots = DELETE "snapshots",
    /// Returns one snapshot.
    GetSnapshot = GET "snapshots/{}",
    /// Changes the name or the tags of a snapshot.
    UpdateSnapshot = PATCH "snapshots/{}",
    /// Deletes a snapshot.
    DeleteSnapshot = DELETE "snapshots/{}",
    /// Lists the clones of a snapshot.
    ListClones = GET "snapshots/{}/clones",
    /// Returns the clone of a snapshot in one zone.
    GetClone = GET "snapshots/{}/clones/{}",
    /// Creates a clone of a snapshot in one zone.
    CreateClone = PUT "snapshots/{}/clones/{}",
    /// Deletes the clone of a snapshot in one zone.
    DeleteClone = DELETE "snapshots/{}/clones/{}",
    /// Lists the region's images.
    ListImages = GET "images",
    /// Creates an image from an object or a boot volume.
    CreateImage = POST "images",
    /// Returns one image.
    GetImage = GET "images/{}",
    /// Changes the name of an image, or the dates of its deprecation and obsolescence.
    UpdateImage = PATCH "images/{}",
    /// Deletes an image.
    DeleteImage = DELETE "images/{}",
    /// Deprecates an image: it is no longer recommended.
    DeprecateImage = POST "images/{}/deprecate",
    /// Makes an image obsolete: no server can boot from it any more.
    ObsoleteImage = POST "images/{}/obsolete",
    /// Lists the export jobs of an image.
    ListExportJobs = GET "images/{}/export_jobs",
    /// Creates an export job for an image.
    CreateExportJob = POST "images/{}/export_jobs",
    /// Returns one export job.
    GetExportJob = GET "images/{}/export_jobs/{}",
    /// Deletes an export job.
    DeleteExportJob = DELETE "images/{}/export_jobs/{}",
    /// Lists the operating systems for images.
    ListOperatingSystems = GET "operating_systems",
    /// Returns one operating system.
    GetOperatingSystem = GET "operating_systems/{}",
    /// Lists the cloud's regions.
    ListRegions = GET "regions",
    /// Returns one region.
    GetRegion = GET "regions/{}",
    /// Lists the zones of a region.
    ListZones = GET "regions/{}/zones",
    /// Lists the region's VPCs.
    ListVpcs = GET "vpcs",
    /// Lists the region's subnets.
    ListSubnets = GET "subnets",
    /// Lists the region's SSH keys.
    ListKeys = GET "keys",
    /// Lists the region's security groups.
    ListSecurityGroups = GET "security_groups",
    /// IAM: issues a bearer token for an API key.
    IdentityToken = POST "identity/token",
    /// Metadata service: issues an identity token of the server.
    CreateIdentityToken = PUT "identity/v1/token",
    /// Metadata service: issues an identity token of the server, by the older path.
    CreateIdentityTokenOld = PUT "instance_identity/v1/token",
    /// Metadata service: issues an IAM token of a trusted profile.
    CreateIamToken = POST "identity/v1/iam_tokens",
    /// Metadata service: issues an IAM token of a trusted profile, by the older path.
    CreateIamTokenOld = POST "instance_identity/v1/iam_token",
    /// Metadata service: returns the server itself.
    GetOwnInstance = GET "metadata/v1/instance",
    /// Metadata service: lists the server's volume attachments.
    ListOwnAttachments = GET "metadata/v1/instance/volume_attachments",
    /// Global Tagging: attaches tags to resources.
    AttachTag = POST "v3/tags/attach",
    /// Global Tagging: detaches tags from resources.
    DetachTag = POST "v3/tags/detach",
    /// Global Tagging: lists tags.
    ListTags = GET "v3/tags",
}

impl RegionOperation {
    /// True if it belongs to a region's VPC API, with its version, its tokens and its form of errors.
    pub(super) fn is_vpc(self) -> bool {
        self < Self::IdentityToken
    }

    /// True if it changes a resource or a tag.
    pub(super) fn is_change(self) -> bool {
        let (method, _) = self.route();
        method != Method::GET && (self.is_vpc() || matches!(self, Self::AttachTag | Self::DetachTag))
    }

    /// Returns the operation for a path, and the values for the `{}` of its route. The path has no region and
    /// `v1`: `in_region` is true if they were removed from it.
    pub(super) fn find(method: &Method, path: &str, in_region: bool) -> Option<(Self, Vec<String>)> {
        Self::ALL.iter().filter(|operation| operation.is_vpc() == in_region).find_map(|&operation| {
            let (expected, template) = operation.route();
            if expected != method {
                return None;
            }
            let (mut parts, mut ids) = (path.split('/'), Vec::new());
            for segment in template.split('/') {
                match parts.next()? {
                    part if segment == "{}" && !part.is_empty() => ids.push(part.to_owned()),
                    part if part == segment => {}
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
