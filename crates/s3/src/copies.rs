//! Parts that the store copies from another of its objects.
//!
//! Stores differ in the condition on the source. Most refuse a copy of another version; some ignore the
//! condition; and Swift refuses the right version as well, if the source was uploaded in parts. So a refusal
//! counts only if HEAD shows another version too. If it does not, the condition is left out from then on, and
//! HEAD after each copy takes its place.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, CopySource, ObjectKey, ObjectStore as _, Operation, StoreError, StoredPart, Upload,
};

use super::errors::Subject;
use super::{S3Store, damaged, etag_of, quoted, wire_id, wire_number};

/// Support of a store for conditions on the source of a copy, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct CopySupport {
    /// True if the store refuses the right version.
    refuses_conditions: AtomicBool,
}

impl CopySupport {
    fn refuses_conditions(&self) -> bool {
        self.refuses_conditions.load(Ordering::Relaxed)
    }

    fn mark_conditions_refused(&self, refused: &StoreError) {
        if !self.refuses_conditions.swap(true, Ordering::Relaxed) {
            tracing::debug!(
                "the store refuses to copy the right version: from now on HEAD shows the version: {refused}"
            );
        }
    }
}

impl S3Store {
    /// True if the store has refused to copy a version that HEAD still showed.
    #[must_use]
    pub fn refuses_copy_conditions(&self) -> bool {
        self.copies.refuses_conditions()
    }

    pub(super) async fn copy(
        &self,
        upload: &Upload,
        part: &CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        let operation = self.part_operation("UploadPartCopy", upload, part.number);
        part.check(&operation, from)?;
        wire_id(upload, &operation)?;
        let has_version = !from.etag.0.is_empty();
        let mut condition =
            has_version.then(|| quoted(&from.etag)).filter(|_| !self.copies.refuses_conditions());
        let mut answer = self.send_copy(&operation, upload, part, from, condition.clone()).await;
        if let Err(refused @ StoreError::Precondition { .. }) = &answer
            && condition.is_some()
        {
            self.check_source(&operation, from).await?;
            self.copies.mark_conditions_refused(refused);
            condition = None;
            answer = self.send_copy(&operation, upload, part, from, None).await;
        }
        match answer {
            Ok(stored) if condition.is_none() => {
                self.check_source(&operation, from).await?;
                Ok(stored)
            }
            // Only HEAD shows whether the source or the upload is missing.
            Err(StoreError::Refused { status: 404, .. }) => {
                self.check_source(&operation, from).await?;
                Err(StoreError::NoSuchUpload { operation, id: upload.id.clone() })
            }
            // Other bytes than expected: the error is more exact if HEAD shows another version.
            Err(mismatch @ StoreError::Mismatch { .. }) => {
                self.check_source(&operation, from).await?;
                Err(mismatch)
            }
            answer => answer,
        }
    }

    /// Checks that the source still is the version that is copied.
    async fn check_source(&self, operation: &Operation, from: &CopySource) -> Result<(), StoreError> {
        let Some(found) = self.head(&from.key).await? else {
            return Err(StoreError::NoSuchKey { operation: operation.clone() });
        };
        if found.size == from.size && found.etag == from.etag {
            return Ok(());
        }
        let reason = format!(
            "{} is by now version {:?} of {} bytes, not {:?} of {}",
            from.key, found.etag.0, found.size, from.etag.0, from.size
        );
        Err(StoreError::Precondition { operation: operation.clone(), reason })
    }

    async fn send_copy(
        &self,
        operation: &Operation,
        upload: &Upload,
        part: &CopiedPart,
        from: &CopySource,
        if_match: Option<String>,
    ) -> Result<StoredPart, StoreError> {
        let request = self
            .client
            .upload_part_copy()
            .bucket(&self.bucket)
            .key(upload.key.as_str())
            .upload_id(wire_id(upload, operation)?)
            .part_number(wire_number(part.number, operation)?)
            .copy_source(source_header(&self.bucket, &from.key))
            .copy_source_range(format!("bytes={}-{}", part.range.start, part.range.end.saturating_sub(1)))
            .set_copy_source_if_match(if_match)
            .send();
        let (deadline, subject) = (self.deadline_of(part.len()), Subject::Copy(&upload.id));
        let response = self.change_with_deadline(deadline, operation, subject, request).await?;
        // The status is sent before the copy is made, so only an ETag shows that it was.
        let result = response.copy_part_result();
        let etag = etag_of(result.and_then(|result| result.e_tag()), operation)?;
        if etag.0.is_empty() {
            let reason = "the answer has no ETag, so the copy was not confirmed".to_owned();
            return Err(StoreError::Connection {
                operation: operation.clone(),
                endpoint: self.error_context.endpoint.clone(),
                reason,
            });
        }
        let crc64 = match result.and_then(|result| result.checksum_crc64_nvme()) {
            None => None,
            Some(text) => Some(Crc64::from_base64(text).map_err(|err| damaged(operation, err.to_string()))?),
        };
        if let Some(crc64) = crc64 {
            part.compare(operation, from, crc64)?;
        }
        Ok(StoredPart { number: part.number, size: part.len(), etag, crc64 })
    }
}

/// Returns the source of a copy as its header has it: bucket and key, percent-encoded except for the slashes
/// between segments. A plus sign is encoded too, because some stores read it as a space.
fn source_header(bucket: &str, key: &ObjectKey) -> String {
    let mut header = String::new();
    for byte in bucket.bytes().chain([b'/']).chain(key.as_str().bytes()) {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                header.push(char::from(byte));
            }
            _ => {
                let _a_string_takes_everything = write!(header, "%{byte:02X}");
            }
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_encoded_byte_by_byte_but_for_its_slashes() {
        let key = ObjectKey::new("web 01/a+b%2F?#ü~_-.qcow2").expect("a key");
        assert_eq!(source_header("images", &key), "images/web%2001/a%2Bb%252F%3F%23%C3%BC~_-.qcow2");
    }
}
