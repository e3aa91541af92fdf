//! Step `attach`: attaches the volume to this server, and proves that the device is the right one.

use snapferry_ibmcloud::vpc::Patience;
use snapferry_ibmcloud::vpc::model::AttachedDevice;

use super::super::error::Fault;
use super::super::saga::Run;
use super::super::state::AttachmentState;
use super::{Step, release, volume};

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let out_of_turn = || Fault::OutOfTurn { step: Step::Attach };
    let id = run.state.volume.as_ref().ok_or_else(out_of_turn)?.id.clone();
    let capacity = run.state.disk.as_ref().ok_or_else(out_of_turn)?.capacity;
    let (home, own) = (&run.context.home, run.context.own.clone());
    // The volume may still be attached to the server that worked on the job before.
    if let Some(volume) = home.volume(&id).await? {
        release::detach(run, &volume, |instance| *instance != own.id).await?;
        release::wait_until_detached(run, &volume, &own.id).await?;
    }
    run.intend(Step::Attach, &run.names.run).await?;
    let lock = run.lock_server(&own.id).await?;
    let attachment = home.attach(&own.id, &run.names.run, &id).await?;
    let attachment = home.attached(&own.id, &attachment.id, run.patience(Patience::ATTACHMENT)).await?;
    drop(lock);
    let device = attachment.device.ok_or_else(out_of_turn)?;
    let others: Vec<AttachedDevice> =
        home.attachments(&own.id).await?.into_iter().filter_map(|attachment| attachment.device).collect();
    let path = run
        .context
        .devices
        .find(&device, &others, capacity, &*run.context.clock, &run.context.cancel)
        .await?;
    let summary = format!("{} on {}", path.display(), own.name);
    run.state.attachment = Some(AttachmentState { instance: own.id, id: attachment.id, device: path });
    Ok(summary)
}

pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    if let Some(volume) = volume::own(run).await? {
        release::detach(run, &volume, |_| true).await?;
    }
    run.state.attachment = None;
    Ok(())
}
