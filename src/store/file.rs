//! A folder that behaves like a bucket: for `--output FILE`.
//!
//! An upload is a file with a hidden name beside the target, and completing it is a rename. A run that is killed leaves that file and
//! nothing under the real name.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Operation, StoreError};
use super::local::{DirectFile, IfThere, SUFFIX, hidden_name, is_id, new_id, or_here, publish, sync_folder};
use super::{
    ETag, ListedObject, MAX_PARTS, ObjectKey, ObjectMeta, ObjectStore, OpenUpload, Part, PartNumber, StoredPart, Upload,
    UploadPlan, Whole,
};
use crate::hash::Crc64;
use crate::units::{ByteCount, to_u64, to_usize};

/// One folder. The keys are the names of its files.
#[derive(Debug)]
pub struct FolderStore {
    folder: PathBuf,
    open: Mutex<HashMap<String, Arc<Growing>>>,
}

/// An upload's file.
#[derive(Debug)]
struct Growing {
    path: PathBuf,
    file: DirectFile,
    part_size: ByteCount,
    if_there: IfThere,
    parts: Mutex<BTreeMap<PartNumber, Sized64>>,
}

/// What a part holds.
#[derive(Clone, Copy, Debug)]
struct Sized64 {
    size: u64,
    crc64: Crc64,
}

impl Sized64 {
    fn stored(self, number: PartNumber) -> StoredPart {
        StoredPart { number, size: self.size, etag: ETag(self.crc64.to_base64()) }
    }
}

impl FolderStore {
    /// The folder must be there when something is written to it.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, open: Mutex::default() }
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.folder.join(key.as_str())
    }

    /// A key that is a file of this folder, and not something else.
    fn target(&self, key: &ObjectKey) -> Result<PathBuf, StoreError> {
        let path = self.path(key);
        if key.as_str().contains('/') {
            return Err(StoreError::Setup(format!("{} is not a file of {}", path.display(), self.folder.display())));
        }
        let Ok(found) = std::fs::metadata(&path) else { return Ok(path) };
        let kind = found.file_type();
        let what = match () {
            () if kind.is_file() => return Ok(path),
            () if kind.is_dir() => "a folder",
            () if kind.is_block_device() => "a block device",
            () => "not a regular file",
        };
        Err(StoreError::Setup(format!("{} is {what}: the image goes into a regular file", path.display())))
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Arc<Growing>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn growing(&self, operation: &Operation, upload: &Upload) -> Result<Arc<Growing>, StoreError> {
        let found = self.uploads().get(&upload.id).cloned();
        found
            .filter(|growing| growing.path == self.hidden(&upload.key, &upload.id))
            .ok_or_else(|| StoreError::NoSuchUpload { operation: operation.clone(), id: upload.id.clone() })
    }

    fn hidden(&self, key: &ObjectKey, id: &str) -> PathBuf {
        self.folder.join(hidden_name(key.as_str(), id))
    }
}

/// The key and id in a hidden name.
fn parse_hidden(name: &OsStr) -> Option<(ObjectKey, String)> {
    let (key, id) = name.to_str()?.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    is_id(id).then(|| ObjectKey::new(key).ok().map(|key| (key, id.to_owned())))?
}

fn io_error(operation: Operation, source: io::Error) -> StoreError {
    match Errno::from_io_error(&source) {
        Some(Errno::NOSPC | Errno::DQUOT) => StoreError::Full { operation, source },
        _ => StoreError::Io { operation, source },
    }
}

/// File work, off the async threads.
async fn off<T: Send + 'static>(
    operation: Operation,
    work: impl FnOnce(&Operation) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let lost = operation.clone();
    match tokio::task::spawn_blocking(move || work(&operation)).await {
        Ok(done) => done,
        Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
        Err(_) => Err(StoreError::Cancelled { operation: lost }),
    }
}

