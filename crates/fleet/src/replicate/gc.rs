//! Leftovers of dead jobs, which are found by tag, name and age, and have no process that works on them.
//!
//! For each kind, an empty list and a list that could not be read are different answers. A leftover is looked
//! at once more right before it is removed.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use snapferry_base::clock::Clock;
use snapferry_base::job::JobId;
use snapferry_base::retry::{Class, chain};
use snapferry_engine::store::{ListedObject, ObjectKey, ObjectStore, StoreError, Upload};
use snapferry_ibmcloud::vpc::model::{Image, Snapshot, Volume};
use snapferry_ibmcloud::vpc::{
    ImageFilter, ImageId, NameError, Patience, RegionClient, SnapshotFilter, SnapshotId, SnapshotOrder,
    Tagging, VolumeFilter, VolumeId, VpcError,
};

use super::catchup::{self, Overdue};
use super::context::Waits;
use super::error::Fault;
use super::holdings::CloudObject;
use super::names::{self, JobNames, has};
use super::server_locks::ServerLocks;

/// Reason why things could not be listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// A request to the cloud failed.
    #[error("{operation}")]
    Cloud {
        /// Operation that failed.
        operation: String,
        #[source]
        source: VpcError,
    },
    /// A request to the bucket failed.
    #[error("{operation}")]
    Store {
        /// Operation that failed.
        operation: String,
        #[source]
        source: StoreError,
    },
    /// The things to prune could not be found out, or the turn to detach did not come.
    #[error("{0}")]
    Retention(#[source] Box<Fault>),
    /// Never happens: snapferry's own tags are valid.
    #[error(transparent)]
    Names(#[from] NameError),
}

impl GcError {
    /// Returns what the error means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Cloud { source, .. } => source.class(),
            Self::Store { source, .. } => source.class(),
            Self::Retention(fault) => fault.class(),
            Self::Names(_) => Class::Permanent,
        }
    }
}

fn cloud(operation: impl Into<String>) -> impl FnOnce(VpcError) -> GcError {
    let operation = operation.into();
    move |source| GcError::Cloud { operation, source }
}

fn bucket(operation: impl Into<String>) -> impl FnOnce(StoreError) -> GcError {
    let operation = operation.into();
    move |source| GcError::Store { operation, source }
}

/// Places in which leftovers are looked for. A place that is not given is left out, and the report shows
/// that.
pub struct Places {
    /// Locks to detach from a server.
    pub server_locks: ServerLocks,
    /// Region of the servers, with volumes, snapshots and clones.
    pub home: RegionClient,
    /// Recovery region with the images, and the tags by which snapferry's own images are known.
    pub away: Option<(RegionClient, Tagging)>,
    /// Bucket with uploads and objects, the prefix of snapferry's keys in it, and its name.
    pub bucket: Option<(Arc<dyn ObjectStore>, String, String)>,
}

/// Rules that decide what counts as a leftover.
pub struct Rules {
    /// Least age of a leftover, which is longer than the longest job.
    pub min_age: Duration,
    /// Names of the runs that a process works on.
    pub live: BTreeSet<String>,
    /// Names of the runs in this machine's journals.
    pub known: BTreeSet<String>,
    pub clock: Arc<dyn Clock>,
    /// Polling intervals and deadlines of the waits for deletions.
    pub waits: Waits,
}

/// Kind of a leftover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An upload that was not completed: it is billed, and not visible in lists of objects.
    Upload,
    /// An object without its manifest, or a manifest without its object.
    Object,
    /// An image that never became the latest.
    Image,
    /// A volume, with its attachment if it has one.
    Volume,
    /// A clone for fast restores.
    Clone,
    /// The snapshot of a job that was never done.
    Snapshot,
}

impl Kind {
    /// All kinds, in the order in which they are removed: a snapshot stays while a volume is filled from it.
    pub const ALL: [Self; 6] =
        [Self::Upload, Self::Object, Self::Image, Self::Volume, Self::Clone, Self::Snapshot];

    /// Returns the name of the kind, as reports show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Object => "object",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Clone => "clone",
            Self::Snapshot => "snapshot",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Identity of the thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Upload(Upload),
    Object(ObjectKey),
    Image(ImageId),
    Volume(VolumeId),
    Clone(SnapshotId, String),
    Snapshot(SnapshotId),
    Overdue(CloudObject),
}

