//! A store with one bucket, for the program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::manifest::Manifest;
use snapferry_engine::store::{ObjectKey, ObjectStore as _, Overwrite, UploadPlan};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{SimConfig, SimStore};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{folder, snapferry};

pub const BUCKET: &str = "images";
pub const KEY: &str = "disk.qcow2";

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub fn key() -> ObjectKey {
    ObjectKey::new(KEY).expect("a key")
}

/// The embedded store in this process, with one bucket, for commands in other processes.
pub struct Bucket {
    pub sim: SimStore,
    pub runtime: Runtime,
    ca_file: Option<PathBuf>,
    _folder: TempDir,
}

impl Bucket {
    pub fn start() -> Self {
        Self::start_with(None, |_| {})
    }

    pub fn start_with(ca_file: Option<PathBuf>, change: impl FnOnce(&mut SimConfig)) -> Self {
        let (runtime, folder) = (runtime(), folder());
        let mut config = SimConfig::new(folder.path());
        change(&mut config);
        let sim = runtime.block_on(async {
            let sim = SimStore::start(config).await.expect("a store");
            sim.create_bucket(BUCKET).await.expect("a bucket");
            sim
        });
        Self { sim, runtime, ca_file, _folder: folder }
    }

    /// A command with all options that it needs to reach the store, but without the keys.
    pub fn keyless<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = snapferry(args);
        command.args([
            "--bucket",
            BUCKET,
            "--endpoint",
            &self.sim.endpoint(),
            "--region",
            &self.sim.config().region,
        ]);
        command
    }

    /// A command with all options and the right HMAC keys.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.keyless(args);
        let config = self.sim.config();
        command
            .env("AWS_ACCESS_KEY_ID", &config.access_key)
            .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
        command
    }

    /// A command whose arguments name the bucket themselves, with everything else that it needs to reach the
    /// store.
    pub fn command_without_bucket(&self, args: &[&str]) -> Command {
        let mut command = snapferry(args);
        let config = self.sim.config();
        command.args(["--endpoint", &self.sim.endpoint(), "--region", &config.region]);
        command
            .env("AWS_ACCESS_KEY_ID", &config.access_key)
            .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
        command
    }

    /// The command `snapferry convert --device DISK --key KEY`, with `more` arguments.
    pub fn convert(&self, disk: &Path, more: &[&str]) -> Command {
        let mut command = self.command(["convert", "--key", KEY]);
        command.arg("--device").arg(disk).args(more);
        command
    }

    pub fn client_config(&self) -> S3Config {
        let config = self.sim.config();
        let auth = Auth::Hmac {
            access_key: config.access_key.clone(),
            secret_key: config.secret_key.clone(),
            session_token: None,
        };
        let usual = S3Config::new(&self.sim.endpoint(), &config.region, BUCKET, auth);
        S3Config { ca_file: self.ca_file.clone(), ..usual }
    }

    /// Store client without retries.
    pub fn client(&self) -> S3Store {
        let _inside = self.runtime.enter();
        S3Store::connect(self.client_config()).expect("a client")
    }

    pub fn object(&self, key: &ObjectKey) -> Option<Vec<u8>> {
        let client = self.client();
        self.runtime.block_on(async {
            let meta = client.head(key).await.expect("an answer")?;
            Some(client.get_range(key, 0..meta.size, Some(&meta.etag)).await.expect("the object").into())
        })
    }

    pub fn manifest(&self) -> Manifest {
        serde_json::from_slice(&self.object(&key().manifest()).expect("a manifest")).expect("our own JSON")
    }

    /// Begins an upload and leaves it open, as a killed program does.
    pub fn begin_upload(&self, key: &str) {
        let plan = UploadPlan { part_size: ByteCount(8 * MIB), overwrite: Overwrite::Refuse };
        let (client, key) = (self.client(), ObjectKey::new(key).expect("a key"));
        self.runtime.block_on(client.create_upload(&key, &plan)).expect("an upload");
    }

    pub fn open_uploads(&self) -> usize {
        self.runtime.block_on(self.client().list_uploads("")).expect("a list").len()
    }

    /// Asserts that neither image nor manifest nor upload exists.
    #[track_caller]
    pub fn expect_nothing(&self) {
        assert_eq!(self.object(&key()), None, "an image");
        assert_eq!(self.object(&key().manifest()), None, "a manifest");
        assert_eq!(self.open_uploads(), 0, "uploads");
    }
}
