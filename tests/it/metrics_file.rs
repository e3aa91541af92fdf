//! `--metrics-file`: the figures of a run for node_exporter's textfile collector, whatever its end.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::{Action, Operation, Rule};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::skip::has_oracle;

use crate::support::{
    Bench, Bucket, Host, Running, convert_into_file, folder, left_in, run, snapferry, wait_until,
};

/// Size of the test's disk.
const SIZE: u64 = 4 * MIB;

/// A folder with a disk, and a folder for metrics in it.
struct Desk {
    folder: tempfile::TempDir,
    disk: PathBuf,
    image: PathBuf,
    metrics: PathBuf,
    file: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let folder = folder();
        let disk = folder.path().join("web01.raw");
        Disk { kind: Kind::Random, size: ByteCount(SIZE), seed: 3 }.write(&disk).unwrap();
        let metrics = folder.path().join("textfile");
        std::fs::create_dir(&metrics).unwrap();
        let (image, file) = (folder.path().join("web01.qcow2"), metrics.join("web01.prom"));
        Self { folder, disk, image, metrics, file }
    }

    fn convert(&self, more: &[&str]) -> Command {
        let mut command = convert_into_file(&self.disk, &self.image, more);
        command.arg("--metrics-file").arg(&self.file);
        command
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    #[track_caller]
    fn figure(&self, name: &str, labels: &str) -> f64 {
        let (text, series) = (self.text(), format!("snapferry_run_{name}{{{labels}}} "));
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or_else(|| panic!("{series} is not in:\n{text}")).parse().unwrap()
    }
}

const CONVERT: &str = "command=\"convert\",run=\"web01\"";

#[test]
fn a_run_that_is_done_writes_its_figures() {
    let desk = Desk::new();
    run(desk.convert(&["--verify"])).code(0);
    assert_eq!(left_in(&desk.metrics), ["web01.prom"]);
    assert_eq!(desk.figure("exit_code", CONVERT), 0.0);
    assert!(desk.figure("success_timestamp_seconds", CONVERT) > 1.7e9);
    assert_eq!(desk.figure("timestamp_seconds", CONVERT), desk.figure("success_timestamp_seconds", CONVERT));
    assert!(desk.figure("duration_seconds", CONVERT) > 0.0);
    assert_eq!(desk.figure("source_bytes", CONVERT), ByteCount(SIZE).0 as f64);
    let length = std::fs::metadata(&desk.image).unwrap().len() as f64;
    assert_eq!(desk.figure("stage_bytes", &format!("{CONVERT},stage=\"upload\"")), length);
    assert_eq!(desk.figure("stage_bytes", &format!("{CONVERT},stage=\"fetch\"")), length, "of --verify");
}

#[test]
fn a_run_that_fails_writes_its_exit_code_and_keeps_the_last_success() {
    let desk = Desk::new();
    run(desk.convert(&[])).code(0);
    let success = desk.figure("success_timestamp_seconds", CONVERT);
    run(desk.convert(&[])).expect(4, &["exists"]);
    assert_eq!(desk.figure("exit_code", CONVERT), 4.0);
    assert_eq!(desk.figure("success_timestamp_seconds", CONVERT), success);
}

#[test]
fn a_folder_that_takes_no_file_is_told_before_the_work() {
    let desk = Desk::new();
    std::fs::remove_dir(&desk.metrics).unwrap();
    run(desk.convert(&[]))
        .expect(2, &["cannot write the metrics file", "web01.prom", "its folder takes no file"]);
    assert!(!desk.image.exists(), "nothing was converted");
}

#[test]
fn a_name_that_no_collector_reads_is_told_before_the_work() {
    let desk = Desk::new();
    let mut command = convert_into_file(&desk.disk, &desk.image, &["--metrics-file"]);
    command.arg(desk.metrics.join("web01.txt"));
    run(command).expect(2, &["has to end in .prom"]);
    assert!(!desk.image.exists(), "nothing was converted");
}

#[test]
fn a_dry_run_is_no_run() {
    let desk = Desk::new();
    run(desk.convert(&["--dry-run"])).expect(2, &["--dry-run", "cannot be used with", "--metrics-file"]);
    assert_eq!(left_in(&desk.metrics), Vec::<String>::new());
}

