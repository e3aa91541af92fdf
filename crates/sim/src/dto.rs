//! Conversion between the types of S3's requests and responses and those of the folder.

use hyper::HeaderMap;
use hyper::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, HeaderName,
    HeaderValue,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, CommonPrefix, CompletedPart, CopySource, EncodingType,
    Object as ListedObject, Part, Range,
};
use s3s::{S3Request, S3Result, s3_error};
use snapferry_engine::store::MAX_PART;

use super::digests::{self, Algorithm, Claims, Kind, Scheme, Sums};
use super::folder::{Attributes, Object, etag};
use super::timestamp::Timestamp;
use super::uploads::{ListedPart, StoredPart};

/// Sets that one of the five checksum fields that belongs to the algorithm.
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
pub(super) use set_checksum;

/// Highest number of entries on one page of a listing.
const LONGEST_PAGE: usize = 1000;
/// Characters that are escaped in a key if the client asks for `encoding-type=url`; S3 leaves the others as
/// they are.
const URL_KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Deviations from the correct response to one request, as a fault script demands them. Passed in the
/// request's extensions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quirks {
    /// Ignore the checksums of the request, and return none.
    pub(super) ignore_checksums: bool,
    /// Return wrong checksums in the response.
    pub(super) corrupt: bool,
    /// Complete only uploads whose parts, except the last, have the same size.
    pub(super) equal_parts: bool,
    /// Treatment of the condition on the source of a copy.
    pub(super) condition: SourceCondition,
    /// Treatment of the range of a copy.
    pub(super) range: SourceRange,
}

/// Treatment of the condition on the source of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SourceCondition {
    #[default]
    Checked,
    Ignored,
    /// Never met, whatever version the source has.
    Refused,
}

/// Treatment of the range of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SourceRange {
    /// Must lie within the source.
    #[default]
    Exact,
    /// Ends with the source.
    Clipped,
    /// Ends after this number of bytes.
    Short(u64),
}

impl Quirks {
    pub(super) fn of<T>(req: &S3Request<T>) -> Self {
        req.extensions.get().copied().unwrap_or_default()
    }

    /// Returns the checksum as it goes into a response.
    pub(super) fn checksum_to_send(self, checksum: &str) -> Option<String> {
        match self {
            Self { ignore_checksums: true, .. } => None,
            Self { corrupt: true, .. } => Some(digests::corrupted(checksum)),
            Self { .. } => Some(checksum.to_owned()),
        }
    }

    pub(super) fn claims(self, headers: &HeaderMap) -> S3Result<Claims> {
        if self.ignore_checksums {
            let md5: HeaderMap = headers
                .get("content-md5")
                .map(|md5| (HeaderName::from_static("content-md5"), md5.clone()))
                .into_iter()
                .collect();
            return Claims::of(&md5);
        }
        Claims::of(headers)
    }
}

impl Attributes {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let metadata = headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-amz-meta-")?;
            Some((name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        });
        Self {
            content_type: text(&CONTENT_TYPE),
            // "aws-chunked" describes the transfer of the body, not the body.
            content_encoding: text(&CONTENT_ENCODING).filter(|encoding| encoding != "aws-chunked"),
            content_disposition: text(&CONTENT_DISPOSITION),
            content_language: text(&CONTENT_LANGUAGE),
            cache_control: text(&CACHE_CONTROL),
            metadata: metadata.collect(),
        }
    }

    pub(super) fn headers(&self) -> HeaderMap {
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

/// Converts a length into the signed integer of S3's types.
pub(super) fn signed(length: u64) -> Option<i64> {
    i64::try_from(length).ok()
}

/// Converts a count of at most [`LONGEST_PAGE`] entries.
pub(super) fn count(entries: usize) -> Option<i32> {
    i32::try_from(entries).ok()
}

pub(super) fn page_length(requested: Option<i32>) -> S3Result<usize> {
    let requested = requested.map_or(Ok(LONGEST_PAGE), usize::try_from);
    requested
        .map(|requested| requested.min(LONGEST_PAGE))
        .map_err(|_| s3_error!(InvalidArgument, "A page's length can't be negative."))
}

pub(super) fn encoded(key: &str, encoding: Option<&EncodingType>) -> String {
    match encoding {
        Some(_) => utf8_percent_encode(key, URL_KEY).to_string(),
        None => key.to_owned(),
    }
}

pub(super) fn source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id: None } => Ok((bucket, key)),
        CopySource::Bucket { .. } | CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(s3_error!(NotImplemented, "Only objects of buckets without versions can be copied."))
        }
    }
}

/// Parses the range of a copied part, `bytes=first-last`; unlike a range of a read it must lie within the
/// object.
pub(super) fn copy_range(text: Option<&str>, size: u64) -> S3Result<std::ops::Range<u64>> {
    let Some(text) = text else { return Ok(0..size) };
    match Range::parse(text) {
        Ok(Range::Int { first, last: Some(last) }) if last < size => Ok(first..last + 1),
        Ok(Range::Int { last: Some(_), .. }) => {
            Err(s3_error!(InvalidArgument, "Range specified is not valid for source object of size: {size}"))
        }
        _ => Err(s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last"
        )),
    }
}

pub(super) fn too_large(length: Option<i64>) -> S3Result<()> {
    if length.is_some_and(|length| signed(MAX_PART.0).is_some_and(|limit| length > limit)) {
        return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
    }
    Ok(())
}

pub(super) fn listed(objects: Vec<Object>, encoding: Option<&EncodingType>) -> Vec<ListedObject> {
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

pub(super) fn common_prefixes(prefixes: Vec<String>, encoding: Option<&EncodingType>) -> Vec<CommonPrefix> {
    prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(encoded(&prefix, encoding)) }).collect()
}

impl ListedPart {
    pub(super) fn of(part: CompletedPart) -> Self {
        let sums = [
            (Algorithm::Crc32, part.checksum_crc32),
            (Algorithm::Crc32c, part.checksum_crc32c),
            (Algorithm::Crc64Nvme, part.checksum_crc64nvme),
            (Algorithm::Sha1, part.checksum_sha1),
            (Algorithm::Sha256, part.checksum_sha256),
        ];
        let checksums = sums.into_iter().filter_map(|(algorithm, sum)| Some((algorithm, sum?))).collect();
        Self {
            number: part.part_number.unwrap_or_default(),
            etag: part.e_tag.map(s3s::dto::ETag::into_value),
            checksums,
        }
    }
}

pub(super) fn new_object(
    key: String,
    sums: &Sums,
    algorithm: Algorithm,
    attributes: Attributes,
) -> S3Result<Object> {
    let checksum = sums
        .checksums
        .get(&algorithm)
        .cloned()
        .ok_or_else(|| s3_error!(InternalError, "{algorithm} was not computed"))?;
    Ok(Object {
        key,
        size: sums.size,
        etag: sums.etag(),
        modified: Timestamp::now(),
        crc64: sums.crc64,
        scheme: Scheme { algorithm, kind: Kind::FullObject },
        checksum,
        attributes,
    })
}

pub(super) fn listed_part(number: u32, part: &StoredPart, scheme: Option<Scheme>, quirks: Quirks) -> Part {
    let mut listed = Part {
        part_number: i32::try_from(number).ok(),
        size: signed(part.sums.size),
        e_tag: Some(etag(&part.etag)),
        last_modified: Some(part.modified.into()),
        ..Part::default()
    };
    if let Some((algorithm, checksum)) = part.checksum(scheme).filter(|_| scheme.is_some()) {
        set_checksum!(listed, algorithm, quirks.checksum_to_send(checksum));
    }
    listed
}
