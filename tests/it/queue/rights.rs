//! Rights that a user of Redis needs: the ACL line in the documents is enough, and a missing right is named.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use snapferry_base::retry::Class;
use snapferry_base::secret::Secret;
use snapferry_fleet::queue::rights::{NEEDED, acl_line};
use snapferry_fleet::queue::{
    JobState, Lease, LeaseStatus, Queue, QueueError, RedisConfig, RedisQueue, Timing, Token,
};

use super::{now_ms, suite};
use crate::support::{Redis, SAFE, job};

const USER: &str = "snapferry";

/// A server with a user made by the documents' ACL line.
struct Guarded {
    redis: Redis,
}

impl Guarded {
    async fn start() -> Option<Self> {
        let redis = Redis::start(&SAFE).await?;
        let line = acl_line(USER, "snapferry").replace('\'', "").replace("PASSWORD", "hunter2");
        redis.command(&line.split(' ').collect::<Vec<_>>()).await;
        Some(Self { redis })
    }

    async fn change(&self, rule: &str) {
        self.redis.command(&["ACL", "SETUSER", USER, rule]).await;
    }

    fn config(&self) -> RedisConfig {
        RedisConfig {
            user: Some(USER.to_owned()),
            password: Some(Secret::new("hunter2")),
            ..self.redis.config()
        }
    }

    async fn queue(&self, timing: Timing) -> RedisQueue {
        RedisQueue::connect(&RedisConfig { timing, ..self.config() }).await.unwrap()
    }
}

