//! HTTP server for the metrics and the health of a worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use snapferry_base::retry::chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::format::{gzip, reads_gzip};
use super::{Exporter, Format};

/// Time limit for a client to send the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// Longest head of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Serves requests for as long as the process lives. If another process has the address, such as a second
/// worker on this machine, it warns and returns: that is no reason to end the worker.
pub async fn serve(address: SocketAddr, exporter: Exporter) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(err) => {
            tracing::warn!(
                "no metrics at http://{address}/metrics: {err}; give another address by --metrics, or --metrics off"
            );
            return;
        }
    };
    let bound = listener.local_addr().unwrap_or(address);
    tracing::info!("metrics at http://{bound}/metrics, health at http://{bound}/healthz");
    let exporter = Arc::new(exporter);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // While the permits are used up, further connections wait in the kernel's queue.
                let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                let exporter = Arc::clone(&exporter);
                tokio::spawn(async move {
                    serve_connection(stream, exporter).await;
                    drop(permit);
                });
            }
            // Most often, too many files are open; later there may be fewer.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, exporter: Arc<Exporter>) {
    let respond = service_fn(|request: Request<Incoming>| {
        let exporter = Arc::clone(&exporter);
        async move { Ok::<_, std::convert::Infallible>(respond(&request, &exporter).await) }
    });
    let mut http = http1::Builder::new();
    let served = http
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    if let Err(err) = served.await {
        tracing::debug!("a scrape ended early: {err}");
    }
}

async fn respond(request: &Request<Incoming>, exporter: &Exporter) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => metrics(request, exporter).await,
        // Any response shows that the worker is alive; an outage of the queue is no reason to restart it.
        (&Method::GET | &Method::HEAD, "/healthz") => plain(StatusCode::OK, "alive"),
        (&Method::GET | &Method::HEAD, "/readyz") => match exporter.queue.rights().await {
            Ok(()) => match &exporter.health.failures()[..] {
                [] => plain(StatusCode::OK, "ready"),
                ails => plain(StatusCode::SERVICE_UNAVAILABLE, &ails.join("\n")),
            },
            Err(err) => plain(StatusCode::SERVICE_UNAVAILABLE, &chain(&err)),
        },
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
    }
}

async fn metrics(request: &Request<Incoming>, exporter: &Exporter) -> Response<Full<Bytes>> {
    let format = Format::preferred(request.headers());
    let text = exporter.text(format).await;
    let compressed = if reads_gzip(request.headers()) { gzip(&text) } else { None };
    let is_compressed = compressed.is_some();
    let body = compressed.map_or_else(|| Bytes::from(text), Bytes::from);
    let mut response = response_with(StatusCode::OK, format.content_type(), body);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if is_compressed {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn plain(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    response_with(status, "text/plain; charset=utf-8", Bytes::from(format!("{body}\n")))
}

fn response_with(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
