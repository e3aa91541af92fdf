//! Folder that behaves like a bucket, for `--output FILE`.
//!
//! An upload is a file with a hidden name beside the target, and completing it is a rename. A killed process
//! leaves that file, and nothing under the real name. A target that may be replaced, but that the system
//! can't replace, is written in place (`new_file.rs`).

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;
use snapferry_base::units::{to_u64, to_usize};
use tracing::Span;

use super::Overwrite;
use super::error::{Operation, StoreError};
use super::local::{PageCache, or_current_dir};
use super::new_file::{NewFile, hidden_name, is_id, new_id, parse_hidden, remove};
use super::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Part, PartNumber, StoredPart, Upload, UploadPlan,
};
use crate::hash::Crc64;

/// Store on one folder. The keys are the names of its files.
#[derive(Debug)]
pub struct FolderStore {
    folder: PathBuf,
    /// Key that stands for a file whose name can't be a key, and the name of that file.
    named: Option<(ObjectKey, OsString)>,
    open: Mutex<HashMap<String, Arc<PendingUpload>>>,
}

/// File of a running upload.
#[derive(Debug)]
struct PendingUpload {
    key: ObjectKey,
    new: NewFile,
    parts: Mutex<BTreeMap<PartNumber, Written>>,
}

/// Part that was written.
#[derive(Clone, Copy, Debug)]
struct Written {
    /// Offset of the part in the file, in bytes.
    at: u64,
    size: u64,
    crc64: Crc64,
    /// True if the checksum was computed of the bytes that were written. The system copies bytes from file to
    /// file without showing them.
    was_seen: bool,
}

impl Written {
    fn stored(self, number: PartNumber) -> StoredPart {
        StoredPart {
            number,
            size: self.size,
            etag: ETag(self.crc64.to_base64()),
            crc64: Some(self.crc64).filter(|_| self.was_seen),
        }
    }
}

impl FolderStore {
    /// Creates a store on `folder`, which must exist at the first write.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, named: None, open: Mutex::default() }
    }

    /// Returns a store on the folder of the file at `path`, and the key of the file, or `None` if the path
    /// does not name a file. A name that is not UTF-8, or has control characters, is allowed for a file: a
    /// key stands for it.
    #[must_use]
    pub fn of(path: &Path) -> Option<(Self, ObjectKey)> {
        let name = path.file_name()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let store = Self::new(folder.to_owned());
        if let Some(key) = name.to_str().and_then(|name| ObjectKey::new(name).ok()) {
            return Some((store, key));
        }
        let printable = name.to_string_lossy().replace(char::is_control, "\u{fffd}");
        let key = ObjectKey::new(&printable).ok()?;
        Some((Self { named: Some((key.clone(), name.to_owned())), ..store }, key))
    }

    /// Checks that a file can be stored under `key` and replace one that exists, without creating it.
    ///
    /// # Errors
    /// As for [`ObjectStore::put`].
    pub fn check(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.target(key)?;
        NewFile::check(&path, Overwrite::Replace).map_err(|err| io_error(self.operation("create", key), err))
    }

    /// Returns the name of the file that a key stands for.
    fn name(&self, key: &ObjectKey) -> OsString {
        match &self.named {
            Some((named, name)) if named == key => name.clone(),
            Some((named, name)) if named.manifest() == *key => {
                [name.as_os_str(), OsStr::new(ObjectKey::MANIFEST)].into_iter().collect()
            }
            _ => key.as_str().into(),
        }
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    /// Returns the path of the file that a key stands for.
    #[must_use]
    pub fn path(&self, key: &ObjectKey) -> PathBuf {
        self.folder.join(self.name(key))
    }

    /// Returns the path of a key. Fails if it is not in this folder, or is something other than a regular
    /// file.
    fn target(&self, key: &ObjectKey) -> Result<PathBuf, StoreError> {
        let path = self.path(key);
        if key.as_str().contains('/') {
            return Err(StoreError::Setup(format!(
                "{} is not a file of {}",
                path.display(),
                self.folder.display()
            )));
        }
        let Ok(found) = std::fs::metadata(&path) else { return Ok(path) };
        let kind = found.file_type();
        let kind_name = match () {
            () if kind.is_file() => return Ok(path),
            () if kind.is_dir() => "a folder",
            () if kind.is_block_device() => "a block device",
            () => "not a regular file",
        };
        Err(StoreError::Setup(format!(
            "{} is {kind_name}: the image goes into a regular file",
            path.display()
        )))
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Arc<PendingUpload>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self, operation: &Operation, upload: &Upload) -> Result<Arc<PendingUpload>, StoreError> {
        let found = self.uploads().get(&upload.id).cloned();
        found
            .filter(|pending| pending.key == upload.key)
            .ok_or_else(|| StoreError::NoSuchUpload { operation: operation.clone(), id: upload.id.clone() })
    }

    fn hidden(&self, key: &ObjectKey, id: &str) -> PathBuf {
        self.folder.join(hidden_name(&self.name(key), id))
    }
}

