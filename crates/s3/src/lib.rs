//! Client of S3-compatible stores, first of all IBM Cloud Object Storage.
//!
//! The SDK builds, signs and sends requests. This crate sets the policies: no retries (`retrying` does them);
//! a deadline for each attempt that allows for a slow connection (the SDK waits for ever for a server that
//! stops reading); no payload hash if TLS protects the bytes; and CRC64NVME from end to end if the store
//! supports it.

use std::future::Future;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use auth::Bearer;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, ByteStreamError};
use aws_sdk_s3::types::{ChecksumMode, ChecksumType};
use bytes::{Bytes, BytesMut};
use errors::Teller;
use snapferry_base::units::{ByteCount, MIB, to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    ETag, ExpectedObject, ListedObject, MAX_PARTS, ObjectKey, ObjectMeta, ObjectStore, OpenUpload, Operation,
    Part, PartNumber, StoreError, StoredPart, Upload, UploadPlan,
};
use sums::{Fields, Sums};

mod auth;
mod bounded;
mod config;
mod connect;
mod errors;
mod multipart;
mod sums;
mod whole;

pub use bounded::LARGEST_OF_STORE;
pub use config::{Auth, COMPLETE, DEADLINE, S3Config, SLOWEST};
pub use errors::region_in;
use multipart::may_be_about_fields;
pub use sums::PartSum;

/// Largest number of pages of a list, with a thousand entries each.
const MAX_PAGES: u32 = 1000;

/// Largest memory for the names and identifiers of a list. A million objects with keys of a hundred bytes
/// fit.
const LARGEST_LIST: u64 = 256 * MIB;
/// Memory of a list's entry besides its names and identifiers, in bytes.
const ENTRY: usize = 64;

/// Longest upload identifier that is sent to the store, in bytes. Stores use some hundred at most, and a URL
/// has no room for more than 64 KiB.
const LONGEST_UPLOAD_ID: usize = 2048;
/// Longest ETag in bytes. Every known store uses a hash and a number.
const LONGEST_ETAG: usize = 1024;
/// Longest continuation token or marker of a list in bytes. It mostly is a key in some form.
const LONGEST_MARK: usize = 8192;
/// Longest prefix of a request in bytes. No key is longer.
const LONGEST_PREFIX: usize = 1024;
/// Number of entries on a full page, unless the request asks for fewer (S3's documentation).
const FULL_PAGE: usize = 1000;

/// Largest buffer that is allocated before a response arrives. It grows for longer responses: a server can
/// announce any length.
const LARGEST_BUFFER: u64 = 16 * MIB;

/// Client of one bucket.
#[derive(Debug)]
pub struct S3Store {
    client: Client,
    bearer: Option<Bearer>,
    bucket: String,
    /// False over TLS, which already protects the bytes. Hashing the payload would take more time than
    /// compression leaves.
    sign_payload: bool,
    slowest: ByteCount,
    deadline: Duration,
    complete: Duration,
    teller: Teller,
    sums: Sums,
}

impl S3Store {
    /// Returns the checksum that is used for parts, as far as the store's support is known.
    #[must_use]
    pub fn part_sum(&self) -> PartSum {
        self.sums.part()
    }

