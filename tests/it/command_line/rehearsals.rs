//! `--dry-run` prints what would be done, and changes nothing: neither files nor the store, the cloud or the
//! queue.

use std::path::Path;

use serde_json::{Value, json};
use snapferry_base::job::JobId;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::convert::plan::Options;
use snapferry_fleet::queue::{Lease, OnFailure, Queue as _, Timing, Token};
use snapferry_testkit::disks::{Disk, Kind};

use crate::support::{
    AWAY, Bench, Bucket, Ended, HOME, Host, Redis, SAFE, SERVER, convert_disk, folder, job, left_in, run,
    snapferry,
};

/// Asserts that a text tells of a rehearsal, and that the JSON tells the same.
#[track_caller]
fn assert_would(plain: &Ended, json: &Ended, would: &[&str]) {
    assert_eq!((plain.code, json.code), (Some(0), Some(0)), "{plain:?} {json:?}");
    let expected: Vec<String> = would.iter().map(|what| format!("would {what}")).collect();
    assert_eq!(plain.out.lines().collect::<Vec<_>>(), expected);
    let objects = json.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let told: Vec<Value> = objects.map(|object| json!([object["dry_run"], object["would"]])).collect();
    assert_eq!(told, would.iter().map(|what| json!([true, what])).collect::<Vec<_>>());
}

/// Content of a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    left_in(folder)
        .into_iter()
        .map(|name| (name.clone(), std::fs::read(folder.join(name)).expect("a file")))
        .collect()
}

fn restore(image: &Path, to: &Path, more: &[&str]) -> Ended {
    let mut command = snapferry(["restore"]);
    command.arg(image).arg("--output").arg(to).args(more);
    run(command)
}

#[test]
fn a_restore_into_a_new_file() {
    let made = convert_disk(&Disk::new(Kind::Mixed, ByteCount(4 * MIB), 3), &Options::default());
    let to = folder();
    let target = to.path().join("back.raw");
    let (plain, json) =
        (restore(&made.path, &target, &["-n"]), restore(&made.path, &target, &["-n", "--json"]));
    let what = format!("write the disk of {}, 4 MiB, to {}", made.path.display(), target.display());
    assert_would(&plain, &json, &[&what]);
    assert_eq!(json.json()["lost"], Value::Null);
    assert_eq!(left_in(to.path()), Vec::<String>::new());
}

#[test]
fn a_restore_over_a_file() {
    let made = convert_disk(&Disk::new(Kind::Mixed, ByteCount(4 * MIB), 3), &Options::default());
    let to = folder();
    let target = to.path().join("back.raw");
    std::fs::write(&target, b"precious").expect("written");
    let before = contents(to.path());
    // What the restore would refuse is refused.
    restore(&made.path, &target, &["-n"]).expect(4, &["exists already", "--force"]);
    let (plain, json) = (
        restore(&made.path, &target, &["-n", "--force"]),
        restore(&made.path, &target, &["-n", "--force", "--json"]),
    );
    let what = format!(
        "write the disk of {}, 4 MiB, to {}, over what is there: a file of 8 B",
        made.path.display(),
        target.display()
    );
    assert_would(&plain, &json, &[&what]);
    assert_eq!(json.json()["lost"], "a file of 8 B");
    assert_eq!(contents(to.path()), before);
}

#[test]
fn a_restore_into_a_folder_that_does_not_exist_is_refused() {
    let made = convert_disk(&Disk::new(Kind::Mixed, ByteCount(4 * MIB), 3), &Options::default());
    restore(&made.path, Path::new("/nonexistent/back.raw"), &["-n"])
        .expect(4, &["cannot open", "No such file"]);
}

