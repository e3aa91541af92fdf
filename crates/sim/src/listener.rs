//! TCP listener, plain or with TLS: one task for each connection. All connections end when the listener is
//! stopped.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::front::Dropped;
use super::server::{SimError, TlsFiles};

/// Connections served at a time; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Bytes that hyper reads at once. Large, so that the bytes of a part come in few pieces.
const READ_BUFFER: usize = 512 << 10;
/// Longest time that a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Wait after a failed `accept`, for example if the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Service behind a listener, which answers its requests.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers one request, or closes the connection. Sets `reset` if the connection is to end with a TCP
    /// reset.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        reset: &AtomicBool,
    ) -> impl Future<Output = Result<Response<Body>, Dropped>> + Send;
}

/// Returns the URL of a listening address, as clients take it.
pub(super) fn url_of(address: SocketAddr, encrypted: bool) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if encrypted { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(host, address.port()))
}

pub(super) fn tls_acceptor(files: &TlsFiles) -> Result<TlsAcceptor, SimError> {
    let fail = |path: &Path, reason: String| SimError::Tls { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| fail(&files.certificate, err.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|err| fail(&files.key, err.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|err| fail(&files.certificate, err.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until the sender of `stopped` is dropped, and then breaks all connections.
pub(super) async fn serve<F: Answers>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    front: Arc<F>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, tls.clone(), Arc::clone(&front)));
                }
                Err(err) => {
                    tracing::warn!(%err, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn connection<F: Answers>(stream: TcpStream, tls: Option<TlsAcceptor>, front: Arc<F>) {
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(%err, "no TCP_NODELAY");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let stream = ClientStream { stream, reset: Arc::clone(&reset) };
    match tls {
        None => serve_connection(stream, &front, &reset).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve_connection(stream, &front, &reset).await,
            Ok(Err(err)) => tracing::debug!(%err, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn serve_connection<F: Answers>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    front: &Arc<F>,
    reset: &AtomicBool,
) {
    let service = service_fn(|req| Arc::clone(front).answer(req, reset));
    let served =
        http1::Builder::new().max_buf_size(READ_BUFFER).serve_connection(TokioIo::new(stream), service).await;
    if let Err(err) = served {
        tracing::debug!(%err, "a connection ended early");
    }
}

/// Connection that can be ended with a TCP reset.
struct ClientStream {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed)
            && let Err(err) = self.stream.set_zero_linger()
        {
            tracing::debug!(%err, "can't reset a connection");
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::Relaxed) {
            // No orderly shutdown before the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