/// Reason why a thing counts as a leftover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// A job that was never done has made it.
    Unfinished,
    /// The newest job of its server is done, and does not keep it.
    NotKept,
}

/// Decision on a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Old enough, and no process works on its job: it is removed.
    Leftover,
    /// A process works on its job: it stays.
    Live,
    /// Not old enough: it stays.
    Young,
}

/// Thing made by snapferry whose job is not done, or that a newer job does not keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    pub name: String,
    /// Id of the thing in the cloud; of an object, its key.
    pub id: String,
    /// Name of the run that the thing belongs to.
    pub run: String,
    /// Billed size in GB, if known.
    pub size_gb: Option<u64>,
    /// Seconds since the thing was made; none if the time is not known.
    pub age_seconds: Option<u64>,
    pub fate: Fate,
    pub because: Because,
    #[serde(skip)]
    which: Which,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.name, self.id)
    }
}

/// Kind that could not be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blind {
    pub kind: Kind,
    pub why: String,
}

/// Result of a search: everything that was found, and everything that could not be looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Findings in the order in which they would be removed.
    pub findings: Vec<Finding>,
    /// Kinds that could not be listed.
    pub could_not_list: Vec<Blind>,
    /// Kinds that were not looked for, because the caller gave no place for them.
    pub not_looked_at: Vec<Kind>,
}

impl Survey {
    /// Returns the kinds that were listed completely.
    pub fn seen(&self) -> impl Iterator<Item = Kind> {
        let blind = |kind| {
            self.not_looked_at.contains(&kind) || self.could_not_list.iter().any(|blind| blind.kind == kind)
        };
        Kind::ALL.into_iter().filter(move |&kind| !blind(kind))
    }

    /// Returns the findings that are to be removed.
    pub fn leftovers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.fate == Fate::Leftover)
    }
}

/// Looks for leftovers in all places.
///
/// # Errors
/// If the search is cancelled, or the things to prune can't be found out. A kind that can't be listed is part
/// of the result, and no error.
pub async fn survey(places: &Places, rules: &Rules) -> Result<Survey, GcError> {
    let mut survey = Survey::default();
    for kind in Kind::ALL {
        let listed = match (kind, &places.away, &places.bucket) {
            (Kind::Upload, _, Some((store, prefix, _))) => uploads(&**store, prefix, rules).await,
            (Kind::Object, _, Some((store, prefix, _))) => objects(&**store, prefix, rules).await,
            (Kind::Image, Some((away, tagging)), _) => images(&places.home, away, tagging, rules).await,
            (Kind::Volume, ..) => volumes(&places.home, rules).await,
            (Kind::Clone, ..) => clones(&places.home, rules).await,
            (Kind::Snapshot, ..) => snapshots(&places.home, rules).await,
            (Kind::Upload | Kind::Object | Kind::Image, ..) => {
                survey.not_looked_at.push(kind);
                continue;
            }
        };
        match listed {
            Ok(found) => survey.findings.extend(found),
            Err(err) if err.class() == Class::Cancelled => return Err(err),
            Err(err) => survey.could_not_list.push(Blind { kind, why: chain(&err) }),
        }
    }
    // If one kind is missing, the newest job and the things that it keeps are not known.
    if survey.could_not_list.is_empty() {
        survey.findings.extend(overdue(places, rules).await?);
        survey.findings.sort_by_key(|finding| finding.kind);
    }
    Ok(survey)
}

/// Returns the things that finished jobs should have pruned.
async fn overdue(places: &Places, rules: &Rules) -> Result<Vec<Finding>, GcError> {
    let snapshots = own_snapshots(&places.home).await?;
    let found = catchup::look(&snapshots, places, None, &rules.live, rules.clock.now()).await;
    let found = found.map_err(|fault| GcError::Retention(Box::new(fault)))?;
    let finding = |overdue: Overdue| {
        let name = match &overdue.resource {
            CloudObject::Snapshot(_, name) | CloudObject::Image(_, name) => name.clone(),
            CloudObject::Object(key) => key.to_string(),
        };
        let (kind, which) = (overdue.kind(), Which::Overdue(overdue.resource));
        Finding {
            because: Because::NotKept,
            ..rules.finding(kind, which, &name, &overdue.by, Some(overdue.made))
        }
    };
    Ok(found.into_iter().map(finding).collect())
}

