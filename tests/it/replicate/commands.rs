//! The commands as a user runs them.

use rustix::process::Signal;
use serde_json::Value;
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule, ServerSeed};

use crate::signals::SIGNALS;
use crate::support::{AWAY, BUCKET, Bench, Ended, HOME, Host, SERVER};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_replicated_twice_and_the_second_image_becomes_the_latest() {
    let bench = Bench::start().await;
    let plan = bench.run(Host::Own, &["--dry-run"]).await.code(0);
    plan.says(&[
        "web01 in us-south, 1 GB",
        "10iops-tier, on ferry in us-south-1",
        "then web01-latest in us-east",
        "nothing of what there is now",
    ]);
    assert_eq!(bench.sim.history().len(), 0, "a dry run changes nothing");

    let first = bench.run(Host::Own, &["--json"]).await.json();
    assert_eq!(
        (&first["result"], &first["image"]["name"], &first["replaced"]),
        (&"done".into(), &"web01-latest".into(), &serde_json::Value::Null)
    );
    let steps: Vec<&str> =
        first["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(
        steps,
        [
            "resolve",
            "preflight",
            "snapshot",
            "stable",
            "volume",
            "attach",
            "convert",
            "release",
            "import",
            "available",
            "promote",
            "mark",
            "prune"
        ]
    );
    // One token for the plan and one for the job: the bucket gets the same token as the cloud.
    assert_eq!(bench.sim.request_count(Op::IdentityToken), 2);
    let second = bench.run(Host::Own, &["--json"]).await.json();
    assert_eq!(second["replaced"]["id"], first["image"]["id"]);
    assert_eq!(second["pruned"][0], format!("snapshot {}", first["snapshot"]["name"].as_str().unwrap()));
    // The image service has the same checksum of its file as the bytes that were read back.
    let latest = bench.latest().await.unwrap();
    assert_eq!(latest.sha256().as_deref(), second["object"]["sha256"].as_str());
    let demoted =
        bench.images().await.into_iter().find(|image| image.id.as_str() == first["image"]["id"]).unwrap();
    assert_eq!(Some(demoted.name.as_str()), second["replaced"]["name"].as_str());
    assert!(
        demoted.name.starts_with("web01-20") && demoted.name != first["snapshot"]["name"],
        "{}",
        demoted.name
    );

    // A third run prints text for a terminal, and logs each step with its job and its request.
    let third = bench.run(Host::Own, &[]).await.code(0);
    let third = third.says(&[
        "step{step=snapshot}",
        "server=web01",
        "POST /us-south/v1/snapshots",
        "request_id=snapferry-",
        "web01: image web01-latest",
    ]);
    assert_eq!(third.out, "", "talk goes to stderr");
    assert_eq!(bench.images().await.len(), 2, "the oldest is pruned");
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ways_to_replicate() {
    let bench = Bench::start().await;
    // Only up to the object; its snapshot is kept for good.
    let object = bench
        .run(Host::Own, &["--no-import", "--keep-snapshot", "--prefix", "nightly/", "--json"])
        .await
        .json();
    assert_eq!(object["image"], serde_json::Value::Null);
    let url = object["object"]["url"].as_str().unwrap();
    assert!(url.starts_with("s3://images/nightly/web01/web01-20"), "{url}");
    let kept = object["snapshot"]["name"].as_str().unwrap().to_owned();

    // From that snapshot, which stays as it is, under another name.
    let args = [
        "--from-snapshot",
        &kept,
        "--image-name",
        "golden",
        "--os",
        "debian-12-amd64",
        "--codec",
        "zstd",
        "--json",
    ];
    let image = bench.run(Host::Own, &args).await.json();
    assert_eq!(
        (&image["image"]["name"], &image["snapshot"]["name"]),
        (&"golden".into(), &kept.as_str().into())
    );
    assert_eq!(bench.made(Op::CreateSnapshot, 0), 1);

    // A third and a fourth run: the snapshot with `--keep-snapshot` is not pruned.
    for _ in 0..2 {
        bench.run(Host::Own, &[]).await.code(0);
    }
    let names: Vec<String> = bench.snapshots().await.into_iter().map(|snapshot| snapshot.name).collect();
    assert!(names.contains(&kept), "{names:?}");
    assert_eq!(bench.gc(Host::Own).await, Vec::<String>::new());
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_told_before_anything_is_made() {
    let bench = Bench::start().await;
    let disk = bench.folder.path().join("web01.raw");
    bench
        .sim
        .seed_server(ServerSeed { running: false, ..ServerSeed::new(HOME, "db01", &disk) })
        .await
        .unwrap();
    let mut sap = ServerSeed::new(HOME, "sap01", &disk);
    sap.operating_system = "red-9-amd64-sap-hana".to_owned();
    bench.sim.seed_server(sap).await.unwrap();
    let replicate =
        async |args: &[&str]| bench.finish(bench.command(Host::Own, &[&["replicate"], args].concat())).await;

    replicate(&["db01"])
        .await
        .code(2)
        .says(&["needs a running server, and db01 is stopped: start it, or give --from-snapshot"]);
    replicate(&["sap01"])
        .await
        .code(2)
        .says(&["may not be imported into us-east: name another operating system by --os"]);
    let several = replicate(&["db01", "--os", "plan9", "--bucket", "nowhere"]).await.code(2);
    several.says(&[
        "3 things are in the way",
        "knows no operating system plan9",
        "bucket \"nowhere\" does not exist",
        "is stopped",
    ]);
    replicate(&["web99"]).await.code(5).says(&["there is no server \"web99\" in us-south"]);
    replicate(&[SERVER, "--prefix", "A b/"]).await.code(2).says(&["the prefix \"A b/\" has characters"]);
    replicate(&[SERVER, "--keep-images", "0"]).await.code(2).says(&["the newest one is always kept"]);
    replicate(&[]).await.code(2).says(&["SERVER"]);
    replicate(&["--resume"]).await.code(0).says(&["nothing to resume"]);
    replicate(&["--resume", "01kb3v9w6rj0c2xq4m8s5t7yza"])
        .await
        .code(2)
        .says(&["there is no unfinished job 01kb3v9w6rj0c2xq4m8s5t7yza here"]);
    replicate(&["--abandon", "01kb3v9w6rj0c2xq4m8s5t7yza"]).await.code(2).says(&["snapferry gc"]);
    assert_eq!(bench.sim.history().len(), 0, "nothing was made");
    bench.sim.shutdown().await;
}

/// A user who resumes repeats no options, not even the bucket's location; a value that made the job fail may
/// be changed then.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_resumed_by_its_id_alone() {
    let bench = Bench::start_with(|mut config| {
        config.bucket_locations.insert(BUCKET.to_owned(), "us-geo".to_owned());
        config
    })
    .await;
    let endpoint = bench.sim.store().endpoint();
    let bare = |args: &[&str]| {
        let mut command = bench.command(Host::Own, args);
        for name in ["SNAPFERRY_ENDPOINT", "SNAPFERRY_RECOVERY_REGION", "SNAPFERRY_BUCKET"] {
            command.env_remove(name);
        }
        command
    };
    let begin = ["replicate", SERVER, "--to", AWAY, "--bucket", BUCKET, "--endpoint", &endpoint, "--json"];
    let failed = bench.finish(bare(&begin)).await.code(5);
    let report: Value = serde_json::from_str(failed.out.lines().last().unwrap()).unwrap();
    assert_eq!(report["step"], "import", "{report}");
    let job = report["job"].as_str().unwrap();
    assert_eq!(report["next"], format!("snapferry replicate --resume {job}"));
    // The same mistake fails at the same step again; with the right location, the job succeeds.
    bench
        .finish(bare(&["replicate", "--resume", job]))
        .await
        .code(5)
        .says(&["step import", "--bucket-location"]);
    bench
        .finish(bare(&["replicate", "--resume", job, "--bucket-location", "us-geo"]))
        .await
        .code(0)
        .says(&["web01-latest"]);
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    // The image of a finished job is in use; one wrong id must not delete it.
    bench
        .finish(bare(&["replicate", "--abandon", job]))
        .await
        .code(2)
        .says(&["is done", "snapferry images delete"]);
    assert!(bench.latest().await.is_some());
    bench.sim.shutdown().await;
}

/// Mistakes that would otherwise show only after the snapshot, or after the conversion.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_profile_another_servers_snapshot_and_closed_tags_are_told_of_first() {
    let bench = Bench::start().await;
    let profile = bench.run(Host::Own, &["--volume-profile", "10iops"]).await.code(2);
    profile.says(&["us-south has no volume profile \"10iops\" for storage of generation 1", "10iops-tier"]);
    bench.run(Host::Own, &["--volume-profile", "sdp"]).await.code(2).says(&["for storage of generation 1"]);
    let plan = ["plan", SERVER, "--volume-profile", "10iops"];
    bench.finish(bench.command(Host::Own, &plan)).await.code(2).says(&["no volume profile \"10iops\""]);
    let mut closed = bench.command(Host::Own, &["replicate", SERVER]);
    closed.env("SNAPFERRY_TAGGING_ENDPOINT", "http://127.0.0.1:1");
    bench.finish(closed).await.code(5).says(&["step preflight", "http://127.0.0.1:1 can't be reached"]);
    assert_eq!(bench.sim.history().len(), 0, "nothing was made");

    bench.run(Host::Own, &[]).await.code(0);
    bench.sim.seed_server(ServerSeed::new(HOME, "db01", bench.disk())).await.unwrap();
    let of_web01 = bench.snapshots().await.remove(0).name;
    let other = bench
        .finish(bench.command(Host::Own, &["replicate", "db01", "--from-snapshot", &of_web01]))
        .await
        .code(2);
    other.says(&["is of server web01, not of db01"]);
    assert_eq!(bench.images().await.len(), 1);
    bench.sim.shutdown().await;
}

