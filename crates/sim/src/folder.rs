//! State of the store: buckets and objects in memory; each change is written to a folder first.
//!
//! ```text
//! FOLDER/<bucket>/<key>              an object's bytes, a plain file; the key is escaped into one file name
//! FOLDER/<bucket>/.meta/<key>.json   the object's description
//! FOLDER/<bucket>/.uploads/<id>/     an upload and its parts (see `uploads`)
//! FOLDER/<bucket>/.drafts/           files that are being received; emptied at start
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rand::RngExt as _;
use s3s::dto::{ETag, ETagCondition};
use s3s::{S3Error, S3Result, s3_error};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use snapferry_engine::hash::Crc64;

use super::digests::Scheme;
use super::receive::Draft;
use super::timestamp::Timestamp;
use super::uploads::Upload;

/// Characters that are escaped in a file name: all but those that are easy to read there. `%` and `/` are
/// escaped, so names are unique and flat.
const FILE_NAME: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'+').remove(b'@').remove(b'=');
/// Longest escaped key that is used as a file name, in bytes; file names end at 255 bytes, and sidecars add
/// five.
const LONGEST_NAME: usize = 240;

const META: &str = ".meta";
const UPLOADS: &str = ".uploads";
const DRAFTS: &str = ".drafts";

/// Headers and metadata that a client stores with an object; they are returned as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Attributes {
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) cache_control: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Description of one object: everything but its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) etag: String,
    pub(super) modified: Timestamp,
    pub(super) crc64: Crc64,
    /// Checksum that the client chose; its value is in `checksum`.
    pub(super) scheme: Scheme,
    pub(super) checksum: String,
    pub(super) attributes: Attributes,
}

/// Conditions of a request: If-Match and If-None-Match.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
}

fn matches_etag(condition: &ETagCondition, object: &Object) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == object.etag,
    }
}

impl Conditions {
    /// Checks for a change that the present object may be replaced.
    pub(super) fn allow_change(&self, present: Option<&Object>) -> S3Result<()> {
        match (&self.if_match, present) {
            (Some(_), None) => return Err(s3_error!(NoSuchKey)),
            (Some(condition), Some(object)) if !matches_etag(condition, object) => {
                return Err(precondition("If-Match"));
            }
            _ => {}
        }
        match (&self.if_none_match, present) {
            (Some(condition), Some(object)) if matches_etag(condition, object) => {
                Err(precondition("If-None-Match"))
            }
            _ => Ok(()),
        }
    }

    /// Checks for a read that the object is the one that the client wants.
    pub(super) fn allow_read(&self, object: &Object) -> S3Result<()> {
        if self.if_match.as_ref().is_some_and(|condition| !matches_etag(condition, object)) {
            return Err(precondition("If-Match"));
        }
        if self.if_none_match.as_ref().is_some_and(|condition| matches_etag(condition, object)) {
            return Err(s3_error!(NotModified));
        }
        Ok(())
    }
}

pub(super) fn precondition(header: &str) -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold: {header}")
}

/// Parameters of a request for a listing.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    pub(super) prefix: String,
    pub(super) delimiter: Option<String>,
    /// Last key or common prefix of the page before.
    pub(super) after: String,
    pub(super) limit: usize,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) objects: Vec<Object>,
    pub(super) prefixes: Vec<String>,
    /// Key or common prefix after which the next page begins, if there is a next page.
    pub(super) next: Option<String>,
}

/// Folder of the store, with all its buckets.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
}

