//! One request at a time: token, version, request identifier, deadline, and the rules for sending it again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderValue, IF_MATCH, RETRY_AFTER,
};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapferry_base::audit::SentChange;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::fence::Fence;
use snapferry_base::identity::{Token, TokenSource};
use snapferry_base::proxy::Route;
use snapferry_base::retry::{Backoff, chain};

use super::error::{Request, VpcError};
use super::refusal::Refusal;
use super::wait::{Waits, Watch};
use crate::response_limits::{BodyError, MAX_API_BODY, read_body};

/// Version of the API, a date (IBM's VPC API change log): the one that these models were written for.
pub const API_VERSION: &str = "2026-03-24";
/// Generation of the API. The first one no longer exists.
const GENERATION: &str = "2";
/// Header with an identifier by which IBM's support finds a request.
const REQUEST_ID: &str = "x-request-id";

/// Attempts at a host that has never answered: its name is probably misspelt rather than the host down.
const UNKNOWN_HOST_ATTEMPTS: u32 = 4;

/// Hosts that have answered at least once. All clients of a process share the list: a client that cleans up
/// in an outage must not take a host that has answered for hours for a misspelt one.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts(Arc<Mutex<BTreeSet<String>>>);

impl KnownHosts {
    fn insert(&self, host: &str) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            hosts.insert(host.to_owned());
        }
    }

    fn contains(&self, host: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(host)
    }
}

/// Time limits and retries of requests.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Time limit for a connection to the API.
    pub connect: Duration,
    /// Time limit for one attempt, the response body included.
    pub deadline: Duration,
    /// Time limit for all attempts and the waits between them: no wait begins that would end later.
    pub budget: Duration,
    /// Number of attempts and waits between them, unless the API asks for a longer wait.
    pub backoff: Backoff,
    /// Time within which a list may not yet show a new resource: seconds are usual with eventual consistency.
    pub list_lag: Duration,
    /// The user's settings for waits on busy resources.
    pub waits: Waits,
}

impl Default for Policy {
    /// Returns limits under which a create may take half a minute and five minutes of throttling don't fail.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            deadline: Duration::from_secs(60),
            budget: Duration::from_secs(5 * 60),
            backoff: Backoff {
                attempts: 10,
                first: Duration::from_secs(1),
                longest: Duration::from_secs(30),
            },
            list_lag: Duration::from_secs(60),
            waits: Waits::USUAL,
        }
    }
}

/// Rule for sending a request again when its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The request may be sent again at once: it has the same effect however often it is carried out.
    Freely,
    /// The request may be sent again only if the API refused it. Otherwise the caller first looks at the
    /// resource.
    OnlyIfRefused,
}

/// Request before it is sent.
#[derive(Debug)]
pub(super) struct ApiRequest {
    pub method: Method,
    /// Path segments below the API's base URL.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    pub body: Option<Vec<u8>>,
    pub if_match: Option<String>,
    pub repeat: Repeat,
}

impl ApiRequest {
    fn new(method: Method, path: &[&str], repeat: Repeat) -> Self {
        let path = path.iter().map(|&segment| segment.to_owned()).collect();
        Self { method, path, query: Vec::new(), body: None, if_match: None, repeat }
    }

    pub fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path, Repeat::Freely)
    }

    pub fn delete(path: &[&str]) -> Self {
        Self::new(Method::DELETE, path, Repeat::Freely)
    }

    pub fn put(path: &[&str]) -> Self {
        Self::new(Method::PUT, path, Repeat::Freely)
    }

    /// Returns a POST that creates a resource or starts an action.
    pub fn post(path: &[&str], body: &impl Serialize) -> Result<Self, VpcError> {
        Ok(Self { body: Some(json(body)?), ..Self::new(Method::POST, path, Repeat::OnlyIfRefused) })
    }

    /// Returns a PATCH, which has the same effect however often it is carried out.
    pub fn patch(path: &[&str], body: &impl Serialize) -> Result<Self, VpcError> {
        Ok(Self { body: Some(json(body)?), ..Self::new(Method::PATCH, path, Repeat::Freely) })
    }

    /// Returns the kinds of the resources in the path, without their names: `instances/volume_attachments`.
    fn resource(&self) -> String {
        let kinds: Vec<&str> = self.path.iter().step_by(2).map(String::as_str).collect();
        kinds.join("/")
    }

    pub fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }

    pub fn if_match(mut self, etag: Option<String>) -> Self {
        self.if_match = etag;
        self
    }

    pub fn freely(mut self) -> Self {
        self.repeat = Repeat::Freely;
        self
    }
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, VpcError> {
    serde_json::to_vec(body)
        .map_err(|err| VpcError::Setup(format!("a request can't be written as JSON: {err}")))
}

