//! What was typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as Group, Parser, Subcommand};

use super::cloud::args::{BootVolumeArgs, ImagesArgs, ProvisionArgs, SnapshotArgs};
use super::cloud::doctor::DoctorArgs;
use super::fleet::args::{EnqueueArgs, JobsArgs, ScheduleArgs, StatusArgs, WorkerArgs};
use super::image::ImageArgs;
use super::inspect::check::CheckArgs;
use super::inspect::compare::CompareArgs;
use super::inspect::info::InfoArgs;
use super::inspect::map::MapArgs;
use super::inspect::measure::MeasureArgs;
use super::log::{LogFormat, Verbosity};
use super::manual::{CompletionsArgs, ManArgs};
use super::replicate::args::{GcArgs, PlanArgs, ReplicateArgs};
use crate::compress::{Codec, Level};
use crate::convert::plan::Bodies;
use crate::restore::{Sha256Sum, ZeroPolicy};
use crate::units::ByteCount;

/// Carries raw disks into object storage as compressed qcow2 images, on all cores.
#[derive(Debug, Parser)]
#[command(name = "snapferry", version, propagate_version = true, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,

    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Log every request to the store and every retry
    #[arg(short, long, global = true)]
    verbose: bool,

    /// How log lines look: text, json (an object a line), journald (fields for `journalctl JOB=...`). A report at the end stays text on
    /// stderr; --quiet leaves it out, --json prints it on stdout
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "text|json|journald", hide_possible_values = true)]
    pub log_format: LogFormat,

    // Read before everything else, by `settings`; here for the help, and so that it is no surprise.
    /// Configuration file [default: /etc/snapferry/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Args {
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Convert a raw device or file into a compressed qcow2 image, in a bucket or a file
    Convert(ConvertArgs),
    /// Read an image back, decode all of it, and check it against its manifest, source or checksum
    Verify(VerifyArgs),
    /// Write an image's disk to a device or a file
    Restore(RestoreArgs),
    /// Stand in for QEMU's tool of that name: same options, output and exit codes; also when called by that name
    #[command(disable_help_flag = true, disable_version_flag = true)]
    QemuImg(QemuImgArgs),
    /// Show what an image is: format, sizes, codec, snapshots, bitmaps
    Info(InfoArgs),
    /// Audit an image's tables, and decode its clusters with --data
    Check(CheckArgs),
    /// Show where each stretch of the disk lies in the image
    Map(MapArgs),
    /// Compare two disks, raw or in images, byte by byte
    Compare(CompareArgs),
    /// Estimate how large an image of a disk will be, optionally compressed
    Measure(MeasureArgs),
    /// Show or remove incomplete uploads in a bucket
    Uploads(UploadsArgs),
    /// Replicate a server's boot volume into another region's image library, without stopping the server
    Replicate(Box<ReplicateArgs>),
    /// Queue servers for replication by whichever worker is free
    Enqueue(Box<EnqueueArgs>),
    /// Work on the fleet's jobs
    Worker(Box<WorkerArgs>),
    /// List, show, watch, cancel, retry and purge the fleet's jobs
    Jobs(JobsArgs),
    /// Show the age of each server's last good image, by region
    Status(StatusArgs),
    /// Manage schedules, which queue servers at certain times
    Schedule(ScheduleArgs),
    /// Estimate how long replicating a server takes, and what limits it
    Plan(PlanArgs),
    /// Find what dead jobs have left in the cloud, and remove it with --apply
    Gc(GcArgs),
    /// Show a server's boot volume: its size, storage, operating system, latest snapshot
    BootVolume(BootVolumeArgs),
    /// Take, list, delete and copy snapshots
    Snapshot(SnapshotArgs),
    /// Make a server from an image or a snapshot
    Provision(ProvisionArgs),
    /// List, rename, tag, delete and export images
    Images(ImagesArgs),
    /// Check the set-up: identity, rights, bucket, devices, queue, tools
    Doctor(DoctorArgs),
    /// Show the settings in force, and where each comes from
    Config(ConfigArgs),
    /// Generate shell completions
    Completions(CompletionsArgs),
    /// Print manual pages
    Man(ManArgs),
    /// Replicate a server in a simulated cloud, and convert its disk into the store there and back, beside qemu-img
    #[cfg(feature = "sim")]
    Demo(DemoArgs),
    /// Run a simulated cloud or object store to try things on
    #[cfg(feature = "sim")]
    Sim(SimArgs),
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry convert --device /dev/vdc --bucket images\n  snapferry convert --device /dev/vdc --bucket images --key web01.qcow2 --region us-south\n  snapferry convert --device disk.raw --output disk.qcow2 --codec zstd --level balanced\n  snapferry convert --device /dev/vdc --bucket images --dry-run"
)]
pub struct ConvertArgs {
    /// The disk: a block device, or a file that holds a raw disk
    #[arg(long, value_name = "PATH")]
    pub device: PathBuf,

    #[command(flatten)]
    pub destination: DestinationArgs,

    /// Replace what is stored there already
    #[arg(long)]
    pub force: bool,

