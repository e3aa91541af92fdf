//! `snapferry demo`: a server in a simulated cloud replicated twice, and its disk converted and read back beside qemu-img.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::args::DemoArgs;
use super::exit::Code;
use super::progress::ratio;
use crate::sim::{RegionConfig, ServerSeed, SimRegion, SimStore};
use crate::store::{Auth, ObjectKey, ObjectStore as _, S3Config, S3Store};
use crate::units::{ByteCount, MIB, to_u64};

const BUCKET: &str = "demo";
const KEY: &str = "disk.qcow2";
const REGION: &str = "us-south";
/// The region that images are for.
const AWAY: &str = "us-east";
const SERVER: &str = "web01";
/// One range request of the read back.
const RANGE: u64 = 8 * MIB;

/// The part of convert's report that the table needs.
#[derive(Deserialize)]
struct Outcome {
    virtual_size: ByteCount,
    bytes_stored: u64,
    seconds: f64,
}

/// A line of the table.
struct Row {
    what: &'static str,
    took: Duration,
    size: u64,
}

pub fn run(args: &DemoArgs) -> anyhow::Result<Code> {
    let runtime = super::runtime()?;
    let work = WorkFolder::make()?;
    let mut out = stdout();
    let cloud = runtime.block_on(async {
        let cloud = SimRegion::start(RegionConfig::new(work.path.join("cloud"))).await?;
        cloud.store().create_bucket(BUCKET).await?;
        cloud.seed_server(ServerSeed::new(REGION, SERVER, &args.disk)).await?;
        anyhow::Ok(cloud)
    })?;
    let store = cloud.store();
    writeln!(
        out,
        "1. A simulated cloud listens on {}: region {REGION} with server {SERVER}, whose disk is a copy of yours;",
        cloud.iam_endpoint()
    )?;
    writeln!(out, "   an S3 store beside it on {}, with bucket {BUCKET:?}. All in a temporary folder.", store.endpoint())?;
    writeln!(out, "   $ snapferry boot-volume {SERVER} --region {REGION}")?;
    out.flush()?;
    on_cloud(&cloud, &["boot-volume", SERVER, "--region", REGION])?;
    writeln!(
        out,
        "2. $ snapferry replicate {SERVER} --to {AWAY} --bucket {BUCKET}      twice, so that the second image takes the first one's place"
    )?;
    for _ in 0..2 {
        out.flush()?;
        let done: Replicated = serde_json::from_slice(&replicate(&cloud, &work.path)?).context("the report")?;
        // On a terminal each step was shown as it was taken.
        if !std::io::stderr().is_terminal() {
            done.write(&mut out)?;
        }
    }
    writeln!(out, "   $ snapferry images list --region {AWAY}")?;
    out.flush()?;
    on_cloud(&cloud, &["images", "list", "--region", AWAY])?;
    writeln!(
        out,
        "3. The converter alone, beside qemu-img:\n   $ snapferry convert --device {} --bucket {BUCKET} --key {KEY} --endpoint {}",
        args.disk.display(),
        store.endpoint()
    )?;
    let outcome = convert(&args.disk, store)?;
    let back = work.path.join("back.qcow2");
    writeln!(out, "4. Reading the object back, {} ...", ByteCount(outcome.bytes_stored))?;
    runtime.block_on(read_back(store, &back))?;
    qemu_img(["check", "-q"].map(Path::new).into_iter().chain([back.as_path()]))?;
    let compare = ["compare", "-f", "raw", "-F", "qcow2"].map(Path::new);
    qemu_img(compare.into_iter().chain([args.disk.as_path(), back.as_path()]))?;
    writeln!(out, "   qemu-img check: no errors.   qemu-img compare with {}: images are identical.", args.disk.display())?;
    std::fs::remove_file(&back)?;
    writeln!(out, "5. $ qemu-img convert -c -f raw -O qcow2 {} qemu.qcow2", args.disk.display())?;
    let theirs = work.path.join("qemu.qcow2");
    let begun = Instant::now();
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"].map(Path::new);
    qemu_img(convert.into_iter().chain([args.disk.as_path(), theirs.as_path()]))?;
    let rows = [
        Row {
            what: "snapferry convert, into the bucket",
            took: Duration::from_secs_f64(outcome.seconds),
            size: outcome.bytes_stored,
        },
        Row { what: "qemu-img convert -c, into a file", took: begun.elapsed(), size: std::fs::metadata(&theirs)?.len() },
    ];
    runtime.block_on(cloud.shutdown());
    table(&rows, outcome.virtual_size, &mut out)?;
    Ok(Code::Done)
}

/// Runs this very program on the cloud, with its words on the terminal.
fn on_cloud(cloud: &SimRegion, words: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(std::env::current_exe()?)
        .args(words)
        .arg("--quiet")
        .env("SNAPFERRY_VPC_ENDPOINT", cloud.endpoint_template())
        .env("SNAPFERRY_IAM_ENDPOINT", cloud.iam_endpoint())
        .env("IBMCLOUD_API_KEY", cloud.api_key().reveal())
        .stdin(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("`snapferry {}` failed ({status})", words.join(" "));
    }
    Ok(())
}

