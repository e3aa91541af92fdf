//! Configuration of a simulated cloud.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rand::RngExt as _;
use snapferry_base::secret::Secret;

use crate::server::TlsFiles;

/// Durations of the cloud's operations.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Time for a snapshot to become stable, in addition to the copy of its disk.
    pub snapshot: Duration,
    /// Time for a volume to become available.
    pub volume: Duration,
    /// Time to attach or detach a volume.
    pub attachment: Duration,
    /// Time between the state `attached` and the device's link.
    pub udev: Duration,
    /// Time to fill a volume from its snapshot, which can't be removed meanwhile.
    pub hydration: Duration,
    /// Time for an image to become available, in addition to the reading of its object; an import is queued
    /// for half of it.
    pub image: Duration,
    /// Time for an export, in addition to the writing of its object.
    pub export: Duration,
    /// Time between a request to delete a resource and its removal.
    pub deletion: Duration,
    /// Time for a server to start or stop.
    pub instance: Duration,
}

impl Delays {
    /// Returns delays that all have the same length.
    #[must_use]
    pub const fn all(delay: Duration) -> Self {
        Self {
            snapshot: delay,
            volume: delay,
            attachment: delay,
            udev: delay,
            hydration: delay,
            image: delay,
            export: delay,
            deletion: delay,
            instance: delay,
        }
    }
}

/// Configuration of a cloud, for [`SimRegion::start`](super::SimRegion::start).
#[derive(Clone, Debug)]
pub struct RegionConfig {
    /// Folder for all data; created if it does not exist.
    pub folder: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Port of the object store beside the cloud; 0 takes a free one.
    pub store_port: u16,
    /// Regions, each with zones 1 to 3. The server that snapferry would run on is in the first one.
    pub regions: Vec<String>,
    /// Name of the server that snapferry would run on.
    pub own_server: String,
    /// Further servers without disks in the first region, each with the number of its zone.
    pub other_servers: Vec<(String, u32)>,
    /// API key that may do everything.
    pub api_key: Secret,
    /// Lifetime of a token.
    pub token_life: Duration,
    /// Durations of the cloud's operations.
    pub delays: Delays,
    /// Size of the smallest image and volume, in GB. IBM's is 10; tests use less to be quick.
    pub least_capacity: u64,
    /// Locations of buckets. An import fails if the bucket's location is not the one in the object's address;
    /// a bucket that is not in the map is in every location.
    pub bucket_locations: BTreeMap<String, String>,
    /// True if the image service may read and write buckets (the service-to-service authorization).
    pub image_service_authorized: bool,
    /// True if the server's metadata service is on.
    pub metadata_service: bool,
    /// True if the metadata service has the paths of 2025-08-26; false if it has only the older ones.
    pub new_metadata_paths: bool,
    /// Highest number of volumes in each region.
    pub volume_quota: usize,
    /// Certificate and key for https, of the cloud and its store; without them both serve http.
    pub tls: Option<TlsFiles>,
}

impl RegionConfig {
    /// Returns the configuration of a cloud in `folder`: two regions, free loopback ports, short delays, and
    /// a random API key.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let random = || format!("{:032x}", rand::rng().random::<u128>());
        Self {
            folder: folder.into(),
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            store_port: 0,
            regions: vec!["us-south".to_owned(), "us-east".to_owned()],
            own_server: "ferry".to_owned(),
            other_servers: Vec::new(),
            api_key: Secret::new(&random()),
            token_life: Duration::from_secs(3600),
            delays: Delays::all(Duration::from_millis(20)),
            least_capacity: 10,
            bucket_locations: BTreeMap::new(),
            image_service_authorized: true,
            metadata_service: true,
            new_metadata_paths: true,
            volume_quota: 300,
            tls: None,
        }
    }
}

/// Server that a cloud has from the start, for [`SimRegion::seed_server`](super::SimRegion::seed_server).
#[derive(Clone, Debug)]
pub struct ServerSeed {
    pub region: String,
    pub name: String,
    /// Raw disk that is copied into its boot volume.
    pub boot_disk: PathBuf,
    /// Name of its operating system in the catalog.
    pub operating_system: String,
    /// Storage generation of its boot volume: 1 or 2.
    pub generation: u32,
    /// True if it runs; false if it is stopped.
    pub running: bool,
}

impl ServerSeed {
    /// Returns a running server with Debian, on storage of the first generation.
    #[must_use]
    pub fn new(region: &str, name: &str, boot_disk: impl Into<PathBuf>) -> Self {
        Self {
            region: region.to_owned(),
            name: name.to_owned(),
            boot_disk: boot_disk.into(),
            operating_system: "debian-12-amd64".to_owned(),
            generation: 1,
            running: true,
        }
    }
}