    /// Creates the bucket. Succeeds if this account already owns it. Meant for stores of the user's own: a
    /// bucket in a cloud needs more options than a key and a location.
    ///
    /// # Errors
    /// If the store refuses the request, or can't be reached.
    pub async fn create_bucket(&self) -> Result<(), StoreError> {
        let operation = Operation { request: "CreateBucket", target: format!("s3://{}", self.bucket) };
        match self.attempt(&operation, None, 0, self.client.create_bucket().bucket(&self.bucket).send()).await
        {
            Err(StoreError::Refused { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    fn operation(&self, request: &'static str, key: &ObjectKey) -> Operation {
        Operation { request, target: self.url(key) }
    }

    fn part_operation(&self, request: &'static str, upload: &Upload, number: PartNumber) -> Operation {
        Operation { request, target: format!("{} part {number}", self.url(&upload.key)) }
    }

    /// Makes one attempt within its deadline. `body` is the number of bytes that are sent or received.
    fn attempt<T, E>(
        &self,
        operation: &Operation,
        upload_id: Option<&str>,
        body: u64,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> impl Future<Output = Result<T, StoreError>>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.attempt_within(self.deadline_of(body), operation, upload_id, request)
    }

    async fn attempt_within<T, E>(
        &self,
        deadline: Duration,
        operation: &Operation,
        upload_id: Option<&str>,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T, StoreError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        if let Some(bearer) = &self.bearer {
            bearer.renew().await.map_err(|source| StoreError::Identity {
                operation: operation.clone(),
                source: Box::new(source),
            })?;
        }
        within(deadline, operation, request)
            .await?
            .map_err(|err| self.teller.tell(operation.clone(), upload_id, err))
    }

    /// Returns a more exact error for a refused HEAD, whose response has no body and so no reason. A GET of
    /// one byte needs the same rights, and its response contains the reason.
    async fn reasoned(&self, err: StoreError, key: &ObjectKey) -> StoreError {
        if !matches!(err, StoreError::Denied { .. } | StoreError::Refused { status: 400, .. }) {
            return err;
        }
        match self.get_range(key, 0..1, None).await {
            Err(
                reason @ (StoreError::Denied { .. }
                | StoreError::WrongRegion { .. }
                | StoreError::NoSuchBucket { .. }),
            ) => reason,
            Err(reason @ StoreError::Refused { status: 400, .. }) => reason,
            _ => err,
        }
    }

    /// Returns the size of an object for which HEAD returned none, because a proxy removed the header. The
    /// response to a GET of one byte contains the whole size; if it doesn't, the size is in a list.
    async fn size_otherwise(&self, key: &ObjectKey, operation: &Operation) -> Result<u64, StoreError> {
        let get = self.operation("GetObject", key);
        let request =
            self.client.get_object().bucket(&self.bucket).key(key.as_str()).range("bytes=0-0").send();
        // Fails for an empty object, and on stores that don't support ranges.
        let answer = self.attempt(&get, None, 0, request).await;
        let placed = answer
            .as_ref()
            .ok()
            .and_then(|answer| answer.content_range()?.rsplit_once('/')?.1.trim().parse().ok());
        if let Some(size) = placed {
            return Ok(size);
        }
        let listed = self.list(key.as_str()).await;
        if let Some(found) =
            listed.as_ref().ok().and_then(|listed| listed.iter().find(|found| found.key == *key))
        {
            return Ok(found.size);
        }
        let why = listed
            .err()
            .map_or_else(|| "a list does not show it".to_owned(), |err| snapferry_base::retry::chain(&err));
        let reason =
            format!("the store did not tell the object's size, neither by HEAD nor by a range, and {why}");
        Err(StoreError::Untold { operation: operation.clone(), reason })
    }

    /// Checks that the store holds the object that was just put: a response of 200 doesn't prove it.
    async fn look_at(
        &self,
        operation: &Operation,
        key: &ObjectKey,
        size: u64,
        etag: &ETag,
    ) -> Result<(), StoreError> {
        let wrong = |reason: String| Err(StoreError::Mismatch { operation: operation.clone(), reason });
        let Some(meta) = self.head(key).await? else {
            return wrong("the store answered that it has the object, and has none".to_owned());
        };
        if meta.size != size {
            return wrong(format!("{size} bytes were sent, and the store holds {}", meta.size));
        }
        // ETags that are no MD5 may differ between two responses for the same object.
        let is_md5 = |etag: &ETag| etag.0.len() == 32 && etag.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_md5(etag) && is_md5(&meta.etag) && !etag.0.eq_ignore_ascii_case(&meta.etag.0) {
            return wrong(format!("version {:?} was stored, and the store holds {:?}", etag.0, meta.etag.0));
        }
        Ok(())
    }

    fn deadline_of(&self, body: u64) -> Duration {
        self.deadline + Duration::from_secs(body / self.slowest.0)
    }
}

async fn within<T>(
    deadline: Duration,
    operation: &Operation,
    work: impl Future<Output = T> + Send,
) -> Result<T, StoreError> {
    // Boxed, because the SDK's futures have tens of kilobytes and would be copied with each caller's future.
    tokio::time::timeout(deadline, Box::pin(work))
        .await
        .map_err(|_| StoreError::TimedOut { operation: operation.clone(), deadline })
}

#[async_trait]
impl ObjectStore for S3Store {
    fn url(&self, key: &ObjectKey) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        let operation = self.operation("HeadObject", key);
        let request = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            .checksum_mode(ChecksumMode::Enabled)
            .send();
        let answer = match self.attempt(&operation, None, 0, request).await {
            Err(StoreError::NoSuchKey { .. }) => return Ok(None),
            Err(err) => return Err(self.reasoned(err, key).await),
            Ok(answer) => answer,
        };
        let told = answer.content_length().and_then(|size| u64::try_from(size).ok());
        let size = match told {
            Some(size) => size,
            None => self.size_otherwise(key, &operation).await?,
        };
        // A composite checksum, of the parts' checksums, is not that of the object.
        let whole = !matches!(answer.checksum_type(), Some(ChecksumType::Composite));
        let crc64 =
            answer.checksum_crc64_nvme().filter(|_| whole).and_then(|text| Crc64::from_base64(text).ok());
        Ok(Some(ObjectMeta { size, etag: etag_of(answer.e_tag(), &operation)?, crc64 }))
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let operation = self.operation("PutObject", key);
        let digest = sums::md5_of(body.clone()).await;
        let len = to_u64(body.len());
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            // The body is small, and every store checks an MD5.
            .content_md5(sums::md5_header(digest))
            .body(ByteStream::from(body))
            .customize();
        let request = if self.sign_payload { request } else { request.disable_payload_signing() };
        let answer = self.attempt(&operation, None, len, request.send()).await?;
        self.look_at(&operation, key, len, &etag_of(answer.e_tag(), &operation)?).await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        let operation = self.operation("GetObject", key);
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let version = version.filter(|version| !version.0.is_empty());
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            .range(format!("bytes={}-{}", range.start, range.end - 1))
            .set_if_match(version.map(quoted));
        let answer = self.attempt(&operation, None, 0, request.send()).await?;
        // Stores handle If-Match differently, so the ETag of the response is checked too.
        let came = etag_of(answer.e_tag(), &operation)?;
        if let Some(version) = version.filter(|version| came != **version) {
            let reason = format!("version {:?} was asked for and {:?} came", version.0, came.0);
            return Err(StoreError::Precondition { operation, reason });
        }
        // The header is "bytes 0-99/1234". A store that doesn't support ranges sends the whole object, which
        // is right only if the caller asked for all of it.
        let wanted = format!("bytes {}-{}/", range.start, range.end - 1);
        let placed = answer.content_range().map_or(range.start == 0, |placed| placed.starts_with(&wanted));
        let told = answer.content_length().and_then(|told| u64::try_from(told).ok());
        let wrong = |came: String| StoreError::Mismatch {
            operation: operation.clone(),
            reason: format!("bytes {} to {} were asked for and {came} came", range.start, range.end),
        };
        if !placed || told.is_some_and(|told| told != len) {
            let placed = answer.content_range().unwrap_or("no range");
            return Err(wrong(format!(
                "{placed} of {} bytes",
                told.map_or("?".to_owned(), |told| told.to_string())
            )));
        }
        let read = read_up_to(answer.body, len);
        let body =
            within(self.deadline_of(len), &operation, read).await?.map_err(|err| StoreError::Connection {
                operation: operation.clone(),
                reason: format!(
                    "{}: the answer broke off: {}",
                    self.teller.endpoint,
                    snapferry_base::retry::chain(&err)
                ),
            })?;
        if to_u64(body.len()) == len { Ok(body) } else { Err(wrong(format!("{} bytes", body.len()))) }
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let operation = self.operation("DeleteObject", key);
        let request = self.client.delete_object().bucket(&self.bucket).key(key.as_str()).send();
        match self.attempt(&operation, None, 0, request).await {
            Ok(_) | Err(StoreError::NoSuchKey { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        if plan.overwrite == Overwrite::Refuse && self.head(key).await?.is_some() {
            let operation = self.operation("CreateMultipartUpload", key);
            return Err(StoreError::Precondition {
                operation,
                reason: "there is an object of that name already".to_owned(),
            });
        }
        if self.sums.part() == PartSum::Md5 {
            return self.send_create(key, Fields::Without).await;
        }
        match self.send_create(key, Fields::Crc64).await {
            Err(err) if may_be_about_fields(&err) => {
                let upload = self.send_create(key, Fields::Without).await?;
                self.sums.unknown_to_store();
                Ok(upload)
            }
            answer => answer,
        }
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        let etag = match self.sums.part() {
            PartSum::Md5 => self.send_part_with_md5(upload, &part).await?,
            // Each response is checked, because stores of different versions may share one address.
            PartSum::Crc64 | PartSum::Unknown => self.probe_with_part(upload, &part).await?,
        };
        Ok(StoredPart { number: part.number, size: to_u64(part.body.len()), etag })
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        let operation = self.operation("ListParts", &upload.key);
        let id = wire_id(upload, &operation)?;
        let strange = |reason: String| StoreError::Mismatch { operation: operation.clone(), reason };
        let mut found: Vec<StoredPart> = Vec::new();
        let mut marker: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let request = self
                .client
                .list_parts()
                .bucket(&self.bucket)
                .key(upload.key.as_str())
                .upload_id(id)
                .set_part_number_marker(marker.clone())
                .send();
            let page = self.attempt(&operation, Some(&upload.id), 0, request).await?;
            for part in page.parts() {
                let number = part.part_number().and_then(|number| u32::try_from(number).ok());
                let size = part.size().and_then(|size| u64::try_from(size).ok());
                let (Some(number), Some(size)) = (number, size) else {
                    return Err(strange("a part in the answer has no number or no size".to_owned()));
                };
                if found.last().is_some_and(|last| last.number.0 >= number) || u64::from(number) > MAX_PARTS {
                    return Err(strange(format!("part {number} in the answer is out of order")));
                }
                found.push(StoredPart {
                    number: PartNumber(number),
                    size,
                    etag: etag_of(part.e_tag(), &operation)?,
                });
            }
            if is_last(page.is_truncated(), page.parts().len()).map_err(strange)? {
                return Ok(found);
            }
            let next = page.next_part_number_marker().map(str::to_owned);
            let last = found.last().map(|part| part.number.to_string());
            let next = next.filter(|next| !matches!(next.as_str(), "" | "0")).or(last);
            if next.is_none() || next == marker || next.as_ref().is_some_and(|next| next.len() > LONGEST_MARK)
            {
                return Err(strange("the list goes on without saying where".to_owned()));
            }
            marker = next;
        }
        Err(strange(format!("the list does not end after {MAX_PAGES} pages")))
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        // A store that did not return the parts' checksums can't check that of the whole object.
        if self.sums.part() == PartSum::Md5 {
            return self.send_complete(upload, parts, whole, Fields::Without).await;
        }
        match self.send_complete(upload, parts, whole, Fields::Crc64).await {
            // Try again only after an error that can't be about the object itself: a wrong checksum or size
            // must not succeed the second time.
            Err(StoreError::Unsupported { .. }) => {
                self.send_complete(upload, parts, whole, Fields::Without).await
            }
            Err(StoreError::Refused { status: 400, code, .. })
                if matches!(
                    code.as_str(),
                    "InvalidArgument" | "UnsupportedArgument" | "MalformedXML" | "InvalidHeader"
                ) =>
            {
                self.send_complete(upload, parts, whole, Fields::Without).await
            }
            answer => answer,
        }
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        let operation = self.operation("AbortMultipartUpload", &upload.key);
        let id = wire_id(upload, &operation)?;
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(upload.key.as_str())
            .upload_id(id)
            .send();
        match self.attempt(&operation, Some(&upload.id), 0, request).await {
            Ok(_) | Err(StoreError::NoSuchUpload { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let operation =
            Operation { request: "ListObjectsV2", target: format!("s3://{}/{prefix}", self.bucket) };
        let strange = |reason: String| StoreError::Mismatch { operation: operation.clone(), reason };
        let prefix = wire_prefix(prefix, &operation)?;
        let (mut found, mut room) = (Vec::new(), Room::new(&operation));
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let page = self
                .attempt(&operation, None, 0, request.set_continuation_token(token.clone()).send())
                .await?;
            for object in page.contents() {
                let Some(Ok(key)) = object.key().map(ObjectKey::new) else {
                    tracing::debug!(key = ?object.key(), "an object has a key that snapferry never uses; it is left out");
                    continue;
                };
                // If a store ignores the prefix, the list must not contain other users' objects, because the
                // caller may remove the listed ones.
                if !key.as_str().starts_with(prefix) {
                    continue;
                }
                let size = object.size().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| strange(format!("the object {key} has no size")))?;
                let modified = object.last_modified().and_then(|at| SystemTime::try_from(*at).ok());
                room.take(key.as_str().len())?;
                found.push(ListedObject { key, size, modified });
            }
            // If the store returns a count, it must match the number of entries.
            let sent = page.contents().len() + page.common_prefixes().len();
            if let Some(count) = page.key_count().filter(|&count| usize::try_from(count) != Ok(sent)) {
                return Err(strange(format!("the answer is said to hold {count} objects, and holds {sent}")));
            }
            if is_last(page.is_truncated(), sent).map_err(strange)? {
                found.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(found);
            }
            let next = page.next_continuation_token().map(str::to_owned);
            if next.is_none() || next == token || next.as_ref().is_some_and(|next| next.len() > LONGEST_MARK)
            {
                return Err(strange("the list goes on without saying where".to_owned()));
            }
            token = next;
        }
        Err(strange(format!("the list does not end after {MAX_PAGES} pages")))
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let operation =
            Operation { request: "ListMultipartUploads", target: format!("s3://{}/{prefix}", self.bucket) };
        let strange = |reason: String| StoreError::Mismatch { operation: operation.clone(), reason };
        let prefix = wire_prefix(prefix, &operation)?;
        let (mut found, mut room) = (Vec::new(), Room::new(&operation));
        let mut marker: (Option<String>, Option<String>) = (None, None);
        for _ in 0..MAX_PAGES {
            let request = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_key_marker(marker.0.clone())
                .set_upload_id_marker(marker.1.clone())
                .send();
            let page = self.attempt(&operation, None, 0, request).await?;
            for upload in page.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else {
                    return Err(strange("an upload in the answer has no key or no id".to_owned()));
                };
                let Ok(key) = ObjectKey::new(key) else {
                    tracing::warn!(
                        ?key,
                        "an open upload has a key that snapferry never uses; it is left out"
                    );
                    continue;
                };
                if id.len() > LONGEST_UPLOAD_ID {
                    tracing::warn!(%key, bytes = id.len(), "an open upload has an id that is too long to be sent back; it is left out");
                    continue;
                }
                // If a store ignores the prefix, the list must not contain other users' uploads, because the
                // caller may remove the listed ones.
                if key.as_str().starts_with(prefix) {
                    let started = upload.initiated().and_then(|at| SystemTime::try_from(*at).ok());
                    room.take(key.as_str().len() + id.len())?;
                    found.push(OpenUpload { upload: Upload { key, id: id.to_owned() }, started });
                }
            }
            if is_last(page.is_truncated(), page.uploads().len()).map_err(strange)? {
                return Ok(found);
            }
            let next =
                (page.next_key_marker().map(str::to_owned), page.next_upload_id_marker().map(str::to_owned));
            let too_long = [&next.0, &next.1].into_iter().flatten().any(|next| next.len() > LONGEST_MARK);
            if next == (None, None) || next == marker || too_long {
                return Err(strange("the list goes on without saying where".to_owned()));
            }
            marker = next;
        }
        Err(strange(format!("the list does not end after {MAX_PAGES} pages")))
    }
}

/// True if a page is the last one of a list. If the store doesn't return that information, a page with fewer
/// than [`FULL_PAGE`] entries is the last one.
fn is_last(truncated: Option<bool>, entries: usize) -> Result<bool, String> {
    match truncated {
        Some(goes_on) => Ok(!goes_on),
        None if entries < FULL_PAGE => Ok(true),
        None => Err(format!("the answer holds {entries} entries, and does not say whether there are more")),
    }
}

/// Reads a body that should have `len` bytes. Stops soon after `len`, so a longer body can't exhaust the
/// memory.
async fn read_up_to(mut body: ByteStream, len: u64) -> Result<Bytes, ByteStreamError> {
    let mut bytes = BytesMut::with_capacity(to_usize(len.min(LARGEST_BUFFER)));
    while to_u64(bytes.len()) <= len
        && let Some(frame) = body.try_next().await?
    {
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.freeze())
}

fn wire_number(number: PartNumber, operation: &Operation) -> Result<i32, StoreError> {
    i32::try_from(number.0).ok().filter(|&n| n >= 1 && u64::from(number.0) <= MAX_PARTS).ok_or_else(|| {
        StoreError::Mismatch {
            operation: operation.clone(),
            reason: format!("part number {number} is not from 1 to {MAX_PARTS}"),
        }
    })
}

fn damaged(operation: &Operation, reason: String) -> StoreError {
    StoreError::Damaged { operation: operation.clone(), reason }
}

/// Removes the quotes, which only some responses have.
fn etag_of(text: Option<&str>, operation: &Operation) -> Result<ETag, StoreError> {
    let text = text.unwrap_or_default().trim_matches('"');
    within_limit("ETag", text, LONGEST_ETAG, operation).map(|text| ETag(text.to_owned()))
}

/// Returns the upload's identifier if it is short enough for a URL.
fn wire_id<'a>(upload: &'a Upload, operation: &Operation) -> Result<&'a str, StoreError> {
    within_limit("upload id", &upload.id, LONGEST_UPLOAD_ID, operation)
}

fn wire_prefix<'a>(prefix: &'a str, operation: &Operation) -> Result<&'a str, StoreError> {
    // The operation's target contains the prefix, which is too long for a message.
    let operation = || Operation { request: operation.request, target: "a prefix".to_owned() };
    if prefix.len() > LONGEST_PREFIX {
        within_limit("prefix", prefix, LONGEST_PREFIX, &operation())
    } else {
        Ok(prefix)
    }
}

fn within_limit<'a>(
    what: &str,
    text: &'a str,
    most: usize,
    operation: &Operation,
) -> Result<&'a str, StoreError> {
    if text.len() <= most {
        return Ok(text);
    }
    let reason = format!("the {what} has {} bytes; at most {most} are used", text.len());
    Err(StoreError::Mismatch { operation: operation.clone(), reason })
}

/// The memory left for a list.
struct Room<'a> {
    left: u64,
    operation: &'a Operation,
}

impl<'a> Room<'a> {
    fn new(operation: &'a Operation) -> Self {
        Self { left: LARGEST_LIST, operation }
    }

    /// Takes the memory for one more entry, whose names and identifiers have `text` bytes.
    fn take(&mut self, text: usize) -> Result<(), StoreError> {
        let reason = || {
            format!(
                "the list takes more than {} of memory; a longer prefix gives a shorter one",
                ByteCount(LARGEST_LIST)
            )
        };
        self.left = self
            .left
            .checked_sub(to_u64(text + ENTRY))
            .ok_or_else(|| StoreError::Mismatch { operation: self.operation.clone(), reason: reason() })?;
        Ok(())
    }
}

fn quoted(etag: &ETag) -> String {
    format!("\"{}\"", etag.0)
}
