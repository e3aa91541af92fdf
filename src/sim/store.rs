//! S3's operations on the folder: the words of the protocol in, the folder's words out, and back.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use async_trait::async_trait;
use hyper::HeaderMap;
use hyper::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, HeaderName, HeaderValue,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket as ListedBucket, BucketLocationConstraint, ChecksumAlgorithm,
    ChecksumType, CommonPrefix, CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CopyObjectInput,
    CopyObjectOutput, CopyObjectResult, CopyPartResult, CopySource, CreateBucketInput, CreateBucketOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, EncodingType, GetBucketLocationInput,
    GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListBucketsInput, ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, MetadataDirective,
    MultipartUpload, Object as ListedObject, Part, PutObjectInput, PutObjectOutput, Range, UploadPartCopyInput,
    UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::checks::{self, Algorithm, Claims, Kind, Scheme, Sums};
use super::folder::{Attributes, Conditions, Folder, Listing, Moment, Object, Query, etag, precondition};
use super::receive::{Incoming, Outgoing, Sink as _, blocking, receive};
use super::uploads::{Demands, ListedPart, StoredPart, Upload, part_number};
use crate::store::MAX_PART;
use crate::units::{to_u64, to_usize};

/// Most entries on one page of any listing.
const LONGEST_PAGE: usize = 1000;
/// Bytes hashed at a time when a part is copied.
const COPY_PIECE: usize = 1 << 20;
/// What S3 leaves as it is when a client asks for `encoding-type=url`.
const URL_KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// How one request's answer is to differ from the right one, as a fault script has it. Travels in the request's extensions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quirks {
    /// Neither look at checksums nor answer with any.
    pub(super) blind: bool,
    /// Answer with other checksums.
    pub(super) corrupt: bool,
}

impl Quirks {
    fn of<T>(req: &S3Request<T>) -> Self {
        req.extensions.get().copied().unwrap_or_default()
    }

    /// The checksum as it goes into an answer.
    fn shown(self, checksum: &str) -> Option<String> {
        match self {
            Self { blind: true, .. } => None,
            Self { corrupt: true, .. } => Some(checks::corrupted(checksum)),
            Self { .. } => Some(checksum.to_owned()),
        }
    }

    fn claims(self, headers: &HeaderMap) -> S3Result<Claims> {
        if self.blind {
            let md5: HeaderMap =
                headers.get("content-md5").map(|md5| (HeaderName::from_static("content-md5"), md5.clone())).into_iter().collect();
            return Claims::of(&md5);
        }
        Claims::of(headers)
    }
}

/// Sets the one of five equal-shaped fields that belongs to an algorithm.
macro_rules! set_checksum {
    ($output:expr, $algorithm:expr, $checksum:expr) => {{
        let checksum = $checksum;
        match $algorithm {
            Algorithm::Crc32 => $output.checksum_crc32 = checksum,
            Algorithm::Crc32c => $output.checksum_crc32c = checksum,
            Algorithm::Crc64Nvme => $output.checksum_crc64nvme = checksum,
            Algorithm::Sha1 => $output.checksum_sha1 = checksum,
            Algorithm::Sha256 => $output.checksum_sha256 = checksum,
        }
    }};
}

/// The S3 side of the store.
#[derive(Clone, Debug)]
pub(super) struct Store {
    folder: Arc<Folder>,
    region: String,
}

impl Attributes {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let metadata = headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-amz-meta-")?;
            Some((name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        });
        Self {
            content_type: text(&CONTENT_TYPE),
            // "aws-chunked" says how the body travels, not what it is.
            content_encoding: text(&CONTENT_ENCODING).filter(|encoding| encoding != "aws-chunked"),
            content_disposition: text(&CONTENT_DISPOSITION),
            content_language: text(&CONTENT_LANGUAGE),
            cache_control: text(&CACHE_CONTROL),
            metadata: metadata.collect(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.insert(name, value);
            }
        };
        set(CONTENT_TYPE, self.content_type.as_deref().unwrap_or("binary/octet-stream"));
        for (name, value) in [
            (CONTENT_ENCODING, &self.content_encoding),
            (CONTENT_DISPOSITION, &self.content_disposition),
            (CONTENT_LANGUAGE, &self.content_language),
            (CACHE_CONTROL, &self.cache_control),
        ] {
            if let Some(value) = value {
                set(name, value);
            }
        }
        for (name, value) in &self.metadata {
            if let Ok(name) = HeaderName::try_from(format!("x-amz-meta-{name}")) {
                set(name, value);
            }
        }
        headers
    }
}

