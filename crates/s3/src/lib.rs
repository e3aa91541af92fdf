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
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, ChecksumType};
use bytes::Bytes;
use checksums::{ChecksumSupport, Fields};
use copies::CopySupport;
use errors::{ErrorContext, Subject};
use snapferry_base::units::{ByteCount, to_u64};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, ListedObject, ObjectKey, ObjectMeta, ObjectStore,
    OpenUpload, Operation, Part, PartNumber, StoreError, StoredPart, Upload, UploadPlan,
};

mod auth;
mod bounded_client;
mod changes;
mod checksums;
mod complete_xml;
mod config;
mod connect;
mod copies;
mod errors;
mod multipart;
mod requirements;
mod wire;

pub use bounded_client::LARGEST_RESPONSE;
pub use checksums::PartChecksum;
pub use config::{Auth, COMPLETE, DEADLINE, S3Config, SLOWEST};
pub use errors::region_in;
use multipart::{PartResponse, may_concern_checksum_fields};
pub use requirements::{Addressing, Encryption, Payer, Requirements, StorageClass};
use wire::{
    LONGEST_UPLOAD_ID, ListMemory, damaged, etag_of, is_last, quoted, read_up_to, wire_id, wire_number,
    wire_prefix, within_limit,
};

/// Largest number of pages of a list, with a thousand entries each.
const MAX_PAGES: u32 = 1000;

/// Longest continuation token or marker of a list in bytes. It mostly is a key in some form.
const LONGEST_MARK: usize = 8192;

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
    requirements: Requirements,
    /// Address of the bucket's objects, for questions to the proxy.
    target: url::Url,
    error_context: ErrorContext,
    checksums: ChecksumSupport,
    copies: CopySupport,
}

impl S3Store {
    /// Returns the checksum that is used for parts, as far as the store's support is known.
    #[must_use]
    pub fn part_checksum(&self) -> PartChecksum {
        self.checksums.part()
    }

