//! Conversion of the SDK's errors to those of the store interface: by status and error code, never by the
//! text of the message.

use std::error::Error;
use std::io;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use snapferry_base::limits;
use snapferry_base::proxy::Route;
use snapferry_base::secret::Secret;
use snapferry_base::units::ByteCount;
use snapferry_engine::store::{Operation, StoreError, is_digest_code};

use super::bounded_client::is_too_long;
use crate::bounded_client::LARGEST_RESPONSE;

/// Largest number of characters of a store's message that are shown.
const LONGEST_MESSAGE: usize = 300;

/// Data about the client that the error messages contain.
#[derive(Debug)]
pub(super) struct ErrorContext {
    pub(super) endpoint: String,
    pub(super) region: String,
    pub(super) bucket: String,
    /// Way to the store.
    pub(super) route: Route,
    /// Secrets to remove from messages, because some stores repeat what they were sent.
    pub(super) secrets: Vec<Secret>,
}

/// Subject of a request, which decides how a refusal is understood.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// An object or the bucket.
    Object,
    /// The upload with this identifier.
    Upload(&'a str),
    /// The upload with this identifier, and an object to copy from.
    Copy(&'a str),
}

impl<'a> From<Option<&'a str>> for Subject<'a> {
    fn from(upload_id: Option<&'a str>) -> Self {
        upload_id.map_or(Self::Object, Self::Upload)
    }
}

impl Subject<'_> {
    fn upload_id(self) -> String {
        match self {
            Self::Object => String::new(),
            Self::Upload(id) | Self::Copy(id) => id.to_owned(),
        }
    }
}

/// True if a store refuses a copy, and not the identity, the time of the request or the object itself: parts
/// that are sent may be taken all the same.
fn is_refused_copy(status: u16, code: &str) -> bool {
    match status {
        405 | 501 => true,
        // Without a code, or with one of these, the right to copy may be missing alone.
        403 => matches!(code, "AccessDenied" | "AllAccessDisabled" | "Forbidden" | "NotAuthorized"),
        400 | 416 => !matches!(
            code,
            "RequestTimeout"
                | "NoSuchKey"
                | "ExpiredToken"
                | "InvalidAccessKeyId"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
        ),
        // An error in a response of 200 has its code alone.
        _ => matches!(
            code,
            "NotImplemented" | "MethodNotAllowed" | "AccessDenied" | "InvalidArgument" | "InvalidRequest"
        ),
    }
}

