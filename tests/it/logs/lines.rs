//! `--log-format json`: whole runs, each line parsed strictly.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use snapferry_base::message_id::{IMAGE_STALE, JOB_DEAD, JOB_DONE};
use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule, When};
use snapferry_testkit::disks::{Disk, Kind};

use super::{documented_fields, mentions};
use crate::fleet::{Fleet, Worker};
use crate::support::{Bench, Bucket, Ended, Host, Running, SERVER, folder, run, snapferry, strict_log};

const JSON: [&str; 2] = ["--log-format", "json"];

/// Asserts that each line has the common keys, and no key that docs/logs.md does not describe.
#[track_caller]
fn check(lines: &[Value]) {
    let documented = documented_fields();
    for line in lines {
        for key in ["timestamp", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
        for key in line.as_object().unwrap().keys() {
            assert!(documented.contains(key), "{key} is not in docs/logs.md: {line}");
        }
    }
}

/// Parses the log of a command that has failed, and returns its last line.
#[track_caller]
fn last_error(ended: &Ended, code: i32) -> Value {
    let lines = strict_log(&ended.err);
    check(&lines);
    let last = lines.last().expect("a line").clone();
    assert_eq!(ended.code, Some(code), "{}", ended.err);
    assert_eq!((&last["level"], &last["exit_code"]), (&"ERROR".into(), &code.into()), "{last}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_replication_is_an_object_that_names_its_job() {
    let bench = Bench::start().await;
    let ended = bench.run(Host::Own, &[&JSON[..], &["--verbose", "--json"]].concat()).await;
    let report = ended.json();
    let job = report["job"].as_str().unwrap();
    let lines = strict_log(&ended.err);
    check(&lines);
    // Before the first line of the job, the program looks at the cloud and at its own server.
    let first = lines.iter().position(|line| line["job"] == job).expect("lines of the job");
    for line in &lines[first..] {
        assert_eq!((&line["job"], &line["server"]), (&job.into(), &SERVER.into()), "{line}");
    }
    assert!(lines[..first].iter().all(|line| !mentions(line, job)), "{}", ended.err);
    let steps = report["steps"].as_array().unwrap();
    for step in steps.iter().map(|step| step["step"].as_str().unwrap()) {
        let done = format!("{step} done: ");
        let is_done = |line: &&Value| line["message"].as_str().unwrap().starts_with(&done);
        let line = lines.iter().find(is_done).unwrap_or_else(|| panic!("no line for {step}"));
        assert_eq!((&line["region"], &line["step"]), (&"us-east".into(), &step.into()));
    }
    // A request within a step has the step, and its own id under a name of its own.
    let snapshot =
        lines.iter().find(|line| mentions(&line["request"], "POST /us-south/v1/snapshots")).unwrap();
    assert_eq!((&snapshot["step"], &snapshot["span"]["step"]), (&"snapshot".into(), &"snapshot".into()));
    assert_eq!((&snapshot["span"]["name"], &snapshot["spans"][0]["job"]), (&"step".into(), &job.into()));
    assert!(snapshot["request_id"].as_str().unwrap().starts_with("snapferry-") && snapshot["id"].is_null());
    let done: Vec<&Value> = lines.iter().filter(|line| line["message_id"] == JOB_DONE).collect();
    assert_eq!(done.len(), 1, "{done:?}");
    // The report on stderr is the one that --json prints, but for the time that has passed between them.
    let last = &lines.last().unwrap()["report"];
    assert_eq!((&last["image"], &last["steps"]), (&report["image"], &report["steps"]));
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_ends_in_an_object_with_its_step_and_what_to_do() {
    let bench = Bench::start().await;
    bench.sim.faults().add(RegionRule::on(Op::CreateVolume), RegionAction::answer(400, "bad_field"));
    let ended = bench.run(Host::Own, &JSON).await;
    let last = last_error(&ended, 5);
    assert_eq!(
        (&last["step"], &last["server"], &last["left_behind"]),
        (&"volume".into(), &SERVER.into(), &[(); 0].into())
    );
    let job = last["job"].as_str().unwrap();
    assert_eq!(last["next"], format!("snapferry replicate --resume {job}"));
    let lines = strict_log(&ended.err);
    assert!(lines.iter().any(|line| line["job"] == job && line["step"] == "snapshot"), "{}", ended.err);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_and_the_end_that_follows_are_objects() {
    let bench = Bench::start().await;
    let slow = RegionAction::Delay { milliseconds: 60_000 };
    bench.sim.faults().add(RegionRule::on(Op::GetSnapshot).when(When::First(1)), slow);
    let mut command = bench.command(Host::Own, &["replicate", SERVER, "--log-format", "json"]);
    command.stdin(Stdio::null());
    let mut running = Running::start(command);
    let begun = std::time::Instant::now();
    while bench.sim.request_count(Op::GetSnapshot) == 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "no snapshot was asked for");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    running.signal(Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || running.end()).await.unwrap();
    let last = last_error(&ended, 130);
    assert!(mentions(&last, "--resume"), "{last}");
    bench.sim.shutdown().await;
}

#[test]
fn every_line_of_a_conversion_is_an_object() {
    let bucket = Bucket::start();
    let folder = folder();
    let disk = folder.path().join("disk.raw");
    Disk { kind: Kind::Mixed, size: ByteCount(20 * MIB), seed: 3 }.write(&disk).unwrap();
    let ended = run(bucket.convert(&disk, &["--log-format", "json", "-v", "--verify", "--json"]));
    let report = ended.json();
    let lines = strict_log(&ended.err);
    check(&lines);
    let last = lines.last().unwrap();
    assert_eq!((&last["report"], &last["level"]), (&report, &"INFO".into()));
    assert!(mentions(last, "is complete"), "{last}");
    // Without --json the line is the same, and stdout is empty.
    let ended = run(bucket.convert(&disk, &["--log-format", "json", "--force"])).code(0);
    assert_eq!(ended.out, "");
    check(&strict_log(&ended.err));
    let ended = run(bucket.convert(&disk, &["--log-format", "json", "--force", "--quiet"])).code(0);
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("", ""));
}

#[test]
fn an_image_that_is_not_good_is_reported_as_an_object_even_if_quiet() {
    let folder = folder();
    let (disk, other) = (folder.path().join("disk.raw"), folder.path().join("other.raw"));
    Disk { kind: Kind::Text, size: ByteCount(MIB), seed: 3 }.write(&disk).unwrap();
    Disk { kind: Kind::Text, size: ByteCount(MIB), seed: 4 }.write(&other).unwrap();
    let image = folder.path().join("disk.qcow2");
    run(crate::support::convert_into_file(&disk, &image, &["--quiet"])).code(0);
    let mut command = snapferry(["verify", "--quiet", "--log-format", "json"]);
    command.arg(&image).arg("--against").arg(&other);
    let ended = run(command).code(7);
    let lines = strict_log(&ended.err);
    check(&lines);
    assert_eq!((&lines[0]["level"], &lines[0]["report"]["good"]), (&"ERROR".into(), &false.into()));
}

#[test]
fn an_error_before_the_work_is_an_object_with_its_hint() {
    let missing = snapferry(["convert", "--device", "/nonexistent", "--output", "/tmp/x.qcow2"]);
    let mut command = missing;
    command.args(JSON);
    let last = last_error(&run(command), 3);
    assert!(mentions(&last["message"], "/nonexistent"), "{last}");
}

#[test]
fn a_command_line_that_can_not_be_read_is_an_object() {
    for typed in [&["--log-format", "json", "convrt"][..], &["convert", "--log-format=json", "--devic", "x"]]
    {
        let ended = run(snapferry(typed));
        let last = last_error(&ended, 2);
        assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
        assert!(mentions(&last["hint"], "Usage: snapferry") || mentions(&last["hint"], "similar"), "{last}");
    }
    // After `--` it is no option, so the error is text.
    let ended = run(snapferry(["info", "--", "--log-format", "json"]));
    assert!(ended.err.starts_with("error: "), "{}", ended.err);
}

#[test]
fn a_configuration_that_can_not_be_read_is_an_object() {
    let ended = run(snapferry(["--config", "/nowhere.toml", "doctor", "--log-format", "json"]));
    let last = last_error(&ended, 2);
    assert!(mentions(&last["message"], "/nowhere.toml"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_worker_names_its_job_and_its_end_has_an_id() {
    let Some(fleet) = Fleet::start().await else { return };
    let log = fleet.bench.folder.path().join("worker.log");
    let mut command = fleet.command(Host::Own, &["--log-format", "json", "-v", "worker", "--metrics", "off"]);
    command.stderr(std::fs::File::create(&log).unwrap());
    let worker = Worker::start(command);
    let enqueue = async |server: &str| {
        let args = ["enqueue", server, "--wait", "--json"];
        let ended = fleet.run(&args).await;
        let first: Value = serde_json::from_str(ended.out.lines().next().unwrap()).unwrap();
        first["job"].as_str().unwrap().to_owned()
    };
    // There is no server of the second name, so that job is dead at once.
    let (done, dead) = (enqueue(SERVER).await, enqueue("web97").await);
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0));
    let lines = strict_log(&std::fs::read_to_string(&log).unwrap());
    check(&lines);
    for (job, server, end) in [(&done, SERVER, JOB_DONE), (&dead, "web97", JOB_DEAD)] {
        let named: Vec<&Value> = lines.iter().filter(|line| mentions(line, job)).collect();
        assert!(named.len() > 3, "{named:?}");
        for line in &named {
            assert_eq!((&line["job"], &line["server"]), (&job.as_str().into(), &server.into()), "{line}");
        }
        let ends = named.iter().filter(|line| line["message_id"] == end).count();
        assert_eq!(ends, 1, "{named:#?}");
    }
    // Each request between the first and the last line of a job belongs to a job.
    let of_jobs = |line: &Value| line["job"].is_string();
    let (first, last) = (lines.iter().position(of_jobs).unwrap(), lines.iter().rposition(of_jobs).unwrap());
    let strays: Vec<&Value> =
        lines[first..last].iter().filter(|line| line["request_id"].is_string() && !of_jobs(line)).collect();
    assert_eq!(strays, Vec::<&Value>::new());

    // An image that is too old has an id, too.
    let args = ["--log-format", "json", "status", "--check", "--max-age", "0s"];
    let ended = fleet.run(&args).await.code(8);
    let stale = strict_log(&ended.err);
    check(&stale);
    let of_server = stale.iter().find(|line| line["server"] == SERVER).unwrap();
    assert_eq!((&of_server["message_id"], &of_server["region"]), (&IMAGE_STALE.into(), &"us-east".into()));
    assert!(of_server["age_seconds"].is_u64(), "{of_server}");
}
