//! The part of IBM Cloud that snapferry calls, simulated in a folder: VPC regions, IAM, the instance metadata
//! service, Global Tagging, and an S3 store.
//!
//! ```text
//! socket ─▶ front (history, faults, tokens) ─▶ route ─▶ operation, in its noun's file ─▶ state ─▶ state.json
//!                                                         └─▶ jobs: disks copied, images read and hashed
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `mod` | start, stop, and the functions for tests and programs |
//! | `config` | configuration of a cloud |
//! | `front`, `route`, `request` | requests: access, operation, content |
//! | `operations` | dispatch of an operation to its noun's file |
//! | `faults`, `history` | scripted faults; record of all changes |
//! | `state`, `lifecycle` | all resources, on disk; states that change with time |
//! | `instances`, `attachments`, `volumes`, `snapshots`, `images`, `exports` | the API, one file each |
//! | `catalog`, `tagging`, `metadata` | fixed resources of a region, Global Tagging, the metadata service |
//! | `lists` | filters and pages |
//! | `jobs`, `disks`, `devices` | work that outlasts a request; sparse copies; links and loop devices |
//!
//! Paths, fields, status codes and rules are IBM's, as published with the API's models. If IBM does not
//! publish one (the code for a name that is taken, for example), a comment in the code notes it. The state
//! survives `kill -9`: it is written before the response is sent. Nothing is synced, so it does not survive a
//! crash of the machine.

mod attachments;
mod catalog;
mod config;
mod devices;
mod disks;
mod exports;
mod faults;
mod front;
mod history;
mod images;
mod instances;
mod jobs;
mod lifecycle;
mod lists;
mod metadata;
mod operations;
mod request;
mod route;
mod snapshots;
mod state;
mod tagging;
mod volumes;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::{Delays, RegionConfig, ServerSeed};
pub use faults::{RegionAction, RegionFaults, RegionRule};
use front::Front;
pub use history::HistoryEntry;
pub use route::RegionOperation;
use snapferry_base::secret::Secret;
use state::CloudState;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::iam::Iam;
use super::listener::{self, url_of};
use super::server::{SimConfig, SimError, SimStore};

/// Running cloud. Dropping it stops it.
pub struct SimRegion {
    address: SocketAddr,
    front: Arc<Front>,
    store: SimStore,
    /// Dropping it stops the listener.
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    ticking: JoinHandle<()>,
}

impl SimRegion {
    /// Opens the folder, or continues with the state in it, and begins to listen, on the runtime of the
    /// caller.
    ///
    /// # Errors
    /// If the folder or the address can't be used.
    pub async fn start(config: RegionConfig) -> Result<Self, SimError> {
        let folder = |source| SimError::Folder { path: config.folder.clone(), source };
        for part in ["volumes", "snapshots", "by-id"] {
            std::fs::create_dir_all(config.folder.join(part)).map_err(folder)?;
        }
        let iam = Arc::new(Iam::new(vec![config.api_key.clone()], config.token_life));
        let store = SimConfig {
            api_keys: vec![config.api_key.clone()],
            tls: config.tls.clone(),
            bind: SocketAddr::new(config.bind.ip(), config.store_port),
            ..SimConfig::new(config.folder.join("store"))
        };
        let store = SimStore::start_with(store, Arc::clone(&iam)).await?;
        let tls = config.tls.as_ref().map(listener::tls_acceptor).transpose()?;
        let bind = |source| SimError::Bind { address: config.bind, source };
        let listener = TcpListener::bind(config.bind).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let mut cloud = CloudState::open(&config.folder).map_err(folder)?;
        cloud.seed(&config);
        let path = config.folder.clone();
        let front = Front::new(config, cloud, iam, store.folder(), url_of(address, tls.is_some()));
        let front = Arc::new(front.map_err(|source| SimError::Folder { path, source })?);
        front.resume();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(listener::serve(listener, tls, Arc::clone(&front), stopped));
        let ticking = tokio::spawn(Arc::clone(&front).tick());
        Ok(Self { address, front, store, stop, serving, ticking })
    }

    fn url(&self) -> String {
        url_of(self.address, self.front.config.tls.is_some())
    }

    /// Returns the URL of a region's API, to which clients append `/v1`.
    #[must_use]
    pub fn endpoint(&self, region: &str) -> String {
        format!("{}/{region}", self.url())
    }