/// One JSON object on stdout, with and without `--dry-run`.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_json_where_json_is_asked_for() {
    let bench = Bench::start().await;
    bench.sim.seed_images(AWAY, 1);
    for args in [
        &["snapshot", "create", SERVER][..],
        &["images", "delete", "image-0000", "--region", AWAY],
        &["images", "rename", "image-0000", "other", "--region", AWAY],
        &["images", "tag", "image-0000", "nightly", "--region", AWAY],
        &["images", "export", "image-0000", "--bucket", BUCKET, "--region", AWAY],
    ] {
        let report =
            bench.finish(bench.command(Host::Own, &[args, &["--dry-run", "--json"]].concat())).await.json();
        assert!(report["dry_run"] == true && report["would"].is_string(), "{report}");
    }
    assert_eq!(bench.sim.history().len(), 0, "nothing was made");
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_tells_minutes_and_what_limits_them() {
    let bench = Bench::start().await;
    let plan = bench.finish(bench.command(Host::Own, &["plan", SERVER])).await.code(0);
    plan.says(&[
        "1 GB, read from a volume of profile 10iops-tier (6291 Mbit/s)",
        "on ferry: 2 cores",
        "convert",
        "limited by",
    ]);
    let plan = bench
        .finish(bench.command(Host::Own, &["plan", SERVER, "--volume-profile", "general-purpose", "--json"]))
        .await
        .json();
    assert_eq!((&plan["on"], &plan["forecast"]["volume_bandwidth"]), (&"ferry".into(), &393.into()));
    let shared =
        bench.finish(bench.command(Host::Own, &["plan", SERVER, "--concurrency", "2"])).await.code(0);
    shared.says(&["shared by 2 conversions"]);
    bench.sim.shutdown().await;
}

