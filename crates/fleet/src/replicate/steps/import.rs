//! Steps `import` and `available`: the image in the recovery region is imported under the job's own name,
//! waited for, and proved to be made of the file that was sent.

use snapferry_base::retry::{Class, chain};
use snapferry_ibmcloud::vpc::model::{Image, ImageState};
use snapferry_ibmcloud::vpc::{ImageId, ImageOrigin, ImagePrototype, Patience, ResourceGroupId};

use super::super::error::{Fault, Obstacle};
use super::super::names::{self, Form};
use super::super::saga::Run;
use super::super::snapshot_hold;
use super::super::state::ImageState as Known;
use super::Step;

/// Returns the job's image, under any name that it may have by now.
pub(in super::super) async fn own(run: &Run<'_>) -> Result<Option<Image>, Fault> {
    let away = &run.context.away;
    if let Some(known) = &run.state.image
        && let Some(image) = away.image(&known.id).await?
    {
        return Ok(Some(image));
    }
    // Only this job gives a thing this name.
    if let Some(image) = away.image_by_name(run.names.run.as_str()).await? {
        return Ok(Some(image));
    }
    // An earlier run may have made it the latest, and died.
    let Some(latest) = away.image_by_name(run.names.latest.as_str()).await? else { return Ok(None) };
    let tags = tags(run, &latest).await?;
    Ok((names::job_of(&tags) == Some(run.job.id)).then_some(latest))
}

/// Returns an image's tags; none if this account may not read them. Like the permission to write them, a
/// missing permission to read them does not fail the job.
pub(in super::super) async fn tags(run: &Run<'_>, image: &Image) -> Result<Vec<String>, Fault> {
    match run.context.tagging.tags(&image.crn).await {
        Err(err) if err.class() == Class::Permanent => {
            tracing::warn!("the tags of image {} can't be read: {}", image.name, chain(&err));
            Ok(Vec::new())
        }
        read => Ok(read?),
    }
}

fn image_state(image: &Image) -> Known {
    Known { id: image.id.clone(), crn: image.crn.clone(), name: image.name.clone() }
}

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    // The image is the first thing that users see, so rivals are checked again.
    snapshot_hold::check_rivals(run).await?;
    let found = match own(run).await? {
        // The image is of no use, and blocks its name.
        Some(image)
            if matches!(image.status, ImageState::Failed | ImageState::Unusable | ImageState::Deleting) =>
        {
            remove(run, &image.id).await?;
            None
        }
        found => found,
    };
    let image = match found {
        Some(image) => image,
        None => create(run).await?,
    };
    run.state.image = Some(image_state(&image));
    run.intend(Step::Import, &image.id).await?;
    tag(run, &image).await?;
    Ok(format!("{} ({}) from {}", image.name, image.id, href(run)))
}

/// Returns the object's address for the image service.
fn href(run: &Run<'_>) -> String {
    format!("cos://{}/{}/{}", run.job.bucket_location, run.job.bucket, run.names.key)
}

async fn create(run: &Run<'_>) -> Result<Image, Fault> {
    let (system, resource_group) = match &run.state.disk {
        Some(disk) => (disk.operating_system.clone(), disk.resource_group.clone()),
        None => look_up_disk(run).await?,
    };
    let unknown = || {
        Fault::from(Obstacle::Message("the disk's operating system is not known: name it by --os".to_owned()))
    };
    let operating_system = run.job.operating_system.clone().or(system).ok_or_else(unknown)?;
    let origin = ImageOrigin::File { href: href(run), operating_system };
    let resource_group = run.job.resource_group().or(resource_group);
    let prototype = ImagePrototype { name: run.names.run.clone(), origin, resource_group };
    run.intend(Step::Import, &prototype.name).await?;
    Ok(run.context.away.create_image(&prototype).await?)
}

/// Looks up the operating system's name and the resource group, for a job that was resumed without its
/// journal once the object was there.
async fn look_up_disk(run: &Run<'_>) -> Result<(Option<String>, Option<ResourceGroupId>), Fault> {
    let home = &run.context.home;
    let (system, group) = match home.snapshot_by_name(run.names.run.as_str()).await? {
        Some(snapshot) => (snapshot.operating_system, snapshot.resource_group),
        None => match home.server(&run.job.server).await?.boot_volume() {
            Some(boot) => home
                .volume(boot)
                .await?
                .map(|boot| (boot.operating_system, boot.resource_group))
                .unwrap_or_default(),
            None => (None, None),
        },
    };
    Ok((system.map(|system| system.name), group.map(|group| group.id)))
}

/// Sets the image's tags, which the VPC API can't do. An image without tags is never pruned, but that does
/// not fail the job.
async fn tag(run: &mut Run<'_>, image: &Image) -> Result<(), Fault> {
    match run.context.tagging.attach(&image.crn, &run.names.tags).await {
        Ok(()) => Ok(()),
        Err(err) if err.class() == Class::Permanent => {
            let reason = chain(&err);
            run.warn(format!(
                "image {} has no tags, so it will not be pruned (it takes the role Editor on images): {reason}",
                image.name
            ));
            Ok(())
        }
        Err(err) => Err(err.into()),
    }
}

pub(super) async fn available(run: &mut Run<'_>) -> Result<String, Fault> {
    let out_of_turn = || Fault::OutOfTurn { step: Step::Available };
    let id = run.state.image.as_ref().ok_or_else(out_of_turn)?.id.clone();
    let ours = run.state.object.as_ref().ok_or_else(out_of_turn)?.sha256.clone();
    let image = run.context.away.image_available(&id, run.patience(Patience::IMAGE)).await?;
    run.state.image = Some(image_state(&image));
    match image.sha256() {
        Some(theirs) if theirs == ours => Ok(format!("{}, SHA-256 {ours}", image.name)),
        Some(theirs) => Err(Fault::WrongFile { image: id.to_string(), theirs, ours }),
        None => Err(Fault::NoSum { image: id.to_string() }),
    }
}

async fn remove(run: &Run<'_>, id: &ImageId) -> Result<(), Fault> {
    run.context.away.delete_image(id).await?;
    run.context.away.image_gone(id, run.patience(Patience::DELETION)).await?;
    Ok(())
}

pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    // Under another name the image is or was the latest, so this job must not remove it any more.
    let unpromoted = |image: &Image| {
        names::form_of(&run.job.server, &image.name) == Some(Form::Run)
            && image.name == run.names.run.as_str()
    };
    if let Some(image) = own(run).await?.filter(unpromoted) {
        remove(run, &image.id).await?;
    }
    run.state.image = None;
    Ok(())
}
