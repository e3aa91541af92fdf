//! Client for the instance metadata service: description of this server, and tokens for its trusted profile.
//!
//! The server first gets a token that proves its identity (an *identity token*, which never leaves the
//! server), and exchanges it for an IAM token. The service's paths changed with its version of 2025-08-26;
//! the client falls back to the older ones if the new ones don't exist.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use snapferry_base::clock::Clock;
use snapferry_base::identity::{IdentityError, Token, TokenSource};
use snapferry_base::proxy::Route;
use snapferry_base::retry::chain;
use snapferry_base::secret::Secret;

use super::instance::Instance;
use super::refreshing::{Grant, Refreshing, TokenRequest};
use super::{body_error_reason, capped_lifetime, truncated};
use crate::http_client::{HttpClientError, http_client};
use crate::response_limits::{MAX_IDENTITY_BODY, read_body};

/// Address of the service over http, which is the default unless https was chosen for the server.
pub const METADATA_HTTP: &str = "http://169.254.169.254";
/// Address of the service over https; its certificate is valid for this name alone.
pub const METADATA_HTTPS: &str = "https://api.metadata.cloud.ibm.com";

/// Time limit for a connection: the service is on the same host, or switched off.
const CONNECT: Duration = Duration::from_secs(2);
/// Time limit for one whole request.
const DEADLINE: Duration = Duration::from_secs(15);
/// Requested life of an identity token in seconds: the service's maximum (5 to 3600 s).
const IDENTITY_LIFE: u64 = 3600;
/// Header that proves to the service that the server itself sends the request.
const FLAVOR: (&str, &str) = ("metadata-flavor", "ibm");

/// Paths of one generation of the service, and the API version that goes with them.
struct Paths {
    version: &'static str,
    identity: &'static str,
    iam: &'static str,
}

/// Generations of the service, the newest first.
const GENERATIONS: [Paths; 2] = [
    Paths { version: "2025-08-26", identity: "/identity/v1/token", iam: "/identity/v1/iam_tokens" },
    Paths {
        version: "2022-03-01",
        identity: "/instance_identity/v1/token",
        iam: "/instance_identity/v1/iam_token",
    },
];

/// Trusted profile that the server uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Profile that the server was linked to when it was created.
    #[default]
    Default,
    /// Profile by its identifier, `Profile-...`.
    Id(String),
    /// Profile by its CRN.
    Crn(String),
}

impl Profile {
    /// Parses a setting: `default`, an identifier, or a CRN.
    #[must_use]
    pub fn parse(typed: &str) -> Self {
        match typed {
            "default" => Self::Default,
            crn if crn.starts_with("crn:") => Self::Crn(crn.to_owned()),
            id => Self::Id(id.to_owned()),
        }
    }

    fn body(&self) -> Value {
        match self {
            Self::Default => json!({}),
            Self::Id(id) => json!({ "trusted_profile": { "id": id } }),
            Self::Crn(crn) => json!({ "trusted_profile": { "crn": crn } }),
        }
    }
}

/// Settings of a [`Metadata`] client.
#[derive(Clone, Debug, Default)]
pub struct MetadataConfig {
    /// Address of the service; if none, [`METADATA_HTTP`] and then [`METADATA_HTTPS`].
    pub endpoint: Option<String>,
    /// File with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Client for the instance metadata service of this server.
pub struct Metadata {
    http: reqwest::Client,
    endpoints: Vec<Url>,
    /// Endpoint and generation that answered: the next request goes there at once.
    found: RwLock<Option<(usize, usize)>>,
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").field("endpoints", &self.endpoint_names()).finish_non_exhaustive()
    }
}

/// Response of the service that grants a token.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// Life of the token in seconds.
    expires_in: u64,
}

