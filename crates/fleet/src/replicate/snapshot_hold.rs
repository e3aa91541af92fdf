//! Hold on a job, and the check for rival jobs.
//!
//! A hold is a tag with a token on the job's snapshot. Each process that takes the job up puts its own token
//! in place of the one before. A process that finds another token there has lost the job, and changes nothing
//! any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use snapferry_base::clock::Clock;
use snapferry_base::fence::{Fence, Fenced};
use snapferry_base::job::JobId;
use snapferry_base::retry::chain;
use snapferry_ibmcloud::vpc::model::Snapshot;
use snapferry_ibmcloud::vpc::{NameError, RegionClient, SnapshotFilter, SnapshotId, SnapshotOrder, Tag};

use super::error::Fault;
use super::names::{self, Form, has};
use super::saga::Run;
use super::snapshot_tags::{Destination, Holder};

/// Time for which one look at the tag counts. Several parts are sent each second, and each one checks the
/// hold.
const FRESH: Duration = Duration::from_secs(5);
/// Time after which a holder counts as dead, from the moment that it took its job up: as long as `gc` waits
/// before it treats something as a leftover.
pub const DEAD_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Holder of the job, and the snapshot on which its tag is checked.
struct Now {
    me: Holder,
    snapshot: Option<SnapshotId>,
    /// Rank of the job among others for the same server and region.
    rank: Option<Rank>,
    checked_at: Option<Instant>,
}

/// Rank of a job among rivals: the time at which it began or, if that was later, was taken up again; then the
/// token. Both rivals read the two from the same snapshot, so they agree on the order even if their clocks
/// differ.
type Rank = (SystemTime, String);

fn rank(snapshot: &Snapshot, holder: &Holder) -> Rank {
    (holder.since.max(snapshot.created_at), holder.token.clone())
}

/// A job's hold, which is also the fence for its changes.
pub struct SnapshotHold {
    now: Mutex<Now>,
    /// Jobs that no process of this machine works on, whatever their tags say.
    idle: Mutex<BTreeSet<JobId>>,
    /// Client that reads the snapshot; none if the hold is not to be checked.
    home: Option<RegionClient>,
    outer: Arc<dyn Fence>,
    clock: Arc<dyn Clock>,
}

