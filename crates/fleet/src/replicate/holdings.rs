//! Snapshots, images and objects of a server's earlier runs, each with the reason why it must not be removed,
//! if there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::SystemTime;

use snapferry_base::job::JobId;
use snapferry_engine::store::{ListedObject, ObjectKey, ObjectStore, OpenUpload};
use snapferry_ibmcloud::vpc::model::{Image, ImageState, Snapshot, SnapshotState};
use snapferry_ibmcloud::vpc::{
    ImageFilter, ImageId, RegionClient, SnapshotFilter, SnapshotId, SnapshotOrder, Tagging,
};

use super::base;
use super::context::JobContext;
use super::error::Fault;
use super::job::JobSpec;
use super::names::{self, Form, JobNames, has};
use super::retention::{Candidate, Protection, Retention, beyond};
use super::snapshot_tags::Destination;

/// Thing that retention may remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudObject {
    /// A snapshot in the server's region: id, name.
    Snapshot(SnapshotId, String),
    /// An image in the recovery region: id, name.
    Image(ImageId, String),
    /// An object in the bucket, with its manifest.
    Object(ObjectKey),
}

impl fmt::Display for CloudObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(_, name) => write!(f, "snapshot {name}"),
            Self::Image(_, name) => write!(f, "image {name}"),
            Self::Object(key) => write!(f, "object {key}"),
        }
    }
}

impl CloudObject {
    /// Requests the removal of the thing. A thing that is gone already counts as success.
    ///
    /// # Errors
    /// If the cloud or the store refuses.
    pub async fn remove(&self, stores: &CloudStores<'_>) -> Result<(), Fault> {
        match (self, stores.away, stores.store) {
            (Self::Snapshot(id, _), ..) => stores.home.delete_snapshot(id).await?,
            (Self::Image(id, _), Some((away, _)), _) => away.delete_image(id).await?,
            (Self::Object(key), _, Some(store)) => {
                // The manifest is last: if only one of them is left, it is the small one, and `gc` finds it.
                store.delete(key).await?;
                store.delete(&key.manifest()).await?;
            }
            (Self::Image(..) | Self::Object(_), ..) => {}
        }
        Ok(())
    }
}

/// Places in which things are looked for. A place that is not given is left out.
#[derive(Clone, Copy)]
pub struct CloudStores<'a> {
    /// Client for the server's region.
    pub home: &'a RegionClient,
    /// Client for the recovery region, and for the tags of its images.
    pub away: Option<(&'a RegionClient, &'a Tagging)>,
    /// Bucket with the objects.
    pub store: Option<&'a dyn ObjectStore>,
}

impl<'a> CloudStores<'a> {
    /// Returns all places that a job works with.
    #[must_use]
    pub fn of_context(context: &'a JobContext) -> Self {
        Self {
            home: &context.home,
            away: Some((&context.away, &context.tagging)),
            store: Some(&*context.store),
        }
    }
}

/// Newest run of the server whose holdings are looked for.
pub struct Newest<'a> {
    pub job: JobId,
    pub server: &'a str,
    /// Text that the keys of its objects begin with.
    pub prefix: &'a str,
    pub names: &'a JobNames,
    /// Destination of the run's image and object.
    pub to: &'a Destination,
    /// Image that the run itself has made, which a list may not show yet.
    pub image: Option<&'a ImageId>,
}

/// Things of one kind.
type Listed = Vec<(Candidate, CloudObject)>;

/// Everything that a server's runs have left, by kind.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    snapshots: Listed,
    images: Listed,
    objects: Listed,
    /// Name of a run of the same server into the same destination that began later, if there is one: then
    /// that run decides what is removed.
    pub newer: Option<String>,
}

impl Holdings {
    /// Looks for everything of a job's server. `image` is the one that the job itself has made.
    ///
    /// # Errors
    /// As for [`Holdings::look`].
    pub async fn of_job(job: &JobSpec, context: &JobContext, image: Option<&ImageId>) -> Result<Self, Fault> {
        let names = job.names()?;
        let to = Destination::of_job(job, &names);
        let newest =
            Newest { job: job.id, server: &job.server, prefix: &job.prefix, names: &names, to: &to, image };
        Self::look(&newest, &CloudStores::of_context(context)).await
    }

