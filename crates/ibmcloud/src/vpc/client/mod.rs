//! Operations of the API, one file for each kind of resource.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapferry_base::ca_file::allows_secrets;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::fence::Fence;
use snapferry_base::identity::TokenSource;
use snapferry_base::proxy::{Proxies, Route};
use snapferry_base::retry::chain;

use super::error::VpcError;
use super::http::{ApiRequest, HttpClient, KnownHosts, Policy};
use super::wait::Watch;
use crate::http_client::{HttpClientError, http_client};

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

pub use images::{
    ExportPrototype, ImageFilter, ImageOrigin, ImagePatch, ImagePrototype, LARGEST_IMAGE, Schedule,
};
pub use instances::{BootFrom, InstanceAction, InstancePrototype};
pub use snapshots::{SnapshotFilter, SnapshotOrder, SnapshotPrototype};
pub use tagging::{GLOBAL_TAGGING, PRIVATE_TAGGING, Tagging, TaggingConfig};
pub use volumes::{VolumeFilter, VolumePrototype};

/// Address of a region's API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Endpoint {
    /// IBM's public address.
    #[default]
    Public,
    /// IBM's private address, reached through a VPE gateway.
    Private,
    /// Any other URL, with `{region}` in place of the region's name.
    Template(String),
}

impl Endpoint {
    /// Parses a setting: `public`, `private`, or a URL.
    #[must_use]
    pub fn parse(typed: &str) -> Self {
        match typed {
            "public" => Self::Public,
            "private" => Self::Private,
            url => Self::Template(url.to_owned()),
        }
    }

    /// Returns the base URL of the API for `region`, to which paths are appended.
    ///
    /// # Errors
    /// If it is not a URL, or would send a token unencrypted.
    pub fn base(&self, region: &str) -> Result<Url, VpcError> {
        if region.is_empty()
            || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
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

/// Parses a URL and checks that a token may be sent to it.
fn safe_url(api: &str, text: &str) -> Result<Url, VpcError> {
    let url: Url = text
        .parse()
        .map_err(|err| VpcError::Setup(format!("the {api} endpoint {text:?} is not a URL: {err}")))?;
    if url.cannot_be_a_base() {
        return Err(VpcError::Setup(format!("the {api} endpoint {text:?} has no paths")));
    }
    if !allows_secrets(&url) {
        return Err(VpcError::Setup(format!(
            "the {api} endpoint {text} is not https: the token would travel in the clear"
        )));
    }
    Ok(url)
}

/// Settings of a client for one region.
#[derive(Clone)]
pub struct ClientConfig {
    /// Name of the region, as in `us-south`.
    pub region: String,
    /// Address of the region's API.
    pub endpoint: Endpoint,
    /// File with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Proxies that requests may go through.
    pub proxies: Proxies,
    /// Time limits and retries of requests.
    pub policy: Policy,
}

/// Services that all clients of a process share: identity, clock, cancellation, observer, fence.
#[derive(Clone)]
pub struct ClientContext {
    /// Source of bearer tokens.
    pub tokens: Arc<dyn TokenSource>,
    /// Clock that waits and deadlines use.
    pub clock: Arc<dyn Clock>,
    /// Cancellation signal, which stops requests and waits.
    pub cancel: Cancel,
    /// Observer of waits and responses.
    pub watch: Arc<dyn Watch>,
    /// Check before each change that this process still owns the job.
    pub fence: Arc<dyn Fence>,
    /// Hosts that have answered before.
    pub known_hosts: KnownHosts,
}

/// Client for the API of one region. An `Arc` shares it between tasks.
pub struct RegionClient {
    client: HttpClient,
    region: String,
}

impl fmt::Debug for RegionClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionClient")
            .field("region", &self.region)
            .field("base", &self.client.base.as_str())
            .finish_non_exhaustive()
    }
}

fn route_to(base: &Url, proxies: &Proxies) -> Result<Route, VpcError> {
    proxies.route(base).map_err(|err| VpcError::Setup(err.to_string()))
}

/// Builds an HTTP client with the connection limit of `policy`.
fn build_http_client(
    policy: &Policy,
    ca_file: Option<&std::path::Path>,
    route: &Route,
) -> Result<reqwest::Client, VpcError> {
    http_client(ca_file, route)
        .map(|http| http.connect_timeout(policy.connect))
        .and_then(|http| http.build().map_err(HttpClientError::Tls))
        .map_err(|err| VpcError::Setup(chain(&err)))
}

impl ClientContext {
    /// Returns a client for the API at `base`, whose requests all have `fixed_query`.
    fn http_client(
        self,
        base: Url,
        fixed_query: Vec<(&'static str, &'static str)>,
        proxies: &Proxies,
        ca_file: Option<&Path>,
        policy: Policy,
    ) -> Result<HttpClient, VpcError> {
        let route = route_to(&base, proxies)?;
        Ok(HttpClient {
            http: build_http_client(&policy, ca_file, &route)?,
            base,
            route,
            tokens: self.tokens,
            clock: self.clock,
            cancel: self.cancel,
            fence: self.fence,
            watch: self.watch,
            policy,
            fixed_query,
            known_hosts: self.known_hosts,
        })
    }
}

impl RegionClient {
    /// Returns a client that has sent no request yet.
    ///
    /// # Errors
    /// [`VpcError::Setup`] if the region or the endpoint makes no URL, or the CA file can't be used.
    pub fn new(config: ClientConfig, context: ClientContext) -> Result<Self, VpcError> {
        let base = config.endpoint.base(&config.region)?;
        let (ca_file, query) = (config.ca_file.as_deref(), HttpClient::vpc_query());
        let client = context.http_client(base, query, &config.proxies, ca_file, config.policy)?;
        Ok(Self { client, region: config.region })
    }

    /// Returns the name of the client's region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Returns the base URL of the API.
    #[must_use]
    pub fn base(&self) -> &str {
        self.client.base.as_str()
    }

    /// Returns the client's clock, for waits.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.client.clock
    }

    /// Returns the client's cancellation signal, for waits.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.client.cancel
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, VpcError> {
        self.client.send(&ApiRequest::get(path)).await?.read()
    }

    /// Returns none if there is no such resource, or no longer.
    async fn get_if_any<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, VpcError> {
        match self.get(path).await {
            Ok(resource) => Ok(Some(resource)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn patch<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, VpcError> {
        self.client.send(&ApiRequest::patch(path, body)?).await?.read()
    }

    /// Deletes a resource. Any 2xx status is success, and so is a resource that is already deleted.
    async fn delete(&self, path: &[&str]) -> Result<(), VpcError> {
        match self.client.send(&ApiRequest::delete(path)).await {
            Ok(_) => Ok(()),
            Err(err) if err.is_not_found() => Ok(()),
            Err(err) => Err(err),
        }
    }

    /// Returns the resource that the caller searched for by name, or an error with the place of the search.
    fn require<T>(&self, found: Option<T>, kind: &'static str, name: &str) -> Result<T, VpcError> {
        found.ok_or_else(|| VpcError::missing(kind, name, &self.region))
    }
}

#[cfg(test)]
mod request_body_tests;

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
        for (typed, region) in [
            ("http://vpc.example", "eu-de"),
            ("mailto:a@b", "eu-de"),
            ("public", "eu-de/../x"),
            ("public", ""),
        ] {
            assert!(
                matches!(Endpoint::parse(typed).base(region), Err(VpcError::Setup(_))),
                "{typed} {region}"
            );
        }
    }
}
