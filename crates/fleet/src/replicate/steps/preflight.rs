//! Step `preflight`: finds the conditions that would stop the job later, before anything is made. It reports
//! all of them at once, each with what to do.

use snapferry_base::retry::Class;
use snapferry_engine::store::StoreError;
use snapferry_ibmcloud::vpc::LARGEST_IMAGE;
use snapferry_ibmcloud::vpc::model::{HealthState, InstanceState, SnapshotState, StorageGeneration};

use super::super::error::{Fault, Obstacle};
use super::super::job::{Goal, Origin};
use super::super::names;
use super::super::saga::Run;
use super::super::snapshot_hold;
use super::super::state::DiskState;

/// Most data volumes that a server can have (IBM's documentation of block storage).
const MOST_DATA_VOLUMES: usize = 12;
/// Text by which the API shows that a volume is encrypted under a root key of the account.
const USER_MANAGED: &str = "user_managed";
/// The only profile of the second generation.
const SECOND_GENERATION: &str = "sdp";
/// Highest bandwidth of a volume of the second generation, in Mbit/s (IBM's documentation of its `sdp`
/// profile).
const SDP_BANDWIDTH: u64 = 8192;
/// Least capacity in GB for which that bandwidth can be requested (the same documentation).
const SDP_FULL_BANDWIDTH_FROM: u64 = 81;

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    snapshot_hold::check_rivals(run).await?;
    let mut obstacles = Vec::new();
    let own = &run.context.own;
    if own.region != run.job.from {
        obstacles.push(format!(
            "this server is in {}, and a volume of {} can be attached in its own region alone: run this on a server there",
            own.region, run.job.from
        ));
    }
    let disk = disk(run, &mut obstacles).await?;
    if let Some(disk) = &disk
        && run.job.goal == Goal::Image
        && disk.capacity > LARGEST_IMAGE
    {
        obstacles.push(format!(
            "the disk has {} GB, and an image may have {LARGEST_IMAGE}: carry it as an object (--no-import), or its snapshot (`snapferry snapshot copy`)",
            disk.capacity
        ));
    }
    if let Some(disk) = &disk {
        check_profile(run, disk, &mut obstacles).await?;
    }
    check_free_slot(run, &mut obstacles).await?;
    tagging(run).await?;
    let unusable = bucket(run).await?;
    let obstacles: Vec<Obstacle> =
        obstacles.into_iter().map(Obstacle::Message).chain(unusable.map(Obstacle::Bucket)).collect();
    if !obstacles.is_empty() {
        return Err(Fault::Obstacles { obstacles });
    }
    let disk = disk.ok_or(Fault::OutOfTurn { step: super::Step::Preflight })?;
    let summary = format!(
        "{} GB, storage generation {}, operating system {}, into {} and {}",
        disk.capacity,
        disk.generation,
        disk.operating_system.as_deref().unwrap_or("left alone"),
        run.context.store.url(&run.names.key),
        run.job.to,
    );
    run.state.disk = Some(disk);
    Ok(summary)
}

/// Returns the disk that is to be read, and adds the obstacles that it has.
async fn disk(run: &Run<'_>, obstacles: &mut Vec<String>) -> Result<Option<DiskState>, Fault> {
    let (capacity, generation, system, group) = match &run.job.origin {
        Origin::Server => {
            let (Some(server), Some(volume)) = (&run.found.server, &run.found.volume) else {
                return Ok(None);
            };
            if volume.storage_generation == StorageGeneration::FIRST
                && server.status != InstanceState::Running
            {
                obstacles.push(format!(
                    "a snapshot of first-generation storage needs a running server, and {} is {}: start it, or give --from-snapshot",
                    server.name, server.status
                ));
            }
            if volume.health_state == Some(HealthState::Degraded) {
                let reasons: Vec<String> =
                    volume.health_reasons.iter().map(|reason| reason.describe()).collect();
                obstacles.push(format!(
                    "volume {} is degraded ({}): no snapshot can be taken while it is still being filled",
                    volume.name,
                    reasons.join("; ")
                ));
            }
            if volume.encryption.as_deref() == Some(USER_MANAGED) {
                tracing::warn!(
                    "volume {} is encrypted under a key of your own; its image and object will be under the bucket's and IBM's",
                    volume.name
                );
            }
            (
                volume.capacity,
                volume.storage_generation,
                volume.operating_system.clone(),
                &volume.resource_group,
            )
        }
        Origin::Snapshot(_) => {
            let Some(snapshot) = &run.found.snapshot else { return Ok(None) };
            if snapshot.lifecycle_state != SnapshotState::Stable {
                obstacles
                    .push(format!("snapshot {} is {}, not stable", snapshot.name, snapshot.lifecycle_state));
            }
            if let Some(other) =
                names::server_of(&snapshot.user_tags).filter(|other| *other != run.job.server)
            {
                obstacles.push(format!(
                    "snapshot {} is of server {other}, not of {}: name the server that it is of, or another snapshot",
                    snapshot.name, run.job.server
                ));
            }
            (
                snapshot.minimum_capacity,
                snapshot.storage_generation,
                snapshot.operating_system.clone(),
                &snapshot.resource_group,
            )
        }
    };
    let system = match run.job.goal {
        Goal::Object => None,
        Goal::Image => match run.job.operating_system.clone().or(system.map(|system| system.name)) {
            Some(name) => {
                check_importable(run, &name, obstacles).await?;
                Some(name)
            }
            None => {
                obstacles.push(
                    "the disk's operating system is not known: name it by --os, as in debian-12-amd64"
                        .to_owned(),
                );
                None
            }
        },
    };
    let resource_group = run.job.resource_group().or_else(|| group.as_ref().map(|group| group.id.clone()));
    Ok(Some(DiskState { capacity, generation, operating_system: system, resource_group }))
}

