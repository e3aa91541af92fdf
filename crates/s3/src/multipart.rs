//! Requests of a multipart upload, each with and without the checksums that not every store supports.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use snapferry_base::units::to_u64;
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    ETag, ExpectedObject, MAX_PARTS, ObjectKey, Part, PartNumber, StoreError, StoredPart, Upload,
};

use super::checksums::{self, Fields};
use super::errors::Subject;
use super::requirements::{Encryption, StorageClass};
use super::{
    LONGEST_MARK, LONGEST_UPLOAD_ID, MAX_PAGES, S3Store, damaged, etag_of, is_last, quoted, wire_id,
    wire_number, within_limit,
};

/// Checksum that is sent with a part.
#[derive(Clone, Copy, Debug)]
pub(super) enum SentChecksum {
    Crc64,
    Md5([u8; 16]),
}

/// The store's response to a part.
pub(super) struct PartResponse {
    pub(super) etag: ETag,
    /// Checksum of the part, if the store returned it.
    pub(super) crc64: Option<Crc64>,
}

impl S3Store {
    pub(super) async fn send_part(
        &self,
        upload: &Upload,
        part: &Part,
        checksum: SentChecksum,
    ) -> Result<PartResponse, StoreError> {
        let operation = self.part_operation("UploadPart", upload, part.number);
        let request = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(upload.key.as_str())
            .upload_id(wire_id(upload, &operation)?)
            .part_number(wire_number(part.number, &operation)?)
            // This shares the bytes, so an attempt doesn't copy them.
            .body(ByteStream::from(part.body.clone()));
        let request = match checksum {
            SentChecksum::Crc64 => request.checksum_crc64_nvme(part.crc64.to_base64()),
            SentChecksum::Md5(digest) => request.content_md5(checksums::md5_header(digest)),
        };
        let request = request.customize();
        let request = if self.sign_payload { request } else { request.disable_payload_signing() };
        let response =
            self.attempt(&operation, Some(&upload.id), to_u64(part.body.len()), request.send()).await?;
        let echo = match response.checksum_crc64_nvme() {
            None => None,
            Some(text) => Some(Crc64::from_base64(text).map_err(|err| damaged(&operation, err.to_string()))?),
        };
        if let Some(echo) = echo.filter(|echo| *echo != part.crc64) {
            return Err(damaged(&operation, format!("CRC64NVME {} was sent, {echo} arrived", part.crc64)));
        }
        Ok(PartResponse { etag: etag_of(response.e_tag(), &operation)?, crc64: echo })
    }

    pub(super) async fn send_part_with_md5(
        &self,
        upload: &Upload,
        part: &Part,
    ) -> Result<PartResponse, StoreError> {
        let digest = checksums::md5_of(part.body.clone()).await;
        self.send_part(upload, part, SentChecksum::Md5(digest)).await
    }

    /// Sends a part to a store whose support of CRC64NVME is unknown. If it doesn't support it, the part is
    /// sent again with an MD5, unless the ETag already is the part's MD5.
    pub(super) async fn probe_with_part(
        &self,
        upload: &Upload,
        part: &Part,
    ) -> Result<PartResponse, StoreError> {
        match self.send_part(upload, part, SentChecksum::Crc64).await {
            Ok(response @ PartResponse { crc64: Some(_), .. }) => {
                self.checksums.mark_supported();
                Ok(response)
            }
            Ok(response @ PartResponse { crc64: None, .. }) => {
                self.checksums.mark_unsupported();
                let digest = checksums::md5_of(part.body.clone()).await;
                if response.etag.0.eq_ignore_ascii_case(&checksums::md5_etag(digest)) {
                    return Ok(response);
                }
                self.send_part(upload, part, SentChecksum::Md5(digest)).await
            }
            Err(err) if may_concern_checksum_fields(&err) => {
                let response = self.send_part_with_md5(upload, part).await?;
                self.checksums.mark_unsupported();
                Ok(response)
            }
            Err(err) => Err(err),
        }
    }