    /// Returns the URL of every region's API, with `{region}` in place of the name.
    #[must_use]
    pub fn endpoint_template(&self) -> String {
        self.endpoint("{region}")
    }

    /// Returns IAM's URL, to which clients append `/identity/token`.
    #[must_use]
    pub fn iam_endpoint(&self) -> String {
        self.url()
    }

    /// Returns the URL of the metadata service of the server that snapferry would run on.
    #[must_use]
    pub fn metadata_endpoint(&self) -> String {
        self.url()
    }

    /// Returns the URL of Global Tagging.
    #[must_use]
    pub fn tagging_endpoint(&self) -> String {
        self.url()
    }

    /// Returns the object store beside the cloud, which accepts the same tokens.
    #[must_use]
    pub fn store(&self) -> &SimStore {
        &self.store
    }

    /// Returns the API key that may do everything.
    #[must_use]
    pub fn api_key(&self) -> Secret {
        self.front.config.api_key.clone()
    }

    /// Returns the by-id folder for volumes that are attached to the server that snapferry would run on.
    #[must_use]
    pub fn device_folder(&self) -> PathBuf {
        devices::own_folder(&self.front.config.folder)
    }

    /// Returns the by-id folder for volumes that are attached to another server.
    #[must_use]
    pub fn device_folder_of(&self, server: &str) -> PathBuf {
        devices::folder_of(&self.front.config.folder, server)
    }

    /// Returns the id of a server of the first region; empty if there is none of that name.
    #[must_use]
    pub fn instance_id(&self, server: &str) -> String {
        self.front.instance_id(server).unwrap_or_default()
    }

    /// Returns the id of the server that snapferry would run on.
    #[must_use]
    pub fn own_instance_id(&self) -> String {
        self.instance_id(&self.front.config.own_server)
    }

    /// Adds a server with a boot volume to a region; its disk is copied. If there is one of that name, that
    /// is a success.
    ///
    /// # Errors
    /// If the region does not exist, or the disk can't be copied.
    pub async fn seed_server(&self, seed: ServerSeed) -> Result<(), SimError> {
        let front = Arc::clone(&self.front);
        let path = seed.boot_disk.clone();
        let seeded = tokio::task::spawn_blocking(move || front.seed_server(&seed)).await;
        seeded.map_err(std::io::Error::other).flatten().map_err(|source| SimError::Folder { path, source })
    }

    /// Returns the file of a server's boot volume, which a caller may change as the server's system would.
    #[must_use]
    pub fn boot_disk(&self, region: &str, server: &str) -> Option<PathBuf> {
        self.front.boot_disk(region, server)
    }

    /// Adds `count` images named `image-0000`, `image-0001` and so on to a region, for tests of long lists.
    pub fn seed_images(&self, region: &str, count: usize) {
        self.front.seed_images(region, count);
    }

    /// Returns the cloud's fault script.
    #[must_use]
    pub fn faults(&self) -> &RegionFaults {
        &self.front.faults
    }

    /// Returns all requests for changes, in order.
    #[must_use]
    pub fn history(&self) -> Vec<HistoryEntry> {
        self.front.history()
    }

    /// Returns the number of requests for an operation, refused ones included.
    #[must_use]
    pub fn request_count(&self, operation: RegionOperation) -> u64 {
        self.front.request_count(operation)
    }

    /// Returns the `User-Agent` of the last request for an operation, if it had one.
    #[must_use]
    pub fn user_agent(&self, operation: RegionOperation) -> Option<String> {
        self.front.user_agent(operation)
    }

    /// Expires every token that was issued.
    pub fn expire_tokens(&self) {
        self.front.iam.expire_all();
    }

    /// Stops listening, detaches all loop devices, and returns when that is done.
    pub async fn shutdown(self) {
        drop(self.stop);
        self.ticking.abort();
        if let Err(err) = self.serving.await {
            tracing::warn!(%err, "the simulated region did not stop in order");
        }
        self.front.release_devices();
        self.store.shutdown().await;
    }

    /// Returns the folder with all data of the cloud.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.front.config.folder
    }
}

impl fmt::Debug for SimRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRegion")
            .field("url", &self.url())
            .field("folder", &self.folder())
            .finish_non_exhaustive()
    }
}
