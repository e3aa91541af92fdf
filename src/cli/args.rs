//! Groups of arguments that several commands take.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args as Group, ValueHint};
use clap_complete::ArgValueCandidates;
use clap_complete::ArgValueCompleter;
use snapferry_base::units::ByteCount;
use snapferry_engine::compress::{Codec, Level};
use snapferry_engine::convert::plan::StoreAs;
use snapferry_fleet::replicate::device::BY_ID;
use snapferry_fleet::replicate::{Age, BaseRule, BucketOptions, Newest};
use snapferry_ibmcloud::vpc::{ResourceName, Tag};
use snapferry_s3::{Addressing, Encryption, Payer, Requirements, StorageClass};

use super::completions::{known, names};
use super::values;

use super::printable::Form;

/// Codec for an image's clusters, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecChoice {
    Codec(Codec),
    None,
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

impl CodecChoice {
    /// Returns the codec for the image's header. An uncompressed image names deflate there, although no
    /// cluster uses it.
    pub fn codec(self) -> Codec {
        match self {
            Self::Codec(codec) => codec,
            Self::None => Codec::Deflate,
        }
    }

    pub fn store_as(self) -> StoreAs {
        match self {
            Self::Codec(_) => StoreAs::Compressed,
            Self::None => StoreAs::Raw,
        }
    }
}

/// Destination of an image: a bucket or a file.
#[derive(Debug, Group)]
pub struct DestinationArgs {
    /// Send the image into this bucket
    #[arg(long, value_name = "NAME", conflicts_with = "output")]
    pub bucket: Option<String>,

    /// Key of the image in the bucket [default: HOST-DEVICE-UTC.qcow2]
    #[arg(long, value_name = "KEY", conflicts_with = "output")]
    pub key: Option<String>,

    /// Write the image to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Address and credentials of the object store.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Object store")]
pub struct StoreArgs {
    /// Address of the store, or a kind of IBM COS endpoint: direct (from inside a VPC), private, public
    /// [default: direct]
    #[arg(long, value_name = "URL|KIND", hide_short_help = true,
        add = ArgValueCandidates::new(|| known(&["direct", "private", "public"])))]
    pub endpoint: Option<String>,

    /// The bucket's region [default: AWS_REGION]
    #[arg(long = "bucket-region", visible_alias = "region", value_name = "REGION")]
    pub region: Option<String>,

    /// HMAC keys: AWS' ini format, or an IBM service credential's JSON
    #[arg(long, value_name = "FILE", conflicts_with = "api_key_file")]
    pub credentials_file: Option<PathBuf>,

    #[command(flatten)]
    pub requirements: RequirementArgs,

    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Options that some stores and the policies of some buckets require.
#[derive(Clone, Debug, Default, Group)]
pub struct RequirementArgs {
    /// Place of the bucket's name in addresses: behind the host (path) or in front of it (virtual)
    /// [default: path]
    #[arg(long, value_name = "path|virtual", hide_short_help = true)]
    pub addressing: Option<Addressing>,

    /// Encryption that the store is asked for with each new object
    #[arg(long, value_name = "AES256|aws:kms[:KEY]", hide_short_help = true)]
    pub sse: Option<Encryption>,

    /// Storage class that the store is asked for with each new object, as the store names it
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub storage_class: Option<StorageClass>,

    /// Confirm with each request that its sender pays, for buckets whose owner does not
    #[arg(long, value_parser = BoolishValueParser::new(), hide_short_help = true)]
    pub requester_pays: bool,
}

impl RequirementArgs {
    /// Returns the options as a job keeps them.
    pub fn for_job(&self) -> BucketOptions {
        BucketOptions {
            addressing: self.addressing.map(|addressing| addressing.to_string()),
            encryption: self.sse.as_ref().map(ToString::to_string),
            storage_class: self.storage_class.as_ref().map(ToString::to_string),
            requester_pays: self.requester_pays,
        }
    }

    /// Returns these options, with those of a job for the ones that the user has not given.
    ///
    /// # Errors
    /// If an option of the job is none that this version knows.
    pub fn or_of_job(self, job: &BucketOptions) -> Result<Self, String> {
        fn read<T: FromStr<Err = String>>(kept: &Option<String>) -> Result<Option<T>, String> {
            kept.as_deref().map(str::parse).transpose()
        }
        Ok(Self {
            addressing: self.addressing.or(read(&job.addressing)?),
            sse: self.sse.or(read(&job.encryption)?),
            storage_class: self.storage_class.or(read(&job.storage_class)?),
            requester_pays: self.requester_pays || job.requester_pays,
        })
    }

