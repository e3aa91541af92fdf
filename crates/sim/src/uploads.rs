//! Multipart uploads: parts on disk, and the rules by which they become an object.
//!
//! ```text
//! .uploads/<id>/upload.json        key, checksum, attributes
//! .uploads/<id>/body               parts at (number - 1) x slot; the first good part sets the slot's size
//! .uploads/<id>/00001.json, ...    description of each part
//! .uploads/<id>/00003, ...         parts that can't have their slot: too large for it, or sent again
//! ```
//!
//! If all parts have the same size and none was sent twice, `body` is renamed to make the object. Otherwise
//! the parts are copied into one file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use s3s::{S3Error, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use snapferry_base::units::to_u64;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{MAX_PARTS, MIN_PART, PartNumber};

use super::digests::{Algorithm, Kind, Scheme, Sums};
use super::folder::{Attributes, Bucket, Conditions, Object, read_json, write_json};
use super::receive::{Draft, Sink};
use super::timestamp::Timestamp;

/// Location of a part's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PartFile {
    /// In the upload's body, in a slot of `size` bytes.
    Slot { size: u64 },
    /// In a file of its own.
    Own,
}

impl PartFile {
    /// Returns the offset of the part in its file, in bytes.
    fn offset(self, number: u32) -> u64 {
        match self {
            Self::Slot { size } => u64::from(number.saturating_sub(1)) * size,
            Self::Own => 0,
        }
    }
}

/// Description of one stored part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredPart {
    place: PartFile,
    pub(super) sums: Sums,
    pub(super) etag: String,
    pub(super) modified: Timestamp,
}

/// Contents of an upload's `upload.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    id: String,
    key: String,
    started: Timestamp,
    scheme: Option<Scheme>,
    attributes: Attributes,
}

/// Multipart upload, open until it is completed or aborted.
#[derive(Debug)]
pub(super) struct Upload {
    dir: PathBuf,
    header: Header,
    /// `None` once the upload has ended. Locked while it ends, so that no request adds a part meanwhile.
    state: Mutex<Option<State>>,
}

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<u32, StoredPart>,
    /// Size of a slot of the body in bytes, once it is known.
    slot: Option<u64>,
    /// Part numbers whose slots are being written to.
    claimed: BTreeSet<u32>,
}

/// Destination of a part that is being received.
#[derive(Debug)]
pub(super) enum Landing {
    Slot(Slot),
    Draft(Draft),
}

/// Claim on a part's slot in the body; released when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    upload: Arc<Upload>,
    number: u32,
    size: u64,
    body: File,
    written: u64,
}

impl Sink for Landing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Draft(draft) => draft.write(bytes),
            Self::Slot(slot) => {
                let end = slot.written + to_u64(bytes.len());
                if end > slot.size {
                    return Err(io::Error::other("a part is larger than it was announced"));
                }
                let place = PartFile::Slot { size: slot.size };
                slot.body.write_all_at(bytes, place.offset(slot.number) + slot.written)?;
                slot.written = end;
                Ok(())
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(state) = self.upload.lock().as_mut() {
            state.claimed.remove(&self.number);
        }
    }
}

/// One part in the list of a Complete request.
#[derive(Clone, Debug)]
pub(super) struct ListedPart {
    pub(super) number: i32,
    pub(super) etag: Option<String>,
    pub(super) checksums: Vec<(Algorithm, String)>,
}

/// Contents of a Complete request: the parts, and what the client expects of the object.
#[derive(Clone, Debug, Default)]
pub(super) struct Demands {
    pub(super) parts: Vec<ListedPart>,
    pub(super) size: Option<i64>,
    pub(super) checksum: Option<(Algorithm, String)>,
    pub(super) kind: Option<String>,
    pub(super) conditions: Conditions,
    /// True if the store behaves as one of before 2022, which ignores checksums and the object's size.
    pub(super) ignore_checksums: bool,
    /// True if the store wants all parts but the last to have the same size.
    pub(super) equal_parts: bool,
}

/// Returns the part number if S3 accepts it.
pub(super) fn part_number(number: i32) -> S3Result<PartNumber> {
    let allowed = u32::try_from(number).ok().filter(|number| (1..=MAX_PARTS).contains(&u64::from(*number)));
    allowed.map(PartNumber).ok_or_else(|| {
        s3_error!(InvalidArgument, "Part number must be an integer between 1 and {MAX_PARTS}, inclusive")
    })
}

