//! Steps between the socket and S3: the request log, the fault script, IAM, and bearer tokens, which s3s does
//! not know.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, EXPECT, HeaderMap, HeaderValue, RETRY_AFTER,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::S3Service;
use s3s::{Body, S3Error, S3Result, s3_error};
use snapferry_base::secret::Secret;
use snapferry_base::units::{to_u64, to_usize};
use tokio::time::Sleep;

use super::dto::{Quirks, SourceCondition, SourceRange};
use super::faults::{Action, Faults};
use super::iam::{Iam, LONGEST_FORM};
use super::listener::Answers;
use super::receive::Wire;
use super::requests::{Operation, Target};
use super::server::UnsignedPayload;
use super::stats::Ledger;
use super::terms::{self, Names, RequiredHeader};

/// Bytes of a body that are read after its response is known. A client that is cut off while it sends sees a
/// broken connection, not the response.
const LONGEST_DRAIN: u64 = 256 << 20;
/// Bytes that [`Action::StopReading`] reads.
const PARTIAL_READ: u64 = 64 << 10;

/// Error that closes the connection, because the fault script demands it.
#[derive(Debug)]
pub(super) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fault script closes the connection")
    }
}

impl std::error::Error for Dropped {}

/// Mark in a request's extensions: the request had a valid bearer token.
#[derive(Clone, Copy)]
struct Vouched;

/// The store's only pair of keys.
pub(super) struct Keys {
    pub(super) access_key: String,
    pub(super) secret_key: Secret,
}

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            return Ok(SecretKey::from(self.secret_key.reveal()));
        }
        Err(s3_error!(
            InvalidAccessKeyId,
            "The AWS Access Key Id you provided does not exist in our records."
        ))
    }
}

/// Access check: allows requests with a bearer token, and those signed for the right region.
pub(super) struct Gate {
    pub(super) region: String,
}

#[async_trait]
impl S3Access for Gate {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.extensions_mut().get::<Vouched>().is_some() {
            return Ok(());
        }
        if cx.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        let Some(region) = signed_region(cx.headers(), cx.uri().query()) else {
            return Err(s3_error!(
                InvalidRequest,
                "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
            ));
        };
        if region != self.region {
            return Err(s3_error!(
                AuthorizationHeaderMalformed,
                "The authorization header is malformed; the region '{region}' is wrong; expecting '{}'",
                self.region
            ));
        }
        Ok(())
    }
}

/// Returns the region in `Credential=KEY/date/region/s3/aws4_request`, from the header or a presigned URL.
fn signed_region(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let credential = match header {
        Some(header) => header.split_once("Credential=")?.1.to_owned(),
        None => query?.split_once("X-Amz-Credential=")?.1.replace("%2F", "/").replace("%2f", "/"),
    };
    let credential = credential.split([',', '&', ' ']).next()?;
    // Counted from the end, because an access key may contain slashes.
    credential.rsplit('/').nth(2).map(str::to_owned)
}

/// Treatment of a response before it is sent.
enum Ending {
    AsItIs,
    Drop,
    Never,
    Instead(Response<Body>),
    /// Replace the body with this function's result, and remove the ETag.
    Altered(fn(&str) -> String),
    /// Cut the body to this number of bytes.
    Cut(u64),
    /// Remove the length of the body.
    NoLength,
}

/// State that all connections of the store share.
pub(super) struct Front {
    pub(super) s3: S3Service,
    pub(super) iam: Arc<Iam>,
    pub(super) faults: Faults,
    pub(super) ledger: Ledger,
    pub(super) encrypted: bool,
    pub(super) unsigned_payload: UnsignedPayload,
    pub(super) names: Names,
    pub(super) prefix: String,
    pub(super) required_headers: Vec<RequiredHeader>,
}

