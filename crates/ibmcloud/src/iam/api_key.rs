//! Token source that gets tokens from IBM IAM for an API key.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Url;
use serde::Deserialize;
use snapferry_base::ca_file::allows_secrets;
use snapferry_base::clock::Clock;
use snapferry_base::identity::{IdentityError, Token, TokenSource};
use snapferry_base::proxy::{Proxies, Route};
use snapferry_base::secret::Secret;

use super::refreshing::{Grant, Refreshing, TokenRequest};
use super::{body_error_reason, capped_lifetime, truncated};
use crate::http_client::{HttpClientError, http_client};
use crate::response_limits::{MAX_IDENTITY_BODY, read_body};

/// IBM Cloud's public token service.
pub const IBM_IAM: &str = "https://iam.cloud.ibm.com";

/// Grant type by which IAM exchanges an API key for a token.
const GRANT: &str = "urn:ibm:params:oauth:grant-type:apikey";
/// Time limit for a connection to IAM.
const CONNECT: Duration = Duration::from_secs(5);
/// Time limit for one whole request.
const DEADLINE: Duration = Duration::from_secs(30);

/// Settings of an [`ApiKeySource`].
#[derive(Clone, Debug)]
pub struct ApiKeyConfig {
    /// API key of a user or a service ID.
    pub api_key: Secret,
    /// Address of the token service, usually [`IBM_IAM`].
    pub endpoint: String,
    /// File with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Proxies that requests may go through.
    pub proxies: Proxies,
}

/// Request for a token with an API key.
struct ApiKey {
    http: reqwest::Client,
    endpoint: Url,
    api_key: Secret,
    route: Route,
}

/// Source of tokens ([`TokenSource`]) for an IBM Cloud API key.
pub struct ApiKeySource(Refreshing<ApiKey>);

impl fmt::Debug for ApiKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeySource")
            .field("endpoint", &self.0.request.endpoint.as_str())
            .finish_non_exhaustive()
    }
}

/// Response of IAM that grants a token.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// Seconds from now. They are safer than the absolute `expiration` in the same response if clocks differ.
    expires_in: u64,
}

/// Error response of IAM.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    error_code: String,
    #[serde(default)]
    error_message: String,
}

impl ApiKeySource {
    /// Returns a source that has not requested a token yet.
    ///
    /// # Errors
    /// If the key is empty, the endpoint is not a URL or would receive the key unencrypted, or the CA file
    /// can't be used.
    pub fn new(config: ApiKeyConfig, clock: Arc<dyn Clock>) -> Result<Self, IdentityError> {
        let setup = |reason: String| IdentityError::Setup(reason);
        if config.api_key.is_empty() {
            return Err(setup("the API key is empty".to_owned()));
        }
        let endpoint: Url = config
            .endpoint
            .parse()
            .map_err(|err| setup(format!("the IAM endpoint {:?} is not a URL: {err}", config.endpoint)))?;
        if !allows_secrets(&endpoint) {
            return Err(setup(format!(
                "the IAM endpoint {endpoint} is not https: the API key would travel in the clear"
            )));
        }
        let endpoint = endpoint
            .join("/identity/token")
            .map_err(|err| setup(format!("the IAM endpoint {endpoint} has no paths: {err}")))?;
        let route = config.proxies.route(&endpoint).map_err(|err| setup(err.to_string()))?;
        let http = http_client(config.ca_file.as_deref(), &route)
            .and_then(|http| {
                http.connect_timeout(CONNECT).timeout(DEADLINE).build().map_err(HttpClientError::Tls)
            })
            .map_err(|err| setup(snapferry_base::retry::chain(&err)))?;
        let request = ApiKey { http, endpoint, api_key: config.api_key, route };
        Ok(Self(Refreshing::new(request, clock)))
    }
}

#[async_trait]
impl TokenRequest for ApiKey {
    async fn request_token(&self) -> Result<Grant, IdentityError> {
        let endpoint = || self.endpoint.to_string();
        let unreachable = |reason: String| IdentityError::Unreachable { endpoint: endpoint(), reason };
        let form = [("grant_type", GRANT), ("apikey", self.api_key.reveal()), ("response_type", "cloud_iam")];
        let sent = self
            .http
            .post(self.endpoint.clone())
            .header("accept", "application/json")
            .form(&form)
            .send()
            .await;
        let response = match sent {
            Ok(response) => response,
            Err(err) => {
                // A proxy that gives no connection is found by asking it: the client doesn't report its
                // answer.
                let fault = if err.is_connect() { self.route.fault(&self.endpoint).await } else { None };
                let reason = snapferry_base::retry::chain(&err.without_url());
                return Err(match fault {
                    Some(source) => IdentityError::Proxy { endpoint: endpoint(), source },
                    None => unreachable(self.route.explain(reason)),
                });
            }
        };
        let status = response.status();
        if let Some(source) = self.route.fault_of_status(status.as_u16()) {
            return Err(IdentityError::Proxy { endpoint: endpoint(), source });
        }
        let body = read_body(response, MAX_IDENTITY_BODY)
            .await
            .map_err(|err| unreachable(body_error_reason(err)))?;
        if status.is_success() {
            let granted: Granted = serde_json::from_slice(&body).map_err(|err| IdentityError::Malformed {
                endpoint: endpoint(),
                // Only the position, not the text itself: it may hold half a token.
                reason: format!("{:?} error in line {}, column {}", err.classify(), err.line(), err.column()),
            })?;
            let bearer = Secret::new(&granted.access_token);
            if bearer.is_empty() {
                return Err(IdentityError::Malformed {
                    endpoint: endpoint(),
                    reason: "the token is empty".to_owned(),
                });
            }
            return Ok(Grant { bearer, lifetime: capped_lifetime(granted.expires_in) });
        }
        let refusal: Option<Refusal> = serde_json::from_slice(&body).ok();
        let (code, message) = refusal.map_or_else(
            || {
                (
                    status.as_u16().to_string(),
                    status.canonical_reason().unwrap_or("no reason given").to_owned(),
                )
            },
            |refusal| (refusal.error_code, refusal.error_message),
        );
        let message = truncated(&message.replace(self.api_key.reveal(), "***"));
        let code = truncated(&code);
        if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
            return Err(unreachable(format!("it answered {status}: {code}: {message}")));
        }
        Err(IdentityError::Refused { endpoint: endpoint(), code, message })
    }
}

#[async_trait]
impl TokenSource for ApiKeySource {
    async fn token(&self) -> Result<Token, IdentityError> {
        self.0.token().await
    }

    fn refused(&self, token: &Token) {
        self.0.refused(token);
    }
}