/// Starts a job whose volume was made, but whose response never arrives.
async fn over_its_volume(bench: &Bench) -> std::process::Child {
    bench.sim.faults().add(RegionRule::on(Op::CreateVolume), RegionAction::ApplyThenHang);
    let child = bench.command(Host::Own, &["replicate", SERVER]).spawn().unwrap();
    while bench.made(Op::CreateVolume, 0) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    child
}

/// Two machines without a common queue: each reports the other's job, and the newer job's image becomes the
/// latest.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_begun_elsewhere_is_told_of() {
    let bench = Bench::start().await;
    let mut child = over_its_volume(&bench).await;
    child.kill().unwrap();
    child.wait().unwrap();
    bench.sim.faults().clear();
    // The job may be under way there. Without a holder tag, as an old version leaves it, the job is reported.
    bench.run(Host::Other, &[]).await.code(2).says(&["is under way on ferry since", "--resume"]);
    let begun = bench.snapshots().await.remove(0);
    bench
        .client(HOME)
        .retag_snapshot(&begun.id, snapferry_fleet::replicate::snapshot_tags::Holder::is_tag, &[])
        .await
        .unwrap();
    let newer = bench.run(Host::Other, &[]).await.code(0);
    newer.says(&[
        "was begun elsewhere",
        "and is not done",
        "`snapferry replicate web01 --resume` would go on with it",
    ]);
    let latest = bench.latest().await.unwrap().id;
    bench.resume(Host::Own).await.code(0).says(&["web01-latest is of a newer job already"]);
    assert_eq!(bench.latest().await.unwrap().id, latest);
    assert_eq!((bench.leaks().await, bench.images().await.len()), (Vec::new(), 2));
    bench.sim.shutdown().await;
}

