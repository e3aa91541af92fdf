//! What was typed, for commands on the cloud.

use std::path::PathBuf;

use clap::{Args as Group, Subcommand};

use crate::cli::args::{IdentityArgs, StoreArgs};
use crate::vpc::model::ExportFormat;
use crate::vpc::{ResourceName, Tag};

/// Which cloud, and who we are to it.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Cloud")]
pub struct CloudArgs {
    /// The region [default: this server's own]
    #[arg(id = "vpc_region", long = "region", value_name = "REGION")]
    pub region: Option<String>,

    /// The VPC API: public, private, or a URL with {region} in it
    #[arg(long, default_value = "public", value_name = "KIND|URL")]
    pub vpc_endpoint: String,

    /// Global Tagging's address [default: IBM's, private where --vpc-endpoint is]
    #[arg(long, value_name = "URL")]
    pub tagging_endpoint: Option<String>,

    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Where images go: the recovery region, and the bucket that they pass through.
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

    /// The store's address, or IBM COS' own by kind: direct (from inside a VPC), private, public [default: direct]
    #[arg(long, value_name = "URL|KIND")]
    pub endpoint: Option<String>,

    /// HMAC keys for the bucket: AWS' ini format, or the JSON of an IBM service credential
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
}

impl RecoveryArgs {
    /// How the bucket is reached.
    pub fn store(&self, identity: &IdentityArgs) -> StoreArgs {
        StoreArgs {
            endpoint: self.endpoint.clone(),
            region: self.bucket_region.clone().or_else(|| self.to.clone()),
            credentials_file: self.credentials_file.clone(),
            identity: identity.clone(),
        }
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Group)]
pub struct OutputArgs {
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// How something is changed.
#[derive(Clone, Copy, Debug, Group)]
pub struct ChangeArgs {
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Don't wait until it is done
    #[arg(long)]
    pub no_wait: bool,

    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Group)]
#[command(after_help = "Examples:\n  snapferry boot-volume web01\n  snapferry boot-volume web01 --region eu-de --json")]
pub struct BootVolumeArgs {
    /// The server
    #[arg(value_name = "SERVER")]
    pub server: String,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub action: SnapshotAction,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotAction {
    /// Take a snapshot of a server's boot volume, and wait until it is complete
    Create(SnapshotCreateArgs),
    /// List snapshots, the newest first
    List(SnapshotListArgs),
    /// Delete snapshots, one by one
    Delete(SnapshotDeleteArgs),
    /// Copy a snapshot into another region
    Copy(SnapshotCopyArgs),
}

#[derive(Debug, Group)]
pub struct SnapshotCreateArgs {
    /// The server
    #[arg(value_name = "SERVER")]
    pub server: String,

    /// The snapshot's name [default: SERVER-UTC]
    #[arg(long, value_name = "NAME")]
    pub name: Option<ResourceName>,

    /// A tag; may be given more than once
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<Tag>,

    /// Keep a clone for fast restores in this zone; may be given more than once
    #[arg(long, value_name = "ZONE")]
    pub clone: Vec<String>,

    #[command(flatten)]
    pub change: ChangeArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
pub struct SnapshotListArgs {
    /// Only of this server's boot volume
    #[arg(long, value_name = "SERVER")]
    pub server: Option<String>,

    /// Only with this tag
    #[arg(long, value_name = "TAG")]
    pub tag: Option<Tag>,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
pub struct SnapshotDeleteArgs {
    /// The snapshots, by name or id
    #[arg(value_name = "SNAPSHOT", required = true)]
    pub snapshots: Vec<String>,

    #[command(flatten)]
    pub change: ChangeArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
pub struct SnapshotCopyArgs {
    /// The snapshot, by name or id
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: String,

    /// The region to copy it into
    #[arg(id = "recovery_region", long = "to", value_name = "REGION", required = true)]
    pub to: Option<String>,

    /// The copy's name [default: the snapshot's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<ResourceName>,

    #[command(flatten)]
    pub change: ChangeArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry provision web01 --image web01-latest --subnet main-1 --key admin --profile bx2-2x8\n  snapferry provision web01-test --snapshot web01-20260102030405 --subnet main-1 --key admin --profile bx2-2x8 --dry-run"
)]
pub struct ProvisionArgs {
    /// The new server's name
    #[arg(value_name = "NAME")]
    pub name: ResourceName,

    /// Boot from this image, by name or id
    #[arg(long, value_name = "IMAGE", required_unless_present = "snapshot", conflicts_with = "snapshot")]
    pub image: Option<String>,

    /// Boot from this snapshot, by name or id
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,

    /// The server's profile
    #[arg(long, value_name = "PROFILE")]
    pub profile: String,

    /// The subnet, which determines the zone and the VPC
    #[arg(long, value_name = "NAME")]
    pub subnet: String,

    /// The VPC, if several have a subnet of that name
    #[arg(long, value_name = "NAME")]
    pub vpc: Option<String>,

    /// An SSH key; may be given more than once
    #[arg(long, value_name = "NAME", required = true)]
    pub key: Vec<String>,

    /// The address in the subnet [default: any]
    #[arg(long, value_name = "IP")]
    pub address: Option<std::net::Ipv4Addr>,

    /// A security group; may be given more than once [default: the VPC's own]
    #[arg(long, value_name = "NAME")]
    pub security_group: Vec<String>,

    /// The boot volume's profile [default: general-purpose, or sdp for a snapshot of the second generation]
    #[arg(long, value_name = "PROFILE")]
    pub boot_profile: Option<String>,

    /// File with user data for cloud-init
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,

    /// The resource group's id
    #[arg(long, value_name = "ID")]
    pub resource_group: Option<String>,

    #[command(flatten)]
    pub change: ChangeArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

#[derive(Debug, Group)]
pub struct ImagesArgs {
    #[command(subcommand)]
    pub action: ImagesAction,
}

#[derive(Debug, Subcommand)]
pub enum ImagesAction {
    /// List the account's own images
    List {
        /// Only in these states, e.g. available,failed
        #[arg(long, value_name = "STATE", value_delimiter = ',')]
        status: Vec<String>,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Rename an image
    Rename {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        image: String,

        /// Its new name
        #[arg(value_name = "NAME")]
        name: ResourceName,

        #[command(flatten)]
        change: ChangeArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Delete images; servers made from them keep running
    Delete {
        /// The images, by name or id
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,

        #[command(flatten)]
        change: ChangeArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Add tags to an image, or remove them; without tags, list those it has
    Tag {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        image: String,

        /// The tags
        #[arg(value_name = "TAG")]
        tags: Vec<Tag>,

        /// Remove them
        #[arg(long, requires = "tags")]
        remove: bool,

        /// Print what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,

        #[command(flatten)]
        output: OutputArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Export an image into a bucket
    Export {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        image: String,

        /// The bucket
        #[arg(long, value_name = "NAME")]
        bucket: String,

        /// The job's name, and the object's [default: IMAGE-UTC]
        #[arg(long, value_name = "NAME")]
        name: Option<ResourceName>,

        /// Format: qcow2 or vhd
        #[arg(long, default_value = "qcow2", value_name = "FORMAT")]
        format: ExportFormat,

        #[command(flatten)]
        change: ChangeArgs,

        #[command(flatten)]
        cloud: CloudArgs,
    },
}