#[test]
fn uploads_that_would_be_aborted() {
    let bucket = Bucket::start();
    bucket.begin_upload("one.qcow2");
    bucket.begin_upload("two.qcow2");
    let abort =
        |more: &[&str]| run(bucket.command([&["uploads", "abort", "--all", "--dry-run"], more].concat()));
    let (plain, json) = (abort(&[]).code(0), abort(&["--json"]).code(0));
    let lines: Vec<&str> = plain.out.lines().collect();
    assert!(
        lines[0].starts_with("would abort one.qcow2  ") && lines[1].starts_with("would abort two.qcow2  ")
    );
    let keys: Vec<Value> = json
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["key"].clone())
        .collect();
    assert_eq!(keys, ["one.qcow2", "two.qcow2"]);
    assert_eq!(bucket.open_uploads(), 2);
}

async fn on_cloud(bench: &Bench, args: &[&str]) -> Ended {
    bench.finish(bench.command(Host::Own, args)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_snapshots_that_would_be_deleted() {
    let bench = Bench::with_history().await;
    let (before, images) = (bench.sim.history().len(), bench.images().await);
    let mut args = vec!["images", "delete", "-n", "--region", AWAY];
    args.extend(images.iter().map(|image| image.name.as_str()));
    let would: Vec<String> =
        images.iter().map(|image| format!("delete image {}  {}", image.name, image.id)).collect();
    let would: Vec<&str> = would.iter().map(String::as_str).collect();
    let json = on_cloud(&bench, &[&args[..], &["--json"]].concat()).await;
    assert_would(&on_cloud(&bench, &args).await, &json, &would);

    let snapshot = bench.snapshots().await.remove(0);
    let args = ["snapshot", "delete", "-n", &snapshot.name];
    let json = on_cloud(&bench, &[&args[..], &["--json"]].concat()).await;
    let would = format!("delete snapshot {}  {}", snapshot.name, snapshot.id);
    assert_would(&on_cloud(&bench, &args).await, &json, &[&would]);
    assert_eq!(bench.sim.history().len(), before);
    bench.sim.shutdown().await;
}

/// A job that has failed at its import, and left an object and a snapshot.
async fn failed_job(bench: &Bench) -> String {
    let failed = bench.run(Host::Own, &["--bucket-location", "us-geo", "--json"]).await.code(5);
    let record: Value = serde_json::from_str(failed.out.lines().last().unwrap()).unwrap();
    record["job"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_would_be_given_up() {
    let bench = Bench::start().await;
    let job = failed_job(&bench).await;
    let (before, leaks) = (bench.sim.history().len(), bench.leaks().await);
    let journals = contents(&bench.state_folder(Host::Own).join("jobs"));
    let abandon = ["replicate", "--abandon", &job, "--dry-run"];
    let plain = on_cloud(&bench, &abandon).await.code(0);
    assert!(
        plain
            .out
            .starts_with(&format!("would give up job {job}, web01 into us-east, and remove object s3://"))
    );
    let json = on_cloud(&bench, &[&abandon[..], &["--json"]].concat()).await.json();
    assert_eq!(json["made"].as_array().map(Vec::len), Some(2), "{json}");
    assert_eq!((bench.sim.history().len(), bench.leaks().await), (before, leaks));
    assert_eq!(contents(&bench.state_folder(Host::Own).join("jobs")), journals);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_would_be_resumed() {
    let bench = Bench::start().await;
    let resume = ["replicate", "--resume", "--dry-run"];
    on_cloud(&bench, &resume).await.code(0).says(&["would resume nothing"]);
    let job = failed_job(&bench).await;
    let (before, journals) =
        (bench.sim.history().len(), contents(&bench.state_folder(Host::Own).join("jobs")));
    let json = on_cloud(&bench, &[&resume[..], &["--json"]].concat()).await;
    let would = format!("go on with job {job}, web01 into us-east");
    assert_would(&on_cloud(&bench, &resume).await, &json, &[&would]);
    assert_eq!(bench.sim.history().len(), before);
    assert_eq!(contents(&bench.state_folder(Host::Own).join("jobs")), journals);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_that_would_be_removed() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let bench = Bench::start().await;
    failed_job(&bench).await;
    let (before, leaks, queue) = (bench.sim.history().len(), bench.leaks().await, redis.contents().await);
    let url = redis.url();
    let gc = ["gc", "--dry-run", "--min-age", "0s", "--redis", &url, "--json"];
    let report = bench.finish(bench.command(Host::Other, &gc)).await.json();
    let left =
        report["findings"].as_array().unwrap().iter().filter(|found| found["fate"] == "leftover").count();
    assert!(left > 0 && report["applied"] == false, "{report}");
    assert_eq!((bench.sim.history().len(), bench.leaks().await), (before, leaks));
    assert_eq!(redis.contents().await, queue, "not even the metrics are told");
    let both = ["gc", "--dry-run", "--apply"];
    bench.finish(bench.command(Host::Other, &both)).await.code(2).says(&["cannot be used with"]);
    bench.sim.shutdown().await;
}

/// A queue with a job that waits, a dead one, and a schedule.
struct Fleet {
    redis: Redis,
    ready: JobId,
    dead: JobId,
}

impl Fleet {
    async fn start() -> Option<Self> {
        let redis = Redis::start(&SAFE).await?;
        let queue = redis.queue(Timing::default()).await;
        let (first, second) = (job("db01"), job("web01"));
        queue.enqueue(&first).await.unwrap();
        let taken = queue.claim("ferry", &Token::new()).await.unwrap().expect("a job");
        let lease = Lease { id: taken.job.id, token: taken.token };
        queue.fail(&lease, "no such server", OnFailure::Dead).await.unwrap();
        queue.enqueue(&second).await.unwrap();
        let fleet = Self { redis, ready: second.id, dead: first.id };
        fleet.run(&["schedule", "add", "nightly", "--cron", "30 2 * * *", "web01"]).code(0);
        Some(fleet)
    }

    fn run(&self, args: &[&str]) -> Ended {
        let mut command = snapferry(args);
        command.env("SNAPFERRY_REDIS", self.redis.url()).env("SNAPFERRY_VPC_REGION", HOME);
        command.env("SNAPFERRY_RECOVERY_REGION", AWAY).env("SNAPFERRY_BUCKET", "images");
        run(command)
    }

    /// Asserts what a command prints with `--dry-run`, and that the queue is the same afterwards.
    async fn assert_would(&self, args: &[&str], would: &[&str]) {
        let before = self.redis.contents().await;
        let plain = self.run(&[args, &["--dry-run"]].concat());
        let json = self.run(&[args, &["-n", "--json"]].concat());
        assert_would(&plain, &json, would);
        assert_eq!(self.redis.contents().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_would_be_cancelled() {
    let Some(fleet) = Fleet::start().await else { return };
    let (ready, dead) = (fleet.ready.to_string(), fleet.dead.to_string());
    fleet
        .assert_would(
            &["jobs", "cancel", &ready, &dead],
            &[
                &format!("cancel job {ready} for web01 into us-east, which is ready"),
                &format!("leave job {dead} as it is: dead already"),
            ],
        )
        .await;
    let missing = "01kb3v9w6rj0c2xq4m8s5t7yza";
    fleet.run(&["jobs", "cancel", missing, "-n"]).expect(6, &["there is no job"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_would_be_queued_again() {
    let Some(fleet) = Fleet::start().await else { return };
    let (ready, dead) = (fleet.ready.to_string(), fleet.dead.to_string());
    let would = format!("queue job {dead} for db01 into us-east again, which is dead");
    fleet.assert_would(&["jobs", "retry", &dead], &[&would]).await;
    // What the queue would refuse is refused.
    fleet.run(&["jobs", "retry", &ready, "-n"]).expect(6, &["is ready"]);
    fleet.redis.queue(Timing::default()).await.enqueue(&job("db01")).await.unwrap();
    fleet.run(&["jobs", "retry", &dead, "-n"]).expect(6, &["is open for the same server"]);
    fleet.run(&["jobs", "retry", &dead]).expect(6, &["is open for the same server"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_would_be_forgotten() {
    let Some(fleet) = Fleet::start().await else { return };
    let purge = ["jobs", "purge", "--older-than", "0s"];
    fleet.assert_would(&purge, &["forget 1 job that ended more than 0s ago"]).await;
    fleet.assert_would(&["jobs", "purge"], &["forget 0 jobs that ended more than 30d ago"]).await;
    let purged = fleet.run(&["jobs", "purge", "--older-than", "0s", "--json"]).json();
    assert_eq!(purged, json!({ "purged": 1 }), "as many as were told before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_would_be_queued() {
    let Some(fleet) = Fleet::start().await else { return };
    let ready = fleet.ready.to_string();
    fleet
        .assert_would(
            &["enqueue", "web01", "app01"],
            &[
                &format!("leave web01 into us-east, in the queue already as job {ready}"),
                "queue app01 into us-east",
            ],
        )
        .await;
    fleet.run(&["enqueue", "Web_1", "-n"]).expect(2, &["is no name for the cloud"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_list_that_would_be_imported() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet.redis.command(&["RPUSH", "queue", "app01", "Web_1"]).await;
    let before = fleet.redis.contents().await;
    let plain = fleet.run(&["enqueue", "--import-legacy", "-n"]).code(0);
    let lines: Vec<&str> = plain.out.lines().collect();
    assert_eq!(lines[0], "would queue app01 into us-east");
    assert!(lines[1].starts_with("would put \"Web_1\" aside, which makes no job: "), "{lines:?}");
    assert_eq!(fleet.redis.contents().await, before);
    let imported = fleet.run(&["enqueue", "--import-legacy", "--json"]).code(2).report();
    let expected = json!({ "list": "queue", "added": 1, "open_already": 0, "refused": ["Web_1"], "left": 0 });
    assert_eq!(imported, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_would_be_changed() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet.assert_would(&["schedule", "rm", "nightly"], &["remove schedule nightly"]).await;
    fleet.run(&["schedule", "rm", "weekly", "-n"]).expect(2, &["there is no schedule weekly"]);
    let before = fleet.redis.contents().await;
    let add = ["schedule", "add", "nightly", "--cron", "0 4 * * *", "web01", "db01"];
    let plain = fleet.run(&[&add[..], &["-n"]].concat()).code(0);
    assert!(plain.out.starts_with("would replace schedule nightly: 2 servers, next at "), "{}", plain.out);
    assert_eq!(fleet.redis.contents().await, before);
    let added = fleet.run(&[&add[..], &["--json"]].concat()).json();
    assert_eq!((&added["replaced"], &added["servers"]), (&json!(true), &json!(["web01", "db01"])));
    let removed = fleet.run(&["schedule", "rm", "nightly", "--json"]).json();
    assert_eq!(removed, json!({ "schedule": "nightly", "removed": true }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_would_be_forgotten() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet.assert_would(&["status", "--forget", "db01"], &["forget db01 into us-east"]).await;
    fleet.run(&["status", "db01", "-n"]).expect(2, &["--forget"]);
    let forgotten = fleet.run(&["status", "--forget", "db01", "--json"]).json();
    assert_eq!(forgotten, json!({ "server": "db01", "region": "us-east", "forgotten": true }));
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_jobs_as_json() {
    let Some(fleet) = Fleet::start().await else { return };
    let (ready, dead) = (fleet.ready.to_string(), fleet.dead.to_string());
    let cancelled = fleet.run(&["jobs", "cancel", &ready, "--json"]).json();
    assert_eq!((&cancelled["job"], &cancelled["state"]), (&json!(ready), &json!("cancelled")));
    let retried = fleet.run(&["jobs", "retry", &dead, "--json"]).json();
    assert_eq!((&retried["job"], &retried["state"]), (&json!(dead), &json!("ready")));
    assert_eq!(fleet.run(&["jobs", "cancel", SERVER, "--json"]).code(2).report()["error"]["class"], "usage");
}
