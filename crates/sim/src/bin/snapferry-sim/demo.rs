//! `snapferry-sim demo`: replicates a server in a simulated cloud twice, converts its disk, reads the image
//! back, and does the same with qemu-img.

use std::io::{IsTerminal as _, Write, stdout};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use crossbeam_channel::{RecvTimeoutError, bounded, select};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use snapferry_base::cancel::{Cancel, Never};
use snapferry_base::threads;
use snapferry_base::units::{ByteCount, MIB, to_u64};
use snapferry_engine::store::{ObjectKey, ObjectStore as _};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{RegionConfig, ServerSeed, SimRegion, SimStore};
use tokio::runtime::Runtime;

use crate::{Code, second_night};

const BUCKET: &str = "demo";
const KEY: &str = "disk.qcow2";
const REGION: &str = "us-south";
/// Region that images are replicated to.
const RECOVERY_REGION: &str = "us-east";
const SERVER: &str = "web01";
/// Bytes in one range request when the image is read back.
const RANGE: u64 = 8 * MIB;
/// Time for a child process to end by itself.
const GRACE: Duration = Duration::from_secs(3);
const STOPPED: &str = "stopped";
/// Message about the files that remain if the demo is ended at once.
const LEFTOVER_NOTE: &str = "a folder snapferry-demo-... with a copy of the disk is left in TMPDIR or /tmp";
const NO_QEMU_IMG: &str = "cannot run qemu-img; on Debian and Ubuntu it is in qemu-utils";

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The disk: a block device, or a file that holds a raw disk
    #[arg(long, value_name = "PATH")]
    pub disk: PathBuf,
}

/// Fields of convert's report that the table needs.
#[derive(Deserialize)]
struct Outcome {
    virtual_size: ByteCount,
    bytes_stored: u64,
    seconds: f64,
}

/// One row of the table.
struct Row {
    label: &'static str,
    duration: Duration,
    size: u64,
}

/// Program, disk, folder and runtime of one demonstration.
struct Stage<'a> {
    /// Path of `snapferry`, the program that is shown.
    program: &'a Path,
    disk: &'a Path,
    work: &'a Path,
    runtime: &'a Runtime,
    cancel: &'a Cancel,
}

pub fn run(args: &DemoArgs) -> anyhow::Result<Code> {
    // Both programs are checked first, because a missing one would be found only after minutes.
    Command::new("qemu-img").arg("--version").output().context(NO_QEMU_IMG)?;
    let program = snapferry()?;
    let runtime = crate::runtime()?;
    let cancel = Cancel::new();
    // Before the first file that a signal would leave behind.
    crate::listen(runtime.handle(), &cancel, LEFTOVER_NOTE)?;
    let work = WorkFolder::make()?;
    let stage =
        Stage { program: &program, disk: &args.disk, work: &work.path, runtime: &runtime, cancel: &cancel };
    let result = stage.run();
    // The disk may still be being copied: into a file that is removed with its folder.
    runtime.shutdown_background();
    match result {
        Err(_) if cancel.is_cancelled() => Ok(Code::Interrupted),
        result => result.map(|()| Code::Done),
    }
}