    /// Read a device that is mounted or claimed by another program
    #[arg(long)]
    pub in_use: bool,

    /// How clusters are compressed: deflate is read by every importer, zstd is smaller, none stores them uncompressed
    #[arg(long, default_value = "deflate", value_name = "deflate|zstd|none")]
    pub codec: CodecChoice,

    /// Speed against size
    #[arg(long, default_value = "fast", value_name = "fast|balanced|small|smallest")]
    pub level: Level,

    /// qcow2's cluster size, 4k to 2M
    #[arg(long, default_value = "64k", value_name = "SIZE")]
    pub cluster_size: ByteCount,

    /// Compression threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Bytes in each part of the upload, a multiple of 4M [default: 32M, more for very large disks]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<ByteCount>,

    /// Parts uploaded at once [default: 6]
    #[arg(long, value_name = "N")]
    pub connections: Option<NonZeroUsize>,

    /// Limit the upload rate, in bytes per second, e.g. 50M
    #[arg(long, value_name = "RATE")]
    pub limit: Option<ByteCount>,

    /// Store unreadable sectors as zeros, list them, and exit with code 3
    #[arg(long)]
    pub salvage: bool,

    /// Leave out the BLAKE3 sums of what was read
    #[arg(long)]
    pub no_hash: bool,

    /// Read the image back and compare it with what was read; record its SHA-256 in the manifest
    #[arg(long, conflicts_with_all = ["no_hash", "dry_run"])]
    pub verify: bool,

    /// Print what would be done: sizes, parts, memory
    #[arg(long)]
    pub dry_run: bool,

    /// Print the result as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// A codec, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecChoice {
    Codec(Codec),
    None,
}

impl CodecChoice {
    /// What the image's header speaks of: deflate where nobody cares.
    pub fn codec(self) -> Codec {
        match self {
            Self::Codec(codec) => codec,
            Self::None => Codec::Deflate,
        }
    }

    pub fn bodies(self) -> Bodies {
        match self {
            Self::Codec(_) => Bodies::Compressed,
            Self::None => Bodies::Raw,
        }
    }
}

impl FromStr for CodecChoice {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "none" => Ok(Self::None),
            other => other.parse().map(Self::Codec).map_err(|error| format!("{error}, none")),
        }
    }
}

/// Where the image goes.
#[derive(Debug, Group)]
pub struct DestinationArgs {
    /// Send the image into this bucket
    #[arg(long, value_name = "NAME", conflicts_with = "output")]
    pub bucket: Option<String>,

    /// The image's name in the bucket [default: HOST-DEVICE-UTC.qcow2]
    #[arg(long, value_name = "KEY", conflicts_with = "output")]
    pub key: Option<String>,

    /// Write the image to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub store: StoreArgs,
}

/// How the object store is reached.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Object store")]
pub struct StoreArgs {
    /// The store's address, or IBM COS' own by kind: direct (from inside a VPC), private, public [default: direct]
    #[arg(long, value_name = "URL|KIND")]
    pub endpoint: Option<String>,

    /// The bucket's region [default: AWS_REGION]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// HMAC keys: AWS' ini format, or the JSON of an IBM service credential
    #[arg(long, value_name = "FILE", conflicts_with = "api_key_file")]
    pub credentials_file: Option<PathBuf>,

    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Who we are to IBM Cloud.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Identity")]
#[allow(rustdoc::bare_urls, reason = "they are the help's text")]
pub struct IdentityArgs {
    /// An IBM Cloud API key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// A trusted profile of this server, by its id or CRN, or the server's default one
    #[arg(long, value_name = "ID|default", conflicts_with = "api_key_file")]
    pub trusted_profile: Option<String>,

    /// Where IBM IAM gives tokens [default: https://iam.cloud.ibm.com]
    #[arg(long, value_name = "URL")]
    pub iam_endpoint: Option<String>,

    /// The instance metadata service [default: http://169.254.169.254, then https://api.metadata.cloud.ibm.com]
    #[arg(long, value_name = "URL")]
    pub metadata_endpoint: Option<String>,

    /// A private certificate authority, trusted beside the system's
    #[arg(long, value_name = "PEM")]
    pub ca_file: Option<PathBuf>,
}

/// How an image is read.
#[derive(Debug, Group)]
pub struct ReadingArgs {
    /// The manifest to check against [default: the one beside the image, if there is one]
    #[arg(long, value_name = "PATH|none")]
    pub manifest: Option<PathBuf>,

    /// Refuse an image that holds a larger disk
    #[arg(long, default_value = "64T", value_name = "SIZE")]
    pub max_size: ByteCount,

    /// Decoding threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Fetches at once [default: 8 from a bucket, 4 from a file]
    #[arg(long, value_name = "N")]
    pub connections: Option<NonZeroUsize>,

    /// Print the result as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry verify s3://images/web01.qcow2\n  snapferry verify web01.qcow2 --against /dev/vdc\n  snapferry verify --bucket images --key web01.qcow2 --region us-south --sha256 9f86d081..."
)]
pub struct VerifyArgs {
    /// Compare every byte with this disk
    #[arg(long, value_name = "DEVICE")]
    pub against: Option<PathBuf>,

