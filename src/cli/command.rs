//! The command line as a whole: global options, and the commands in their groups.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};

use super::cloud::boot_volume::BootVolumeArgs;
use super::cloud::doctor::DoctorArgs;
use super::cloud::images::ImagesArgs;
use super::cloud::provision::ProvisionArgs;
use super::cloud::snapshot::SnapshotArgs;
use super::colour::ColourChoice;
use super::completions::CompletionsArgs;
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
use super::manual::ManArgs;
use super::progress::ProgressChoice;
use super::qemu_img::QemuImgArgs;
use super::replicate::ReplicateArgs;
use super::replicate::gc::GcArgs;
use super::replicate::plan::PlanArgs;
use super::restore::RestoreArgs;
use super::settings;
use super::uploads::UploadsArgs;
use super::verify::VerifyArgs;
use super::version::{self, VersionArgs};

/// Heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Groups of the commands, in the order of the help. Each command is in one of them.
pub const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Images",
        &[
            "convert", "verify", "restore", "info", "check", "map", "compare", "measure", "qemu-img",
            "uploads",
        ],
    ),
    ("Servers", &["replicate", "plan", "gc", "boot-volume", "snapshot", "provision", "images"]),
    ("Fleet", &["enqueue", "worker", "jobs", "status", "schedule"]),
    ("Set-up", &["doctor", "config", "completions", "man", "version", "help"]),
];

/// Returns the definition of the command line, with the groups of commands in its help, and the variable of
/// each setting in the help of its option.
pub fn definition() -> clap::Command {
    let command = describe(Args::command()).long_version(version::long());
    let template = template(&command);
    command.help_template(template)
}

/// Returns the command with a long help for each flag, which has the flag's variable if it is a setting. The
/// help never shows a variable's value, which may be a secret.
fn describe(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    let command = command.mut_args(|arg| {
        let Some(help) = arg.get_long_help().or(arg.get_help()) else { return arg };
        let variable = settings::variable_of(&name, arg.get_id().as_str());
        let variable = variable.map(|variable| format!("\n\n[env: {variable}]")).unwrap_or_default();
        // Manual pages take nothing but the long help of a flag that the short help leaves out.
        let help = StyledStr::from(format!("{}{variable}", help.ansi()));
        arg.long_help(help)
    });
    command.mut_subcommands(describe)
}

/// Returns the template of the top-level help. clap has one list for all commands; this one has a list for
/// each group.
fn template(command: &clap::Command) -> String {
    let styles = command.get_styles();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (group, names) in GROUPS {
        // Writing to a string can't fail.
        let _ = writeln!(text, "\n{header}{group}:{header:#}");
        for &name in names {
            let about = match command.find_subcommand(name) {
                Some(found) => found.get_about().map(ToString::to_string).unwrap_or_default(),
                // clap adds it later.
                None => "Print the help of a command".to_owned(),
            };
            let _ = writeln!(text, "  {literal}{name:<11}{literal:#}  {about}");
        }
    }
    let _ = write!(text, "\n{header}Options:{header:#}\n{{options}}{{after-help}}");
    text
}

/// Carries raw disks into object storage as compressed qcow2 images, on all cores.
#[derive(Debug, Parser)]
#[command(name = "snapferry", version, propagate_version = true, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,

    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = GLOBAL)]
    quiet: bool,

    /// Log requests and retries; -vv also modules and times
    ///
    /// With -vv each line has its module, and each step logs the time that it took.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = GLOBAL)]
    verbose: u8,

    // Read before everything else, because clap's own output is coloured too.
    /// Colours in help, messages, log lines and the progress bar; auto obeys NO_COLOR, CLICOLOR and
    /// CLICOLOR_FORCE
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "WHEN",
        help_heading = GLOBAL,
        hide_short_help = true
    )]
    color: ColourChoice,

    /// Progress: auto (a bar on a terminal, a log line every ten seconds elsewhere), never, or the time
    /// between two log lines, e.g. 1m
    #[arg(
        long,
        global = true,
        default_value = "auto",
        value_name = "auto|never|AGE",
        help_heading = GLOBAL,
        hide_short_help = true
    )]
    pub progress: ProgressChoice,

    /// Format of log lines: text, json (an object per line, errors and reports too), journald (fields for
    /// `journalctl JOB=...`; a report or error at the end is text on stderr). --quiet leaves reports out
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        value_name = "text|json|journald",
        hide_possible_values = true,
        help_heading = GLOBAL,
        hide_short_help = true
    )]
    pub log_format: LogFormat,

    // Read by `settings` before everything else; declared here so that clap accepts it and the help shows it.
    /// Configuration file, instead of /etc/snapferry/config.toml and ~/.config/snapferry/config.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL, hide_short_help = true)]
    config: Option<PathBuf>,
}

impl Args {
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, 0) => Verbosity::Normal,
            (_, 1) => Verbosity::Verbose,
            _ => Verbosity::Detailed,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Convert a raw disk into a compressed qcow2 image
    ///
    /// The disk is a block device or a file; the image goes into a bucket or a file.
    Convert(ConvertArgs),
    /// Read an image back, decode all of it, and check it
    ///
    /// The image is checked against its manifest, the disk that it was made from, or a checksum.
    Verify(VerifyArgs),
    /// Write an image's disk to a device or a file
    Restore(RestoreArgs),
    /// Stand in for QEMU's tool of that name
    ///
    /// Options, output and exit codes are the same. The program also does so if it is called by that name.
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
    /// Estimate how large an image of a disk will be
    ///
    /// With --sample the estimate is that of a compressed image.
    Measure(MeasureArgs),
    /// Show or remove incomplete uploads in a bucket
    #[command(visible_alias = "upload")]
    Uploads(UploadsArgs),
    /// Replicate a server's boot volume into another region's images
    ///
    /// The server is not stopped: a snapshot of its volume is read, and imported into the image library.
    Replicate(Box<ReplicateArgs>),
    /// Queue servers for replication by whichever worker is free
    Enqueue(Box<EnqueueArgs>),
    /// Work on the fleet's jobs
    Worker(Box<WorkerArgs>),
    /// List, show, watch, cancel, retry and purge the fleet's jobs
    #[command(visible_alias = "job")]
    Jobs(JobsArgs),
    /// Show the age of each server's last good image, by region
    Status(StatusArgs),
    /// Manage schedules, which queue servers at certain times
    #[command(visible_alias = "schedules")]
    Schedule(ScheduleArgs),
    /// Estimate how long replicating a server takes, and what limits it
    Plan(PlanArgs),
    /// Find what dead jobs have left in the cloud, and remove it
    ///
    /// Nothing is removed without --apply.
    Gc(GcArgs),
    /// Show a server's boot volume, and what prevents its replication
    BootVolume(BootVolumeArgs),
    /// Take, list, delete and copy snapshots
    #[command(visible_alias = "snapshots")]
    Snapshot(SnapshotArgs),
    /// Make a server from an image or a snapshot
    Provision(ProvisionArgs),
    /// List, rename, tag, delete and export images
    #[command(visible_alias = "image")]
    Images(ImagesArgs),
    /// Check the set-up: identity, rights, bucket, devices, queue, tools
    Doctor(DoctorArgs),
    /// Show the settings in force, and where each comes from
    Config(ConfigArgs),
    /// Generate shell completions
    Completions(CompletionsArgs),
    /// Print manual pages
    Man(ManArgs),
    /// Print the version, the commit and the libraries of the program
    Version(VersionArgs),
}

#[cfg(test)]
mod tests;
