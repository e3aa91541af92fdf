//! The part of IBM Cloud that snapferry calls, over a folder: VPC regions, IAM, the instance metadata service, Global Tagging, and an S3 store.
//!
//! ```text
//! socket ─▶ front (history, faults, tokens) ─▶ route ─▶ operation, in its noun's file ─▶ world ─▶ state.json
//!                                                                         └─▶ jobs: disks copied, images read and hashed
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `mod` | start, stop, and what a test or a command asks of it |
//! | `config` | what it is to be like |
//! | `front`, `route`, `ask` | requests: who may, which operation, what it says |
//! | `operations` | which noun's file answers an operation |
//! | `faults`, `history` | what goes wrong on command; what was done |
//! | `world`, `life` | everything that there is, on disk; states that change with time |
//! | `instances`, `attachments`, `volumes`, `snapshots`, `images`, `exports`, `catalog`, `tagging`, `metadata` | the API, one file a noun |
//! | `lists` | filters and pages |
//! | `jobs`, `disks`, `devices` | work that outlasts a request; sparse copies; links and loop devices |
//!
//! Paths, fields, status codes and rules are IBM's, as published with the API's models; where IBM does not publish one (the code for a
//! name that is taken, say) the place says so. State survives `kill -9`: it is on disk before the answer goes out. Nothing is synced, so it
//! does not survive a crash of the machine.

mod ask;
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
mod life;
mod lists;
mod metadata;
mod operations;
mod route;
mod snapshots;
mod tagging;
mod volumes;
mod world;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::{Delays, RegionConfig, ServerSeed};
pub use faults::{RegionAction, RegionFaults, RegionRule};
use front::Front;
pub use history::Deed;
pub use route::RegionOperation;
use snapferry_base::secret::Secret;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use world::World;

use super::iam::Iam;
use super::listener::{self, url_of};
use super::server::{SimConfig, SimError, SimStore};

/// A running cloud. Dropping it stops it.
pub struct SimRegion {
    address: SocketAddr,
    front: Arc<Front>,
    store: SimStore,
    /// Dropped to stop.
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    ticking: JoinHandle<()>,
}

impl SimRegion {
    /// Opens the folder, or goes on with what is in it, and begins to listen, on the runtime that this is called in.
    ///
    /// # Errors
    /// Where the folder or the address can't be used.
    pub async fn start(config: RegionConfig) -> Result<Self, SimError> {
        let folder = |source| SimError::Folder { path: config.folder.clone(), source };
        for part in ["volumes", "snapshots", "by-id"] {
            std::fs::create_dir_all(config.folder.join(part)).map_err(folder)?;
        }
        let iam = Arc::new(Iam::new(vec![config.api_key.clone()], config.token_life));
        let store = SimConfig {
            api_keys: vec![config.api_key.clone()],
            bind: SocketAddr::new(config.bind.ip(), config.store_port),
            ..SimConfig::new(config.folder.join("store"))
        };
        let store = SimStore::start_with(store, Arc::clone(&iam)).await?;
        let bind = |source| SimError::Bind { address: config.bind, source };
        let listener = TcpListener::bind(config.bind).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let mut world = World::open(&config.folder).map_err(folder)?;
        world.furnish(&config);
        let path = config.folder.clone();
        let front = Front::new(config, world, iam, store.folder(), url_of(address, false));
        let front = Arc::new(front.map_err(|source| SimError::Folder { path, source })?);
        front.resume();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(listener::serve(listener, None, Arc::clone(&front), stopped));
        let ticking = tokio::spawn(Arc::clone(&front).tick());
        Ok(Self { address, front, store, stop, serving, ticking })
    }

    fn url(&self) -> String {
        url_of(self.address, false)
    }

    /// A region's API, below which `/v1` begins.
    #[must_use]
    pub fn endpoint(&self, region: &str) -> String {
        format!("{}/{region}", self.url())
    }

    /// Every region's API, with `{region}` where the name goes.
    #[must_use]
    pub fn endpoint_template(&self) -> String {
        self.endpoint("{region}")
    }

    /// IAM's address, to which clients append `/identity/token`.
    #[must_use]
    pub fn iam_endpoint(&self) -> String {
        self.url()
    }

    /// The metadata service of the server that snapferry would run on.
    #[must_use]
    pub fn metadata_endpoint(&self) -> String {
        self.url()
    }

    /// Global Tagging.
    #[must_use]
    pub fn tagging_endpoint(&self) -> String {
        self.url()
    }

    /// The object store beside it, which honours the same tokens.
    #[must_use]
    pub fn store(&self) -> &SimStore {
        &self.store
    }

    /// The API key that may do everything.
    #[must_use]
    pub fn api_key(&self) -> Secret {
        self.front.config.api_key.clone()
    }

    /// Where volumes turn up that are attached to the server that snapferry would run on.
    #[must_use]
    pub fn device_folder(&self) -> PathBuf {
        devices::own_folder(&self.front.config.folder)
    }

    /// Where volumes turn up that are attached to another server.
    #[must_use]
    pub fn device_folder_of(&self, server: &str) -> PathBuf {
        devices::folder_of(&self.front.config.folder, server)
    }

    /// The id of a server of the first region; empty where there is none of that name.
    #[must_use]
    pub fn instance_id(&self, server: &str) -> String {
        self.front.instance_id(server).unwrap_or_default()
    }

    /// The id of the server that snapferry would run on.
    #[must_use]
    pub fn own_instance_id(&self) -> String {
        self.instance_id(&self.front.config.own_server)
    }

    /// Puts a server with a boot volume into a region; its disk is copied. That there is one of that name is success.
    ///
    /// # Errors
    /// Where the disk can't be copied.
    pub async fn seed_server(&self, seed: ServerSeed) -> Result<(), SimError> {
        let front = Arc::clone(&self.front);
        let path = seed.boot_disk.clone();
        let seeded = tokio::task::spawn_blocking(move || front.seed_server(&seed)).await;
        seeded.map_err(std::io::Error::other).flatten().map_err(|source| SimError::Folder { path, source })
    }

    /// Puts `count` images named `image-0000` and on into a region, for lists that are long.
    pub fn seed_images(&self, region: &str, count: usize) {
        self.front.seed_images(region, count);
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &RegionFaults {
        &self.front.faults
    }

    /// What was changed, in order.
    #[must_use]
    pub fn history(&self) -> Vec<Deed> {
        self.front.history()
    }

    /// How often an operation was asked for, refused ones included.
    #[must_use]
    pub fn asked(&self, operation: RegionOperation) -> u64 {
        self.front.asked(operation)
    }

    /// Ends the life of every token that was issued.
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

    /// The folder that it keeps everything in.
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