    /// Returns the headers that the user asked for.
    pub fn headers(&self) -> Requirements {
        Requirements {
            encryption: self.sse.clone(),
            storage_class: self.storage_class.clone(),
            payer: if self.requester_pays { Payer::Requester } else { Payer::Owner },
        }
    }
}

/// Credentials for IBM Cloud, and the services that issue tokens for them.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Identity")]
#[allow(rustdoc::bare_urls, reason = "they are the help's text")]
pub struct IdentityArgs {
    /// An IBM Cloud API key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// A trusted profile of this server: its id or CRN, or default
    #[arg(long, value_name = "ID|default", conflicts_with = "api_key_file",
        add = ArgValueCandidates::new(|| known(&["default"])))]
    pub trusted_profile: Option<String>,

    /// Address of IBM IAM, which issues tokens [default: https://iam.cloud.ibm.com]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub iam_endpoint: Option<String>,

    /// The instance metadata service [default: http://169.254.169.254, then
    /// https://api.metadata.cloud.ibm.com]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub metadata_endpoint: Option<String>,

    /// A private certificate authority, trusted beside the system's
    #[arg(long, value_name = "PEM", hide_short_help = true)]
    pub ca_file: Option<PathBuf>,
}

/// Options of commands that read all of an image.
#[derive(Debug, Group)]
pub struct ReadingArgs {
    /// The manifest to check against [default: the one beside the image, if there is one]
    #[arg(long, value_name = "PATH|none", value_hint = ValueHint::FilePath)]
    pub manifest: Option<PathBuf>,

    /// Refuse an image that holds a larger disk
    #[arg(long, default_value = "64T", value_name = "SIZE", hide_short_help = true)]
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
pub struct BucketArgs {
    /// Name of the bucket
    #[arg(long, value_name = "NAME")]
    pub bucket: String,

    #[command(flatten)]
    pub store: StoreArgs,
}

/// Region, API endpoints and identity for IBM Cloud.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Cloud")]
pub struct CloudArgs {
    /// The region [default: this server's own]
    #[arg(id = "vpc_region", long = "region", value_name = "REGION")]
    pub region: Option<String>,

    /// The VPC API: public, private, or a URL with {region} in it
    #[arg(long, default_value = "public", value_name = "KIND|URL", hide_short_help = true,
        add = ArgValueCandidates::new(|| known(&["public", "private"])))]
    pub vpc_endpoint: String,

    /// Address of Global Tagging [default: IBM's, private if --vpc-endpoint is]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub tagging_endpoint: Option<String>,

    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Recovery region, and the bucket that images pass through.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Recovery region and bucket")]
pub struct RecoveryArgs {
    /// The region that images are imported into
    #[arg(id = "recovery_region", long = "to", value_name = "REGION")]
    pub to: Option<String>,

    /// The bucket that images go to
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,

    /// The bucket's region [default: that of --to]
    #[arg(id = "region", long = "bucket-region", value_name = "REGION")]
    pub bucket_region: Option<String>,

    /// Address of the store, or a kind of IBM COS endpoint: direct (from inside a VPC), private, public
    /// [default: direct]
    #[arg(long, value_name = "URL|KIND", hide_short_help = true,
        add = ArgValueCandidates::new(|| known(&["direct", "private", "public"])))]
    pub endpoint: Option<String>,

    /// HMAC keys for the bucket: AWS' ini format, or IBM's JSON
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,

    #[command(flatten)]
    pub requirements: RequirementArgs,
}

impl RecoveryArgs {
    /// Returns the arguments for the bucket's store. The bucket is in the recovery region unless
    /// `--bucket-region` is given.
    pub fn store(&self, identity: &IdentityArgs) -> StoreArgs {
        StoreArgs {
            endpoint: self.endpoint.clone(),
            region: self.bucket_region.clone().or_else(|| self.to.clone()),
            credentials_file: self.credentials_file.clone(),
            requirements: self.requirements.clone(),
            identity: identity.clone(),
        }
    }
}

/// Format of a command's result.
#[derive(Clone, Copy, Debug, Group)]
pub struct OutputArgs {
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    pub fn form(self) -> Form {
        Form::of(self.json)
    }
}