    pub(super) async fn send_create(&self, key: &ObjectKey, fields: Fields) -> Result<Upload, StoreError> {
        let operation = self.operation("CreateMultipartUpload", key);
        let mut request = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(key.as_str())
            .set_server_side_encryption(self.encryption().map(Encryption::algorithm))
            .set_ssekms_key_id(self.encryption_key())
            .set_storage_class(self.requirements.storage_class.as_ref().map(StorageClass::to_sdk));
        if fields == Fields::Crc64 {
            request = request
                .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
                .checksum_type(ChecksumType::FullObject);
        }
        let response = self.change(&operation, None, 0, request.send()).await?;
        if self.encryption().is_some() && response.server_side_encryption().is_none() {
            tracing::warn!(%operation, "the store does not confirm the encryption that was asked for");
        }
        match response.upload_id() {
            Some(id) if !id.is_empty() => {
                let id = within_limit("upload id", id, LONGEST_UPLOAD_ID, &operation)?;
                Ok(Upload { key: key.clone(), id: id.to_owned() })
            }
            _ => Err(StoreError::Mismatch { operation, reason: "the answer holds no upload id".to_owned() }),
        }
    }

    pub(super) async fn send_complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        expected: &ExpectedObject,
        fields: Fields,
    ) -> Result<(), StoreError> {
        let operation = self.operation("CompleteMultipartUpload", &upload.key);
        let mut list = CompletedMultipartUpload::builder();
        for part in parts {
            // The parts' checksums are left out: stores from before 2022 answer MalformedXML, and each one
            // was checked when the part was sent.
            let number = wire_number(part.number, &operation)?;
            list = list.parts(CompletedPart::builder().part_number(number).e_tag(quoted(&part.etag)).build());
        }
        let mut request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(upload.key.as_str())
            .upload_id(wire_id(upload, &operation)?)
            .multipart_upload(list.build());
        if fields == Fields::Crc64 {
            request = request
                .checksum_crc64_nvme(expected.crc64.to_base64())
                .checksum_type(ChecksumType::FullObject)
                .mpu_object_size(i64::try_from(expected.size).map_err(|_| StoreError::Mismatch {
                    operation: operation.clone(),
                    reason: format!("{} bytes are more than an object can have", expected.size),
                })?);
        }
        let subject = Subject::Upload(&upload.id);
        let response = self.change_with_deadline(self.complete, &operation, subject, request.send()).await?;
        // The ETag may be empty (in early versions of Ceph), so it isn't checked. A checksum must match, if
        // there is one.
        match response.checksum_crc64_nvme().map(Crc64::from_base64) {
            Some(Ok(crc64)) if crc64 != expected.crc64 => {
                let reason = format!("the object's CRC64NVME is {crc64}, not {} as sent", expected.crc64);
                let wrong = StoreError::Mismatch { operation: operation.clone(), reason };
                Err(StoreError::Completed { operation, source: Box::new(wrong) })
            }
            _ => Ok(()),
        }
    }

    /// Returns every part of an upload, page by page.
    pub(super) async fn list_all_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        let operation = self.operation("ListParts", &upload.key);
        let id = wire_id(upload, &operation)?;
        let invalid = |reason: String| StoreError::Mismatch { operation: operation.clone(), reason };
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
                    return Err(invalid("a part in the answer has no number or no size".to_owned()));
                };
                if found.last().is_some_and(|last| last.number.0 >= number) || u64::from(number) > MAX_PARTS {
                    return Err(invalid(format!("part {number} in the answer is out of order")));
                }
                found.push(StoredPart {
                    number: PartNumber(number),
                    size,
                    etag: etag_of(part.e_tag(), &operation)?,
                    crc64: part.checksum_crc64_nvme().and_then(|text| Crc64::from_base64(text).ok()),
                });
            }
            if is_last(page.is_truncated(), page.parts().len()).map_err(invalid)? {
                return Ok(found);
            }
            let next = page.next_part_number_marker().map(str::to_owned);
            let last = found.last().map(|part| part.number.to_string());
            let next = next.filter(|next| !matches!(next.as_str(), "" | "0")).or(last);
            if next.is_none() || next == marker || next.as_ref().is_some_and(|next| next.len() > LONGEST_MARK)
            {
                return Err(invalid("the list goes on without saying where".to_owned()));
            }
            marker = next;
        }
        Err(invalid(format!("the list does not end after {MAX_PAGES} pages")))
    }
}

/// True if an error may be about the checksum fields, so that the request should be sent again without them.
pub(super) fn may_concern_checksum_fields(err: &StoreError) -> bool {
    match err {
        StoreError::Unsupported { .. } => true,
        // Of the temporary errors only RequestTimeout has status 400.
        StoreError::Refused { status: 400, code, .. } => !matches!(
            code.as_str(),
            "RequestTimeout"
                | "EntityTooLarge"
                | "EntityTooSmall"
                | "InvalidPart"
                | "KeyTooLongError"
                | "InvalidBucketName"
        ),
        _ => false,
    }
}
