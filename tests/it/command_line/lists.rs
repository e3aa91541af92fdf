//! An empty list is told in one line on stderr, and is `[]` as JSON.

use crate::support::{Bench, Bucket, Ended, Host, Redis, SAFE, all_commands, run};

/// Commands that list something; each has a test below.
const LISTS: [&str; 5] = ["images list", "jobs list", "schedule list", "snapshot list", "uploads list"];

#[test]
fn every_list_has_a_test() {
    let mut lists: Vec<String> = all_commands()
        .iter()
        .map(crate::support::Described::name)
        .filter(|name| name.ends_with(" list"))
        .collect();
    lists.sort();
    assert_eq!(lists, LISTS);
}

/// Asserts that an empty list is reported: `text` without `--json`, nothing with `--quiet`.
#[track_caller]
fn assert_told(plain: &Ended, json: &Ended, quiet: &Ended, text: &str) {
    for ended in [plain, json, quiet] {
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert_eq!((plain.out.as_str(), plain.err.as_str()), ("", format!("{text}\n").as_str()));
    assert_eq!((json.out.as_str(), json.err.as_str()), ("[]\n", ""));
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
}

#[test]
fn uploads() {
    let bucket = Bucket::start();
    let list = |more: &[&str]| run(bucket.command([&["uploads", "list"], more].concat()));
    assert_told(&list(&[]), &list(&["--json"]), &list(&["--quiet"]), "no incomplete uploads in images");
}

async fn of_cloud(command: &str, text: &str) {
    let bench = Bench::start().await;
    let list = async |more: &[&str]| {
        bench.finish(bench.command(Host::Own, &[&[command, "list"], more].concat())).await
    };
    assert_told(&list(&[]).await, &list(&["--json"]).await, &list(&["--quiet"]).await, text);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images() {
    of_cloud("images", "no images").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots() {
    of_cloud("snapshot", "no snapshots").await;
}

async fn of_queue(command: &[&str], text: &str, json: &str) {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let url = redis.url();
    let list = |more: &[&str]| run(crate::support::snapferry([command, &["--redis", &url], more].concat()));
    let (plain, as_json, quiet) = (list(&[]).code(0), list(&["--json"]).code(0), list(&["--quiet"]).code(0));
    assert_eq!((plain.out.as_str(), plain.err.as_str()), ("", format!("{text}\n").as_str()));
    assert_eq!((as_json.out.trim_end(), as_json.err.as_str()), (json, ""));
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs() {
    of_queue(&["jobs", "list"], "no jobs", "[]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules() {
    of_queue(&["schedule", "list"], "no schedules", "[]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events() {
    of_queue(&["jobs", "logs"], "no events", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers() {
    let text = "no server was ever enqueued: `snapferry enqueue SERVER`";
    of_queue(&["status"], text, r#"{"servers":[],"workers":[]}"#).await;
}