/// Rehearsal of a command that changes something.
#[derive(Clone, Copy, Debug, Group)]
pub struct RehearsalArgs {
    /// Print what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Answer that is given before the command asks.
#[derive(Clone, Copy, Debug, Group)]
pub struct ConsentArgs {
    /// Answer yes to the command's question [also: SNAPFERRY_YES=1]
    ///
    /// The command asks on a terminal only.
    #[arg(short, long)]
    pub yes: bool,
}

/// Options of commands that change resources in the cloud.
#[derive(Clone, Copy, Debug, Group)]
pub struct ChangeArgs {
    #[command(flatten)]
    pub rehearsal: RehearsalArgs,

    /// Don't wait until it is done
    #[arg(long)]
    pub no_wait: bool,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// Address and credentials of the Redis server that holds the fleet's queue.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// Redis that keeps the jobs: redis://HOST:PORT, rediss:// with TLS, unix:///SOCKET; the password comes
    /// from SNAPFERRY_REDIS_PASSWORD or --redis-password-file
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,

    /// Name of the Redis user, if Redis has users
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub redis_user: Option<String>,

    /// A file with the password
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub redis_password_file: Option<PathBuf>,

    /// A private certificate authority that signed Redis' certificate
    #[arg(long, value_name = "PEM", hide_short_help = true)]
    pub redis_ca_file: Option<PathBuf>,

    /// Prefix of all keys, for fleets that share a Redis [default: snapferry]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub redis_prefix: Option<String>,

    /// Duration of a lease; the same for all workers of a fleet
    #[arg(long, value_name = "AGE", hide = true)]
    pub lease: Option<Age>,
}

/// Servers that a command works on: named, listed in a file, or tagged.
#[derive(Clone, Debug, Group)]
pub struct ServersArgs {
    /// Names of the servers
    #[arg(value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
    pub servers: Vec<String>,

    /// File with more servers, one per line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// All servers of the region that have this user tag now
    #[arg(long, value_name = "TAG")]
    pub tag: Option<Tag>,
}

/// Options of a replication job, for `replicate` itself and for workers.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "The job")]
pub struct HowArgs {
    /// Use this snapshot, by name or id, and leave it as it is
    #[arg(long, value_name = "SNAPSHOT")]
    pub from_snapshot: Option<String>,

    /// Restore from a clone: full speed at once, billed hourly
    ///
    /// The volume is restored from a fast-restore clone of the snapshot in this server's zone.
    #[arg(long)]
    pub fast_restore_clone: bool,

    /// Never prune the snapshot that is taken
    #[arg(long, conflicts_with = "from_snapshot")]
    pub keep_snapshot: bool,

    /// The operating system's name in the recovery region [default: the volume's own]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub os: Option<String>,

    /// The newest image's name [default: SERVER-latest]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub image_name: Option<ResourceName>,

    /// Stop once the object is in the bucket; import nothing
    #[arg(long)]
    pub no_import: bool,

    /// The profile of the volume that is read [default: the fastest of its generation]
    #[arg(long, value_name = "PROFILE", hide_short_help = true)]
    pub volume_profile: Option<String>,

    /// Codec of clusters; IBM is known to import deflate
    #[arg(long, default_value = "deflate", value_name = "CODEC", hide_short_help = true,
        value_parser = values::codecs())]
    pub codec: Codec,

    /// Compression level: speed against size
    #[arg(long, default_value = "fast", value_name = "LEVEL", hide_short_help = true,
        value_parser = values::levels())]
    pub level: Level,

    /// What did not change is copied from the server's last image (auto), or all is sent (none)
    ///
    /// The image is the same, byte for byte. auto takes the newest verified image of the server that was made
    /// with the same codec, level and library. If there is none, or it fails, all of the disk is sent, and
    /// the job's result says why.
    #[arg(long, default_value = "auto", value_name = "BASE", hide_short_help = true,
        value_parser = values::base_rules())]
    pub base: BaseRule,

    /// Prefix of the objects' keys, e.g. nightly/
    #[arg(long, default_value = "", value_name = "TEXT", hide_short_help = true)]
    pub prefix: String,

    /// Id of the resource group for all new resources [default: the boot volume's]
    #[arg(long, value_name = "ID", hide_short_help = true)]
    pub resource_group: Option<String>,

    /// Location of the bucket, as imports name it: us-east, us-geo [default: its region]
    #[arg(long, value_name = "LOCATION", hide_short_help = true)]
    pub bucket_location: Option<String>,

    #[command(flatten)]
    pub retention: RetentionArgs,
}