impl Rules {
    fn finding(&self, kind: Kind, which: Which, name: &str, run: &str, made: Option<SystemTime>) -> Finding {
        let age = made.and_then(|made| self.clock.now().duration_since(made).ok());
        let fate = if self.live.contains(run) {
            Fate::Live
        // A thing without a time, or with one from a clock that is ahead, counts as young.
        } else if age.is_none_or(|age| age < self.min_age) {
            Fate::Young
        } else {
            Fate::Leftover
        };
        let id = match &which {
            Which::Upload(upload) => upload.id.clone(),
            Which::Object(key) => key.to_string(),
            Which::Image(id) => id.to_string(),
            Which::Volume(id) => id.to_string(),
            Which::Clone(id, zone) => format!("{id} in {zone}"),
            Which::Snapshot(id) | Which::Overdue(CloudObject::Snapshot(id, _)) => id.to_string(),
            Which::Overdue(CloudObject::Image(id, _)) => id.to_string(),
            Which::Overdue(CloudObject::Object(key)) => key.to_string(),
        };
        let because = Because::Unfinished;
        let age_seconds = age.map(|age| age.as_secs());
        Finding {
            kind,
            name: name.to_owned(),
            id,
            run: run.to_owned(),
            size_gb: None,
            age_seconds,
            fate,
            because,
            which,
        }
    }
}

/// Returns the run of one of snapferry's keys: `<prefix><server>/<run>.qcow2`, with or without `.manifest`.
fn run_of(prefix: &str, key: &ObjectKey) -> Option<String> {
    let server = key.as_str().strip_prefix(prefix)?.split_once('/')?.0;
    let image = ObjectKey::new(key.as_str().strip_suffix(".manifest").unwrap_or(key.as_str())).ok()?;
    names::run_of_key(prefix, server, &image).map(str::to_owned)
}

async fn uploads(store: &dyn ObjectStore, prefix: &str, rules: &Rules) -> Result<Vec<Finding>, GcError> {
    let open = store.list_uploads(prefix).await.map_err(bucket("list uploads"))?;
    let ours = open.into_iter().filter_map(|open| {
        let run = run_of(prefix, &open.upload.key)?;
        let name = open.upload.key.to_string();
        Some(rules.finding(Kind::Upload, Which::Upload(open.upload), &name, &run, open.started))
    });
    Ok(ours.collect())
}

async fn objects(store: &dyn ObjectStore, prefix: &str, rules: &Rules) -> Result<Vec<Finding>, GcError> {
    let listed = store.list(prefix).await.map_err(bucket("list objects"))?;
    let keys: BTreeSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    let alone = |object: &&ListedObject| match object.key.as_str().strip_suffix(".manifest") {
        Some(image) => !keys.contains(image),
        None => !keys.contains(object.key.manifest().as_str()),
    };
    let halves = listed.iter().filter(alone).filter_map(|object| {
        let run = run_of(prefix, &object.key)?;
        Some(rules.finding(
            Kind::Object,
            Which::Object(object.key.clone()),
            object.key.as_str(),
            &run,
            object.modified,
        ))
    });
    Ok(halves.collect())
}

/// True if the name is the run's name of the job in these tags, and not one that an image got later.
fn own_run(tags: &[String], name: &str) -> bool {
    let job_names = |job: JobId| JobNames::of(job, &names::server_of(tags)?, None, "").ok();
    names::job_of(tags).and_then(job_names).is_some_and(|names| names.run.as_str() == name)
}

/// True if a name may be a run's. Saves a request for the tags of every other image.
fn looks_like_a_run(name: &str) -> bool {
    names::time_of_run(name).is_some()
}