impl SnapshotHold {
    /// Makes the hold of a new holder on `host`. It reads the tag through `home`, and asks `outer` first when
    /// it is used as a fence.
    #[must_use]
    pub fn new(host: &str, home: Option<RegionClient>, outer: Arc<dyn Fence>, clock: Arc<dyn Clock>) -> Self {
        let me = Holder::new(clock.now(), host);
        Self {
            now: Mutex::new(Now { me, snapshot: None, rank: None, checked_at: None }),
            idle: Mutex::default(),
            home,
            outer,
            clock,
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that no process works on these jobs, whatever their tags say.
    pub fn note_idle(&self, jobs: BTreeSet<JobId>) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = jobs;
    }

    fn is_idle(&self, job: JobId) -> bool {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    /// Takes over the token, snapshot and rank of another hold, for work that continues under the same token.
    pub(super) fn follow(&self, other: &Self) {
        let (me, snapshot, rank) = {
            let now = other.now();
            (now.me.clone(), now.snapshot.clone(), now.rank.clone())
        };
        *self.now() = Now { me, snapshot, rank, checked_at: None };
    }

    /// Returns the tag that a new snapshot of the job gets.
    pub(super) fn tag(&self) -> Result<Tag, NameError> {
        self.now().me.tag()
    }

    /// Puts this hold's tag on the job's snapshot, in place of any other holder's, and reads it back to check
    /// that this process has the job.
    pub(super) async fn take(
        &self,
        job: JobId,
        snapshot: &Snapshot,
        home: &RegionClient,
    ) -> Result<(), Fault> {
        let me = self.now().me.clone();
        let before = Holder::of(&snapshot.user_tags);
        if before.as_ref().is_none_or(|before| before.token != me.token) {
            if let Some(before) = &before {
                tracing::info!(
                    "job {job} is taken over from {}, who had taken it up at {}",
                    before.host,
                    snapferry_base::clock::rfc3339(before.since)
                );
            }
            home.retag_snapshot(&snapshot.id, Holder::is_tag, &[me.tag()?]).await?;
            let now = home.snapshot(&snapshot.id).await?;
            if let Some(other) =
                now.and_then(|now| Holder::of(&now.user_tags)).filter(|other| other.token != me.token)
            {
                return Err(Fault::TakenOver { job, host: other.host });
            }
        }
        let mut now = self.now();
        now.snapshot = Some(snapshot.id.clone());
        now.rank = Some(rank(snapshot, &me));
        now.checked_at = Some(self.clock.instant());
        Ok(())
    }

    /// Ends the checks: the job is done, and its snapshot has the mark.
    pub(super) fn end_checks(&self) {
        self.now().snapshot = None;
    }

    /// Removes this hold's tag, so that other processes see that no process works on the job any more.
    pub(super) async fn release(&self, home: &RegionClient) {
        let (token, snapshot) = {
            let mut now = self.now();
            (now.me.token.clone(), now.snapshot.take())
        };
        let Some(snapshot) = snapshot else { return };
        let ours = |tag: &str| Holder::of(&[tag.to_owned()]).is_some_and(|holder| holder.token == token);
        match home.retag_snapshot(&snapshot, ours, &[]).await {
            Err(err) if !err.is_not_found() => {
                tracing::warn!("others may take the job for one that is under way: {}", chain(&err));
            }
            _ => {}
        }
    }

    /// Releases the hold of a job that the queue has taken away or forgotten. Otherwise a job that is
    /// enqueued again would wait until this holder counts as dead. Only the tag with this hold's own token is
    /// removed, so a process that has taken the job over loses nothing, and no fence is asked.
    pub(super) async fn give_up(&self) {
        if let Some(home) = &self.home {
            self.release(home).await;
        }
    }

    /// Checks that this process still has the job. If the tag can't be read, the job does not count as lost:
    /// a process that takes a job over changes the tag first, and it needs the same API to do so.
    pub(super) async fn check(&self) -> Result<(), Fenced> {
        let (me, snapshot) = {
            let now = self.now();
            (now.me.clone(), now.snapshot.clone())
        };
        let (Some(home), Some(id)) = (&self.home, snapshot) else { return Ok(()) };
        match home.snapshot(&id).await {
            Ok(found) => match found.as_ref().and_then(|found| Holder::of(&found.user_tags)) {
                Some(holder) if holder.token == me.token => {
                    self.now().checked_at = Some(self.clock.instant());
                    Ok(())
                }
                Some(other) => Err(Fenced(format!("{} has taken the job over", other.host))),
                None if found.is_some() => {
                    Err(Fenced("somebody else has taken the job over, and is through with it".to_owned()))
                }
                None => Err(Fenced(format!("the job's snapshot {id} is gone"))),
            },
            Err(err) => {
                tracing::debug!("whether the job is still ours can't be looked up: {}", chain(&err));
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Fence for SnapshotHold {
    async fn pass_uncached(&self) -> Result<(), Fenced> {
        self.outer.pass_uncached().await?;
        self.check().await
    }

    async fn pass(&self) -> Result<(), Fenced> {
        self.outer.pass().await?;
        let checked_at = self.now().checked_at;
        match checked_at {
            Some(checked_at) if self.clock.instant().duration_since(checked_at) < FRESH => Ok(()),
            _ => self.check().await,
        }
    }
}

/// Checks that no other job replicates the same server into the same region and was first. Two jobs that
/// began at once see each other at their next check, and both agree on which one is first.
///
/// # Errors
/// [`Fault::UnderWay`] if another job was first. Also if the snapshots can't be listed.
pub(super) async fn check_rivals(run: &Run<'_>) -> Result<(), Fault> {
    let (hold, now) = (&run.context.hold, run.context.clock.now());
    let destination = Destination::of_job(run.job, &run.names);
    let filter = SnapshotFilter {
        tag: Some(names::server_tag(&run.job.server)?),
        source_volume: None,
        order: SnapshotOrder::NewestFirst,
    };
    let (ours, done) = (names::ours()?, names::done_tag()?);
    let own = hold.now().rank.clone();
    let mut first: Option<(Rank, JobId, Holder)> = None;
    for snapshot in run.context.home.snapshots(&filter).await? {
        let tags = &snapshot.user_tags;
        let open = has(tags, &ours)
            && !has(tags, &done)
            && names::form_of(&run.job.server, &snapshot.name) == Some(Form::Run);
        let (Some(job), Some(holder)) = (names::job_of(tags), Holder::of(tags)) else { continue };
        let other = open
            && job != run.job.id
            && Destination::of(tags).is_some_and(|to| to.region == destination.region);
        let dead = now.duration_since(holder.since).is_ok_and(|age| age >= DEAD_AFTER) || hold.is_idle(job);
        let rank = rank(&snapshot, &holder);
        let earlier = own.as_ref().is_none_or(|own| rank < *own)
            && first.as_ref().is_none_or(|(first, ..)| rank < *first);
        if other && !dead && earlier {
            first = Some((rank, job, holder));
        }
    }
    match first {
        Some((_, job, holder)) => Err(Fault::UnderWay {
            job,
            server: run.job.server.clone(),
            region: run.job.to.clone(),
            host: holder.host,
            since: holder.since,
        }),
        None => Ok(()),
    }
}
