//! Requests in the form that operations take, and their responses.

use hyper::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use s3s::Body;
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;

/// Longest body that is read, in bytes.
pub(super) const LONGEST_BODY: usize = 1 << 20;
/// Longest name. IBM's models allow `^([a-z]|[a-z][-a-z0-9]*[a-z0-9])$`, up to 63 characters.
const LONGEST_NAME: usize = 63;

/// Parsed request to an operation.
pub(super) struct ApiRequest {
    pub region: String,
    /// Values for the `{}` of the route, in order.
    pub ids: Vec<String>,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Value,
    /// URL of the API up to the region, without `/v1`.
    pub base: String,
    pub now: Timestamp,
}

impl ApiRequest {
    /// Returns the `n`th id of the path, counted from 0; empty if there are fewer.
    pub fn id(&self, n: usize) -> &str {
        self.ids.get(n).map_or("", String::as_str)
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Returns a text of the body, by its JSON pointer.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.body.pointer(pointer).and_then(Value::as_str)
    }

    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.body.pointer(pointer).and_then(Value::as_u64)
    }

    pub fn required(&self, pointer: &str) -> Result<&str, ApiError> {
        self.text(pointer).ok_or_else(|| {
            let field = pointer.trim_start_matches('/').replace('/', ".");
            ApiError::field(400, "missing_field", &field, "The field is required.")
        })
    }

    /// Returns the name in the body, if it is valid by IBM's rules.
    pub fn name(&self) -> Result<String, ApiError> {
        checked_name(self.required("/name")?)
    }

    /// Returns the tags of the body as they are stored: in lower case, sorted, without duplicates.
    pub fn tags(&self) -> Result<Vec<String>, ApiError> {
        let Some(tags) = self.body.get("user_tags") else { return Ok(Vec::new()) };
        let wrong = || {
            ApiError::field(
                400,
                "bad_field",
                "user_tags",
                "Tags are up to 128 letters, digits, blanks and :_.-",
            )
        };
        let tags = tags.as_array().ok_or_else(wrong)?;
        let mut stored = Vec::new();
        for tag in tags {
            let tag = tag.as_str().filter(|tag| !tag.is_empty() && tag.len() <= 128).ok_or_else(wrong)?;
            if !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b":_.- ".contains(&b)) {
                return Err(wrong());
            }
            stored.push(tag.to_ascii_lowercase());
        }
        stored.sort();
        stored.dedup();
        Ok(stored)
    }

    /// Returns a URL of this region's API.
    pub fn href(&self, path: &str) -> String {
        href(&self.base, path)
    }

    /// Checks the If-Match header against the ETag. A PATCH with an array replaces the whole array, so it
    /// must name the version that the client has seen (IBM's API: "If-Match required if the request body
    /// includes an array").
    pub fn check_if_match(&self, etag: &str) -> Result<(), ApiError> {
        let seen = self.headers.get("if-match").and_then(|seen| seen.to_str().ok());
        let has_array = self.body.as_object().is_some_and(|body| body.values().any(Value::is_array));
        match seen {
            None if has_array => Err(ApiError::header(
                400,
                "missing_header",
                "If-Match",
                "If-Match is required with an array.",
            )),
            Some(seen) if seen != etag => Err(ApiError::header(
                412,
                "precondition_failed",
                "If-Match",
                "The resource was changed meanwhile.",
            )),
            _ => Ok(()),
        }
    }
}

pub(super) fn href(base: &str, path: &str) -> String {
    format!("{base}/v1/{path}")
}

pub(super) fn checked_name(name: &str) -> Result<String, ApiError> {
    let bytes = name.as_bytes();
    let fits = !bytes.is_empty()
        && bytes.len() <= LONGEST_NAME
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-');
    if fits {
        return Ok(name.to_owned());
    }
    Err(ApiError::field(400, "validation_invalid_name", "name", &format!("The name {name:?} is not valid.")))
}

/// Returns the names and values of a query, decoded.
pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// Response of an operation that succeeded.
#[derive(Debug)]
pub(super) struct ApiResponse {
    pub status: u16,
    pub body: Option<Value>,
    pub etag: Option<String>,
    /// Id of the resource that was created or changed, for the history and the fault script.
    pub resource_id: Option<String>,
}

impl ApiResponse {
    pub fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body), etag: None, resource_id: None }
    }

    pub fn created(body: Value, resource_id: &str) -> Self {
        Self { status: 201, body: Some(body), etag: None, resource_id: Some(resource_id.to_owned()) }
    }

    pub fn empty(status: u16, resource_id: &str) -> Self {
        Self { status, body: None, etag: None, resource_id: Some(resource_id.to_owned()) }
    }

    pub fn resource_id(self, id: &str) -> Self {
        Self { resource_id: Some(id.to_owned()), ..self }
    }

    pub fn etag(self, etag: String) -> Self {
        Self { etag: Some(etag), ..self }
    }

    /// Returns the same response without a field of its body.
    pub fn without(mut self, name: &str) -> Self {
        if let Some(body) = self.body.as_mut().and_then(Value::as_object_mut) {
            body.remove(name);
        }
        self
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response =
            Response::new(self.body.map_or_else(Body::empty, |body| Body::from(body.to_string())));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(Ok(etag)) = self.etag.map(|etag| HeaderValue::from_str(&etag)) {
            response.headers_mut().insert(ETAG, etag);
        }
        response
    }
}

/// Error response in IBM's form.
#[derive(Debug)]
pub(super) struct ApiError {
    pub status: u16,
    pub code: String,
    pub message: String,
    /// Field, parameter or header at fault: its name and its type.
    pub target: Option<(String, &'static str)>,
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: u16, code: &str, message: &str) -> Self {
        Self { status, code: code.to_owned(), message: message.to_owned(), target: None, retry_after: None }
    }

    pub fn field(status: u16, code: &str, field: &str, message: &str) -> Self {
        Self { target: Some((field.to_owned(), "field")), ..Self::new(status, code, message) }
    }

    pub fn parameter(status: u16, code: &str, parameter: &str, message: &str) -> Self {
        Self { target: Some((parameter.to_owned(), "parameter")), ..Self::new(status, code, message) }
    }

    pub fn header(status: u16, code: &str, header: &str, message: &str) -> Self {
        Self { target: Some((header.to_owned(), "header")), ..Self::new(status, code, message) }
    }

    /// Error for an unknown id. IBM names the code after the noun: `volume_id_not_found`,
    /// `snapshot_id_not_found`.
    pub fn not_found(noun: &str, id: &str) -> Self {
        let message =
            format!("{noun} {id:?} was not found. Check whether you are requesting the correct ID.");
        Self::parameter(404, &format!("{noun}_id_not_found"), "id", &message)
    }

    /// Error for a name that is taken. IBM does not publish the status and the code; these are from reports
    /// on its Terraform provider.
    pub fn name_taken(name: &str) -> Self {
        Self::field(400, "validation_unique_failed", "name", &format!("Provided Name ({name}) is not unique"))
    }

    /// Error for a correct request that the present state does not allow. IBM does not publish the status
    /// either; 409 is what its wording calls for.
    pub fn conflict(code: &str, message: &str) -> Self {
        Self::new(409, code, message)
    }

    pub fn into_response(self, trace: &str) -> Response<Body> {
        let mut error = json!({ "code": self.code, "message": self.message, "more_info": "https://cloud.ibm.com/apidocs/vpc" });
        if let Some((name, kind)) = &self.target {
            error["target"] = json!({ "name": name, "type": kind });
        }
        let body = json!({ "errors": [error], "trace": trace });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