async fn images(
    home: &RegionClient,
    away: &RegionClient,
    tagging: &Tagging,
    rules: &Rules,
) -> Result<Vec<Finding>, GcError> {
    let listed = away.images(&ImageFilter::default()).await.map_err(cloud("list images"))?;
    // If a job died before it tagged its image, the image has the name of one of snapferry's snapshots, or of
    // a journal.
    let mut runs = rules.known.clone();
    runs.extend(own_snapshots(home).await?.into_iter().map(|snapshot| snapshot.name));
    let mut found = Vec::new();
    for Image { id, crn, name, created_at, file, .. } in
        listed.into_iter().filter(|image| looks_like_a_run(&image.name))
    {
        let tags = tagging.tags(&crn).await.map_err(cloud(format!("list the tags of image {name}")))?;
        if own_run(&tags, &name) || (names::job_of(&tags).is_none() && runs.contains(&name)) {
            let finding = rules.finding(Kind::Image, Which::Image(id), &name, &name, Some(created_at));
            found.push(Finding { size_gb: file.size, ..finding });
        }
    }
    Ok(found)
}

async fn volumes(home: &RegionClient, rules: &Rules) -> Result<Vec<Finding>, GcError> {
    let filter = VolumeFilter { tag: Some(names::ours()?), ..VolumeFilter::default() };
    let listed = home.volumes(&filter).await.map_err(cloud("list volumes"))?;
    let ours = listed.into_iter().filter(|volume| own_run(&volume.user_tags, &volume.name));
    let found = ours.map(|Volume { id, name, created_at, capacity, .. }| {
        let finding = rules.finding(Kind::Volume, Which::Volume(id), &name, &name, Some(created_at));
        Finding { size_gb: Some(capacity), ..finding }
    });
    Ok(found.collect())
}

/// Returns all snapshots that jobs have made, whatever became of the jobs.
///
/// # Errors
/// If the snapshots can't be listed.
pub async fn own_snapshots(home: &RegionClient) -> Result<Vec<Snapshot>, GcError> {
    let filter =
        SnapshotFilter { tag: Some(names::ours()?), source_volume: None, order: SnapshotOrder::NewestFirst };
    let listed = home.snapshots(&filter).await.map_err(cloud("list snapshots"))?;
    let ours = |snapshot: &Snapshot| {
        own_run(&snapshot.user_tags, &snapshot.name) && snapshot.backup_policy_plan.is_none()
    };
    Ok(listed.into_iter().filter(ours).collect())
}

async fn clones(home: &RegionClient, rules: &Rules) -> Result<Vec<Finding>, GcError> {
    let mut found = Vec::new();
    let keep = names::keep_tag()?;
    for snapshot in own_snapshots(home).await?.into_iter().filter(|snapshot| !has(&snapshot.user_tags, &keep))
    {
        let listed = match home.clones(&snapshot.id).await {
            // The snapshot disappeared after it was listed, and its clones with it.
            Err(err) if err.is_not_found() => continue,
            listed => listed.map_err(cloud(format!("list the clones of {}", snapshot.name)))?,
        };
        for clone in listed {
            let which = Which::Clone(snapshot.id.clone(), clone.zone.name.clone());
            found.push(rules.finding(
                Kind::Clone,
                which,
                &snapshot.name,
                &snapshot.name,
                Some(clone.created_at),
            ));
        }
    }
    Ok(found)
}

async fn snapshots(home: &RegionClient, rules: &Rules) -> Result<Vec<Finding>, GcError> {
    let (done, keep) = (names::done_tag()?, names::keep_tag()?);
    let dead = |snapshot: &Snapshot| !has(&snapshot.user_tags, &done) && !has(&snapshot.user_tags, &keep);
    let found = own_snapshots(home).await?.into_iter().filter(dead).map(
        |Snapshot { id, name, created_at, size, .. }| {
            let finding = rules.finding(Kind::Snapshot, Which::Snapshot(id), &name, &name, Some(created_at));
            Finding { size_gb: Some(size), ..finding }
        },
    );
    Ok(found.collect())
}

