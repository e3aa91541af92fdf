//! Client for Global Tagging, used for images: the VPC API has no tags for them.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;
use snapferry_base::proxy::Proxies;

use super::conflict::Conflict;
use super::{ClientContext, safe_url};
use crate::vpc::error::VpcError;
use crate::vpc::http::{ApiRequest, HttpClient, Policy};
use crate::vpc::names::{Crn, Tag};
use crate::vpc::wait::Patience;

/// IBM's public address of the service.
pub const GLOBAL_TAGGING: &str = "https://tags.global-search-tagging.cloud.ibm.com";

/// IBM's private address of the service, for servers of a VPC (IBM's documentation of Global Search and
/// Tagging, "Endpoint URLs").
pub const PRIVATE_TAGGING: &str = "https://tags.private.global-search-tagging.cloud.ibm.com";

/// Settings of a tagging client.
#[derive(Clone, Debug)]
pub struct TaggingConfig {
    /// Address of the service, usually [`GLOBAL_TAGGING`].
    pub endpoint: String,
    /// File with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Proxies that requests may go through.
    pub proxies: Proxies,
    /// Time limits and retries of requests.
    pub policy: Policy,
}

impl Default for TaggingConfig {
    fn default() -> Self {
        Self {
            endpoint: GLOBAL_TAGGING.to_owned(),
            ca_file: None,
            proxies: Proxies::default(),
            policy: Policy::default(),
        }
    }
}

/// Client for the service that tags any resource with a CRN.
pub struct Tagging {
    client: HttpClient,
}

/// Response to a change: the result for each resource, which may be a failure although the status is 200.
#[derive(Deserialize)]
struct Outcomes {
    #[serde(default)]
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    is_error: Option<bool>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct TaggedResource {
    items: Vec<FoundTag>,
}

#[derive(Deserialize)]
struct FoundTag {
    name: String,
}

impl Tagging {
    /// Returns a client that has sent no request yet.
    ///
    /// # Errors
    /// [`VpcError::Setup`] if the endpoint is not a URL, or the CA file can't be used.
    pub fn new(config: &TaggingConfig, context: ClientContext) -> Result<Self, VpcError> {
        let base = safe_url("tagging", &format!("{}/v3", config.endpoint.trim_end_matches('/')))?;
        let (ca_file, query) = (config.ca_file.as_deref(), vec![("tag_type", "user")]);
        let client = context.http_client(base, query, &config.proxies, ca_file, config.policy)?;
        Ok(Self { client })
    }

    /// Adds tags to a resource and keeps its present ones.
    ///
    /// # Errors
    /// If the service can't be reached, refuses, or returns a malformed response.
    pub async fn attach(&self, crn: &Crn, tags: &[Tag]) -> Result<(), VpcError> {
        self.change("attach", crn, tags).await
    }

    /// Removes tags from a resource.
    ///
    /// # Errors
    /// As for [`Tagging::attach`].
    pub async fn detach(&self, crn: &Crn, tags: &[Tag]) -> Result<(), VpcError> {
        self.change("detach", crn, tags).await
    }

    async fn change(&self, action: &str, crn: &Crn, tags: &[Tag]) -> Result<(), VpcError> {
        let body = json!({ "resources": [{ "resource_id": crn }], "tag_names": tags });
        let call = ApiRequest::post(&["tags", action], &body)?.freely();
        let send = async || self.client.send(&call).await;
        let response = self
            .client
            .change(&format!("{crn}"), Patience::BUSY, send, async || Ok(Conflict::Passing))
            .await?;
        let outcomes: Outcomes = response.read()?;
        match outcomes.results.into_iter().find(|outcome| outcome.is_error == Some(true)) {
            None => Ok(()),
            Some(failed) => {
                let reason = failed.message.unwrap_or_else(|| "the tags were not accepted".to_owned());
                Err(VpcError::Malformed { request: response.request, reason })
            }
        }
    }

    /// Returns the user tags of a resource.
    ///
    /// # Errors
    /// As for [`Tagging::attach`].
    pub async fn tags(&self, crn: &Crn) -> Result<Vec<String>, VpcError> {
        let call = ApiRequest::get(&["tags"]).query("attached_to", crn.as_str()).query("limit", "1000");
        let found: TaggedResource = self.client.send(&call).await?.read()?;
        Ok(found.items.into_iter().map(|tag| tag.name).collect())
    }
}
