//! The listener: plain or TLS, one task to a connection, everything ended when the store is.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::service::S3ServiceBuilder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::faults::Faults;
use super::folder::Folder;
use super::front::{Front, Gate, Keys};
use super::iam::Iam;
use super::stats::{Ledger, Stats};
use super::store::Store;
use crate::secret::Secret;

/// Connections served at a time; more wait in the listener's queue.
const MOST_CONNECTIONS: usize = 1024;
/// How much hyper reads at once. Large, so that a part's bytes come in few pieces.
const READ_BUFFER: usize = 512 << 10;
/// The longest that a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The wait after a failing `accept`, as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those that vouch for it.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Whether a body may come without its SHA-256 in the signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnsignedPayload {
    /// Always.
    #[default]
    Accept,
    /// Over https, where TLS protects it.
    RefuseOverHttp,
}

/// What the store is to be.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Where it keeps everything; made if it isn't there.
    pub folder: PathBuf,
    /// The address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The region that requests must be signed for.
    pub region: String,
    /// The one access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// Serve https with these.
    pub tls: Option<TlsFiles>,
    /// API keys that IAM turns into tokens.
    pub api_keys: Vec<Secret>,
    /// How long a token is good for.
    pub token_life: Duration,
    /// Whether `UNSIGNED-PAYLOAD` is taken.
    pub unsigned_payload: UnsignedPayload,
}

impl SimConfig {
    /// A store over `folder` on a free loopback port, with keys that nobody else knows.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let random = || format!("{:016x}{:016x}", rand::rng().random::<u64>(), rand::rng().random::<u64>());
        Self {
            folder: folder.into(),
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            region: "us-south".to_owned(),
            access_key: "snapferry".to_owned(),
            secret_key: Secret::new(&random()),
            tls: None,
            api_keys: vec![Secret::new(&random())],
            token_life: Duration::from_secs(3600),
            unsigned_payload: UnsignedPayload::default(),
        }
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Its folder can't be used.
    #[error("the store's folder {} can't be used", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Its address is taken, or none of this machine's.
    #[error("can't listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The certificate or its key is not usable.
    #[error("{}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is no fault script.
    #[error("{} is no fault script: {reason}", path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A bucket can't be made.
    #[error("can't make bucket {bucket:?}: {reason}")]
    Bucket {
        /// Its name.
        bucket: String,
        /// Why not.
        reason: String,
    },
}

/// A running store. Dropping it stops it.
pub struct SimStore {
    address: SocketAddr,
    config: SimConfig,
    front: Arc<Front>,
    folder: Arc<Folder>,
    /// Dropped to stop.
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl SimStore {
    /// Opens the folder and begins to listen, on the runtime that this is called in.
    ///
    /// # Errors
    /// Where the folder, the address or the certificate can't be used.
    pub async fn start(config: SimConfig) -> Result<Self, SimError> {
        let root = config.folder.clone();
        let opened = tokio::task::spawn_blocking(move || Folder::open(root)).await.map_err(io::Error::other).flatten();
        let folder = Arc::new(opened.map_err(|source| SimError::Folder { path: config.folder.clone(), source })?);
        let tls = config.tls.as_ref().map(tls_acceptor).transpose()?;
        let bind = |source| SimError::Bind { address: config.bind, source };
        let listener = TcpListener::bind(config.bind).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;

        let mut s3 = S3ServiceBuilder::new(Store::new(Arc::clone(&folder), config.region.clone()));
        s3.set_auth(Keys { access_key: config.access_key.clone(), secret_key: config.secret_key.clone() });
        s3.set_access(Gate { region: config.region.clone() });
        let front = Arc::new(Front {
            s3: s3.build(),
            iam: Iam::new(config.api_keys.clone(), config.token_life),
            faults: Faults::default(),
            ledger: Ledger::default(),
            encrypted: tls.is_some(),
            unsigned_payload: config.unsigned_payload,
        });
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(serve(listener, tls, Arc::clone(&front), stopped));
        Ok(Self { address, config, front, folder, stop, serving })
    }

    /// Where it listens, as a client's `--endpoint` takes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let host = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(host, self.address.port()))
    }

    /// IAM's address, to which clients append `/identity/token`.
    #[must_use]
    pub fn iam_endpoint(&self) -> String {
        self.endpoint()
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// The fault script.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.front.faults
    }

    /// What it was asked so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.front.ledger.snapshot()
    }

    /// Makes a bucket; that there is one is success.
    ///
    /// # Errors
    /// Where the name is none, or the folder can't be written.
    pub async fn create_bucket(&self, name: &str) -> Result<(), SimError> {
        let folder = Arc::clone(&self.folder);
        let bucket = name.to_owned();
        let made = super::receive::blocking(move || folder.create_bucket(&bucket)).await;
        match made {
            Err(err) if *err.code() != s3s::S3ErrorCode::BucketAlreadyOwnedByYou => {
                Err(SimError::Bucket { bucket: name.to_owned(), reason: err.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Ends the life of every bearer token that IAM has issued.
    pub fn expire_tokens(&self) {
        self.front.iam.expire_all();
    }

    /// Stops listening, breaks all connections, and returns when that is done: what it was asked in all.
    pub async fn shutdown(self) -> Stats {
        drop(self.stop);
        if let Err(err) = self.serving.await {
            tracing::warn!(%err, "the embedded store did not stop in order");
        }
        self.front.ledger.snapshot()
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStore").field("endpoint", &self.endpoint()).field("folder", &self.config.folder).finish_non_exhaustive()
    }
}

fn tls_acceptor(files: &TlsFiles) -> Result<TlsAcceptor, SimError> {
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

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, front: Arc<Front>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
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

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, front: Arc<Front>) {
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(%err, "no TCP_NODELAY");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let line = Line { stream, reset: Arc::clone(&reset) };
    match tls {
        None => speak(line, &front, &reset).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(line)).await {
            Ok(Ok(line)) => speak(line, &front, &reset).await,
            Ok(Err(err)) => tracing::debug!(%err, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn speak(line: impl AsyncRead + AsyncWrite + Unpin, front: &Front, reset: &AtomicBool) {
    let answer = service_fn(|req| front.answer(req, reset));
    let served = http1::Builder::new().max_buf_size(READ_BUFFER).serve_connection(TokioIo::new(line), answer).await;
    if let Err(err) = served {
        tracing::debug!(%err, "a connection ended early");
    }
}

/// A connection that can be made to end with a reset.
struct Line {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed)
            && let Err(err) = self.stream.set_zero_linger()
        {
            tracing::debug!(%err, "can't reset a connection");
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
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
            // No polite end before the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
