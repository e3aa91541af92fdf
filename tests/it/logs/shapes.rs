//! `--json` of each command beside docs/json.md: no key is missing there, and each key there is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::store::{ObjectStore as _, Overwrite, UploadPlan};
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule, When};
use snapferry_testkit::disks::{Disk, Kind};

use crate::fleet::Fleet;
use crate::support::{
    AWAY, BUCKET, Bench, Bucket, Ended, HOME, Host, KEY, Redis, SAFE, SERVER, folder, key, program, run,
    snapferry, strict_json,
};

/// Shapes that each test below covers.
const OF_IMAGES: [&str; 16] = [
    "error",
    "convert",
    "convert --dry-run",
    "verify",
    "restore",
    "restore --dry-run",
    "info",
    "check",
    "map",
    "compare",
    "measure",
    "uploads list",
    "uploads abort",
    "uploads abort --dry-run",
    "config show",
    "version",
];
const OF_REPLICATION: [&str; 8] = [
    "replicate",
    "replicate (failed)",
    "replicate --resume --dry-run",
    "replicate --abandon",
    "replicate --abandon --dry-run",
    "replicate --dry-run",
    "plan",
    "gc",
];
const OF_THE_CLOUD: [&str; 13] = [
    "boot-volume",
    "snapshot create",
    "snapshot list",
    "snapshot copy",
    "snapshot delete",
    "images list",
    "images rename",
    "images delete",
    "images tag",
    "images export",
    "provision",
    "dry run",
    "doctor",
];
const OF_THE_FLEET: [&str; 20] = [
    "enqueue",
    "enqueue --dry-run",
    "enqueue --import-legacy",
    "jobs list",
    "jobs show",
    "jobs logs",
    "jobs cancel",
    "jobs cancel --dry-run",
    "jobs retry",
    "jobs retry --dry-run",
    "jobs purge",
    "jobs purge --dry-run",
    "status",
    "status --forget",
    "status --forget --dry-run",
    "schedule list",
    "schedule add",
    "schedule add --dry-run",
    "schedule rm",
    "schedule rm --dry-run",
];

/// A documented key.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// True if the key may be left out.
    is_optional: bool,
    /// True if the page does not describe what the value holds.
    is_any: bool,
}

type Shape = BTreeMap<String, Row>;

/// Texts in backticks.
fn code_spans(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// Reads the shapes of docs/json.md: a heading of the third level names their commands, and each row of the
/// table below has its keys in the first column and their type in the second.
fn documented() -> BTreeMap<String, Shape> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let (mut shapes, mut names) = (BTreeMap::<String, Shape>::new(), Vec::new());
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            names = code_spans(heading).collect();
            for name in &names {
                assert!(shapes.insert(name.clone(), Shape::new()).is_none(), "{name} stands twice");
            }
        } else if line.starts_with("#") {
            names.clear();
        } else if let Some((keys, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once(" | ")) {
            let kind = rest.split(" | ").next().unwrap();
            let row = Row { is_optional: kind.contains("absent"), is_any: kind.starts_with("any") };
            for name in &names {
                let shape = shapes.get_mut(name).unwrap();
                for key in code_spans(&format!("`{keys}")) {
                    assert!(shape.insert(key.clone(), row).is_none(), "{name}: {key} stands twice");
                }
            }
        }
    }
    shapes
}

/// Comparison of outputs with the page.
struct Shapes {
    documented: BTreeMap<String, Shape>,
    seen: BTreeMap<String, BTreeSet<String>>,
    faults: Vec<String>,
}

impl Shapes {
    fn new() -> Self {
        Self { documented: documented(), seen: BTreeMap::new(), faults: Vec::new() }
    }

    /// Compares one output, or one line of it.
    #[track_caller]
    fn check(&mut self, name: &str, text: &str) {
        let value = strict_json(text).unwrap_or_else(|err| panic!("{name}: {err}: {text}"));
        let shape = self.documented.get(name).unwrap_or_else(|| panic!("docs/json.md has no {name}"));
        let (mut seen, mut faults) = (BTreeSet::new(), Vec::new());
        compare(shape, "", &value, &mut seen, &mut faults);
        self.seen.entry(name.to_owned()).or_default().extend(seen);
        self.faults.extend(faults.into_iter().map(|fault| format!("{name}: {fault}: {value}")));
    }

