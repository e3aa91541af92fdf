//! The fleet: the real program as workers on two servers of the simulated cloud, with a real Redis between them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use snapferry::sim::{Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, ServerSeed, When};

use crate::queue::{Redis, SAFE};
use crate::region::{HOME, SERVER};
use crate::replicate::{Bench, Host, Said};

/// Nothing takes longer; what does, fails.
const PATIENCE: Duration = Duration::from_secs(90);

struct Fleet {
    bench: Bench,
    redis: Redis,
}

/// A worker that is killed where nobody has ended it.
struct Worker(Child);

impl Worker {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// What it ends with, once it does.
    async fn ended(mut self) -> Option<i32> {
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
    async fn start() -> Option<Self> {
        let redis = Redis::start(&SAFE).await?;
        Some(Self { bench: Bench::with_history().await, redis })
    }

    fn command(&self, host: Host, words: &[&str]) -> Command {
        let mut command = self.bench.command(host, words);
        command.env("SNAPFERRY_REDIS", self.redis.url()).args(["--lease", "2s"]);
        command
    }

    async fn run(&self, words: &[&str]) -> Said {
        self.bench.finish(self.command(Host::Own, words)).await
    }

    fn worker(&self, host: Host) -> Worker {
        let mut command = self.command(host, &["worker", "--metrics", "off"]);
        Worker(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
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
            assert!(begun.elapsed() < PATIENCE, "{what} did not come about: {}", self.job().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_state(&self, state: &str) {
        self.until(state, async || self.job().await["state"] == state).await;
    }

    /// One new latest image, one import, nothing left.
    async fn check(&self, since: usize, what: &str) {
        assert_eq!(self.bench.made(Op::CreateImage, since), 1, "{what}: imports");
        assert_eq!(self.bench.made(Op::CreateSnapshot, since), 1, "{what}: snapshots");
        self.bench.gc(Host::Own).await;
        assert_eq!(self.bench.leaks().await, Vec::<String>::new(), "{what}");
        assert_eq!(self.bench.images().await.len(), 2, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_on_two_workers_all_arrive() {
    let Some(fleet) = Fleet::start().await else { return };
    let disk = fleet.bench.disk();
    let names: Vec<String> = (1..=4).map(|number| format!("app{number}")).collect();
    for name in &names {
        fleet.bench.sim.seed_server(ServerSeed::new(HOME, name, &disk)).await.unwrap();
    }
    let (one, two) = (fleet.worker(Host::Own), fleet.worker(Host::Other));
    let mut words = vec!["enqueue", "--wait", SERVER];
    words.extend(names.iter().map(String::as_str));
    fleet.run(&words).await.code(0).says(&["app1 into us-east: done", "app4 into us-east: done", "web01 into us-east: done"]);
    let images: Vec<String> = fleet.bench.images().await.into_iter().map(|image| image.name).collect();
    for name in &names {
        assert!(images.contains(&format!("{name}-latest")), "{images:?}");
    }
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
    let shown = fleet.run(&["jobs", "list"]).await.code(0);
    let both = shown.out().contains("ferry (") && shown.out().contains("ferry2 (");
    assert!(both, "both have taken a share: {}", shown.out());
    for worker in [one, two] {
        worker.signal(Signal::TERM);
        assert_eq!(worker.ended().await, Some(0), "an idle worker ends at once");
    }
    // A server that is in no cloud ends as dead, with the reason; a name that makes no sense is not even added.
    let worker = fleet.worker(Host::Own);
    fleet.run(&["enqueue", "web99", "--wait"]).await.code(5).says(&["web99 into us-east: dead", "there is no server"]);
    fleet.run(&["enqueue", "Web_1"]).await.code(2).says(&["is no name for the cloud"]);
    drop(worker);
    fleet.run(&["jobs", "purge", "--older-than", "0s"]).await.code(0).says(&["jobs forgotten"]);
}

/// Where a worker is killed.
#[derive(Clone, Copy, Debug)]
enum At {
    Cloud(Op, u32),
    Bucket(Store, u32),
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_and_another_one_takes_over() {
    for at in [
        At::Cloud(Op::CreateSnapshot, 1),
        At::Cloud(Op::CreateVolume, 1),
        At::Cloud(Op::CreateAttachment, 1),
        At::Bucket(Store::UploadPart, 1),
        At::Bucket(Store::CompleteMultipartUpload, 1),
        At::Cloud(Op::DeleteVolume, 1),
        At::Cloud(Op::CreateImage, 1),
        At::Cloud(Op::UpdateImage, 1),
        At::Cloud(Op::UpdateImage, 2),
        At::Cloud(Op::UpdateSnapshot, 1),
    ] {
        let Some(fleet) = Fleet::start().await else { return };
        let since = fleet.bench.sim.history().len();
        match at {
            At::Cloud(operation, nth) => {
                fleet.bench.sim.faults().add(RegionRule::on(operation).when(When::Nth(nth)), RegionAction::ApplyThenHang);
            }
            At::Bucket(operation, nth) => {
                fleet.bench.sim.store().faults().add(Rule::on(operation).when(When::Nth(nth)), Action::ApplyThenHang);
            }
        }
        let mut first = fleet.worker(Host::Own);
        fleet.run(&["enqueue", SERVER]).await.code(0);
        fleet
            .until("the point", async || match at {
                At::Cloud(..) => fleet.bench.sim.faults().fired() == [1],
                At::Bucket(..) => fleet.bench.sim.store().faults().fired() == [1],
            })
            .await;
        first.kill();
        fleet.bench.sim.faults().clear();
        fleet.bench.sim.store().faults().clear();
        let _second = fleet.worker(Host::Other);
        fleet.until_state("done").await;
        let job = fleet.job().await;
        assert_eq!(job["deliveries"], 2, "{at:?}: {job}");
        fleet.check(since, &format!("{at:?}")).await;
    }
}

/// A worker that was asleep while another one took over changes nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_up_too_late_touches_nothing() {
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    let slow = RegionAction::delay(Duration::from_millis(300));
    fleet.bench.sim.faults().add(RegionRule::on(Op::GetAttachment).when(When::First(1)), slow);
    let sleeper = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    sleeper.signal(Signal::STOP);
    let second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await, Some(0));
    let (deeds, uploads) = (fleet.bench.sim.history(), fleet.bench.sim.store().stats().of(Store::UploadPart).requests);
    sleeper.signal(Signal::CONT);
    tokio::time::sleep(Duration::from_secs(3)).await;
    sleeper.signal(Signal::TERM);
    assert_eq!(sleeper.ended().await, Some(0));
    assert_eq!(fleet.bench.sim.history(), deeds, "the sleeper has changed something");
    assert_eq!(fleet.bench.sim.store().stats().of(Store::UploadPart).requests, uploads);
    assert_eq!(fleet.job().await["state"], "done");
    fleet.check(since, "zombie").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_gives_back_what_it_has() {
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    let slow = RegionAction::delay(Duration::from_millis(300));
    fleet.bench.sim.faults().add(RegionRule::on(Op::GetAttachment).when(When::First(1)), slow);
    let first = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    first.signal(Signal::TERM);
    assert_eq!(first.ended().await, Some(0));
    let job = fleet.job().await;
    assert_eq!((&job["state"], &job["attempts"]), (&"ready".into(), &0.into()), "given back, and nothing counted: {job}");
    let leaks = fleet.bench.leaks().await;
    assert!(leaks.len() == 1 && leaks[0].starts_with("snapshot"), "the volume is gone: {leaks:?}");
    let _second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    fleet.check(since, "drained").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_it_runs_leaves_nothing() {
    let Some(fleet) = Fleet::start().await else { return };
    let (since, before) = (fleet.bench.sim.history().len(), fleet.bench.latest().await.unwrap());
    let slow = RegionAction::delay(Duration::from_millis(1500));
    fleet.bench.sim.faults().add(RegionRule::on(Op::GetAttachment).when(When::First(1)), slow);
    let _worker = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    let job = fleet.job().await["job"].as_str().unwrap().to_owned();
    fleet.run(&["jobs", "cancel", &job]).await.code(0).says(&["its worker is told"]);
    fleet.until_state("cancelled").await;
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
    assert_eq!(fleet.bench.latest().await.map(|latest| latest.id), Some(before.id));
    let shown = fleet.run(&["jobs", "show", &job]).await.code(0);
    shown.says(&["cancelled since", "claimed", "web01 into us-east"]);
    // And once more, from its beginning.
    fleet.run(&["jobs", "retry", &job]).await.code(0).says(&["ready"]);
    fleet.until_state("done").await;
    let job = fleet.job().await;
    assert_eq!(job["attempts"], 0, "nothing had to be tried again: {job}");
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
}
