//! Steps between the socket and the operations: tokens, the API's version, the history, the fault script.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use rand::RngExt as _;
use s3s::Body;
use serde_json::Value;

use super::super::timestamp::Timestamp;
use super::config::{RegionConfig, ServerSeed};
use super::devices::Devices;
use super::faults::{RegionAction, RegionFaults};
use super::history::{History, HistoryEntry};
use super::jobs::Job;
use super::request::{ApiError, ApiRequest, ApiResponse, LONGEST_BODY, pairs};
use super::route::RegionOperation;
use super::state::{Changes, CloudState};
use super::{catalog, metadata, tagging};
use crate::folder::Folder;
use crate::front::Dropped;
use crate::iam::Iam;
use crate::listener::Answers;

/// Time between two checks for steps that are due.
const TICK: Duration = Duration::from_millis(10);

/// State that all connections of the cloud share.
pub(super) struct Front {
    pub config: RegionConfig,
    pub iam: Arc<Iam>,
    pub faults: RegionFaults,
    pub store: Arc<Folder>,
    /// URL of the cloud.
    pub url: String,
    state: Mutex<State>,
}

/// Part of the state that requests and time change.
struct State {
    cloud: CloudState,
    history: History,
    request_counts: BTreeMap<RegionOperation, u64>,
    /// `User-Agent` of the last request for each operation.
    user_agents: BTreeMap<RegionOperation, String>,
    devices: Devices,
}