impl Answers for Front {
    async fn answer(
        self: Arc<Self>,
        req: Request<Incoming>,
        reset: &AtomicBool,
    ) -> Result<Response<Body>, Dropped> {
        let mut req = req;
        // The log has the path as the client sent it.
        let sent = req.uri().path_and_query().map_or_else(String::new, ToString::to_string);
        if let Some(inner) = terms::without_prefix(req.uri(), &self.prefix) {
            *req.uri_mut() = inner;
        }
        let host_bucket = self.names.bucket_of(req.headers());
        let target = Target::of(req.method(), req.uri(), req.headers(), host_bucket);
        let visit = self.ledger.begin(&target, req.method(), &sent, req.headers());
        // The length in a response to HEAD is that of a body that is not sent.
        let is_head = req.method() == Method::HEAD;
        let (parts, body) = req.into_parts();
        let mut parts = parts;
        parts.extensions.insert(visit.copied());
        let inflow = Inflow::new(body, visit.received());
        let action = self.faults.pick(&target);
        let mut response = self.act(action, &target, parts, inflow, reset).await?;
        if let Ok(id) = HeaderValue::from_str(visit.id()) {
            response.headers_mut().insert("x-amz-request-id", id);
        }
        let announced =
            response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let sent = announced.or_else(|| HttpBody::size_hint(response.body()).exact()).filter(|_| !is_head);
        visit.answered(response.status(), sent.unwrap_or_default());
        Ok(response)
    }
}