    /// Creates the bucket. Succeeds if this account already owns it. Meant for stores of the user's own: a
    /// bucket in a cloud needs more options than a key and a location.
    ///
    /// # Errors
    /// If the store refuses the request, or can't be reached.
    pub async fn create_bucket(&self) -> Result<(), StoreError> {
        let operation = Operation { request: "CreateBucket", target: format!("s3://{}", self.bucket) };
        let request = self.client.create_bucket().bucket(&self.bucket).send();
        match self.change(&operation, None, 0, request).await {
            Err(StoreError::Refused { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            response => response.map(|_| ()),
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
        self.attempt_with_deadline(self.deadline_of(body), operation, upload_id.into(), request)
    }

    async fn attempt_with_deadline<T, E>(
        &self,
        deadline: Duration,
        operation: &Operation,
        subject: Subject<'_>,
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
        let err = match with_deadline(deadline, operation, request).await? {
            Ok(response) => return Ok(response),
            Err(err) => err,
        };
        let was_answered = matches!(err, SdkError::ServiceError(_) | SdkError::ResponseError(_));
        let err = self.error_context.convert(operation.clone(), subject, err);
        if was_answered || !matches!(err, StoreError::Connection { .. }) {
            return Err(err);
        }
        // A proxy that gives no connection is found by asking it, because the SDK doesn't report its answer.
        Err(match self.error_context.route.fault(&self.target).await {
            Some(source) => StoreError::Proxy { operation: operation.clone(), source },
            None => err,
        })
    }

    /// Returns a more exact error for a refused HEAD, whose response has no body and so no reason. A GET of
    /// one byte needs the same rights, and its response contains the reason.
    async fn explain_refusal(&self, err: StoreError, key: &ObjectKey) -> StoreError {
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
    async fn find_size(&self, key: &ObjectKey, operation: &Operation) -> Result<u64, StoreError> {
        let get = self.operation("GetObject", key);
        let request =
            self.client.get_object().bucket(&self.bucket).key(key.as_str()).range("bytes=0-0").send();
        // Fails for an empty object, and on stores that don't support ranges.
        let response = self.attempt(&get, None, 0, request).await;
        let total_size = response
            .as_ref()
            .ok()
            .and_then(|response| response.content_range()?.rsplit_once('/')?.1.trim().parse().ok());
        if let Some(size) = total_size {
            return Ok(size);
        }
        let listed = self.list(key.as_str()).await;
        if let Some(found) =
            listed.as_ref().ok().and_then(|listed| listed.iter().find(|found| found.key == *key))
        {
            return Ok(found.size);
        }
        let list_reason = listed
            .err()
            .map_or_else(|| "a list does not show it".to_owned(), |err| snapferry_base::retry::chain(&err));
        let reason = format!(
            "the store did not tell the object's size, neither by HEAD nor by a range, and {list_reason}"
        );
        Err(StoreError::Untold { operation: operation.clone(), reason })
    }

    /// Checks that the store holds the object that was just put: a response of 200 doesn't prove it.
    async fn verify_stored(
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

    fn encryption(&self) -> Option<&Encryption> {
        self.requirements.encryption.as_ref()
    }

    fn encryption_key(&self) -> Option<String> {
        self.encryption().and_then(Encryption::key).map(str::to_owned)
    }

    fn deadline_of(&self, body: u64) -> Duration {
        self.deadline + Duration::from_secs(body / self.slowest.0)
    }
}

async fn with_deadline<T>(
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
        let response = match self.attempt(&operation, None, 0, request).await {
            Err(StoreError::NoSuchKey { .. }) => return Ok(None),
            Err(err) => return Err(self.explain_refusal(err, key).await),
            Ok(response) => response,
        };
        let content_length = response.content_length().and_then(|size| u64::try_from(size).ok());
        let size = match content_length {
            Some(size) => size,
            None => self.find_size(key, &operation).await?,
        };
        // A composite checksum, of the parts' checksums, is not that of the object.
        let full_object = !matches!(response.checksum_type(), Some(ChecksumType::Composite));
        let crc64 = response
            .checksum_crc64_nvme()
            .filter(|_| full_object)
            .and_then(|text| Crc64::from_base64(text).ok());
        Ok(Some(ObjectMeta { size, etag: etag_of(response.e_tag(), &operation)?, crc64 }))
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let operation = self.operation("PutObject", key);
        let digest = checksums::md5_of(body.clone()).await;
        let len = to_u64(body.len());
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            // The body is small, and every store checks an MD5.
            .content_md5(checksums::md5_header(digest))
            .set_server_side_encryption(self.encryption().map(Encryption::algorithm))
            .set_ssekms_key_id(self.encryption_key())
            .set_storage_class(self.requirements.storage_class.as_ref().map(StorageClass::to_sdk))
            .body(ByteStream::from(body))
            .customize();
        let request = if self.sign_payload { request } else { request.disable_payload_signing() };
        let response = self.change(&operation, None, len, request.send()).await?;
        self.verify_stored(&operation, key, len, &etag_of(response.e_tag(), &operation)?).await
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
        let response = self.attempt(&operation, None, 0, request.send()).await?;
        // Stores handle If-Match differently, so the ETag of the response is checked too.
        let received_etag = etag_of(response.e_tag(), &operation)?;
        if let Some(version) = version.filter(|version| received_etag != **version) {
            let reason = format!("version {:?} was asked for and {:?} came", version.0, received_etag.0);
            return Err(StoreError::Precondition { operation, reason });
        }
        // The header is "bytes 0-99/1234". A store that doesn't support ranges sends the whole object, which
        // is right only if the caller asked for all of it.
        let expected = format!("bytes {}-{}/", range.start, range.end - 1);
        let range_matches =
            response.content_range().map_or(range.start == 0, |range| range.starts_with(&expected));
        let content_length =
            response.content_length().and_then(|content_length| u64::try_from(content_length).ok());
        let wrong = |received: String| StoreError::Mismatch {
            operation: operation.clone(),
            reason: format!("bytes {} to {} were asked for and {received} came", range.start, range.end),
        };
        if !range_matches || content_length.is_some_and(|content_length| content_length != len) {
            let content_range = response.content_range().unwrap_or("no range");
            return Err(wrong(format!(
                "{content_range} of {} bytes",
                content_length.map_or("?".to_owned(), |content_length| content_length.to_string())
            )));
        }
        let read = read_up_to(response.body, len);
        let body = with_deadline(self.deadline_of(len), &operation, read).await?.map_err(|err| {
            StoreError::Connection {
                operation: operation.clone(),
                endpoint: self.error_context.endpoint.clone(),
                reason: format!("the answer broke off: {}", snapferry_base::retry::chain(&err)),
            }
        })?;
        if to_u64(body.len()) == len { Ok(body) } else { Err(wrong(format!("{} bytes", body.len()))) }
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let operation = self.operation("DeleteObject", key);
        let request = self.client.delete_object().bucket(&self.bucket).key(key.as_str()).send();
        match self.change(&operation, None, 0, request).await {
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
        if self.checksums.part() == PartChecksum::Md5 {
            return self.send_create(key, Fields::Without).await;
        }
        match self.send_create(key, Fields::Crc64).await {
            Err(err) if may_concern_checksum_fields(&err) => {
                let upload = self.send_create(key, Fields::Without).await?;
                self.checksums.mark_unsupported();
                Ok(upload)
            }
            response => response,
        }
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        let PartResponse { etag, crc64 } = match self.checksums.part() {
            PartChecksum::Md5 => self.send_part_with_md5(upload, &part).await?,
            // Each response is checked, because stores of different versions may share one address.
            PartChecksum::Crc64 | PartChecksum::Unknown => self.probe_with_part(upload, &part).await?,
        };
        Ok(StoredPart { number: part.number, size: to_u64(part.body.len()), etag, crc64 })
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        self.copy(upload, &part, from).await
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        checksums::proves(stored, part)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        self.list_all_parts(upload).await
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        expected: &ExpectedObject,
    ) -> Result<(), StoreError> {
        // A store that did not return the parts' checksums can't check that of the whole object.
        if self.checksums.part() == PartChecksum::Md5 {
            return self.send_complete(upload, parts, expected, Fields::Without).await;
        }
        match self.send_complete(upload, parts, expected, Fields::Crc64).await {
            // Try again only after an error that can't be about the object itself: a wrong checksum or size
            // must not succeed the second time.
            Err(StoreError::Unsupported { .. }) => {
                self.send_complete(upload, parts, expected, Fields::Without).await
            }
            Err(StoreError::Refused { status: 400, code, .. })
                if matches!(
                    code.as_str(),
                    "InvalidArgument" | "UnsupportedArgument" | "MalformedXML" | "InvalidHeader"
                ) =>
            {
                self.send_complete(upload, parts, expected, Fields::Without).await
            }
            response => response,
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
        match self.change(&operation, Some(&upload.id), 0, request).await {
            Ok(_) | Err(StoreError::NoSuchUpload { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let operation =
            Operation { request: "ListObjectsV2", target: format!("s3://{}/{prefix}", self.bucket) };
        let invalid = |reason: String| StoreError::Mismatch { operation: operation.clone(), reason };
        let prefix = wire_prefix(prefix, &operation)?;
        let (mut found, mut memory) = (Vec::new(), ListMemory::new(&operation));
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
                let size = size.ok_or_else(|| invalid(format!("the object {key} has no size")))?;
                let modified = object.last_modified().and_then(|at| SystemTime::try_from(*at).ok());
                memory.reserve(key.as_str().len())?;
                found.push(ListedObject { key, size, modified });
            }
            // If the store returns a count, it must match the number of entries.
            let sent = page.contents().len() + page.common_prefixes().len();
            if let Some(count) = page.key_count().filter(|&count| usize::try_from(count) != Ok(sent)) {
                return Err(invalid(format!("the answer is said to hold {count} objects, and holds {sent}")));
            }
            if is_last(page.is_truncated(), sent).map_err(invalid)? {
                found.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(found);
            }
            let next = page.next_continuation_token().map(str::to_owned);
            if next.is_none() || next == token || next.as_ref().is_some_and(|next| next.len() > LONGEST_MARK)
            {
                return Err(invalid("the list goes on without saying where".to_owned()));
            }
            token = next;
        }
        Err(invalid(format!("the list does not end after {MAX_PAGES} pages")))
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let operation =
            Operation { request: "ListMultipartUploads", target: format!("s3://{}/{prefix}", self.bucket) };
        let invalid = |reason: String| StoreError::Mismatch { operation: operation.clone(), reason };
        let prefix = wire_prefix(prefix, &operation)?;
        let (mut found, mut memory) = (Vec::new(), ListMemory::new(&operation));
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
                    return Err(invalid("an upload in the answer has no key or no id".to_owned()));
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
                    memory.reserve(key.as_str().len() + id.len())?;
                    found.push(OpenUpload { upload: Upload { key, id: id.to_owned() }, started });
                }
            }
            if is_last(page.is_truncated(), page.uploads().len()).map_err(invalid)? {
                return Ok(found);
            }
            let next =
                (page.next_key_marker().map(str::to_owned), page.next_upload_id_marker().map(str::to_owned));
            let too_long = [&next.0, &next.1].into_iter().flatten().any(|next| next.len() > LONGEST_MARK);
            if next == (None, None) || next == marker || too_long {
                return Err(invalid("the list goes on without saying where".to_owned()));
            }
            marker = next;
        }
        Err(invalid(format!("the list does not end after {MAX_PAGES} pages")))
    }
}