impl Front {
    pub fn new(
        config: RegionConfig,
        cloud: CloudState,
        iam: Arc<Iam>,
        store: Arc<Folder>,
        url: String,
    ) -> io::Result<Self> {
        let history = History::open(&config.folder.join("history.jsonl"))?;
        let devices = Devices::new(&config.folder);
        let state = Mutex::new(State {
            cloud,
            history,
            request_counts: BTreeMap::new(),
            user_agents: BTreeMap::new(),
            devices,
        });
        Ok(Self { config, iam, faults: RegionFaults::default(), store, url, state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn history(&self) -> Vec<HistoryEntry> {
        self.lock().history.entries().to_vec()
    }

    pub fn request_count(&self, operation: RegionOperation) -> u64 {
        self.lock().request_counts.get(&operation).copied().unwrap_or_default()
    }

    pub fn user_agent(&self, operation: RegionOperation) -> Option<String> {
        self.lock().user_agents.get(&operation).cloned()
    }

    /// Returns the id of a server of the first region.
    pub fn instance_id(&self, server: &str) -> Option<String> {
        let name = self.config.regions.first()?;
        let mut state = self.lock();
        let region = state.cloud.region(name)?;
        let found = region.instances.values().find(|instance| instance.life.name == server)?;
        Some(found.life.id.clone())
    }

    /// Calls `change` on the cloud's state and saves it. For changes that no request causes.
    pub fn with_cloud<T>(&self, change: impl FnOnce(&mut CloudState) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state.cloud);
        save(&state.cloud);
        changed
    }

    pub fn seed_server(&self, seed: &ServerSeed) -> io::Result<()> {
        super::instances::seed(self, seed)
    }

    /// Returns the file of a server's boot volume.
    pub fn boot_disk(&self, region: &str, server: &str) -> Option<PathBuf> {
        let mut state = self.lock();
        state.cloud.region(region)?.boot_disk(server, &self.config.folder)
    }

    pub fn seed_images(&self, region: &str, count: usize) {
        self.with_cloud(|cloud| {
            if let Some(region) = cloud.region(region) {
                region.seed_images(count);
            }
        });
    }

    /// Restarts the jobs that a stop has interrupted, and creates the links of attached volumes.
    pub fn resume(self: &Arc<Self>) {
        let jobs = self.with_cloud(Job::unfinished);
        for job in jobs {
            job.spawn(self);
        }
        let mut state = self.lock();
        let State { cloud, devices, .. } = &mut *state;
        devices.sync(cloud, &self.config);
    }

    pub fn release_devices(&self) {
        self.lock().devices.release();
    }

    /// Applies the steps that are due, again and again, until the task is aborted.
    pub async fn tick(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            self.advance();
        }
    }

    fn advance(&self) {
        let mut state = self.lock();
        let State { cloud, devices, .. } = &mut *state;
        let Changes { changed, files, .. } = cloud.advance(Timestamp::now());
        if changed {
            save(cloud);
        }
        devices.sync(cloud, &self.config);
        for file in files {
            if let Err(err) = std::fs::remove_file(&file) {
                tracing::debug!(%err, file = %file.display(), "a disk was gone already");
            }
        }
    }

    /// Performs an operation, and records a change in the history. The state is saved before the response is
    /// sent.
    fn perform(
        self: &Arc<Self>,
        operation: RegionOperation,
        request: &ApiRequest,
        action: Option<&RegionAction>,
    ) -> Result<ApiResponse, ApiError> {
        let (response, jobs) = {
            let mut state = self.lock();
            let mut jobs = Vec::new();
            let response = self.dispatch(operation, request, &mut state.cloud, &mut jobs);
            if let (Ok(response), Some(action)) = (&response, action) {
                apply_script(&mut state.cloud, response.resource_id.as_deref(), action, request.now);
            }
            if operation.is_change() {
                save(&state.cloud);
                let entry = HistoryEntry {
                    at: request.now.to_rfc3339(),
                    request_id: request
                        .headers
                        .get("x-request-id")
                        .and_then(|id| id.to_str().ok())
                        .unwrap_or_default()
                        .to_owned(),
                    region: request.region.clone(),
                    operation,
                    id: response.as_ref().ok().and_then(|response| response.resource_id.clone()),
                    name: request.text("/name").map(str::to_owned),
                    status: response
                        .as_ref()
                        .map_or_else(|refused| refused.status, |response| response.status),
                };
                if let Err(err) = state.history.add(entry) {
                    tracing::warn!(%err, "the history can't be written");
                }
            }
            (response, jobs)
        };
        for job in jobs {
            job.spawn(self);
        }
        response
    }

    fn dispatch(
        &self,
        operation: RegionOperation,
        request: &ApiRequest,
        cloud: &mut CloudState,
        jobs: &mut Vec<Job>,
    ) -> Result<ApiResponse, ApiError> {
        use RegionOperation as Op;
        match operation {
            Op::CreateIdentityToken | Op::CreateIdentityTokenOld => {
                metadata::identity_token(self, operation, request)
            }
            Op::CreateIamToken | Op::CreateIamTokenOld => metadata::iam_token(self, operation, request),
            Op::GetOwnInstance => metadata::own_instance(self, cloud, request),
            Op::ListOwnAttachments => metadata::own_attachments(self, cloud, request),
            Op::AttachTag | Op::DetachTag => tagging::change(cloud, operation, request),
            Op::ListTags => tagging::list(cloud, request),
            Op::ListRegions | Op::GetRegion => catalog::regions(&self.config, &self.url, operation, request),
            // The source of a copy is in another region.
            Op::CreateSnapshot if request.body.get("source_snapshot").is_some() => {
                super::snapshots::copy(cloud, &self.config, request, jobs)
            }
            _ => {
                let Some(region) = cloud.region(&request.region) else {
                    return Err(ApiError::new(404, "invalid_route", "There is no such region here."));
                };
                region.dispatch(operation, request, &self.config, jobs)
            }
        }
    }

    /// Checks that the request has a valid bearer token.
    fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        match token {
            Some(token) if self.iam.accepts(token) => Ok(()),
            Some(_) => Err(ApiError::header(
                401,
                "token_invalid",
                "Authorization",
                "The token is expired or not valid.",
            )),
            None => Err(ApiError::header(
                401,
                "token_invalid",
                "Authorization",
                "The request has no bearer token.",
            )),
        }
    }

