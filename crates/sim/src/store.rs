//! S3's operations on the folder: they convert requests into calls of the folder, and results into responses.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket as ListedBucket, BucketLocationConstraint,
    ChecksumAlgorithm, ChecksumType, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CreateBucketInput, CreateBucketOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput, ListObjectsOutput,
    ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, MetadataDirective,
    MultipartUpload, PutObjectInput, PutObjectOutput, UploadPartCopyInput, UploadPartCopyOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::copies;
use super::digests::{self, Algorithm, Claims, Scheme};
use super::dto::{
    Quirks, common_prefixes, count, encoded, listed, listed_part, new_object, page_length, set_checksum,
    signed, source, too_large,
};
use super::folder::{Attributes, Bucket, Conditions, Folder, Listing, Object, Query, etag, precondition};
use super::receive::{Incoming, Outgoing, blocking, receive};
use super::stats::CopiedBytes;
use super::timestamp::Timestamp;
use super::uploads::{Demands, ListedPart, Upload, part_number};

/// Bytes that are hashed at a time during a copy.
pub(super) const COPY_PIECE: usize = 1 << 20;

/// Implementation of S3's operations.
#[derive(Clone, Debug)]
pub(super) struct Store {
    folder: Arc<Folder>,
    region: String,
}

impl Store {
    pub(super) fn new(folder: Arc<Folder>, region: String) -> Self {
        Self { folder, region }
    }

    async fn list(&self, bucket: String, query: Query) -> S3Result<Listing> {
        let bucket = self.folder.bucket(&bucket)?;
        blocking(move || Ok(bucket.list(&query))).await
    }

    /// Returns the headers that describe an object in responses to HEAD and GET.
    fn object_headers(object: &Object, with_checksum: bool, quirks: Quirks) -> HeaderMap {
        let mut headers = object.attributes.headers();
        if let Some(checksum) = quirks.checksum_to_send(&object.checksum).filter(|_| with_checksum) {
            digests::echo(&mut headers, object.scheme.algorithm, &checksum);
            headers.insert("x-amz-checksum-type", HeaderValue::from_static(object.scheme.kind.name()));
        }
        headers
    }
}