/// A length as the wire's signed integers have it.
fn signed(length: u64) -> Option<i64> {
    i64::try_from(length).ok()
}

/// A count of at most [`LONGEST_PAGE`] entries.
fn count(entries: usize) -> Option<i32> {
    i32::try_from(entries).ok()
}

fn page_length(asked: Option<i32>) -> S3Result<usize> {
    let asked = asked.map_or(Ok(LONGEST_PAGE), usize::try_from);
    asked.map(|asked| asked.min(LONGEST_PAGE)).map_err(|_| s3_error!(InvalidArgument, "A page's length can't be negative."))
}

fn encoded(key: &str, encoding: Option<&EncodingType>) -> String {
    match encoding {
        Some(_) => utf8_percent_encode(key, URL_KEY).to_string(),
        None => key.to_owned(),
    }
}

fn source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id: None } => Ok((bucket, key)),
        CopySource::Bucket { .. } | CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(s3_error!(NotImplemented, "Only objects of buckets without versions can be copied."))
        }
    }
}

/// A bare `first-last` of a copied part; unlike a read's it must lie within the object.
fn copy_range(text: Option<&str>, size: u64) -> S3Result<std::ops::Range<u64>> {
    let Some(text) = text else { return Ok(0..size) };
    match Range::parse(text) {
        Ok(Range::Int { first, last: Some(last) }) if last < size => Ok(first..last + 1),
        Ok(Range::Int { last: Some(_), .. }) => {
            Err(s3_error!(InvalidArgument, "Range specified is not valid for source object of size: {size}"))
        }
        _ => Err(s3_error!(InvalidArgument, "The x-amz-copy-source-range value must be of the form bytes=first-last")),
    }
}

fn too_large(length: Option<i64>) -> S3Result<()> {
    if length.is_some_and(|length| signed(MAX_PART.0).is_some_and(|most| length > most)) {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }
    Ok(())
}

fn listed(objects: Vec<Object>, encoding: Option<&EncodingType>) -> Vec<ListedObject> {
    let listed = objects.into_iter().map(|object| ListedObject {
        key: Some(encoded(&object.key, encoding)),
        size: signed(object.size),
        e_tag: Some(etag(&object.etag)),
        last_modified: Some(object.modified.into()),
        checksum_algorithm: Some(vec![ChecksumAlgorithm::from_static(object.scheme.algorithm.name())]),
        checksum_type: Some(ChecksumType::from_static(object.scheme.kind.name())),
        ..ListedObject::default()
    });
    listed.collect()
}

fn common_prefixes(prefixes: Vec<String>, encoding: Option<&EncodingType>) -> Vec<CommonPrefix> {
    prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(encoded(&prefix, encoding)) }).collect()
}

impl ListedPart {
    fn of(part: CompletedPart) -> Self {
        let sums = [
            (Algorithm::Crc32, part.checksum_crc32),
            (Algorithm::Crc32c, part.checksum_crc32c),
            (Algorithm::Crc64Nvme, part.checksum_crc64nvme),
            (Algorithm::Sha1, part.checksum_sha1),
            (Algorithm::Sha256, part.checksum_sha256),
        ];
        let checksums = sums.into_iter().filter_map(|(algorithm, sum)| Some((algorithm, sum?))).collect();
        Self { number: part.part_number.unwrap_or_default(), etag: part.e_tag.map(s3s::dto::ETag::into_value), checksums }
    }
}

impl Store {
    pub(super) fn new(folder: Arc<Folder>, region: String) -> Self {
        Self { folder, region }
    }

