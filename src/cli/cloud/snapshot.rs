//! `snapferry snapshot`: takes, lists, deletes and copies snapshots.

use std::time::SystemTime;

use clap::{Args as Group, Subcommand};
use clap_complete::ArgValueCompleter;
use serde_json::{Value, json};
use snapferry_base::clock::{compact, rfc3339};
use snapferry_ibmcloud::vpc::Tag;
use snapferry_ibmcloud::vpc::model::Snapshot;
use snapferry_ibmcloud::vpc::{
    Patience, RegionClient, ResourceName, SnapshotFilter, SnapshotOrder, SnapshotPrototype, VolumeId,
    VpcError,
};

use super::{print_json, print_line, run as run_on_cloud};
use crate::cli::args::{ChangeArgs, CloudArgs, ConsentArgs, OutputArgs};
use crate::cli::completions::names;
use crate::cli::consent::{Consent, Unasked};
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::rehearsal::would;
use crate::cli::session::Session;
use crate::cli::table::Table;

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
    #[command(visible_alias = "ls")]
    List(SnapshotListArgs),
    /// Delete snapshots, one by one
    #[command(visible_aliases = ["rm", "remove"])]
    Delete(SnapshotDeleteArgs),
    /// Copy a snapshot into another region
    Copy(SnapshotCopyArgs),
}

