//! Object stores, and a folder that behaves like one.
//!
//! The pipeline knows [`ObjectStore`] only. Retries, adaptive concurrency and rate limits are decorators
//! around it (`retrying`, `limited`); one conformance suite (`testing::store_suite`) runs against every
//! store.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use snapferry_base::units::ByteCount;

use crate::hash::Crc64;

mod error;
pub mod fenced;
pub mod file;
pub mod limited;
pub(crate) mod local;
pub(crate) mod new_file;
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

/// Kind of place that holds an image: it decides how many requests are in flight, and how large they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// A bucket of an object store: far away, so that many large requests are in flight.
    Bucket,
    /// A file in a local folder.
    File,
}

/// Treatment of an object, a file or the content of a device that exists already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// The existing data stays, and the operation fails.
    #[default]
    Refuse,
    /// The existing data is replaced. A file that the system can't replace is written in place.
    Replace,
}

impl Overwrite {
    /// [`Overwrite::Replace`] if the user gave `--force`.
    #[must_use]
    pub fn if_forced(force: bool) -> Self {
        if force { Self::Replace } else { Self::Refuse }
    }
}

/// Name of an object in its bucket, or of a file in its folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectKey(String);

/// Error for a name that no store accepts.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key:?} can't be an object's key: {reason}")]
pub struct ObjectKeyError {
    key: String,
    reason: &'static str,
}

impl ObjectKey {
    /// Suffix that the key of a manifest adds to the key of its image.
    const MANIFEST: &str = ".manifest";

    /// Checks the rules of S3 for keys: 1 to 1024 bytes of UTF-8. Also refuses control characters, and empty,
    /// `.` or `..` segments, which some stores and every folder would interpret.
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

    /// Checks the key of an image, and that the key of its manifest is short enough too.
    ///
    /// # Errors
    /// With the rule that `key` or the key of its manifest breaks.
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

    /// Returns the key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key of the manifest of this image.
    #[must_use]
    pub fn manifest(&self) -> Self {
        Self([&self.0, Self::MANIFEST].concat())
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> Self {
        key.0
    }
}

impl TryFrom<String> for ObjectKey {
    type Error = ObjectKeyError;
    fn try_from(key: String) -> Result<Self, ObjectKeyError> {
        Self::new(&key)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Position of a part in its upload: 1 to [`MAX_PARTS`] in a bucket, and any number from 1 on in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartNumber(pub u32);

impl fmt::Display for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Opaque identifier of one version of an object. Stores disagree on what it is made of; equal values mean
/// equal versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ETag(pub String);

/// Metadata that a store returns for an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Size of the object in bytes.
    pub size: u64,
    /// Version of the object; empty if the store returns none.
    pub etag: ETag,
    /// CRC64NVME of the full object, from stores that keep one.
    pub crc64: Option<Crc64>,
}

/// Parameters of an upload, known before its first byte.
#[derive(Clone, Debug)]
pub struct UploadPlan {
    /// Most bytes in a part that is sent. Copied parts may be larger, and a part may be smaller.
    pub part_size: ByteCount,
    /// Permission to replace an object under the key. Every store checks it at the beginning; a store that
    /// can enforce it does so at completion too.
    pub overwrite: Overwrite,
}

/// Upload that has begun. The caller completes or aborts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Key of the object that the upload will become.
    pub key: ObjectKey,
    /// Identifier that the store gave the upload.
    pub id: String,
}

/// Part that is ready to send. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Part {
    pub number: PartNumber,
    /// Offset of the part in the object, in bytes.
    pub at: u64,
    pub body: Bytes,
    /// CRC64NVME of the body.
    pub crc64: Crc64,
}

/// Object of the same store from which parts of a new object are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    pub key: ObjectKey,
    /// Version of the object that is copied, as HEAD returned it. Empty if the store returns none.
    pub etag: ETag,
    /// Size of that version in bytes.
    pub size: u64,
}

/// Part that the store makes of bytes that it holds already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedPart {
    pub number: PartNumber,
    /// Offset of the part in the new object, in bytes.
    pub at: u64,
    /// Bytes of the source that become the part; at least one.
    pub range: Range<u64>,
    /// CRC64NVME that those bytes must have.
    pub crc64: Crc64,
}