    async fn list(&self, bucket: String, query: Query) -> S3Result<Listing> {
        let bucket = self.folder.bucket(&bucket)?;
        blocking(move || Ok(bucket.list(&query))).await
    }

    /// What HEAD and GET say of an object in headers.
    fn object_headers(object: &Object, with_checksum: bool, quirks: Quirks) -> HeaderMap {
        let mut headers = object.attributes.headers();
        if let Some(checksum) = quirks.shown(&object.checksum).filter(|_| with_checksum) {
            checks::echo(&mut headers, object.scheme.algorithm, &checksum);
            headers.insert("x-amz-checksum-type", HeaderValue::from_static(object.scheme.kind.name()));
        }
        headers
    }
}

#[async_trait]
impl S3 for Store {
    async fn list_buckets(&self, _req: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.folder.list().into_iter().map(|(name, created)| ListedBucket {
            name: Some(name),
            creation_date: Some(created.into()),
            ..ListedBucket::default()
        });
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets.collect()), ..ListBucketsOutput::default() }))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let folder = Arc::clone(&self.folder);
        let location = Some(format!("/{}", req.input.bucket));
        blocking(move || folder.create_bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        let folder = Arc::clone(&self.folder);
        blocking(move || folder.delete_bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.folder.bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput { bucket_region: Some(self.region.clone()), ..HeadBucketOutput::default() }))
    }

    async fn get_bucket_location(&self, req: S3Request<GetBucketLocationInput>) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.folder.bucket(&req.input.bucket)?;
        let location_constraint = Some(BucketLocationConstraint::from(self.region.clone()));
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        let most = page_length(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone(),
            after: input.marker.clone().unwrap_or_default(),
            most,
        };
        let listing = self.list(input.bucket.clone(), query).await?;
        let encoding = input.encoding_type.as_ref();
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoded(&input.prefix.unwrap_or_default(), encoding)),
            marker: Some(encoded(&input.marker.unwrap_or_default(), encoding)),
            max_keys: count(most),
            is_truncated: Some(listing.next.is_some()),
            next_marker: listing.next.map(|next| encoded(&next, encoding)),
            contents: Some(listed(listing.objects, encoding)),
            common_prefixes: Some(common_prefixes(listing.prefixes, encoding)),
            delimiter: input.delimiter.map(|delimiter| encoded(&delimiter, encoding)),
            encoding_type: input.encoding_type,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let most = page_length(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone(),
            after: input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default(),
            most,
        };
        let listing = self.list(input.bucket.clone(), query).await?;
        let encoding = input.encoding_type.as_ref();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoded(&input.prefix.unwrap_or_default(), encoding)),
            max_keys: count(most),
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
        let incoming = Incoming { body: input.body, wire, length: input.content_length, claims, trailers: req.trailing_headers };
        let (draft, sums) = receive(incoming, tally, bucket.draft()?).await?;
        let object = new_object(input.key, &sums, algorithm.unwrap_or(Algorithm::Crc64Nvme), attributes)?;
        let (tag, scheme, checksum) = (object.etag.clone(), object.scheme, object.checksum.clone());
        blocking(move || bucket.commit(object, &conditions, |path| draft.keep_as(path))).await?;
        let mut output = PutObjectOutput { e_tag: Some(etag(&tag)), ..PutObjectOutput::default() };
        if algorithm.is_some() {
            set_checksum!(output, scheme.algorithm, quirks.shown(&checksum));
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
        let asked = input.range;
        let (object, file, range) = blocking(move || {
            let (object, mut file) = bucket.open_object(&key)?;
            conditions.allow_read(&object)?;
            let range = asked.map(|asked| asked.check(object.size)).transpose()?;
            file.seek(SeekFrom::Start(range.as_ref().map_or(0, |range| range.start))).map_err(S3Error::internal_error)?;
            Ok((object, file, range))
        })
        .await?;
        let length = range.as_ref().map_or(object.size, |range| range.end - range.start);
        let whole = range.as_ref().is_none_or(|range| *range == (0..object.size));
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body: Some(Outgoing::new(file, length).into_blob()),
            content_length: signed(length),
            content_range: range.map(|range| format!("bytes {}-{}/{}", range.start, range.end - 1, object.size)),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(object.modified.into()),
            ..GetObjectOutput::default()
        };
        // The checksum of the whole is no use to the reader of a piece.
        let headers = Self::object_headers(&object, input.checksum_mode.is_some() && whole, quirks);
        Ok(S3Response::with_headers(output, headers))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let bucket = self.folder.bucket(&req.input.bucket)?;
        blocking(move || bucket.delete(&req.input.key)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
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
        let fresh = Attributes::of(&req.headers);
        let input = req.input;
        let (from_bucket, from_key) = source(&input.copy_source)?;
        let from = self.folder.bucket(from_bucket)?;
        let to = self.folder.bucket(&input.bucket)?;
        let onto_itself = from_bucket == input.bucket && from_key == input.key;
        let from_key = from_key.to_owned();
        let replace = input.metadata_directive.is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        if onto_itself && !replace {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata."
            ));
        }
        let conditions = Conditions { if_match: input.copy_source_if_match, if_none_match: input.copy_source_if_none_match };
        let object = blocking(move || {
            let (object, mut file) = from.open_object(&from_key)?;
            conditions.allow_read(&object).map_err(|_| precondition("x-amz-copy-source-if-match"))?;
            if onto_itself {
                return from.describe(&from_key, fresh);
            }
            let mut draft = to.draft()?;
            std::io::copy(&mut file, draft.file()).map_err(S3Error::internal_error)?;
            let attributes = if replace { fresh } else { object.attributes.clone() };
            let copy = Object { key: input.key, modified: Moment::now(), attributes, ..object };
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
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let quirks = Quirks::of(&req);
        let attributes = Attributes::of(&req.headers);
        let input = req.input;
        let scheme = if quirks.blind {
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
        let incoming = Incoming { body: input.body, wire, length: input.content_length, claims, trailers: req.trailing_headers };
        let length = input.content_length.and_then(|length| u64::try_from(length).ok());
        let landing = Upload::land(&upload, number, length, &bucket)?;
        let (landing, sums) = receive(incoming, tally, landing).await?;
        let part = blocking(move || upload.put(number, landing, sums, &bucket.drafts())).await?;
        let mut output = UploadPartOutput { e_tag: Some(etag(&part.etag)), ..UploadPartOutput::default() };
        if let Some(algorithm) = echoed
            && let Some(checksum) = part.sums.checksums.get(&algorithm)
        {
            set_checksum!(output, algorithm, quirks.shown(checksum));
        }
        Ok(S3Response::new(output))
    }

    async fn upload_part_copy(&self, req: S3Request<UploadPartCopyInput>) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let quirks = Quirks::of(&req);
        let input = req.input;
        let number = part_number(input.part_number)?;
        let (from_bucket, from_key) = source(&input.copy_source)?;
        let from = self.folder.bucket(from_bucket)?;
        let from_key = from_key.to_owned();
        let bucket = self.folder.bucket(&input.bucket)?;
        let upload = bucket.upload(&input.key, &input.upload_id)?;
        let scheme = upload.scheme();
        let conditions = Conditions { if_match: input.copy_source_if_match, if_none_match: input.copy_source_if_none_match };
        let asked = input.copy_source_range;
        let part = blocking(move || {
            let (object, mut file) = from.open_object(&from_key)?;
            conditions.allow_read(&object).map_err(|_| precondition("x-amz-copy-source-if-match"))?;
            let range = copy_range(asked.as_deref(), object.size)?;
            let mut left = range.end - range.start;
            too_large(signed(left))?;
            file.seek(SeekFrom::Start(range.start)).map_err(S3Error::internal_error)?;
            let mut landing = Upload::land(&upload, number, Some(left), &bucket)?;
            let mut tally = Claims::default().tally(scheme.map(|scheme| scheme.algorithm));
            let mut piece = vec![0; to_usize(left.min(to_u64(COPY_PIECE)))];
            while left > 0 {
                let len = to_usize(left.min(to_u64(piece.len())));
                file.read_exact(&mut piece[..len]).map_err(S3Error::internal_error)?;
                landing.write(&piece[..len]).map_err(S3Error::internal_error)?;
                tally.update(&piece[..len]);
                left -= to_u64(len);
            }
            upload.put(number, landing, tally.finish(), &bucket.drafts())
        })
        .await?;
        let mut result = CopyPartResult {
            e_tag: Some(etag(&part.etag)),
            last_modified: Some(part.modified.into()),
            ..CopyPartResult::default()
        };
        if let Some((algorithm, checksum)) = part.checksum(scheme) {
            set_checksum!(result, algorithm, quirks.shown(checksum));
        }
        Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(result), ..UploadPartCopyOutput::default() }))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let quirks = Quirks::of(&req);
        let input = req.input;
        let most = page_length(input.max_parts)?;
        let after = input.part_number_marker.map_or(Ok(0), u32::try_from);
        let after = after.map_err(|_| s3_error!(InvalidArgument, "part-number-marker can't be negative"))?;
        let upload = self.folder.bucket(&input.bucket)?.upload(&input.key, &input.upload_id)?;
        let scheme = upload.scheme();
        // An upload that is being completed is locked until that is done.
        let (parts, more) = blocking(move || upload.list(after, most)).await?;
        let next = parts.last().filter(|_| more).and_then(|(number, _)| i32::try_from(*number).ok());
        let parts = parts.into_iter().map(|(number, part)| listed_part(number, &part, scheme, quirks)).collect();
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: count(most),
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
        let most = page_length(input.max_uploads)?;
        let bucket = self.folder.bucket(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let key_marker = input.key_marker.clone().unwrap_or_default();
        let (page, more) = bucket.list_uploads(&prefix, (&key_marker, input.upload_id_marker.as_deref()), most);
        let encoding = input.encoding_type.as_ref();
        let last = page.last().filter(|_| more);
        let uploads = page.iter().map(|upload| MultipartUpload {
            key: Some(encoded(upload.key(), encoding)),
            upload_id: Some(upload.id().to_owned()),
            initiated: Some(upload.started().into()),
            checksum_algorithm: upload.scheme().map(|scheme| ChecksumAlgorithm::from_static(scheme.algorithm.name())),
            checksum_type: upload.scheme().map(|scheme| ChecksumType::from_static(scheme.kind.name())),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: Some(encoded(&prefix, encoding)),
            key_marker: Some(encoded(&key_marker, encoding)),
            upload_id_marker: input.upload_id_marker,
            max_uploads: count(most),
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
        let checksum = checks::checksum_in(&req.headers)?;
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
            blind: quirks.blind,
        };
        let object = blocking(move || upload.complete(&bucket, &demands)).await?;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&object.etag)),
            checksum_type: Some(ChecksumType::from_static(object.scheme.kind.name())).filter(|_| !quirks.blind),
            ..CompleteMultipartUploadOutput::default()
        };
        set_checksum!(output, object.scheme.algorithm, quirks.shown(&object.checksum));
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

fn new_object(key: String, sums: &Sums, algorithm: Algorithm, attributes: Attributes) -> S3Result<Object> {
    let checksum =
        sums.checksums.get(&algorithm).cloned().ok_or_else(|| s3_error!(InternalError, "{algorithm} was not computed"))?;
    Ok(Object {
        key,
        size: sums.size,
        etag: sums.etag(),
        modified: Moment::now(),
        crc64: sums.crc64,
        scheme: Scheme { algorithm, kind: Kind::FullObject },
        checksum,
        attributes,
    })
}

fn listed_part(number: u32, part: &StoredPart, scheme: Option<Scheme>, quirks: Quirks) -> Part {
    let mut listed = Part {
        part_number: i32::try_from(number).ok(),
        size: signed(part.sums.size),
        e_tag: Some(etag(&part.etag)),
        last_modified: Some(part.modified.into()),
        ..Part::default()
    };
    if let Some((algorithm, checksum)) = part.checksum(scheme).filter(|_| scheme.is_some()) {
        set_checksum!(listed, algorithm, quirks.shown(checksum));
    }
    listed
}
