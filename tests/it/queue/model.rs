//! Any mix of operations by three workers, with resends, late requests and jumps of time, has the same effect
//! on both queues, and never breaks the rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use snapferry_base::clock::Clock;
use snapferry_base::job::JobId;
use snapferry_fleet::queue::{
    CatchUp, JobState, Lease, MemoryQueue, NewJob, OnFailure, Priority, Queue, QueueError, Timing, Token,
};

use super::now_ms;
use crate::support::{Redis, SAFE};

/// A clock that moves only when the test moves it.
pub struct Turned(pub Arc<AtomicU64>);

#[async_trait]
impl Clock for Turned {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    async fn sleep(&self, _duration: Duration) {}
}

const TIMING: Timing = Timing {
    lease: Duration::from_millis(100),
    beat: Duration::from_millis(20),
    stop: Duration::from_millis(70),
    retry: Duration::from_secs(1),
    takeovers: 3,
};

/// One step of a test: an operation on the queue, or time that passes.
#[derive(Clone, Debug)]
enum QueueStep {
    Enqueue { server: u8, priority: u8, wait: u8 },
    Again,
    Claim { worker: usize },
    ClaimAgain { worker: usize },
    Beat { lease: usize },
    Step { lease: usize, step: u8, through: Option<u32> },
    Release { lease: usize },
    Finish { lease: usize },
    Retry { lease: usize, wait: u8 },
    Die { lease: usize },
    Stop { lease: usize },
    Cancel { job: usize },
    Revive { job: usize },
    Reap,
    Purge,
    Forget { server: u8 },
    Schedule { name: u8, since: Option<CatchUp> },
    Tick { name: u8, ahead: u64 },
    Waiting,
    Pass { milliseconds: u64 },
}

fn any_step() -> impl Strategy<Value = QueueStep> {
    prop_oneof![
        4 => (0_u8..4, 0_u8..10, 0_u8..2).prop_map(|(server, priority, wait)| QueueStep::Enqueue { server, priority, wait }),
        1 => Just(QueueStep::Again),
        5 => (0_usize..3).prop_map(|worker| QueueStep::Claim { worker }),
        1 => (0_usize..3).prop_map(|worker| QueueStep::ClaimAgain { worker }),
        3 => (0_usize..8).prop_map(|lease| QueueStep::Beat { lease }),
        3 => (0_usize..8, 0_u8..3, proptest::option::of(1_u32..4)).prop_map(|(lease, step, through)| QueueStep::Step { lease, step, through }),
        1 => (0_usize..8).prop_map(|lease| QueueStep::Release { lease }),
        2 => (0_usize..8).prop_map(|lease| QueueStep::Finish { lease }),
        1 => (0_usize..8, 0_u8..3).prop_map(|(lease, wait)| QueueStep::Retry { lease, wait }),
        1 => (0_usize..8).prop_map(|lease| QueueStep::Die { lease }),
        1 => (0_usize..8).prop_map(|lease| QueueStep::Stop { lease }),
        1 => (0_usize..8).prop_map(|job| QueueStep::Cancel { job }),
        1 => (0_usize..8).prop_map(|job| QueueStep::Revive { job }),
        3 => Just(QueueStep::Reap),
        1 => Just(QueueStep::Purge),
        1 => (0_u8..4).prop_map(|server| QueueStep::Forget { server }),
        1 => (0_u8..2, prop_oneof![Just(None), Just(Some(CatchUp::Now)), Just(Some(CatchUp::Before))])
            .prop_map(|(name, since)| QueueStep::Schedule { name, since }),
        1 => Just(QueueStep::Waiting),
        2 => (0_u8..2, 0_u64..100).prop_map(|(name, ahead)| QueueStep::Tick { name, ahead }),
        4 => prop_oneof![Just(0_u64), Just(1), Just(60), Just(100), Just(101), Just(500)].prop_map(|milliseconds| QueueStep::Pass { milliseconds }),
    ]
}

/// Jobs, leases and tokens that workers and users would remember.
#[derive(Default)]
struct Memory {
    jobs: Vec<NewJob>,
    leases: Vec<Lease>,
    tokens: [Option<Token>; 3],
}

impl Memory {
    /// Returns one of the last few leases, which may be lost already.
    fn lease(&self, back: usize) -> Option<Lease> {
        self.leases.iter().rev().nth(back).cloned()
    }

    fn job(&self, back: usize) -> Option<JobId> {
        self.jobs.iter().rev().nth(back).map(|job| job.id)
    }
}