/// Removes a thing that is not kept, and waits until it is gone. Returns false if the rules keep it by now.
async fn prune(
    resource: &CloudObject,
    finding: &Finding,
    places: &Places,
    rules: &Rules,
) -> Result<bool, GcError> {
    let describe = |operation: &str| format!("{operation} {finding}");
    let current = overdue(places, rules).await?;
    if !current.iter().any(|now| now.which == finding.which) {
        return Ok(false);
    }
    match (resource, &places.away, &places.bucket) {
        (CloudObject::Snapshot(id, _), ..) => {
            places.home.delete_snapshot(id).await.map_err(cloud(describe("delete")))?;
            places
                .home
                .snapshot_gone(id, rules.waits.of(Patience::DELETION))
                .await
                .map_err(cloud(describe("delete")))?;
        }
        (CloudObject::Image(id, _), Some((away, _)), _) => {
            away.delete_image(id).await.map_err(cloud(describe("delete")))?;
            away.image_gone(id, rules.waits.of(Patience::DELETION))
                .await
                .map_err(cloud(describe("delete")))?;
        }
        (CloudObject::Object(key), _, Some((store, ..))) => {
            // The manifest is last: if only one of them is left, it is the small one, and the next search
            // finds it.
            store.delete(key).await.map_err(bucket(describe("delete")))?;
            store.delete(&key.manifest()).await.map_err(bucket(describe("delete")))?;
        }
        (CloudObject::Image(..) | CloudObject::Object(_), ..) => return Ok(false),
    }
    Ok(true)
}

/// Removes a leftover, and waits until it is gone. Returns false if it is no leftover any more; then it
/// stays.
///
/// # Errors
/// If the cloud or the store refuses, or does not finish in time.
pub async fn remove(finding: &Finding, places: &Places, rules: &Rules) -> Result<bool, GcError> {
    let home = &places.home;
    let describe = |operation: &str| format!("{operation} {finding}");
    match (&finding.which, &places.away, &places.bucket) {
        (Which::Upload(upload), _, Some((store, ..))) => {
            store.abort(upload).await.map_err(bucket(describe("abort")))?;
        }
        (Which::Overdue(resource), ..) => return prune(resource, finding, places, rules).await,
        (Which::Object(key), _, Some((store, prefix, _))) => {
            let current = objects(&**store, prefix, rules).await?;
            if !current.iter().any(|now| now.which == finding.which) {
                return Ok(false);
            }
            store.delete(key).await.map_err(bucket(describe("delete")))?;
        }
        (Which::Image(id), Some((away, _)), _) => {
            // It may have become the latest since.
            let now = away.image(id).await.map_err(cloud(describe("look at")))?;
            if now.is_none_or(|now| now.name != finding.name) {
                return Ok(false);
            }
            away.delete_image(id).await.map_err(cloud(describe("delete")))?;
            away.image_gone(id, rules.waits.of(Patience::DELETION))
                .await
                .map_err(cloud(describe("delete")))?;
        }
        (Which::Volume(id), ..) => {
            let Some(now) = home.volume(id).await.map_err(cloud(describe("look at")))? else {
                return Ok(false);
            };
            for attachment in &now.volume_attachments {
                let Some(server) = attachment.instance.as_ref().map(|instance| &instance.id) else {
                    continue;
                };
                let patience = rules.waits.of(Patience::ATTACHMENT);
                let lock = places.server_locks.of(server, patience, &*rules.clock, home.cancel()).await;
                let _lock = lock.map_err(|fault| GcError::Retention(Box::new(fault)))?;
                home.detach(server, &attachment.id).await.map_err(cloud(describe("detach")))?;
                home.detached(server, &attachment.id, patience).await.map_err(cloud(describe("detach")))?;
            }
            home.delete_volume(id).await.map_err(cloud(describe("delete")))?;
            home.volume_gone(id, rules.waits.of(Patience::DELETION))
                .await
                .map_err(cloud(describe("delete")))?;
        }
        (Which::Clone(id, zone), ..) => {
            home.delete_clone(id, zone).await.map_err(cloud(describe("delete")))?;
        }
        (Which::Snapshot(id), ..) => {
            let Some(now) = home.snapshot(id).await.map_err(cloud(describe("look at")))? else {
                return Ok(false);
            };
            // A process has resumed its job.
            if has(&now.user_tags, &names::done_tag()?) {
                return Ok(false);
            }
            home.delete_snapshot(id).await.map_err(cloud(describe("delete")))?;
            home.snapshot_gone(id, rules.waits.of(Patience::DELETION))
                .await
                .map_err(cloud(describe("delete")))?;
        }
        (Which::Upload(_) | Which::Object(_) | Which::Image(_), ..) => return Ok(false),
    }
    Ok(true)
}
