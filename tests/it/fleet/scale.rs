//! Fifty workers on one queue, each on a connection of its own, send every request that a job needs, as fast
//! as they can.
//!
//! `make soak` runs it with 1,000 jobs; `SNAPFERRY_SCALE_JOBS` sets their number.

use std::io::Write as _;
use std::time::{Duration, Instant};

use snapferry_fleet::queue::{
    JobState, Lease, NewJob, Priority, Queue as _, RedisConfig, RedisQueue, Timing, Token,
};
use tokio::task::JoinSet;

use crate::support::{Redis, SAFE, job};

const WORKERS: usize = 50;
/// Number of entries in a job's journal, and their length in bytes, as measured in `soak`.
const STEPS: usize = 30;
const JOURNAL: usize = 2000;
/// Number of lease renewals of a job, including the one before each change.
const BEATS: usize = 30;

/// Works until the queue is empty; returns the number of jobs and the time of each request to the queue.
async fn works(config: RedisConfig, name: String) -> (usize, Vec<Duration>) {
    let queue = RedisQueue::connect(&config).await.unwrap();
    let (mut jobs, mut latencies, journal) = (0, Vec::new(), "x".repeat(JOURNAL));
    loop {
        let begun = Instant::now();
        let Some(claimed) = queue.claim(&name, &Token::new()).await.unwrap() else {
            return (jobs, latencies);
        };
        latencies.push(begun.elapsed());
        let lease = Lease { id: claimed.job.id, token: claimed.token };
        for number in 0..STEPS.max(BEATS) {
            let begun = Instant::now();
            if number < BEATS {
                queue.beat(&lease, r#"{"step":"convert","bytes":1,"of":2}"#).await.unwrap();
            }
            if number < STEPS {
                queue.step(&lease, &number.to_string(), &journal, u32::try_from(number).ok()).await.unwrap();
            }
            latencies.push(begun.elapsed() / 2);
        }
        queue.finish(&lease, &journal).await.unwrap();
        jobs += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_workers_share_what_there_is() {
    let jobs: usize =
        std::env::var("SNAPFERRY_SCALE_JOBS").map_or(200, |jobs| jobs.parse().expect("a number of jobs"));
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let config = RedisConfig { timing: Timing::default(), ..redis.config() };
    let queue = RedisQueue::connect(&config).await.unwrap();
    for number in 0..jobs {
        queue
            .enqueue(&NewJob { priority: Priority::default(), ..job(&format!("app{number:04}")) })
            .await
            .unwrap();
    }
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        workers.spawn(works(config.clone(), format!("ferry{number}")));
    }
    let (shares, latencies): (Vec<usize>, Vec<Vec<Duration>>) = workers.join_all().await.into_iter().unzip();
    let took = begun.elapsed();
    let mut latencies: Vec<Duration> = latencies.into_iter().flatten().collect();
    latencies.sort_unstable();
    let commands = jobs * (STEPS + BEATS + 2);
    let _ = writeln!(
        std::io::stderr(),
        "{jobs} jobs on {WORKERS} workers: {commands} words in {:.1} s, {:.0} a second, p50 {:.1?}, p99 {:.1?}; {} to {} jobs each",
        took.as_secs_f64(),
        f64::from(u32::try_from(commands).unwrap()) / took.as_secs_f64(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
        shares.iter().min().unwrap(),
        shares.iter().max().unwrap(),
    );
    assert_eq!(queue.counts().await.unwrap().of(JobState::Done), u64::try_from(jobs).unwrap());
    assert_eq!(shares.iter().sum::<usize>(), jobs, "none is worked on twice");
    assert!(shares.iter().all(|&share| share > 0), "everybody has a share: {shares:?}");
}
