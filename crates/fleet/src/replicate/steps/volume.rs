//! Step `volume`: the volume that is read. It is made from the snapshot in this server's zone with a fast
//! profile, and deleted as soon as it is read.

use snapferry_ibmcloud::vpc::model::{Volume, VolumeState};
use snapferry_ibmcloud::vpc::{Patience, VolumePrototype};

use super::super::error::Fault;
use super::super::names;
use super::super::saga::Run;
use super::super::state::VolumeState as Known;
use super::{Step, preflight, release, snapshot};

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let snapshot = snapshot::of(run, Step::Volume)?.id.clone();
    let disk = run.state.disk.as_ref().ok_or(Fault::OutOfTurn { step: Step::Volume })?;
    let (profile, bandwidth) = preflight::profile(disk, run.job.volume_profile.as_deref());
    let prototype = VolumePrototype {
        name: run.names.run.clone(),
        profile,
        zone: run.context.own.zone.clone(),
        source: snapshot,
        capacity: None,
        bandwidth,
        iops: None,
        encryption_key: None,
        tags: run.names.tags.clone(),
        resource_group: disk.resource_group.clone(),
    };
    let fits = |volume: &Volume| {
        volume.zone.name == prototype.zone
            && volume.profile.name == prototype.profile
            && volume.source_snapshot.as_ref().is_some_and(|source| source.id == prototype.source)
            && !matches!(
                volume.status,
                VolumeState::Failed | VolumeState::Unusable | VolumeState::PendingDeletion
            )
    };
    // A server in another zone may have made one before it died, and a volume can't move to another zone.
    if let Some(old) = own(run).await?.filter(|old| !fits(old)) {
        release::remove(run, &old).await?;
    }
    run.intend(Step::Volume, &prototype.name).await?;
    let volume = run.context.home.create_volume(&prototype).await?;
    run.state.volume = Some(Known { id: volume.id.clone(), profile: volume.profile.name.clone() });
    run.intend(Step::Volume, &volume.id).await?;
    let volume = run.context.home.volume_available(&volume.id, run.patience(Patience::VOLUME)).await?;
    Ok(format!("{} ({}), {}, in {}", volume.name, volume.id, volume.profile.name, volume.zone.name))
}

/// Returns the job's volume, whatever zone or server it is in.
pub(super) async fn own(run: &Run<'_>) -> Result<Option<Volume>, Fault> {
    let home = &run.context.home;
    let mut found = match &run.state.volume {
        Some(known) => home.volume(&known.id).await?,
        None => None,
    };
    if found.is_none() {
        found = home.volume_by_name(run.names.run.as_str()).await?;
    }
    Ok(found.filter(|volume| names::job_of(&volume.user_tags) == Some(run.job.id)))
}

pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    if let Some(volume) = own(run).await? {
        release::remove(run, &volume).await?;
    }
    run.state.volume = None;
    run.state.attachment = None;
    Ok(())
}
