//! A cloud in which the program replicates a server.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use snapferry_base::units::{ByteCount, MIB};
use snapferry_ibmcloud::vpc::model::{Image, ImageState, Snapshot};
use snapferry_ibmcloud::vpc::{ImageFilter, SnapshotFilter, VolumeFilter};
use snapferry_sim::{Delays, HistoryEntry, RegionConfig, RegionOperation, ServerSeed, SimRegion};
use snapferry_testkit::disks::{Disk, Kind};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{AWAY, BUCKET, Ended, HOME, SERVER, client_of, folder, program};

/// Second server that converts, in another zone.
const OTHER: &str = "ferry2";

/// Server on which a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The cloud's own server.
    Own,
    /// A second server, in another zone, which has none of the first one's files.
    Other,
}

/// A cloud with a server to replicate and a bucket.
pub struct Bench {
    pub sim: SimRegion,
    pub folder: TempDir,
}

/// Age after which the histories of earlier runs are removed.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// Past of a cloud that tests begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// [`SERVER`] was replicated twice. Its disk is too small for an image that others are copied from.
    TwoNights,
    /// [`SERVER`] was replicated once. Its image is large enough to be copied from.
    LargeNight,
}

impl Past {
    fn name(self) -> &'static str {
        match self {
            Self::TwoNights => "cloud",
            Self::LargeNight => "large",
        }
    }

    async fn make(self) -> Bench {
        match self {
            Self::TwoNights => {
                let bench = Bench::start().await;
                for _ in 0..2 {
                    bench.run(Host::Own, &[]).await.code(0);
                }
                bench
            }
            Self::LargeNight => {
                let bench = Bench::start_large().await;
                bench.run(Host::Own, &[]).await.code(0);
                bench
            }
        }
    }
}

/// Returns a folder with a cloud that has this past. nextest starts a process for each test; the first one
/// that needs the folder makes it for all of them, under a lock.
async fn history(past: Past) -> PathBuf {
    let histories = Path::new(env!("CARGO_TARGET_TMPDIR")).join("histories").join(past.name());
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let folder = histories.join(run);
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
    if !folder.join("cloud").exists() {
        for earlier in std::fs::read_dir(&histories).unwrap().flatten() {
            let age = earlier.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            if age.is_ok_and(|age| age.is_ok_and(|age| age > OLD)) {
                let _ = std::fs::remove_dir_all(earlier.path());
            }
        }
        let bench = past.make().await;
        bench.sim.shutdown().await;
        let unfinished = folder.join("unfinished");
        let _ = std::fs::remove_dir_all(&unfinished);
        std::fs::create_dir(&unfinished).unwrap();
        copy(&bench.folder.path().join("cloud"), &unfinished);
        std::fs::rename(unfinished.join("cloud"), folder.join("cloud")).unwrap();
    }
    drop(lock);
    folder
}

/// Copies a folder into another one, with its holes.
fn copy(from: &Path, into: &Path) {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(into).status();
    assert!(copied.unwrap().success());
}

fn config(folder: &Path) -> RegionConfig {
    let bucket_locations = BTreeMap::from([(BUCKET.to_owned(), AWAY.to_owned())]);
    RegionConfig {
        least_capacity: 1,
        delays: Delays::all(Duration::from_millis(10)),
        other_servers: vec![(OTHER.to_owned(), 2)],
        bucket_locations,
        ..RegionConfig::new(folder)
    }
}

/// Adds a region, for a second destination.
fn with_third_region(mut config: RegionConfig) -> RegionConfig {
    config.regions.push("eu-de".to_owned());
    config
}

impl Bench {
    /// Starts a cloud with [`SERVER`] in [`HOME`], which was not replicated yet.
    pub async fn start() -> Self {
        Self::start_with(|config| config).await
    }

    pub async fn start_with(change: impl FnOnce(RegionConfig) -> RegionConfig) -> Self {
        let folder = folder();
        let sim = SimRegion::start(change(config(&folder.path().join("cloud")))).await.unwrap();
        sim.store().create_bucket(BUCKET).await.unwrap();
        let disk = folder.path().join("web01.raw");
        Disk { kind: Kind::Mixed, size: ByteCount(6 * MIB), seed: 5 }.write(&disk).unwrap();
        sim.seed_server(ServerSeed::new(HOME, SERVER, &disk)).await.unwrap();
        Self { sim, folder }
    }

