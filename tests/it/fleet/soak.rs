//! Many jobs, several workers, random faults, and workers killed meanwhile: every job ends as done, or as
//! dead with a reason.
//!
//! `make soak` runs it with 200 jobs; `SNAPFERRY_SOAK_JOBS` sets their number.

use std::io::Write as _;
use std::time::{Duration, Instant};

use snapferry_fleet::queue::{JobState, Queue as _};
use snapferry_sim::{Action, RegionAction, RegionRule, Rule, ServerSeed, When};

use super::{Fleet, Worker};
use crate::support::{HOME, Host};

const WORKERS: [Host; 4] = [Host::Own, Host::Other, Host::Own, Host::Other];
/// Time limit for each job; after it, the test fails.
const EACH: Duration = Duration::from_secs(10);

/// Adds random faults: of 100 requests to the cloud, and to the bucket, five fail, each in another way.
fn confuse(fleet: &Fleet, seed: u64) {
    let chance = |number: u64| When::Share { percent: 1, seed: seed.wrapping_mul(31).wrapping_add(number) };
    let region = [
        RegionAction::Answer { status: 503, code: None, retry_after_s: None },
        RegionAction::Answer {
            status: 429,
            code: Some("too_many_requests".to_owned()),
            retry_after_s: Some(1),
        },
        RegionAction::Drop,
        RegionAction::ApplyThenDrop,
        RegionAction::Reset,
    ];
    for (number, action) in (0..).zip(region) {
        fleet.bench.sim.faults().add(RegionRule::any().when(chance(number)), action);
    }
    let store = [
        Action::Answer { status: 503, code: Some("SlowDown".to_owned()), retry_after_s: None },
        Action::Answer { status: 500, code: Some("InternalError".to_owned()), retry_after_s: None },
        Action::DropAfterBody,
        Action::ApplyThenDrop,
        Action::Reset,
    ];
    for (number, action) in (10..).zip(store) {
        fleet.bench.sim.store().faults().add(Rule::any().when(chance(number)), action);
    }
}

/// Returns the number after `before` in a section of Redis's INFO.
async fn number(fleet: &Fleet, section: &str, before: &str) -> u64 {
    let text = match fleet.redis.command(&["INFO", section]).await {
        redis::Value::BulkString(bytes) => String::from_utf8(bytes).unwrap(),
        redis::Value::VerbatimString { text, .. } => text,
        other => panic!("{other:?}"),
    };
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(before))
        .unwrap_or_else(|| panic!("no {before} in {text}"));
    let digits = line.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(line.len());
    line[..digits].parse().unwrap()
}

/// Number of scripts that Redis has run: one for each request of a worker to the queue.
async fn redis_commands(fleet: &Fleet) -> u64 {
    number(fleet, "commandstats", "cmdstat_evalsha:calls=").await
}

/// Peak resident memory of a worker process, in MiB.
fn peak_memory(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.0.id())).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or_default()
        / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_end_done_or_dead_with_a_reason_whatever_happens() {
    let jobs: usize =
        std::env::var("SNAPFERRY_SOAK_JOBS").map_or(16, |jobs| jobs.parse().expect("a number of jobs"));
    let seed: u64 = std::env::var("SNAPFERRY_SOAK_SEED").map_or(7, |seed| seed.parse().expect("a seed"));
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    let disk = fleet.bench.disk();
    let names: Vec<String> = (0..jobs).map(|number| format!("app{number:03}")).collect();
    for name in &names {
        fleet.bench.sim.seed_server(ServerSeed::new(HOME, name, &disk)).await.unwrap();
    }
    let file = fleet.bench.state_folder(Host::Own).with_extension("servers");
    std::fs::write(&file, names.join("\n")).unwrap();
    let empty = number(&fleet, "memory", "used_memory:").await;
    fleet.run(&["enqueue", "--file", file.to_str().unwrap()]).await.code(0);
    let full = number(&fleet, "memory", "used_memory:").await;
    let commands = redis_commands(&fleet).await;
    confuse(&fleet, seed);
    let mut workers: Vec<Worker> = WORKERS.iter().map(|&host| fleet.worker(host)).collect();
    let (queue, begun, mut kills, mut peak) = (fleet.queue().await, Instant::now(), 0_usize, 0);
    let longest = Duration::from_secs(120) + EACH * u32::try_from(jobs).unwrap();
    loop {
        let counts = queue.counts().await.unwrap();
        let over: u64 =
            [JobState::Done, JobState::Dead, JobState::Cancelled].map(|state| counts.of(state)).iter().sum();
        if over == u64::try_from(jobs).unwrap() {
            break;
        }
        assert!(begun.elapsed() < longest, "not over in time: {counts:?}");
        // A worker is killed after every eighth finished job.
        if over >= u64::try_from((kills + 1) * 8).unwrap() {
            let victim = kills % WORKERS.len();
            peak = peak.max(peak_memory(&workers[victim]));
            workers[victim].kill();
            workers[victim] = fleet.worker(WORKERS[victim]);
            kills += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    let over = number(&fleet, "memory", "used_memory:").await;
    let sent = redis_commands(&fleet).await - commands;
    peak = workers.iter().map(peak_memory).max().unwrap_or_default().max(peak);
    fleet.bench.disarm();
    drop(workers);
    let counts = queue.counts().await.unwrap();
    for dead in queue.jobs(JobState::Dead, jobs).await.unwrap() {
        let reason = dead.error.unwrap_or_default();
        assert!(!reason.is_empty(), "{} is dead without a reason", dead.server);
        let _ = writeln!(std::io::stderr(), "dead: {}: {reason}", dead.server);
    }
    let _ = writeln!(
        std::io::stderr(),
        "{jobs} jobs, {} workers, seed {seed}, 5 % of requests go wrong, {kills} workers killed: {} done, {} dead in {:.0} s; \
         {} words to Redis for each job, {} bytes of Redis for each that waits and {} for each that is over, {peak} MiB at most in a worker",
        WORKERS.len(),
        counts.of(JobState::Done),
        counts.of(JobState::Dead),
        took.as_secs_f64(),
        sent / u64::try_from(jobs).unwrap(),
        full.saturating_sub(empty) / u64::try_from(jobs).unwrap(),
        over.saturating_sub(empty) / u64::try_from(jobs).unwrap(),
    );
    assert!(
        counts.of(JobState::Done) * 10 >= u64::try_from(jobs * 9).unwrap(),
        "these faults pass, so nearly all get there: {counts:?}"
    );
    fleet.history(since, "soak").await;
    fleet.nothing_is_left("soak").await;
}
