//! What was typed, for `replicate`, `plan` and `gc`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as Group;

use crate::cli::cloud::args::{CloudArgs, OutputArgs, RecoveryArgs};
use crate::cli::fleet::args::QueueArgs;
use crate::compress::{Codec, Level};
use crate::job::JobId;
use crate::vpc::ResourceName;
use crate::vpc::device::BY_ID;
use crate::worker::{Age, Newest};

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry replicate web01 --to us-east --bucket images-us-east\n  snapferry replicate web01 --to us-east --bucket images-us-east --dry-run\n  snapferry replicate --resume\n  snapferry replicate --abandon 01kb3v9w6rj0c2xq4m8s5t7yza"
)]
pub struct ReplicateArgs {
    /// The server; its boot volume is replicated, data volumes are not
    #[arg(value_name = "SERVER", required_unless_present_any = ["resume", "abandon"])]
    pub server: Option<String>,

    /// Resume this job, or every unfinished one that this machine knows of; with a server's name also one that another machine began.
    /// --os, --bucket-location and --volume-profile may be given anew
    #[arg(long, value_name = "JOB", num_args = 0..=1, default_missing_value = "all", conflicts_with_all = ["abandon", "dry_run"])]
    pub resume: Option<Resumed>,

    /// Give up an unfinished job, and remove what it has made
    #[arg(long, value_name = "JOB", conflicts_with_all = ["server", "dry_run"])]
    pub abandon: Option<JobId>,

    /// Print what would be done: names, sizes, what would be pruned
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub how: HowArgs,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

/// How a server is replicated, by whomever.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "The job")]
pub struct HowArgs {
    /// Use this snapshot, by name or id, instead of taking one; it is left as it is
    #[arg(long, value_name = "SNAPSHOT")]
    pub from_snapshot: Option<String>,

    /// Restore the volume from a fast-restore clone in this server's zone: full speed at once, billed by the hour
    #[arg(long)]
    pub fast_restore_clone: bool,

    /// Never prune the snapshot that is taken
    #[arg(long, conflicts_with = "from_snapshot")]
    pub keep_snapshot: bool,

    /// The operating system's name in the recovery region [default: the volume's own]
    #[arg(long, value_name = "NAME")]
    pub os: Option<String>,

    /// The newest image's name [default: SERVER-latest]
    #[arg(long, value_name = "NAME")]
    pub image_name: Option<ResourceName>,

    /// Stop once the object is in the bucket; import nothing
    #[arg(long)]
    pub no_import: bool,

    /// The profile of the volume that is read [default: the fastest of its generation]
    #[arg(long, value_name = "PROFILE")]
    pub volume_profile: Option<String>,

    /// How clusters are compressed; IBM is known to import deflate
    #[arg(long, default_value = "deflate", value_name = "deflate|zstd")]
    pub codec: Codec,

    /// Speed against size
    #[arg(long, default_value = "fast", value_name = "fast|balanced|small|smallest")]
    pub level: Level,

    /// Prefix of the objects' keys, e.g. nightly/
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub prefix: String,

    /// The resource group's id, for all that is made [default: the boot volume's]
    #[arg(long, value_name = "ID")]
    pub resource_group: Option<String>,

    /// Where the bucket is, as imports name it: us-east, us-geo [default: its region]
    #[arg(long, value_name = "LOCATION")]
    pub bucket_location: Option<String>,

    #[command(flatten)]
    pub retention: RetentionArgs,
}

/// Which jobs are resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    All,
    One(JobId),
}

impl std::str::FromStr for Resumed {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        match typed {
            "all" => Ok(Self::All),
            id => id.parse().map(Self::One).map_err(|err: crate::job::JobIdError| err.to_string()),
        }
    }
}

/// What is kept of earlier runs.
#[derive(Clone, Copy, Debug, Group)]
#[command(next_help_heading = "Retention")]
pub struct RetentionArgs {
    /// Snapshots of the server to keep, newest first (at least 1)
    #[arg(long, default_value = "1", value_name = "N|all")]
    pub keep_snapshots: Newest,

    /// Images of the server to keep, newest first, the latest included
    #[arg(long, default_value = "2", value_name = "N|all")]
    pub keep_images: Newest,

    /// Objects of the server to keep, newest first
    #[arg(long, default_value = "2", value_name = "N|all")]
    pub keep_objects: Newest,

    /// Also keep snapshots younger than this, e.g. 7d
    #[arg(long, value_name = "AGE")]
    pub snapshot_age: Option<Age>,

    /// Also keep images younger than this
    #[arg(long, value_name = "AGE")]
    pub image_age: Option<Age>,

    /// Also keep objects younger than this
    #[arg(long, value_name = "AGE")]
    pub object_age: Option<Age>,
}

/// Where and how jobs are worked on.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "This machine")]
pub struct PlaceArgs {
    /// Where journals are kept [default: /var/lib/snapferry for root, ~/.local/state/snapferry otherwise]
    #[arg(long, value_name = "FOLDER")]
    pub state_folder: Option<PathBuf>,

    /// This server's id [default: as its metadata service or cloud-init tells]
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,

    /// Folder in which attached volumes turn up
    #[arg(long, default_value = BY_ID, value_name = "FOLDER")]
    pub device_folder: PathBuf,

    /// Accept regular files as devices, for a simulated cloud that does not run as root
    #[arg(long)]
    pub device_files: bool,

    /// Polling interval while waiting for the cloud [default: 2 s at first, later 10 s]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub poll_every: Option<Duration>,

    /// Longest wait for any one state, e.g. 2h [default: by step, 2 minutes to 12 hours]
    #[arg(long, value_name = "AGE")]
    pub wait_at_most: Option<Age>,
}

fn seconds(typed: &str) -> Result<Duration, String> {
    let wrong = || format!("{typed:?} is no number of seconds above 0");
    let seconds: f64 = typed.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry plan web01\n  snapferry plan web01 --on ferry1 --concurrency 2\n  snapferry plan web01 --volume-profile general-purpose --json"
)]
pub struct PlanArgs {
    /// The server
    #[arg(value_name = "SERVER")]
    pub server: String,

    /// The profile of the volume that is read [default: the fastest of its generation]
    #[arg(long, value_name = "PROFILE")]
    pub volume_profile: Option<String>,

    /// The server that converts [default: this one]
    #[arg(long, value_name = "SERVER")]
    pub on: Option<String>,

    /// Volumes that it reads at a time, as a worker's --concurrency
    #[arg(long = "concurrency", default_value = "1", value_name = "N")]
    pub at_a_time: NonZeroU32,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry gc --to us-east --bucket images-us-east\n  snapferry gc --to us-east --bucket images-us-east --apply\n\nWithout --to no images are looked at, without --bucket no uploads and objects; the report says so."
)]
pub struct GcArgs {
    /// Remove what was found
    #[arg(long)]
    pub apply: bool,

    /// Ignore anything younger than this; must exceed your longest job
    #[arg(long, default_value = "24h", value_name = "AGE")]
    pub min_age: Age,

    /// Prefix of the objects' keys, as for replicate
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub prefix: String,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}
