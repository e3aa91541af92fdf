//! What would stop the job later is found before anything is made: all of it at once, each with what to do.

use super::super::error::{Fault, Obstacle};
use super::super::job::{Goal, Origin};
use super::super::saga::Run;
use super::super::state::DiskState;
use crate::store::StoreError;
use crate::vpc::LARGEST_IMAGE;
use crate::vpc::model::{HealthState, InstanceState, SnapshotState, StorageGeneration};

/// Data volumes that a server can have (IBM's documentation of block storage).
const MOST_DATA_VOLUMES: usize = 12;
/// Megabits a second that a volume of the second generation may be given (IBM's documentation of its `sdp` profile) ...
const SDP_BANDWIDTH: u64 = 8192;
/// ... from this capacity on, in GB.
const SDP_FULL_BANDWIDTH_FROM: u64 = 81;

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let mut obstacles = Vec::new();
    let own = &run.site.own;
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
    free_slot(run, &mut obstacles).await?;
    let unusable = bucket(run).await?;
    let obstacles: Vec<Obstacle> = obstacles.into_iter().map(Obstacle::Told).chain(unusable.map(Obstacle::Bucket)).collect();
    if !obstacles.is_empty() {
        return Err(Fault::Obstacles { obstacles });
    }
    let disk = disk.ok_or(Fault::OutOfTurn { step: super::Step::Preflight })?;
    let words = format!(
        "{} GB, storage generation {}, operating system {}, into {} and {}",
        disk.capacity,
        disk.generation,
        disk.operating_system.as_deref().unwrap_or("left alone"),
        run.site.store.url(&run.names.key),
        run.job.to,
    );
    run.state.disk = Some(disk);
    Ok(words)
}

/// What is to be read, and what is wrong with it.
async fn disk(run: &Run<'_>, obstacles: &mut Vec<String>) -> Result<Option<DiskState>, Fault> {
    let (capacity, generation, system) = match &run.job.origin {
        Origin::Server => {
            let (Some(server), Some(volume)) = (&run.found.server, &run.found.volume) else { return Ok(None) };
            if volume.storage_generation == StorageGeneration::FIRST && server.status != InstanceState::Running {
                obstacles.push(format!(
                    "a snapshot of first-generation storage needs a running server, and {} is {}: start it, or give --from-snapshot",
                    server.name, server.status
                ));
            }
            if volume.health_state == Some(HealthState::Degraded) {
                let reasons: Vec<String> = volume.health_reasons.iter().map(|reason| reason.shown()).collect();
                obstacles.push(format!(
                    "volume {} is degraded ({}): no snapshot can be taken while it is still being filled",
                    volume.name,
                    reasons.join("; ")
                ));
            }
            (volume.capacity, volume.storage_generation, volume.operating_system.clone())
        }
        Origin::Snapshot(_) => {
            let Some(snapshot) = &run.found.snapshot else { return Ok(None) };
            if snapshot.lifecycle_state != SnapshotState::Stable {
                obstacles.push(format!("snapshot {} is {}, not stable", snapshot.name, snapshot.lifecycle_state));
            }
            (snapshot.minimum_capacity, snapshot.storage_generation, snapshot.operating_system.clone())
        }
    };
    let system = match run.job.goal {
        Goal::Object => None,
        Goal::Image => match run.job.operating_system.clone().or(system.map(|system| system.name)) {
            Some(name) => {
                importable(run, &name, obstacles).await?;
                Some(name)
            }
            None => {
                obstacles.push("the disk's operating system is not known: name it by --os, as in debian-12-amd64".to_owned());
                None
            }
        },
    };
    Ok(Some(DiskState { capacity, generation, operating_system: system }))
}

async fn importable(run: &Run<'_>, name: &str, obstacles: &mut Vec<String>) -> Result<(), Fault> {
    let away = &run.site.away;
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

/// Whether this server has room for one more volume.
async fn free_slot(run: &Run<'_>, obstacles: &mut Vec<String>) -> Result<(), Fault> {
    if run.site.own.region != run.job.from {
        return Ok(());
    }
    let attachments = run.site.home.attachments(&run.site.own.id).await?;
    let data = attachments.iter().filter(|attachment| attachment.kind.as_deref() != Some("boot")).count();
    let ours = attachments.iter().any(|attachment| attachment.name == run.names.run.as_str());
    if data >= MOST_DATA_VOLUMES && !ours {
        obstacles.push(format!(
            "this server, {}, has {data} data volumes, as many as it may: detach one, or run this on another server",
            run.site.own.name
        ));
    }
    Ok(())
}

/// What keeps us from writing to the bucket, if anything does. Its open uploads are asked for, which needs no object.
async fn bucket(run: &Run<'_>) -> Result<Option<StoreError>, Fault> {
    match run.site.store.list_uploads(run.names.key.as_str()).await {
        Ok(_) => Ok(None),
        Err(err @ (StoreError::NoSuchBucket { .. } | StoreError::Denied { .. } | StoreError::WrongRegion { .. })) => Ok(Some(err)),
        Err(err) => Err(err.into()),
    }
}

/// The volume's profile and its bandwidth: the fastest of the generation, since it lives for minutes only.
#[must_use]
pub fn profile(disk: &DiskState, asked: Option<&str>) -> (String, Option<u64>) {
    let fastest = match disk.generation {
        StorageGeneration::FIRST => "10iops-tier",
        _ => "sdp",
    };
    let profile = asked.unwrap_or(fastest);
    let bandwidth = (profile == "sdp" && disk.capacity >= SDP_FULL_BANDWIDTH_FROM).then_some(SDP_BANDWIDTH);
    (profile.to_owned(), bandwidth)
}