/// Error response of the service.
#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Metadata {
    /// Returns a client that has sent no request yet.
    ///
    /// # Errors
    /// If the endpoint is not a URL, or the CA file can't be used.
    pub fn new(config: &MetadataConfig) -> Result<Self, IdentityError> {
        let configured: Vec<&str> = config
            .endpoint
            .as_deref()
            .map_or_else(|| vec![METADATA_HTTP, METADATA_HTTPS], |configured| vec![configured]);
        let endpoints: Result<Vec<Url>, _> = configured.iter().map(|text| text.parse()).collect();
        let endpoints = endpoints.map_err(|err| {
            IdentityError::Setup(format!("the metadata endpoint {configured:?} is not a URL: {err}"))
        })?;
        // Through a proxy, the service would describe the proxy's server instead of this one.
        let http = http_client(config.ca_file.as_deref(), &Route::default())
            .and_then(|http| {
                http.connect_timeout(CONNECT).timeout(DEADLINE).build().map_err(HttpClientError::Tls)
            })
            .map_err(|err| IdentityError::Setup(chain(&err)))?;
        Ok(Self { http, endpoints, found: RwLock::new(None) })
    }

    fn endpoint_names(&self) -> Vec<String> {
        self.endpoints.iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect()
    }

    /// Returns an identity token of this server, and the endpoint and generation that granted it.
    async fn identity(&self) -> Result<(Secret, usize, usize), IdentityError> {
        let last_found = *self.found.read().unwrap_or_else(PoisonError::into_inner);
        let mut reasons = Vec::new();
        for endpoint in 0..self.endpoints.len() {
            for (generation, paths) in GENERATIONS.iter().enumerate() {
                if last_found.is_some_and(|last_found| last_found != (endpoint, generation)) {
                    continue;
                }
                match self.identity_at(endpoint, generation).await {
                    Ok(token) => {
                        *self.found.write().unwrap_or_else(PoisonError::into_inner) =
                            Some((endpoint, generation));
                        return Ok((token, endpoint, generation));
                    }
                    // These paths don't exist here: try the older ones, or the other address.
                    Err(Failure::Absent) => {
                        reasons.push(format!("no such path in version {}", paths.version));
                    }
                    Err(Failure::Silent(reason)) => {
                        reasons.push(reason);
                        break;
                    }
                    Err(Failure::Other(err)) => return Err(err),
                }
            }
        }
        *self.found.write().unwrap_or_else(PoisonError::into_inner) = None;
        reasons.dedup();
        Err(IdentityError::MetadataOff { endpoints: self.endpoint_names(), reason: reasons.join("; ") })
    }

    async fn identity_at(&self, endpoint: usize, generation: usize) -> Result<Secret, Failure> {
        let body = json!({ "expires_in": IDENTITY_LIFE });
        let granted: Granted = self
            .send(Method::PUT, endpoint, generation, GENERATIONS[generation].identity, None, Some(&body))
            .await?;
        Ok(Secret::new(&granted.access_token))
    }

    /// Sends one request. `identity` is the server's identity token, if the request needs one.
    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        endpoint: usize,
        generation: usize,
        path: &str,
        identity: Option<&Secret>,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let mut url = self.endpoints[endpoint].clone();
        url.set_path(path);
        url.query_pairs_mut().append_pair("version", GENERATIONS[generation].version);
        let endpoint_name = url.as_str().to_owned();
        let mut builder =
            self.http.request(method, url).header(FLAVOR.0, FLAVOR.1).header("accept", "application/json");
        if let Some(identity) = identity {
            builder = builder.bearer_auth(identity.reveal());
        }
        if let Some(body) = body {
            builder = builder.json(body);
        }
        let response = builder.send().await.map_err(|err| Failure::Silent(chain(&err.without_url())))?;
        let status = response.status();
        let body = read_body(response, MAX_IDENTITY_BODY)
            .await
            .map_err(|err| Failure::Silent(body_error_reason(err)))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|err| {
                // Only the position, not the text itself: it may hold half a token.
                let reason =
                    format!("{:?} error in line {}, column {}", err.classify(), err.line(), err.column());
                Failure::Other(IdentityError::Malformed { endpoint: endpoint_name, reason })
            });
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let fault = refusal
            .errors
            .into_iter()
            .next()
            .unwrap_or(Fault { code: status.to_string(), message: String::new() });
        let fault = Fault { code: truncated(&fault.code), message: truncated(&fault.message) };
        Err(match status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Failure::Absent,
            _ if status.is_server_error() || matches!(status.as_u16(), 408 | 429) => {
                Failure::Other(IdentityError::Unreachable {
                    endpoint: endpoint_name,
                    reason: format!("it answered {status}: {}: {}", fault.code, fault.message),
                })
            }
            _ => Failure::Other(IdentityError::Refused {
                endpoint: endpoint_name,
                code: fault.code,
                message: fault.message,
            }),
        })
    }

    async fn iam_token(&self, profile: &Profile) -> Result<Grant, IdentityError> {
        let (identity, endpoint, generation) = self.identity().await?;
        let path = GENERATIONS[generation].iam;
        let granted: Result<Granted, Failure> =
            self.send(Method::POST, endpoint, generation, path, Some(&identity), Some(&profile.body())).await;
        let granted = granted.map_err(|failure| self.to_identity_error(failure))?;
        let bearer = Secret::new(&granted.access_token);
        if bearer.is_empty() {
            return Err(IdentityError::Malformed {
                endpoint: self.endpoint_names().join(" or "),
                reason: "the token is empty".to_owned(),
            });
        }
        Ok(Grant { bearer, lifetime: capped_lifetime(granted.expires_in) })
    }

    /// Returns the description of this server.
    ///
    /// # Errors
    /// [`IdentityError::MetadataOff`] if the service does not answer. Another error if it refuses or its
    /// response is malformed.
    pub async fn instance(&self) -> Result<Instance, IdentityError> {
        let (identity, endpoint, generation) = self.identity().await?;
        let data = self
            .send(Method::GET, endpoint, generation, "/metadata/v1/instance", Some(&identity), None)
            .await;
        let data: super::instance::CloudInitData = data.map_err(|failure| self.to_identity_error(failure))?;
        data.into_instance().ok_or_else(|| IdentityError::Malformed {
            endpoint: self.endpoint_names().join(" or "),
            reason: "the server's zone names no region".to_owned(),
        })
    }

    fn to_identity_error(&self, failure: Failure) -> IdentityError {
        match failure {
            Failure::Other(err) => err,
            Failure::Silent(reason) => {
                IdentityError::MetadataOff { endpoints: self.endpoint_names(), reason }
            }
            Failure::Absent => IdentityError::MetadataOff {
                endpoints: self.endpoint_names(),
                reason: "no such path".to_owned(),
            },
        }
    }
}