impl CopiedPart {
    /// Returns the size of the part in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// True if the range holds no byte, which no store accepts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the range against the size of the source, before a request is sent.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if the range is empty or does not lie in the source.
    pub fn check(&self, operation: &Operation, from: &CopySource) -> Result<(), StoreError> {
        if !self.is_empty() && self.range.end <= from.size {
            return Ok(());
        }
        let (start, end, size) = (self.range.start, self.range.end, from.size);
        let reason = format!("bytes {start} to {end} are no range of {}, which has {size} bytes", from.key);
        Err(StoreError::Mismatch { operation: operation.clone(), reason })
    }

    /// Compares the checksum that a store returned for the copied bytes with the one that they must have.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if the two differ. Another copy would give the same bytes.
    pub fn compare(
        &self,
        operation: &Operation,
        from: &CopySource,
        returned: Crc64,
    ) -> Result<(), StoreError> {
        if returned == self.crc64 {
            return Ok(());
        }
        let Range { start, end } = self.range;
        let reason = format!(
            "bytes {start} to {end} of {} have CRC64NVME {returned}, not {}: the object is damaged, or another one",
            from.key, self.crc64
        );
        Err(StoreError::Mismatch { operation: operation.clone(), reason })
    }
}

/// Metadata that a store returns for a part that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    pub number: PartNumber,
    /// Size of the part in bytes. The response to a copy has none, so there it is the size of the range; the
    /// list of the parts has the true one.
    pub size: u64,
    /// Identifier from the store, which the completion needs.
    pub etag: ETag,
    /// CRC64NVME of the part as the store returned it with the part or in a list; `None` if it returned none.
    pub crc64: Option<Crc64>,
}

/// Properties that the finished object must have.
#[derive(Clone, Debug)]
pub struct ExpectedObject {
    /// Size of the object in bytes.
    pub size: u64,
    /// CRC64NVME of the full object.
    pub crc64: Crc64,
    /// Version that the upload replaces, as HEAD returned it before the upload began. With it, an object that
    /// this upload made can be told from the one that was there before.
    pub replaces: Option<ETag>,
}

/// Object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    pub key: ObjectKey,
    /// Size of the object in bytes.
    pub size: u64,
    /// Time at which the object was completed, if the store reports it.
    pub modified: Option<SystemTime>,
}

/// Upload that was begun and is neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    pub upload: Upload,
    /// Time at which the upload began, if the store reports it.
    pub started: Option<SystemTime>,
}

/// Bucket of an object store, or a folder. Every method is one attempt with its own deadline, and may be
/// called again after any error.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Returns the location of an object, for people: `s3://bucket/key` or a path.
    fn url(&self, key: &ObjectKey) -> String;

    /// Returns the metadata of the object under `key`, or `None` if there is none.
    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError>;

    /// Writes a small object in one request.
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError>;

    /// Reads `range` of an object: exactly its bytes, or an error. With `version`, reads that version only.
    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError>;

    /// Removes an object. Succeeds if there is none.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Begins a multipart upload. Nothing is visible under `key` before it completes.
    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError>;

    /// Stores one part. A part that is sent twice is stored once.
    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError>;

    /// Makes a part of bytes of another object, or of an older version of the same one, inside the store.
    ///
    /// A success does not prove that the part has the size of its range: some stores shorten a range that
    /// goes past the end. And some stores copy whatever version is there. So the caller compares the list of
    /// the parts, and HEAD of the source, before it completes the upload.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`] if the source is gone; [`StoreError::Precondition`] if it has another
    /// version by now; [`StoreError::CopyRefused`] if the store copies no parts at all, or not for this
    /// identity; and [`StoreError::Mismatch`] if the store returned another checksum than the part must have.
    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError>;

    /// True if what the store returned for a part that it holds proves that it has the bytes of `part`: their
    /// CRC64NVME, or an ETag that is their MD5. May compute that MD5, which takes 2 seconds a gigabyte.
    fn proves(&self, stored: &StoredPart, part: &Part) -> bool;

    /// Returns every part that the store holds of an upload, by number.
    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError>;

    /// Makes the object from exactly `parts`, which are all that were sent, by number.
    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError>;

    /// Aborts an upload and removes its parts. Succeeds if there is none.
    async fn abort(&self, upload: &Upload) -> Result<(), StoreError>;

    /// Returns every object whose key begins with `prefix`, by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError>;

    /// Returns every open upload of keys that begin with `prefix`.
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