    /// Starts a cloud with [`SERVER`], whose disk gives an image that is large enough to copy from: six of
    /// its segments hold bytes that do not shrink, and one holds files.
    pub async fn start_large() -> Self {
        let bench = Self::start_with(with_third_region).await;
        let disk = bench.sim.boot_disk(HOME, SERVER).expect("the server's disk");
        let file = std::fs::OpenOptions::new().write(true).open(disk).unwrap();
        let write = |at: u64, kind, size, seed| {
            let bytes = Disk { kind, size: ByteCount(size), seed }.to_vec();
            file.write_all_at(&bytes, at).unwrap();
        };
        write(0, Kind::Random, 96 * MIB, 7);
        write(96 * MIB, Kind::Mixed, 8 * MIB, 8);
        bench
    }

    /// Changes a few bytes of two of the server's segments, as a night's work would.
    pub fn use_disk(&self, night: u8) {
        let disk = self.sim.boot_disk(HOME, SERVER).expect("the server's disk");
        let file = std::fs::OpenOptions::new().write(true).open(disk).unwrap();
        file.write_all_at(&[night; 5000], 20 * MIB).unwrap();
        file.write_all_at(&[night; 300], 100 * MIB).unwrap();
    }

    /// Path of the file in which the store keeps an object.
    pub fn stored(&self, key: &str) -> PathBuf {
        self.sim.store().config().folder.join(BUCKET).join(key.replace('/', "%2F"))
    }

    /// Starts a cloud that has two images of [`SERVER`] already: a copy of a cloud that is made once for each
    /// run of the tests.
    pub async fn with_history() -> Self {
        static MADE: OnceCell<PathBuf> = OnceCell::const_new();
        Self::of(MADE.get_or_init(|| history(Past::TwoNights)).await, |config| config).await
    }

    /// Starts a cloud that has one image of [`SERVER`], which is large enough to copy from.
    pub async fn with_large_night() -> Self {
        static MADE: OnceCell<PathBuf> = OnceCell::const_new();
        Self::of(MADE.get_or_init(|| history(Past::LargeNight)).await, with_third_region).await
    }

    async fn of(made: &Path, change: impl FnOnce(RegionConfig) -> RegionConfig) -> Self {
        let folder = folder();
        copy(&made.join("cloud"), folder.path());
        let sim = SimRegion::start(change(config(&folder.path().join("cloud")))).await.unwrap();
        Self { sim, folder }
    }

    /// Writes a raw disk for another server, and returns its path.
    pub fn disk(&self) -> PathBuf {
        let disk = self.folder.path().join("another.raw");
        Disk { kind: Kind::Mixed, size: ByteCount(2 * MIB), seed: 6 }.write(&disk).unwrap();
        disk
    }