    async fn respond(
        self: &Arc<Self>,
        found: Option<(RegionOperation, Vec<String>)>,
        parts: hyper::http::request::Parts,
        body: Vec<u8>,
        action: Option<&RegionAction>,
    ) -> Result<ApiResponse, ApiError> {
        let Some((operation, ids)) = found else {
            return Err(ApiError::new(404, "invalid_route", "The requested URL does not exist."));
        };
        let (region, _) = split(parts.uri.path());
        let query = pairs(parts.uri.query().unwrap_or_default());
        if operation.is_vpc()
            || matches!(
                operation,
                RegionOperation::AttachTag | RegionOperation::DetachTag | RegionOperation::ListTags
            )
        {
            self.admit(&parts.headers)?;
        }
        if operation.is_vpc() {
            check_version(&query)?;
        }
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if parts.method == Method::PATCH && !kind.starts_with("application/merge-patch+json") {
            return Err(ApiError::header(
                415,
                "invalid_content_type",
                "Content-Type",
                "A PATCH is application/merge-patch+json.",
            ));
        }
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).map_err(|err| {
                ApiError::new(400, "invalid_request", &format!("The body is no JSON: {err}"))
            })?
        };
        let base = format!("{}/{region}", self.url);
        let request = ApiRequest {
            region: region.to_owned(),
            ids,
            query,
            headers: parts.headers,
            body,
            base,
            now: Timestamp::now(),
        };
        self.advance();
        let front = Arc::clone(self);
        let action = action.cloned();
        // On a blocking thread, because the work is on disk and holds a lock.
        let done =
            tokio::task::spawn_blocking(move || front.perform(operation, &request, action.as_ref())).await;
        done.unwrap_or_else(|err| Err(ApiError::new(500, "internal_error", &err.to_string())))
    }

    fn count(&self, operation: RegionOperation, headers: &HeaderMap) {
        let mut state = self.lock();
        *state.request_counts.entry(operation).or_default() += 1;
        let user_agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
        state.user_agents.extend(user_agent.map(|user_agent| (operation, user_agent.to_owned())));
    }

    /// Handles requests of a test program: for the fault script, the history, and the tokens. Returns `None`
    /// for other paths.
    fn admin(&self, method: &Method, path: &str, body: &[u8]) -> Option<Response<Body>> {
        let text = match (method.as_str(), path) {
            ("GET", "/sim/faults") => self.faults.to_json(),
            ("PUT", "/sim/faults") => match self.faults.replace_json(body) {
                Ok(()) => self.faults.to_json(),
                Err(err) => {
                    return Some(ApiError::new(400, "invalid_request", &err.to_string()).into_response(""));
                }
            },
            ("DELETE", "/sim/faults") => {
                self.faults.clear();
                self.faults.to_json()
            }
            ("POST", "/sim/expire-tokens") => {
                self.iam.expire_all();
                "{}".to_owned()
            }
            ("GET", "/sim/history") => {
                serde_json::to_string(self.lock().history.entries()).unwrap_or_default()
            }
            _ => return None,
        };
        let mut response = Response::new(Body::from(text));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Some(response)
    }
}