impl Front {
    async fn act(
        &self,
        action: Option<Action>,
        target: &Target,
        parts: Parts,
        mut inflow: Inflow,
        reset: &AtomicBool,
    ) -> Result<Response<Body>, Dropped> {
        let mut quirks = Quirks::default();
        let mut ending = Ending::AsItIs;
        match action {
            None => {}
            Some(Action::Answer { status, code, retry_after_s }) => {
                inflow.drain(LONGEST_DRAIN).await;
                return Ok(scripted(status, code.as_deref(), retry_after_s));
            }
            Some(Action::ErrorInOk { code }) => {
                inflow.drain(LONGEST_DRAIN).await;
                return Ok(scripted(200, Some(&code), None));
            }
            Some(Action::Pretend) => {
                inflow.drain(LONGEST_DRAIN).await;
                return Ok(pretended());
            }
            Some(Action::RefuseChecksums) => {
                if sends_checksums(&parts) {
                    inflow.drain(LONGEST_DRAIN).await;
                    return Ok(refused(s3_error!(
                        NotImplemented,
                        "A header you provided implies functionality that is not implemented"
                    )));
                }
                quirks.ignore_checksums = true;
            }
            Some(Action::NoCopies) => {
                if matches!(target.operation, Operation::CopyObject | Operation::UploadPartCopy) {
                    inflow.drain(LONGEST_DRAIN).await;
                    return Ok(refused(s3_error!(NotImplemented, "Objects are not copied here.")));
                }
            }
            Some(Action::DropBeforeBody) => return Err(Dropped),
            Some(Action::DropAfterBody) => {
                inflow.drain(u64::MAX).await;
                return Err(Dropped);
            }
            Some(Action::Reset) => {
                reset.store(true, Ordering::Relaxed);
                return Err(Dropped);
            }
            Some(Action::Hang) => {
                inflow.drain(u64::MAX).await;
                return std::future::pending().await;
            }
            Some(Action::StopReading) => {
                // The body must stay in scope: if it were dropped, hyper would close the connection.
                inflow.drain(PARTIAL_READ).await;
                return std::future::pending().await;
            }
            Some(Action::Delay { milliseconds }) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            }
            Some(Action::Trickle { bytes_per_second }) => inflow.pace = Some(Pace::new(bytes_per_second)),
            Some(Action::ApplyThenDrop) => ending = Ending::Drop,
            Some(Action::ApplyThenHang) => ending = Ending::Never,
            Some(Action::ApplyThenAnswer { status, code }) => {
                ending = Ending::Instead(scripted(status, Some(&code), None));
            }
            Some(Action::NoLength) => ending = Ending::NoLength,
            Some(Action::EmptyEtag) => ending = Ending::Altered(without_etag),
            Some(Action::LoseMarkers) => ending = Ending::Altered(without_markers),
            Some(Action::CutAnswer { bytes }) => ending = Ending::Cut(bytes),
            Some(Action::CorruptChecksum) => quirks.corrupt = true,
            Some(Action::IgnoreChecksums) => quirks.ignore_checksums = true,
            Some(Action::ClipRange) => quirks.range = SourceRange::Clipped,
            Some(Action::CopyShort { bytes }) => quirks.range = SourceRange::Short(bytes),
            Some(Action::IgnoreConditions) => quirks.condition = SourceCondition::Ignored,
            Some(Action::RefuseConditions) => quirks.condition = SourceCondition::Refused,
            Some(Action::EqualParts) => quirks.equal_parts = true,
        }
        let mut rest = inflow.rest();
        let expects_continue = parts.headers.contains_key(EXPECT);
        let response = self.serve(target, parts, inflow, quirks).await;
        // A client that waits for 100-continue and has sent nothing can't be cut off while it sends.
        if !expects_continue || rest.received.load(Ordering::Relaxed) > 0 {
            rest.drain(LONGEST_DRAIN).await;
        }
        match ending {
            Ending::AsItIs => Ok(response),
            Ending::Drop => Err(Dropped),
            Ending::Never => std::future::pending().await,
            Ending::Instead(response) => Ok(response),
            Ending::NoLength => Ok(without_length(response)),
            Ending::Altered(alter) => {
                Ok(altered(response, |body| alter(&String::from_utf8_lossy(&body)).into()).await)
            }
            Ending::Cut(bytes) => {
                Ok(altered(response, |body| body.slice(..body.len().min(to_usize(bytes)))).await)
            }
        }
    }

    /// Returns the response without faults, or with those that `quirks` demands.
    async fn serve(
        &self,
        target: &Target,
        mut parts: Parts,
        inflow: Inflow,
        quirks: Quirks,
    ) -> Response<Body> {
        if target.operation == Operation::IdentityToken {
            return match Limited::new(inflow, LONGEST_FORM).collect().await {
                Ok(form) => self.iam.answer(&form.to_bytes()),
                Err(err) => refused(S3Error::with_source(s3s::S3ErrorCode::IncompleteBody, err)),
            };
        }
        let terms = terms::check(&self.names, &self.required_headers, target, &parts);
        if let Err(err) = terms.and_then(|()| self.admit(&mut parts)) {
            return refused(err);
        }
        let expected =
            parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        parts.extensions.insert(quirks);
        parts.extensions.insert(Wire { received_bytes: Arc::clone(&inflow.received), expected });
        let request = Request::from_parts(parts, Body::http_body_unsync(inflow));
        self.s3.call(request).await.unwrap_or_else(|err| {
            let err: s3s::StdError = err.into();
            refused(S3Error::with_source(s3s::S3ErrorCode::InternalError, err))
        })
    }

    /// Checks a bearer token and removes it from the request; leaves signatures to s3s.
    fn admit(&self, parts: &mut Parts) -> S3Result<()> {
        let unsigned =
            parts.headers.get("x-amz-content-sha256").is_some_and(|hash| hash == "UNSIGNED-PAYLOAD");
        if unsigned && !self.encrypted && self.unsigned_payload == UnsignedPayload::RefuseOverHttp {
            return Err(s3_error!(AccessDenied, "Unsigned payloads are accepted over https only."));
        }
        let bearer =
            parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if let Some(token) = bearer {
            if !self.iam.accepts(token) {
                return Err(s3_error!(AccessDenied, "Access Denied"));
            }
            parts.headers.remove(AUTHORIZATION);
            parts.extensions.insert(Vouched);
        }
        Ok(())
    }
}

/// True if a request for a change has headers that came to S3 in 2022. Older stores always ignored the
/// `x-amz-checksum-mode` of a read.
fn sends_checksums(parts: &Parts) -> bool {
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    !reads && parts.headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-"))
}