/// Replicates the server, with its bar on the terminal; the report.
fn replicate(cloud: &SimRegion, work: &Path) -> anyhow::Result<Vec<u8>> {
    let child = Command::new(std::env::current_exe()?)
        .args(["replicate", SERVER, "--to", AWAY, "--bucket", BUCKET, "--json", "--poll-every", "0.2", "--device-files"])
        .env("SNAPFERRY_VPC_ENDPOINT", cloud.endpoint_template())
        .env("SNAPFERRY_IAM_ENDPOINT", cloud.iam_endpoint())
        .env("SNAPFERRY_METADATA_ENDPOINT", cloud.metadata_endpoint())
        .env("SNAPFERRY_TAGGING_ENDPOINT", cloud.tagging_endpoint())
        .env("SNAPFERRY_DEVICE_FOLDER", cloud.device_folder())
        .env("SNAPFERRY_ENDPOINT", cloud.store().endpoint())
        .env("SNAPFERRY_STATE_FOLDER", work.join("state"))
        .env("IBMCLOUD_API_KEY", cloud.api_key().reveal())
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        // Its log would say the same as the report; a terminal gets the steps and the bar.
        .env("SNAPFERRY_LOG", "warn")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !child.status.success() {
        bail!("replicating failed ({})", child.status);
    }
    Ok(child.stdout)
}

/// What the demo tells of a job's report.
#[derive(Deserialize)]
struct Replicated {
    seconds: f64,
    steps: Vec<Taken>,
}

#[derive(Deserialize)]
struct Taken {
    step: String,
    seconds: f64,
    did: String,
}

impl Replicated {
    fn write(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        for Taken { step, seconds, did } in &self.steps {
            writeln!(out, "   {step:<10} {seconds:>6.1} s  {did}")?;
        }
        writeln!(out, "   {:<10} {:>6.1} s", "all", self.seconds)
    }
}

/// Runs this very program as a user would, its bar on the terminal.
fn convert(disk: &Path, store: &SimStore) -> anyhow::Result<Outcome> {
    let config = store.config();
    let child = Command::new(std::env::current_exe()?)
        .args(["convert", "--bucket", BUCKET, "--key", KEY, "--json", "--in-use", "--device"])
        .arg(disk)
        .args(["--endpoint", &store.endpoint(), "--region", &config.region])
        .env("AWS_ACCESS_KEY_ID", &config.access_key)
        .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !child.status.success() {
        bail!("the conversion failed ({})", child.status);
    }
    serde_json::from_slice(&child.stdout).context("the conversion's report")
}

async fn read_back(sim: &SimStore, to: &Path) -> anyhow::Result<()> {
    let config = sim.config();
    let auth = Auth::Hmac { access_key: config.access_key.clone(), secret_key: config.secret_key.clone(), session_token: None };
    let store = S3Store::connect(S3Config::new(&sim.endpoint(), &config.region, BUCKET, auth))?;
    let key = ObjectKey::new(KEY)?;
    let meta = store.head(&key).await?.context("the object is not there")?;
    let mut file = std::fs::File::create(to)?;
    let mut at = 0;
    while at < meta.size {
        let bytes = store.get_range(&key, at..meta.size.min(at + RANGE), Some(&meta.etag)).await?;
        file.write_all(&bytes)?;
        at += to_u64(bytes.len());
    }
    Ok(())
}

fn qemu_img<'a>(args: impl Iterator<Item = &'a Path>) -> anyhow::Result<()> {
    let run =
        Command::new("qemu-img").args(args).output().context("cannot run qemu-img; on Debian and Ubuntu it is in qemu-utils")?;
    if !run.status.success() {
        bail!("qemu-img says: {}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    }
    Ok(())
}

fn table(rows: &[Row], disk: ByteCount, out: &mut impl std::io::Write) -> std::io::Result<()> {
    writeln!(out, "\n{:<36} {:>9} {:>12} {:>8} {:>8}", format!("a disk of {disk}"), "seconds", "image", "ratio", "speed")?;
    let slowest = rows.iter().map(|row| row.took).max().unwrap_or_default();
    for row in rows {
        let speed = slowest.as_secs_f64() / row.took.as_secs_f64().max(0.001);
        let (seconds, image) = (row.took.as_secs_f64(), ByteCount(row.size).to_string());
        writeln!(out, "{:<36} {seconds:>9.1} {image:>12} {:>8} {speed:>7.1}x", row.what, ratio(row.size, disk.0))?;
    }
    Ok(())
}

/// A temporary folder that goes away with its value.
struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("snapferry-demo-{:016x}", rand::random::<u64>()));
        // A disk's copy is in it: for us alone, and nobody has made it before us.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What can't be removed lies under the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