/// Retention of snapshots, images and objects of earlier runs.
#[derive(Clone, Copy, Debug, Group)]
#[command(next_help_heading = "Retention")]
pub struct RetentionArgs {
    /// Snapshots of the server to keep, newest first (at least 1)
    #[arg(long, default_value = "1", value_name = "N|all", hide_short_help = true,
        add = ArgValueCandidates::new(|| known(&["all"])))]
    pub keep_snapshots: Newest,

    /// Images of the server to keep, newest first, the latest included
    #[arg(long, default_value = "2", value_name = "N|all", hide_short_help = true,
        add = ArgValueCandidates::new(|| known(&["all"])))]
    pub keep_images: Newest,

    /// Objects of the server to keep, newest first
    #[arg(long, default_value = "2", value_name = "N|all", hide_short_help = true,
        add = ArgValueCandidates::new(|| known(&["all"])))]
    pub keep_objects: Newest,

    /// Also keep snapshots younger than this, e.g. 7d
    #[arg(long, value_name = "AGE", hide_short_help = true)]
    pub snapshot_age: Option<Age>,

    /// Also keep images younger than this
    #[arg(long, value_name = "AGE", hide_short_help = true)]
    pub image_age: Option<Age>,

    /// Also keep objects younger than this
    #[arg(long, value_name = "AGE", hide_short_help = true)]
    pub object_age: Option<Age>,
}

/// Folders, identity and waiting times of the machine that runs jobs.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "This machine")]
pub struct PlaceArgs {
    /// Folder for journals [default: /var/lib/snapferry for root, ~/.local/state/snapferry otherwise]
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, hide_short_help = true)]
    pub state_folder: Option<PathBuf>,

    /// Id of this server [default: from its metadata service or cloud-init]
    #[arg(long, value_name = "ID", hide_short_help = true)]
    pub instance: Option<String>,

    /// Folder in which attached volumes appear
    #[arg(long, default_value = BY_ID, value_name = "FOLDER", value_hint = ValueHint::DirPath, hide_short_help = true)]
    pub device_folder: PathBuf,

    /// Accept regular files as devices, for a simulated cloud that does not run as root
    #[arg(long, hide_short_help = true)]
    pub device_files: bool,

    /// Polling interval while waiting for the cloud [default: 2 s at first, later 10 s]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, hide_short_help = true)]
    pub poll_every: Option<Duration>,

    /// Longest wait for any one state, e.g. 2h [default: by step, 2 minutes to 12 hours]
    #[arg(long, value_name = "AGE", hide_short_help = true)]
    pub wait_at_most: Option<Age>,
}

fn seconds(typed: &str) -> Result<Duration, String> {
    let invalid = || format!("{typed:?} is no number of seconds above 0");
    let seconds: f64 = typed.parse().map_err(|_| invalid())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero()).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bucket_requires_survives_a_job() {
        let typed = RequirementArgs {
            addressing: Some(Addressing::Virtual),
            sse: Some(Encryption::Kms { key: Some("crn:v1:key/7".to_owned()) }),
            storage_class: Some("COLD".parse().expect("a name")),
            requester_pays: true,
        };
        let kept = typed.for_job();
        let again = RequirementArgs::default().or_of_job(&kept).expect("known options");
        assert_eq!(again.for_job(), kept);
        assert_eq!((again.headers(), again.addressing), (typed.headers(), typed.addressing));
    }

    #[test]
    fn what_is_typed_counts_before_what_a_job_keeps() {
        let kept = BucketOptions { encryption: Some("aws:kms".to_owned()), ..BucketOptions::default() };
        let typed = RequirementArgs { sse: Some(Encryption::Aes256), ..RequirementArgs::default() };
        assert_eq!(typed.or_of_job(&kept).expect("known options").sse, Some(Encryption::Aes256));
    }

    #[test]
    fn an_option_of_a_job_that_is_not_known_is_refused() {
        let kept = BucketOptions { encryption: Some("rot13".to_owned()), ..BucketOptions::default() };
        let err = RequirementArgs::default().or_of_job(&kept).expect_err("no encryption");
        assert!(err.contains("rot13"), "{err}");
    }
}
