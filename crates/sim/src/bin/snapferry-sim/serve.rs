//! `snapferry-sim store` and `snapferry-sim region`: the services by themselves, for trying commands on them.

use std::env::var;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _, stdout};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use snapferry_base::cancel::Cancel;
use snapferry_base::secret::Secret;
use snapferry_sim::{Delays, RegionConfig, ServerSeed, SimConfig, SimRegion, SimStore};

use crate::{Code, UsageError};

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Folder for the objects
    #[arg(long, value_name = "FOLDER")]
    pub dir: PathBuf,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,

    /// Create this bucket if it does not exist; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub bucket: Vec<String>,

    /// Inject the faults that this JSON file describes
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RegionArgs {
    /// Folder for all data of the cloud
    #[arg(long, value_name = "FOLDER")]
    pub dir: PathBuf,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,

    /// Port of the store; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub store_port: u16,

    /// Create this region; may be given more than once, home first [default: us-south, us-east]
    #[arg(long, value_name = "NAME")]
    pub region: Vec<String>,

    /// Raw disk for a server to boot from
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,

    /// Name of the server that boots from the disk
    #[arg(long, value_name = "NAME", default_value = "web01")]
    pub server: String,

    /// Create this bucket if it does not exist; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub bucket: Vec<String>,

    /// Smallest volume and image, in GB
    #[arg(long, value_name = "GB", default_value_t = 10)]
    pub least_capacity: u64,

    /// Duration of each state, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub delay_ms: u64,

    /// Inject the faults that this JSON file describes
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
}

pub fn store(args: &StoreArgs) -> anyhow::Result<Code> {
    let runtime = crate::runtime()?;
    let cancel = Cancel::new();
    crate::listen(runtime.handle(), &cancel, "")?;
    runtime.block_on(async {
        let mut config = SimConfig::new(&args.dir);
        config.bind = (std::net::Ipv4Addr::LOCALHOST, args.port).into();
        // If the environment has keys and a region, the store takes those, so that a script need not read the
        // printed ones.
        if let (Ok(access_key), Ok(secret)) = (var("AWS_ACCESS_KEY_ID"), var("AWS_SECRET_ACCESS_KEY")) {
            config.access_key = access_key;
            config.secret_key = Secret::new(&secret);
        }
        if let Ok(region) = var("AWS_REGION") {
            config.region = region;
        }
        let store = SimStore::start(config).await?;
        if let Some(path) = &args.faults {
            store.faults().add_file(path).map_err(|error| UsageError(error.to_string()))?;
        }
        for bucket in &args.bucket {
            store.create_bucket(bucket).await?;
        }
        let config = store.config();
        let mut out = stdout();
        writeln!(out, "export AWS_ENDPOINT_URL_S3={}", store.endpoint())?;
        writeln!(out, "export AWS_REGION={}", config.region)?;
        writeln!(out, "export AWS_ACCESS_KEY_ID={}", config.access_key)?;
        // A random key of a store that listens on this machine alone.
        writeln!(out, "export AWS_SECRET_ACCESS_KEY={}", config.secret_key.reveal())?;
        writeln!(out, "# serving {} until Ctrl-C", args.dir.display())?;
        out.flush()?;
        cancel.cancelled().await;
        store.shutdown().await;
        Ok(Code::Done)
    })
}

/// File whose lines make every command use the simulated cloud, for a shell's `.`.
const EXPORTS: &str = "env";

/// Quotes a value for a shell, if it needs that.
fn shell_quote(text: &str) -> String {
    if text.contains(char::is_whitespace) {
        format!("'{}'", text.replace('\'', r"'\''"))
    } else {
        text.to_owned()
    }
}

/// Reads the folder's API key, and creates it if there is none: it stays the same over restarts.
fn api_key(folder: &Path) -> io::Result<(PathBuf, Secret)> {
    fs::create_dir_all(folder)?;
    let path = folder.join("api-key");
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let key = format!("{:032x}", rand::random::<u128>());
            file.write_all(key.as_bytes())?;
            Ok((path, Secret::new(&key)))
        }
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
            let key = Secret::new(&fs::read_to_string(&path)?);
            Ok((path, key))
        }
        Err(err) => Err(err),
    }
}

pub fn region(args: &RegionArgs) -> anyhow::Result<Code> {
    let runtime = crate::runtime()?;
    let cancel = Cancel::new();
    crate::listen(runtime.handle(), &cancel, "")?;
    runtime.block_on(async {
        fs::create_dir_all(&args.dir)?;
        // The printed lines must be valid in any working folder.
        let folder = args.dir.canonicalize()?;
        let (key_file, api_key) = api_key(&folder)?;
        let mut config = RegionConfig::new(&folder);
        config.bind = (std::net::Ipv4Addr::LOCALHOST, args.port).into();
        config.store_port = args.store_port;
        config.api_key = api_key;
        config.least_capacity = args.least_capacity;
        config.delays = Delays::all(Duration::from_millis(args.delay_ms));
        if !args.region.is_empty() {
            config.regions.clone_from(&args.region);
        }
        let home_region = config.regions.first().cloned().unwrap_or_default();
        let recovery_region = config.regions.get(1).unwrap_or(&home_region).clone();
        let sim = SimRegion::start(config).await?;
        if let Some(path) = &args.faults {
            sim.faults().add_file(path).map_err(|error| UsageError(error.to_string()))?;
        }
        for bucket in &args.bucket {
            sim.store().create_bucket(bucket).await?;
        }
        if let Some(disk) = &args.disk {
            sim.seed_server(ServerSeed::new(&home_region, &args.server, disk)).await?;
        }
        let mut settings = vec![
            ("VPC_ENDPOINT", sim.endpoint_template()),
            ("VPC_REGION", home_region),
            ("RECOVERY_REGION", recovery_region.clone()),
            ("IAM_ENDPOINT", sim.iam_endpoint()),
            ("METADATA_ENDPOINT", sim.metadata_endpoint()),
            ("TAGGING_ENDPOINT", sim.tagging_endpoint()),
            ("DEVICE_FOLDER", sim.device_folder().display().to_string()),
            ("ENDPOINT", sim.store().endpoint()),
            ("REGION", recovery_region),
            ("API_KEY_FILE", key_file.display().to_string()),
            ("STATE_FOLDER", folder.join("state").display().to_string()),
        ];
        settings.extend(args.bucket.first().map(|bucket| ("BUCKET", bucket.clone())));
        let mut lines: String = settings
            .iter()
            .map(|(name, value)| format!("export SNAPFERRY_{name}={}\n", shell_quote(value)))
            .collect();
        if !rustix::process::geteuid().is_root() {
            lines.push_str(
                "# Not root: attached volumes are files. Give replicate and worker --device-files\n",
            );
        }
        let file = folder.join(EXPORTS);
        fs::write(&file, &lines)?;
        let mut out = stdout();
        writeln!(out, "{lines}# serving until Ctrl-C; the same lines are in {}", file.display())?;
        out.flush()?;
        cancel.cancelled().await;
        sim.shutdown().await;
        Ok(Code::Done)
    })
}
