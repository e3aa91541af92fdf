//! The audit trail beside the histories of the simulated cloud and its store.

use std::collections::BTreeMap;

use serde_json::Value;
use snapferry_base::audit::CHANGES;
use snapferry_sim::{LoggedRequest, Operation, RegionAction, RegionOperation as Op, RegionRule, When};

use crate::support::{BUCKET, Bench, Bucket, Ended, Host, SERVER, run, strict_log};

/// Requests that change objects. The parts that are sent become an object only by the completion of their
/// upload, so they have no lines of their own. Parts that the store copies have.
const STORE_CHANGES: [Operation; 6] = [
    Operation::PutObject,
    Operation::DeleteObject,
    Operation::CreateMultipartUpload,
    Operation::CompleteMultipartUpload,
    Operation::AbortMultipartUpload,
    Operation::UploadPartCopy,
];

fn trail(ended: &Ended) -> Vec<Value> {
    strict_log(&ended.err).into_iter().filter(|line| line["target"] == CHANGES).collect()
}

/// A line of the trail: operation and object, and the id that the store has given the request.
fn as_told(line: &Value) -> String {
    format!("{} {}", line["message"].as_str().unwrap(), line["request_id"].as_str().unwrap())
}

/// A store's request as its line in the trail has it: operation, object, and the id that the store has given
/// the request.
fn as_line(request: &LoggedRequest) -> String {
    let path = request.path.split('?').next().unwrap().replace("%2F", "/");
    let key = path.trim_start_matches('/').strip_prefix(BUCKET).unwrap().trim_start_matches('/');
    let part = match (request.operation, request.part) {
        (Operation::UploadPartCopy, Some(part)) => format!(" part {part}"),
        _ => String::new(),
    };
    format!("{} s3://{BUCKET}/{key}{part} {}", request.operation, request.id)
}

/// The changes that a store has made from its request `since` on, as the trail shows them.
fn store_changes(bench: &Bench, since: usize) -> Vec<String> {
    let log = bench.sim.store().stats().log;
    let made = log.iter().skip(since).filter(|request| {
        STORE_CHANGES.contains(&request.operation) && request.status.is_some_and(|status| status < 300)
    });
    let mut lines: Vec<String> = made.map(as_line).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_replication_has_its_line() {
    // The cloud has two images of the server, so this run replaces one, renames it, and prunes.
    let bench = Bench::with_history().await;
    let (since, store_since) = (bench.sim.history().len(), bench.sim.store().stats().log.len());
    let ended = bench.run(Host::Own, &["--log-format", "json", "--json"]).await;
    let job = ended.json()["job"].clone();
    let lines = trail(&ended);
    for line in &lines {
        assert_eq!(
            (&line["job"], &line["server"], &line["outcome"]),
            (&job, &SERVER.into(), &"done".into()),
            "{line}"
        );
        assert!(line["step"].is_string() && line["timestamp"].is_string(), "{line}");
    }
    let (of_store, of_cloud): (Vec<&Value>, Vec<&Value>) =
        lines.iter().partition(|line| line["message"].as_str().unwrap().contains(" s3://"));

    // The cloud's own history has the ids that the program has given its requests.
    let by_id: BTreeMap<&str, &Value> =
        of_cloud.iter().map(|line| (line["request_id"].as_str().unwrap(), *line)).collect();
    assert_eq!(by_id.len(), of_cloud.len(), "each request has an id of its own");
    let history: Vec<_> = bench.sim.history().into_iter().skip(since).collect();
    let made: BTreeMap<&str, u16> = history
        .iter()
        .filter(|entry| entry.status < 300)
        .map(|entry| (entry.request_id.as_str(), entry.status))
        .collect();
    let told: BTreeMap<&str, u16> =
        by_id.iter().map(|(&id, line)| (id, line["status"].as_u64().unwrap().try_into().unwrap())).collect();
    assert_eq!(told, made, "{history:#?}");
    for operation in
        [Op::CreateSnapshot, Op::DeleteSnapshot, Op::CreateImage, Op::DeleteImage, Op::UpdateImage]
    {
        assert!(history.iter().any(|entry| entry.operation == operation), "{operation:?} was not tried");
    }

    let mut told: Vec<String> = of_store.into_iter().map(as_told).collect();
    told.sort_unstable();
    assert_eq!(told, store_changes(&bench, store_since));
    assert!(told.iter().any(|line| line.starts_with("DeleteObject")), "{told:?}");
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_answer_is_lost_has_a_line_with_an_unknown_outcome() {
    let bench = Bench::start().await;
    let rule = RegionRule::on(Op::CreateSnapshot).when(When::First(1));
    bench.sim.faults().add(rule, RegionAction::ApplyThenDrop);
    let ended = bench.run(Host::Own, &["--log-format", "json"]).await.code(0);
    let history = bench.sim.history();
    let made = history.iter().find(|entry| entry.operation == Op::CreateSnapshot).unwrap();
    let lines = trail(&ended);
    let unknown: Vec<&Value> = lines.iter().filter(|line| line["outcome"] == "unknown").collect();
    assert_eq!(unknown.len(), 1, "{lines:#?}");
    assert_eq!(
        (&unknown[0]["request_id"], &unknown[0]["step"]),
        (&made.request_id.as_str().into(), &"snapshot".into())
    );
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_job_removes_has_its_lines_and_what_is_refused_has_none() {
    let bench = Bench::start().await;
    bench.sim.faults().add(RegionRule::on(Op::CreateAttachment), RegionAction::answer(400, "bad_field"));
    let ended = bench.run(Host::Own, &["--log-format", "json"]).await;
    assert_ne!(ended.code, Some(0));
    let lines = trail(&ended);
    let made = bench.sim.history().into_iter().filter(|entry| entry.status < 300).count();
    assert_eq!(lines.len(), made, "{lines:#?}");
    let removed = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with("DELETE "));
    let removed = removed.expect("the volume is removed");
    assert_eq!((&removed["span"]["name"], &removed["step"]), (&"undo".into(), &"volume".into()), "{removed}");
    assert!(
        !lines
            .iter()
            .any(|line| line["message"].as_str().unwrap().contains("POST") && line["step"] == "attach")
    );
    bench.sim.shutdown().await;
}

#[test]
fn each_copy_of_a_part_has_its_line_and_a_refused_one_has_none() {
    let bucket = Bucket::start();
    let mut command = bucket.command_without_bucket(&["doctor", "--copies", "--bucket", BUCKET]);
    command.args(["--metadata-endpoint", "http://127.0.0.1:9", "--vpc-endpoint", "http://127.0.0.1:9"]);
    command.args(["--log-format", "json"]).env("SNAPFERRY_LOG", "error,snapferry::changes=info");
    let ended = run(command);
    let is_copy = |line: &&str| line.starts_with("UploadPartCopy ");
    let lines = trail(&ended);
    let texts: Vec<String> = lines.iter().map(as_told).collect();
    let mut told: Vec<&str> = texts.iter().map(String::as_str).filter(is_copy).collect();
    told.sort_unstable();

    let log = bucket.sim.stats().log;
    let copies = log.iter().filter(|request| request.operation == Operation::UploadPartCopy);
    let (made, refused): (Vec<&LoggedRequest>, Vec<&LoggedRequest>) =
        copies.partition(|request| request.status.is_some_and(|status| status < 300));
    let mut made: Vec<String> = made.into_iter().map(as_line).collect();
    made.sort_unstable();
    assert_eq!(told, made);
    assert!(!made.is_empty() && !refused.is_empty(), "{log:?}");
}
