//! A strict object store in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use snapferry_base::units::{to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, MAX_PARTS, ObjectKey, ObjectMeta,
    ObjectStore, OpenUpload, Operation, Part, PartNumber, StoreError, StoredPart, Upload, UploadPlan,
};

struct Object {
    body: Bytes,
    etag: ETag,
}

struct Open {
    key: ObjectKey,
    overwrite: Overwrite,
    parts: BTreeMap<PartNumber, Part>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectKey, Object>,
    uploads: BTreeMap<String, Open>,
    /// Last number for an upload or a version.
    count: u64,
}

/// Store that keeps all objects in memory until it is dropped, and checks every request as far as it can.
pub struct MemoryStore {
    bucket: String,
    state: Mutex<State>,
}

impl MemoryStore {
    /// Makes an empty bucket that takes parts of any size.
    #[must_use]
    pub fn new(bucket: &str) -> Self {
        Self { bucket: bucket.to_owned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    fn check_number(operation: &Operation, number: PartNumber) -> Result<(), StoreError> {
        if (1..=MAX_PARTS).contains(&u64::from(number.0)) {
            return Ok(());
        }
        Self::refuse(operation.clone(), "InvalidArgument", format!("part number {number}"))
    }

    fn refuse<T>(operation: Operation, code: &str, message: String) -> Result<T, StoreError> {
        Err(StoreError::Refused { operation, status: 400, code: code.to_owned(), message, retry_after: None })
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn store(&mut self, key: &ObjectKey, body: Bytes) {
        let etag = ETag(format!("v{}", self.next()));
        self.objects.insert(key.clone(), Object { body, etag });
    }

    fn open(&mut self, operation: &Operation, upload: &Upload) -> Result<&mut Open, StoreError> {
        self.uploads
            .get_mut(&upload.id)
            .filter(|open| open.key == upload.key)
            .ok_or_else(|| StoreError::NoSuchUpload { operation: operation.clone(), id: upload.id.clone() })
    }
}

impl Object {
    /// Returns a range of the object, if it is the requested version and has that range.
    fn range(
        &self,
        operation: Operation,
        range: &Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        if version.is_some_and(|version| *version != self.etag) {
            let reason = format!("the version is {}", self.etag.0);
            return Err(StoreError::Precondition { operation, reason });
        }
        if range.start > range.end || range.end > to_u64(self.body.len()) {
            let message = format!("{range:?} of {} bytes", self.body.len());
            return MemoryStore::refuse(operation, "InvalidRange", message);
        }
        Ok(self.body.slice(to_usize(range.start)..to_usize(range.end)))
    }
}

fn etag_of(part: &Part) -> ETag {
    ETag(part.crc64.to_base64())
}

fn stored(part: &Part) -> StoredPart {
    StoredPart {
        number: part.number,
        size: to_u64(part.body.len()),
        etag: etag_of(part),
        crc64: Some(part.crc64),
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn url(&self, key: &ObjectKey) -> String {
        format!("memory://{}/{key}", self.bucket)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        Ok(self.state().objects.get(key).map(|object| ObjectMeta {
            size: to_u64(object.body.len()),
            etag: object.etag.clone(),
            crc64: Some(Crc64::of(&object.body)),
        }))
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        self.state().store(key, body);
        Ok(())
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        let operation = self.operation("GetObject", key);
        let state = self.state();
        let Some(object) = state.objects.get(key) else { return Err(StoreError::NoSuchKey { operation }) };
        object.range(operation, &range, version)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.state().objects.remove(key);
        Ok(())
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        let mut state = self.state();
        if plan.overwrite == Overwrite::Refuse && state.objects.contains_key(key) {
            let operation = self.operation("CreateMultipartUpload", key);
            return Err(StoreError::Precondition {
                operation,
                reason: "there is an object of that name already".to_owned(),
            });
        }
        let id = format!("upload-{}", state.next());
        state
            .uploads
            .insert(id.clone(), Open { key: key.clone(), overwrite: plan.overwrite, parts: BTreeMap::new() });
        Ok(Upload { key: key.clone(), id })
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        let operation = self.operation("UploadPart", &upload.key);
        let mut state = self.state();
        let open = state.open(&operation, upload)?;
        Self::check_number(&operation, part.number)?;
        if Crc64::of(&part.body) != part.crc64 {
            return Err(StoreError::Damaged {
                operation,
                reason: format!("part {} has another sum", part.number),
            });
        }
        let stored = stored(&part);
        // A copy, so that the sender's buffer goes back to its pool: an upload may be larger than all buffers
        // together.
        open.parts.insert(part.number, Part { body: Bytes::copy_from_slice(&part.body), ..part });
        Ok(stored)
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        let operation = self.operation("UploadPartCopy", &upload.key);
        part.check(&operation, from)?;
        Self::check_number(&operation, part.number)?;
        let mut state = self.state();
        let Some(source) = state.objects.get(&from.key) else {
            return Err(StoreError::NoSuchKey { operation });
        };
        let body = source.range(operation.clone(), &part.range, Some(&from.etag))?;
        let crc64 = Crc64::of(&body);
        part.compare(&operation, from, crc64)?;
        let copied = Part { number: part.number, at: part.at, body, crc64 };
        let stored = stored(&copied);
        state.open(&operation, upload)?.parts.insert(part.number, copied);
        Ok(stored)
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        stored.crc64 == Some(part.crc64)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        let operation = self.operation("ListParts", &upload.key);
        let mut state = self.state();
        let parts = state.open(&operation, upload)?.parts.values();
        Ok(parts.map(stored).collect())
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        expected: &ExpectedObject,
    ) -> Result<(), StoreError> {
        let operation = self.operation("CompleteMultipartUpload", &upload.key);
        let mut state = self.state();
        let open = state.open(&operation, upload)?;
        if parts.is_empty() {
            return Self::refuse(operation, "MalformedXML", "no parts".to_owned());
        }
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Self::refuse(operation, "InvalidPartOrder", "the parts are not by number".to_owned());
        }
        if parts.len() != open.parts.len() {
            let message = format!("{} parts were sent and {} are named", open.parts.len(), parts.len());
            return Self::refuse(operation, "InvalidPart", message);
        }
        let mut body = BytesMut::new();
        for named in parts {
            let Some(part) = open.parts.get(&named.number).filter(|part| etag_of(part) == named.etag) else {
                return Self::refuse(
                    operation,
                    "InvalidPart",
                    format!("part {} is not that one", named.number),
                );
            };
            if part.at != to_u64(body.len()) {
                let message =
                    format!("part {} was sent for offset {}, not {}", named.number, part.at, body.len());
                return Self::refuse(operation, "InvalidPart", message);
            }
            body.extend_from_slice(&part.body);
        }
        if to_u64(body.len()) != expected.size {
            return Self::refuse(
                operation,
                "InvalidRequest",
                format!("{} bytes are not {}", body.len(), expected.size),
            );
        }
        if Crc64::of(&body) != expected.crc64 {
            return Err(StoreError::Damaged { operation, reason: "the whole has another sum".to_owned() });
        }
        let overwrite = open.overwrite;
        if overwrite == Overwrite::Refuse && state.objects.contains_key(&upload.key) {
            return Err(StoreError::Precondition {
                operation,
                reason: "there is an object of that name by now".to_owned(),
            });
        }
        state.uploads.remove(&upload.id);
        state.store(&upload.key, body.freeze());
        Ok(())
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        self.state().uploads.remove(&upload.id);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let state = self.state();
        let matching = state.objects.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        let listed = matching.map(|(key, object)| ListedObject {
            key: key.clone(),
            size: to_u64(object.body.len()),
            modified: None,
        });
        Ok(listed.collect())
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let state = self.state();
        let matching = state.uploads.iter().filter(|(_, open)| open.key.as_str().starts_with(prefix));
        let listed = matching.map(|(id, open)| OpenUpload {
            upload: Upload { key: open.key.clone(), id: id.clone() },
            started: None,
        });
        Ok(listed.collect())
    }
}
