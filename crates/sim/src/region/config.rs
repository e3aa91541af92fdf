//! What a simulated cloud is to be like.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rand::RngExt as _;
use snapferry_base::secret::Secret;

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// A snapshot to become stable, beside the copy of its disk.
    pub snapshot: Duration,
    /// A volume to become available.
    pub volume: Duration,
    /// An attachment to come or go.
    pub attachment: Duration,
    /// From `attached` to the device's link.
    pub udev: Duration,
    /// A volume to be filled from its snapshot, which stays as long.
    pub hydration: Duration,
    /// An import to be looked at, and an image to become available, beside the reading of its object.
    pub image: Duration,
    /// An export, beside the writing of its object.
    pub export: Duration,
    /// Things to be gone once they are being deleted.
    pub deletion: Duration,
    /// A server to come up or down.
    pub instance: Duration,
}

impl Delays {
    /// All of the same length.
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

/// What the cloud is to be.
#[derive(Clone, Debug)]
pub struct RegionConfig {
    /// Where it keeps everything; made if it isn't there.
    pub folder: PathBuf,
    /// The address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The port of the object store beside it; 0 takes a free one.
    pub store_port: u16,
    /// Its regions, each with zones 1 to 3. The first one has the server that snapferry would run on.
    pub regions: Vec<String>,
    /// That server's name.
    pub own_server: String,
    /// More servers without disks beside it, each with the number of its zone.
    pub other_servers: Vec<(String, u32)>,
    /// The API key that may do everything.
    pub api_key: Secret,
    /// How long a token is good for.
    pub token_life: Duration,
    /// How long things take.
    pub delays: Delays,
    /// The smallest image and volume, in GB. IBM's is 10; tests use less to be quick.
    pub least_capacity: u64,
    /// Where buckets are. An import from a bucket that is elsewhere than its address says fails; a bucket that is not here is anywhere.
    pub bucket_locations: BTreeMap<String, String>,
    /// Whether the image service may read and write buckets (the service-to-service authorization).
    pub image_service_authorized: bool,
    /// Whether the server's metadata service is on.
    pub metadata_service: bool,
    /// Whether it has the metadata service's paths of 2025-08-26, or only the older ones.
    pub new_metadata_paths: bool,
    /// Volumes in each region.
    pub volume_quota: usize,
}

impl RegionConfig {
    /// Two regions over `folder` on free loopback ports, quick, with an API key that nobody else knows.
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
        }
    }
}

/// A server to begin with.
#[derive(Clone, Debug)]
pub struct ServerSeed {
    /// Its region.
    pub region: String,
    /// Its name.
    pub name: String,
    /// The raw disk that it boots from.
    pub boot_disk: PathBuf,
    /// Its operating system's name in the catalog.
    pub operating_system: String,
    /// The storage generation of its boot volume.
    pub generation: u32,
    /// Whether it runs.
    pub running: bool,
}

impl ServerSeed {
    /// A running server with Debian on storage of the first generation.
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