impl Answers for Front {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        reset: &AtomicBool,
    ) -> Result<Response<Body>, Dropped> {
        let trace = format!("{:032x}", rand::rng().random::<u128>());
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, LONGEST_BODY).collect().await {
            Ok(body) => body.to_bytes().to_vec(),
            Err(err) => {
                return Ok(ApiError::new(400, "invalid_request", &err.to_string()).into_response(&trace));
            }
        };
        if let Some(response) = self.admin(&parts.method, parts.uri.path(), &body) {
            return Ok(response);
        }
        let (region, rest) = split(parts.uri.path());
        let found = RegionOperation::find(&parts.method, rest, !region.is_empty());
        let mut action = None;
        if let Some((operation, _)) = &found {
            self.count(*operation, &parts.headers);
            action = self.faults.pick(*operation, region);
        }
        match &action {
            Some(RegionAction::Answer { status, code, retry_after_s }) => {
                return Ok(scripted(*status, code.as_deref(), *retry_after_s, &trace));
            }
            Some(RegionAction::Delay { milliseconds }) => {
                tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
            }
            Some(RegionAction::Hang) => return std::future::pending().await,
            Some(RegionAction::Drop) => return Err(Dropped),
            Some(RegionAction::Reset) => {
                reset.store(true, Ordering::Relaxed);
                return Err(Dropped);
            }
            _ => {}
        }
        let id = parts.headers.get("x-request-id").cloned();
        let mut response = if matches!(found, Some((RegionOperation::IdentityToken, _))) {
            self.iam.answer(&body)
        } else {
            match self.respond(found, parts, body, action.as_ref()).await {
                Ok(response) if action == Some(RegionAction::EndEarly) => {
                    response.without("next").into_response()
                }
                Ok(response) => response.into_response(),
                Err(refused) => refused.into_response(&trace),
            }
        };
        match action {
            Some(RegionAction::ApplyThenDrop) => return Err(Dropped),
            Some(RegionAction::ApplyThenHang) => return std::future::pending().await,
            Some(RegionAction::ApplyThenAnswer { status, code }) => {
                return Ok(scripted(status, Some(&code), None, &trace));
            }
            Some(RegionAction::ThenSilence) => self.faults.fall_silent(),
            Some(RegionAction::Garble) => {
                *response.body_mut() = Body::from("<html>not what you think</html>".to_owned());
            }
            _ => {}
        }
        if let Some(id) = id {
            response.headers_mut().insert("x-request-id", id);
        }
        Ok(response)
    }
}

/// Splits a path into the region before `/v1/` and the rest; the region is empty for paths that have none.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_start_matches('/');
    match path.split_once("/v1/") {
        Some((region, rest))
            if !region.contains('/') && !matches!(region, "identity" | "instance_identity" | "metadata") =>
        {
            (region, rest)
        }
        _ => ("", path),
    }
}

/// Applies the fault script to the lifecycle of the resource that a request has created or changed.
fn apply_script(cloud: &mut CloudState, resource_id: Option<&str>, action: &RegionAction, now: Timestamp) {
    let Some(life) = resource_id.and_then(|id| cloud.life(id)) else { return };
    match action {
        RegionAction::StuckPending => life.stuck = true,
        RegionAction::FailLater { code } => life.doomed = Some(code.clone()),
        RegionAction::ListLag { milliseconds } => {
            life.listed_from = now.after(Duration::from_millis(*milliseconds));
        }
        _ => {}
    }
}

fn scripted(status: u16, code: Option<&str>, retry_after_s: Option<u32>, trace: &str) -> Response<Body> {
    let Some(code) = code else {
        let mut response = Response::new(Body::from(format!("<html><body><h1>{status}</h1></body></html>")));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        return response;
    };
    ApiError { retry_after: retry_after_s, ..ApiError::new(status, code, "scripted fault") }
        .into_response(trace)
}

fn check_version(query: &[(String, String)]) -> Result<(), ApiError> {
    let value =
        |expected: &str| query.iter().find(|(name, _)| name == expected).map(|(_, value)| value.as_str());
    match value("version") {
        Some(version) if version.parse::<jiff::civil::Date>().is_ok() => {}
        _ => {
            return Err(ApiError::parameter(
                400,
                "bad_field",
                "version",
                "The version is a date, as in 2026-03-24.",
            ));
        }
    }
    match value("generation") {
        Some("2") => Ok(()),
        _ => Err(ApiError::parameter(400, "bad_field", "generation", "The generation is 2.")),
    }
}

fn save(cloud: &CloudState) {
    if let Err(err) = cloud.save() {
        tracing::error!(%err, "the simulated cloud's state can't be written");
    }
}