impl Folder {
    /// Opens the folder, creates it if it does not exist, and reads its buckets.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        let mut buckets = BTreeMap::new();
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if s3s::path::check_bucket_name(&name) && entry.path().join(META).is_dir() {
                buckets.insert(name, Arc::new(Bucket::open(entry.path())?));
            }
        }
        Ok(Self { root, buckets: RwLock::new(buckets) })
    }

    pub(super) fn bucket(&self, name: &str) -> S3Result<Arc<Bucket>> {
        read(&self.buckets)
            .get(name)
            .cloned()
            .ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist: {name}"))
    }

    pub(super) fn create_bucket(&self, name: &str) -> S3Result<()> {
        if !s3s::path::check_bucket_name(name) {
            return Err(s3_error!(InvalidBucketName));
        }
        let mut buckets = write(&self.buckets);
        if buckets.contains_key(name) {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        let dir = self.root.join(name);
        let bucket = Bucket::create(dir).map_err(S3Error::internal_error)?;
        buckets.insert(name.to_owned(), Arc::new(bucket));
        Ok(())
    }

    pub(super) fn delete_bucket(&self, name: &str) -> S3Result<()> {
        let mut buckets = write(&self.buckets);
        let bucket = buckets.get(name).ok_or_else(|| s3_error!(NoSuchBucket))?;
        if !read(&bucket.objects).is_empty() || !read(&bucket.uploads).is_empty() {
            return Err(s3_error!(BucketNotEmpty));
        }
        fs::remove_dir_all(&bucket.dir).map_err(S3Error::internal_error)?;
        buckets.remove(name);
        Ok(())
    }

    /// Returns the name of each bucket and the time at which it was created.
    pub(super) fn list(&self) -> Vec<(String, Timestamp)> {
        read(&self.buckets).iter().map(|(name, bucket)| (name.clone(), bucket.created)).collect()
    }
}

/// Bucket with its objects and open uploads.
#[derive(Debug)]
pub(super) struct Bucket {
    dir: PathBuf,
    created: Timestamp,
    objects: RwLock<BTreeMap<String, Object>>,
    /// Open uploads by key and id, the order in which they are listed.
    uploads: RwLock<BTreeMap<(String, String), Arc<Upload>>>,
}

impl Bucket {
    fn create(dir: PathBuf) -> io::Result<Self> {
        for inner in [META, UPLOADS, DRAFTS] {
            fs::create_dir_all(dir.join(inner))?;
        }
        write_json(&dir.join(".bucket.json"), &Timestamp::now(), &dir.join(DRAFTS))?;
        Self::open(dir)
    }

