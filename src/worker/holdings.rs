//! What there is of a server's earlier runs: its snapshots, images and objects, each with what speaks against removing it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::SystemTime;

use super::error::Fault;
use super::job::Job;
use super::names::{self, Form, JobNames, has};
use super::retention::{Candidate, Protection, Retention, beyond};
use super::site::Site;
use crate::store::{ListedObject, ObjectKey};
use crate::vpc::model::{Image, ImageState, Snapshot, SnapshotState};
use crate::vpc::{ImageFilter, ImageId, SnapshotFilter, SnapshotId, SnapshotOrder};

/// Something that retention may remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A snapshot, in the server's region.
    Snapshot(SnapshotId, String),
    /// An image, in the recovery region.
    Image(ImageId, String),
    /// An object with its manifest, in the bucket.
    Object(ObjectKey),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(_, name) => write!(f, "snapshot {name}"),
            Self::Image(_, name) => write!(f, "image {name}"),
            Self::Object(key) => write!(f, "object {key}"),
        }
    }
}

impl Thing {
    /// Asks for it to be removed; that it is gone is success.
    ///
    /// # Errors
    /// Where the cloud or the store refuses.
    pub async fn remove(&self, site: &Site) -> Result<(), Fault> {
        match self {
            Self::Snapshot(id, _) => site.home.delete_snapshot(id).await?,
            Self::Image(id, _) => site.away.delete_image(id).await?,
            Self::Object(key) => {
                // The manifest last: alone it is small, and found again.
                site.store.delete(key).await?;
                site.store.delete(&key.manifest()).await?;
            }
        }
        Ok(())
    }
}

/// What there is of one kind.
type Listed = Vec<(Candidate, Thing)>;

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    snapshots: Listed,
    images: Listed,
    objects: Listed,
}

impl Holdings {
    /// Looks for everything of the job's server. `newest` is the image that the job itself has made, which a list may not show yet.
    ///
    /// # Errors
    /// Where something can't be listed: then nothing is known, which is not the same as that there is nothing.
    pub async fn look(job: &Job, site: &Site, newest: Option<&ImageId>) -> Result<Self, Fault> {
        let names = job.names()?;
        let filter =
            SnapshotFilter { tag: Some(names::server_tag(&job.server)?), source_volume: None, order: SnapshotOrder::NewestFirst };
        let found = site.home.snapshots(&filter).await?;
        let mut open = open_runs(&job.server, &found)?;
        // This job is done with what it made, however far its snapshot's tags have come.
        open.remove(names.run.as_str());
        let mut snapshots = Vec::new();
        for snapshot in &found {
            let thing = Thing::Snapshot(snapshot.id.clone(), snapshot.name.clone());
            snapshots.push((snapshot_candidate(&job.server, snapshot, &open)?, thing));
        }
        let mut found = site.away.images(&ImageFilter::default()).await?;
        if let Some(id) = newest.filter(|id| found.iter().all(|image| image.id != **id)) {
            found.extend(site.away.image(id).await?);
        }
        let mut images = Vec::new();
        for image in found {
            let latest = image.name == names.latest.as_str();
            if !latest && names::form_of(&names.series, &image.name).is_none() && names::form_of(&job.server, &image.name).is_none()
            {
                continue;
            }
            // Asked one by one, since lists don't tell an image's tags.
            let tags = if latest { Vec::new() } else { site.tagging.tags(&image.crn).await? };
            let thing = Thing::Image(image.id.clone(), image.name.clone());
            images.push((image_candidate(job, &names, &image, &tags, &open), thing));
        }
        let listed = site.store.list(&names::folder(&job.prefix, &job.server)).await?;
        let objects = objects(job, &listed, &open);
        Ok(Self { snapshots, images, objects })
    }

    /// What `retention` does not keep, of each kind the oldest first.
    #[must_use]
    pub fn beyond(&self, retention: &Retention, now: SystemTime) -> Vec<Thing> {
        let kinds =
            [(&self.snapshots, &retention.snapshots), (&self.images, &retention.images), (&self.objects, &retention.objects)];
        let mut going = Vec::new();
        for (listed, keep) in kinds {
            let candidates: Vec<Candidate> = listed.iter().map(|(candidate, _)| candidate.clone()).collect();
            going.extend(beyond(&candidates, keep, now).into_iter().map(|at| listed[at].1.clone()));
        }
        going
    }
}

/// The names of runs that are under way or were broken off: their snapshots lack the mark of those that are done.
fn open_runs(server: &str, snapshots: &[Snapshot]) -> Result<BTreeSet<String>, Fault> {
    let (ours, done) = (names::ours()?, names::done_tag()?);
    let open = snapshots.iter().filter(|snapshot| {
        has(&snapshot.user_tags, &ours)
            && !has(&snapshot.user_tags, &done)
            && names::form_of(server, &snapshot.name) == Some(Form::Run)
    });
    Ok(open.map(|snapshot| snapshot.name.clone()).collect())
}

fn snapshot_candidate(server: &str, snapshot: &Snapshot, open: &BTreeSet<String>) -> Result<Candidate, Fault> {
    let tags = &snapshot.user_tags;
    let ours = has(tags, &names::ours()?)
        && names::server_of(tags).as_deref() == Some(server)
        && names::form_of(server, &snapshot.name) == Some(Form::Run)
        && snapshot.backup_policy_plan.is_none();
    let protection = if !ours {
        Some(Protection::NotOurs)
    } else if open.contains(&snapshot.name) {
        Some(Protection::InUse)
    } else if snapshot.lifecycle_state != SnapshotState::Stable {
        Some(Protection::NotWhole)
    } else if has(tags, &names::keep_tag()?) {
        Some(Protection::Kept)
    } else {
        None
    };
    Ok(Candidate { name: snapshot.name.clone(), made: snapshot.point_in_time(), protection })
}

fn image_candidate(job: &Job, names: &JobNames, image: &Image, tags: &[String], open: &BTreeSet<String>) -> Candidate {
    let whole = matches!(
        image.status,
        ImageState::Available | ImageState::PartiallyAvailable | ImageState::Deprecated | ImageState::Obsolete
    );
    let ours = names::job_of(tags).is_some() && names::server_of(tags).as_deref() == Some(job.server.as_str());
    let protection = if image.name == names.latest.as_str() {
        Some(Protection::Latest)
    } else if !ours {
        Some(Protection::NotOurs)
    } else if open.contains(&image.name) {
        Some(Protection::InUse)
    } else if !whole {
        Some(Protection::NotWhole)
    } else {
        None
    };
    Candidate { name: image.name.clone(), made: image.created_at, protection }
}

/// The runs among a bucket's objects. What makes one ours is its key and the manifest beside it.
fn objects(job: &Job, listed: &[ListedObject], open: &BTreeSet<String>) -> Listed {
    let keys: BTreeSet<&ObjectKey> = listed.iter().map(|object| &object.key).collect();
    let runs = listed.iter().filter_map(|object| {
        let run = names::run_of_key(&job.prefix, &job.server, &object.key)?;
        let protection = if open.contains(run) {
            Some(Protection::InUse)
        } else if !keys.contains(&object.key.manifest()) {
            Some(Protection::NotWhole)
        } else {
            None
        };
        let made = names::time_of_run(run)?;
        Some((Candidate { name: run.to_owned(), made, protection }, Thing::Object(object.key.clone())))
    });
    runs.collect()
}