/// "Nothing found" and "could not be listed" are different results.
#[tokio::test(flavor = "multi_thread")]
async fn gc_tells_what_it_has_not_seen() {
    let bench = Bench::start().await;
    let gc = async |args: &[&str]| bench.finish(bench.command(Host::Own, &[&["gc"], args].concat())).await;
    gc(&[])
        .await
        .code(0)
        .says(&["no leftovers among the uploads, objects, images, volumes, clones, snapshots of us-south, us-east, bucket images"]);
    let mut narrow = bench.command(Host::Own, &["gc"]);
    narrow.env_remove("SNAPFERRY_BUCKET").env_remove("SNAPFERRY_RECOVERY_REGION");
    let narrow = bench.finish(narrow).await.code(0);
    narrow.says(&[
        "no leftovers among the volumes, clones, snapshots of us-south",
        "not looked at: uploads, objects, images",
    ]);
    bench.sim.faults().add(RegionRule::on(Op::ListVolumes), RegionAction::answer(403, "not_authorized"));
    gc(&[]).await.code(5).says(&[
        "volumes COULD NOT BE LISTED",
        "not_authorized",
        "no leftovers among the uploads, objects, images, clones, snapshots",
    ]);
    bench.sim.faults().clear();

    // Leftovers of a killed job are shown, stay while they are young, and are removed later.
    let mut child = over_its_volume(&bench).await;
    gc(&["--min-age", "0s"]).await.code(0).says(&["stays: its job is being worked on", "no leftovers"]);
    child.kill().unwrap();
    child.wait().unwrap();
    bench.sim.faults().clear();
    gc(&[]).await.code(0).says(&["stays: younger than 1d", "no leftovers"]);
    gc(&["--min-age", "0s"]).await.code(0).says(&["2 leftovers", "nothing was removed: --apply does it"]);
    assert_eq!(bench.leaks().await.len(), 2);
    gc(&["--min-age", "0s", "--apply"]).await.code(0).says(&["volume", "snapshot", "removed"]);
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    // The job can still be resumed, from its beginning.
    bench.resume(Host::Own).await.code(0).says(&["web01: image web01-latest"]);
    assert!(BUCKET == "images" && bench.latest().await.is_some());
    bench.sim.shutdown().await;
}

/// Every stop signal ends a job cleanly, and the job prints the command to continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_told_to_stop_cleans_up_and_tells_how_to_go_on() {
    for signal in SIGNALS {
        stopped_over_its_volume(signal).await;
    }
}

async fn stopped_over_its_volume(signal: Signal) {
    let bench = Bench::start().await;
    let slow = RegionAction::delay(std::time::Duration::from_millis(500));
    bench.sim.faults().add(RegionRule::on(Op::GetAttachment), slow);
    let mut command = bench.command(Host::Own, &["replicate", SERVER, "--json"]);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while bench.made(Op::CreateAttachment, 0) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let ended = Ended::from(output).code(130);
    let report = ended.report();
    assert_eq!(
        (&report["result"], &report["step"], &report["left"]),
        (&"failed".into(), &"attach".into(), &serde_json::json!([]))
    );
    ended.says(&[
        "stopping: detaching and removing the volume",
        "snapferry replicate --resume 01",
        report["next"].as_str().unwrap(),
    ]);
    let leaks = bench.leaks().await;
    assert!(
        leaks.len() == 1 && leaks[0].starts_with("snapshot"),
        "only the snapshot stays, for whoever resumes: {leaks:?}"
    );
    bench.sim.faults().clear();
    bench.resume(Host::Own).await.code(0);
    assert_eq!(bench.made(Op::CreateSnapshot, 0), 1);
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}