impl Stage<'_> {
    fn run(&self) -> anyhow::Result<()> {
        let cloud =
            self.wait_for(async { Ok(SimRegion::start(RegionConfig::new(self.work.join("cloud"))).await?) })?;
        let result = self.run_on(&cloud, &mut stdout());
        // Also after an error: loop devices would remain otherwise.
        self.runtime.block_on(cloud.shutdown());
        result
    }

    fn run_on(&self, cloud: &SimRegion, out: &mut impl Write) -> anyhow::Result<()> {
        self.wait_for(async {
            cloud.store().create_bucket(BUCKET).await?;
            Ok(cloud.seed_server(ServerSeed::new(REGION, SERVER, self.disk)).await?)
        })?;
        self.print_introduction(cloud, out)?;
        self.replicate_twice(cloud, out)?;
        self.compare_with_qemu_img(cloud.store(), out)
    }

    fn print_introduction(&self, cloud: &SimRegion, out: &mut impl Write) -> anyhow::Result<()> {
        writeln!(
            out,
            "1. A simulated cloud listens on {}: region {REGION} with server {SERVER}, whose disk is a copy of yours;",
            cloud.iam_endpoint()
        )?;
        let store = cloud.store().endpoint();
        writeln!(
            out,
            "   an S3 store beside it on {store}, with bucket {BUCKET:?}. All in a temporary folder."
        )?;
        writeln!(out, "   $ snapferry boot-volume {SERVER} --region {REGION}")?;
        out.flush()?;
        self.on_cloud(cloud, &["boot-volume", SERVER, "--region", REGION])
    }

    fn replicate_twice(&self, cloud: &SimRegion, out: &mut impl Write) -> anyhow::Result<()> {
        writeln!(
            out,
            "2. $ snapferry replicate {SERVER} --to {RECOVERY_REGION} --bucket {BUCKET}      twice, so that the second image takes the first one's place"
        )?;
        for night in [Night::First, Night::Second] {
            if night == Night::Second {
                let disk = cloud.boot_disk(REGION, SERVER).context("the server's disk")?;
                let change = second_night::use_disk(&disk, self.work).context("the server's disk")?;
                writeln!(out, "   A day later: on the server's disk {change}.")?;
            }
            out.flush()?;
            let done: Replicated = serde_json::from_slice(&self.replicate(cloud)?).context("the report")?;
            // On a terminal each step was shown as it was taken.
            if !std::io::stderr().is_terminal() {
                done.write(out)?;
            }
            if night == Night::Second {
                writeln!(out, "   {}", done.object.saved())?;
            }
        }
        writeln!(out, "   $ snapferry images list --region {RECOVERY_REGION}")?;
        out.flush()?;
        self.on_cloud(cloud, &["images", "list", "--region", RECOVERY_REGION])
    }

    fn compare_with_qemu_img(&self, store: &SimStore, out: &mut impl Write) -> anyhow::Result<()> {
        let disk = self.disk;
        writeln!(
            out,
            "3. The converter alone, beside qemu-img:\n   $ snapferry convert --device {} --bucket {BUCKET} --key {KEY} --endpoint {}",
            disk.display(),
            store.endpoint()
        )?;
        let outcome = self.convert(store)?;
        let download = self.work.join("back.qcow2");
        writeln!(out, "4. Reading the object back, {} ...", ByteCount(outcome.bytes_stored))?;
        self.wait_for(read_back(store, &download))?;
        self.qemu_img(["check", "-q"].map(Path::new).into_iter().chain([download.as_path()]))?;
        let compare = ["compare", "-f", "raw", "-F", "qcow2"].map(Path::new);
        self.qemu_img(compare.into_iter().chain([disk, download.as_path()]))?;
        writeln!(
            out,
            "   qemu-img check: no errors.   qemu-img compare with {}: images are identical.",
            disk.display()
        )?;
        std::fs::remove_file(&download)?;
        writeln!(out, "5. $ qemu-img convert -c -f raw -O qcow2 {} qemu.qcow2", disk.display())?;
        let qemu_path = self.work.join("qemu.qcow2");
        let started = Instant::now();
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"].map(Path::new);
        self.qemu_img(convert.into_iter().chain([disk, qemu_path.as_path()]))?;
        let rows = [
            Row {
                label: "snapferry convert, into the bucket",
                duration: Duration::from_secs_f64(outcome.seconds),
                size: outcome.bytes_stored,
            },
            Row {
                label: "qemu-img convert -c, into a file",
                duration: started.elapsed(),
                size: std::fs::metadata(&qemu_path)?.len(),
            },
        ];
        Ok(table(&rows, outcome.virtual_size, out)?)
    }

    /// Returns a `snapferry` command that ignores the machine's configuration and environment, because the
    /// cloud is a simulated one.
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["SNAPFERRY_", "AWS_", "IBMCLOUD_"].iter().any(|prefix| text.starts_with(prefix))
                || text == "CREDENTIALS_DIRECTORY"
            {
                command.env_remove(&name);
            }
        }
        command.env("SNAPFERRY_CONFIG", "/dev/null");
        command
    }

    /// Runs a command on the cloud, with its output on the terminal.
    fn on_cloud(&self, cloud: &SimRegion, args: &[&str]) -> anyhow::Result<()> {
        let mut command = self.command();
        command
            .args(args)
            .arg("--quiet")
            .env("SNAPFERRY_VPC_ENDPOINT", cloud.endpoint_template())
            .env("SNAPFERRY_IAM_ENDPOINT", cloud.iam_endpoint())
            .env("IBMCLOUD_API_KEY", cloud.api_key().reveal());
        let status = self.finish(&mut command)?.status;
        if !status.success() {
            bail!("`snapferry {}` failed ({status})", args.join(" "));
        }
        Ok(())
    }

    /// Replicates the server, with the progress bar on the terminal, and returns the report.
    fn replicate(&self, cloud: &SimRegion) -> anyhow::Result<Vec<u8>> {
        let mut command = self.command();
        command
            .args([
                "replicate",
                SERVER,
                "--to",
                RECOVERY_REGION,
                "--bucket",
                BUCKET,
                "--json",
                "--poll-every",
                "0.2",
                "--device-files",
            ])
            .env("SNAPFERRY_VPC_ENDPOINT", cloud.endpoint_template())
            .env("SNAPFERRY_IAM_ENDPOINT", cloud.iam_endpoint())
            .env("SNAPFERRY_METADATA_ENDPOINT", cloud.metadata_endpoint())
            .env("SNAPFERRY_TAGGING_ENDPOINT", cloud.tagging_endpoint())
            .env("SNAPFERRY_DEVICE_FOLDER", cloud.device_folder())
            .env("SNAPFERRY_ENDPOINT", cloud.store().endpoint())
            .env("SNAPFERRY_STATE_FOLDER", self.work.join("state"))
            .env("IBMCLOUD_API_KEY", cloud.api_key().reveal())
            // The log would repeat the report; a terminal gets the steps and the progress bar.
            .env("SNAPFERRY_LOG", "warn")
            .stdout(Stdio::piped());
        let child = self.finish(&mut command)?;
        if !child.status.success() {
            bail!("replicating failed ({})", child.status);
        }
        Ok(child.stdout)
    }

    /// Converts the disk as a user would, with the progress bar on the terminal.
    fn convert(&self, store: &SimStore) -> anyhow::Result<Outcome> {
        let config = store.config();
        let mut command = self.command();
        command
            .args(["convert", "--bucket", BUCKET, "--key", KEY, "--json", "--in-use", "--device"])
            .arg(self.disk)
            .args(["--endpoint", &store.endpoint(), "--region", &config.region])
            .env("AWS_ACCESS_KEY_ID", &config.access_key)
            .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal())
            .stdout(Stdio::piped());
        let child = self.finish(&mut command)?;
        if !child.status.success() {
            bail!("the conversion failed ({})", child.status);
        }
        serde_json::from_slice(&child.stdout).context("the conversion's report")
    }

    fn qemu_img<'a>(&self, args: impl Iterator<Item = &'a Path>) -> anyhow::Result<()> {
        let mut command = Command::new("qemu-img");
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = self.finish(&mut command).context(NO_QEMU_IMG)?;
        if !run.status.success() {
            bail!(
                "qemu-img says: {}{}",
                String::from_utf8_lossy(&run.stdout),
                String::from_utf8_lossy(&run.stderr)
            );
        }
        Ok(())
    }

    /// Waits for requests to end, or until the user stops the demo.
    fn wait_for<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                _ = self.cancel.cancelled() => bail!(STOPPED),
            }
        })
    }

    /// Runs a command to its end. If the user stops the demo, the command has a moment to end, and is killed
    /// then: all that it can leave behind is simulated, too.
    fn finish(&self, command: &mut Command) -> anyhow::Result<Output> {
        let child = command.stdin(Stdio::null()).spawn()?;
        // Not by its process id, which may be another process's once it has ended.
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let (running, ended) = bounded::<Never>(0);
        let output = std::thread::scope(|scope| {
            let killing = || {
                select! {
                    recv(self.cancel.closed()) -> _ => {}
                    recv(ended) -> _ => return,
                }
                // A terminal's Ctrl-C has reached the child as well, a `kill` of this process has not.
                if matches!(ended.recv_timeout(GRACE), Err(RecvTimeoutError::Timeout)) {
                    let _ended_just_now = pidfd_send_signal(&process, Signal::KILL);
                }
            };
            // If the thread can't be started, the child is still waited for, and gets a terminal's Ctrl-C by
            // itself.
            let _joined_by_the_scope = threads::spawn_scoped(scope, "end a child", killing);
            let output = child.wait_with_output();
            drop(running);
            output
        })?;
        if self.cancel.is_cancelled() {
            bail!(STOPPED);
        }
        Ok(output)
    }
}