#[derive(Debug, Group)]
pub struct SnapshotCreateArgs {
    /// Name of the server
    #[arg(value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
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
    #[arg(long, value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
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
    pub consent: ConsentArgs,

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

pub fn run(args: &SnapshotArgs, session: &Session) -> CommandResult<Code> {
    match &args.action {
        SnapshotAction::Create(args) => create(args, session),
        SnapshotAction::List(args) => list(args, session),
        SnapshotAction::Delete(args) => delete(args, session),
        SnapshotAction::Copy(args) => copy(args, session),
    }
}

/// Returns a snapshot as `--json` prints it.
fn to_json(snapshot: &Snapshot) -> Value {
    json!({
        "name": snapshot.name,
        "id": snapshot.id,
        "crn": snapshot.crn,
        "state": snapshot.lifecycle_state,
        "taken_at": rfc3339(snapshot.point_in_time()),
        "capacity_gb": snapshot.minimum_capacity,
        "size_gb": snapshot.size,
        "storage_generation": snapshot.storage_generation,
        "operating_system": snapshot.operating_system.as_ref().map(|os| &os.name),
        "source_volume": snapshot.source_volume.id,
        "tags": snapshot.user_tags,
        "by_backup_service": snapshot.backup_policy_plan.is_some(),
        "copies": snapshot.copies.iter().map(|copy| copy.crn.region()).collect::<Vec<_>>(),
    })
}

/// Returns the id of a server's boot volume.
async fn boot_volume(client: &RegionClient, server: &str) -> Result<VolumeId, VpcError> {
    let server = client.server(server).await?;
    Ok(client.boot_volume(&server).await?.id)
}

fn create(args: &SnapshotCreateArgs, session: &Session) -> CommandResult<Code> {
    run_on_cloud(&args.cloud, session, async |cloud| {
        let client = cloud.client()?;
        let source = boot_volume(&client, &args.server).await?;
        let name = match &args.name {
            Some(name) => name.clone(),
            None => ResourceName::suffixed(&args.server, &compact(SystemTime::now()))?,
        };
        if args.change.rehearsal.dry_run {
            return would(
                args.change.output.form(),
                format_args!("take snapshot {name} of volume {source} of {} in {}", args.server, cloud.home),
            );
        }
        let prototype = SnapshotPrototype {
            name,
            source,
            tags: args.tag.clone(),
            resource_group: None,
            clone_zones: args.clone.clone(),
        };
        let mut snapshot = client.create_snapshot(&prototype).await?;
        if !args.change.no_wait {
            snapshot = client.snapshot_stable(&snapshot.id, Patience::SNAPSHOT).await?;
        }
        if args.change.output.json {
            return print_json(&to_json(&snapshot));
        }
        Ok(print_line(format_args!(
            "{}  {}  {}  {} GB",
            snapshot.name, snapshot.id, snapshot.lifecycle_state, snapshot.minimum_capacity
        ))?)
    })?;
    Ok(Code::Done)
}

fn list(args: &SnapshotListArgs, session: &Session) -> CommandResult<Code> {
    let snapshots = run_on_cloud(&args.cloud, session, async |cloud| {
        let client = cloud.client()?;
        let source_volume = match &args.server {
            Some(server) => Some(boot_volume(&client, server).await?),
            None => None,
        };
        let filter =
            SnapshotFilter { source_volume, tag: args.tag.clone(), order: SnapshotOrder::NewestFirst };
        Ok(client.snapshots(&filter).await?)
    })?;
    if args.output.json {
        print_json(&snapshots.iter().map(to_json).collect::<Vec<_>>())?;
        return Ok(Code::Done);
    }
    let mut table = Table::new(&["name", "id", "state", "taken", "capacity", "generation", "tags"]);
    for snapshot in &snapshots {
        table.row(vec![
            snapshot.name.clone(),
            snapshot.id.to_string(),
            snapshot.lifecycle_state.to_string(),
            rfc3339(snapshot.point_in_time()),
            format!("{} GB", snapshot.minimum_capacity),
            snapshot.storage_generation.to_string(),
            snapshot.user_tags.join(","),
        ]);
    }
    table.print("no snapshots", session.verbosity)?;
    Ok(Code::Done)
}

fn delete(args: &SnapshotDeleteArgs, session: &Session) -> CommandResult<Code> {
    let consent = Consent::of(args.consent, session)?;
    run_on_cloud(&args.cloud, session, async |cloud| {
        let client = cloud.client()?;
        // All snapshots are looked up before the first is deleted, so that a mistyped name deletes nothing.
        let mut chosen = Vec::new();
        for named in &args.snapshots {
            let found = client.named_snapshot(named).await?;
            if found.backup_policy_plan.is_some() {
                let message = format!(
                    "snapshot {} belongs to IBM's backup service, whose policy decides how long it is kept",
                    found.name
                );
                return Err(UsageError(message).into());
            }
            chosen.push(found);
        }
        if !args.change.rehearsal.dry_run && chosen.len() > 1 {
            let names: Vec<&str> = chosen.iter().map(|snapshot| snapshot.name.as_str()).collect();
            let (count, names) = (names.len(), names.join(", "));
            let what = format!("delete {count} snapshots in {}: {names}", cloud.home);
            consent.ask(session, Unasked::GoOn, &what)?;
        }
        for found in &chosen {
            if args.change.rehearsal.dry_run {
                would(
                    args.change.output.form(),
                    format_args!("delete snapshot {}  {}", found.name, found.id),
                )?;
                continue;
            }
            client.delete_snapshot(&found.id).await?;
            if !args.change.no_wait {
                client.snapshot_gone(&found.id, Patience::DELETION).await?;
            }
            if !args.change.output.json {
                print_line(format_args!("deleted snapshot {}  {}", found.name, found.id))?;
            }
        }
        if args.change.output.json && !args.change.rehearsal.dry_run {
            print_json(&chosen.iter().map(to_json).collect::<Vec<_>>())?;
        }
        Ok(())
    })?;
    Ok(Code::Done)
}

fn copy(args: &SnapshotCopyArgs, session: &Session) -> CommandResult<Code> {
    run_on_cloud(&args.cloud, session, async |cloud| {
        let client = cloud.client()?;
        let to = args.to.as_deref().ok_or_else(|| UsageError("which region? Give --to".to_owned()))?;
        if to == cloud.home {
            return Err(UsageError(format!("a snapshot is not copied into its own region, {to}")).into());
        }
        let target = cloud.region(to)?;
        let source = client.named_snapshot(&args.snapshot).await?;
        let name = match &args.name {
            Some(name) => name.clone(),
            None => ResourceName::new(source.name.clone())?,
        };
        if args.change.rehearsal.dry_run {
            let (from, size) = (&cloud.home, source.minimum_capacity);
            return would(
                args.change.output.form(),
                format_args!("copy snapshot {} ({size} GB) of {from} into {to} as {name}", source.name),
            );
        }
        let key = source.encryption_key.as_ref().map(|key| &key.crn);
        let mut made = target.copy_snapshot(&name, &source.crn, key, &[]).await?;
        if !args.change.no_wait {
            made = target.snapshot_stable(&made.id, Patience::COPY).await?;
        }
        if args.change.output.json {
            return print_json(&to_json(&made));
        }
        Ok(print_line(format_args!("{}  {}  {}  in {to}", made.name, made.id, made.lifecycle_state))?)
    })?;
    Ok(Code::Done)
}
