//! A queue that holds control sequences for a terminal and very long texts: every command prints them escaped
//! and cut to a limit.

use snapferry_fleet::queue::Queue as _;

use super::Fleet;
use crate::support::job;

/// Window title, cleared screen, changed text direction, and a line that looks like the program's own.
/// Another text has 70,000 characters, more than the largest width of Rust's formatting.
const HOSTILE: &str = "x\u{1b}]0;pwned\u{7}\u{1b}[2J\u{9b}31m\u{202e}y\r\nerror: all is well";

fn is_obeyed(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_into_the_queue_is_shown_escaped_everywhere() {
    let Some(fleet) = Fleet::start().await else { return };
    let (queue, marked) = (fleet.queue().await, job("web98"));
    queue.enqueue(&marked).await.unwrap();
    let (id, key) = (marked.id.to_string(), format!("{{snapferry}}:job:{}", marked.id));
    let long = "a".repeat(70_000);
    for hostile in [HOSTILE, long.as_str()] {
        let progress = serde_json::json!({ "step": hostile, "bytes": 1, "of": 2 }).to_string();
        let mut args = vec!["HSET", &key, "progress", &progress];
        for field in ["server", "region", "step", "worker", "error"] {
            args.extend([field, hostile]);
        }
        fleet.redis.command(&args).await;
        fleet.redis.command(&["HSET", "{snapferry}:workers", hostile, "1"]).await;
        let result = serde_json::json!({ "image": { "name": hostile } }).to_string();
        let (name, value) = (format!("{hostile}:{hostile}"), format!("1 {id} {result}"));
        fleet.redis.command(&["HSET", "{snapferry}:good", &name, &value]).await;
        let plan = serde_json::json!({ "cron": "0 1 * * *", "priority": 5, "jobs": [] }).to_string();
        fleet.redis.command(&["HSET", "{snapferry}:schedules", hostile, &plan]).await;
        fleet.redis.command(&["HSET", "{snapferry}:ticks", hostile, "1"]).await;
        fleet
            .redis
            .command(&[
                "XADD",
                "{snapferry}:events",
                "*",
                "at",
                "1",
                "id",
                &id,
                "what",
                hostile,
                "details",
                hostile,
            ])
            .await;
        for args in [
            &["jobs", "list"][..],
            &["jobs", "show", &id],
            &["jobs", "logs"],
            &["status"],
            &["status", "--check"],
            &["schedule", "list"],
            &["schedule", "rm", "nobody\u{1b}[2J"],
            &["jobs", "list", "--json"],
            &["jobs", "show", &id, "--json"],
            &["jobs", "logs", "--json"],
            &["status", "--json"],
            &["schedule", "list", "--json"],
        ] {
            let ended = fleet.run(args).await;
            let all = format!("{}{}", ended.out, ended.err);
            assert!(!all.contains(is_obeyed), "{args:?}: {all:?}");
            assert!(!all.contains("panicked"), "{args:?}: {all}");
            assert!(!all.lines().any(|line| line.starts_with("error: all is well")), "{args:?}: {all}");
            if args.contains(&"--json") {
                ended
                    .out
                    .lines()
                    .for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).expect("JSON")));
            } else if args[0] != "schedule" {
                let longest = all.lines().map(|line| line.chars().count()).max().unwrap_or(0);
                assert!(longest < 8 * 1100, "{args:?}: a line of {longest}");
            }
        }
    }
    // The other jobs are still listed.
    queue.enqueue(&job("web97")).await.unwrap();
    fleet.run(&["jobs", "list"]).await.code(0).says(&["web97"]);
    fleet.run(&["status"]).await.code(0).says(&["web97"]);
}

/// A worker without a right reports that at its start, and a worker that loses a right is no longer ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lacks_a_right_is_not_ready() {
    let Some(fleet) = Fleet::start().await else { return };
    let line = snapferry_fleet::queue::rights::acl_line("ferry", "snapferry")
        .replace('\'', "")
        .replace("PASSWORD", "hunter2");
    fleet.redis.command(&line.split(' ').collect::<Vec<_>>()).await;
    fleet.redis.command(&["ACL", "SETUSER", "ferry", "-xadd"]).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let command = || {
        let mut command = fleet.command(crate::support::Host::Own, &["worker", "--metrics", &address]);
        command.env("SNAPFERRY_REDIS_USER", "ferry").env("SNAPFERRY_REDIS_PASSWORD", "hunter2");
        command
    };
    fleet.bench.finish(command()).await.code(6).says(&["lacks rights: XADD", "ACL SETUSER"]);
    fleet.redis.command(&["ACL", "SETUSER", "ferry", "+xadd", "-info"]).await;
    let _worker = super::Worker::start(command());
    let ready = || super::commands::try_get(&address, "/readyz");
    fleet
        .until("readiness", async || ready().is_some_and(|response| response.starts_with("HTTP/1.1 200")))
        .await;
    fleet.redis.command(&["ACL", "SETUSER", "ferry", "-zrangebyscore"]).await;
    fleet
        .until("the end of readiness", async || {
            ready().is_some_and(|response| {
                response.starts_with("HTTP/1.1 503") && response.to_lowercase().contains("zrangebyscore")
            })
        })
        .await;
    fleet.redis.command(&["ACL", "SETUSER", "ferry", "+zrangebyscore"]).await;
    fleet
        .until("readiness", async || ready().is_some_and(|response| response.starts_with("HTTP/1.1 200")))
        .await;
}