fn refused(err: S3Error) -> Response<Body> {
    err.to_http_response().unwrap_or_else(|err| {
        let mut response = Response::new(Body::from(err.to_string()));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Returns the error response that the script demands.
fn scripted(status: u16, code: Option<&str>, retry_after_s: Option<u32>) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (kind, body) = match code {
        Some(code) => (
            "application/xml",
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>scripted fault</Message>\
                 <RequestId>0000000000000000</RequestId></Error>"
            ),
        ),
        None => (
            "text/html",
            format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"),
        ),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Returns the same response with a body in chunks, without a length.
fn without_length(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(
        parts,
        Body::http_body_unsync(http_body_util::StreamBody::new(http_body_util::BodyStream::new(body))),
    )
}

/// Returns a 200 although nothing was done.
fn pretended() -> Response<Body> {
    let mut response = Response::new(Body::from(String::new()));
    response.headers_mut().insert(ETAG, HeaderValue::from_static("\"00000000000000000000000000000000\""));
    response
}

/// Returns the same response with a changed body and its length, and without an ETag header.
async fn altered(response: Response<Body>, alter: impl FnOnce(Bytes) -> Bytes) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(ETAG);
    parts.headers.remove(CONTENT_LENGTH);
    match body.collect().await {
        Ok(body) => Response::from_parts(parts, Body::from(alter(body.to_bytes()))),
        Err(err) => refused(S3Error::with_source(s3s::S3ErrorCode::InternalError, err)),
    }
}

/// Returns the text with an empty ETag element.
fn without_etag(text: &str) -> String {
    emptied(text, "ETag")
}

/// Returns the text with empty elements for the marker of the next page.
fn without_markers(text: &str) -> String {
    let names = ["NextContinuationToken", "NextKeyMarker", "NextUploadIdMarker", "NextPartNumberMarker"];
    names.iter().fold(text.to_owned(), |text, name| emptied(&text, name))
}

/// Returns the text with the first element of that name emptied.
fn emptied(text: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    match text.find(&open).zip(text.find(&close)) {
        Some((start, end)) => format!("{}{}", &text[..start + open.len()], &text[end..]),
        None => text.to_owned(),
    }
}

/// Rate limit for reading a body.
struct Pace {
    bytes_per_second: u32,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(bytes_per_second: u32) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), wait: None }
    }

    fn spent(&mut self, bytes: usize) {
        let nanos = u128::from(to_u64(bytes)) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.wait = Some(Box::pin(tokio::time::sleep(wait)));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        Poll::Ready(())
    }
}

/// Body of a request. It is counted, perhaps slowed down, and shared: the part that S3 did not read can be
/// read later.
struct Inflow {
    body: Arc<Mutex<Incoming>>,
    received: Arc<AtomicU64>,
    pace: Option<Pace>,
}

impl Inflow {
    fn new(body: Incoming, received: Arc<AtomicU64>) -> Self {
        Self { body: Arc::new(Mutex::new(body)), received, pace: None }
    }

    /// Returns a second reader of the same body, for the part that S3 does not read.
    fn rest(&self) -> Self {
        Self { body: Arc::clone(&self.body), received: Arc::clone(&self.received), pace: None }
    }

    /// Reads and discards the body up to `limit` bytes or to its end.
    async fn drain(&mut self, limit: u64) {
        let mut remaining = limit;
        while let Some(Ok(frame)) = self.frame().await {
            let len = frame.data_ref().map_or(0, |bytes| to_u64(bytes.len()));
            remaining = remaining.saturating_sub(len);
            if remaining == 0 {
                return;
            }
        }
    }
}

impl HttpBody for Inflow {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(pace) = &mut self.pace {
            ready!(pace.poll(cx));
        }
        let frame = {
            let mut body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
            ready!(Pin::new(&mut *body).poll_frame(cx))
        };
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            let len = bytes.len();
            self.received.fetch_add(to_u64(len), Ordering::Relaxed);
            if let Some(pace) = &mut self.pace {
                pace.spent(len);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
