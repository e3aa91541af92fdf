//! The command line as a whole: global options, and the commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::cloud::boot_volume::BootVolumeArgs;
use super::cloud::doctor::DoctorArgs;
use super::cloud::images::ImagesArgs;
use super::cloud::provision::ProvisionArgs;
use super::cloud::snapshot::SnapshotArgs;
use super::config_show::ConfigArgs;
use super::convert::ConvertArgs;
use super::fleet::enqueue::EnqueueArgs;
use super::fleet::jobs::JobsArgs;
use super::fleet::schedule::ScheduleArgs;
use super::fleet::status::StatusArgs;
use super::fleet::worker::WorkerArgs;
use super::inspect::check::CheckArgs;
use super::inspect::compare::CompareArgs;
use super::inspect::info::InfoArgs;
use super::inspect::map::MapArgs;
use super::inspect::measure::MeasureArgs;
use super::log::{LogFormat, Verbosity};
use super::manual::{CompletionsArgs, ManArgs};
use super::qemu_img::QemuImgArgs;
use super::replicate::ReplicateArgs;
use super::replicate::gc::GcArgs;
use super::replicate::plan::PlanArgs;
use super::restore::RestoreArgs;
use super::uploads::UploadsArgs;
use super::verify::VerifyArgs;

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

    /// Format of log lines: text, json (an object per line), journald (fields for `journalctl JOB=...`). A
    /// report at the end stays text on stderr; --quiet leaves it out, --json prints it on stdout
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        value_name = "text|json|journald",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,

    // Read by `settings` before everything else; declared here so that clap accepts it and the help shows it.
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
    /// Stand in for QEMU's tool of that name: same options, output and exit codes; also when called by that
    /// name
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
}