/// Runs the step on a queue, and returns the outcome as text, which can be compared.
async fn perform(
    queue: &dyn Queue,
    operation: &QueueStep,
    memory: &Memory,
    new: &NewJob,
    token: &Token,
) -> String {
    let describe = |outcome: Result<String, QueueError>| match outcome {
        Ok(text) => text,
        Err(QueueError::LeaseLost { .. }) => "lost".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    let none = || Ok("nobody".to_owned());
    let wait = |units: u8| Duration::from_millis(u64::from(units) * 50);
    describe(match operation {
        QueueStep::Enqueue { .. } => queue.enqueue(new).await.map(|added| format!("{added:?}")),
        QueueStep::Again => match memory.jobs.last() {
            Some(job) => queue.enqueue(job).await.map(|added| format!("{added:?}")),
            None => none(),
        },
        QueueStep::Claim { worker } => {
            queue.claim(&format!("w{worker}"), token).await.map(|claimed| format!("{claimed:?}"))
        }
        QueueStep::ClaimAgain { worker } => match &memory.tokens[*worker] {
            Some(token) => {
                queue.claim(&format!("w{worker}"), token).await.map(|claimed| format!("{claimed:?}"))
            }
            None => none(),
        },
        QueueStep::Cancel { job } => match memory.job(*job) {
            Some(id) => queue.cancel(id).await.map(|state| state.to_string()),
            None => none(),
        },
        QueueStep::Revive { job } => match memory.job(*job) {
            Some(id) => queue.retry(id).await.map(|()| "revived".to_owned()),
            None => none(),
        },
        QueueStep::Reap => queue.reap().await.map(|reaped| format!("{reaped:?}")),
        QueueStep::Purge => queue.purge(Duration::from_millis(300)).await.map(|purged| purged.to_string()),
        QueueStep::Forget { server } => {
            queue.forget(&format!("web{server}"), "us-east").await.map(|existed| existed.to_string())
        }
        QueueStep::Schedule { name, since: Some(since) } => {
            queue.set_schedule(&format!("s{name}"), "plan", *since).await.map(|()| "kept".to_owned())
        }
        QueueStep::Schedule { name, since: None } => {
            queue.remove_schedule(&format!("s{name}")).await.map(|existed| existed.to_string())
        }
        QueueStep::Waiting => queue.waiting().await.map(|waiting| format!("{waiting:?}")),
        QueueStep::Tick { name, ahead } => {
            let at = new.id.time() + Duration::from_millis(*ahead);
            queue.tick(&format!("s{name}"), at).await.map(|first| first.to_string())
        }
        QueueStep::Pass { .. } => Ok("later".to_owned()),
        QueueStep::Beat { lease }
        | QueueStep::Step { lease, .. }
        | QueueStep::Release { lease }
        | QueueStep::Finish { lease }
        | QueueStep::Retry { lease, .. }
        | QueueStep::Die { lease }
        | QueueStep::Stop { lease } => match memory.lease(*lease) {
            None => none(),
            Some(lease) => match operation {
                QueueStep::Beat { .. } => queue.beat(&lease, "half").await.map(|held| format!("{held:?}")),
                QueueStep::Step { step, through, .. } => queue
                    .step(&lease, &step.to_string(), "journal", *through)
                    .await
                    .map(|held| format!("{held:?}")),
                QueueStep::Release { .. } => queue.release(&lease).await.map(|()| "released".to_owned()),
                QueueStep::Finish { .. } => queue.finish(&lease, "result").await.map(|()| "done".to_owned()),
                QueueStep::Retry { wait: units, .. } => queue
                    .fail(&lease, "error", OnFailure::RetryAfter(wait(*units)))
                    .await
                    .map(|()| "failed".to_owned()),
                QueueStep::Die { .. } => {
                    queue.fail(&lease, "error", OnFailure::Dead).await.map(|()| "dead".to_owned())
                }
                _ => queue.stop(&lease).await.map(|()| "stopped".to_owned()),
            },
        },
    })
}

/// Checks the rules that hold after any steps.
async fn rules(queue: &dyn Queue, memory: &Memory) {
    let mut open: BTreeMap<(String, String), JobId> = BTreeMap::new();
    let (mut listed, mut counted) = (0, 0);
    for state in JobState::ALL {
        let jobs = queue.jobs(state, 1000).await.unwrap();
        counted += queue.counts().await.unwrap().of(state);
        listed += u64::try_from(jobs.len()).unwrap();
        for job in jobs.into_iter().filter(|job| !job.state.is_over()) {
            let before = open.insert((job.server.clone(), job.region.clone()), job.id);
            assert_eq!(before, None, "two open jobs for {} into {}", job.server, job.region);
        }
    }
    // No job is in two states, and none is lost: missing jobs were purged, and only finished jobs are purged.
    assert_eq!(listed, counted);
    assert!(listed <= u64::try_from(memory.jobs.len()).unwrap());
}

async fn play(operations: &[QueueStep], redis: Option<&Redis>, prefix: &str) {
    let clock = Arc::new(AtomicU64::new(now_ms()));
    let memory_queue = MemoryQueue::new(Arc::new(Turned(Arc::clone(&clock))), TIMING);
    let redis_queue = match redis {
        Some(redis) => {
            let config = snapferry_fleet::queue::RedisConfig {
                prefix: Some(prefix.to_owned()),
                timing: TIMING,
                ..redis.config()
            };
            let queue = snapferry_fleet::queue::RedisQueue::connect(&config)
                .await
                .unwrap()
                .on_clock(Arc::clone(&clock));
            queue.reap().await.unwrap();
            Some(queue)
        }
        None => None,
    };
    let mut memory = Memory::default();
    for (number, operation) in operations.iter().enumerate() {
        let (server, priority, wait) = match operation {
            QueueStep::Enqueue { server, priority, wait } => (*server, *priority, *wait),
            _ => (0, 0, 0),
        };
        let new = NewJob {
            id: JobId::at(
                SystemTime::UNIX_EPOCH + Duration::from_millis(clock.load(Ordering::Relaxed)),
                u128::try_from(number).unwrap(),
            ),
            server: format!("web{server}"),
            region: "us-east".to_owned(),
            spec: "{}".to_owned(),
            priority: Priority::new(priority).unwrap(),
            wait: Duration::from_millis(u64::from(wait) * 100),
        };
        let token = Token::new();
        let ours = perform(&memory_queue, operation, &memory, &new, &token).await;
        if let Some(redis_queue) = &redis_queue {
            let theirs = perform(redis_queue, operation, &memory, &new, &token).await;
            assert_eq!(theirs, ours, "step {number}, {operation:?}: Redis, and memory");
        }
        match operation {
            QueueStep::Enqueue { .. } if ours == "Added" => memory.jobs.push(new),
            QueueStep::Claim { worker } => {
                memory.tokens[*worker] = Some(token.clone());
                let running = memory_queue.jobs(JobState::Running, 1000).await.unwrap();
                let claimed = running.into_iter().find(|job| ours.contains(&format!("id: {}", job.id)));
                memory.leases.extend(claimed.map(|job| Lease { id: job.id, token }));
            }
            QueueStep::Pass { milliseconds } => {
                clock.fetch_add(*milliseconds, Ordering::Relaxed);
            }
            _ => {}
        }
        rules(&memory_queue, &memory).await;
    }
    if let Some(redis_queue) = &redis_queue {
        rules(redis_queue, &memory).await;
        for job in &memory.jobs {
            assert_eq!(redis_queue.job(job.id).await.unwrap(), memory_queue.job(job.id).await.unwrap());
        }
        assert_eq!(redis_queue.last_successes().await.unwrap(), memory_queue.last_successes().await.unwrap());
        assert_eq!(redis_queue.workers().await.unwrap(), memory_queue.workers().await.unwrap());
        assert_eq!(redis_queue.schedules().await.unwrap(), memory_queue.schedules().await.unwrap());
        let fields = |events: Vec<snapferry_fleet::queue::QueueEvent>| {
            events.into_iter().map(|event| (event.id, event.what, event.details)).collect::<Vec<_>>()
        };
        assert_eq!(
            fields(redis_queue.events(1000).await.unwrap()),
            fields(memory_queue.events(1000).await.unwrap())
        );
    }
}

#[test]
fn both_queues_do_the_same_whatever_happens() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let redis = runtime.block_on(Redis::start(&SAFE));
    // With Redis each case takes some hundred round trips; in memory alone, more cases fit.
    let cases = if redis.is_some() { 400 } else { 1000 };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let number = AtomicU64::new(0);
    runner
        .run(&proptest::collection::vec(any_step(), 1..60), |operations| {
            let prefix = format!("case{}", number.fetch_add(1, Ordering::Relaxed));
            runtime.block_on(play(&operations, redis.as_ref(), &prefix));
            Ok(())
        })
        .unwrap();
}