    /// Looks for everything of the run's server.
    ///
    /// # Errors
    /// If something can't be listed: then nothing is known, which is not the same as that there is nothing.
    pub async fn look(of: &Newest<'_>, stores: &CloudStores<'_>) -> Result<Self, Fault> {
        let names = of.names;
        let mut holdings = Self::default();
        let filter = SnapshotFilter {
            tag: Some(names::server_tag(of.server)?),
            source_volume: None,
            order: SnapshotOrder::NewestFirst,
        };
        let found = stores.home.snapshots(&filter).await?;
        let mut open = open_runs(of.server, &found)?;
        // This job no longer uses what it made, even if its snapshot does not have the mark yet.
        open.remove(names.run.as_str());
        let mut elsewhere = BTreeSet::new();
        for snapshot in &found {
            let (tags, ours) =
                (&snapshot.user_tags, names::form_of(of.server, &snapshot.name) == Some(Form::Run));
            // Earlier versions of snapferry set no destination tag: such a snapshot may be for any region.
            let same_region = Destination::of(tags).is_none_or(|to| to.region == of.to.region);
            if ours && !same_region {
                elsewhere.insert(snapshot.name.clone());
            }
            if ours && same_region && names::job_of(tags).is_some_and(|job| job > of.job) {
                holdings.newer = Some(snapshot.name.clone());
            }
            let resource = CloudObject::Snapshot(snapshot.id.clone(), snapshot.name.clone());
            holdings.snapshots.push((snapshot_candidate(of.server, snapshot, &open)?, resource));
        }
        if let Some((away, tagging)) = stores.away {
            holdings.images(of, &open, away, tagging).await?;
        }
        if let Some(store) = stores.store {
            let folder = names::folder(of.prefix, of.server);
            let listed = store.list(&folder).await?;
            let uploads = store.list_uploads(&folder).await?;
            holdings.objects = objects(of, &listed, &open);
            protect_bases(&mut holdings.objects, &listed, &uploads);
            let began = names::time_of_run(names.run.as_str());
            let later = |name: &str| names::time_of_run(name) > began && !elsewhere.contains(name);
            let newer = holdings.objects.iter().find(|(candidate, _)| later(&candidate.name));
            holdings.newer = holdings.newer.or(newer.map(|(candidate, _)| candidate.name.clone()));
        }
        Ok(holdings)
    }

    async fn images(
        &mut self,
        of: &Newest<'_>,
        open: &BTreeSet<String>,
        away: &RegionClient,
        tagging: &Tagging,
    ) -> Result<(), Fault> {
        let names = of.names;
        let mut found = away.images(&ImageFilter::default()).await?;
        if let Some(id) = of.image.filter(|id| found.iter().all(|image| image.id != **id)) {
            found.extend(away.image(id).await?);
        }
        for image in found {
            let latest = image.name == names.latest.as_str();
            if !latest
                && names::form_of(&names.series, &image.name).is_none()
                && names::form_of(of.server, &image.name).is_none()
            {
                continue;
            }
            // One request for each image, since lists don't include an image's tags. The tags of the latest
            // image are not needed if this run has made it.
            let own = of.image.is_some_and(|own| *own == image.id);
            let tags = if latest && own { Vec::new() } else { tagging.tags(&image.crn).await? };
            let same_server = names::server_of(&tags).as_deref() == Some(of.server);
            if same_server && names::job_of(&tags).is_some_and(|job| job > of.job) {
                self.newer = Some(image.name.clone());
            }
            let resource = CloudObject::Image(image.id.clone(), image.name.clone());
            self.images.push((image_candidate(of, &image, &tags, open), resource));
        }
        Ok(())
    }

    /// Returns the things that `retention` does not keep, of each kind the oldest first.
    #[must_use]
    pub fn beyond(&self, retention: &Retention, now: SystemTime) -> Vec<CloudObject> {
        self.candidates_beyond(retention, now).into_iter().map(|(_, resource)| resource).collect()
    }

