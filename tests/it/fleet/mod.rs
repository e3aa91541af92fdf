//! The fleet: the real program as workers on two servers of the simulated cloud, with a real Redis between
//! them.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `commands` | enqueue, worker, jobs, status, schedule, as a user runs them; systemd |
//! | `metrics` | metrics of a worker, as Prometheus reads them |
//! | `handover` | workers killed at every change, suspended or stopped: another worker continues |
//! | `nights` | a second night, which copies what did not change, and its report |
//! | `hostile` | hostile text in the queue; missing rights |
//! | `soak` | many jobs, several workers, random faults and kills |
//! | `scale` | fifty workers on one queue |
//! | `history` | rules that hold whatever has happened |
//! | `signals` | every signal to every long-running command |

mod commands;
mod handover;
mod history;
mod hostile;
mod metrics;
mod nights;
mod scale;
mod signals;
mod soak;

pub use metrics::names;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use snapferry_fleet::queue::{RedisConfig, RedisQueue, Timing};
use snapferry_sim::RegionOperation as Op;

use crate::support::{Bench, Ended, Host, Redis, SAFE, SERVER};

/// Environment variable with the fleet's lease, such as the real one, `120s`. Unset, the lease is two
/// seconds, so that the tests do not take hours.
const LEASE: &str = "SNAPFERRY_TEST_LEASE";

fn lease() -> String {
    std::env::var(LEASE).unwrap_or_else(|_| "2s".to_owned())
}

fn has_real_lease() -> bool {
    std::env::var_os(LEASE).is_some()
}

/// Longest wait in a test; after it, the test fails.
fn patience() -> Duration {
    let lease: snapferry_fleet::replicate::Age = lease().parse().unwrap();
    Duration::from_secs(90) + lease.0 * 4
}

pub struct Fleet {
    pub bench: Bench,
    redis: Redis,
}

/// A worker process, killed when this is dropped.
pub struct Worker(Child);

impl Worker {
    pub fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for the worker's end, and returns its exit code.
    pub async fn ended(mut self) -> Option<i32> {
        tokio::task::spawn_blocking(move || self.0.wait().unwrap().code()).await.unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Fleet {
    pub async fn start() -> Option<Self> {
        let redis = Redis::start(&SAFE).await?;
        Some(Self { bench: Bench::with_history().await, redis })
    }

    pub fn command(&self, host: Host, args: &[&str]) -> Command {
        let mut command = self.bench.command(host, args);
        command.env("SNAPFERRY_REDIS", self.redis.url()).args(["--lease", &lease()]);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ended {
        self.bench.finish(self.command(Host::Own, args)).await
    }

    pub fn worker(&self, host: Host) -> Worker {
        Worker::start(self.command(host, &["worker", "--metrics", "off"]))
    }

    /// The queue, as another program connects to it.
    async fn queue(&self) -> RedisQueue {
        RedisQueue::connect(&RedisConfig { timing: Timing::default(), ..self.redis.config() }).await.unwrap()
    }

    /// The newest job of the server.
    async fn job(&self) -> Value {
        let jobs = self.run(&["jobs", "list", "--json"]).await.json();
        let jobs = jobs.as_array().unwrap().iter().filter(|job| job["server"] == SERVER);
        jobs.max_by_key(|job| job["job"].as_str().unwrap().to_owned()).unwrap().clone()
    }

    async fn until(&self, what: &str, mut reached: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !reached().await {
            assert!(begun.elapsed() < patience(), "{what} did not come about: {}", self.job().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_state(&self, state: &str) {
        self.until(state, async || self.job().await["state"] == state).await;
    }

    /// Asserts one new latest image, one snapshot, one import, and no leftovers.
    async fn check(&self, since: usize, case: &str) {
        assert_eq!(self.bench.made(Op::CreateImage, since), 1, "{case}: imports");
        assert_eq!(self.bench.made(Op::CreateSnapshot, since), 1, "{case}: snapshots");
        self.bench.gc(Host::Own).await;
        assert_eq!(self.bench.leaks().await, Vec::<String>::new(), "{case}");
        assert_eq!(self.bench.images().await.len(), 2, "{case}");
        self.history(since, case).await;
    }
}
