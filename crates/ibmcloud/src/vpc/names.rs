//! Names, tags, identifiers and CRNs, as the API accepts and returns them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::iam::region_of_zone;

/// Longest name in characters, the same for images, snapshots, volumes, attachments, instances and VPCs.
pub const LONGEST_NAME: usize = 63;
/// Hexadecimal digits of the hash in a shortened name: enough for the servers of one account.
const HASH_LENGTH: usize = 8;
/// Longest user tag, in characters.
pub const LONGEST_TAG: usize = 128;

/// Reason why the API would refuse a name or a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is not a valid resource name.
    #[error(
        "{name:?} is no name for the cloud: give 1 to {LONGEST_NAME} lower-case letters, digits and hyphens, a letter first and no hyphen last"
    )]
    Name {
        /// Text that was given as a name.
        name: String,
    },
    /// The text is not a valid user tag.
    #[error("{tag:?} is no tag: give 1 to {LONGEST_TAG} letters, digits, blanks and any of : _ . -")]
    Tag {
        /// Text that was given as a tag.
        tag: String,
    },
}

/// Name of an instance, volume, attachment, snapshot, image or VPC: `^([a-z]|[a-z][-a-z0-9]*[a-z0-9])$`, 1 to
/// 63 characters (IBM's VPC API models).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ResourceName(String);

impl ResourceName {
    /// Checks a name and returns it.
    ///
    /// # Errors
    /// If the API would refuse the name.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let fits = name.len() <= LONGEST_NAME
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !name.ends_with('-');
        if fits { Ok(Self(name)) } else { Err(NameError::Name { name }) }
    }

    /// Returns `base-suffix`. A base that leaves no room for the suffix is shortened, and a part of its hash
    /// is added, so that two long bases with the same beginning give different names.
    ///
    /// # Errors
    /// If the result is not a valid name, because the base or the suffix has characters that names can't
    /// have.
    pub fn suffixed(base: &str, suffix: &str) -> Result<Self, NameError> {
        let room = LONGEST_NAME.saturating_sub(suffix.len() + 1);
        if base.len() <= room {
            return Self::new(format!("{base}-{suffix}"));
        }
        let hash = blake3::hash(base.as_bytes()).to_hex();
        let kept = room.saturating_sub(HASH_LENGTH + 1);
        // `get` finds no cut inside a character: then the whole base stays, and the check below refuses it.
        let cut = base.get(..kept).unwrap_or(base).trim_end_matches('-');
        Self::new(format!("{cut}-{}-{suffix}", &hash[..HASH_LENGTH]))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ResourceName {
    type Err = NameError;
    fn from_str(typed: &str) -> Result<Self, NameError> {
        Self::new(typed)
    }
}

/// User tag, in lower case: the API stores every tag so, and a comparison of a sent tag with the stored one
/// would fail otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Tag(String);

impl Tag {
    /// Checks a tag and returns it in lower case, without blanks at its ends.
    ///
    /// # Errors
    /// If the API would refuse the tag.
    pub fn new(tag: &str) -> Result<Self, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'.' | b'-' | b' ');
        if tag.trim().is_empty() || tag.len() > LONGEST_TAG || !tag.bytes().all(allowed) {
            return Err(NameError::Tag { tag: tag.to_owned() });
        }
        Ok(Self(tag.trim().to_ascii_lowercase()))
    }

    /// Returns the tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = NameError;
    fn from_str(typed: &str) -> Result<Self, NameError> {
        Self::new(typed)
    }
}

/// Identifiers that the API assigns, one type for each kind of resource, so that the compiler rejects a
/// mix-up.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Returns the identifier in `id`, which is not checked.
            #[must_use]
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// Returns the identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// Identifier of a server.
    InstanceId,
    /// Identifier of a volume.
    VolumeId,
    /// Identifier of a volume's attachment to a server.
    AttachmentId,
    /// Identifier of a snapshot.
    SnapshotId,
    /// Identifier of an image.
    ImageId,
    /// Identifier of an image's export job.
    ExportJobId,
    /// Identifier of a VPC.
    VpcId,
    /// Identifier of a subnet.
    SubnetId,
    /// Identifier of an SSH key.
    KeyId,
    /// Identifier of a resource group.
    ResourceGroupId,
    /// Identifier of a security group.
    SecurityGroupId,
}

/// Cloud resource name: `crn:v1:bluemix:public:is:us-south:a/123::snapshot:r006-...`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Crn(String);

/// Position of the location among the parts of a CRN between colons, counted from 0.
const CRN_LOCATION: usize = 5;

impl Crn {
    /// Returns the CRN in `crn`, which is not checked.
    #[must_use]
    pub fn new(crn: impl Into<String>) -> Self {
        Self(crn.into())
    }

    /// Returns the CRN as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the region in the CRN: its location, or the region of the zone that is its location.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        let location = self.0.split(':').nth(CRN_LOCATION).filter(|location| !location.is_empty())?;
        Some(region_of_zone(location).unwrap_or(location))
    }
}

impl fmt::Display for Crn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_api_takes() {
        for good in ["a", "web01", "web01-latest", "a-1", &"a".repeat(63)] {
            assert_eq!(ResourceName::new(good).expect(good).as_str(), good);
        }
        for bad in ["", "-a", "a-", "1a", "Web", "a_b", "a.b", "ü", &"a".repeat(64)] {
            assert_eq!(ResourceName::new(bad), Err(NameError::Name { name: bad.to_owned() }));
        }
    }

    #[test]
    fn a_suffix_always_fits_and_long_names_stay_apart() {
        let name =
            |base: &str| ResourceName::suffixed(base, "20260102030405").map(|name| name.as_str().to_owned());
        assert_eq!(name("web01").expect("a name"), "web01-20260102030405");
        assert_eq!(name(&"a".repeat(48)).expect("a name").len(), 63);
        let (one, two) = (name(&format!("{}-1", "a".repeat(60))), name(&format!("{}-2", "a".repeat(60))));
        let (one, two) = (one.expect("a name"), two.expect("a name"));
        assert_eq!((one.len(), two.len()), (63, 63));
        assert_ne!(one, two);
        assert_eq!(name("Web"), Err(NameError::Name { name: "Web-20260102030405".into() }));
    }

    #[test]
    fn tags_are_compared_as_the_api_stores_them() {
        assert_eq!(Tag::new("Server:Web01").expect("a tag"), Tag::new("server:web01").expect("a tag"));
        for bad in ["", " ", "a,b", "ü", &"a".repeat(129)] {
            assert_eq!(Tag::new(bad), Err(NameError::Tag { tag: bad.to_owned() }));
        }
    }

    #[test]
    fn regions_are_read_from_zones_and_crns() {
        for (crn, region) in [
            ("crn:v1:bluemix:public:is:us-south:a/1::snapshot:r006-1", Some("us-south")),
            ("crn:v1:bluemix:public:is:us-south-1:a/1::instance:0717-1", Some("us-south")),
            ("crn:v1", None),
        ] {
            assert_eq!(Crn::new(crn).region(), region, "{crn}");
        }
    }
}
