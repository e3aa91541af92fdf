//! `snapferry boot-volume`: the boot volume of a server, and the obstacles to its replication.

use std::time::SystemTime;

use clap::Args as Group;
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use snapferry_base::clock::rfc3339;
use snapferry_ibmcloud::vpc::model::{HealthState, InstanceState, Snapshot, StorageGeneration, Volume};
use snapferry_ibmcloud::vpc::{LARGEST_IMAGE, SnapshotFilter, SnapshotOrder};

use super::{Cloud, print_json, run as run_on_cloud};
use crate::cli::args::{CloudArgs, OutputArgs};
use crate::cli::completions::names;
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::printable;
use crate::cli::session::Session;
use crate::cli::table;

/// Output of the command with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    server: String,
    server_id: String,
    status: String,
    region: String,
    zone: String,
    vpc: String,
    profile: String,
    /// Bandwidth for all volumes, in megabits per second.
    volume_bandwidth: Option<u64>,
    boot_volume: String,
    boot_volume_id: String,
    capacity_gb: u64,
    volume_profile: String,
    storage_generation: StorageGeneration,
    encryption: Option<String>,
    health: Option<String>,
    operating_system: Option<String>,
    importable: Option<bool>,
    snapshots: usize,
    latest_snapshot: Option<Latest>,
    /// Obstacles to a replication, one text each.
    obstacles: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Latest {
    name: String,
    id: String,
    state: String,
    taken_at: String,
    age_seconds: u64,
}

impl Latest {
    fn of(snapshot: &Snapshot) -> Self {
        let taken = snapshot.point_in_time();
        Self {
            name: snapshot.name.clone(),
            id: snapshot.id.to_string(),
            state: snapshot.lifecycle_state.to_string(),
            taken_at: rfc3339(taken),
            age_seconds: SystemTime::now().duration_since(taken).unwrap_or_default().as_secs(),
        }
    }
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry boot-volume web01\n  snapferry boot-volume web01 --region eu-de --json"
)]
pub struct BootVolumeArgs {
    /// Name of the server
    #[arg(value_name = "SERVER", add = ArgValueCompleter::new(names::servers))]
    pub server: String,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

pub fn run(args: &BootVolumeArgs, session: &Session) -> CommandResult<Code> {
    let report = run_on_cloud(&args.cloud, session, async |cloud| inspect(cloud, &args.server).await)?;
    if args.output.json {
        print_json(&report)?;
    } else {
        write(&report)?;
    }
    Ok(Code::Done)
}

async fn inspect(cloud: &Cloud, server: &str) -> CommandResult<Report> {
    let client = cloud.client()?;
    let server = client.server(server).await?;
    let volume = client.boot_volume(&server).await?;
    let filter = SnapshotFilter {
        source_volume: Some(volume.id.clone()),
        order: SnapshotOrder::NewestFirst,
        ..SnapshotFilter::default()
    };
    let snapshots = client.snapshots(&filter).await?;
    let importable = match &volume.operating_system {
        Some(os) => client.operating_system(&os.name).await?.map(|os| os.allow_user_image_creation),
        None => None,
    };
    let obstacles = obstacles(&server.status, &volume, importable);
    Ok(Report {
        server: server.name,
        server_id: server.id.to_string(),
        status: server.status.to_string(),
        region: cloud.home.clone(),
        zone: server.zone.name,
        vpc: server.vpc.name.unwrap_or_else(|| server.vpc.id.to_string()),
        profile: server.profile.name,
        volume_bandwidth: server.total_volume_bandwidth,
        boot_volume: volume.name.clone(),
        boot_volume_id: volume.id.to_string(),
        capacity_gb: volume.capacity,
        volume_profile: volume.profile.name.clone(),
        storage_generation: volume.storage_generation,
        encryption: volume.encryption.clone(),
        health: volume.health_state.as_ref().map(ToString::to_string),
        operating_system: volume.operating_system.as_ref().map(|os| os.name.clone()),
        importable,
        snapshots: snapshots.len(),
        latest_snapshot: snapshots.first().map(Latest::of),
        obstacles,
    })
}

/// Lists what IBM's rules would refuse, so that the user reads it before a job begins.
fn obstacles(status: &InstanceState, volume: &Volume, importable: Option<bool>) -> Vec<String> {
    let mut found = Vec::new();
    if volume.capacity > LARGEST_IMAGE {
        found
            .push(format!("{} GB are more than the {LARGEST_IMAGE} that an image may have", volume.capacity));
    }
    if volume.storage_generation == StorageGeneration::FIRST && *status != InstanceState::Running {
        found.push(format!(
            "a snapshot of first-generation storage needs a running server, and this one is {status}"
        ));
    }
    if volume.health_state == Some(HealthState::Degraded) {
        let reasons: Vec<String> = volume.health_reasons.iter().map(|reason| reason.describe()).collect();
        found.push(format!("the volume is degraded: {}", reasons.join("; ")));
    }
    if importable == Some(false) {
        found.push("images of its operating system may not be imported: name another one".to_owned());
    }
    found
}

fn write(report: &Report) -> CommandResult<()> {
    let latest = report.latest_snapshot.as_ref().map_or_else(String::new, |latest| {
        format!("{} ({}, {}), {} in all", latest.name, latest.state, latest.taken_at, report.snapshots)
    });
    let bandwidth = report
        .volume_bandwidth
        .map_or_else(String::new, |megabits| format!(", {megabits} Mbit/s for its volumes"));
    let mut pairs = vec![
        ("server", format!("{} ({})", report.server, report.server_id)),
        ("status", report.status.clone()),
        ("place", format!("{}, VPC {}", report.zone, report.vpc)),
        ("profile", format!("{}{bandwidth}", report.profile)),
        ("boot volume", format!("{} ({})", report.boot_volume, report.boot_volume_id)),
        ("capacity", format!("{} GB", report.capacity_gb)),
        (
            "storage",
            format!(
                "{}, generation {}, {}",
                report.volume_profile,
                report.storage_generation,
                report.encryption.as_deref().unwrap_or("encryption unknown")
            ),
        ),
        ("health", report.health.clone().unwrap_or_default()),
        ("operating system", report.operating_system.clone().unwrap_or_default()),
        ("latest snapshot", latest),
    ];
    pairs.extend(report.obstacles.iter().map(|obstacle| ("in the way", obstacle.clone())));
    Ok(table::pairs(&pairs, &mut printable::out())?)
}