    #[track_caller]
    fn check_lines(&mut self, name: &str, ended: &Ended) {
        assert!(!ended.out.is_empty(), "{}", ended.err);
        for line in ended.out.lines() {
            self.check(name, line);
        }
    }

    /// Asserts that there was no difference, and that every key that is always there was seen.
    #[track_caller]
    fn finish(mut self, names: &[&str]) {
        for name in names {
            let seen = self.seen.remove(*name).unwrap_or_else(|| panic!("{name} was not printed"));
            let unseen =
                self.documented[*name].iter().filter(|(key, row)| !row.is_optional && !seen.contains(*key));
            self.faults.extend(unseen.map(|(key, _)| format!("{name}: {key} was never printed")));
        }
        assert!(self.seen.is_empty(), "not in the list of this test: {:?}", self.seen.keys());
        assert!(self.faults.is_empty(), "{:#?}", self.faults);
    }
}

fn compare(shape: &Shape, at: &str, value: &Value, seen: &mut BTreeSet<String>, faults: &mut Vec<String>) {
    let inside = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match value {
        Value::Array(entries) => {
            let at = if at.is_empty() { String::new() } else { format!("{at}[]") };
            entries.iter().for_each(|entry| compare(shape, &at, entry, seen, faults));
        }
        Value::Object(entries) => {
            for (key, value) in entries {
                let path = inside(key);
                match shape.get(&path) {
                    None => faults.push(format!("{path} is not in docs/json.md")),
                    Some(row) => {
                        seen.insert(path.clone());
                        if !row.is_any {
                            compare(shape, &path, value, seen, faults);
                        }
                    }
                }
            }
            for (path, _) in shape.iter().filter(|(_, row)| !row.is_optional) {
                let key = path.strip_prefix(at).map(|rest| rest.trim_start_matches('.'));
                let is_missing =
                    |key: &&str| inside(key) == *path && !key.contains('.') && !entries.contains_key(*key);
                if let Some(key) = key.filter(is_missing) {
                    faults.push(format!("{} is documented, and missing", inside(key)));
                }
            }
        }
        _ => {}
    }
}