fn version_of(found: &std::fs::Metadata) -> ETag {
    ETag(format!("{:x}-{:x}-{:x}.{:09}", found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

impl Growing {
    fn create(path: PathBuf, plan: &UploadPlan) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let direct_flag = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        // Not every file system has it (tmpfs before Linux 6.6, FUSE); the page cache does as well there.
        let direct = OpenOptions::new().write(true).custom_flags(direct_flag).open(&path).ok();
        let file = DirectFile::new(file, direct);
        let if_there = if plan.replace { IfThere::Replace } else { IfThere::Refuse };
        Ok(Self { path, file, part_size: plan.part_size, if_there, parts: Mutex::default() })
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<PartNumber, Sized64>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `named` is what was written, in full and without gaps.
    fn review(&self, operation: &Operation, named: &[StoredPart], whole: &Whole) -> Result<(), StoreError> {
        let wrong = |reason: String| Err(StoreError::Mismatch { operation: operation.clone(), reason });
        let parts = self.parts();
        if named.len() != parts.len() || named.is_empty() {
            return wrong(format!("{} parts were written and {} are named", parts.len(), named.len()));
        }
        let (mut size, mut crc64) = (0, Crc64::default());
        for (place, named) in (1..).zip(named) {
            let Some(part) = parts.get(&named.number).filter(|part| part.stored(named.number) == *named) else {
                return wrong(format!("part {} is not the one that was written", named.number));
            };
            if named.number != PartNumber(place) || (to_u64(parts.len()) != u64::from(place) && part.size != self.part_size.0) {
                return wrong(format!("part {} of {} bytes is out of place", named.number, part.size));
            }
            size += part.size;
            crc64 = crc64.then(part.crc64, part.size);
        }
        if (size, crc64) != (whole.size, whole.crc64) {
            return wrong(format!("{size} bytes with CRC64NVME {crc64} were written, not {} with {}", whole.size, whole.crc64));
        }
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    fn url(&self, key: &ObjectKey) -> String {
        self.path(key).display().to_string()
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        let path = self.target(key)?;
        off(self.operation("stat", key), move |operation| match std::fs::metadata(path) {
            Ok(found) => Ok(Some(ObjectMeta { size: found.len(), etag: version_of(&found), crc64: None })),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(io_error(operation.clone(), err)),
        })
        .await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let (target, hidden, folder) = (self.target(key)?, self.hidden(key, &new_id()), self.folder.clone());
        off(self.operation("write", key), move |operation| {
            let written = (|| {
                let file = OpenOptions::new().write(true).create_new(true).open(&hidden)?;
                file.write_all_at(&body, 0)?;
                file.sync_all()?;
                publish(&hidden, &target, IfThere::Replace)?;
                sync_folder(&folder)
            })();
            written.map_err(|err| {
                let _the_first_error_counts = remove(&hidden);
                io_error(operation.clone(), err)
            })
        })
        .await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>, version: Option<&ETag>) -> Result<Bytes, StoreError> {
        let (path, version) = (self.target(key)?, version.cloned());
        off(self.operation("read", key), move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            let file = match File::open(path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    return Err(StoreError::NoSuchKey { operation: operation.clone() });
                }
                opened => opened.map_err(failed)?,
            };
            let size = file.metadata().map_err(failed)?.len();
            if range.start > range.end || range.end > size {
                let reason = format!("bytes {} to {} were asked for, of {size}", range.start, range.end);
                return Err(StoreError::Mismatch { operation: operation.clone(), reason });
            }
            let mut bytes = vec![0; to_usize(range.end - range.start)];
            file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
            // After the read, so that a change during it shows too.
            let found = version_of(&file.metadata().map_err(failed)?);
            if version.is_some_and(|version| version != found) {
                let reason = format!("the version is {} by now", found.0);
                return Err(StoreError::Precondition { operation: operation.clone(), reason });
            }
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.target(key)?;
        off(self.operation("remove", key), move |operation| remove(&path).map_err(|err| io_error(operation.clone(), err))).await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        let (target, id) = (self.target(key)?, new_id());
        let (hidden, plan) = (self.hidden(key, &id), plan.clone());
        let growing = off(self.operation("create", key), move |operation| {
            if !plan.replace && target.symlink_metadata().is_ok() {
                let reason = "there is a file of that name already".to_owned();
                return Err(StoreError::Precondition { operation: operation.clone(), reason });
            }
            Growing::create(hidden, &plan).map_err(|err| io_error(operation.clone(), err))
        })
        .await?;
        self.uploads().insert(id.clone(), Arc::new(growing));
        Ok(Upload { key: key.clone(), id })
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        let mut operation = self.operation("write", &upload.key);
        operation.target = format!("{} part {}", operation.target, part.number);
        let growing = self.growing(&operation, upload)?;
        off(operation, move |operation| {
            let wrong = |reason: String| Err(StoreError::Mismatch { operation: operation.clone(), reason });
            if part.number.0 == 0 || u64::from(part.number.0) > MAX_PARTS {
                return wrong(format!("the number is not from 1 to {MAX_PARTS}"));
            }
            let size = to_u64(part.body.len());
            if size > growing.part_size.0 {
                return wrong(format!("{size} bytes do not fit a part of {}", growing.part_size));
            }
            let offset = u64::from(part.number.0 - 1) * growing.part_size.0;
            growing.file.write(&part.body, offset).map_err(|err| io_error(operation.clone(), err))?;
            let held = Sized64 { size, crc64: part.crc64 };
            growing.parts().insert(part.number, held);
            Ok(held.stored(part.number))
        })
        .await
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        let growing = self.growing(&self.operation("list", &upload.key), upload)?;
        let parts = growing.parts();
        Ok(parts.iter().map(|(number, part)| part.stored(*number)).collect())
    }

    async fn complete(&self, upload: &Upload, parts: &[StoredPart], whole: &Whole) -> Result<(), StoreError> {
        let operation = self.operation("complete", &upload.key);
        let growing = self.growing(&operation, upload)?;
        growing.review(&operation, parts, whole)?;
        let (target, folder, size) = (self.target(&upload.key)?, self.folder.clone(), whole.size);
        let synced = off(operation, move |operation| {
            let published = (|| {
                // A last part that was sent again may have been longer before.
                growing.file.file().set_len(size)?;
                growing.file.file().sync_all()?;
                publish(&growing.path, &target, growing.if_there)
            })();
            published.map_err(|err: io::Error| match err.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Precondition {
                    operation: operation.clone(),
                    reason: "there is a file of that name by now".to_owned(),
                },
                _ => io_error(operation.clone(), err),
            })?;
            Ok(sync_folder(&folder).map_err(|err| StoreError::Completed {
                operation: operation.clone(),
                source: Box::new(io_error(Operation { request: "sync", target: folder.display().to_string() }, err)),
            }))
        })
        .await?;
        self.uploads().remove(&upload.id);
        synced
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        self.uploads().remove(&upload.id);
        // The id may come from the command line, and must not lead elsewhere.
        if !is_id(&upload.id) || upload.key.as_str().contains('/') {
            return Ok(());
        }
        let hidden = self.hidden(&upload.key, &upload.id);
        let operation = self.operation("abort", &upload.key);
        off(operation, move |operation| remove(&hidden).map_err(|err| io_error(operation.clone(), err))).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let (folder, prefix) = (self.folder.clone(), prefix.to_owned());
        let operation = Operation { request: "list", target: folder.display().to_string() };
        off(operation, move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            let mut found = Vec::new();
            for entry in std::fs::read_dir(or_here(&folder)).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let Some(Ok(key)) = name.to_str().filter(|name| name.starts_with(&prefix)).map(ObjectKey::new) else { continue };
                let meta = entry.metadata().map_err(failed)?;
                if meta.is_file() && parse_hidden(&name).is_none() {
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
        off(operation, move |operation| {
            let failed = |err: io::Error| io_error(operation.clone(), err);
            let mut found = Vec::new();
            for entry in std::fs::read_dir(or_here(&folder)).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let Some((key, id)) = parse_hidden(&entry.file_name()).filter(|(key, _)| key.as_str().starts_with(&prefix)) else {
                    continue;
                };
                let started: Option<SystemTime> = entry.metadata().ok().and_then(|found| found.created().or(found.modified()).ok());
                found.push(OpenUpload { upload: Upload { key, id }, started });
            }
            found.sort_by(|a, b| (&a.upload.key, &a.upload.id).cmp(&(&b.upload.key, &b.upload.id)));
            Ok(found)
        })
        .await
    }
}
