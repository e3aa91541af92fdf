//! The store as a whole: what it is to be, start, stop, and what its owner asks of it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use s3s::service::S3ServiceBuilder;
use snapferry_base::secret::Secret;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::faults::Faults;
use super::folder::Folder;
use super::front::{Front, Gate, Keys};
use super::iam::Iam;
use super::listener::{self, url_of};
use super::stats::{Ledger, Stats};
use super::store::Store;

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
        let iam = Arc::new(Iam::new(config.api_keys.clone(), config.token_life));
        Self::start_with(config, iam).await
    }

    /// The same, honouring the tokens of an IAM that is there already.
    pub(super) async fn start_with(config: SimConfig, iam: Arc<Iam>) -> Result<Self, SimError> {
        let root = config.folder.clone();
        let opened =
            tokio::task::spawn_blocking(move || Folder::open(root)).await.map_err(io::Error::other).flatten();
        let folder =
            Arc::new(opened.map_err(|source| SimError::Folder { path: config.folder.clone(), source })?);
        let tls = config.tls.as_ref().map(listener::tls_acceptor).transpose()?;
        let bind = |source| SimError::Bind { address: config.bind, source };
        let listener = TcpListener::bind(config.bind).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;

        let mut s3 = S3ServiceBuilder::new(Store::new(Arc::clone(&folder), config.region.clone()));
        s3.set_auth(Keys { access_key: config.access_key.clone(), secret_key: config.secret_key.clone() });
        s3.set_access(Gate { region: config.region.clone() });
        let front = Arc::new(Front {
            s3: s3.build(),
            iam,
            faults: Faults::default(),
            ledger: Ledger::default(),
            encrypted: tls.is_some(),
            unsigned_payload: config.unsigned_payload,
        });
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(listener::serve(listener, tls, Arc::clone(&front), stopped));
        Ok(Self { address, config, front, folder, stop, serving })
    }

    /// Where it listens, as a client's `--endpoint` takes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        url_of(self.address, self.config.tls.is_some())
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

    /// What it keeps, for whoever stands beside it.
    pub(super) fn folder(&self) -> Arc<Folder> {
        Arc::clone(&self.folder)
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
        f.debug_struct("SimStore")
            .field("endpoint", &self.endpoint())
            .field("folder", &self.config.folder)
            .finish_non_exhaustive()
    }
}