#[test]
fn differences_in_either_direction_are_found() {
    let row = |is_optional| Row { is_optional, is_any: false };
    let keys = [("a", false), ("a.b", false), ("c", true), ("list", false), ("list[].x", false)];
    let shape: Shape = keys.iter().map(|&(key, is_optional)| (key.to_owned(), row(is_optional))).collect();
    let faults = |text: &str| {
        let (mut seen, mut faults) = (BTreeSet::new(), Vec::new());
        compare(&shape, "", &serde_json::from_str(text).unwrap(), &mut seen, &mut faults);
        faults
    };
    assert_eq!(faults(r#"{"a":{"b":1},"list":[{"x":1}]}"#), Vec::<String>::new());
    assert_eq!(faults(r#"[{"a":null,"c":2,"list":[]}]"#), Vec::<String>::new());
    assert_eq!(faults(r#"{"a":{},"list":[]}"#), ["a.b is documented, and missing"]);
    assert_eq!(faults(r#"{"a":null,"list":[{"x":1},{}]}"#), ["list[].x is documented, and missing"]);
    assert_eq!(faults(r#"{"a":null,"list":[],"d":1}"#), ["d is not in docs/json.md"]);
    assert_eq!(faults(r#"{"list":[]}"#), ["a is documented, and missing"]);
}

/// Commands below `path` that have `--json`, found by each one's help.
fn with_json(path: &[String], found: &mut Vec<String>) {
    let output = Command::new(program()).args(path).arg("--help").env_clear().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let called = format!("snapferry {}", path.join(" "));
    if !output.status.success()
        || !text.lines().any(|line| line.starts_with(&format!("Usage: {}", called.trim())))
    {
        return;
    }
    if text.contains("--json") && !path.is_empty() {
        found.push(path.join(" "));
    }
    for line in text.lines().filter(|line| line.starts_with("  ")) {
        let word = line.split_whitespace().next().unwrap_or_default();
        let is_name = word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
        if is_name && !word.is_empty() && !["help", "qemu-img"].contains(&word) && path.len() < 2 {
            with_json(&[path, &[word.to_owned()]].concat(), found);
        }
    }
}

#[test]
fn every_command_with_json_is_documented_and_every_shape_is_compared() {
    let shapes = documented();
    let covered: BTreeSet<&str> =
        [&OF_IMAGES[..], &OF_REPLICATION, &OF_THE_CLOUD, &OF_THE_FLEET].concat().into_iter().collect();
    let documented: BTreeSet<&str> = shapes.keys().map(String::as_str).collect();
    assert_eq!(documented, covered, "docs/json.md, and the lists of shapes here");
    let mut found = Vec::new();
    with_json(&[], &mut found);
    assert!(found.len() > 20, "{found:?}");
    let missing: Vec<&String> = found.iter().filter(|name| !documented.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "without a section in docs/json.md: {missing:?}");
}

#[test]
fn what_commands_on_images_print() {
    let mut shapes = Shapes::new();
    let (bucket, folder) = (Bucket::start(), folder());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (disk, other, image) = (path("disk.raw"), path("other.raw"), path("disk.qcow2"));
    Disk { kind: Kind::Mixed, size: ByteCount(8 * MIB), seed: 3 }.write(disk.as_ref()).unwrap();
    Disk { kind: Kind::Mixed, size: ByteCount(8 * MIB), seed: 4 }.write(other.as_ref()).unwrap();
    let print = |args: &[&str], code: i32| run(snapferry(args)).code(code).out;

    shapes.check("convert", &run(bucket.convert(disk.as_ref(), &["--verify", "--json"])).code(0).out);
    shapes.check(
        "convert --dry-run",
        &run(bucket.convert(disk.as_ref(), &["--dry-run", "--json"])).code(0).out,
    );
    shapes.check("convert", &print(&["convert", "--device", &disk, "--output", &image, "--json"], 0));
    shapes.check("verify", &print(&["verify", &image, "--against", &disk, "--json"], 0));
    shapes.check("verify", &print(&["verify", &image, "--against", &other, "--json"], 7));
    let back = path("back.raw");
    shapes.check(
        "restore --dry-run",
        &print(&["restore", &image, "--output", &back, "--dry-run", "--json"], 0),
    );
    shapes.check("restore", &print(&["restore", &image, "--output", &back, "--json"], 0));
    for (name, args, code) in [
        ("info", &["info", &image][..], 0),
        ("info", &["info", &disk], 0),
        ("check", &["check", &image, "--data"], 0),
        ("map", &["map", &image], 0),
        ("compare", &["compare", &image, &disk], 0),
        ("compare", &["compare", &image, &other], 7),
        ("measure", &["measure", &disk, "--sample", "4"], 0),
        ("measure", &["measure", &image], 0),
        ("config show", &["config", "show"], 0),
        ("version", &["version"], 0),
        // A file that is missing, and a command line that can't be read.
        ("error", &["info", "/nonexistent/disk.qcow2"], 3),
        ("error", &["info", &disk, "--jsn"], 2),
    ] {
        shapes.check(name, &print(&[args, &["--json"]].concat(), code));
    }
    let plan = UploadPlan { part_size: ByteCount(8 * MIB), overwrite: Overwrite::Replace };
    bucket.runtime.block_on(bucket.client().create_upload(&key(), &plan)).unwrap();
    let listed = run(bucket.command(["uploads", "list", "--json"])).code(0);
    assert!(listed.out.contains(KEY), "{}", listed.out);
    shapes.check("uploads list", &listed.out);
    let abort = |more: &[&str]| {
        run(bucket.command([&["uploads", "abort", "--key", KEY, "--json"], more].concat())).code(0)
    };
    shapes.check_lines("uploads abort --dry-run", &abort(&["--dry-run"]));
    shapes.check_lines("uploads abort", &abort(&[]));
    shapes.finish(&OF_IMAGES);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replication_prints() {
    let mut shapes = Shapes::new();
    let bench = Bench::with_history().await;
    let rehearse = async |args: &[&str]| {
        let args = [&["replicate"], args, &["--dry-run", "--json"]].concat();
        bench.finish(bench.command(Host::Own, &args)).await.code(0)
    };
    // There is no unfinished job yet.
    shapes.check_lines("replicate --resume --dry-run", &rehearse(&["--resume"]).await);
    shapes.check_lines("replicate --dry-run", &bench.run(Host::Own, &["--dry-run", "--json"]).await.code(0));
    shapes.check_lines("replicate", &bench.run(Host::Own, &["--json"]).await.code(0));
    let second_night = Bench::with_large_night().await;
    let copied = second_night.run(Host::Own, &["--json"]).await.code(0);
    assert!(copied.report()["object"]["base"].is_object(), "{}", copied.out);
    shapes.check_lines("replicate", &copied);
    second_night.sim.shutdown().await;
    // One job that fails and is given up, and one that fails and leaves its snapshot.
    let faults = bench.sim.faults();
    let refused = || RegionAction::answer(400, "bad_field");
    faults.add(RegionRule::on(Op::CreateVolume).when(When::First(2)), refused());
    let failed = bench.run(Host::Own, &["--json"]).await.code(5);
    shapes.check_lines("replicate (failed)", &failed);
    let job = failed.report()["job"].as_str().unwrap().to_owned();
    let resumed = rehearse(&["--resume"]).await;
    assert_eq!(resumed.report()["job"].as_str(), Some(job.as_str()));
    shapes.check_lines("replicate --resume --dry-run", &resumed);
    shapes.check_lines("replicate --abandon --dry-run", &rehearse(&["--abandon", &job]).await);
    let abandon = bench.command(Host::Own, &["replicate", "--abandon", &job, "--json"]);
    shapes.check_lines("replicate --abandon", &bench.finish(abandon).await.code(0));
    bench.run(Host::Own, &["--json"]).await.code(5);
    std::fs::remove_dir_all(bench.state_folder(Host::Own)).unwrap();
    let gc = bench.command(Host::Own, &["gc", "--apply", "--min-age", "0s", "--json"]);
    shapes.check_lines("gc", &bench.finish(gc).await.code(0));
    let plan = bench.command(Host::Own, &["plan", SERVER, "--on", SERVER, "--json"]);
    shapes.check_lines("plan", &bench.finish(plan).await.code(0));
    shapes.finish(&OF_REPLICATION);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commands_on_the_cloud_print() {
    let mut shapes = Shapes::new();
    let bench = Bench::with_history().await;
    let print = async |args: &[&str]| {
        bench.finish(bench.command(Host::Own, &[args, &["--json"]].concat())).await.code(0)
    };
    let away = async |args: &[&str]| print(&[&["images"], args, &["--region", AWAY]].concat()).await;
    shapes.check_lines("boot-volume", &print(&["boot-volume", SERVER]).await);
    shapes.check_lines("dry run", &print(&["snapshot", "create", SERVER, "--dry-run"]).await);
    shapes.check_lines("snapshot create", &print(&["snapshot", "create", SERVER, "--name", "mine"]).await);
    shapes.check_lines("snapshot list", &print(&["snapshot", "list"]).await);
    shapes.check_lines("snapshot copy", &print(&["snapshot", "copy", "mine", "--to", AWAY]).await);
    shapes.check_lines("snapshot delete", &print(&["snapshot", "delete", "mine"]).await);
    shapes.check_lines("images list", &away(&["list"]).await);
    shapes.check_lines("images tag", &away(&["tag", "web01-latest", "nightly"]).await);
    let exported = away(&["export", "web01-latest", "--bucket", BUCKET]).await;
    shapes.check_lines("images export", &exported);
    let exported = exported.json();
    assert_eq!(
        (&exported["export_job"]["name"], &exported["export_job"]["id"]),
        (&exported["job"], &exported["id"])
    );
    shapes.check_lines("images rename", &away(&["rename", "web01-latest", "golden"]).await);
    let server = ["provision", "web02", "--image", "golden", "--subnet", "main-1", "--key", "admin"];
    let place = ["--profile", "bx2-2x8", "--region", AWAY, "--no-wait"];
    shapes.check_lines("provision", &print(&[&server[..], &place].concat()).await);
    shapes.check_lines("images delete", &away(&["delete", "golden"]).await);
    let doctor = bench.finish(bench.command(Host::Own, &["doctor", "--json"])).await;
    shapes.check_lines("doctor", &doctor);
    shapes.finish(&OF_THE_CLOUD);
    bench.sim.shutdown().await;
}

/// Compares what is printed for a plain list with a name that makes a job, and one that makes none.
async fn compare_imports(shapes: &mut Shapes) {
    let redis = Redis::start(&SAFE).await.unwrap();
    redis.command(&["RPUSH", "queue", "app01", "Web_1"]).await;
    let import = |more: &[&str]| {
        let mut command = snapferry([&["enqueue", "--import-legacy", "--json"], more].concat());
        command.env("SNAPFERRY_REDIS", redis.url()).env("SNAPFERRY_VPC_REGION", HOME);
        command.env("SNAPFERRY_RECOVERY_REGION", AWAY).env("SNAPFERRY_BUCKET", BUCKET);
        run(command)
    };
    let rehearsed = import(&["--dry-run"]).code(0);
    assert_eq!(rehearsed.out.lines().count(), 2, "{}", rehearsed.out);
    shapes.check_lines("enqueue --dry-run", &rehearsed);
    shapes.check_lines("enqueue --import-legacy", &import(&[]).code(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commands_on_the_fleet_print() {
    let Some(fleet) = Fleet::start().await else { return };
    let mut shapes = Shapes::new();
    let worker = fleet.worker(Host::Own);
    shapes.check_lines("enqueue", &fleet.run(&["enqueue", SERVER, "--wait", "--json"]).await.code(0));
    // There is no such server, so its job is dead; the third job waits.
    shapes.check_lines("enqueue", &fleet.run(&["enqueue", "web97", "--wait", "--json"]).await.code(5));
    shapes.check_lines("enqueue", &fleet.run(&["enqueue", "db01", "--in", "1h", "--json"]).await.code(0));
    // One server whose last job is done, and one whose job waits.
    let rehearsed = fleet.run(&["enqueue", SERVER, "db01", "--dry-run", "--json"]).await.code(0);
    shapes.check_lines("enqueue --dry-run", &rehearsed);
    compare_imports(&mut shapes).await;
    let both = async |shapes: &mut Shapes, name: &str, args: &[&str]| {
        let rehearsed = fleet.run(&[args, &["--dry-run", "--json"]].concat()).await.code(0);
        shapes.check_lines(&format!("{name} --dry-run"), &rehearsed);
        shapes.check_lines(name, &fleet.run(&[args, &["--json"]].concat()).await.code(0));
    };
    let add = ["schedule", "add", "nightly", "--cron", "30 2 * * *", SERVER];
    both(&mut shapes, "schedule add", &add).await;
    let listed = fleet.run(&["jobs", "list", "--json"]).await.code(0);
    shapes.check_lines("jobs list", &listed);
    let jobs = listed.report();
    let in_state = |state: &str| jobs.as_array().unwrap().iter().find(|job| job["state"] == state).unwrap();
    let done = in_state("done");
    // The result is what `replicate` prints.
    shapes.check("replicate", &done["result"].to_string());
    shapes.seen.remove("replicate");
    let id = done["job"].as_str().unwrap();
    let shown = fleet.run(&["jobs", "show", id, "--json"]).await.code(0);
    shapes.check_lines("jobs show", &shown);
    assert_eq!((&shown.report()["spec"]["job"], &shown.report()["spec"]["id"]), (&id.into(), &id.into()));
    shapes.check_lines("jobs logs", &fleet.run(&["jobs", "logs", "--json"]).await.code(0));
    shapes.check_lines("status", &fleet.run(&["status", "--json"]).await.code(0));
    let schedules = fleet.run(&["schedule", "list", "--json"]).await.code(0);
    shapes.check_lines("schedule list", &schedules);
    assert_eq!(schedules.report()[0]["last"], Value::Null, "it was added, and never due");
    // Without a worker, no job changes between two commands.
    drop(worker);
    let id_in = |state: &str| in_state(state)["job"].as_str().unwrap();
    let (waiting, dead) = (id_in("delayed"), id_in("dead"));
    both(&mut shapes, "jobs cancel", &["jobs", "cancel", waiting, dead]).await;
    both(&mut shapes, "jobs retry", &["jobs", "retry", waiting]).await;
    both(&mut shapes, "status --forget", &["status", "--forget", "web97"]).await;
    both(&mut shapes, "jobs purge", &["jobs", "purge", "--older-than", "0s"]).await;
    both(&mut shapes, "schedule rm", &["schedule", "rm", "nightly"]).await;
    shapes.finish(&OF_THE_FLEET);
}
