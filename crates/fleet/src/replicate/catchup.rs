//! What retention should have removed already: a job that died after its mark, or could not delete something, has pruned too little. The rules
//! by which it was to prune are in the tags of its snapshot, so that nobody prunes by rules of his own.
//!
//! Of each server the newest job decides, and only once it is done. Snapshots go by the newest of all; images and objects by the newest of those
//! that went into the very region, bucket and prefix that are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use snapferry_base::job::JobId;
use snapferry_ibmcloud::vpc::ImageFilter;
use snapferry_ibmcloud::vpc::model::Snapshot;

use super::error::Fault;
use super::gc::{Kind, Places};
use super::holdings::{Holdings, Newest, Thing, Yard};
use super::marks::{Destination, rules_of};
use super::names::{self, JobNames, has};
use super::retention::{self, Retention};

/// Something that is not kept by the rules of its server's newest job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// What.
    pub thing: Thing,
    /// When it was made.
    pub made: SystemTime,
    /// The run whose rules say so.
    pub by: String,
}

/// A server's newest job that is done.
struct Last {
    id: JobId,
    run: String,
    rules: Retention,
    to: Option<Destination>,
}

impl Last {
    /// The newest of these snapshots' jobs, where it is done and its rules are known.
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

/// The names of what may be there, asked for once for all servers.
struct Names {
    images: Vec<String>,
    objects: Vec<String>,
}

/// Whether there is more of something than the newest that are kept: only then its tags are asked for.
fn is_over(keep: &retention::Keep, count: usize) -> bool {
    match keep.newest {
        retention::Newest::All => false,
        retention::Newest::Count(kept) => u32::try_from(count).unwrap_or(u32::MAX) > kept.max(1),
    }
}

/// Looks at all servers of which there are snapshots of ours, or at one. What is `live`, by the names of runs, is left to whoever is at it.
///
/// # Errors
/// Where something can't be listed.
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
        if let Some(last) = Last::of(snapshots.iter().copied())?.filter(|last| !live.contains(&last.run))
            && is_over(&last.rules.snapshots, snapshots.len())
        {
            let yard = Yard { home: &places.home, away: None, store: None };
            overdue.extend(beyond(server, "", &last, &yard, now).await?);
        }
        let (Some((away, tagging)), Some((store, prefix, bucket))) = (&places.away, &places.bucket) else {
            continue;
        };
        // Whoever named the newest image otherwise is not met by the usual name: nothing of theirs is judged.
        let Some(names) = snapshots.iter().find_map(|snapshot| names_of(snapshot, server, prefix)) else {
            continue;
        };
        let here = Destination::new(away.region(), bucket, prefix, &names);
        let to_here = snapshots.iter().copied().filter(|snapshot| {
            Destination::of(&snapshot.user_tags).is_none_or(|to| to.region == here.region)
        });
        let Some(last) =
            Last::of(to_here)?.filter(|last| !live.contains(&last.run) && last.to.as_ref() == Some(&here))
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
        if is_over(&last.rules.images, images) || is_over(&last.rules.objects, objects) {
            let yard = Yard { home: &places.home, away: Some((away, tagging)), store: Some(&**store) };
            let found = beyond(server, prefix, &last, &yard, now).await?;
            overdue.extend(found.into_iter().filter(|found| !matches!(found.thing, Thing::Snapshot(..))));
        }
    }
    Ok(overdue)
}

/// The names of the job that a snapshot is of.
fn names_of(snapshot: &Snapshot, server: &str, prefix: &str) -> Option<JobNames> {
    JobNames::of(names::job_of(&snapshot.user_tags)?, server, None, prefix).ok()
}

async fn beyond(
    server: &str,
    prefix: &str,
    last: &Last,
    yard: &Yard<'_>,
    now: SystemTime,
) -> Result<Vec<Overdue>, Fault> {
    let names = JobNames::of(last.id, server, None, prefix)?;
    // Where that is not known, everything counts that may be in the way.
    let to = last.to.clone().unwrap_or_else(|| Destination { region: String::new(), place: String::new() });
    let newest = Newest { job: last.id, server, prefix, names: &names, to: &to, image: None };
    let holdings = Holdings::look(&newest, yard).await?;
    if holdings.newer.is_some() {
        return Ok(Vec::new());
    }
    let going = holdings.candidates_beyond(&last.rules, now);
    Ok(going
        .into_iter()
        .map(|(candidate, thing)| Overdue { thing, made: candidate.made, by: last.run.clone() })
        .collect())
}

impl Overdue {
    /// What kind of thing it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.thing {
            Thing::Snapshot(..) => Kind::Snapshot,
            Thing::Image(..) => Kind::Image,
            Thing::Object(_) => Kind::Object,
        }
    }
}
