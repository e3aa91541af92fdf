//! The store as a whole: configuration, start, stop, and the functions for the program that runs it.

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
use super::terms::{Names, RequiredHeader};

/// Certificate and its private key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// File with the certificate, followed by those that vouch for it.
    pub certificate: PathBuf,
    /// File with the private key.
    pub key: PathBuf,
}

/// Rule for bodies without their SHA-256 in the signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnsignedPayload {
    /// Accepted over http and https.
    #[default]
    Accept,
    /// Accepted over https only, because TLS protects the body there.
    RefuseOverHttp,
}

/// Configuration of a store.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Folder for all data; created if it does not exist.
    pub folder: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Region that requests must be signed for.
    pub region: String,
    /// Access key; there is only one.
    pub access_key: String,
    /// Secret key that belongs to the access key.
    pub secret_key: Secret,
    /// Certificate and key for https; without them the store serves http.
    pub tls: Option<TlsFiles>,
    /// API keys for which IAM issues tokens.
    pub api_keys: Vec<Secret>,
    /// Lifetime of a token.
    pub token_life: Duration,
    /// Rule for requests with `UNSIGNED-PAYLOAD`.
    pub unsigned_payload: UnsignedPayload,
    /// Names of hosts that contain a bucket.
    pub names: Names,
    /// Path in front of all others, as a server in front of a store adds it. Signatures cover it, and are not
    /// accepted then; tokens are.
    pub prefix: String,
    /// Headers that the policies of the buckets require.
    pub required_headers: Vec<RequiredHeader>,
}

impl SimConfig {
    /// Returns the configuration of a store in `folder` on a free loopback port, with random keys.
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
            names: Names::default(),
            prefix: String::new(),
            required_headers: Vec::new(),
        }
    }
}

/// Error of a store or a cloud while it starts or is set up.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The store's folder can't be used.
    #[error("the store's folder {} can't be used", path.display())]
    Folder {
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The address is in use, or is not one of this machine.
    #[error("can't listen on {address}")]
    Bind {
        address: SocketAddr,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The certificate or its key is not usable.
    #[error("{}: {reason}", path.display())]
    Tls {
        path: PathBuf,
        /// Reason why it can't be used.
        reason: String,
    },
    /// A file is not a fault script.
    #[error("{} is no fault script: {reason}", path.display())]
    Script {
        path: PathBuf,
        /// Reason why it can't be used.
        reason: String,
    },
    /// A bucket can't be created.
    #[error("can't make bucket {bucket:?}: {reason}")]
    Bucket {
        bucket: String,
        /// Reason why it can't be created.
        reason: String,
    },
}

/// Running store. Dropping it stops it.
pub struct SimStore {
    address: SocketAddr,
    config: SimConfig,
    front: Arc<Front>,
    folder: Arc<Folder>,
    /// Dropping it stops the listener.
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl SimStore {
    /// Opens the folder and begins to listen, on the runtime of the caller.
    ///
    /// # Errors
    /// If the folder, the address or the certificate can't be used.
    pub async fn start(config: SimConfig) -> Result<Self, SimError> {
        let iam = Arc::new(Iam::new(config.api_keys.clone(), config.token_life));
        Self::start_with(config, iam).await
    }

    /// Starts a store that accepts the tokens of an existing IAM.
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
        if config.names != Names::PathOnly {
            s3.set_host(config.names.clone());
        }
        s3.set_access(Gate { region: config.region.clone() });
        let front = Arc::new(Front {
            s3: s3.build(),
            iam,
            faults: Faults::default(),
            ledger: Ledger::default(),
            encrypted: tls.is_some(),
            unsigned_payload: config.unsigned_payload,
            names: config.names.clone(),
            prefix: config.prefix.clone(),
            required_headers: config.required_headers.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(listener::serve(listener, tls, Arc::clone(&front), stopped));
        Ok(Self { address, config, front, folder, stop, serving })
    }

    /// Returns the URL of the store, as a client's `--endpoint` takes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        url_of(self.address, self.config.tls.is_some())
    }

    /// Returns IAM's URL, to which clients append `/identity/token`.
    #[must_use]
    pub fn iam_endpoint(&self) -> String {
        self.endpoint()
    }

    /// Returns the configuration that the store was started with.
    #[must_use]
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// Returns the store's data, for a service beside the store.
    pub(super) fn folder(&self) -> Arc<Folder> {
        Arc::clone(&self.folder)
    }

    /// Returns the store's fault script.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.front.faults
    }

    /// Returns the counters and the log up to now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.front.ledger.snapshot()
    }

    /// Creates a bucket. If it exists already, that is a success.
    ///
    /// # Errors
    /// If the name is not allowed, or the folder can't be written.
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

    /// Expires every bearer token that IAM has issued.
    pub fn expire_tokens(&self) {
        self.front.iam.expire_all();
    }

    /// Stops listening, breaks all connections, waits until that is done, and returns the final counters and
    /// log.
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
