//! Check if a job that is taken up again still has work to do.
//!
//! A journal covers its own machine alone: another server may have finished the job since, later jobs may
//! have followed it, and retention may have removed its results. So the cloud is asked before anything is
//! changed.

use snapferry_base::job::JobId;
use snapferry_ibmcloud::vpc::ImageFilter;
use snapferry_ibmcloud::vpc::model::{Image, ImageState, Snapshot};

use super::error::Fault;
use super::job::{Goal, Origin};
use super::names::{self, JobNames, has};
use super::saga::Run;
use super::steps::{convert, import};

/// Status of a job by the evidence in the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JobStatus {
    /// The job has work to do, from whatever step it reached.
    Open,
    /// The job is done, by this process or another; only pruning may be left. The text is the evidence.
    Done(String),
    /// Nothing of the job exists any more, and a newer job is done. The text is the evidence.
    Superseded(String),
}

/// Returns the job's own snapshot, whether the job is under way or done.
pub(super) async fn own_snapshot(run: &Run<'_>) -> Result<Option<Snapshot>, Fault> {
    if run.job.origin != Origin::Server {
        return Ok(None);
    }
    let home = &run.context.home;
    let mut found = match &run.state.snapshot {
        Some(known) => home.snapshot(&known.id).await?,
        None => None,
    };
    if found.is_none() {
        found = home.snapshot_by_name(run.names.run.as_str()).await?;
    }
    Ok(found.filter(|found| names::job_of(&found.user_tags) == Some(run.job.id)))
}

/// Finds out the status of the job in the cloud. Changes nothing.
pub(super) async fn of(run: &Run<'_>, own: Option<&Snapshot>) -> Result<JobStatus, Fault> {
    match own {
        Some(own) if has(&own.user_tags, &names::done_tag()?) => {
            return Ok(JobStatus::Done(format!("its snapshot {} is marked as done", own.name)));
        }
        // The mark is the last step before pruning: without it, some step is still to be done.
        Some(_) => return Ok(JobStatus::Open),
        None => {}
    }
    if run.job.goal == Goal::Image {
        let Images { made, newer, latest_is_untagged } = images(run).await?;
        if let Some(image) = made {
            let promoted = image.name != run.names.run.as_str() && image.status != ImageState::Pending;
            return Ok(if promoted {
                JobStatus::Done(format!("its image is {} ({})", image.name, image.id))
            } else {
                JobStatus::Open
            });
        }
        if let Some((job, image)) = newer {
            return Ok(JobStatus::Superseded(format!("image {} is of the newer job {job}", image.name)));
        }
        // Objects may belong to a job for another region, so they decide only if the latest image does not
        // show its job.
        if !latest_is_untagged {
            return Ok(JobStatus::Open);
        }
    }
    let (own, newer) = objects(run).await?;
    match newer {
        Some(newer) => Ok(JobStatus::Superseded(format!("object {newer} is of a newer job"))),
        // The journal knows of a snapshot that is gone: retention removes only the snapshot of a job that is
        // done.
        None if own && run.job.goal == Goal::Object && run.state.snapshot.is_some() => {
            Ok(JobStatus::Done("its object is there, and its snapshot was pruned".to_owned()))
        }
        None => Ok(JobStatus::Open),
    }
}

/// Evidence in the image library.
#[derive(Default)]
struct Images {
    /// Image of the job, under any name.
    made: Option<Image>,
    /// Image of the same server by a newer job.
    newer: Option<(JobId, Image)>,
    /// True if the tags of the latest image don't show its job.
    latest_is_untagged: bool,
}

async fn images(run: &Run<'_>) -> Result<Images, Fault> {
    let JobNames { run: own, latest, series, .. } = &run.names;
    let Images { mut made, mut newer, mut latest_is_untagged } = Images::default();
    for image in run.context.away.images(&ImageFilter::default()).await? {
        let is_known = run.state.image.as_ref().is_some_and(|known| known.id == image.id);
        if is_known || image.name == own.as_str() {
            made = Some(image);
            continue;
        }
        let named = image.name == latest.as_str()
            || names::form_of(series, &image.name).is_some()
            || names::form_of(&run.job.server, &image.name).is_some();
        if !named {
            continue;
        }
        let tags = import::tags(run, &image).await?;
        match names::job_of(&tags)
            .filter(|_| names::server_of(&tags).as_deref() == Some(run.job.server.as_str()))
        {
            Some(job) if job == run.job.id => made = Some(image),
            // An image that is still being made may fail.
            Some(job) if job > run.job.id && is_complete(&image) => newer = Some((job, image)),
            None if image.name == latest.as_str() => latest_is_untagged = true,
            _ => {}
        }
    }
    Ok(Images { made, newer, latest_is_untagged })
}

fn is_complete(image: &Image) -> bool {
    !matches!(
        image.status,
        ImageState::Pending | ImageState::Failed | ImageState::Unusable | ImageState::Deleting
    )
}

/// Returns true if the job's object is complete, and the run of a newer complete object, if there is one.
async fn objects(run: &Run<'_>) -> Result<(bool, Option<String>), Fault> {
    let listed = run.context.store.list(&names::folder(&run.job.prefix, &run.job.server)).await?;
    let has_manifest =
        |key: &snapferry_engine::store::ObjectKey| listed.iter().any(|object| object.key == key.manifest());
    let began = names::time_of_run(run.names.run.as_str());
    let newer = listed.iter().find_map(|object| {
        let other = names::run_of_key(&run.job.prefix, &run.job.server, &object.key)?;
        (names::time_of_run(other) > began && has_manifest(&object.key)).then(|| other.to_owned())
    });
    let own = listed.iter().any(|object| object.key == run.names.key) && convert::is_complete(run).await?;
    Ok((own, newer))
}