    /// Returns the same things as [`Holdings::beyond`], each with its candidate, which has the time at which
    /// it was made.
    #[must_use]
    pub fn candidates_beyond(&self, retention: &Retention, now: SystemTime) -> Vec<(Candidate, CloudObject)> {
        let kinds = [
            (&self.snapshots, &retention.snapshots),
            (&self.images, &retention.images),
            (&self.objects, &retention.objects),
        ];
        let mut expired = Vec::new();
        for (listed, keep) in kinds {
            let candidates: Vec<Candidate> = listed.iter().map(|(candidate, _)| candidate.clone()).collect();
            expired.extend(beyond(&candidates, keep, now).into_iter().map(|at| listed[at].clone()));
        }
        expired
    }
}

/// Returns the names of runs that are under way or were interrupted: their snapshots lack the mark of
/// finished jobs.
fn open_runs(server: &str, snapshots: &[Snapshot]) -> Result<BTreeSet<String>, Fault> {
    let (ours, done) = (names::ours()?, names::done_tag()?);
    let open = snapshots.iter().filter(|snapshot| {
        has(&snapshot.user_tags, &ours)
            && !has(&snapshot.user_tags, &done)
            && names::form_of(server, &snapshot.name) == Some(Form::Run)
    });
    Ok(open.map(|snapshot| snapshot.name.clone()).collect())
}

