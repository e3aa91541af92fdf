//! Metrics of a worker: figures that move while a job runs, figures of the fleet that alerts need, and both
//! text formats, read by Prometheus' own programs.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use flate2::read::GzDecoder;
use serde_json::Value;
use snapferry_base::units::{ByteCount, GIB, MIB};
use snapferry_fleet::queue::Queue as _;
use snapferry_sim::{
    Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, ServerSeed,
};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::skip::has_oracle;

use super::{Fleet, Worker};
use crate::support::{HOME, Host, SERVER, folder};

/// Header of Prometheus 2.42, by which it asks for OpenMetrics.
const OPEN_METRICS: &str =
    "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

/// An address on which no process listens yet.
pub(super) fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Head and body of a response.
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// Sends a request once the server listens. In HTTP/1.0, so that the body comes in one piece.
async fn ask(address: &str, method: &str, path: &str, header: &str) -> Answer {
    let (address, header) = (address.to_owned(), header.to_owned());
    let request = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n\r\n");
    let asking = move || {
        let begun = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(&address) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{address}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.write_all(request.replace("\r\n\r\n\r\n", "\r\n\r\n").as_bytes()).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        let end = response.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(response[..end].to_vec()).unwrap().to_lowercase();
        Answer { head, body: response.split_off(end + 4) }
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

pub(super) async fn scrape(address: &str) -> String {
    ask(address, "GET", "/metrics", "").await.text()
}

/// Value of a series; None if it is not there.
pub(super) fn value(scraped: &str, series: &str) -> Option<f64> {
    let line = scraped.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

/// Asserts that a series is there, and returns its value.
#[track_caller]
pub(super) fn figure(scraped: &str, series: &str) -> f64 {
    value(scraped, series).unwrap_or_else(|| panic!("{series} is not in:\n{scraped}"))
}

/// A fleet whose worker serves metrics, with one job that is done, a schedule with a second server that has
/// no image, and a run of gc.
struct Worked {
    fleet: Fleet,
    address: String,
    _worker: Worker,
}

impl Worked {
    async fn start() -> Option<Self> {
        let fleet = Fleet::start().await?;
        let address = address();
        let worker = Worker::start(fleet.command(Host::Own, &["worker", "--metrics", &address]));
        // On the 29th of February: no tick during the test, but one that is certain to come.
        fleet.run(&["schedule", "add", "leap", "--cron", "0 0 29 2 *", SERVER, "db01"]).await.code(0);
        fleet.run(&["enqueue", SERVER, "--wait"]).await.code(0);
        fleet.run(&["gc"]).await.code(0);
        Some(Self { fleet, address, _worker: worker })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_each_stage_move_while_a_job_runs() {
    let Some(fleet) = Fleet::start().await else { return };
    let disk = fleet.bench.folder.path().join("big.raw");
    Disk { kind: Kind::Random, size: ByteCount(96 * MIB), seed: 7 }.write(&disk).unwrap();
    fleet.bench.sim.seed_server(ServerSeed::new(HOME, "big01", &disk)).await.unwrap();
    // Each part of 32 MiB takes seconds. The image's first part is sent last, after all others.
    let slowly = Action::Trickle { bytes_per_second: 8 << 20 };
    fleet.bench.sim.store().faults().add(Rule::on(Store::UploadPart), slowly);
    let address = address();
    let _worker = Worker::start(fleet.command(Host::Own, &["worker", "--metrics", &address]));
    let bytes = |scraped: &str, stage: &str| {
        figure(scraped, &format!("snapferry_stage_bytes_total{{stage=\"{stage}\"}}"))
    };
    let idle = scrape(&address).await;
    assert_eq!(
        (bytes(&idle, "read"), figure(&idle, "snapferry_running_transfers")),
        (0.0, 0.0),
        "before the job"
    );
    fleet.run(&["enqueue", "big01"]).await.code(0);
    let mut running = Vec::new();
    fleet
        .until("the end of the job", async || {
            let scraped = scrape(&address).await;
            let is_converting = figure(&scraped, "snapferry_held_jobs{step=\"convert\"}") > 0.0;
            if is_converting && figure(&scraped, "snapferry_running_transfers") > 0.0 {
                running.push(scraped.clone());
            }
            figure(&scraped, "snapferry_jobs{state=\"done\"}") > 0.0
        })
        .await;
    let first = running.iter().position(|scraped| {
        bytes(scraped, "read") > 0.0 && bytes(scraped, "upload") == 0.0 && bytes(scraped, "fetch") == 0.0
    });
    let second =
        running.iter().position(|scraped| bytes(scraped, "upload") > 0.0 && bytes(scraped, "fetch") == 0.0);
    let (first, second) = (first.expect("a scrape of what is read"), second.expect("a scrape of a part"));
    assert!(first < second);
    let waits = |scraped: &str, stage: &str| {
        figure(scraped, &format!("snapferry_stage_waits_total{{stage=\"{stage}\"}}"))
    };
    let waited = ["read", "compress", "upload"].map(|stage| waits(&running[second], stage));
    assert!(waited.iter().sum::<f64>() > 0.0, "the bottleneck is seen while the job runs: {waited:?}");
    let stages = ["read", "compress", "upload", "fetch", "decode"];
    for pair in running.windows(2) {
        for stage in stages {
            assert!(bytes(&pair[0], stage) <= bytes(&pair[1], stage), "{stage} went back");
        }
    }
    let done = scrape(&address).await;
    assert!(bytes(&done, "upload") > bytes(&running[second], "upload"), "the last part came later");
    assert!(bytes(&done, "upload") >= 96.0 * 1024.0 * 1024.0, "random bytes don't get shorter");
    assert_eq!(bytes(&done, "upload"), bytes(&done, "compress"));
    assert_eq!(bytes(&done, "fetch"), bytes(&done, "upload"), "the proof reads the whole image");
    assert_eq!(figure(&done, "snapferry_source_bytes_total"), ByteCount(GIB).0 as f64);
    assert_eq!(figure(&done, "snapferry_sent_bytes_total"), bytes(&done, "upload"));
    assert_eq!(figure(&done, "snapferry_copied_bytes_total"), 0.0);
    assert_eq!(figure(&done, "snapferry_full_runs_total{reason=\"none\"}"), 1.0);
    assert_eq!(figure(&done, "snapferry_running_transfers"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_has_the_time_of_its_snapshot_and_zero_before_the_first() {
    let Some(worked) = Worked::start().await else { return };
    let scraped = scrape(&worked.address).await;
    let success = worked.fleet.queue().await.last_successes().await.unwrap().remove(0);
    let result: Value = serde_json::from_str(&success.result).unwrap();
    let taken: jiff::Timestamp = result["snapshot"]["taken_at"].as_str().unwrap().parse().unwrap();
    let snapshot =
        figure(&scraped, "snapferry_snapshot_timestamp_seconds{server=\"web01\",region=\"us-east\"}");
    assert!((snapshot - taken.as_duration().as_secs_f64()).abs() < 0.01, "{snapshot} for {taken}");
    let arrived =
        figure(&scraped, "snapferry_last_success_timestamp_seconds{server=\"web01\",region=\"us-east\"}");
    assert!(snapshot < arrived, "the image is as old as its snapshot");
    let never = "snapferry_snapshot_timestamp_seconds{server=\"db01\",region=\"us-east\"}";
    assert_eq!(figure(&scraped, never), 0.0);
    assert!(!scraped.contains("snapferry_last_success_timestamp_seconds{server=\"db01\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_schedules_and_the_process_are_in_the_metrics() {
    let Some(worked) = Worked::start().await else { return };
    let scraped = scrape(&worked.address).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let next = figure(&scraped, "snapferry_schedule_next_tick_timestamp_seconds{schedule=\"leap\"}");
    assert!(next > now, "{next}");
    let seen = scraped
        .lines()
        .find(|line| line.starts_with("snapferry_worker_last_seen_timestamp_seconds{worker=\"ferry ("));
    let seen: f64 = seen.expect("the worker").rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!((now - seen).abs() < 60.0, "{seen} at {now}");
    let version = format!("snapferry_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(figure(&scraped, &version), 1.0);
    assert_eq!(figure(&scraped, "snapferry_queue_up"), 1.0);
    assert_eq!(figure(&scraped, "snapferry_conversion_slots"), 2.0);
    assert!(figure(&scraped, "process_cpu_seconds_total") > 0.0);
    assert!(figure(&scraped, "process_resident_memory_bytes") > 1e6);
    assert!(figure(&scraped, "process_open_fds") > 3.0);
    let started = figure(&scraped, "process_start_time_seconds");
    assert!(started <= now + 1.0 && started > now - 600.0, "{started} at {now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_job_marks_its_server_until_a_job_succeeds() {
    let Some(fleet) = Fleet::start().await else { return };
    let faults = fleet.bench.sim.faults();
    faults.add(RegionRule::on(Op::CreateSnapshot), RegionAction::answer(403, "not_authorized"));
    let address = address();
    let _worker = Worker::start(fleet.command(Host::Own, &["worker", "--metrics", &address]));
    let ended = fleet.run(&["enqueue", SERVER, "--wait"]).await.code(5);
    let series = "snapferry_server_failed{server=\"web01\",region=\"us-east\"}";
    assert_eq!(figure(&scrape(&address).await, series), 1.0);
    faults.clear();
    fleet.run(&["jobs", "retry", ended.out.split_whitespace().next().unwrap()]).await.code(0);
    fleet.until_state("done").await;
    assert_eq!(figure(&scrape(&address).await, series), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_queue_a_worker_still_has_its_own_figures() {
    let Some(mut worked) = Worked::start().await else { return };
    worked.fleet.redis.kill();
    let answer = ask(&worked.address, "GET", "/metrics", "").await;
    assert!(
        answer.head.starts_with("http/1.0 200") || answer.head.starts_with("http/1.1 200"),
        "{}",
        answer.head
    );
    let scraped = answer.text();
    assert_eq!(figure(&scraped, "snapferry_queue_up"), 0.0);
    assert_eq!(figure(&scraped, "snapferry_job_results_total{result=\"done\",class=\"\"}"), 1.0);
    assert_eq!(value(&scraped, "snapferry_jobs{state=\"done\"}"), None, "old figures are worse than none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_nothing_gets_prometheus_own_format() {
    let Some(worked) = Worked::start().await else { return };
    let answer = ask(&worked.address, "GET", "/metrics", "").await;
    assert!(
        answer.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        answer.head
    );
    assert!(answer.text().contains("# TYPE snapferry_job_results_total counter\n"));
    assert!(!answer.text().contains("# EOF"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_openmetrics_gets_it() {
    let Some(worked) = Worked::start().await else { return };
    let answer = ask(&worked.address, "GET", "/metrics", OPEN_METRICS).await;
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(kind), "{}", answer.head);
    assert!(answer.text().contains("# TYPE snapferry_job_results counter\n"));
    assert!(answer.text().ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_gzip_gets_fewer_bytes() {
    let Some(worked) = Worked::start().await else { return };
    let answer = ask(&worked.address, "GET", "/metrics", "Accept-Encoding: gzip").await;
    assert!(answer.head.contains("content-encoding: gzip"), "{}", answer.head);
    let mut text = String::new();
    GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(figure(&text, "snapferry_queue_up"), 1.0);
    assert!(answer.body.len() * 2 < text.len(), "{} of {}", answer.body.len(), text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_answered_without_a_body() {
    let Some(worked) = Worked::start().await else { return };
    let answer = ask(&worked.address, "HEAD", "/metrics", "").await;
    assert!(
        answer.head.contains(" 200 ok") && answer.head.contains("content-type: text/plain"),
        "{}",
        answer.head
    );
    assert_eq!(answer.text(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_no_fault_in_the_text_format() {
    if !has_oracle("promtool") {
        return;
    }
    let Some(worked) = Worked::start().await else { return };
    let scraped = scrape(&worked.address).await;
    let checked = tokio::task::spawn_blocking(move || {
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped());
        let mut child = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(scraped.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let checked = checked.await.unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

/// A Prometheus server that scrapes one address, killed when this is dropped.
struct Prometheus {
    _process: Worker,
    address: String,
}

impl Prometheus {
    /// Starts the server with the shipped alerts. In `data` it keeps its files.
    fn start(data: &Path, target: &str) -> Self {
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [monitoring("snapferry.rules.yml")],
            "scrape_configs": [{
                "job_name": "snapferry", "static_configs": [{ "targets": [target] }],
            }],
        });
        // JSON is YAML, too.
        let file = data.join("prometheus.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let address = address();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", data.join("tsdb").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stderr(std::fs::File::create(data.join("log")).unwrap());
        Self { _process: Worker::start(command), address }
    }

    async fn get(&self, path: &str) -> Value {
        serde_json::from_slice(&ask(&self.address, "GET", path, "").await.body).unwrap_or(Value::Null)
    }
}

fn monitoring(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_openmetrics_and_evaluates_the_alerts() {
    if !has_oracle("prometheus") {
        return;
    }
    let Some(worked) = Worked::start().await else { return };
    let data = folder();
    let prometheus = Prometheus::start(data.path(), &worked.address);
    let mut target = Value::Null;
    worked
        .fleet
        .until("a scrape", async || {
            let targets = prometheus.get("/api/v1/targets").await;
            target = targets.pointer("/data/activeTargets/0").cloned().unwrap_or_default();
            matches!(target["health"].as_str(), Some("up" | "down"))
        })
        .await;
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    let query = "/api/v1/query?query=snapferry_snapshot_timestamp_seconds%7Bserver=%22db01%22%7D";
    let mut found = Value::Null;
    worked
        .fleet
        .until("the server without an image", async || {
            found = prometheus.get(query).await.pointer("/data/result").cloned().unwrap_or_default();
            found.as_array().is_some_and(|series| !series.is_empty())
        })
        .await;
    assert_eq!(found[0]["value"][1], "0", "{found}");
    let mut groups = Value::Null;
    worked
        .fleet
        .until("an evaluation of each alert", async || {
            let answered = prometheus.get("/api/v1/rules").await;
            groups = answered.pointer("/data/groups").cloned().unwrap_or_default();
            rules(&groups).iter().all(|rule| rule["health"] != "unknown") && !rules(&groups).is_empty()
        })
        .await;
    assert!(rules(&groups).iter().all(|rule| rule["health"] == "ok"), "{groups}");
}

fn rules(groups: &Value) -> Vec<&Value> {
    let groups = groups.as_array().into_iter().flatten();
    groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect()
}

/// Names of metrics in a text, of this process and of the program.
pub fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("snapferry_") || word.starts_with("process_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_name_only_metrics_that_there_are() {
    let Some(worked) = Worked::start().await else { return };
    let scraped = scrape(&worked.address).await;
    let there = names(&scraped);
    for file in ["snapferry.rules.yml", "grafana.json", "tests.yml"] {
        let text = std::fs::read_to_string(monitoring(file)).unwrap();
        let fleet = names(&text).into_iter().filter(|name| !name.starts_with("snapferry_run_"));
        let unknown: Vec<&str> = fleet.filter(|name| !there.contains(name)).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
}
