//! Step `release`: detaches the volume and deletes it, as soon as the object is in the bucket, and whenever a
//! job stops.

use std::time::Duration;

use snapferry_base::retry::chain;
use snapferry_ibmcloud::vpc::model::{Volume, VolumeState};
use snapferry_ibmcloud::vpc::{InstanceId, Patience};

use super::super::error::Fault;
use super::super::saga::Run;
use super::{Step, clone, volume};

/// Longest wait until a volume that is not needed any more is ready to be deleted: it usually takes seconds.
const MADE_BY: Duration = Duration::from_secs(2 * 60);

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let removed = volume::own(run).await?;
    if let Some(volume) = &removed {
        run.intend(Step::Release, &volume.name).await?;
    }
    volume::undo(run).await?;
    clone::undo(run).await?;
    Ok(removed.map_or_else(
        || "the volume is gone already".to_owned(),
        |volume| format!("{} is detached and deleted", volume.name),
    ))
}

/// Detaches a volume from the servers that `which` picks, and waits until it is detached.
pub(super) async fn detach(
    run: &Run<'_>,
    volume: &Volume,
    which: impl Fn(&InstanceId) -> bool,
) -> Result<(), Fault> {
    let home = &run.context.home;
    for attachment in &volume.volume_attachments {
        let Some(instance) = attachment.instance.as_ref().map(|instance| &instance.id).filter(|id| which(id))
        else {
            continue;
        };
        let lock = run.lock_server(instance).await?;
        home.detach(instance, &attachment.id).await?;
        home.detached(instance, &attachment.id, run.patience(Patience::ATTACHMENT)).await?;
        drop(lock);
    }
    Ok(())
}

/// Waits for a volume that is being detached from `server`: until that is done, the old attachment has the
/// name that the new one needs.
pub(super) async fn wait_until_detached(
    run: &Run<'_>,
    volume: &Volume,
    server: &InstanceId,
) -> Result<(), Fault> {
    let home = &run.context.home;
    for attachment in &volume.volume_attachments {
        if attachment.instance.as_ref().is_none_or(|instance| instance.id != *server) {
            continue;
        }
        if home.attachment(server, &attachment.id).await?.is_some_and(|current| current.status.is_leaving()) {
            home.detached(server, &attachment.id, run.patience(Patience::ATTACHMENT)).await?;
        }
    }
    Ok(())
}

/// Detaches a volume from all servers, deletes it, and waits until it is gone.
pub(super) async fn remove(run: &Run<'_>, volume: &Volume) -> Result<(), Fault> {
    detach(run, volume, |_| true).await?;
    // A volume can't be deleted while it is being made. If it fails or takes too long, the deletion shows
    // that.
    if volume.status == VolumeState::Pending {
        let made = run
            .context
            .home
            .volume_available(&volume.id, run.patience(Patience::VOLUME.within(MADE_BY)))
            .await;
        if let Err(err) = made {
            tracing::debug!("{}", chain(&err));
        }
    }
    run.context.home.delete_volume(&volume.id).await?;
    run.context.home.volume_gone(&volume.id, run.patience(Patience::DELETION)).await?;
    Ok(())
}
