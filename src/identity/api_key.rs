//! Tokens from IBM IAM for an API key.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Url;
use serde::Deserialize;

use super::refreshing::{Ask, Grant, Refreshing};
use super::{IdentityError, Token, TokenSource, cut, life_of, reason_of};
use crate::answers::{LARGEST_OF_IDENTITY, body_of};
use crate::clock::Clock;
use crate::secret::Secret;
use crate::trust::{HttpClientError, http_client, keeps_secrets};

/// IBM Cloud's public token service.
pub const IBM_IAM: &str = "https://iam.cloud.ibm.com";

/// The grant by which IAM trades an API key for a token.
const GRANT: &str = "urn:ibm:params:oauth:grant-type:apikey";
/// To reach IAM at all.
const CONNECT: Duration = Duration::from_secs(5);
/// For one whole request.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a token source needs to know.
#[derive(Clone, Debug)]
pub struct ApiKeyConfig {
    /// The key.
    pub api_key: Secret,
    /// Where to ask, usually [`IBM_IAM`].
    pub endpoint: String,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// How an API key gets its token.
struct ApiKey {
    http: reqwest::Client,
    endpoint: Url,
    api_key: Secret,
}

/// A [`TokenSource`] for an IBM Cloud API key.
pub struct ApiKeySource(Refreshing<ApiKey>);

impl fmt::Debug for ApiKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeySource").field("endpoint", &self.0.way.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// IAM's answer.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// Seconds from now: safer than the absolute `expiration` beside it where clocks differ.
    expires_in: u64,
}

/// IAM's refusal.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    error_code: String,
    #[serde(default)]
    error_message: String,
}

impl ApiKeySource {
    /// A source that has not asked yet.
    ///
    /// # Errors
    /// Where the key is empty, the endpoint is no URL or would carry the key in the clear, or the CA file can't be used.
    pub fn new(config: ApiKeyConfig, clock: Arc<dyn Clock>) -> Result<Self, IdentityError> {
        let setup = |reason: String| IdentityError::Setup(reason);
        if config.api_key.is_empty() {
            return Err(setup("the API key is empty".to_owned()));
        }
        let endpoint: Url =
            config.endpoint.parse().map_err(|err| setup(format!("the IAM endpoint {:?} is not a URL: {err}", config.endpoint)))?;
        if !keeps_secrets(&endpoint) {
            return Err(setup(format!("the IAM endpoint {endpoint} is not https: the API key would travel in the clear")));
        }
        let endpoint =
            endpoint.join("/identity/token").map_err(|err| setup(format!("the IAM endpoint {endpoint} has no paths: {err}")))?;
        let http = http_client(config.ca_file.as_deref())
            .and_then(|http| http.connect_timeout(CONNECT).timeout(DEADLINE).build().map_err(HttpClientError::Tls))
            .map_err(|err| setup(crate::retry::chain(&err)))?;
        let way = ApiKey { http, endpoint, api_key: config.api_key };
        Ok(Self(Refreshing::new(way, clock)))
    }
}

#[async_trait]
impl Ask for ApiKey {
    async fn ask(&self) -> Result<Grant, IdentityError> {
        let endpoint = || self.endpoint.to_string();
        let unreachable = |reason: String| IdentityError::Unreachable { endpoint: endpoint(), reason };
        let form = [("grant_type", GRANT), ("apikey", self.api_key.reveal()), ("response_type", "cloud_iam")];
        let sent = self.http.post(self.endpoint.clone()).header("accept", "application/json").form(&form).send().await;
        let answer = sent.map_err(|err| unreachable(crate::retry::chain(&err.without_url())))?;
        let status = answer.status();
        let body = body_of(answer, LARGEST_OF_IDENTITY).await.map_err(|err| unreachable(reason_of(err)))?;
        if status.is_success() {
            let granted: Granted = serde_json::from_slice(&body).map_err(|err| IdentityError::Malformed {
                endpoint: endpoint(),
                // Where, not what: the text may hold half a token.
                reason: format!("{:?} error in line {}, column {}", err.classify(), err.line(), err.column()),
            })?;
            let bearer = Secret::new(&granted.access_token);
            if bearer.is_empty() {
                return Err(IdentityError::Malformed { endpoint: endpoint(), reason: "the token is empty".to_owned() });
            }
            return Ok(Grant { bearer, life: life_of(granted.expires_in) });
        }
        let refusal: Option<Refusal> = serde_json::from_slice(&body).ok();
        let (code, message) = refusal.map_or_else(
            || (status.as_u16().to_string(), status.canonical_reason().unwrap_or("no reason given").to_owned()),
            |refusal| (refusal.error_code, refusal.error_message),
        );
        let message = cut(&message.replace(self.api_key.reveal(), "***"));
        let code = cut(&code);
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