impl ErrorContext {
    /// Converts the SDK's error of `operation`.
    pub(super) fn convert<E>(
        &self,
        operation: Operation,
        subject: Subject<'_>,
        err: SdkError<E, HttpResponse>,
    ) -> StoreError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match &err {
            // The status is a success, but the body is neither the expected response nor an S3 error.
            SdkError::ServiceError(response)
                if response.raw().status().is_success() && response.err().code().is_none() =>
            {
                StoreError::Connection {
                    operation,
                    endpoint: self.endpoint.clone(),
                    reason: format!("the answer can't be read: {}", causes(&err)),
                }
            }
            SdkError::ServiceError(response) => {
                let (code, message) = (response.err().code(), response.err().message());
                self.refusal(operation, subject, response.raw(), code, message)
            }
            // The response isn't from S3: a proxy's error page, or an incomplete document.
            SdkError::ResponseError(response) if !response.raw().status().is_success() => {
                self.refusal(operation, subject, response.raw(), None, None)
            }
            _ if is_too_long(&err) => StoreError::Mismatch {
                operation,
                reason: format!(
                    "{}: the answer is longer than {}",
                    self.endpoint,
                    ByteCount(LARGEST_RESPONSE)
                ),
            },
            SdkError::ResponseError(_) => StoreError::Connection {
                operation,
                endpoint: self.endpoint.clone(),
                reason: format!("the answer can't be read: {}", causes(&err)),
            },
            SdkError::DispatchFailure(failure) if !failure.is_user() => {
                match (tls_error(&err), limits::explaining_limit_in_chain(&err)) {
                    (Some(tls), _) if is_trust_failure(tls) => {
                        StoreError::Untrusted { operation, reason: tls.to_string() }
                    }
                    // Another attempt would fail because of the same limit on this process.
                    (_, Some(limit)) => {
                        StoreError::Setup(format!("{operation}: no connection to {}: {limit}", self.endpoint))
                    }
                    _ => StoreError::Connection {
                        operation,
                        endpoint: self.endpoint.clone(),
                        reason: self.route.explain(causes(&err)),
                    },
                }
            }
            SdkError::TimeoutError(_) => {
                let reason = self.route.explain(causes(&err));
                StoreError::Connection { operation, endpoint: self.endpoint.clone(), reason }
            }
            _ => StoreError::Setup(format!(
                "{operation}: the request can't be made: {}",
                self.clean(&causes(&err))
            )),
        }
    }

    fn refusal(
        &self,
        operation: Operation,
        subject: Subject<'_>,
        raw: &HttpResponse,
        code: Option<&str>,
        message: Option<&str>,
    ) -> StoreError {
        let status = raw.status().as_u16();
        if let Some(source) = self.route.fault_of_status(status) {
            return StoreError::Proxy { operation, source };
        }
        // Only S3 has error codes: any other answer may be that of a proxy on the way.
        let no_message = || match self.route.proxy().filter(|_| code.is_none()) {
            Some(proxy) => format!("no reason given; it may be the answer of the proxy {proxy}"),
            None => "no reason given".to_owned(),
        };
        let message = message.map_or_else(no_message, |message| self.clean(message));
        // A response to HEAD has no body, so its only code is the status.
        let code = code
            .filter(|code| !code.is_empty())
            .map_or_else(|| default_code(status).to_owned(), |code| self.clean(code));
        if is_digest_code(&code) {
            return StoreError::Damaged {
                operation,
                reason: format!("the store answered {status} {code}: {message}"),
            };
        }
        match (status, code.as_str()) {
            (_, "NoSuchBucket") => {
                StoreError::NoSuchBucket { bucket: self.bucket.clone(), endpoint: self.endpoint.clone() }
            }
            (_, "NoSuchUpload") => StoreError::NoSuchUpload { operation, id: subject.upload_id() },
            // The upload is gone. Not every store has the code for that.
            (404, _) if matches!(subject, Subject::Upload(_)) => {
                StoreError::NoSuchUpload { operation, id: subject.upload_id() }
            }
            // The source is gone, or the upload: only a code shows which.
            (404, code) if matches!(subject, Subject::Copy(_)) && code != "NoSuchKey" => {
                StoreError::Refused { operation, status, code: code.to_owned(), message, retry_after: None }
            }
            _ if matches!(subject, Subject::Copy(_)) && is_refused_copy(status, &code) => {
                StoreError::CopyRefused { operation, status, code, message }
            }
            (_, "NoSuchKey" | "NotFound") => StoreError::NoSuchKey { operation },
            (301 | 307, _)
            | (
                _,
                "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException",
            ) => {
                let body = raw.body().bytes().unwrap_or_default();
                let region =
                    raw.headers().get("x-amz-bucket-region").map(str::to_owned).or_else(|| region_in(body));
                let reason = format!("the bucket is not in region {:?}: {message}", self.region);
                StoreError::WrongRegion {
                    operation,
                    reason,
                    expected: region.map(|region| self.clean(&region)),
                }
            }
            (412, _) => StoreError::Precondition { operation, reason: format!("{code}: {message}") },
            (401 | 403, _)
            | (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "InvalidAccessKeyId") => {
                StoreError::Denied { operation, code, message }
            }
            (405 | 501, _) | (_, "NotImplemented" | "MethodNotAllowed") => {
                StoreError::Unsupported { operation, reason: format!("{status} {code}: {message}") }
            }
            _ => StoreError::Refused { operation, status, code, message, retry_after: retry_after(raw) },
        }
    }

    /// Converts a message to one line of limited length, without secrets.
    fn clean(&self, text: &str) -> String {
        let mut line = one_line(text);
        for secret in self.secrets.iter().filter(|secret| !secret.is_empty()) {
            line = line.replace(secret.reveal(), "***");
        }
        line.chars().take(LONGEST_MESSAGE).collect()
    }
}

