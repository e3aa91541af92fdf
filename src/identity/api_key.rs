//! Tokens from IBM IAM for an API key.
//!
//! One token serves everybody. It is refreshed early, by whoever asks first, while the others go on with the old one; a refresh that
//! fails is tried again later, and is an error only for a token that is of no use any more.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::{Mutex, MutexGuard};

use super::{IdentityError, Token, TokenSource};
use crate::clock::Clock;
use crate::retry::Backoff;
use crate::secret::Secret;
use crate::trust::{HttpClientError, http_client, keeps_secrets};

/// IBM Cloud's public token service.
pub const IBM_IAM: &str = "https://iam.cloud.ibm.com";

/// The grant by which IAM trades an API key for a token.
const GRANT: &str = "urn:ibm:params:oauth:grant-type:apikey";
/// A token is refreshed in the last twenty minutes of its hour...
const EARLY: Duration = Duration::from_secs(20 * 60);
/// ...but of a shorter one never before half its life is over.
const EARLY_SHARE: u32 = 2;
/// A token is taken for dead this long before its issuer does: requests take time, and clocks differ.
const DEAD_EARLY: Duration = Duration::from_secs(30);
/// After a refresh that failed, while the old token is good.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);
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

/// A token, and when to fetch the next.
#[derive(Clone, Debug)]
struct Held {
    token: Token,
    refresh_from: SystemTime,
}

/// A [`TokenSource`] for an IBM Cloud API key.
pub struct ApiKeySource {
    http: reqwest::Client,
    endpoint: Url,
    api_key: Secret,
    clock: Arc<dyn Clock>,
    backoff: Backoff,
    held: RwLock<Option<Held>>,
    /// Whoever holds it asks IAM; the others wait for it, or go on with the token they have.
    asking: Mutex<()>,
}

impl fmt::Debug for ApiKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeySource").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
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
        Ok(Self {
            http,
            endpoint,
            api_key: config.api_key,
            clock,
            backoff: Backoff::STORE,
            held: RwLock::new(None),
            asking: Mutex::new(()),
        })
    }

    fn held(&self) -> Option<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Held) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// The token that we have, if it is good for another request.
    fn usable(&self) -> Option<Held> {
        self.held().filter(|held| self.clock.now() + DEAD_EARLY < held.token.expires)
    }

    /// One request to IAM. The guard is the right to make it.
    async fn ask(&self, _asking: &MutexGuard<'_, ()>) -> Result<Held, IdentityError> {
        let endpoint = || self.endpoint.to_string();
        let unreachable = |reason: String| IdentityError::Unreachable { endpoint: endpoint(), reason };
        // Counted from before the request: it may take a while, and IAM counts from somewhere inside it.
        let asked = self.clock.now();
        let form = [("grant_type", GRANT), ("apikey", self.api_key.reveal()), ("response_type", "cloud_iam")];
        let sent = self.http.post(self.endpoint.clone()).header("accept", "application/json").form(&form).send().await;
        let answer = sent.map_err(|err| unreachable(crate::retry::chain(&err.without_url())))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|err| unreachable(crate::retry::chain(&err.without_url())))?;
        if status.is_success() {
            let granted: Granted = serde_json::from_slice(&body).map_err(|err| IdentityError::Malformed {
                endpoint: endpoint(),
                // Where, not what: the text may hold half a token.
                reason: format!("{:?} error in line {}, column {}", err.classify(), err.line(), err.column()),
            })?;
            let life = Duration::from_secs(granted.expires_in);
            let early = EARLY.min(life / EARLY_SHARE);
            let token = Token { bearer: Secret::new(&granted.access_token), expires: asked + life };
            if token.bearer.is_empty() {
                return Err(IdentityError::Malformed { endpoint: endpoint(), reason: "the token is empty".to_owned() });
            }
            return Ok(Held { token, refresh_from: asked + life - early });
        }
        let refusal: Option<Refusal> = serde_json::from_slice(&body).ok();
        let (code, message) = refusal.map_or_else(
            || (status.as_u16().to_string(), status.canonical_reason().unwrap_or("no reason given").to_owned()),
            |refusal| (refusal.error_code, refusal.error_message),
        );
        let message = message.replace(self.api_key.reveal(), "***");
        if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
            return Err(unreachable(format!("it answered {status}: {code}: {message}")));
        }
        Err(IdentityError::Refused { endpoint: endpoint(), code, message })
    }

    /// Refreshes a token that is still good: one attempt, and on failure the old one for another while.
    async fn refresh(&self, old: Held, asking: MutexGuard<'_, ()>) -> Token {
        match self.ask(&asking).await {
            Ok(held) => {
                self.hold(held.clone());
                held.token
            }
            Err(err) => {
                tracing::warn!("the token could not be refreshed, going on with the one we have: {err}");
                let token = old.token.clone();
                self.hold(Held { refresh_from: self.clock.now() + PAUSE_AFTER_FAILURE, ..old });
                token
            }
        }
    }

    /// Fetches a token when there is none to go on with: several attempts.
    async fn fetch(&self, asking: MutexGuard<'_, ()>) -> Result<Token, IdentityError> {
        let mut attempt = 1;
        loop {
            let err = match self.ask(&asking).await {
                Ok(held) => {
                    self.hold(held.clone());
                    return Ok(held.token);
                }
                Err(err) => err,
            };
            attempt += 1;
            match self.backoff.wait_before(attempt) {
                Some(wait) if err.class().is_retryable() => {
                    tracing::warn!(attempt, wait_ms = wait.as_millis(), "asking for a token again: {err}");
                    self.clock.sleep(wait).await;
                }
                _ => return Err(err),
            }
        }
    }
}

#[async_trait]
impl TokenSource for ApiKeySource {
    async fn token(&self) -> Result<Token, IdentityError> {
        if let Some(held) = self.usable() {
            if self.clock.now() < held.refresh_from {
                return Ok(held.token);
            }
            // Somebody else is at it already: the old one will do.
            let Ok(asking) = self.asking.try_lock() else { return Ok(held.token) };
            return match self.usable() {
                Some(fresh) if self.clock.now() < fresh.refresh_from => Ok(fresh.token),
                _ => Ok(self.refresh(held, asking).await),
            };
        }
        let asking = self.asking.lock().await;
        match self.usable() {
            Some(held) => Ok(held.token),
            None => self.fetch(asking).await,
        }
    }
}