/// Reason why one request failed.
enum Failure {
    /// The service does not answer.
    Silent(String),
    /// The service answers, but does not know the path.
    Absent,
    Other(IdentityError),
}

/// Request for a token of a trusted profile.
struct TrustedProfile {
    service: Arc<Metadata>,
    profile: Profile,
}

#[async_trait]
impl TokenRequest for TrustedProfile {
    async fn request_token(&self) -> Result<Grant, IdentityError> {
        self.service.iam_token(&self.profile).await
    }
}

/// Source of tokens ([`TokenSource`]) for a trusted profile of this server.
pub struct ProfileSource(Refreshing<TrustedProfile>);

impl ProfileSource {
    /// Returns a source that has not requested a token yet.
    #[must_use]
    pub fn new(service: Arc<Metadata>, profile: Profile, clock: Arc<dyn Clock>) -> Self {
        Self(Refreshing::new(TrustedProfile { service, profile }, clock))
    }
}

impl fmt::Debug for ProfileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileSource").field("profile", &self.0.request.profile).finish_non_exhaustive()
    }
}

#[async_trait]
impl TokenSource for ProfileSource {
    async fn token(&self) -> Result<Token, IdentityError> {
        self.0.token().await
    }

    fn refused(&self, token: &Token) {
        self.0.refused(token);
    }
}