/// Returns the path of the `snapferry` beside this program, or else the name that a shell would look up.
///
/// # Errors
/// If it can't be run.
fn snapferry() -> anyhow::Result<PathBuf> {
    let sibling = std::env::current_exe()?.with_file_name("snapferry");
    let path = if sibling.is_file() { sibling } else { PathBuf::from("snapferry") };
    let found = Command::new(&path).arg("--version").output();
    found.with_context(|| format!("cannot run {}; `cargo build -p snapferry` makes it", path.display()))?;
    Ok(path)
}

/// Fields of a job's report that the demo shows.
#[derive(Deserialize)]
struct Replicated {
    seconds: f64,
    steps: Vec<Taken>,
    object: Sent,
}

/// What the second night took from the first one.
#[derive(Deserialize)]
struct Sent {
    bytes_sent: Option<ByteCount>,
    base: Option<Base>,
    full_because: Option<String>,
}

#[derive(Deserialize)]
struct Base {
    segments: u64,
    segments_unchanged: u64,
    bytes_copied: ByteCount,
}

impl Sent {
    fn saved(&self) -> String {
        let sent = self.bytes_sent.unwrap_or_default();
        match &self.base {
            Some(Base { segments, segments_unchanged, bytes_copied }) => format!(
                "{segments_unchanged} of {segments} segments unchanged; {bytes_copied} copied in the store, {sent} sent"
            ),
            None => {
                let reason = self.full_because.as_deref().unwrap_or_default();
                format!("{sent} sent, nothing copied: {reason}")
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Night {
    First,
    Second,
}

#[derive(Deserialize)]
struct Taken {
    step: String,
    seconds: f64,
    did: String,
}

impl Replicated {
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        for Taken { step, seconds, did } in &self.steps {
            writeln!(out, "   {step:<10} {seconds:>6.1} s  {did}")?;
        }
        writeln!(out, "   {:<10} {:>6.1} s", "all", self.seconds)
    }
}

async fn read_back(sim: &SimStore, to: &Path) -> anyhow::Result<()> {
    let config = sim.config();
    let auth = Auth::Hmac {
        access_key: config.access_key.clone(),
        secret_key: config.secret_key.clone(),
        session_token: None,
    };
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

/// Formats `small` divided by `large`, to four digits.
fn ratio(small: u64, large: u64) -> String {
    let ten_thousandths = u128::from(small) * 10_000 / u128::from(large.max(1));
    format!("{}.{:04}", ten_thousandths / 10_000, ten_thousandths % 10_000)
}

fn table(rows: &[Row], disk: ByteCount, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "\n{:<36} {:>9} {:>12} {:>8} {:>8}",
        format!("a disk of {disk}"),
        "seconds",
        "image",
        "ratio",
        "speed"
    )?;
    let slowest = rows.iter().map(|row| row.duration).max().unwrap_or_default();
    for row in rows {
        let speed = slowest.as_secs_f64() / row.duration.as_secs_f64().max(0.001);
        let (seconds, image) = (row.duration.as_secs_f64(), ByteCount(row.size).to_string());
        writeln!(
            out,
            "{:<36} {seconds:>9.1} {image:>12} {:>8} {speed:>7.1}x",
            row.label,
            ratio(row.size, disk.0)
        )?;
    }
    Ok(())
}

/// Temporary folder that is removed on drop.
struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("snapferry-demo-{:016x}", rand::random::<u64>()));
        // A copy of the disk is in it: only this user may read it, and no other process may have made it
        // before.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // Files that can't be removed stay in the system's folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
