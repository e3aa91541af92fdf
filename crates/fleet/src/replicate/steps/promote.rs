//! Step `promote`: the new image becomes the latest, and the one before is named after its date. Images take
//! no preconditions, so both names are looked up, and the changes go by ids.

use snapferry_ibmcloud::vpc::model::Image;
use snapferry_ibmcloud::vpc::{ImageId, ResourceName, VpcError};

use super::super::error::Fault;
use super::super::names;
use super::super::saga::Run;
use super::super::state::ReplacedState;
use super::{Step, import};

pub(super) async fn run(run: &mut Run<'_>) -> Result<String, Fault> {
    let ours = run.state.image.as_ref().ok_or(Fault::OutOfTurn { step: Step::Promote })?.id.clone();
    let latest = run.names.latest.clone();
    match run.context.away.image_by_name(latest.as_str()).await? {
        Some(current) if current.id == ours => {
            set_image_name(run, &latest);
            return Ok(format!("{latest} already"));
        }
        Some(newer) if is_newer(run, &newer).await? => return step_aside(run, &ours, &newer).await,
        Some(old) => {
            let name = free_name(run, &old).await?;
            // The journal has both ids before the first of the two changes.
            run.state.replaced = Some(ReplacedState { id: old.id.clone(), name: name.to_string() });
            run.intend(Step::Promote, &latest).await?;
            run.context.away.rename_image(&old.id, &name).await?;
        }
        None => run.intend(Step::Promote, &latest).await?,
    }
    run.context.away.rename_image(&ours, &latest).await?;
    set_image_name(run, &latest);
    Ok(match &run.state.replaced {
        Some(replaced) => format!("{latest}; the one before is {}", replaced.name),
        None => format!("{latest}, the first one"),
    })
}

fn set_image_name(run: &mut Run<'_>, name: &ResourceName) {
    if let Some(image) = &mut run.state.image {
        image.name = name.to_string();
    }
}

/// True if the image was made by a job that began after this one.
async fn is_newer(run: &Run<'_>, latest: &Image) -> Result<bool, Fault> {
    let tags = import::tags(run, latest).await?;
    let same_server = names::server_of(&tags).as_deref() == Some(run.job.server.as_str());
    Ok(same_server && names::job_of(&tags).is_some_and(|job| job > run.job.id))
}

/// Gives the image a dated name instead, so that a job that was resumed late does not put an older disk in a
/// newer one's place.
async fn step_aside(run: &mut Run<'_>, ours: &ImageId, newer: &Image) -> Result<String, Fault> {
    let image = run.context.away.image(ours).await?;
    let image = image.ok_or_else(|| VpcError::missing("image", ours.as_str(), run.context.away.region()))?;
    let mut name = image.name.clone();
    if name == run.names.run.as_str() {
        let dated = free_name(run, &image).await?;
        run.intend(Step::Promote, &dated).await?;
        run.context.away.rename_image(ours, &dated).await?;
        set_image_name(run, &dated);
        name = dated.to_string();
    }
    run.warn(format!("{} is of a newer job already: this image stays {name}", newer.name));
    Ok(format!("{name}, since {} is newer", newer.name))
}

/// Returns a dated name that no other image has.
async fn free_name(run: &Run<'_>, image: &Image) -> Result<ResourceName, Fault> {
    let dated = run.names.dated(image.created_at)?;
    match run.context.away.image_by_name(dated.as_str()).await? {
        Some(other) if other.id != image.id => {
            Ok(run.names.dated_apart(image.created_at, image.id.as_str())?)
        }
        _ => Ok(dated),
    }
}

/// Gives the image before its name back, unless this job's image or another one has the name by now.
pub(super) async fn undo(run: &mut Run<'_>) -> Result<(), Fault> {
    let Some(replaced) = run.state.replaced.clone() else { return Ok(()) };
    let (away, latest) = (&run.context.away, &run.names.latest);
    // By ids, since a list may still show the image that had the name before.
    let mut ids = vec![replaced.id.clone()];
    ids.extend(run.state.image.as_ref().map(|image| image.id.clone()));
    let mut taken =
        away.image_by_name(latest.as_str()).await?.is_some_and(|current| !ids.contains(&current.id));
    for id in &ids {
        taken |= away.image(id).await?.is_some_and(|image| image.name == latest.as_str());
    }
    if !taken {
        away.rename_image(&replaced.id, latest).await?;
    }
    if !run.state.image_named(latest) {
        run.state.replaced = None;
    }
    Ok(())
}