#[async_trait]
impl S3 for Store {
    async fn list_buckets(
        &self,
        _req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.folder.list().into_iter().map(|(name, created)| ListedBucket {
            name: Some(name),
            creation_date: Some(created.into()),
            ..ListedBucket::default()
        });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            ..ListBucketsOutput::default()
        }))
    }

    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let folder = Arc::clone(&self.folder);
        let location = Some(format!("/{}", req.input.bucket));
        blocking(move || folder.create_bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let folder = Arc::clone(&self.folder);
        blocking(move || folder.delete_bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.folder.bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(self.region.clone()),
            ..HeadBucketOutput::default()
        }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.folder.bucket(&req.input.bucket)?;
        let location_constraint = Some(BucketLocationConstraint::from(self.region.clone()));
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        let limit = page_length(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone(),
            after: input.marker.clone().unwrap_or_default(),
            limit,
        };
        let listing = self.list(input.bucket.clone(), query).await?;
        let encoding = input.encoding_type.as_ref();
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoded(&input.prefix.unwrap_or_default(), encoding)),
            marker: Some(encoded(&input.marker.unwrap_or_default(), encoding)),
            max_keys: count(limit),
            is_truncated: Some(listing.next.is_some()),
            next_marker: listing.next.map(|next| encoded(&next, encoding)),
            contents: Some(listed(listing.objects, encoding)),
            common_prefixes: Some(common_prefixes(listing.prefixes, encoding)),
            delimiter: input.delimiter.map(|delimiter| encoded(&delimiter, encoding)),
            encoding_type: input.encoding_type,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let limit = page_length(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone(),
            after: input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default(),
            limit,
        };
        let listing = self.list(input.bucket.clone(), query).await?;
        let encoding = input.encoding_type.as_ref();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoded(&input.prefix.unwrap_or_default(), encoding)),
            max_keys: count(limit),
            key_count: count(listing.objects.len() + listing.prefixes.len()),
            continuation_token: input.continuation_token,
            is_truncated: Some(listing.next.is_some()),
            next_continuation_token: listing.next,
            contents: Some(listed(listing.objects, encoding)),
            common_prefixes: Some(common_prefixes(listing.prefixes, encoding)),
            delimiter: input.delimiter.map(|delimiter| encoded(&delimiter, encoding)),
            start_after: input.start_after.map(|start| encoded(&start, encoding)),
            encoding_type: input.encoding_type,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let quirks = Quirks::of(&req);
        let claims = quirks.claims(&req.headers)?;
        let wire = req.extensions.get().cloned().unwrap_or_default();
        let attributes = Attributes::of(&req.headers);
        let input = req.input;
        too_large(input.content_length)?;
        let bucket = self.folder.bucket(&input.bucket)?;
        let conditions = Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        bucket.would_allow(&input.key, &conditions)?;
        let algorithm = claims.algorithm();
        let tally = claims.tally(None);
        let incoming = Incoming {
            body: input.body,
            wire,
            length: input.content_length,
            claims,
            trailers: req.trailing_headers,
        };
        let (draft, sums) = receive(incoming, tally, bucket.draft()?).await?;
        let object = new_object(input.key, &sums, algorithm.unwrap_or(Algorithm::Crc64Nvme), attributes)?;
        let (tag, scheme, checksum) = (object.etag.clone(), object.scheme, object.checksum.clone());
        blocking(move || bucket.commit(object, &conditions, |path| draft.keep_as(path))).await?;
        let mut output = PutObjectOutput { e_tag: Some(etag(&tag)), ..PutObjectOutput::default() };
        if algorithm.is_some() {
            set_checksum!(output, scheme.algorithm, quirks.checksum_to_send(&checksum));
        }
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let quirks = Quirks::of(&req);
        let input = req.input;
        let object = self.folder.bucket(&input.bucket)?.object(&input.key)?;
        Conditions { if_match: input.if_match, if_none_match: input.if_none_match }.allow_read(&object)?;
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: signed(object.size),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(object.modified.into()),
            ..HeadObjectOutput::default()
        };
        let headers = Self::object_headers(&object, input.checksum_mode.is_some(), quirks);
        Ok(S3Response::with_headers(output, headers))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let quirks = Quirks::of(&req);
        let input = req.input;
        if input.part_number.is_some() {
            return Err(s3_error!(NotImplemented, "Objects are not read by part here."));
        }
        let bucket = self.folder.bucket(&input.bucket)?;
        let conditions = Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        let key = input.key;
        let requested_range = input.range;
        let (object, file, range) = blocking(move || {
            let (object, mut file) = bucket.open_object(&key)?;
            conditions.allow_read(&object)?;
            let range = requested_range.map(|range| range.check(object.size)).transpose()?;
            file.seek(SeekFrom::Start(range.as_ref().map_or(0, |range| range.start)))
                .map_err(S3Error::internal_error)?;
            Ok((object, file, range))
        })
        .await?;
        let length = range.as_ref().map_or(object.size, |range| range.end - range.start);
        let whole = range.as_ref().is_none_or(|range| *range == (0..object.size));
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body: Some(Outgoing::new(file, length).into_blob()),
            content_length: signed(length),
            content_range: range
                .map(|range| format!("bytes {}-{}/{}", range.start, range.end - 1, object.size)),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(object.modified.into()),
            ..GetObjectOutput::default()
        };
        // The checksum of the whole object is of no use to a reader of a part of it.
        let headers = Self::object_headers(&object, input.checksum_mode.is_some() && whole, quirks);
        Ok(S3Response::with_headers(output, headers))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let bucket = self.folder.bucket(&req.input.bucket)?;
        blocking(move || bucket.delete(&req.input.key)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let bucket = self.folder.bucket(&req.input.bucket)?;
        let delete = req.input.delete;
        let quiet = delete.quiet.unwrap_or_default();
        let deleted = blocking(move || {
            let mut deleted = Vec::new();
            for object in delete.objects {
                bucket.delete(&object.key)?;
                deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
            }
            Ok(deleted)
        })
        .await?;
        let deleted = Some(deleted).filter(|_| !quiet);
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..DeleteObjectsOutput::default() }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let new_attributes = Attributes::of(&req.headers);
        let copied: CopiedBytes = req.extensions.get().cloned().unwrap_or_default();
        let input = req.input;
        let (from_bucket, from_key) = source(&input.copy_source)?;
        let from = self.folder.bucket(from_bucket)?;
        let to = self.folder.bucket(&input.bucket)?;
        let onto_itself = from_bucket == input.bucket && from_key == input.key;
        let from_key = from_key.to_owned();
        let replace = input
            .metadata_directive
            .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        if onto_itself && !replace {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata."
            ));
        }
        let conditions = Conditions {
            if_match: input.copy_source_if_match,
            if_none_match: input.copy_source_if_none_match,
        };
        let object = blocking(move || {
            let (object, mut file) = from.open_object(&from_key)?;
            conditions.allow_read(&object).map_err(|_| precondition("x-amz-copy-source-if-match"))?;
            if onto_itself {
                return from.describe(&from_key, new_attributes);
            }
            let mut draft = to.draft()?;
            copied.add(std::io::copy(&mut file, draft.file()).map_err(S3Error::internal_error)?);
            let attributes = if replace { new_attributes } else { object.attributes.clone() };
            let copy = Object { key: input.key, modified: Timestamp::now(), attributes, ..object };
            to.commit(copy.clone(), &Conditions::default(), |path| draft.keep_as(path))?;
            Ok(copy)
        })
        .await?;
        let mut result = CopyObjectResult {
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(object.modified.into()),
            ..CopyObjectResult::default()
        };
        set_checksum!(result, object.scheme.algorithm, Some(object.checksum));
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let quirks = Quirks::of(&req);
        let attributes = Attributes::of(&req.headers);
        let input = req.input;
        let scheme = if quirks.ignore_checksums {
            None
        } else {
            let algorithm = input.checksum_algorithm.as_ref().map(ChecksumAlgorithm::as_str);
            Scheme::of(algorithm, input.checksum_type.as_ref().map(ChecksumType::as_str))?
        };
        let bucket = self.folder.bucket(&input.bucket)?;
        let key = input.key.clone();
        let upload = blocking(move || bucket.create_upload(&key, scheme, attributes)).await?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload.id().to_owned()),
            checksum_algorithm: scheme.map(|scheme| ChecksumAlgorithm::from_static(scheme.algorithm.name())),
            checksum_type: scheme.map(|scheme| ChecksumType::from_static(scheme.kind.name())),
            server_side_encryption: input.server_side_encryption,
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let quirks = Quirks::of(&req);
        let claims = quirks.claims(&req.headers)?;
        let wire = req.extensions.get().cloned().unwrap_or_default();
        let input = req.input;
        too_large(input.content_length)?;
        let number = part_number(input.part_number)?;
        let bucket = self.folder.bucket(&input.bucket)?;
        let upload = bucket.upload(&input.key, &input.upload_id)?;
        upload.accepts(claims.algorithm())?;
        let algorithm = upload.scheme().map(|scheme| scheme.algorithm);
        let echoed = claims.algorithm().or(algorithm);
        let tally = claims.tally(algorithm);
        let incoming = Incoming {
            body: input.body,
            wire,
            length: input.content_length,
            claims,
            trailers: req.trailing_headers,
        };
        let length = input.content_length.and_then(|length| u64::try_from(length).ok());
        let landing = Upload::land(&upload, number, length, &bucket)?;
        let (landing, sums) = receive(incoming, tally, landing).await?;
        let part = blocking(move || upload.put(number, landing, sums, &bucket.drafts())).await?;
        let mut output = UploadPartOutput { e_tag: Some(etag(&part.etag)), ..UploadPartOutput::default() };
        if let Some(algorithm) = echoed
            && let Some(checksum) = part.sums.checksums.get(&algorithm)
        {
            set_checksum!(output, algorithm, quirks.checksum_to_send(checksum));
        }
        Ok(S3Response::new(output))
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        copies::part(&self.folder, req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let quirks = Quirks::of(&req);
        let input = req.input;
        let limit = page_length(input.max_parts)?;
        let after = input.part_number_marker.map_or(Ok(0), u32::try_from);
        let after = after.map_err(|_| s3_error!(InvalidArgument, "part-number-marker can't be negative"))?;
        let upload = self.folder.bucket(&input.bucket)?.upload(&input.key, &input.upload_id)?;
        let scheme = upload.scheme();
        // An upload that is being completed is locked until that is done.
        let (parts, more) = blocking(move || upload.list(after, limit)).await?;
        let next = parts.last().filter(|_| more).and_then(|(number, _)| i32::try_from(*number).ok());
        let parts =
            parts.into_iter().map(|(number, part)| listed_part(number, &part, scheme, quirks)).collect();
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: count(limit),
            part_number_marker: i32::try_from(after).ok(),
            is_truncated: Some(more),
            next_part_number_marker: next,
            parts: Some(parts),
            checksum_algorithm: scheme.map(|scheme| ChecksumAlgorithm::from_static(scheme.algorithm.name())),
            checksum_type: scheme.map(|scheme| ChecksumType::from_static(scheme.kind.name())),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        if input.delimiter.as_ref().is_some_and(|delimiter| !delimiter.is_empty()) {
            return Err(s3_error!(NotImplemented, "Uploads are not listed by delimiter here."));
        }
        let limit = page_length(input.max_uploads)?;
        let bucket = self.folder.bucket(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let key_marker = input.key_marker.clone().unwrap_or_default();
        let (page, more) =
            bucket.list_uploads(&prefix, (&key_marker, input.upload_id_marker.as_deref()), limit);
        let encoding = input.encoding_type.as_ref();
        let last = page.last().filter(|_| more);
        let uploads = page.iter().map(|upload| MultipartUpload {
            key: Some(encoded(upload.key(), encoding)),
            upload_id: Some(upload.id().to_owned()),
            initiated: Some(upload.started().into()),
            checksum_algorithm: upload
                .scheme()
                .map(|scheme| ChecksumAlgorithm::from_static(scheme.algorithm.name())),
            checksum_type: upload.scheme().map(|scheme| ChecksumType::from_static(scheme.kind.name())),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: Some(encoded(&prefix, encoding)),
            key_marker: Some(encoded(&key_marker, encoding)),
            upload_id_marker: input.upload_id_marker,
            max_uploads: count(limit),
            is_truncated: Some(more),
            next_key_marker: last.map(|upload| encoded(upload.key(), encoding)),
            next_upload_id_marker: last.map(|upload| upload.id().to_owned()),
            uploads: Some(uploads.collect()),
            encoding_type: input.encoding_type,
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let quirks = Quirks::of(&req);
        let checksum = digests::checksum_in(&req.headers)?;
        let input = req.input;
        let bucket = self.folder.bucket(&input.bucket)?;
        let upload = bucket.upload(&input.key, &input.upload_id)?;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let demands = Demands {
            parts: parts.into_iter().map(ListedPart::of).collect(),
            size: input.mpu_object_size,
            checksum,
            kind: input.checksum_type.map(|kind| kind.as_str().to_owned()),
            conditions: Conditions { if_match: input.if_match, if_none_match: input.if_none_match },
            ignore_checksums: quirks.ignore_checksums,
            equal_parts: quirks.equal_parts,
        };
        let object = blocking(move || upload.complete(&bucket, &demands)).await?;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&object.etag)),
            checksum_type: Some(ChecksumType::from_static(object.scheme.kind.name()))
                .filter(|_| !quirks.ignore_checksums),
            ..CompleteMultipartUploadOutput::default()
        };
        set_checksum!(output, object.scheme.algorithm, quirks.checksum_to_send(&object.checksum));
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let bucket = self.folder.bucket(&req.input.bucket)?;
        let upload = bucket.upload(&req.input.key, &req.input.upload_id)?;
        blocking(move || upload.abort(&bucket)).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// Puts a local file into a bucket, for a service beside the store.
pub(super) fn put_file(bucket: &Bucket, key: &str, from: &Path) -> S3Result<()> {
    let mut file = File::open(from).map_err(S3Error::internal_error)?;
    let (mut draft, mut tally) = (bucket.draft()?, Claims::of(&HeaderMap::new())?.tally(None));
    let mut buf = vec![0; COPY_PIECE];
    loop {
        let read = file.read(&mut buf).map_err(S3Error::internal_error)?;
        if read == 0 {
            break;
        }
        tally.update(&buf[..read]);
        draft.file().write_all(&buf[..read]).map_err(S3Error::internal_error)?;
    }
    let object = new_object(key.to_owned(), &tally.finish(), Algorithm::Crc64Nvme, Attributes::default())?;
    bucket.commit(object, &Conditions::default(), |path| draft.keep_as(path))
}
