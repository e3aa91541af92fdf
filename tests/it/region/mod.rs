//! The client of the VPC API against the simulated cloud, over HTTP, under all faults of both.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `chain` | a server's disk by snapshot, volume and attachment to a device, an image and back |
//! | `rules` | requests that the API refuses, and its error codes |
//! | `commands` | the commands on the cloud, their output and exit codes |
//! | `creates` | no resource is made twice, whichever responses are lost |
//! | `faults` | every call under every fault ends in its error class, before its deadline |
//! | `lists` | pages, filters, names |
//! | `restarts` | a cloud that is killed continues in its last state |
//! | `sdk` | IBM's own SDK works with the same cloud |

mod chain;
mod commands;
mod creates;
mod faults;
mod lists;
mod restarts;
mod rules;
mod sdk;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use snapferry_base::identity::TokenSource;
use snapferry_base::proxy::Proxies;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_ibmcloud::vpc::model::{Instance, Snapshot, Volume};
use snapferry_ibmcloud::vpc::{
    ClientConfig, Endpoint, Patience, Policy, RegionClient, ResourceName, SnapshotPrototype, VolumePrototype,
};
use snapferry_sim::{RegionConfig, ServerSeed, SimRegion};
use snapferry_testkit::disks::{Disk, Kind};
use tempfile::TempDir;

use crate::support::{HOME, POLICY, SERVER, client_context, folder, program, tokens};

/// Waits that poll often, with a deadline that only a hang reaches.
pub const SOON: Patience = Patience {
    first: Duration::from_millis(5),
    longest: Duration::from_millis(20),
    deadline: Duration::from_secs(60),
};

pub struct Cloud {
    pub sim: SimRegion,
    pub tokens: Arc<dyn TokenSource>,
    pub folder: TempDir,
}

/// A cloud whose volumes may be small.
pub fn quick(folder: &Path) -> RegionConfig {
    RegionConfig { least_capacity: 1, ..RegionConfig::new(folder) }
}

pub fn name(name: &str) -> ResourceName {
    ResourceName::new(name).unwrap()
}

impl Cloud {
    /// Starts a cloud with [`SERVER`] in [`HOME`], on a disk of 1 GiB with a few MiB of data.
    pub async fn start() -> Self {
        Self::start_with(|config| config).await
    }

    pub async fn start_with(change: impl FnOnce(RegionConfig) -> RegionConfig) -> Self {
        let folder = folder();
        let sim = SimRegion::start(change(quick(&folder.path().join("cloud")))).await.unwrap();
        let disk = folder.path().join("web01.raw");
        Disk { kind: Kind::Mixed, size: ByteCount(8 * MIB), seed: 5 }.write(&disk).unwrap();
        sim.seed_server(ServerSeed::new(HOME, SERVER, &disk)).await.unwrap();
        let tokens = tokens(&sim);
        Self { sim, tokens, folder }
    }

    pub fn client_with(&self, region: &str, policy: Policy) -> RegionClient {
        let endpoint = Endpoint::parse(&self.sim.endpoint_template());
        let config = ClientConfig {
            region: region.to_owned(),
            endpoint,
            ca_file: None,
            proxies: Proxies::default(),
            policy,
        };
        RegionClient::new(config, client_context(Arc::clone(&self.tokens))).unwrap()
    }

    pub fn client(&self, region: &str) -> RegionClient {
        self.client_with(region, POLICY)
    }
}

/// A snapshot prototype of the server's boot volume.
pub fn snapshot_of(server: &Instance, called: &str) -> SnapshotPrototype {
    let boot = server.boot_volume_attachment.as_ref().and_then(|attachment| attachment.volume.as_ref());
    SnapshotPrototype {
        name: name(called),
        source: boot.unwrap().id.clone(),
        tags: Vec::new(),
        resource_group: None,
        clone_zones: Vec::new(),
    }
}

pub fn volume_of(snapshot: &Snapshot, called: &str) -> VolumePrototype {
    VolumePrototype {
        name: name(called),
        profile: "10iops-tier".to_owned(),
        zone: format!("{HOME}-1"),
        source: snapshot.id.clone(),
        capacity: None,
        bandwidth: None,
        iops: None,
        encryption_key: None,
        tags: Vec::new(),
        resource_group: None,
    }
}

/// Makes a snapshot of [`SERVER`], and waits until it is stable.
pub async fn stable_snapshot(client: &RegionClient, called: &str) -> Snapshot {
    let server = client.server(SERVER).await.unwrap();
    let snapshot = client.create_snapshot(&snapshot_of(&server, called)).await.unwrap();
    client.snapshot_stable(&snapshot.id, SOON).await.unwrap()
}

/// Makes a volume of the snapshot, and waits until it can be attached.
pub async fn ready_volume(client: &RegionClient, snapshot: &Snapshot, called: &str) -> Volume {
    let volume = client.create_volume(&volume_of(snapshot, called)).await.unwrap();
    client.volume_available(&volume.id, SOON).await.unwrap()
}

/// Converts a disk into an object in the bucket `images` with the program; returns its report.
pub async fn convert(cloud: &Cloud, disk: &Path, key: &str) -> serde_json::Value {
    let api_key = cloud.folder.path().join("api-key");
    std::fs::write(&api_key, cloud.sim.api_key().reveal()).unwrap();
    let mut command = Command::new(program());
    command.args([
        "convert", "--bucket", "images", "--key", key, "--region", HOME, "--verify", "--json", "--quiet",
        "--device",
    ]);
    command.arg(disk).arg("--api-key-file").arg(api_key).args(["--endpoint", &cloud.sim.store().endpoint()]);
    command.args(["--iam-endpoint", &cloud.sim.iam_endpoint()]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