/// A change that makes the queue use another Redis command must add it to the ACL line.
#[tokio::test]
async fn the_line_of_the_documents_is_enough_for_everything() {
    let documents = std::fs::read_to_string("docs/fleet.md").unwrap();
    assert!(documents.contains(&acl_line(USER, "snapferry")), "docs/fleet.md has another line");
    for info in ["+info", "-info"] {
        let Some(guarded) = Guarded::start().await else { return };
        guarded.change(info).await;
        let clock = Arc::new(AtomicU64::new(now_ms()));
        let queue = guarded.queue(suite::TIMING).await.on_clock(Arc::clone(&clock));
        queue.rights().await.unwrap();
        queue.reap().await.unwrap();
        suite::run(&queue, clock).await;
        let redis::Value::Array(refused) = guarded.redis.command(&["ACL", "LOG"]).await else {
            panic!("no list")
        };
        assert!(
            refused.len() <= usize::from(info == "-info"),
            "asked for once over a connection: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let Some(guarded) = Guarded::start().await else { return };
    let queue = guarded.queue(Timing::default()).await;
    queue.rights().await.unwrap();
    for command in NEEDED.into_iter().filter(|command| *command != "select") {
        guarded.change(&format!("-{command}")).await;
        guarded.redis.command(&["SCRIPT", "FLUSH"]).await;
        let missing = queue.rights().await.unwrap_err();
        assert!(missing.to_string().to_lowercase().contains(command), "without {command}: {missing}");
        assert_eq!(missing.class(), Class::Permanent, "{missing}");
        guarded.change(&format!("+{command}")).await;
    }
    queue.rights().await.unwrap();
    guarded.change("resetkeys").await;
    let missing = queue.rights().await.unwrap_err();
    assert!(matches!(&missing, QueueError::Rights { .. } | QueueError::Refused { .. }), "{missing}");
    guarded.change("~{snapferry}:*").await;
    // A full server is no matter of rights: Redis lets a script continue that has written before, and this
    // one begins with a DEL.
    guarded.redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    queue.rights().await.unwrap();
    guarded.redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let redis::Value::Array(keys) = guarded.redis.command(&["KEYS", "*"]).await else { panic!("no list") };
    assert!(keys.is_empty(), "trying leaves something: {keys:?}");
}

/// However often the server restarts, the lease of a dead worker is extended once only, and the lease of a
/// live worker is extended each time.
#[tokio::test]
async fn leases_are_extended_once_for_each_word_of_their_workers() {
    for info in ["+info", "-info"] {
        let Some(redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await else {
            return;
        };
        let mut guarded = Guarded { redis };
        let line = acl_line(USER, "snapferry").replace('\'', "").replace("PASSWORD", "hunter2");
        let clock = Arc::new(AtomicU64::new(now_ms()));
        let user = async |guarded: &Guarded| {
            // Users that are in no file are lost at a restart.
            guarded.redis.command(&line.split(' ').collect::<Vec<_>>()).await;
            guarded.change(info).await;
        };
        user(&guarded).await;
        let queue = guarded.queue(suite::TIMING).await.on_clock(Arc::clone(&clock));
        queue.reap().await.unwrap();
        let pass = |seconds: u64| clock.fetch_add(seconds * 1000, std::sync::atomic::Ordering::Relaxed);
        let mut leases = Vec::new();
        for server in ["lives", "gone"] {
            queue.enqueue(&job(server)).await.unwrap();
            let claimed = queue.claim(server, &Token::new()).await.unwrap().unwrap();
            leases.push(Lease { id: claimed.job.id, token: claimed.token });
        }
        let mut waited = 0;
        for restart in 0..5 {
            pass(90);
            waited += 90;
            guarded.redis.kill();
            guarded.redis.restart().await;
            user(&guarded).await;
            let reaped = loop {
                match queue.reap().await {
                    Ok(reaped) => break reaped,
                    Err(error) => assert_eq!(error.class(), Class::Transient, "{error}"),
                }
            };
            assert_eq!(
                queue.beat(&leases[0], "").await.unwrap(),
                LeaseStatus::On,
                "{info}: restart {restart}"
            );
            if !reaped.taken_back.is_empty() {
                assert_eq!(reaped.taken_back, [leases[1].id], "{info}");
                break;
            }
        }
        assert!((120..=270).contains(&waited), "{info}: taken back after {waited} s");
        assert_eq!(queue.job(leases[0].id).await.unwrap().unwrap().state, JobState::Running);
    }
}

/// Invalid data written into the queue hides no other jobs.
#[tokio::test]
async fn what_makes_no_sense_hides_nothing_else() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    let (good, bad) = (job("web01"), job("web02"));
    queue.enqueue(&good).await.unwrap();
    queue.enqueue(&bad).await.unwrap();
    let key = format!("{{snapferry}}:job:{}", bad.id);
    // Two jobs of the same millisecond are in the order of their random ids.
    let listed = async || {
        let mut servers: Vec<String> =
            queue.jobs_in(&JobState::ALL, 100).await.unwrap().into_iter().map(|job| job.server).collect();
        servers.sort();
        servers
    };
    redis
        .command(&[
            "EVAL",
            "redis.call('HSET', KEYS[1], 'server', '\\255\\254', 'error', string.rep('x', 3000000))",
            "1",
            &key,
        ])
        .await;
    assert_eq!(listed().await, ["web01", "\u{fffd}\u{fffd}"]);
    assert_eq!(queue.job(bad.id).await.unwrap().unwrap().error.unwrap().len(), 1 << 20, "the front of it");
    redis.command(&["HSET", &key, "priority", "high"]).await;
    redis.command(&["ZADD", "{snapferry}:ready", "1", "no id"]).await;
    redis.command(&["ZADD", "{snapferry}:leases", "1", "no id"]).await;
    assert_eq!(listed().await, ["web01"]);
    for (hash, value) in
        [("good", "x"), ("surveys", "x"), ("workers", "x"), ("schedules", "x"), ("ticks", "x")]
    {
        redis.command(&["HSET", &format!("{{snapferry}}:{hash}"), "strange", value]).await;
    }
    redis.command(&["XADD", "{snapferry}:events", "*", "at", "x"]).await;
    assert_eq!(queue.last_successes().await.unwrap(), []);
    assert_eq!(queue.surveys().await.unwrap(), []);
    assert_eq!(queue.workers().await.unwrap(), []);
    assert_eq!(queue.schedules().await.unwrap(), []);
    assert_eq!(queue.events(100).await.unwrap().len(), 2, "both were added");
    let reaped = tokio::time::timeout(Duration::from_secs(10), queue.reap()).await.unwrap().unwrap();
    assert_eq!(reaped.taken_back, []);
}