fn snapshot_candidate(
    server: &str,
    snapshot: &Snapshot,
    open: &BTreeSet<String>,
) -> Result<Candidate, Fault> {
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

fn image_candidate(of: &Newest<'_>, image: &Image, tags: &[String], open: &BTreeSet<String>) -> Candidate {
    let is_complete = matches!(
        image.status,
        ImageState::Available
            | ImageState::PartiallyAvailable
            | ImageState::Deprecated
            | ImageState::Obsolete
    );
    let ours = names::job_of(tags).is_some() && names::server_of(tags).as_deref() == Some(of.server);
    let protection = if image.name == of.names.latest.as_str() {
        Some(Protection::Latest)
    } else if !ours {
        Some(Protection::NotOurs)
    } else if open.contains(&image.name) {
        Some(Protection::InUse)
    } else if !is_complete {
        Some(Protection::NotWhole)
    } else {
        None
    };
    Candidate { name: image.name.clone(), made: image.created_at, protection }
}

/// Returns the runs among a bucket's objects. Only the key shows that an object belongs to a run; without a
/// manifest beside it, the object is not complete.
fn objects(of: &Newest<'_>, listed: &[ListedObject], open: &BTreeSet<String>) -> Listed {
    let keys: BTreeSet<&ObjectKey> = listed.iter().map(|object| &object.key).collect();
    let runs = listed.iter().filter_map(|object| {
        let run = names::run_of_key(of.prefix, of.server, &object.key)?;
        let protection = if open.contains(run) {
            Some(Protection::InUse)
        } else if !keys.contains(&object.key.manifest()) {
            Some(Protection::NotWhole)
        } else {
            None
        };
        let made = names::time_of_run(run)?;
        Some((Candidate { name: run.to_owned(), made, protection }, CloudObject::Object(object.key.clone())))
    });
    runs.collect()
}

/// Protects the objects that an open upload of the same server may copy from: a job of another region in the
/// same bucket, for example. Which one a job has chosen, only its own journal shows; so all those stay that
/// it can have chosen, which are the newest ones that were complete and verified before the upload began.
fn protect_bases(objects: &mut [(Candidate, CloudObject)], listed: &[ListedObject], uploads: &[OpenUpload]) {
    let modified: BTreeMap<&ObjectKey, Option<SystemTime>> =
        listed.iter().map(|object| (&object.key, object.modified)).collect();
    // The manifest is stored anew once the image is verified.
    let verified = |resource: &CloudObject| match resource {
        CloudObject::Object(key) => modified.get(&key.manifest()).copied().flatten(),
        CloudObject::Snapshot(..) | CloudObject::Image(..) => None,
    };
    let mut in_use = BTreeSet::new();
    for upload in uploads {
        let could_be_chosen = |(candidate, resource): &&(Candidate, CloudObject)| {
            candidate.protection.is_none()
                && !matches!(resource, CloudObject::Object(key) if *key == upload.upload.key)
                // A time that the store does not report excludes nothing.
                && verified(resource).zip(upload.started).is_none_or(|(verified, started)| verified <= started)
        };
        let mut chosen: Vec<&Candidate> =
            objects.iter().filter(could_be_chosen).map(|(candidate, _)| candidate).collect();
        chosen.sort_unstable_by(|one, other| (other.made, &other.name).cmp(&(one.made, &one.name)));
        in_use.extend(chosen.into_iter().take(base::TRIED).map(|candidate| candidate.name.clone()));
    }
    for (candidate, _) in objects.iter_mut().filter(|(candidate, _)| in_use.contains(&candidate.name)) {
        candidate.protection = Some(Protection::InUse);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snapferry_engine::store::Upload;

    use super::super::retention::Keep;
    use super::super::retention::Newest::Count;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(&format!("web01/{name}.qcow2")).expect("a key")
    }

    /// An object whose run began at `made`, and whose manifest was stored at `verified`.
    fn add(
        name: &str,
        made: u64,
        verified: Option<u64>,
        objects: &mut Listed,
        listed: &mut Vec<ListedObject>,
    ) {
        let candidate = Candidate { name: name.to_owned(), made: at(made), protection: None };
        objects.push((candidate, CloudObject::Object(key(name))));
        listed.push(ListedObject { key: key(name), size: 9, modified: Some(at(made + 1)) });
        listed.push(ListedObject { key: key(name).manifest(), size: 1, modified: verified.map(at) });
    }

    fn upload(name: &str, started: Option<u64>) -> OpenUpload {
        OpenUpload { upload: Upload { key: key(name), id: "1".to_owned() }, started: started.map(at) }
    }

    fn protected(objects: &[(Candidate, CloudObject)]) -> Vec<&str> {
        let in_use = |candidate: &&Candidate| candidate.protection == Some(Protection::InUse);
        objects
            .iter()
            .map(|(candidate, _)| candidate)
            .filter(in_use)
            .map(|candidate| &*candidate.name)
            .collect()
    }

    #[test]
    fn what_an_open_upload_can_have_chosen_stays() {
        let (mut objects, mut listed) = (Vec::new(), Vec::new());
        for (name, made, verified) in
            [("a", 100, 150), ("b", 200, 250), ("c", 300, 350), ("d", 400, 450), ("e", 500, 650)]
        {
            add(name, made, Some(verified), &mut objects, &mut listed);
        }
        let none = objects.clone();
        protect_bases(&mut objects, &listed, &[]);
        assert_eq!(objects, none);
        // The last one was verified after the upload began, so the upload's job could not choose it.
        protect_bases(&mut objects, &listed, &[upload("other", Some(600))]);
        assert_eq!(protected(&objects), ["b", "c", "d"]);
        let beyond = beyond(
            &objects.iter().map(|(candidate, _)| candidate.clone()).collect::<Vec<_>>(),
            &Keep { newest: Count(1), younger_than: None },
            at(1000),
        );
        assert_eq!(beyond, [0]);
    }

    #[test]
    fn times_that_a_store_does_not_report_exclude_nothing_and_no_job_copies_from_its_own_object() {
        let (mut objects, mut listed) = (Vec::new(), Vec::new());
        for (name, made) in [("a", 100), ("b", 200), ("c", 300), ("d", 400)] {
            add(name, made, None, &mut objects, &mut listed);
        }
        protect_bases(&mut objects, &listed, &[upload("d", Some(50))]);
        assert_eq!(protected(&objects), ["a", "b", "c"]);
        let (mut objects, mut listed) = (Vec::new(), Vec::new());
        add("a", 100, Some(150), &mut objects, &mut listed);
        protect_bases(&mut objects, &listed, &[upload("other", None)]);
        assert_eq!(protected(&objects), ["a"]);
    }
}
