//! Leftovers of retention: things that an earlier job should have pruned and did not, because it died after
//! its mark or could not delete them. The tags of that job's snapshot hold the rules by which it was to
//! prune, and only those rules are used here.
//!
//! For each server the newest job decides, and only once it is done. For snapshots that is the newest job of
//! all. For images and objects it is the newest job for the region that is looked at, and only if it has the
//! same bucket and prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use snapferry_base::job::JobId;
use snapferry_ibmcloud::vpc::ImageFilter;
use snapferry_ibmcloud::vpc::model::Snapshot;

use super::error::Fault;
use super::gc::{Kind, Places};
use super::holdings::{CloudObject, CloudStores, Holdings, Newest};
use super::names::{self, JobNames, has};
use super::retention::{self, Retention};
use super::snapshot_tags::{Destination, rules_of};

/// Thing that the rules of its server's newest job don't keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    pub resource: CloudObject,
    /// Time at which the thing was made; of a snapshot, the moment whose data it holds.
    pub made: SystemTime,
    /// Name of the run whose rules don't keep the thing.
    pub by: String,
}

/// Newest job of a server, which is done.
struct LatestRun {
    id: JobId,
    run: String,
    rules: Retention,
    to: Option<Destination>,
}

impl LatestRun {
    /// Returns the newest job of these snapshots, if it is done and its rules are known.
    fn of<'s>(snapshots: impl Iterator<Item = &'s Snapshot>) -> Result<Option<Self>, Fault> {
        let done = names::done_tag()?;
        let newest = snapshots
            .filter_map(|snapshot| Some((names::job_of(&snapshot.user_tags)?, snapshot)))
            .max_by_key(|(id, _)| *id);
        let Some((id, snapshot)) = newest.filter(|(_, snapshot)| has(&snapshot.user_tags, &done)) else {
            return Ok(None);
        };
        let to = Destination::of(&snapshot.user_tags);
        Ok(rules_of(&snapshot.user_tags).map(|rules| Self { id, run: snapshot.name.clone(), rules, to }))
    }
}

/// Names of images and objects, listed once for all servers.
struct Names {
    images: Vec<String>,
    objects: Vec<String>,
}

/// True if there are more things than the newest ones that are kept. Only then are their tags requested.
fn is_over(keep: &retention::Keep, count: usize) -> bool {
    match keep.newest {
        retention::Newest::All => false,
        retention::Newest::Count(kept) => u32::try_from(count).unwrap_or(u32::MAX) > kept.max(1),
    }
}

/// Looks for overdue things of one server, or of all servers that have snapshots made by snapferry. Leaves
/// out servers whose newest run is in `live`, a set of run names: the process that works on such a run prunes
/// for it.
///
/// # Errors
/// If something can't be listed.
pub async fn look(
    snapshots: &[Snapshot],
    places: &Places,
    server: Option<&str>,
    live: &BTreeSet<String>,
    now: SystemTime,
) -> Result<Vec<Overdue>, Fault> {
    let mut servers: BTreeMap<String, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in snapshots {
        let Some(of) =
            names::server_of(&snapshot.user_tags).filter(|of| server.is_none_or(|only| only == of))
        else {
            continue;
        };
        servers.entry(of).or_default().push(snapshot);
    }
    let mut overdue = Vec::new();
    let mut listed = None;
    for (server, snapshots) in &servers {
        if let Some(latest) =
            LatestRun::of(snapshots.iter().copied())?.filter(|latest| !live.contains(&latest.run))
            && is_over(&latest.rules.snapshots, snapshots.len())
        {
            let stores = CloudStores { home: &places.home, away: None, store: None };
            overdue.extend(beyond(server, "", &latest, &stores, now).await?);
        }
        let (Some((away, tagging)), Some((store, prefix, bucket))) = (&places.away, &places.bucket) else {
            continue;
        };
        // A job with another name for its newest image has another destination than `destination`, so nothing
        // of it is judged.
        let Some(names) = snapshots.iter().find_map(|snapshot| names_of(snapshot, server, prefix)) else {
            continue;
        };
        let destination = Destination::new(away.region(), bucket, prefix, &names);
        let to_destination = snapshots.iter().copied().filter(|snapshot| {
            Destination::of(&snapshot.user_tags).is_none_or(|to| to.region == destination.region)
        });
        let Some(latest) = LatestRun::of(to_destination)?
            .filter(|latest| !live.contains(&latest.run) && latest.to.as_ref() == Some(&destination))
        else {
            continue;
        };
        if listed.is_none() {
            let images =
                away.images(&ImageFilter::default()).await?.into_iter().map(|image| image.name).collect();
            let objects =
                store.list(prefix).await?.into_iter().map(|object| object.key.to_string()).collect();
            listed = Some(Names { images, objects });
        }
        let Some(Names { images, objects }) = &listed else { continue };
        let images = images
            .iter()
            .filter(|name| **name == names.latest.as_str() || names::form_of(server, name).is_some())
            .count();
        let folder = names::folder(prefix, server);
        let objects =
            objects.iter().filter(|key| key.starts_with(&folder) && !key.ends_with(".manifest")).count();
        if is_over(&latest.rules.images, images) || is_over(&latest.rules.objects, objects) {
            let stores =
                CloudStores { home: &places.home, away: Some((away, tagging)), store: Some(&**store) };
            let found = beyond(server, prefix, &latest, &stores, now).await?;
            overdue.extend(
                found.into_iter().filter(|found| !matches!(found.resource, CloudObject::Snapshot(..))),
            );
        }
    }
    Ok(overdue)
}

/// Returns the names of the job that a snapshot belongs to.
fn names_of(snapshot: &Snapshot, server: &str, prefix: &str) -> Option<JobNames> {
    JobNames::of(names::job_of(&snapshot.user_tags)?, server, None, prefix).ok()
}

async fn beyond(
    server: &str,
    prefix: &str,
    latest: &LatestRun,
    stores: &CloudStores<'_>,
    now: SystemTime,
) -> Result<Vec<Overdue>, Fault> {
    let names = JobNames::of(latest.id, server, None, prefix)?;
    // If the destination is not known, the empty region matches only snapshots without a destination tag.
    let to =
        latest.to.clone().unwrap_or_else(|| Destination { region: String::new(), digest: String::new() });
    let newest = Newest { job: latest.id, server, prefix, names: &names, to: &to, image: None };
    let holdings = Holdings::look(&newest, stores).await?;
    if holdings.newer.is_some() {
        return Ok(Vec::new());
    }
    let expired = holdings.candidates_beyond(&latest.rules, now);
    Ok(expired
        .into_iter()
        .map(|(candidate, resource)| Overdue { resource, made: candidate.made, by: latest.run.clone() })
        .collect())
}

impl Overdue {
    /// Returns the kind of the thing.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.resource {
            CloudObject::Snapshot(..) => Kind::Snapshot,
            CloudObject::Image(..) => Kind::Image,
            CloudObject::Object(_) => Kind::Object,
        }
    }
}