    /// Read a device that is mounted or claimed by another program
    #[arg(long, requires = "against")]
    pub in_use: bool,

    /// The SHA-256 that the file must have
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<Sha256Sum>,

    #[command(flatten)]
    pub reading: ReadingArgs,

    // Last: its heading in the help holds for all that follows.
    #[command(flatten)]
    pub image: ImageArgs,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry restore s3://images/web01.qcow2 --device /dev/vdd\n  snapferry restore web01.qcow2 --output web01.raw\n  snapferry restore --bucket images --key web01.qcow2 --region us-south --device /dev/vdd --force"
)]
pub struct RestoreArgs {
    /// Write the disk to this block device
    #[arg(long, value_name = "DEVICE", required_unless_present = "output", conflicts_with = "output")]
    pub device: Option<PathBuf>,

    /// Write the disk to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Write over what the device holds, or replace the file
    #[arg(long)]
    pub force: bool,

    /// Write the file through the page cache, for whoever reads it next
    #[arg(long, requires = "output")]
    pub page_cache: bool,

    /// How zeros get onto a device; skip is for one that is all zeros already
    #[arg(long, default_value = "discard", value_name = "discard|write|skip", conflicts_with = "output")]
    pub zero: ZeroPolicy,

    #[command(flatten)]
    pub reading: ReadingArgs,

    // Last: its heading in the help holds for all that follows.
    #[command(flatten)]
    pub image: ImageArgs,
}

/// A command line of QEMU's, which we read by QEMU's own rules.
#[derive(Debug, Group)]
pub struct QemuImgArgs {
    /// As for QEMU's tool
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<std::ffi::OsString>,
}

#[derive(Debug, Group)]
pub struct UploadsArgs {
    #[command(subcommand)]
    pub action: UploadsAction,
}

#[derive(Debug, Subcommand)]
pub enum UploadsAction {
    /// List incomplete uploads
    List {
        #[command(flatten)]
        bucket: BucketArgs,
        /// Only keys with this prefix
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        /// Print JSON on stdout
        #[arg(long)]
        json: bool,
    },
    /// Remove incomplete uploads and their parts
    Abort {
        #[command(flatten)]
        bucket: BucketArgs,
        /// The upload's key
        #[arg(long, value_name = "KEY", required_unless_present = "all")]
        key: Option<String>,
        /// The upload's id [default: every upload of the key]
        #[arg(long, value_name = "ID", requires = "key")]
        id: Option<String>,
        /// Every upload in the bucket
        #[arg(long, conflicts_with = "key")]
        all: bool,
    },
}

#[derive(Debug, Group)]
pub struct BucketArgs {
    /// The bucket
    #[arg(long, value_name = "NAME")]
    pub bucket: String,

    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Debug, Group)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Print every setting, its value and where that comes from
    Show {
        /// Print JSON on stdout
        #[arg(long)]
        json: bool,
    },
}

#[cfg(feature = "sim")]
#[derive(Debug, Group)]
pub struct DemoArgs {
    /// The disk: a block device, or a file that holds a raw disk
    #[arg(long, value_name = "PATH")]
    pub disk: PathBuf,
}

#[cfg(feature = "sim")]
#[derive(Debug, Group)]
pub struct SimArgs {
    #[command(subcommand)]
    pub action: SimAction,
}

#[cfg(feature = "sim")]
#[derive(Debug, Subcommand)]
pub enum SimAction {
    /// An S3 store over a folder, on this machine's loopback address
    Store(SimStoreArgs),
    /// A cloud over a folder: VPC regions, IAM, metadata service, tagging and an S3 store, on this machine's loopback address
    Region(SimRegionArgs),
}

#[cfg(feature = "sim")]
#[derive(Debug, Group)]
pub struct SimStoreArgs {
    /// Folder for its objects
    #[arg(long, value_name = "FOLDER")]
    pub dir: PathBuf,

    /// The port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,

    /// Create this bucket if it does not exist; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub bucket: Vec<String>,

    /// Inject the faults that this JSON file describes
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
}

#[cfg(feature = "sim")]
#[derive(Debug, Group)]
pub struct SimRegionArgs {
    /// Folder for everything it keeps
    #[arg(long, value_name = "FOLDER")]
    pub dir: PathBuf,

    /// The port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,

    /// The store's port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub store_port: u16,

    /// A region; may be given more than once, home first [default: us-south, us-east]
    #[arg(long, value_name = "NAME")]
    pub region: Vec<String>,

    /// A raw disk for a server to boot from
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,

    /// That server's name
    #[arg(long, value_name = "NAME", default_value = "web01")]
    pub server: String,

    /// Create this bucket if it does not exist; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub bucket: Vec<String>,

    /// Smallest volume and image, in GB
    #[arg(long, value_name = "GB", default_value_t = 10)]
    pub least_capacity: u64,

    /// How long each state lasts, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub delay_ms: u64,

    /// Inject the faults that this JSON file describes
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
}
