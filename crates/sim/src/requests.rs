//! Operation and target of a request, found from its method, path and query, before its signature or body is
//! looked at.

use std::fmt;

use hyper::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// S3's operations under S3's own names, and one of IAM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// `DELETE /bucket/key?uploadId=`
    AbortMultipartUpload,
    /// `POST /bucket/key?uploadId=`
    CompleteMultipartUpload,
    /// `PUT /bucket/key` with a copy source
    CopyObject,
    /// `PUT /bucket`
    CreateBucket,
    /// `POST /bucket/key?uploads`
    CreateMultipartUpload,
    /// `DELETE /bucket`
    DeleteBucket,
    /// `DELETE /bucket/key`
    DeleteObject,
    /// `POST /bucket?delete`
    DeleteObjects,
    /// `GET /bucket?location`
    GetBucketLocation,
    /// `GET /bucket/key`
    GetObject,
    /// `HEAD /bucket`
    HeadBucket,
    /// `HEAD /bucket/key`
    HeadObject,
    /// IAM's `POST /identity/token`
    IdentityToken,
    /// `GET /`
    ListBuckets,
    /// `GET /bucket?uploads`
    ListMultipartUploads,
    /// `GET /bucket`
    ListObjects,
    /// `GET /bucket?list-type=2`
    ListObjectsV2,
    /// `GET /bucket/key?uploadId=`
    ListParts,
    /// `PUT /bucket/key`
    PutObject,
    /// `PUT /bucket/key?partNumber=&uploadId=`
    UploadPart,
    /// `PUT /bucket/key?partNumber=&uploadId=` with a copy source
    UploadPartCopy,
    /// Any other request
    Other,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Path of IAM's request for a token.
pub(super) const TOKEN_PATH: &str = "/identity/token";

/// Operation of a request, and the bucket, key, upload and part that it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) operation: Operation,
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) upload: String,
    pub(super) part: Option<u32>,
}

/// Returns a value of the query, decoded; an empty one if the name stands without a value.
fn value(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (found == name).then(|| percent_decode_str(value).decode_utf8_lossy().into_owned())
    })
}

impl Target {
    /// Reads the target of a request. `host_bucket` is the bucket that the name of the host contains, if it
    /// does.
    pub(super) fn of(method: &Method, uri: &Uri, headers: &HeaderMap, host_bucket: Option<&str>) -> Self {
        let path = percent_decode_str(uri.path()).decode_utf8_lossy();
        let path = path.strip_prefix('/').unwrap_or(&path);
        let (bucket, key) = match host_bucket {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        let upload = value(uri, "uploadId");
        let part = value(uri, "partNumber");
        let asks = |name| value(uri, name).is_some();
        let copies = headers.contains_key("x-amz-copy-source");
        let operation = match (method, bucket, key) {
            (&Method::POST, _, _) if uri.path() == TOKEN_PATH => Operation::IdentityToken,
            (&Method::GET, "", "") => Operation::ListBuckets,
            (&Method::PUT, _, "") if uri.query().is_none() => Operation::CreateBucket,
            (&Method::HEAD, _, "") => Operation::HeadBucket,
            (&Method::DELETE, _, "") if uri.query().is_none() => Operation::DeleteBucket,
            (&Method::GET, _, "") if asks("uploads") => Operation::ListMultipartUploads,
            (&Method::GET, _, "") if asks("location") => Operation::GetBucketLocation,
            (&Method::GET, _, "") if value(uri, "list-type").as_deref() == Some("2") => {
                Operation::ListObjectsV2
            }
            (&Method::GET, _, "") => Operation::ListObjects,
            (&Method::POST, _, "") if asks("delete") => Operation::DeleteObjects,
            (_, _, "") => Operation::Other,
            (&Method::PUT, ..) if upload.is_some() && part.is_some() && copies => Operation::UploadPartCopy,
            (&Method::PUT, ..) if upload.is_some() && part.is_some() => Operation::UploadPart,
            (&Method::PUT, ..) if copies => Operation::CopyObject,
            (&Method::PUT, ..) => Operation::PutObject,
            (&Method::HEAD, ..) => Operation::HeadObject,
            (&Method::GET, ..) if upload.is_some() => Operation::ListParts,
            (&Method::GET, ..) => Operation::GetObject,
            (&Method::DELETE, ..) if upload.is_some() => Operation::AbortMultipartUpload,
            (&Method::DELETE, ..) => Operation::DeleteObject,
            (&Method::POST, ..) if asks("uploads") => Operation::CreateMultipartUpload,
            (&Method::POST, ..) if upload.is_some() => Operation::CompleteMultipartUpload,
            _ => Operation::Other,
        };
        Self {
            operation,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            upload: upload.unwrap_or_default(),
            part: part.and_then(|part| part.parse().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(method: Method, uri: &'static str) -> Operation {
        Target::of(&method, &Uri::from_static(uri), &HeaderMap::new(), None).operation
    }

    #[test]
    fn requests_are_told_apart_by_method_path_and_query() {
        for (method, uri, expected) in [
            (Method::GET, "/", Operation::ListBuckets),
            (Method::PUT, "/images", Operation::CreateBucket),
            (Method::PUT, "/images/", Operation::CreateBucket),
            (Method::GET, "/images/?list-type=2&prefix=a", Operation::ListObjectsV2),
            (Method::GET, "/images?uploads", Operation::ListMultipartUploads),
            (Method::GET, "/images?uploads=&max-uploads=2", Operation::ListMultipartUploads),
            (Method::POST, "/images/a?uploads", Operation::CreateMultipartUpload),
            (Method::POST, "/images/a?uploadId=x", Operation::CompleteMultipartUpload),
            (Method::PUT, "/images/a?partNumber=2&uploadId=x", Operation::UploadPart),
            (Method::GET, "/images/a?x-id=GetObject", Operation::GetObject),
            (Method::DELETE, "/images/a?uploadId=x", Operation::AbortMultipartUpload),
            (Method::DELETE, "/images/a", Operation::DeleteObject),
            (Method::POST, "/identity/token", Operation::IdentityToken),
        ] {
            assert_eq!(operation(method.clone(), uri), expected, "{method} {uri}");
        }
    }

    #[test]
    fn a_bucket_in_the_hosts_name_leaves_the_path_to_the_key() {
        let uri = Uri::from_static("/a/b?uploads");
        let target = Target::of(&Method::POST, &uri, &HeaderMap::new(), Some("images"));
        assert_eq!((target.bucket.as_str(), target.key.as_str()), ("images", "a/b"));
        assert_eq!(target.operation, Operation::CreateMultipartUpload);
    }

    #[test]
    fn keys_are_decoded_and_keep_their_slashes() {
        let uri = Uri::from_static("/images/a%20b/c?partNumber=12&uploadId=q%2Fr");
        let target = Target::of(&Method::PUT, &uri, &HeaderMap::new(), None);
        let expected = Target {
            operation: Operation::UploadPart,
            bucket: "images".to_owned(),
            key: "a b/c".to_owned(),
            upload: "q/r".to_owned(),
            part: Some(12),
        };
        assert_eq!(target, expected);
    }
}