    fn open(dir: PathBuf) -> io::Result<Self> {
        let drafts = dir.join(DRAFTS);
        if drafts.exists() {
            fs::remove_dir_all(&drafts)?;
        }
        fs::create_dir_all(&drafts)?;
        fs::create_dir_all(dir.join(UPLOADS))?;
        let created = read_json(&dir.join(".bucket.json"))?;
        let mut objects = BTreeMap::new();
        for entry in fs::read_dir(dir.join(META))? {
            let path = entry?.path();
            let object: Object = read_json(&path)?;
            let body = dir.join(file_name(&object.key));
            // If the process is killed between the two renames of a replacement, the new bytes have the old
            // description.
            match fs::metadata(&body) {
                Ok(found) if found.len() == object.size => {
                    objects.insert(object.key.clone(), object);
                }
                _ => {
                    tracing::warn!(key = object.key, "an object's bytes don't fit its description: left out");
                }
            }
        }
        let mut uploads = BTreeMap::new();
        for entry in fs::read_dir(dir.join(UPLOADS))? {
            let path = entry?.path();
            let upload = match Upload::open(path.clone()) {
                // The process was killed right after it had made the folder, or while it removed it: no
                // client knows this upload, or the upload had ended.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), "an upload without a description: left out");
                    continue;
                }
                opened => opened?,
            };
            uploads.insert((upload.key().to_owned(), upload.id().to_owned()), Arc::new(upload));
        }
        Ok(Self { dir, created, objects: RwLock::new(objects), uploads: RwLock::new(uploads) })
    }

    /// Creates a temporary file to receive a body into.
    pub(super) fn draft(&self) -> S3Result<Draft> {
        Draft::create(self.dir.join(DRAFTS).join(unique())).map_err(S3Error::internal_error)
    }

    pub(super) fn drafts(&self) -> PathBuf {
        self.dir.join(DRAFTS)
    }

    /// Creates an object. `write_body` moves its bytes to the path that it is given. The conditions are
    /// checked against the object that is there at that moment.
    pub(super) fn commit(
        &self,
        object: Object,
        conditions: &Conditions,
        write_body: impl FnOnce(&Path) -> io::Result<()>,
    ) -> S3Result<()> {
        let mut objects = write(&self.objects);
        conditions.allow_change(objects.get(&object.key))?;
        write_body(&self.dir.join(file_name(&object.key))).map_err(S3Error::internal_error)?;
        write_json(&self.meta_path(&object.key), &object, &self.drafts()).map_err(S3Error::internal_error)?;
        objects.insert(object.key.clone(), object);
        Ok(())
    }

    /// Checks whether a change under these conditions would be allowed now; [`Self::commit`] checks them
    /// again.
    pub(super) fn would_allow(&self, key: &str, conditions: &Conditions) -> S3Result<()> {
        conditions.allow_change(read(&self.objects).get(key))
    }

    pub(super) fn object(&self, key: &str) -> S3Result<Object> {
        read(&self.objects)
            .get(key)
            .cloned()
            .ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    /// Returns the object and a file with its bytes; the file stays that of this version, whatever happens to
    /// the key.
    pub(super) fn open_object(&self, key: &str) -> S3Result<(Object, File)> {
        let objects = read(&self.objects);
        let object = objects
            .get(key)
            .cloned()
            .ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))?;
        let file = File::open(self.dir.join(file_name(key))).map_err(S3Error::internal_error)?;
        Ok((object, file))
    }

    /// Removes an object. If there is none, that is a success.
    pub(super) fn delete(&self, key: &str) -> S3Result<()> {
        let mut objects = write(&self.objects);
        if objects.contains_key(key) {
            fs::remove_file(self.meta_path(key)).map_err(S3Error::internal_error)?;
            fs::remove_file(self.dir.join(file_name(key))).map_err(S3Error::internal_error)?;
            objects.remove(key);
        }
        Ok(())
    }

    /// Replaces the attributes of an object, and leaves its bytes.
    pub(super) fn describe(&self, key: &str, attributes: Attributes) -> S3Result<Object> {
        let mut objects = write(&self.objects);
        let object =
            objects.get_mut(key).ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))?;
        let changed = Object { attributes, modified: Timestamp::now(), ..object.clone() };
        write_json(&self.meta_path(key), &changed, &self.drafts()).map_err(S3Error::internal_error)?;
        *object = changed.clone();
        Ok(changed)
    }

    pub(super) fn list(&self, query: &Query) -> Listing {
        let objects = read(&self.objects);
        let mut listing = Listing::default();
        let mut last = String::new();
        for (key, object) in objects.range::<String, _>((Bound::Excluded(&query.after), Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(query.prefix.as_str()) else {
                if key.as_str() > query.prefix.as_str() {
                    break;
                }
                continue;
            };
            let delimiter = query.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
            let rolled = delimiter.and_then(|delimiter| {
                let end = query.prefix.len() + rest.find(delimiter)? + delimiter.len();
                Some(&key[..end])
            });
            // The key is part of the common prefix that ended the page before, or that was just listed.
            if let Some(prefix) = rolled
                && (prefix == query.after || listing.prefixes.last().is_some_and(|last| last == prefix))
            {
                continue;
            }
            if listing.objects.len() + listing.prefixes.len() == query.limit {
                listing.next = Some(last).filter(|_| query.limit > 0);
                return listing;
            }
            if let Some(prefix) = rolled {
                prefix.clone_into(&mut last);
                listing.prefixes.push(last.clone());
            } else {
                last.clone_from(key);
                listing.objects.push(object.clone());
            }
        }
        listing
    }

    pub(super) fn create_upload(
        &self,
        key: &str,
        scheme: Option<Scheme>,
        attributes: Attributes,
    ) -> S3Result<Arc<Upload>> {
        let started = Timestamp::now();
        // The id begins with the time, so that the uploads of one key are listed oldest first.
        let id = format!("{started:012x}{}", unique());
        let upload = Upload::create(
            self.dir.join(UPLOADS).join(&id),
            id,
            key.to_owned(),
            started,
            scheme,
            attributes,
            &self.drafts(),
        )
        .map_err(S3Error::internal_error)?;
        let upload = Arc::new(upload);
        write(&self.uploads).insert((key.to_owned(), upload.id().to_owned()), Arc::clone(&upload));
        Ok(upload)
    }

    pub(super) fn upload(&self, key: &str, id: &str) -> S3Result<Arc<Upload>> {
        let name = (key.to_owned(), id.to_owned());
        read(&self.uploads)
            .get(&name)
            .cloned()
            .ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist: {id}"))
    }

    /// Removes an upload that has ended from the list.
    pub(super) fn forget(&self, upload: &Upload) {
        write(&self.uploads).remove(&(upload.key().to_owned(), upload.id().to_owned()));
    }

    /// Returns one page of open uploads after `after` (a key, and an id among that key's uploads), and true
    /// if there are more.
    pub(super) fn list_uploads(
        &self,
        prefix: &str,
        after: (&str, Option<&str>),
        limit: usize,
    ) -> (Vec<Arc<Upload>>, bool) {
        let uploads = read(&self.uploads);
        let mut page = Vec::new();
        for ((key, id), upload) in uploads.iter() {
            let is_after = key.as_str() > after.0
                || (key == after.0 && after.1.is_some_and(|after| id.as_str() > after));
            if !key.starts_with(prefix) || !is_after {
                continue;
            }
            if page.len() == limit {
                return (page, limit > 0);
            }
            page.push(Arc::clone(upload));
        }
        (page, false)
    }

    fn meta_path(&self, key: &str) -> PathBuf {
        self.dir.join(META).join(format!("{}.json", file_name(key)))
    }
}

