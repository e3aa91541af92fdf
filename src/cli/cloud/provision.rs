//! `snapferry provision`: creates a server from an image or a snapshot.

use std::path::PathBuf;

use clap::Args as Group;
use serde_json::json;
use snapferry_ibmcloud::vpc::ResourceName;
use snapferry_ibmcloud::vpc::model::{ImageState, SnapshotState, StorageGeneration};
use snapferry_ibmcloud::vpc::{BootFrom, InstancePrototype, Patience, RegionClient, ResourceGroupId};

use super::{print_json, print_line, run as run_on_cloud};
use crate::cli::args::{ChangeArgs, CloudArgs};
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::session::Session;

/// Returns the source that the server boots from, the boot volume's profile if the request must name one, and
/// a description of the source for the user.
async fn boot(
    client: &RegionClient,
    args: &ProvisionArgs,
) -> CommandResult<(BootFrom, Option<String>, String)> {
    if let Some(named) = &args.snapshot {
        let found = client.named_snapshot(named).await?;
        if found.lifecycle_state != SnapshotState::Stable {
            return Err(UsageError(format!(
                "snapshot {} is {}, and only a stable one boots",
                found.name, found.lifecycle_state
            ))
            .into());
        }
        // A profile can't restore snapshots of another generation.
        let fitting =
            if found.storage_generation == StorageGeneration::SECOND { "sdp" } else { "general-purpose" };
        let profile = args.boot_profile.clone().unwrap_or_else(|| fitting.to_owned());
        return Ok((BootFrom::Snapshot(found.id), Some(profile), format!("snapshot {}", found.name)));
    }
    let named = args.image.as_deref().unwrap_or_default();
    let found = client.named_image(named).await?;
    if !matches!(
        found.status,
        ImageState::Available | ImageState::Deprecated | ImageState::PartiallyAvailable
    ) {
        return Err(
            UsageError(format!("image {} is {}, and can't be booted", found.name, found.status)).into()
        );
    }
    Ok((BootFrom::Image(found.id), args.boot_profile.clone(), format!("image {}", found.name)))
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

    /// Profile of the server
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

pub fn run(args: &ProvisionArgs, session: &Session) -> CommandResult<Code> {
    let user_data = args.user_data.as_ref().map(|path| {
        snapferry_base::user_file::read_text(path)
            .map_err(|err| UsageError(format!("cannot read the user data {}: {err}", path.display())))
    });
    let user_data = user_data.transpose()?;
    run_on_cloud(&args.cloud, session, async |cloud| {
        let client = cloud.client()?;
        let vpc = match &args.vpc {
            Some(name) => Some(client.vpc(name).await?.id),
            None => None,
        };
        let subnet = client.subnet(&args.subnet, vpc.as_ref()).await?;
        let (boot, boot_profile, origin) = boot(&client, args).await?;
        let (mut keys, mut security_groups) = (Vec::new(), Vec::new());
        for name in &args.key {
            keys.push(client.key(name).await?.id);
        }
        for name in &args.security_group {
            security_groups.push(client.security_group(name, &subnet.vpc.id).await?.id);
        }
        let prototype = InstancePrototype {
            name: args.name.clone(),
            vpc: subnet.vpc.id.clone(),
            zone: subnet.zone.name.clone(),
            profile: args.profile.clone(),
            boot,
            boot_profile,
            boot_volume_name: None,
            subnet: subnet.id.clone(),
            address: args.address.map(|address| address.to_string()),
            security_groups,
            keys,
            resource_group: args.resource_group.clone().map(ResourceGroupId::new),
            tags: Vec::new(),
            user_data,
        };
        if args.change.rehearsal.dry_run {
            return if args.change.output.json {
                print_json(&prototype.body())
            } else {
                Ok(print_line(format_args!(
                    "would make server {} ({}) from {origin} in {}, subnet {}",
                    args.name, args.profile, subnet.zone.name, subnet.name
                ))?)
            };
        }
        let mut server = client.create_instance(&prototype).await?;
        if !args.change.no_wait {
            server = client.instance_running(&server.id, Patience::INSTANCE).await?;
        }
        if args.change.output.json {
            return print_json(&json!({
                "name": server.name, "id": server.id, "crn": server.crn, "status": server.status, "zone": server.zone.name,
            }));
        }
        Ok(print_line(format_args!(
            "{}  {}  {}  {} from {origin}",
            server.name, server.id, server.status, server.zone.name
        ))?)
    })?;
    Ok(Code::Done)
}
