//! Behaviour of every queue, on a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use snapferry_fleet::queue::{
    CatchUp, Enqueued, GcSurvey, JobState, LastSuccess, Lease, LeaseStatus, MemoryQueue, NewJob, OnFailure,
    Priority, Queue, QueueError, Reaped, Schedule, Timing, Token,
};

use super::is_lost;
use crate::queue::model::Turned;
use crate::support::{Redis, SAFE, job};

pub const TIMING: Timing = Timing {
    lease: Duration::from_secs(120),
    beat: Duration::from_secs(20),
    stop: Duration::from_secs(90),
    retry: Duration::from_secs(1),
    takeovers: 3,
};
const SECOND: u64 = 1000;

/// A queue and its clock.
struct Bench<'a> {
    queue: &'a dyn Queue,
    clock: Arc<AtomicU64>,
}

impl Bench<'_> {
    fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    async fn add(&self, server: &str) -> NewJob {
        self.pass(1);
        let job = job(server);
        assert_eq!(self.queue.enqueue(&job).await.unwrap(), Enqueued::Added);
        job
    }

    async fn claim(&self, worker: &str) -> Option<Lease> {
        let claimed = self.queue.claim(worker, &Token::new()).await.unwrap()?;
        Some(Lease { id: claimed.job.id, token: claimed.token })
    }

    async fn state(&self, job: &NewJob) -> JobState {
        self.queue.job(job.id).await.unwrap().unwrap().state
    }

    async fn run(&self) {
        self.a_job_is_added_once_and_goes_through().await;
        self.the_urgent_go_first_and_then_those_who_came_first().await;
        self.a_lease_that_ran_out_is_lost_and_a_third_time_is_the_end().await;
        self.steps_that_are_taken_again_are_no_progress().await;
        self.what_waits_waits_and_what_is_given_back_keeps_its_place().await;
        self.failures_are_tried_again_and_the_dead_can_be_revived().await;
        self.what_is_cancelled_ends_at_once_or_with_the_next_beat().await;
        self.what_is_over_is_forgotten_in_time().await;
        self.what_was_good_last_is_remembered().await;
        self.a_tick_is_seen_to_once().await;
        self.the_last_survey_of_each_place_is_kept().await;
    }

    async fn a_job_is_added_once_and_goes_through(&self) {
        let (queue, one) = (self.queue, self.add("web01").await);
        assert_eq!(queue.enqueue(&one).await.unwrap(), Enqueued::Added, "a resend");
        assert_eq!(queue.enqueue(&job("web01")).await.unwrap(), Enqueued::OpenAlready(one.id));
        let elsewhere = NewJob { region: "eu-de".to_owned(), ..job("web01") };
        assert_eq!(queue.enqueue(&elsewhere).await.unwrap(), Enqueued::Added);
        queue.cancel(elsewhere.id).await.unwrap();

        let token = Token::new();
        let claimed = queue.claim("w1", &token).await.unwrap().unwrap();
        assert_eq!(
            (claimed.job.id, claimed.job.state, claimed.job.deliveries),
            (one.id, JobState::Running, 1)
        );
        assert_eq!(queue.claim("w1", &token).await.unwrap().unwrap(), claimed, "a resend");
        assert_eq!(queue.claim("w2", &Token::new()).await.unwrap(), None);
        let lease = Lease { id: one.id, token };
        assert_eq!(queue.beat(&lease, r#"{"percent":10}"#).await.unwrap(), LeaseStatus::On);
        assert_eq!(queue.step(&lease, "snapshot", "journal 1", Some(1)).await.unwrap(), LeaseStatus::On);
        let seen = queue.job(one.id).await.unwrap().unwrap();
        assert_eq!(
            (seen.step.as_deref(), seen.journal.as_deref(), seen.worker.as_deref()),
            (Some("snapshot"), Some("journal 1"), Some("w1"))
        );
        assert_eq!(seen.progress.as_deref(), Some(r#"{"percent":10}"#));
        queue.finish(&lease, "result").await.unwrap();
        queue.finish(&lease, "result").await.expect("a resend");
        assert!(is_lost(&queue.beat(&lease, "").await));
        let done = queue.job(one.id).await.unwrap().unwrap();
        assert_eq!((done.state, done.result.as_deref()), (JobState::Done, Some("result")));
        let kinds: Vec<String> = queue
            .events(100)
            .await
            .unwrap()
            .into_iter()
            .filter(|event| event.id == one.id)
            .map(|event| event.what)
            .collect();
        assert_eq!(kinds, ["added", "claimed", "step", "done"]);
        // After a job is done, the server may be replicated again.
        let again = self.add("web01").await;
        queue.cancel(again.id).await.unwrap();
    }

    async fn the_urgent_go_first_and_then_those_who_came_first(&self) {
        let (queue, mut added) = (self.queue, Vec::new());
        for (server, level) in [("a", 5), ("b", 0), ("c", 9), ("d", 5), ("e", 9)] {
            self.pass(1);
            let job = NewJob { priority: Priority::new(level).unwrap(), ..job(server) };
            queue.enqueue(&job).await.unwrap();
            added.push(job);
        }
        assert_eq!(
            queue.waiting().await.unwrap(),
            Some(Duration::from_secs(4)),
            "the first one, whoever is next"
        );
        let listed = queue.jobs(JobState::Ready, 3).await.unwrap();
        assert_eq!(listed.iter().map(|job| job.server.as_str()).collect::<Vec<_>>(), ["c", "e", "a"]);
        for server in ["c", "e", "a", "d", "b"] {
            let lease = self.claim("w1").await.unwrap();
            let job = added.iter().find(|job| job.id == lease.id).unwrap();
            assert_eq!(job.server, server);
            queue.finish(&lease, "").await.unwrap();
        }
        assert_eq!(
            (queue.counts().await.unwrap().of(JobState::Ready), queue.waiting().await.unwrap()),
            (0, None)
        );
    }

    async fn a_lease_that_ran_out_is_lost_and_a_third_time_is_the_end(&self) {
        let (queue, job) = (self.queue, self.add("web02").await);
        let first = self.claim("w1").await.unwrap();
        self.pass(119);
        assert_eq!(queue.reap().await.unwrap(), Reaped::default(), "the lease holds");
        queue.beat(&first, "").await.unwrap();
        self.pass(119);
        assert_eq!(queue.reap().await.unwrap(), Reaped::default(), "the beat has extended it");
        self.pass(1);
        assert_eq!(queue.reap().await.unwrap().taken_back, [job.id]);
        assert!(
            is_lost(&queue.beat(&first, "").await) && is_lost(&queue.step(&first, "x", "y", Some(9)).await),
            "the first worker is refused"
        );
        let second = self.claim("w2").await.unwrap();
        assert!(
            is_lost(&queue.finish(&first, "").await)
                && is_lost(&queue.fail(&first, "", OnFailure::Dead).await)
        );
        assert!(
            is_lost(&queue.release(&first).await)
                && is_lost(&queue.fail(&first, "", OnFailure::RetryAfter(Duration::ZERO)).await)
        );
        // A step is progress: from here on three more takeovers are allowed.
        queue.step(&second, "volume", "journal 2", Some(2)).await.unwrap();
        for time in 1..=3 {
            self.pass(120);
            let reaped = queue.reap().await.unwrap();
            if time < 3 {
                assert_eq!((reaped.taken_back, reaped.dead), (vec![job.id], vec![]));
                let claimed = queue.claim("w3", &Token::new()).await.unwrap().unwrap();
                assert_eq!(
                    claimed.job.journal.as_deref(),
                    Some("journal 2"),
                    "who takes over gets the journal"
                );
            } else {
                assert_eq!((reaped.taken_back, reaped.dead), (vec![], vec![job.id]));
            }
        }
        let dead = queue.job(job.id).await.unwrap().unwrap();
        assert_eq!(
            (dead.state, dead.error.as_deref()),
            (JobState::Dead, Some("its worker was lost 3 times before it got a step further"))
        );
    }

    /// A job that kills every worker: each worker claims it, repeats the earlier steps, and dies.
    async fn steps_that_are_taken_again_are_no_progress(&self) {
        let (queue, job) = (self.queue, self.add("web02").await);
        let lost_at = async |furthest: u32| {
            let lease = self.claim("w1").await.unwrap();
            queue.step(&lease, "taken-up", "journal", None).await.unwrap();
            for position in 1..=furthest {
                queue.step(&lease, &format!("step {position}"), "journal", Some(position)).await.unwrap();
            }
            queue.step(&lease, "convert", "journal", None).await.unwrap();
            self.pass(120);
            queue.reap().await.unwrap()
        };
        for furthest in [3, 3, 4, 4] {
            assert_eq!(
                lost_at(furthest).await.taken_back,
                [job.id],
                "a second time, and then it got further"
            );
        }
        assert_eq!(lost_at(4).await.dead, [job.id]);
        // A retry by the user resets the count of takeovers.
        queue.retry(job.id).await.unwrap();
        for _ in 0..2 {
            assert_eq!(lost_at(3).await.taken_back, [job.id]);
        }
        assert_eq!(lost_at(3).await.dead, [job.id]);
    }

    async fn what_waits_waits_and_what_is_given_back_keeps_its_place(&self) {
        let queue = self.queue;
        let (early, late) = (self.add("web03").await, self.add("web04").await);
        let lease = self.claim("w1").await.unwrap();
        assert_eq!(lease.id, early.id);
        queue.release(&lease).await.unwrap();
        assert!(is_lost(&queue.beat(&lease, "").await));
        let lease = self.claim("w1").await.unwrap();
        assert_eq!(lease.id, early.id, "given back, it is still before the later one");
        queue.fail(&lease, "busy", OnFailure::RetryAfter(Duration::from_secs(60))).await.unwrap();
        let other = self.claim("w1").await.unwrap();
        assert_eq!((other.id, self.state(&early).await), (late.id, JobState::Delayed));
        assert_eq!(self.claim("w1").await, None);
        queue.finish(&other, "").await.unwrap();
        self.pass(60);
        let lease = self.claim("w1").await.unwrap();
        let seen = queue.job(lease.id).await.unwrap().unwrap();
        assert_eq!((lease.id, seen.attempts, seen.takeovers, seen.deliveries), (early.id, 1, 0, 3));
        queue.finish(&lease, "").await.unwrap();

        let timed = NewJob { wait: Duration::from_secs(3600), ..job("web05") };
        queue.enqueue(&timed).await.unwrap();
        assert_eq!((self.claim("w1").await, self.state(&timed).await), (None, JobState::Delayed));
        self.pass(3600);
        let lease = self.claim("w1").await.unwrap();
        assert_eq!(lease.id, timed.id);
        queue.finish(&lease, "").await.unwrap();
    }

    async fn failures_are_tried_again_and_the_dead_can_be_revived(&self) {
        let (queue, job) = (self.queue, self.add("web06").await);
        let lease = self.claim("w1").await.unwrap();
        queue.fail(&lease, "throttled", OnFailure::RetryAfter(Duration::from_secs(30))).await.unwrap();
        queue
            .fail(&lease, "throttled", OnFailure::RetryAfter(Duration::from_secs(30)))
            .await
            .expect("a resend");
        let seen = queue.job(job.id).await.unwrap().unwrap();
        assert_eq!(
            (seen.state, seen.attempts, seen.error.as_deref()),
            (JobState::Delayed, 1, Some("throttled"))
        );
        self.pass(30);
        let lease = self.claim("w1").await.unwrap();
        queue.fail(&lease, "no such server", OnFailure::Dead).await.unwrap();
        assert_eq!((self.state(&job).await, self.claim("w1").await), (JobState::Dead, None));

        queue.retry(job.id).await.unwrap();
        let seen = queue.job(job.id).await.unwrap().unwrap();
        assert_eq!((seen.state, seen.attempts, seen.error), (JobState::Ready, 0, None));
        assert!(matches!(
            queue.retry(job.id).await,
            Err(QueueError::WrongState { state: JobState::Ready, .. })
        ));
        queue.cancel(job.id).await.unwrap();
        let other = self.add("web06").await;
        assert!(
            matches!(queue.retry(job.id).await, Err(QueueError::Duplicate { other: open }) if open == other.id)
        );
        queue.cancel(other.id).await.unwrap();
        let unknown = crate::support::job("nobody").id;
        assert!(matches!(queue.retry(unknown).await, Err(QueueError::NoSuchJob { .. })));
        assert!(matches!(queue.cancel(unknown).await, Err(QueueError::NoSuchJob { .. })));
    }

    async fn what_is_cancelled_ends_at_once_or_with_the_next_beat(&self) {
        let (queue, waiting) = (self.queue, self.add("web07").await);
        assert_eq!(queue.cancel(waiting.id).await.unwrap(), JobState::Cancelled);
        assert_eq!(
            (queue.cancel(waiting.id).await.unwrap(), self.claim("w1").await),
            (JobState::Cancelled, None)
        );
        let running = self.add("web08").await;
        let lease = self.claim("w1").await.unwrap();
        assert_eq!(queue.cancel(running.id).await.unwrap(), JobState::Running);
        assert_eq!(queue.beat(&lease, "").await.unwrap(), LeaseStatus::Cancelled);
        assert_eq!(queue.step(&lease, "release", "", Some(1)).await.unwrap(), LeaseStatus::Cancelled);
        queue.stop(&lease).await.unwrap();
        queue.stop(&lease).await.expect("a resend");
        assert_eq!(self.state(&running).await, JobState::Cancelled);
        // A cancelled job whose worker is gone, or gives it back, ends too.
        for give_back in [false, true] {
            let job = self.add("web09").await;
            let lease = self.claim("w1").await.unwrap();
            queue.cancel(job.id).await.unwrap();
            if give_back {
                queue.release(&lease).await.unwrap();
            } else {
                self.pass(121);
                queue.reap().await.unwrap();
            }
            assert_eq!(self.state(&job).await, JobState::Cancelled);
        }
        // A job that has begun ends only after a worker has removed its resources, in whichever state it was
        // cancelled.
        for was in ["waiting", "given back", "lost", "failed"] {
            let job = self.add("web09").await;
            let lease = self.claim("w1").await.unwrap();
            queue.step(&lease, "snapshot", "journal", Some(1)).await.unwrap();
            if was == "waiting" {
                queue.fail(&lease, "why", OnFailure::RetryAfter(Duration::from_secs(600))).await.unwrap();
            }
            let state = queue.cancel(job.id).await.unwrap();
            match was {
                "given back" => queue.release(&lease).await.unwrap(),
                "failed" => {
                    queue.fail(&lease, "why", OnFailure::RetryAfter(Duration::from_secs(1))).await.unwrap();
                }
                "lost" => {
                    self.pass(121);
                    assert_eq!(queue.reap().await.unwrap().taken_back, [job.id]);
                }
                _ => assert_eq!(state, JobState::Ready, "at once, whatever it waited for"),
            }
            self.pass(1);
            let lease = self.claim("w2").await.expect(was);
            assert_eq!(
                (lease.id, queue.beat(&lease, "").await.unwrap()),
                (job.id, LeaseStatus::Cancelled),
                "{was}"
            );
            queue.stop(&lease).await.unwrap();
        }
    }

    async fn what_is_over_is_forgotten_in_time(&self) {
        let (queue, job) = (self.queue, self.add("web10").await);
        let lease = self.claim("w1").await.unwrap();
        queue.finish(&lease, "").await.unwrap();
        let over = |counts: snapferry_fleet::queue::Counts| {
            [JobState::Done, JobState::Dead, JobState::Cancelled]
                .map(|state| counts.of(state))
                .iter()
                .sum::<u64>()
        };
        let before = over(queue.counts().await.unwrap());
        let open = self.add("web11").await;
        self.pass(10);
        assert!(
            queue.purge(Duration::from_secs(60)).await.unwrap() < before,
            "the last one is not old enough"
        );
        assert_eq!(self.state(&job).await, JobState::Done);
        self.pass(60);
        assert!(queue.purge(Duration::from_secs(60)).await.unwrap() >= 1);
        assert_eq!((queue.job(job.id).await.unwrap(), self.state(&open).await), (None, JobState::Ready));
        queue.cancel(open.id).await.unwrap();
        assert!(queue.workers().await.unwrap().is_empty(), "nobody was heard of for a minute");
    }

    async fn what_was_good_last_is_remembered(&self) {
        let (queue, first) = (self.queue, self.add("db01").await);
        let lease = self.claim("w9").await.unwrap();
        queue.finish(&lease, r#"{"image": "db01-latest"}"#).await.unwrap();
        let last_success = |successes: Vec<LastSuccess>| {
            successes
                .into_iter()
                .find(|success| success.server == "db01")
                .map(|success| (success.region, success.id, success.result))
        };
        let expected = ("us-east".to_owned(), first.id, r#"{"image": "db01-latest"}"#.to_owned());
        assert_eq!(last_success(queue.last_successes().await.unwrap()), Some(expected.clone()));
        // Neither a later failure nor the removal of the job changes the last success.
        self.add("db01").await;
        let lease = self.claim("w9").await.unwrap();
        queue.fail(&lease, "why", OnFailure::Dead).await.unwrap();
        self.pass(100);
        queue.purge(Duration::from_secs(60)).await.unwrap();
        assert_eq!(last_success(queue.last_successes().await.unwrap()), Some(expected));
        let second = self.add("db01").await;
        let lease = self.claim("w9").await.unwrap();
        queue.finish(&lease, "{}").await.unwrap();
        assert_eq!(
            last_success(queue.last_successes().await.unwrap()),
            Some(("us-east".to_owned(), second.id, "{}".to_owned()))
        );
        assert_eq!(
            queue.workers().await.unwrap().into_iter().map(|info| info.worker).collect::<Vec<_>>(),
            ["w9"]
        );
        // `forget` removes a server that no longer exists, but not the same one in another region, nor
        // another server.
        let dead = self.add("db01").await;
        let lease = self.claim("w9").await.unwrap();
        queue.fail(&lease, "no such server", OnFailure::Dead).await.unwrap();
        let other = self.add("db02").await;
        let lease = self.claim("w9").await.unwrap();
        queue.fail(&lease, "no such server", OnFailure::Dead).await.unwrap();
        assert!(!queue.forget("db01", "eu-de").await.unwrap());
        assert!(queue.forget("db01", "us-east").await.unwrap());
        assert!(!queue.forget("db01", "us-east").await.unwrap(), "nothing is left to forget");
        assert_eq!(last_success(queue.last_successes().await.unwrap()), None);
        assert_eq!((queue.job(dead.id).await.unwrap(), self.state(&other).await), (None, JobState::Dead));
    }

    async fn the_last_survey_of_each_place_is_kept(&self) {
        assert_eq!(self.queue.surveys().await.unwrap(), []);
        for (place, found) in
            [("us-south", "{\"volume\": 2}"), ("us-south", "{}"), ("eu-de", "{\"snapshot\": 1}")]
        {
            self.pass(1);
            self.queue.set_survey(place, found).await.unwrap();
        }
        let at = |seconds_ago: u64| {
            SystemTime::UNIX_EPOCH
                + Duration::from_millis(self.clock.load(Ordering::Relaxed) - seconds_ago * SECOND)
        };
        let surveyed =
            |place: &str, at, found: &str| GcSurvey { place: place.to_owned(), at, found: found.to_owned() };
        assert_eq!(
            self.queue.surveys().await.unwrap(),
            [surveyed("eu-de", at(0), "{\"snapshot\": 1}"), surveyed("us-south", at(1), "{}")]
        );
    }

    async fn a_tick_is_seen_to_once(&self) {
        let queue = self.queue;
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.clock.load(Ordering::Relaxed));
        assert!(!queue.tick("nightly", now).await.unwrap(), "there is no such schedule");
        assert_eq!(queue.now().await.unwrap(), now);
        queue.set_schedule("nightly", "plan", CatchUp::Before).await.unwrap();
        let schedule = Schedule { name: "nightly".to_owned(), plan: "plan".to_owned(), last: now };
        assert_eq!(queue.schedules().await.unwrap(), std::slice::from_ref(&schedule));
        assert!(!queue.tick("nightly", now).await.unwrap(), "what was before it was made is not made up for");
        let tick = now + Duration::from_secs(1);
        assert!(queue.tick("nightly", tick).await.unwrap());
        assert!(!queue.tick("nightly", tick).await.unwrap() && !queue.tick("nightly", now).await.unwrap());
        assert_eq!(queue.schedules().await.unwrap(), [Schedule { last: tick, ..schedule.clone() }]);
        // Another plan for the same times keeps the last tick; a plan for other times starts anew.
        self.pass(10);
        for (plan, since, last) in
            [("more", CatchUp::Before, tick), ("other", CatchUp::Now, now + Duration::from_secs(10))]
        {
            queue.set_schedule("nightly", plan, since).await.unwrap();
            assert_eq!(
                queue.schedules().await.unwrap(),
                [Schedule { plan: plan.to_owned(), last, ..schedule.clone() }]
            );
        }
        assert!(queue.remove_schedule("nightly").await.unwrap());
        assert!(!queue.remove_schedule("nightly").await.unwrap());
        assert!(!queue.tick("nightly", tick + Duration::from_secs(100)).await.unwrap());
        assert_eq!(queue.schedules().await.unwrap(), []);
    }
}

/// Runs the whole suite on a queue that was not used before, except for one search for lost jobs.
pub async fn run(queue: &dyn Queue, clock: Arc<AtomicU64>) {
    Bench { queue, clock }.run().await;
}

#[tokio::test]
async fn the_suite_in_memory() {
    let clock = Arc::new(AtomicU64::new(super::now_ms()));
    let queue = MemoryQueue::new(Arc::new(Turned(Arc::clone(&clock))), TIMING);
    Bench { queue: &queue, clock }.run().await;
}

#[tokio::test]
async fn the_suite_on_redis() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let clock = Arc::new(AtomicU64::new(super::now_ms()));
    let queue = redis.queue(TIMING).await.on_clock(Arc::clone(&clock));
    // The first search for lost jobs records which server this is.
    queue.reap().await.unwrap();
    Bench { queue: &queue, clock }.run().await;
}
