//! The API's operations, one file a noun.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::VpcError;
use super::http::{Call, Heard, Line, Policy};
use super::wait::Watch;
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::fence::Fence;
use crate::identity::TokenSource;
use crate::retry::chain;
use crate::trust::{self, keeps_secrets};

mod attachments;
mod conflict;
mod create;
mod images;
mod instances;
mod lists;
mod network;
mod shared;
mod snapshots;
mod tagging;
mod volumes;

pub use images::{ExportPrototype, ImageFilter, ImageOrigin, ImagePatch, ImagePrototype, LARGEST_IMAGE, Schedule};
pub use instances::{BootFrom, InstanceAction, InstancePrototype};
pub use snapshots::{SnapshotFilter, SnapshotOrder, SnapshotPrototype};
pub use tagging::{GLOBAL_TAGGING, PRIVATE_TAGGING, Tagging, TaggingConfig};
pub use volumes::{VolumeFilter, VolumePrototype};

/// Where a region's API is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Endpoint {
    /// IBM's public address.
    #[default]
    Public,
    /// IBM's private one, reached through a VPE gateway.
    Private,
    /// Any other, with `{region}` where the region's name goes.
    Template(String),
}

impl Endpoint {
    /// From what was typed: `public`, `private`, or a URL.
    #[must_use]
    pub fn parse(typed: &str) -> Self {
        match typed {
            "public" => Self::Public,
            "private" => Self::Private,
            url => Self::Template(url.to_owned()),
        }
    }

    /// The API's base for `region`, below which its paths begin.
    ///
    /// # Errors
    /// Where it is no URL, or would carry a token in the clear.
    pub fn base(&self, region: &str) -> Result<Url, VpcError> {
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(VpcError::Setup(format!("{region:?} is no region: give one such as us-south")));
        }
        let text = match self {
            Self::Public => format!("https://{region}.iaas.cloud.ibm.com"),
            Self::Private => format!("https://{region}.private.iaas.cloud.ibm.com"),
            Self::Template(template) => template.replace("{region}", region),
        };
        let text = text.trim_end_matches('/').trim_end_matches("/v1");
        safe_url("VPC", &format!("{text}/v1"))
    }
}

/// A URL that a token may be sent to.
fn safe_url(api: &str, text: &str) -> Result<Url, VpcError> {
    let url: Url = text.parse().map_err(|err| VpcError::Setup(format!("the {api} endpoint {text:?} is not a URL: {err}")))?;
    if url.cannot_be_a_base() {
        return Err(VpcError::Setup(format!("the {api} endpoint {text:?} has no paths")));
    }
    if !keeps_secrets(&url) {
        return Err(VpcError::Setup(format!("the {api} endpoint {text} is not https: the token would travel in the clear")));
    }
    Ok(url)
}

/// What a client needs to know.
#[derive(Clone)]
pub struct ClientConfig {
    /// The region, as in `us-south`.
    pub region: String,
    /// Where its API is.
    pub endpoint: Endpoint,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long to try.
    pub policy: Policy,
}

/// What every client shares: who we are, time, and the word to stop.
#[derive(Clone)]
pub struct Means {
    /// Tokens.
    pub tokens: Arc<dyn TokenSource>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The word to stop.
    pub cancel: Cancel,
    /// Told what is waited for.
    pub watch: Arc<dyn Watch>,
    /// Asked before anything is changed.
    pub fence: Arc<dyn Fence>,
    /// Who has answered before.
    pub heard: Heard,
}

/// The API of one region. Cheap to share behind an `Arc`.
pub struct RegionClient {
    line: Line,
    region: String,
}

impl fmt::Debug for RegionClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionClient").field("region", &self.region).field("base", &self.line.base.as_str()).finish_non_exhaustive()
    }
}

/// A client whose requests end by `policy`.
fn http(policy: &Policy, ca_file: Option<&std::path::Path>) -> Result<reqwest::Client, VpcError> {
    trust::http_client(ca_file)
        .map(|http| http.connect_timeout(policy.connect))
        .and_then(|http| http.build().map_err(trust::HttpClientError::Tls))
        .map_err(|err| VpcError::Setup(chain(&err)))
}

impl RegionClient {
    /// A client that has not asked anything yet.
    ///
    /// # Errors
    /// [`VpcError::Setup`] where the region or the endpoint makes no URL, or the CA file can't be used.
    pub fn new(config: ClientConfig, means: Means) -> Result<Self, VpcError> {
        let line = Line {
            http: http(&config.policy, config.ca_file.as_deref())?,
            base: config.endpoint.base(&config.region)?,
            tokens: means.tokens,
            clock: means.clock,
            cancel: means.cancel,
            fence: means.fence,
            watch: means.watch,
            policy: config.policy,
            fixed_query: Line::vpc_query(),
            heard: means.heard,
        };
        Ok(Self { line, region: config.region })
    }

    /// The region that it speaks to.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The API's base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        self.line.base.as_str()
    }

    /// Its clock, for waits.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.line.clock
    }

    /// Its word to stop, for waits.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.line.cancel
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, VpcError> {
        self.line.send(&Call::get(path)).await?.read()
    }

    /// None where there is no such thing (any more).
    async fn get_if_any<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, VpcError> {
        match self.get(path).await {
            Ok(seen) => Ok(Some(seen)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn patch<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, VpcError> {
        self.line.send(&Call::patch(path, body)?).await?.read()
    }

    /// Any 2xx will do, and that it is gone already is success.
    async fn delete(&self, path: &[&str]) -> Result<(), VpcError> {
        match self.line.send(&Call::delete(path)).await {
            Ok(_) => Ok(()),
            Err(err) if err.is_not_found() => Ok(()),
            Err(err) => Err(err),
        }
    }

    /// `what` that somebody asked for by name, or an error that says where it was looked for.
    fn found<T>(&self, found: Option<T>, noun: &'static str, name: &str) -> Result<T, VpcError> {
        found.ok_or_else(|| VpcError::missing(noun, name, &self.region))
    }
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_https_or_local_and_take_the_region() {
        for (typed, base) in [
            ("public", "https://eu-de.iaas.cloud.ibm.com/v1"),
            ("private", "https://eu-de.private.iaas.cloud.ibm.com/v1"),
            ("http://127.0.0.1:8080/{region}", "http://127.0.0.1:8080/eu-de/v1"),
            ("https://vpe.example/v1/", "https://vpe.example/v1"),
        ] {
            assert_eq!(Endpoint::parse(typed).base("eu-de").expect(typed).as_str(), base);
        }
        for (typed, region) in [("http://vpc.example", "eu-de"), ("mailto:a@b", "eu-de"), ("public", "eu-de/../x"), ("public", "")]
        {
            assert!(matches!(Endpoint::parse(typed).base(region), Err(VpcError::Setup(_))), "{typed} {region}");
        }
    }
}
