//! Names and ids, as the API takes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::region_of_zone;

/// The longest name, in characters: images, snapshots, volumes, attachments, instances and VPCs alike.
pub const LONGEST_NAME: usize = 63;
/// Hexadecimal digits of the hash in a name that was cut: enough for the servers of one account.
const HASH_LENGTH: usize = 8;
/// The longest user tag, in characters.
pub const LONGEST_TAG: usize = 128;

/// Text that the API would refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not what a name may look like.
    #[error(
        "{name:?} is no name for the cloud: give 1 to {LONGEST_NAME} lower-case letters, digits and hyphens, a letter first and no hyphen last"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Not what a tag may look like.
    #[error("{tag:?} is no tag: give 1 to {LONGEST_TAG} letters, digits, blanks and any of : _ . -")]
    Tag {
        /// What was given.
        tag: String,
    },
}

/// The name of an instance, volume, attachment, snapshot, image or VPC: `^([a-z]|[a-z][-a-z0-9]*[a-z0-9])$`, 1 to 63 characters
/// (IBM's VPC API models).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ResourceName(String);

impl ResourceName {
    /// Checks `name`.
    ///
    /// # Errors
    /// Where the API would refuse it.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let fits = name.len() <= LONGEST_NAME
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !name.ends_with('-');
        if fits { Ok(Self(name)) } else { Err(NameError::Name { name }) }
    }

    /// `base-suffix`. A base that leaves no room for the suffix is cut, with a part of its hash behind, so that two long names that begin
    /// alike stay apart.
    ///
    /// # Errors
    /// Where that is no name: the base or the suffix has characters that names have not.
    pub fn suffixed(base: &str, suffix: &str) -> Result<Self, NameError> {
        let room = LONGEST_NAME.saturating_sub(suffix.len() + 1);
        if base.len() <= room {
            return Self::new(format!("{base}-{suffix}"));
        }
        let hash = blake3::hash(base.as_bytes()).to_hex();
        let kept = room.saturating_sub(HASH_LENGTH + 1);
        // Of what is not ASCII the check below complains.
        let cut = base.get(..kept).unwrap_or(base).trim_end_matches('-');
        Self::new(format!("{cut}-{}-{suffix}", &hash[..HASH_LENGTH]))
    }

    /// The name.
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

/// A user tag, in lower case: the API stores it so, whatever it is given, and a comparison of what was sent with what came back would fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Tag(String);

impl Tag {
    /// Checks `tag` and lowers its case.
    ///
    /// # Errors
    /// Where the API would refuse it.
    pub fn new(tag: &str) -> Result<Self, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'.' | b'-' | b' ');
        if tag.trim().is_empty() || tag.len() > LONGEST_TAG || !tag.bytes().all(allowed) {
            return Err(NameError::Tag { tag: tag.to_owned() });
        }
        Ok(Self(tag.trim().to_ascii_lowercase()))
    }

    /// The tag.
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

/// Ids of the API's own making, one type each, so that none is given for another.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// An id that somebody wrote down.
            #[must_use]
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The id.
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
    /// A server's id.
    InstanceId,
    /// A volume's id.
    VolumeId,
    /// The id of a volume's attachment to a server.
    AttachmentId,
    /// A snapshot's id.
    SnapshotId,
    /// An image's id.
    ImageId,
    /// The id of an image's export job.
    ExportJobId,
    /// A VPC's id.
    VpcId,
    /// A subnet's id.
    SubnetId,
    /// An SSH key's id.
    KeyId,
    /// A resource group's id.
    ResourceGroupId,
    /// A security group's id.
    SecurityGroupId,
}

/// A cloud resource name: `crn:v1:bluemix:public:is:us-south:a/123::snapshot:r006-...`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Crn(String);

/// Where the location stands between a CRN's colons, counted from 0.
const CRN_LOCATION: usize = 5;

impl Crn {
    /// A CRN that somebody wrote down.
    #[must_use]
    pub fn new(crn: impl Into<String>) -> Self {
        Self(crn.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The region: the location itself, or that of the zone named there.
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
        let name = |base: &str| ResourceName::suffixed(base, "20260102030405").map(|name| name.as_str().to_owned());
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