    /// The path of a file in the bench's own folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file with this text, and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub fn state_folder(&self, host: Host) -> PathBuf {
        self.folder.path().join(match host {
            Host::Own => "state",
            Host::Other => "other-state",
        })
    }

    /// A command with this cloud in its environment.
    pub fn command(&self, host: Host, args: &[&str]) -> Command {
        let key = self.folder.path().join("api-key");
        if !key.exists() {
            // Atomically: a running worker may read the file at any time.
            let new = key.with_extension("new");
            std::fs::write(&new, self.sim.api_key().reveal()).unwrap();
            std::fs::rename(&new, &key).unwrap();
        }
        let mut command = Command::new(program());
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SNAPFERRY_VPC_ENDPOINT", self.sim.endpoint_template());
        command.env("SNAPFERRY_IAM_ENDPOINT", self.sim.iam_endpoint());
        command.env("SNAPFERRY_METADATA_ENDPOINT", self.sim.metadata_endpoint());
        command.env("SNAPFERRY_TAGGING_ENDPOINT", self.sim.tagging_endpoint());
        command.env("SNAPFERRY_ENDPOINT", self.sim.store().endpoint());
        command.env("SNAPFERRY_API_KEY_FILE", key);
        command
            .env("SNAPFERRY_VPC_REGION", HOME)
            .env("SNAPFERRY_RECOVERY_REGION", AWAY)
            .env("SNAPFERRY_BUCKET", BUCKET);
        command.env("SNAPFERRY_STATE_FOLDER", self.state_folder(host));
        let devices = match host {
            Host::Own => self.sim.device_folder(),
            Host::Other => self.sim.device_folder_of(OTHER),
        };
        command.env("SNAPFERRY_DEVICE_FOLDER", devices);
        let converts = ["replicate", "worker"].contains(&args[0]);
        if converts || args[0] == "gc" {
            command.args(["--poll-every", "0.02"]);
            if host == Host::Other {
                command.args(["--instance", &self.sim.instance_id(OTHER)]);
            }
        }
        if converts {
            command.args(["--device-files"]);
        }
        command
    }

    pub async fn finish(&self, mut command: Command) -> Ended {
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let ended = Ended::from(output);
        let key = self.sim.api_key();
        assert!(
            !ended.out.contains(key.reveal()) && !ended.err.contains(key.reveal()),
            "the API key is shown"
        );
        ended
    }

    /// Runs `replicate SERVER` with these options.
    pub async fn run(&self, host: Host, args: &[&str]) -> Ended {
        self.finish(self.command(host, &[&["replicate", SERVER], args].concat())).await
    }

    pub async fn resume(&self, host: Host) -> Ended {
        self.run(host, &["--resume"]).await
    }

    /// Runs `gc --apply`; returns the kinds of what it removed.
    pub async fn gc(&self, host: Host) -> Vec<String> {
        let report =
            self.finish(self.command(host, &["gc", "--apply", "--min-age", "0s", "--json"])).await.json();
        let removed = report["removed"].as_array().unwrap();
        assert!(removed.iter().all(|removed| removed["error"].is_null()), "{report}");
        removed.iter().map(|removed| removed["kind"].as_str().unwrap().to_owned()).collect()
    }

    pub fn client(&self, region: &str) -> snapferry_ibmcloud::vpc::RegionClient {
        client_of(&self.sim, region)
    }

    pub async fn images(&self) -> Vec<Image> {
        self.client(AWAY).images(&ImageFilter::default()).await.unwrap()
    }

    pub async fn latest(&self) -> Option<Image> {
        self.client(AWAY).image_by_name("web01-latest").await.unwrap()
    }

    pub async fn snapshots(&self) -> Vec<Snapshot> {
        self.client(HOME).snapshots(&SnapshotFilter::default()).await.unwrap()
    }

    /// Number of successful requests of this operation, from index `since` of the history on.
    pub fn made(&self, operation: RegionOperation, since: usize) -> usize {
        let history: Vec<HistoryEntry> = self.sim.history();
        history.iter().skip(since).filter(|entry| entry.operation == operation && entry.status < 300).count()
    }

    /// Resources that cost money and have no use, as text.
    pub async fn leaks(&self) -> Vec<String> {
        let home = self.client(HOME);
        let mut leaks = Vec::new();
        for volume in home.volumes(&VolumeFilter::default()).await.unwrap() {
            if volume.source_snapshot.is_some() {
                leaks.push(format!("volume {}", volume.name));
            }
        }
        for server in home.instances().await.unwrap() {
            let data = home
                .attachments(&server.id)
                .await
                .unwrap()
                .into_iter()
                .filter(|attachment| attachment.kind.as_deref() == Some("data"));
            leaks.extend(data.map(|attachment| format!("attachment {} of {}", attachment.name, server.name)));
        }
        for snapshot in self.snapshots().await {
            if !snapshot.user_tags.iter().any(|tag| tag == "snapferry:done") {
                leaks.push(format!("snapshot {}", snapshot.name));
            }
            for clone in home.clones(&snapshot.id).await.unwrap() {
                leaks.push(format!("clone of {} in {}", snapshot.name, clone.zone.name));
            }
        }
        // An image that still has the name of its import never became the latest.
        let imported: Vec<String> = self
            .sim
            .history()
            .into_iter()
            .filter(|entry| entry.operation == RegionOperation::CreateImage)
            .filter_map(|entry| entry.name)
            .collect();
        for image in self.images().await {
            if imported.contains(&image.name) || image.status != ImageState::Available {
                leaks.push(format!("image {} ({})", image.name, image.status));
            }
        }
        leaks.extend(self.store_leaks());
        leaks
    }

    /// Uploads, and objects without manifests or manifests without objects, in the store's own folder.
    fn store_leaks(&self) -> Vec<String> {
        let bucket = self.sim.store().config().folder.join(BUCKET);
        let names = |folder: PathBuf| -> Vec<String> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| !name.starts_with('.'))
                .collect()
        };
        let mut leaks: Vec<String> =
            names(bucket.join(".uploads")).into_iter().map(|id| format!("upload {id}")).collect();
        let objects = names(bucket);
        for object in &objects {
            let counterpart = match object.strip_suffix(".manifest") {
                Some(image) => image.to_owned(),
                None => format!("{object}.manifest"),
            };
            if !objects.contains(&counterpart) {
                leaks.push(format!("half an object: {object}"));
            }
        }
        leaks
    }
}