fn no_such_upload(id: &str) -> S3Error {
    s3_error!(
        NoSuchUpload,
        "The specified upload does not exist; it may have been aborted or completed: {id}"
    )
}

impl Upload {
    pub(super) fn create(
        dir: PathBuf,
        id: String,
        key: String,
        started: Timestamp,
        scheme: Option<Scheme>,
        attributes: Attributes,
        drafts: &Path,
    ) -> io::Result<Self> {
        let header = Header { id, key, started, scheme, attributes };
        fs::create_dir(&dir)?;
        write_json(&dir.join("upload.json"), &header, drafts)?;
        Ok(Self { dir, header, state: Mutex::new(Some(State::default())) })
    }

    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let header = read_json(&dir.join("upload.json"))?;
        let upload = Self { dir, header, state: Mutex::default() };
        let mut state = State::default();
        for entry in fs::read_dir(&upload.dir)? {
            let path = entry?.path();
            let is_part = path.extension().is_some_and(|extension| extension == "json");
            let number = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(number) = number.filter(|_| is_part) else { continue };
            let part: StoredPart = read_json(&path)?;
            let bytes = fs::metadata(upload.path_of(number, part.place)).map_or(0, |bytes| bytes.len());
            if bytes < part.place.offset(number) + part.sums.size {
                tracing::warn!(upload = upload.id(), number, "a part's bytes are not all there: left out");
                continue;
            }
            if let PartFile::Slot { size } = part.place {
                state.slot = Some(size);
            }
            state.parts.insert(number, part);
        }
        *upload.lock() = Some(state);
        Ok(upload)
    }

    pub(super) fn id(&self) -> &str {
        &self.header.id
    }

    pub(super) fn key(&self) -> &str {
        &self.header.key
    }

    pub(super) fn started(&self) -> Timestamp {
        self.header.started
    }

    pub(super) fn scheme(&self) -> Option<Scheme> {
        self.header.scheme
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path_of(&self, number: u32, place: PartFile) -> PathBuf {
        match place {
            PartFile::Slot { .. } => self.dir.join("body"),
            PartFile::Own => self.dir.join(format!("{number:05}")),
        }
    }

    /// Checks that a part may have a checksum by `algorithm`: all parts of an upload use the one that it was
    /// created with.
    pub(super) fn accepts(&self, algorithm: Option<Algorithm>) -> S3Result<()> {
        match (self.header.scheme, algorithm) {
            (Some(scheme), Some(algorithm)) if scheme.algorithm != algorithm => Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {algorithm}",
                scheme.algorithm
            )),
            _ => Ok(()),
        }
    }

    /// Chooses the destination of a part of `length` bytes that is about to be received. If the part is there
    /// already, it keeps its bytes until the new ones have proved good.
    pub(super) fn land(
        upload: &Arc<Self>,
        number: PartNumber,
        length: Option<u64>,
        bucket: &Bucket,
    ) -> S3Result<Landing> {
        let mut state = upload.lock();
        let state = state.as_mut().ok_or_else(|| no_such_upload(upload.id()))?;
        if state.slot.is_none() {
            // Only the last part may be smaller than the least size, so this is a part like the others, or
            // the only one.
            state.slot = length.filter(|length| *length >= MIN_PART.0);
        }
        let taken = state.parts.contains_key(&number.0) || state.claimed.contains(&number.0);
        match (state.slot, length) {
            (Some(size), Some(length)) if length <= size && !taken => {
                let path = upload.path_of(number.0, PartFile::Slot { size });
                let body = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .map_err(S3Error::internal_error)?;
                state.claimed.insert(number.0);
                Ok(Landing::Slot(Slot {
                    upload: Arc::clone(upload),
                    number: number.0,
                    size,
                    body,
                    written: 0,
                }))
            }
            _ => Ok(Landing::Draft(bucket.draft()?)),
        }
    }

    /// Stores a part, and replaces one with the same number.
    pub(super) fn put(
        &self,
        number: PartNumber,
        landing: Landing,
        sums: Sums,
        drafts: &Path,
    ) -> S3Result<StoredPart> {
        let (place, draft, slot) = match landing {
            Landing::Draft(draft) => (PartFile::Own, Some(draft), None),
            Landing::Slot(slot) => (PartFile::Slot { size: slot.size }, None, Some(slot)),
        };
        let part = StoredPart { place, etag: sums.etag(), sums, modified: Timestamp::now() };
        let stored = {
            let mut state = self.lock();
            let state = state.as_mut().ok_or_else(|| no_such_upload(self.id()))?;
            if let Some(draft) = draft {
                draft.keep_as(&self.path_of(number.0, place)).map_err(S3Error::internal_error)?;
            }
            let path = self.dir.join(format!("{:05}.json", number.0));
            write_json(&path, &part, drafts).map_err(S3Error::internal_error)?;
            state.parts.insert(number.0, part.clone());
            part
        };
        // This releases the claim, and needs the lock to do so.
        drop(slot);
        Ok(stored)
    }

    /// Returns one page of parts with numbers above `after`, and true if there are more.
    pub(super) fn list(&self, after: u32, limit: usize) -> S3Result<(Vec<(u32, StoredPart)>, bool)> {
        let state = self.lock();
        let state = state.as_ref().ok_or_else(|| no_such_upload(self.id()))?;
        let mut rest =
            state.parts.range(after.saturating_add(1)..).map(|(number, part)| (*number, part.clone()));
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        Ok((page, limit > 0 && rest.next().is_some()))
    }

    /// Ends the upload without an object.
    pub(super) fn abort(&self, bucket: &Bucket) -> S3Result<()> {
        self.lock().take().ok_or_else(|| no_such_upload(self.id()))?;
        bucket.forget(self);
        self.remove_files();
        Ok(())
    }

    fn remove_files(&self) {
        if let Err(err) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %err, "can't remove an ended upload's parts");
        }
    }

    /// Creates the object. On an error everything stays as it was.
    pub(super) fn complete(&self, bucket: &Bucket, demands: &Demands) -> S3Result<Object> {
        let mut state = self.lock();
        let open = state.as_ref().ok_or_else(|| no_such_upload(self.id()))?;
        bucket.would_allow(self.key(), &demands.conditions)?;
        check_list(&open.parts, &demands.parts)?;
        if demands.equal_parts {
            check_sizes(&open.parts)?;
        }
        let object = self.describe(&open.parts, demands)?;
        if open.is_in_one_piece() {
            let body = self.dir.join("body");
            // A part that was sent and refused may have left bytes behind the last good one.
            let file = File::options().write(true).open(&body).map_err(S3Error::internal_error)?;
            file.set_len(object.size).map_err(S3Error::internal_error)?;
            bucket.commit(object.clone(), &demands.conditions, |path| fs::rename(body, path))?;
        } else {
            let draft = self.join(&open.parts, bucket)?;
            bucket.commit(object.clone(), &demands.conditions, |path| draft.keep_as(path))?;
        }
        *state = None;
        bucket.forget(self);
        self.remove_files();
        Ok(object)
    }

    /// Copies all parts into one file.
    fn join(&self, parts: &BTreeMap<u32, StoredPart>, bucket: &Bucket) -> S3Result<Draft> {
        let mut draft = bucket.draft()?;
        for (number, part) in parts {
            let mut from = File::open(self.path_of(*number, part.place)).map_err(S3Error::internal_error)?;
            from.seek(SeekFrom::Start(part.place.offset(*number))).map_err(S3Error::internal_error)?;
            // Between two files this is copy_file_range: no byte passes through this process.
            let copied =
                io::copy(&mut from.take(part.sums.size), draft.file()).map_err(S3Error::internal_error)?;
            if copied != part.sums.size {
                return Err(s3_error!(
                    InternalError,
                    "part {number} has {copied} bytes on disk, not {}",
                    part.sums.size
                ));
            }
        }
        Ok(draft)
    }

    /// Returns the description of the object that these parts make, if it is as the client demands.
    fn describe(&self, parts: &BTreeMap<u32, StoredPart>, demands: &Demands) -> S3Result<Object> {
        let size = parts.values().map(|part| part.sums.size).sum();
        if !demands.ignore_checksums && demands.size.is_some_and(|claimed| u64::try_from(claimed) != Ok(size))
        {
            return Err(s3_error!(
                InvalidRequest,
                "The provided 'x-amz-mp-object-size' header value does not match what was computed: {size}"
            ));
        }
        let scheme = self.header.scheme.unwrap_or(Scheme::DEFAULT);
        let sum_by = |scheme: Scheme| {
            let sums: Option<Vec<_>> = parts
                .values()
                .map(|part| Some((part.sums.size, part.sums.checksums.get(&scheme.algorithm)?.as_str())))
                .collect();
            sums.and_then(|sums| scheme.of_parts(sums.into_iter()))
        };
        let mismatch = || {
            s3_error!(
                InvalidRequest,
                "The upload was created for a {} checksum by {}.",
                scheme.kind.name(),
                scheme.algorithm
            )
        };
        let checksum = sum_by(scheme).ok_or_else(mismatch)?;
        if !demands.ignore_checksums {
            if demands.kind.as_deref().is_some_and(|kind| kind != scheme.kind.name()) {
                return Err(mismatch());
            }
            if let Some((algorithm, claimed)) = &demands.checksum {
                if *algorithm != scheme.algorithm {
                    return Err(mismatch());
                }
                if *claimed != checksum {
                    return Err(s3_error!(
                        BadDigest,
                        "The {algorithm} you specified did not match the calculated checksum."
                    ));
                }
            }
        }
        let crc64 =
            parts.values().fold(Crc64::of(b""), |crc, part| crc.then(part.sums.crc64, part.sums.size));
        Ok(Object {
            key: self.key().to_owned(),
            size,
            etag: format!("{:016x}-{}", crc64.0, parts.len()),
            modified: Timestamp::now(),
            crc64,
            scheme,
            checksum,
            attributes: self.header.attributes.clone(),
        })
    }
}