async fn check_importable(run: &Run<'_>, name: &str, obstacles: &mut Vec<String>) -> Result<(), Fault> {
    let away = &run.context.away;
    match away.operating_system(name).await? {
        Some(system) if system.allow_user_image_creation => {}
        Some(_) => obstacles.push(format!(
            "images of {name} may not be imported into {}: name another operating system by --os, such as its -byol variant",
            away.region()
        )),
        None => obstacles.push(format!("{} knows no operating system {name}: name another one by --os", away.region())),
    }
    Ok(())
}

/// Checks that the requested profile exists, and is for the disk's storage generation. So a mistyped name is
/// reported here, and not after the snapshot.
async fn check_profile(run: &Run<'_>, disk: &DiskState, obstacles: &mut Vec<String>) -> Result<(), Fault> {
    let Some(requested) = &run.job.volume_profile else { return Ok(()) };
    let profiles = run.context.home.volume_profiles().await?;
    // The second generation has one profile; all others are for the first (IBM's documentation of block
    // storage profiles).
    let fits = |name: &str| (name == SECOND_GENERATION) == (disk.generation != StorageGeneration::FIRST);
    if !profiles.iter().any(|profile| profile.name == *requested && fits(&profile.name)) {
        let fitting: Vec<&str> =
            profiles.iter().map(|profile| profile.name.as_str()).filter(|name| fits(name)).collect();
        obstacles.push(format!(
            "{} has no volume profile {requested:?} for storage of generation {}: give --volume-profile {}",
            run.job.from,
            disk.generation,
            fitting.join(" or ")
        ));
    }
    Ok(())
}

/// Checks that the service that tags images can be reached. It is a service of its own with another address,
/// so a failure is reported here, and not after the conversion. If it only refuses access, the job continues:
/// an image without tags is better than none.
async fn tagging(run: &Run<'_>) -> Result<(), Fault> {
    let Some(server) = run.found.server.as_ref().filter(|_| run.job.goal == Goal::Image) else {
        return Ok(());
    };
    match run.context.tagging.tags(&server.crn).await {
        Err(err) if err.class() != Class::Permanent => Err(err.into()),
        _ => Ok(()),
    }
}

/// Checks that this server has room for one more volume.
async fn check_free_slot(run: &Run<'_>, obstacles: &mut Vec<String>) -> Result<(), Fault> {
    if run.context.own.region != run.job.from {
        return Ok(());
    }
    let attachments = run.context.home.attachments(&run.context.own.id).await?;
    let data = attachments.iter().filter(|attachment| attachment.kind.as_deref() != Some("boot")).count();
    let ours = attachments.iter().any(|attachment| attachment.name == run.names.run.as_str());
    if data >= MOST_DATA_VOLUMES && !ours {
        obstacles.push(format!(
            "this server, {}, has {data} data volumes, as many as it may: detach one, or run this on another server",
            run.context.own.name
        ));
    }
    Ok(())
}

/// Returns the error that prevents access to the bucket, if there is one. The check lists open uploads, which
/// needs no object. A role that may read the bucket and not write to it passes the check.
async fn bucket(run: &Run<'_>) -> Result<Option<StoreError>, Fault> {
    match run.context.store.list_uploads(run.names.key.as_str()).await {
        Ok(_) => Ok(None),
        Err(
            err @ (StoreError::NoSuchBucket { .. }
            | StoreError::Denied { .. }
            | StoreError::WrongRegion { .. }),
        ) => Ok(Some(err)),
        Err(err) => Err(err.into()),
    }
}

/// Returns the volume's profile and the bandwidth to request for it: the fastest ones of the generation,
/// since the volume lives for minutes only.
#[must_use]
pub fn profile(disk: &DiskState, requested: Option<&str>) -> (String, Option<u64>) {
    let fastest = match disk.generation {
        StorageGeneration::FIRST => "10iops-tier",
        _ => SECOND_GENERATION,
    };
    let profile = requested.unwrap_or(fastest);
    let bandwidth =
        (profile == SECOND_GENERATION && disk.capacity >= SDP_FULL_BANDWIDTH_FROM).then_some(SDP_BANDWIDTH);
    (profile.to_owned(), bandwidth)
}
