//! The hold on a job: a tag with a token on its snapshot, which each that takes the job up puts in place of the one before. Whoever finds another
//! token there than its own has lost the job, and touches nothing any more. And the look at who else is at the same work.

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
use super::marks::{Destination, Holder};
use super::names::{self, Form, has};
use super::saga::Run;

/// How long one look at the tag counts for: parts are sent several a second.
const FRESH: Duration = Duration::from_secs(5);
/// A holder that took its job up longer ago than this counts for dead: as long as `gc` waits before it takes something for a leftover.
pub const DEAD_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Whoever holds the job, and where that can be looked up.
struct Now {
    me: Holder,
    snapshot: Option<SnapshotId>,
    /// Where the job stands among others at the same work.
    rank: Option<Rank>,
    looked: Option<Instant>,
}

/// What puts one job before another: when it was begun or, if that came later, taken up again; then the token. Both sides read it from the same
/// snapshot, so that clocks that differ put nobody on both sides.
type Rank = (SystemTime, String);

fn rank(snapshot: &Snapshot, holder: &Holder) -> Rank {
    (holder.since.max(snapshot.created_at), holder.token.clone())
}

/// A job's hold, and the fence that it is.
pub struct Hold {
    now: Mutex<Now>,
    /// Jobs of which this machine knows that nobody works on them.
    idle: Mutex<BTreeSet<JobId>>,
    /// Asks for the snapshot; none where nobody is to be asked.
    home: Option<RegionClient>,
    outer: Arc<dyn Fence>,
    clock: Arc<dyn Clock>,
}

impl Hold {
    /// The hold of somebody on `host`, who asks by `home`, behind another fence.
    #[must_use]
    pub fn new(host: &str, home: Option<RegionClient>, outer: Arc<dyn Fence>, clock: Arc<dyn Clock>) -> Self {
        let me = Holder::new(clock.now(), host);
        Self {
            now: Mutex::new(Now { me, snapshot: None, rank: None, looked: None }),
            idle: Mutex::default(),
            home,
            outer,
            clock,
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that nobody works on these jobs, whatever their tags say.
    pub fn note_idle(&self, jobs: BTreeSet<JobId>) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = jobs;
    }

    fn is_idle(&self, job: JobId) -> bool {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    /// Becomes the same as another one.
    pub(super) fn follow(&self, other: &Self) {
        let (me, snapshot, rank) = {
            let now = other.now();
            (now.me.clone(), now.snapshot.clone(), now.rank.clone())
        };
        *self.now() = Now { me, snapshot, rank, looked: None };
    }

    /// The tag that a snapshot is made with.
    pub(super) fn tag(&self) -> Result<Tag, NameError> {
        self.now().me.tag()
    }

    /// Takes the job with that snapshot, from whomever has it; then looks whether it is ours.
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
        now.looked = Some(self.clock.instant());
        Ok(())
    }

    /// Is asked no more: the job is done, and its snapshot says so.
    pub(super) fn let_go(&self) {
        self.now().snapshot = None;
    }

    /// Tells everybody that nobody works on the job any more.
    pub(super) async fn release(&self, home: &RegionClient) {
        let (token, snapshot) = {
            let mut now = self.now();
            (now.me.token.clone(), now.snapshot.take())
        };
        let Some(snapshot) = snapshot else { return };
        let ours = |tag: &str| Holder::of(&[tag.to_owned()]).is_some_and(|holder| holder.token == token);
        match home.retag_snapshot(&snapshot, ours, &[]).await {
            Err(err) if !err.is_not_found() => {
                tracing::warn!("others may take the job for one that is under way: {}", chain(&err))
            }
            _ => {}
        }
    }

    /// Releases the hold of a job that the queue has taken away, or has forgotten: a job that is enqueued anew would otherwise wait for this one
    /// until it counts for dead. Only the tag with our own token is removed, so whoever has taken the job over loses nothing, and no fence
    /// is asked.
    pub(super) async fn give_up(&self) {
        if let Some(home) = &self.home {
            self.release(home).await;
        }
    }

    /// Looks whether the job is still ours. What can't be looked up is not taken for lost: whoever takes a job over changes the tag first,
    /// and can do that no more than we can look.
    pub(super) async fn look(&self) -> Result<(), Fenced> {
        let (me, snapshot) = {
            let now = self.now();
            (now.me.clone(), now.snapshot.clone())
        };
        let (Some(home), Some(id)) = (&self.home, snapshot) else { return Ok(()) };
        match home.snapshot(&id).await {
            Ok(found) => match found.as_ref().and_then(|found| Holder::of(&found.user_tags)) {
                Some(holder) if holder.token == me.token => {
                    self.now().looked = Some(self.clock.instant());
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
impl Fence for Hold {
    async fn pass_surely(&self) -> Result<(), Fenced> {
        self.outer.pass_surely().await?;
        self.look().await
    }

    async fn pass(&self) -> Result<(), Fenced> {
        self.outer.pass().await?;
        let looked = self.now().looked;
        match looked {
            Some(looked) if self.clock.instant().duration_since(looked) < FRESH => Ok(()),
            _ => self.look().await,
        }
    }
}

/// Looks whether somebody else replicates the same server into the same region, and was first. Two that began at once each see the
/// other at the next look, and both take the same one for the earlier.
pub(super) async fn rivals(run: &Run<'_>) -> Result<(), Fault> {
    let (hold, now) = (&run.site.hold, run.site.clock.now());
    let destination = Destination::of_job(run.job, &run.names);
    let filter = SnapshotFilter {
        tag: Some(names::server_tag(&run.job.server)?),
        source_volume: None,
        order: SnapshotOrder::NewestFirst,
    };
    let (ours, done) = (names::ours()?, names::done_tag()?);
    let own = hold.now().rank.clone();
    let mut first: Option<(Rank, JobId, Holder)> = None;
    for snapshot in run.site.home.snapshots(&filter).await? {
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
