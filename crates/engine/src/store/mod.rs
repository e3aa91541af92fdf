//! Bytes out and back: object stores, and a folder that behaves like one.
//!
//! [`ObjectStore`] is what the pipeline knows. Retries, adaptive concurrency and rate limits are decorators around it
//! (`retrying`, `limited`); one conformance suite (`testing::store_suite`) runs against every store.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::units::ByteCount;

use crate::hash::Crc64;

mod error;
pub mod fenced;
pub mod file;
pub(crate) mod landing;
pub mod limited;
pub(crate) mod local;
pub mod pace;
pub mod retrying;

pub use error::{Operation, StoreError, is_digest_code};
pub use fenced::FencedStore;
pub use file::FolderStore;
pub use limited::Limited;
pub use local::sync_folder;
pub use pace::Pace;
pub use retrying::Retrying;

/// Most parts in one multipart upload (S3 and IBM COS alike).
pub const MAX_PARTS: u64 = 10_000;
/// Least bytes in any part but the last (S3 and IBM COS: 5 MiB).
pub const MIN_PART: ByteCount = ByteCount(5 << 20);
/// Most bytes in one part (S3 and IBM COS: 5 GiB).
pub const MAX_PART: ByteCount = ByteCount(5 << 30);
/// Most bytes in one object (IBM COS: 10 TB).
pub const MAX_OBJECT: ByteCount = ByteCount(10_000_000_000_000);

/// Most bytes in a key (S3 and IBM COS alike).
const LONGEST_KEY: usize = 1024;

/// The name of an object in its bucket, or of a file in its folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// A name that no store takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key:?} can't be an object's key: {reason}")]
pub struct ObjectKeyError {
    key: String,
    reason: &'static str,
}

impl ObjectKey {
    /// What a manifest's key has behind its image's.
    const MANIFEST: &str = ".manifest";

    /// Checks what S3 asks of a key: 1 to 1024 bytes of UTF-8, here without control characters and empty, `.` or `..` segments,
    /// which some stores and every folder would read as something else.
    ///
    /// # Errors
    /// With the rule that `key` breaks.
    pub fn new(key: &str) -> Result<Self, ObjectKeyError> {
        let fail = |reason| Err(ObjectKeyError { key: key.to_owned(), reason });
        if key.is_empty() {
            return fail("it is empty");
        }
        if key.len() > LONGEST_KEY {
            return fail("it is longer than 1024 bytes");
        }
        if key.chars().any(char::is_control) {
            return fail("it holds a control character");
        }
        if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return fail("it has an empty, \".\" or \"..\" segment between slashes");
        }
        Ok(Self(key.to_owned()))
    }

    /// The key of an image, beside which there is room for a manifest.
    ///
    /// # Errors
    /// With the rule that `key` or its manifest's breaks.
    pub fn of_image(key: &str) -> Result<Self, ObjectKeyError> {
        let image = Self::new(key)?;
        if image.manifest().0.len() > LONGEST_KEY {
            return Err(ObjectKeyError {
                key: image.0,
                reason: "its manifest's would be longer than 1024 bytes",
            });
        }
        Ok(image)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of the manifest beside this image.
    #[must_use]
    pub fn manifest(&self) -> Self {
        Self([&self.0, Self::MANIFEST].concat())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part's place in its upload: 1 to [`MAX_PARTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartNumber(pub u32);

impl fmt::Display for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An opaque mark of one version of an object. Stores disagree on what it is made of; equal marks mean equal versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ETag(pub String);

/// What a store says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes.
    pub size: u64,
    /// The version's mark; empty where a store gives none.
    pub etag: ETag,
    /// The full-object CRC64NVME, from stores that keep one.
    pub crc64: Option<Crc64>,
}

/// What is known about an upload before its first byte.
#[derive(Clone, Debug)]
pub struct UploadPlan {
    /// Bytes in every part but the last.
    pub part_size: ByteCount,
    /// Whether an object under the key may be replaced. A store that can enforce it does so at completion too; everybody checks
    /// first.
    pub replace: bool,
}

/// An upload that has begun. Whoever holds one completes or aborts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// What it will be called.
    pub key: ObjectKey,
    /// The store's name for the upload.
    pub id: String,
}

/// One part, ready to send. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its place.
    pub number: PartNumber,
    /// Its bytes.
    pub body: Bytes,
    /// Their sum.
    pub crc64: Crc64,
}

/// What a store says of a part that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    /// Its place.
    pub number: PartNumber,
    /// Bytes.
    pub size: u64,
    /// The store's mark, needed to complete.
    pub etag: ETag,
}

/// What the finished object must be.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Bytes.
    pub size: u64,
    /// CRC64NVME over all of them.
    pub crc64: Crc64,
    /// The version that the upload replaces, as HEAD gave it before the upload began. It tells an answer that was lost from
    /// one that was never given.
    pub replaces: Option<ETag>,
}

/// An object, as a list tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: ObjectKey,
    /// Bytes.
    pub size: u64,
    /// When it was completed, where the store tells.
    pub modified: Option<SystemTime>,
}

/// An upload that somebody began and nobody has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// The upload.
    pub upload: Upload,
    /// When it began, where the store tells.
    pub started: Option<SystemTime>,
}

/// A bucket of an object store, or a folder. Every method is one attempt with its own deadline, and may be called again after any
/// error.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Where an object is to be found, for people: `s3://bucket/key` or a path.
    fn url(&self, key: &ObjectKey) -> String;

    /// What is stored under `key`, or nothing.
    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError>;

    /// Writes a small object whole.
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError>;

    /// Reads `range` of an object: exactly its bytes, or an error. With `version`, of that version only.
    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError>;

    /// Removes an object. That there is none is success.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Begins a multipart upload. Nothing is visible under `key` before it completes.
    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError>;

    /// Stores one part; a part sent twice is stored once.
    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError>;

    /// Every part that the store holds of an upload, by number.
    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError>;

    /// Makes the object from exactly `parts`, which are all that were sent, by number.
    async fn complete(&self, upload: &Upload, parts: &[StoredPart], whole: &Whole) -> Result<(), StoreError>;

    /// Ends an upload and removes its parts. That there is none is success.
    async fn abort(&self, upload: &Upload) -> Result<(), StoreError>;

    /// Every object whose key begins with `prefix`, by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError>;

    /// Every open upload of keys that begin with `prefix`.
    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_key_leaves_room_for_its_manifests() {
        let longest = "x".repeat(1024 - ".manifest".len());
        assert_eq!(ObjectKey::of_image(&longest).map(|key| key.manifest().as_str().len()), Ok(1024));
        let error = ObjectKey::of_image(&format!("{longest}x")).expect_err("a byte too long");
        assert!(error.to_string().contains("manifest"), "{error}");
    }

    #[test]
    fn keys_that_stores_read_differently_are_refused() {
        assert_eq!(
            ObjectKey::new("a/b c.qcow2").map(|key| key.manifest().to_string()),
            Ok("a/b c.qcow2.manifest".to_owned())
        );
        for key in ["", "/a", "a//b", "../a", "a/..", "a\nb", &"x".repeat(1025)] {
            assert!(ObjectKey::new(key).is_err(), "{key:?} was taken");
        }
    }
}