/// Response with a 2xx status.
#[derive(Debug)]
pub(super) struct ApiResponse {
    pub request: Request,
    pub etag: Option<String>,
    /// Server's time, from the `Date` header.
    pub date: Option<SystemTime>,
    body: Vec<u8>,
}

impl ApiResponse {
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, VpcError> {
        serde_json::from_slice(&self.body)
            .map_err(|err| VpcError::Malformed { request: self.request.clone(), reason: err.to_string() })
    }
}

/// Connection to one API.
pub(super) struct HttpClient {
    pub http: reqwest::Client,
    pub base: Url,
    /// Way to the API's host.
    pub route: Route,
    pub tokens: Arc<dyn TokenSource>,
    pub clock: Arc<dyn Clock>,
    pub cancel: Cancel,
    pub fence: Arc<dyn Fence>,
    pub watch: Arc<dyn Watch>,
    pub policy: Policy,
    /// Parameters that are added to every request's query.
    pub fixed_query: Vec<(&'static str, &'static str)>,
    /// Hosts that have answered before.
    pub known_hosts: KnownHosts,
}

impl HttpClient {
    /// Returns the parameters that the VPC API requires in every query.
    pub fn vpc_query() -> Vec<(&'static str, &'static str)> {
        vec![("version", API_VERSION), ("generation", GENERATION)]
    }

    /// Sends `call` until it succeeds, can't be sent again after an error, or the budget is spent.
    pub async fn send(&self, call: &ApiRequest) -> Result<ApiResponse, VpcError> {
        let url = self.url(call)?;
        let started = self.clock.instant();
        let mut next = 1;
        let mut renewed = false;
        loop {
            let err = match self.attempt(call, &url).await {
                Ok(response) => return Ok(response),
                // Once, with another token: the API may have revoked this one early.
                Err(err) if is_unauthorized(&err) && !renewed => {
                    renewed = true;
                    continue;
                }
                Err(err) => err,
            };
            // A token source has made its own attempts.
            let source_retried = matches!(err, VpcError::Identity { .. });
            let unknown_host = next >= UNKNOWN_HOST_ATTEMPTS
                && matches!(&err, VpcError::Unreachable { request, .. } | VpcError::Proxy { request, .. } if !self.known_hosts.contains(&request.host));
            // The caller first looks at the busy resource (`client/conflict`).
            let busy = matches!(&err, VpcError::Refused { refusal, .. } if refusal.is_conflict());
            let may_retry = !source_retried
                && !unknown_host
                && !busy
                && err.class().is_retryable()
                && (call.repeat == Repeat::Freely || !err.is_ambiguous());
            next += 1;
            let wait = self.policy.backoff.wait_before(next).filter(|_| may_retry).map(|wait| match &err {
                VpcError::Refused { refusal, .. } => wait.max(refusal.retry_after.unwrap_or_default()),
                _ => wait,
            });
            match wait {
                Some(wait) if self.clock.instant().duration_since(started) + wait < self.policy.budget => {
                    tracing::warn!(
                        attempt = next,
                        wait_ms = wait.as_millis(),
                        "asking the cloud again: {}",
                        chain(&err)
                    );
                    self.pause(&format!("{} {}", call.method, url.path()), wait).await?;
                }
                _ => return Err(err),
            }
        }
    }

    /// Sleeps for `wait`, or fails as soon as this process is asked to stop.
    pub async fn pause(&self, subject: &str, wait: Duration) -> Result<(), VpcError> {
        tokio::select! {
            biased;
            _reason = self.cancel.cancelled() => Err(VpcError::Cancelled { subject: subject.to_owned() }),
            () = self.clock.sleep(wait) => Ok(()),
        }
    }

