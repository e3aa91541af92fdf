//! Terms of a store: the names and paths under which it is reached, and the headers that the policies of its
//! buckets require.

use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Uri};
use s3s::host::{S3Host, VirtualHost};
use s3s::{S3Result, s3_error};

use super::requests::{Operation, Target};

/// Addresses that a store accepts besides its own host with buckets in the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// None.
    #[default]
    PathOnly,
    /// Buckets may be in front of this domain too.
    Domain(String),
    /// Buckets have to be in front of this domain: requests with buckets in the path are refused.
    DomainOnly(String),
}

/// Header that the policy of each bucket requires in some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredHeader {
    pub operation: Operation,
    pub name: String,
    pub value: String,
}

impl Names {
    fn domain(&self) -> Option<&str> {
        match self {
            Self::PathOnly => None,
            Self::Domain(domain) | Self::DomainOnly(domain) => Some(domain),
        }
    }

    /// Returns the bucket in the name of the host that a request was sent to.
    pub(super) fn bucket_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let host = without_port(headers.get(HOST)?.to_str().ok()?);
        host.strip_suffix(self.domain()?)?.strip_suffix('.')
    }
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(host, _)| host)
}

impl S3Host for Names {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let name = without_port(host);
        let bucket = self.domain().and_then(|domain| name.strip_suffix(domain)?.strip_suffix('.'));
        match bucket {
            Some(bucket) => Ok(VirtualHost::new(host).with_bucket(bucket)),
            None => Ok(VirtualHost::new(host)),
        }
    }
}

/// Checks the address and the headers of a request.
pub(super) fn check(
    names: &Names,
    required: &[RequiredHeader],
    target: &Target,
    parts: &Parts,
) -> S3Result<()> {
    if matches!(names, Names::DomainOnly(_)) && names.bucket_of(&parts.headers).is_none() {
        return Err(s3_error!(
            InvalidRequest,
            "Path-style requests are not accepted here: the bucket belongs into the name of the host."
        ));
    }
    for RequiredHeader { operation, name, value } in required {
        let sent = parts.headers.get(name).and_then(|sent| sent.to_str().ok());
        if *operation == target.operation && sent != Some(value.as_str()) {
            return Err(s3_error!(AccessDenied, "The policy of the bucket requires {name}: {value}."));
        }
    }
    Ok(())
}

/// Removes the store's prefix from a path, as the server in front of a store does. Returns `None` for other
/// paths.
pub(super) fn without_prefix(uri: &Uri, prefix: &str) -> Option<Uri> {
    let path = uri.path_and_query()?.as_str().strip_prefix(prefix)?;
    if path.starts_with('/') { path.parse().ok() } else { None }
}