/// Returns the upload to which a hidden file belongs. The key of a long name is only its beginning, which
/// leads to the same hidden file.
fn upload_of(name: &OsStr) -> Option<Upload> {
    let (name, id) = parse_hidden(name)?;
    Some(Upload { key: ObjectKey::new(name).ok()?, id: id.to_owned() })
}

fn io_error(operation: Operation, source: io::Error) -> StoreError {
    match Errno::from_io_error(&source) {
        Some(Errno::NOSPC | Errno::DQUOT) => StoreError::Full { operation, source },
        _ => StoreError::Io { operation, source },
    }
}

/// Runs file operations outside the async threads. Their log lines are in the caller's span.
async fn run_blocking<T: Send + 'static>(
    operation: Operation,
    work: impl FnOnce(&Operation) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (lost, span) = (operation.clone(), Span::current());
    match tokio::task::spawn_blocking(move || span.in_scope(|| work(&operation))).await {
        Ok(done) => done,
        Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
        Err(_) => Err(StoreError::Cancelled { operation: lost }),
    }
}

fn version_of(found: &std::fs::Metadata) -> ETag {
    ETag(format!("{:x}-{:x}-{:x}.{:09}", found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

/// Opens a file that stands for an object.
fn open(operation: &Operation, path: &Path) -> Result<File, StoreError> {
    match File::open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            Err(StoreError::NoSuchKey { operation: operation.clone() })
        }
        opened => opened.map_err(|err| io_error(operation.clone(), err)),
    }
}

/// Checks that an open file has the requested version.
fn check_version(operation: &Operation, file: &File, version: Option<&ETag>) -> Result<(), StoreError> {
    let found = version_of(&file.metadata().map_err(|err| io_error(operation.clone(), err))?);
    if version.is_none_or(|version| *version == found) {
        return Ok(());
    }
    let reason = format!("the version is {} by now", found.0);
    Err(StoreError::Precondition { operation: operation.clone(), reason })
}

impl PendingUpload {
    fn parts(&self) -> MutexGuard<'_, BTreeMap<PartNumber, Written>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that a part may be written: by its number, and that it overlaps no other part.
    fn check_place(
        &self,
        operation: &Operation,
        number: PartNumber,
        at: u64,
        size: u64,
    ) -> Result<(), StoreError> {
        let wrong = |reason: String| Err(StoreError::Mismatch { operation: operation.clone(), reason });
        // A file has no highest number: its parts are small, and a large image has more than 10,000 of them.
        if number.0 == 0 {
            return wrong("part numbers begin at 1".to_owned());
        }
        let Some(end) = at.checked_add(size) else {
            return wrong(format!("{size} bytes at {at} are past the end of any file"));
        };
        let parts = self.parts();
        // Parts lie in the order of their numbers, so only the neighbours can overlap.
        let before = parts.range(..number).next_back().filter(|(_, part)| at < part.at + part.size);
        let behind = parts.range(PartNumber(number.0.saturating_add(1))..).next();
        let overlapping = before.or_else(|| behind.filter(|(_, part)| part.at < end));
        match overlapping {
            None => Ok(()),
            Some((other, part)) => wrong(format!(
                "bytes {at} to {end} overlap part {other}, which has bytes {} to {}",
                part.at,
                part.at + part.size
            )),
        }
    }

    /// Checks that `named` are exactly the parts that were written, without gaps.
    fn check_parts(
        &self,
        operation: &Operation,
        named: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        let wrong = |reason: String| Err(StoreError::Mismatch { operation: operation.clone(), reason });
        let parts = self.parts();
        if named.len() != parts.len() || named.is_empty() {
            return wrong(format!("{} parts were written and {} are named", parts.len(), named.len()));
        }
        let (mut size, mut crc64) = (0, Crc64::default());
        for (position, named) in (1..).zip(named) {
            let Some(part) = parts.get(&named.number).filter(|part| part.stored(named.number) == *named)
            else {
                return wrong(format!("part {} is not the one that was written", named.number));
            };
            if named.number != PartNumber(position) || part.at != size {
                return wrong(format!("part {} at byte {} is out of place", named.number, part.at));
            }
            size += part.size;
            crc64 = crc64.then(part.crc64, part.size);
        }
        if (size, crc64) != (whole.size, whole.crc64) {
            return wrong(format!(
                "{size} bytes with CRC64NVME {crc64} were written, not {} with {}",
                whole.size, whole.crc64
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    fn url(&self, key: &ObjectKey) -> String {
        self.path(key).display().to_string()
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        let path = self.target(key)?;
        run_blocking(self.operation("stat", key), move |operation| match std::fs::metadata(path) {
            Ok(found) => Ok(Some(ObjectMeta { size: found.len(), etag: version_of(&found), crc64: None })),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(io_error(operation.clone(), err)),
        })
        .await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let target = self.target(key)?;
        run_blocking(self.operation("write", key), move |operation| {
            let failed = |err| io_error(operation.clone(), err);
            let new =
                NewFile::begin(&target, &new_id(), Overwrite::Replace, PageCache::Use).map_err(failed)?;
            let written = (|| {
                new.file().write(&body, 0)?;
                new.file().file().sync_all()?;
                new.publish()
            })();
            if let Err(err) = written {
                let _the_first_error_counts = new.abandon();
                return Err(failed(err));
            }
            new.settle().map_err(failed)
        })
        .await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        let (path, version) = (self.target(key)?, version.cloned());
        run_blocking(self.operation("read", key), move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            let file = open(operation, &path)?;
            let size = file.metadata().map_err(failed)?.len();
            if range.start > range.end || range.end > size {
                let reason = format!("bytes {} to {} were asked for, of {size}", range.start, range.end);
                return Err(StoreError::Mismatch { operation: operation.clone(), reason });
            }
            let mut bytes = vec![0; to_usize(range.end - range.start)];
            file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
            // After the read, so that a change during it is noticed too.
            check_version(operation, &file, version.as_ref())?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.target(key)?;
        run_blocking(self.operation("remove", key), move |operation| {
            remove(&path).map_err(|err| io_error(operation.clone(), err))
        })
        .await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        let upload = Upload { key: key.clone(), id: new_id() };
        let (target, id, overwrite) = (self.target(key)?, upload.id.clone(), plan.overwrite);
        let new = run_blocking(self.operation("create", key), move |operation| {
            if overwrite == Overwrite::Refuse && target.symlink_metadata().is_ok() {
                let reason = "there is a file of that name already".to_owned();
                return Err(StoreError::Precondition { operation: operation.clone(), reason });
            }
            NewFile::begin(&target, &id, overwrite, PageCache::Bypass)
                .map_err(|err| io_error(operation.clone(), err))
        })
        .await?;
        let pending = PendingUpload { key: key.clone(), new, parts: Mutex::default() };
        self.uploads().insert(upload.id.clone(), Arc::new(pending));
        Ok(upload)
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        let mut operation = self.operation("write", &upload.key);
        operation.target = format!("{} part {}", operation.target, part.number);
        let pending = self.pending(&operation, upload)?;
        run_blocking(operation, move |operation| {
            let size = to_u64(part.body.len());
            pending.check_place(operation, part.number, part.at, size)?;
            pending.new.file().write(&part.body, part.at).map_err(|err| io_error(operation.clone(), err))?;
            let written = Written { at: part.at, size, crc64: part.crc64, was_seen: true };
            pending.parts().insert(part.number, written);
            Ok(written.stored(part.number))
        })
        .await
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        let mut operation = self.operation("copy", &upload.key);
        operation.target = format!("{} part {}", operation.target, part.number);
        let pending = self.pending(&operation, upload)?;
        let (path, from) = (self.target(&from.key)?, from.clone());
        run_blocking(operation, move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            part.check(operation, &from)?;
            pending.check_place(operation, part.number, part.at, part.len())?;
            let source = open(operation, &path)?;
            let copied = pending.new.file().copy(&source, &part.range, part.at).map_err(failed)?;
            // After the copy, so that a change during it is noticed too.
            check_version(operation, &source, Some(&from.etag))?;
            if copied.len != part.len() {
                let reason = format!("{} has no bytes {:?}", path.display(), part.range);
                return Err(StoreError::Mismatch { operation: operation.clone(), reason });
            }
            if let Some(crc64) = copied.crc64 {
                part.compare(operation, &from, crc64)?;
            }
            let written = Written {
                at: part.at,
                size: part.len(),
                crc64: part.crc64,
                was_seen: copied.crc64.is_some(),
            };
            pending.parts().insert(part.number, written);
            Ok(written.stored(part.number))
        })
        .await
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        stored.crc64 == Some(part.crc64)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        let pending = self.pending(&self.operation("list", &upload.key), upload)?;
        let parts = pending.parts();
        Ok(parts.iter().map(|(number, part)| part.stored(*number)).collect())
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        let operation = self.operation("complete", &upload.key);
        let pending = self.pending(&operation, upload)?;
        pending.check_parts(&operation, parts, whole)?;
        let (folder, size) = (self.folder.clone(), whole.size);
        let synced = run_blocking(operation, move |operation| {
            let published = (|| {
                // The last part may have been longer when it was sent the first time.
                pending.new.file().file().set_len(size)?;
                pending.new.file().file().sync_all()?;
                pending.new.publish()
            })();
            published.map_err(|err: io::Error| match err.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Precondition {
                    operation: operation.clone(),
                    reason: "there is a file of that name by now".to_owned(),
                },
                _ => io_error(operation.clone(), err),
            })?;
            Ok(pending.new.settle().map_err(|err| StoreError::Completed {
                operation: operation.clone(),
                source: Box::new(io_error(
                    Operation { request: "sync", target: folder.display().to_string() },
                    err,
                )),
            }))
        })
        .await?;
        self.uploads().remove(&upload.id);
        synced
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        let pending = self.uploads().remove(&upload.id);
        // The id may come from the command line, and must not lead to another folder.
        if !is_id(&upload.id) || upload.key.as_str().contains('/') {
            return Ok(());
        }
        let hidden = self.hidden(&upload.key, &upload.id);
        let operation = self.operation("abort", &upload.key);
        run_blocking(operation, move |operation| {
            let failed = |err| io_error(operation.clone(), err);
            match pending {
                Some(pending) if pending.new.is_in_place() => {
                    pending.new.abandon().map_err(failed)?;
                    Err(StoreError::Emptied { operation: operation.clone() })
                }
                _ => remove(&hidden).map_err(failed),
            }
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let (folder, prefix) = (self.folder.clone(), prefix.to_owned());
        let operation = Operation { request: "list", target: folder.display().to_string() };
        run_blocking(operation, move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            let mut found = Vec::new();
            for entry in std::fs::read_dir(or_current_dir(&folder)).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let Some(Ok(key)) =
                    name.to_str().filter(|name| name.starts_with(&prefix)).map(ObjectKey::new)
                else {
                    continue;
                };
                let meta = entry.metadata().map_err(failed)?;
                if meta.is_file() && upload_of(&name).is_none() {
                    found.push(ListedObject { key, size: meta.len(), modified: meta.modified().ok() });
                }
            }
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let (folder, prefix) = (self.folder.clone(), prefix.to_owned());
        let operation = Operation { request: "list", target: folder.display().to_string() };
        run_blocking(operation, move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            let mut found = Vec::new();
            for entry in std::fs::read_dir(or_current_dir(&folder)).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let Some(upload) =
                    upload_of(&entry.file_name()).filter(|upload| upload.key.as_str().starts_with(&prefix))
                else {
                    continue;
                };
                let started: Option<SystemTime> =
                    entry.metadata().ok().and_then(|found| found.created().or(found.modified()).ok());
                found.push(OpenUpload { upload, started });
            }
            found.sort_by(|a, b| (&a.upload.key, &a.upload.id).cmp(&(&b.upload.key, &b.upload.id)));
            Ok(found)
        })
        .await
    }
}