/// Returns the wait in a `Retry-After` header in seconds. The other form, a date, is ignored: it would depend
/// on two clocks, and no store sends it.
fn retry_after(raw: &HttpResponse) -> Option<Duration> {
    raw.headers().get("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs)
}

/// Joins all words with single spaces. Line ends and control characters, which a terminal would interpret,
/// are removed.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the usual error code for a status, for a response without a code.
fn default_code(status: u16) -> &'static str {
    match status {
        301 => "PermanentRedirect",
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "AccessDenied",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        412 => "PreconditionFailed",
        416 => "InvalidRange",
        429 => "TooManyRequests",
        500 => "InternalError",
        501 => "NotImplemented",
        503 => "ServiceUnavailable",
        _ => "no code",
    }
}

/// Returns the region in an S3 error document, which the SDK doesn't parse. The region is only a hint for the
/// user, so a text search is enough: it takes the content of the first pair of tags if it can be a region's
/// name.
#[must_use]
pub fn region_in(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Region>")?;
    let (region, _) = rest.split_once("</Region>")?;
    let region = region.trim();
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ((1..=64).contains(&region.len()) && region.chars().all(is_name_char)).then(|| region.to_owned())
}

/// Returns the messages of an error's causes, without those that repeat another one.
fn causes(err: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut cause = err.source();
    while let Some(err) = cause {
        let text = err.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        cause = err.source();
    }
    if parts.is_empty() { err.to_string() } else { parts.join(": ") }
}

/// Finds the TLS library's error among the causes of an error. It is inside an I/O error, whose `source()`
/// skips it.
fn tls_error<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause: Option<&'a (dyn Error + 'static)> = Some(err);
    while let Some(err) = cause {
        if let Some(tls) = err.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        cause = match err.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => err.source(),
        };
    }
    None
}

/// True if the server's certificate isn't valid for it, or if both sides share no TLS version or cipher.
/// Another attempt would fail in the same way.
fn is_trust_failure(err: &rustls::Error) -> bool {
    matches!(
        err,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::UnsupportedNameType
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_found_in_an_error_document_and_nowhere_else() {
        let document = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>us-south</Region></Error>";
        assert_eq!(region_in(document).as_deref(), Some("us-south"));
        for hostile in [
            &b""[..],
            b"<Region>",
            b"</Region><Region>",
            b"<Region></Region>",
            b"<Region>a b\x1b[2J</Region>",
            b"\xff",
        ] {
            assert_eq!(region_in(hostile), None);
        }
    }

    #[test]
    fn what_a_store_says_is_cut_to_a_line_without_our_secrets() {
        let context = ErrorContext {
            endpoint: "https://s3.example".to_owned(),
            region: "us-south".to_owned(),
            bucket: "images".to_owned(),
            route: Route::default(),
            secrets: vec![Secret::new("hunter2"), Secret::new("")],
        };
        assert_eq!(context.clean("token\n\n hunter2  is bad"), "token *** is bad");
        assert_eq!(context.clean("gone\u{1b}[2J\u{9b}31m\u{7}"), "gone [2J 31m");
        assert_eq!(context.clean(&"x".repeat(1000)).len(), LONGEST_MESSAGE);
    }

    #[test]
    fn an_uploads_id_is_shown_without_what_a_terminal_obeys() {
        let operation = Operation { request: "UploadPart", target: "s3://images/disk.qcow2".to_owned() };
        let error = StoreError::NoSuchUpload { operation, id: "a\u{1b}[2Jb".to_owned() };
        assert_eq!(error.to_string(), "UploadPart s3://images/disk.qcow2: no such upload a\\u{1b}[2Jb");
    }
}