impl State {
    /// True if the body holds all parts one behind the other, and no request is writing to it.
    fn is_in_one_piece(&self) -> bool {
        let mut end = 0;
        self.claimed.is_empty()
            && self.parts.iter().all(|(number, part)| {
                let fits = matches!(part.place, PartFile::Slot { .. }) && part.place.offset(*number) == end;
                end += part.sums.size;
                fits
            })
    }
}

/// Checks the list of a Complete request against the stored parts, in the order in which S3 reports errors.
fn check_list(parts: &BTreeMap<u32, StoredPart>, listed: &[ListedPart]) -> S3Result<()> {
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !listed.is_sorted_by(|a, b| a.number < b.number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    for entry in listed {
        let number = part_number(entry.number)?;
        let invalid = |reason: &str| s3_error!(InvalidPart, "Part {number}: {reason}");
        let part = parts.get(&number.0).ok_or_else(|| invalid("it was not uploaded"))?;
        if entry.etag.as_deref() != Some(part.etag.as_str()) {
            return Err(invalid("its entity tag does not match"));
        }
        for (algorithm, claimed) in &entry.checksums {
            if part.sums.checksums.get(algorithm) != Some(claimed) {
                return Err(invalid("its checksum does not match"));
            }
        }
    }
    // Ceph does this; other stores drop unlisted parts silently.
    if listed.len() != parts.len() {
        return Err(s3_error!(
            InvalidPart,
            "{} parts were uploaded, and {} are listed.",
            parts.len(),
            listed.len()
        ));
    }
    let all_but_last = parts.len() - 1;
    if let Some((number, part)) =
        parts.iter().take(all_but_last).find(|(_, part)| part.sums.size < MIN_PART.0)
    {
        return Err(s3_error!(
            EntityTooSmall,
            "Part {number} has {} bytes: all but the last have at least {}.",
            part.sums.size,
            MIN_PART.0
        ));
    }
    Ok(())
}

/// Checks that all parts but the last have the size of the first, and the last is no larger.
fn check_sizes(parts: &BTreeMap<u32, StoredPart>) -> S3Result<()> {
    let mut sizes = parts.values().map(|part| part.sums.size);
    let (first, last) = (sizes.next().unwrap_or_default(), sizes.next_back().unwrap_or_default());
    if last <= first && sizes.all(|size| size == first) {
        return Ok(());
    }
    Err(s3_error!(InvalidPart, "All non-trailing parts must have the same length."))
}

impl StoredPart {
    /// Returns the checksum for a response: by the upload's algorithm, or else the CRC64NVME that every part
    /// has.
    pub(super) fn checksum(&self, scheme: Option<Scheme>) -> Option<(Algorithm, &str)> {
        let algorithm =
            scheme.unwrap_or(Scheme { algorithm: Algorithm::Crc64Nvme, kind: Kind::FullObject }).algorithm;
        self.sums.checksums.get(&algorithm).map(|sum| (algorithm, sum.as_str()))
    }
}