/// Returns the file name for a key.
fn file_name(key: &str) -> String {
    let escaped = utf8_percent_encode(key, FILE_NAME).to_string();
    if escaped.len() > LONGEST_NAME {
        // This can't collide with another key: no escape has a lower-case letter after the per cent sign.
        return format!("%long-{}", blake3::hash(key.as_bytes()).to_hex());
    }
    match escaped.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => escaped,
    }
}

fn unique() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}

pub(super) fn write_json<T: Serialize>(path: &Path, value: &T, drafts: &Path) -> io::Result<()> {
    let mut draft = Draft::create(drafts.join(unique()))?;
    serde_json::to_writer(draft.file(), value)?;
    draft.keep_as(path)
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let text = fs::read(path)?;
    serde_json::from_slice(&text)
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {err}", path.display())))
}

pub(super) fn etag(value: &str) -> ETag {
    ETag::Strong(value.to_owned())
}

/// Locks for reading. A poisoned lock is used as it is: what a panicking thread leaves behind is whole,
/// because every change is one insertion or removal at the end.
pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_one_plain_file_name_each() {
        assert_eq!(file_name("web01-vdc-20260801.qcow2"), "web01-vdc-20260801.qcow2");
        let awkward = [
            "../../etc/passwd",
            ".meta",
            "a/b",
            "a%2Fb",
            ".",
            "..",
            "ä b",
            &"x".repeat(1024),
            &"x".repeat(1023),
        ];
        let names: std::collections::BTreeSet<_> = awkward.iter().map(|key| file_name(key)).collect();
        assert_eq!(names.len(), awkward.len());
        for name in names {
            assert!(!name.contains('/') && !name.starts_with('.') && name.len() <= LONGEST_NAME, "{name}");
        }
    }
}