    fn url(&self, call: &ApiRequest) -> Result<Url, VpcError> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| VpcError::Setup(format!("the endpoint {} has no paths", self.base)))?
            .pop_if_empty()
            .extend(&call.path);
        url.query_pairs_mut().extend_pairs(&self.fixed_query).extend_pairs(&call.query);
        Ok(url)
    }

    async fn attempt(&self, call: &ApiRequest, url: &Url) -> Result<ApiResponse, VpcError> {
        let host = url.origin().ascii_serialization();
        let request =
            Request { method: call.method.clone(), host, path: url.path().to_owned(), id: request_id() };
        if self.cancel.is_cancelled() {
            return Err(VpcError::Cancelled { subject: request.to_string() });
        }
        // The token does not count against the deadline: a slow token source is not a silent API, and nothing
        // was sent yet.
        let token = tokio::select! {
            biased;
            _reason = self.cancel.cancelled() => return Err(VpcError::Cancelled { subject: request.to_string() }),
            token = self.tokens.token() => token,
        };
        let token = token
            .map_err(|source| VpcError::Identity { request: request.clone(), source: Box::new(source) })?;
        let deadline = self.policy.deadline;
        let exchange = tokio::time::timeout(deadline, self.exchange(call, url, &request, &token));
        let response = if call.repeat == Repeat::Freely {
            tokio::select! {
                biased;
                _reason = self.cancel.cancelled() => return Err(VpcError::Cancelled { subject: request.to_string() }),
                response = exchange => response,
            }
        } else {
            // Not cancelled: the caller needs the response to know what to clean up.
            exchange.await
        };
        response.unwrap_or(Err(VpcError::TimedOut { request, deadline }))
    }

    async fn exchange(
        &self,
        call: &ApiRequest,
        url: &Url,
        request: &Request,
        token: &Token,
    ) -> Result<ApiResponse, VpcError> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.bearer.reveal()))
            .map_err(|_| VpcError::Setup("the token can't stand in a header".to_owned()))?;
        bearer.set_sensitive(true);
        let mut builder = self.http.request(call.method.clone(), url.clone());
        builder = builder
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json")
            .header(REQUEST_ID, &request.id);
        if let Some(etag) = &call.if_match {
            builder = builder.header(IF_MATCH, etag);
        }
        if let Some(body) = &call.body {
            let content_type = if call.method == Method::PATCH {
                "application/merge-patch+json"
            } else {
                "application/json"
            };
            builder = builder.header(CONTENT_TYPE, content_type).body(body.clone());
        }
        if call.method != Method::GET {
            self.fence
                .pass_uncached()
                .await
                .map_err(|source| VpcError::Fenced { request: request.clone(), source })?;
        }
        tracing::debug!(request = %request, request_id = %request.id, "asking the cloud");
        let change = (call.method != Method::GET).then(|| SentChange::new(request, Some(request.id.clone())));
        let response = match builder.send().await {
            Ok(response) => response,
            Err(err) => {
                let err = self.send_error(request, url, err).await;
                if let Some(change) = change.filter(|_| !err.is_ambiguous()) {
                    change.not_made();
                }
                return Err(err);
            }
        };
        if let Some(source) = self.route.fault_of_status(response.status().as_u16()) {
            if let Some(change) = change {
                change.not_made();
            }
            return Err(VpcError::Proxy { request: request.clone(), source });
        }
        self.known_hosts.insert(&request.host);
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_body(response, MAX_API_BODY).await.map_err(|err| match err {
            BodyError::Transport(err) => transport_error(request, &self.route, err),
            err @ BodyError::TooLong { .. } => {
                VpcError::Malformed { request: request.clone(), reason: err.to_string() }
            }
        })?;
        tracing::debug!(request = %request, request_id = %request.id, status = status.as_u16(), "answered");
        self.watch.answered(call.method.as_str(), &call.resource(), status.as_u16());
        if let Some(change) = change {
            match status {
                _ if status.is_success() => change.done(Some(status.as_u16()), None),
                _ if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => change.not_made(),
                // The API may have failed after it had made the change: the line has an unknown outcome.
                _ => drop(change),
            }
        }
        if status.is_success() {
            let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
            let date = headers.get(DATE).and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
            return Ok(ApiResponse {
                request: request.clone(),
                etag,
                date: date.map(|date| date.timestamp().into()),
                body,
            });
        }
        if status == StatusCode::UNAUTHORIZED {
            self.tokens.refused(token);
        }
        Err(VpcError::Refused { request: request.clone(), refusal: self.refusal(status, &headers, &body) })
    }

    /// Returns the error of a request that got no response. A proxy that gives no connection is found by
    /// asking it, because the HTTP library doesn't report its answer.
    async fn send_error(&self, request: &Request, url: &Url, err: reqwest::Error) -> VpcError {
        let fault = if err.is_connect() { self.route.fault(url).await } else { None };
        match fault {
            Some(source) => VpcError::Proxy { request: request.clone(), source },
            None => transport_error(request, &self.route, err),
        }
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Refusal {
        let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Refusal::read(status.as_u16(), body, value.and_then(|value| retry_after(value, self.clock.now())))
    }
}

/// Returns true if the API refused the token, before it did any work.
fn is_unauthorized(err: &VpcError) -> bool {
    matches!(err, VpcError::Refused { refusal, .. } if refusal.status == 401)
}

/// Returns a unique identifier for a request.
fn request_id() -> String {
    format!("snapferry-{:032x}", rand::random::<u128>())
}

/// Classifies a transport error: before the connection is made, the API can't have carried out the request;
/// after that, the outcome is unknown.
fn transport_error(request: &Request, route: &Route, err: reqwest::Error) -> VpcError {
    let (request, before) = (request.clone(), err.is_connect() || err.is_builder());
    let reason = route.explain(chain(&err.without_url()));
    if before { VpcError::Unreachable { request, reason } } else { VpcError::Lost { request, reason } }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
    Some(SystemTime::from(until).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:40 GMT", now), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:30 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }
}
