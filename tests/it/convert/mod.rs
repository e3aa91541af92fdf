//! The converter from end to end: in process if only the image matters, through the program if its output
//! matters.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `matrix` | every codec, level and cluster size on disks of every kind and size |
//! | `devices` | real devices and file systems that fail |
//! | `faults` | sources and stores that fail on command |
//! | `cli` | refusals, reports, incomplete uploads |
//! | `memory` | the peak that the plan promises |
//! | `secrets` | no secret in output, errors or objects |

mod cli;
mod devices;
mod faults;
mod matrix;
mod memory;
mod secrets;

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::units::{ByteCount, GuestOffset, to_u64, to_usize};
use snapferry_engine::convert::plan::{CHUNK, Options};
use snapferry_engine::convert::{Conversion, Converted, Failure, Target, plan_for};
use snapferry_engine::hash::Crc64;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{InUse, RawSource, Source};
use snapferry_engine::store::Location;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{FolderStore, ObjectKey, ObjectStore};
use snapferry_qcow2::SEGMENT;
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{SimConfig, SimStore};
use snapferry_testkit::disks::Disk;
use snapferry_testkit::model::Model;
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const BUCKET: &str = "images";
pub const KEY: &str = "disk.qcow2";

/// Longest wait for a condition of a test; after it, the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder on the build's file system, which supports O_DIRECT and holes; the system's temporary folder may
/// not.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub fn key() -> ObjectKey {
    ObjectKey::new(KEY).expect("a key")
}

/// Polls until `holds` returns true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Converts in this process, to the key [`KEY`].
pub fn convert(
    source: &dyn Source,
    store: &Arc<dyn ObjectStore>,
    kind: Location,
    options: &Options,
) -> Result<Converted, Failure> {
    let plan = plan_for(source, options, kind)?;
    let runtime = runtime();
    Conversion {
        source,
        target: Target { store: Arc::clone(store), key: key(), overwrite: Overwrite::Refuse },
        plan: &plan,
        host: "a-host".to_owned(),
        clock: &SystemClock,
        cancel: Cancel::new(),
        counters: Arc::default(),
    }
    .run(runtime.handle())
}

/// A raw disk in a file, and the image and manifest made of it.
pub struct Made {
    pub folder: TempDir,
    pub raw: PathBuf,
    pub path: PathBuf,
    pub image: Vec<u8>,
    pub manifest: Manifest,
}

/// Converts a file in this process into a file.
pub fn convert_file(raw: &Path, options: &Options) -> Made {
    let folder = folder();
    let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::new(folder.path().to_owned()));
    let source = RawSource::open(raw, InUse::Refuse).expect("a source");
    let converted = convert(&source, &store, Location::File, options)
        .unwrap_or_else(|failure| panic!("{}, {options:?}: {failure}", raw.display()));
    let path = folder.path().join(KEY);
    let image = std::fs::read(&path).expect("the image");
    let stored = std::fs::read(folder.path().join(key().manifest().as_str())).expect("the manifest");
    let manifest: Manifest = serde_json::from_slice(&stored).expect("a manifest");
    assert_eq!(manifest, converted.manifest, "the manifest that was stored and the one that was handed back");
    assert_eq!(left_in(folder.path()), [KEY, key().manifest().as_str()]);
    Made { raw: raw.to_owned(), path, image, manifest, folder }
}

/// Writes the disk into a file, and converts that file.
pub fn convert_disk(disk: &Disk, options: &Options) -> Made {
    let home = folder();
    let raw = home.path().join("disk.raw");
    disk.write(&raw).expect("a disk");
    let made = convert_file(&raw, options);
    std::fs::rename(&raw, made.folder.path().join("disk.raw")).expect("moved");
    Made { raw: made.folder.path().join("disk.raw"), ..made }
}