#[test]
fn a_file_that_can_t_be_written_at_the_end_does_not_make_a_good_image_a_failed_one() {
    let desk = Desk::new();
    let bucket = Bucket::start();
    let slowly = Action::Delay { milliseconds: 1500 };
    bucket.sim.faults().add(Rule::on(Operation::UploadPart), slowly);
    let mut command = bucket.convert(&desk.disk, &["--quiet", "--metrics-file"]);
    command.arg(&desk.file);
    let running = Running::start(command);
    wait_until("a part is on its way", || bucket.sim.stats().of(Operation::UploadPart).requests > 0);
    std::fs::remove_dir(&desk.metrics).unwrap();
    let ended = running.end();
    ended
        .expect(0, &["could not be written", "No such file or directory", "this run ended with exit code 0"]);
    assert!(bucket.object(&crate::support::key()).is_some(), "the image is there");
}

#[test]
fn an_interrupted_run_is_no_success() {
    let desk = Desk::new();
    let mut command = convert_into_file(&desk.disk, &desk.image, &["--limit", "100k", "--metrics-file"]);
    command.arg(&desk.file);
    let mut running = Running::start(command);
    wait_until("the conversion runs", || left_in(desk.folder.path()).len() > 2);
    running.signal(rustix::process::Signal::TERM);
    running.end().code(130);
    assert_eq!(desk.figure("exit_code", CONVERT), 130.0);
    assert_eq!(desk.figure("success_timestamp_seconds", CONVERT), 0.0);
}

#[test]
fn verify_writes_its_own_run() {
    let desk = Desk::new();
    run(desk.convert(&[])).code(0);
    let mut command = snapferry(["verify"]);
    command.arg(&desk.image).arg("--metrics-file").arg(&desk.file);
    run(command).code(0);
    assert_eq!(desk.figure("exit_code", "command=\"verify\",run=\"web01\""), 0.0);
}

#[test]
fn an_image_that_is_not_good_is_a_failed_run() {
    let desk = Desk::new();
    run(desk.convert(&[])).code(0);
    let mut command = snapferry(["verify", "--sha256", &"0".repeat(64)]);
    command.arg(&desk.image).arg("--metrics-file").arg(&desk.file);
    run(command).code(7);
    assert_eq!(desk.figure("exit_code", "command=\"verify\",run=\"web01\""), 7.0);
}

#[test]
fn restore_writes_its_own_run() {
    let desk = Desk::new();
    run(desk.convert(&[])).code(0);
    let mut command = snapferry(["restore"]);
    command.arg(&desk.image).arg("--output").arg(desk.folder.path().join("back.raw"));
    command.arg("--metrics-file").arg(&desk.file);
    run(command).code(0);
    let labels = "command=\"restore\",run=\"web01\"";
    assert_eq!(desk.figure("exit_code", labels), 0.0);
    assert_eq!(desk.figure("stage_bytes", &format!("{labels},stage=\"decode\"")), ByteCount(SIZE).0 as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicate_writes_its_own_run() {
    let (desk, bench) = (Desk::new(), Bench::start().await);
    bench.run(Host::Own, &["--metrics-file", desk.file.to_str().unwrap()]).await.code(0);
    let labels = "command=\"replicate\",run=\"web01\"";
    assert_eq!(desk.figure("exit_code", labels), 0.0);
    assert!(desk.figure("stage_bytes", &format!("{labels},stage=\"upload\"")) > 0.0);
    assert!(desk.figure("stage_bytes", &format!("{labels},stage=\"fetch\"")) > 0.0);
}

#[test]
fn promtool_finds_no_fault_in_the_file() {
    if !has_oracle("promtool") {
        return;
    }
    let desk = Desk::new();
    run(desk.convert(&[])).code(0);
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(desk.text().as_bytes()).unwrap();
    let checked = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && checked.stdout.is_empty() && said.is_empty(), "{said}");
}

#[test]
fn alerts_on_runs_name_only_metrics_that_there_are() {
    let desk = Desk::new();
    run(desk.convert(&[])).code(0);
    let text = desk.text();
    let there = crate::fleet::names(&text);
    for file in ["snapferry.rules.yml", "grafana.json", "tests.yml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(file);
        let shipped = std::fs::read_to_string(path).unwrap();
        let of_runs: Vec<&str> = crate::fleet::names(&shipped)
            .into_iter()
            .filter(|name| name.starts_with("snapferry_run_"))
            .collect();
        assert!(!of_runs.is_empty(), "{file}");
        assert!(of_runs.iter().all(|name| there.contains(name)), "{file}: {of_runs:?}");
    }
}