/// Names in a folder, sorted.
pub fn left_in(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Pads the disk with zeros to whole sectors, as the guest sees it.
pub fn padded(disk: &[u8]) -> Vec<u8> {
    let mut padded = disk.to_vec();
    padded.resize(disk.len().next_multiple_of(512), 0);
    padded
}

/// Calculates everything in the manifest again from the disk's and the image's bytes alone, and reads the
/// disk back from the image.
pub fn prove(disk: &[u8], image: &[u8], manifest: &Manifest) {
    let model = Model::read(image).expect("a sound image");
    assert!(model.disk().expect("every body decodes") == padded(disk), "the image holds another disk");
    assert_eq!(manifest.source.size, ByteCount(to_u64(disk.len())));
    assert_eq!(manifest.image.accounted, Some(manifest.source.size));
    assert_eq!(manifest.image.virtual_size.0, model.virtual_size);
    assert_eq!(manifest.image.size, ByteCount(to_u64(image.len())));
    assert_eq!(manifest.image.crc64, Crc64::of(image));
    assert_eq!(manifest.encoder.cluster_size.0, model.cluster_size);
    prove_segments(disk, image, manifest);
}

fn prove_segments(disk: &[u8], image: &[u8], manifest: &Manifest) {
    let cluster = manifest.encoder.cluster_size.0;
    assert_eq!((manifest.encoder.segment_size, manifest.encoder.chunk_size), (SEGMENT, CHUNK));
    let mut segments = manifest.segments.iter();
    let mut end = None;
    for (guest, bytes) in (0..).step_by(to_usize(SEGMENT.0)).zip(disk.chunks(to_usize(SEGMENT.0))) {
        if bytes.iter().all(|&byte| byte == 0) {
            continue;
        }
        let segment = segments.next().unwrap_or_else(|| panic!("the segment at {guest} is missing"));
        assert_eq!(segment.guest, GuestOffset(guest));
        let of_chunks: Vec<u8> =
            bytes.chunks(to_usize(CHUNK.0)).flat_map(|chunk| *blake3::hash(chunk).as_bytes()).collect();
        assert_eq!(segment.blake3, Some(blake3::hash(&of_chunks)), "the hash of the segment at {guest}");
        let gap = segment.host.0 - end.unwrap_or(segment.host.0);
        assert!(gap < cluster, "{gap} bytes of nothing before the segment at {guest}");
        assert!(
            gap == 0 || segment.host.0.is_multiple_of(cluster),
            "a gap that puts the segment at {guest} nowhere"
        );
        end = Some(segment.host.0 + segment.length);
        let stored = &image[to_usize(segment.host.0)..to_usize(segment.host.0 + segment.length)];
        assert_eq!(segment.crc64, Crc64::of(stored), "the CRC of the segment at {guest}");
    }
    assert_eq!(segments.next(), None, "a segment that holds nothing");
}

/// A `snapferry` command that inherits nothing of the caller's environment.
pub fn snapferry<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapferry"));
    command.args(args).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// Exit code and output of a command.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Ended {
    /// Parses the report of `--json`; the exit code must be 0.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.report()
    }

    /// Parses the report of `--json`, whatever the exit code.
    pub fn report(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// Asserts that the command ended with this code, and that stderr contains each of these texts.
    #[track_caller]
    pub fn expect(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        for words in says {
            assert!(self.err.contains(words), "{words:?} is not in: {}", self.err);
        }
    }
}

pub fn run(mut command: Command) -> Ended {
    command.output().expect("the command runs").into()
}

/// The command `snapferry convert --device DISK --output IMAGE`, with `more` arguments.
pub fn into_file(disk: &Path, image: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["convert", "--device"]);
    command.arg(disk).arg("--output").arg(image).args(more);
    command
}

/// A running command, killed when this is dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts")))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("taken only at the end")
    }

    pub fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).expect("it is there to be signalled");
    }

    pub fn is_running(&mut self) -> bool {
        self.child().try_wait().expect("our child").is_none()
    }

    /// Waits for the command's end; fails if it does not come in time.
    pub fn end(mut self) -> Ended {
        wait_until("the command ends", || !self.is_running());
        self.0.take().expect("not taken yet").wait_with_output().expect("its output").into()
    }

    /// Reads stdout up to the first line that begins with `prefix`, and returns the rest of that line.
    pub fn line(&mut self, prefix: &str) -> String {
        // Borrowed, not taken: the pipe must stay open for the command's later output.
        let out = self.child().stdout.as_mut().expect("piped");
        let mut line = String::new();
        let mut byte = [0];
        while out.read(&mut byte).expect("its output") == 1 {
            match byte[0] {
                b'\n' if line.starts_with(prefix) => return line.split_off(prefix.len()),
                b'\n' => line.clear(),
                other => line.push(char::from(other)),
            }
        }
        panic!("no line begins with {prefix}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // The command may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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
    pub fn in_other_words(&self, args: &[&str]) -> Command {
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
