//! A real Redis under every fault of a server and of its network.

use std::io::Write as _;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use snapferry_base::retry::Class;
use snapferry_base::secret::Secret;
use snapferry_fleet::queue::examine::{Severity, ask, judge};
use snapferry_fleet::queue::{
    Counts, Imported, JobState, Lease, LeaseStatus, MAX_NAMES, Queue, QueueError, RedisConfig, RedisQueue,
    Timing, Token, import_legacy,
};

use super::is_lost;
use crate::support::{Proxy, Redis, SAFE, job};

/// Short leases, which run out within a test.
const SHORT: Timing = Timing {
    lease: Duration::from_millis(400),
    beat: Duration::from_millis(50),
    stop: Duration::from_millis(300),
    retry: Duration::from_secs(1),
    takeovers: 3,
};

async fn claim(queue: &RedisQueue, worker: &str) -> Lease {
    let claimed = queue.claim(worker, &Token::new()).await.unwrap().expect("a job is ready");
    Lease { id: claimed.job.id, token: claimed.token }
}

/// Repeats `send` until Redis answers again.
async fn sent<T>(mut send: impl AsyncFnMut() -> Result<T, QueueError>) -> T {
    for _ in 0..200 {
        match send().await {
            Ok(answer) => return answer,
            Err(error) => assert_eq!(error.class(), Class::Transient, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("Redis did not come back");
}

fn total(counts: &Counts) -> u64 {
    JobState::ALL.iter().map(|&state| counts.of(state)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_it_has_lost_nothing_and_takes_nothing_back_at_once() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await else {
        return;
    };
    let queue = redis.queue(SHORT).await;
    queue.reap().await.unwrap();
    for number in 0..200 {
        queue.enqueue(&job(&format!("web{number}"))).await.unwrap();
    }
    let lease = claim(&queue, "w1").await;
    queue.step(&lease, "convert", "journal", None).await.unwrap();
    redis.kill();
    assert!(matches!(queue.beat(&lease, "").await, Err(QueueError::Unavailable { .. })));
    // Longer than a lease: without the amnesty, every running job would be taken from its worker now.
    tokio::time::sleep(SHORT.lease * 2).await;
    redis.restart().await;
    let reaped = sent(async || queue.reap().await).await;
    assert_eq!((reaped.amnesty, reaped.taken_back), (1, vec![]));
    assert_eq!(total(&queue.counts().await.unwrap()), 200);
    assert_eq!(queue.beat(&lease, "").await.unwrap(), LeaseStatus::On);
    assert_eq!(queue.job(lease.id).await.unwrap().unwrap().journal.as_deref(), Some("journal"));
    // A worker that has really died is found after the amnesty.
    tokio::time::sleep(SHORT.lease * 2).await;
    assert_eq!(queue.reap().await.unwrap().taken_back, [lease.id]);
    assert!(is_lost(&queue.finish(&lease, "").await));
}

/// No worker had reaped before the server stopped, so nothing shows that the server has restarted.
#[tokio::test(flavor = "multi_thread")]
async fn who_reaps_first_takes_nothing_back_either() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await else {
        return;
    };
    let queue = redis.queue(SHORT).await;
    queue.enqueue(&job("web01")).await.unwrap();
    let lease = claim(&queue, "w1").await;
    redis.kill();
    tokio::time::sleep(SHORT.lease * 2).await;
    redis.restart().await;
    let reaped = sent(async || queue.reap().await).await;
    assert_eq!((reaped.amnesty, reaped.taken_back), (1, vec![]));
    assert_eq!(queue.beat(&lease, "").await.unwrap(), LeaseStatus::On);
}

/// The state after an import that was killed between moving a name aside and making its job.
#[tokio::test(flavor = "multi_thread")]
async fn the_old_list_is_taken_over_and_what_was_left_half_way_too() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    redis.command(&["RPUSH", "queue", "web01", "", "web02", "web01"]).await;
    redis.command(&["RPUSH", "queue:snapferry-import", "web00"]).await;
    let made = |name: &str| (!name.is_empty()).then(|| job(name));
    let imported = import_legacy(&queue, "queue", MAX_NAMES, made).await.unwrap();
    assert_eq!(imported, Imported { added: 3, open_already: 1, refused: vec![String::new()], left: 0 });
    let ready = queue.jobs(JobState::Ready, 10).await.unwrap();
    let mut servers: Vec<&str> = ready.iter().map(|job| job.server.as_str()).collect();
    servers.sort_unstable();
    assert_eq!(servers, ["web00", "web01", "web02"]);
    let left = redis.command(&["EXISTS", "queue", "queue:snapferry-import"]).await;
    assert!(matches!(left, redis::Value::Int(0)), "{left:?}");
    assert_eq!(import_legacy(&queue, "queue", MAX_NAMES, made).await.unwrap(), Imported::default());
    redis.command(&["RPUSH", "queue", "web03"]).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(import_legacy(&queue, "queue", MAX_NAMES, made).await.unwrap_err().class(), Class::Transient);
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(
        import_legacy(&queue, "queue", MAX_NAMES, made).await.unwrap(),
        Imported { added: 1, ..Imported::default() }
    );
    // Names beyond the limit of one call are counted, and the next call imports them.
    redis.command(&["RPUSH", "queue", "web04", "web05", "web06"]).await;
    assert_eq!(
        import_legacy(&queue, "queue", 2, made).await.unwrap(),
        Imported { added: 2, left: 1, ..Imported::default() }
    );
    assert_eq!(
        import_legacy(&queue, "queue", 2, made).await.unwrap(),
        Imported { added: 1, ..Imported::default() }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_forgotten_connections_cut_and_clients_held_up_are_got_over() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    queue.enqueue(&job("web01")).await.unwrap();
    let lease = claim(&queue, "w1").await;
    redis.command(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(queue.beat(&lease, "").await.unwrap(), LeaseStatus::On);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    assert_eq!(sent(async || queue.beat(&lease, "").await).await, LeaseStatus::On);
    redis.command(&["CLIENT", "PAUSE", "700", "ALL"]).await;
    assert_eq!(
        queue.beat(&lease, "").await.unwrap(),
        LeaseStatus::On,
        "longer than the library's own patience"
    );
    queue.finish(&lease, "").await.unwrap();
}

/// As if a firewall had forgotten the connection: no response arrives, and neither side closes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_has_gone_silent_is_replaced() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let proxy = Proxy::to(&redis).await;
    let queue = proxy.queue(&redis.config()).await;
    queue.enqueue(&job("web01")).await.unwrap();
    let lease = claim(&queue, "w1").await;
    proxy.silence();
    let unanswered = queue.beat(&lease, "").await.unwrap_err();
    assert_eq!(unanswered.class(), Class::Transient, "{unanswered}");
    assert_eq!((queue.beat(&lease, "").await.unwrap(), proxy.accepted()), (LeaseStatus::On, 2));
}

/// After a failover the name of Redis leads to the new primary, but an open connection stays with the old
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_a_primary_that_was_demoted_is_replaced() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let proxy = Proxy::to(&redis).await;
    let queue = proxy.queue(&redis.config()).await;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_eq!(queue.enqueue(&job("web01")).await.unwrap_err().class(), Class::Transient);
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    queue.enqueue(&job("web01")).await.unwrap();
    assert_eq!(proxy.accepted(), 2, "connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_a_new_connection_passes() {
    let Some(redis) = Redis::start(&["--requirepass", "hunter2"]).await else { return };
    let config = RedisConfig { password: Some(Secret::new("hunter2")), ..redis.config() };
    let (proxy, client) = (Proxy::to(&redis).await, redis::Client::open(redis.url()).unwrap());
    let mut other = client.get_multiplexed_async_connection().await.unwrap();
    let mut order = async |words: &[&str]| {
        redis::cmd(words[0]).arg(&words[1..]).query_async::<redis::Value>(&mut other).await.unwrap();
    };
    order(&["AUTH", "hunter2"]).await;
    let queue = proxy.queue(&config).await;
    queue.enqueue(&job("web01")).await.unwrap();
    order(&["CONFIG", "SET", "maxclients", "1"]).await;
    order(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    for _ in 0..3 {
        // The first call finds the old connection closed; the others are refused a new one.
        let refused = queue.counts().await.unwrap_err();
        assert_eq!(refused.class(), Class::Transient, "{refused}");
    }
    order(&["CONFIG", "SET", "maxclients", "100"]).await;
    assert_eq!(queue.counts().await.unwrap().of(JobState::Ready), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_passes_and_drops_nothing() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    queue.enqueue(&job("web01")).await.unwrap();
    let lease = claim(&queue, "w1").await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = queue.enqueue(&job("web02")).await.unwrap_err();
    assert!(matches!(&full, QueueError::Unavailable { reason, .. } if reason.contains("OOM")), "{full}");
    assert_eq!(queue.beat(&lease, "").await.unwrap_err().class(), Class::Transient);
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(queue.beat(&lease, "").await.unwrap(), LeaseStatus::On);
    assert_eq!(total(&queue.counts().await.unwrap()), 1);
}

/// Both sides of a split have leased the job. After the split, only the token of the side that won is valid.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_promoted_refuses_the_worker_of_the_other_side() {
    let Some(primary) = Redis::start(&["--port", "0"]).await else { return };
    // A replica connects by TCP only.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    primary.command(&["CONFIG", "SET", "port", &port]).await;
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {port}")]).await.unwrap();
    let old = primary.queue(SHORT).await;
    old.enqueue(&job("web01")).await.unwrap();
    while !matches!(replica.command(&["EXISTS", "{snapferry}:ready"]).await, redis::Value::Int(1)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A write to a replica is refused, as a transient error: the replica may be promoted.
    let new = replica.queue(SHORT).await;
    assert_eq!(new.claim("w2", &Token::new()).await.unwrap_err().class(), Class::Transient);
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    let (stale, winner) = (claim(&old, "w1").await, claim(&new, "w2").await);
    assert_eq!(stale.id, winner.id);
    drop(old);
    // The worker of the old side uses the new primary from now on.
    assert!(is_lost(&new.beat(&stale, "").await) && is_lost(&new.finish(&stale, "").await));
    assert_eq!(new.beat(&winner, "").await.unwrap(), LeaseStatus::On);
    new.finish(&winner, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_it_takes_the_same_jobs_again() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    let one = job("web01");
    queue.enqueue(&one).await.unwrap();
    let lease = claim(&queue, "w1").await;
    redis.command(&["FLUSHALL"]).await;
    assert!(is_lost(&queue.beat(&lease, "").await), "whoever worked on it stops");
    queue.enqueue(&one).await.unwrap();
    assert_eq!(
        claim(&queue, "w2").await.id,
        one.id,
        "under its old id, by which everything in the cloud is found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_a_later_version_is_left_alone() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    queue.enqueue(&job("web01")).await.unwrap();
    redis.command(&["HSET", "{snapferry}:meta", "schema", "2"]).await;
    let refused = queue.claim("w1", &Token::new()).await.unwrap_err();
    assert!(
        matches!(&refused, QueueError::Foreign { reason, .. } if reason.contains("it has form 2")),
        "{refused}"
    );
    assert_eq!(refused.class(), Class::Permanent);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_asked_for_and_wrong_ones_refused() {
    let Some(redis) = Redis::start(&["--requirepass", "hunter2"]).await else { return };
    let connect = async |password: Option<&str>| {
        let config = RedisConfig { password: password.map(Secret::new), ..redis.config() };
        RedisQueue::connect(&config).await.map(drop)
    };
    connect(Some("hunter2")).await.unwrap();
    for wrong in [None, Some("hunter3")] {
        // Without a password the connection succeeds, and the first request is refused.
        let refused = match connect(wrong).await {
            Err(error) => error,
            Ok(()) => {
                let queue = RedisQueue::connect(&redis.config()).await.unwrap();
                queue.counts().await.unwrap_err()
            }
        };
        assert!(matches!(refused, QueueError::Refused { .. }), "{refused}");
        assert!(!refused.to_string().contains("hunter"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_server_is_told_as_such() {
    let Some(redis) = Redis::start(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]).await else {
        return;
    };
    let told = ask(&redis.config()).await.unwrap();
    let findings = judge(&told, false, &Timing::default(), std::time::SystemTime::now());
    let failures: Vec<&str> =
        findings.iter().filter(|found| found.severity == Severity::Failure).map(|found| found.what).collect();
    assert_eq!(failures, ["append-only file", "eviction"]);
    let Some(safe) = Redis::start(&SAFE).await else { return };
    let locked = Redis::start(&["--requirepass", "hunter2"]).await.unwrap();
    let wrong = RedisConfig { password: Some(Secret::new("hunter3")), ..locked.config() };
    assert_eq!(ask(&wrong).await.unwrap_err().class(), Class::Permanent, "waiting does not mend a password");
    let told = ask(&safe.config()).await.unwrap();
    let findings = judge(&told, false, &Timing::default(), std::time::SystemTime::now());
    assert!(findings.iter().all(|found| found.severity != Severity::Failure), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_is_forgotten_however_much_it_is() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    let filled = "for number = 1, 2500 do redis.call('ZADD', KEYS[1], 1, number) end";
    redis.command(&["EVAL", filled, "1", "{snapferry}:done"]).await;
    assert_eq!(queue.purge(Duration::from_secs(60)).await.unwrap(), 2500);
    assert_eq!(total(&queue.counts().await.unwrap()), 0);
}

/// Prints figures for the documents; the test does not depend on this machine's speed.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_queue_itself_can_do() {
    let Some(redis) = Redis::start(&SAFE).await else { return };
    let queue = redis.queue(Timing::default()).await;
    queue.enqueue(&job("web")).await.unwrap();
    let lease = claim(&queue, "w1").await;
    const MANY: u32 = 2000;
    let begun = std::time::Instant::now();
    for _ in 0..MANY {
        queue.beat(&lease, r#"{"percent":50}"#).await.unwrap();
    }
    let beats = begun.elapsed();
    queue.finish(&lease, "{}").await.unwrap();
    let begun = std::time::Instant::now();
    for number in 0..MANY {
        queue.enqueue(&job(&format!("web{number}"))).await.unwrap();
    }
    let added = begun.elapsed();
    let begun = std::time::Instant::now();
    for _ in 0..MANY {
        let lease = claim(&queue, "w1").await;
        queue.finish(&lease, "{}").await.unwrap();
    }
    let done = begun.elapsed();
    let redis::Value::Int(bytes) =
        redis.command(&["MEMORY", "USAGE", &format!("{{snapferry}}:job:{}", lease.id)]).await
    else {
        panic!("no size")
    };
    let each = |took: Duration| f64::from(MANY) / took.as_secs_f64();
    // Printed with `cargo nextest run --no-capture`.
    let _ = writeln!(
        std::io::stderr(),
        "beats {:.0}/s, enqueues {:.0}/s, claim and finish {:.0}/s, {bytes} bytes a job",
        each(beats),
        each(added),
        each(done)
    );
    assert_eq!(queue.counts().await.unwrap().of(JobState::Done), u64::from(MANY) + 1);
    assert!((100..20_000).contains(&bytes), "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_where_it_is_named_and_no_other() {
    let temp = crate::support::folder();
    let file = |name: &str, text: String| {
        let path = temp.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
    };
    let ((good, issuer), (other, _)) = (authority(), authority());
    let (good, other) = (file("good.pem", good), file("other.pem", other));
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let (certificate, key) = (file("server.pem", certificate.pem()), file("server.key", key.serialize_pem()));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let options = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &text(&certificate),
        "--tls-key-file",
        &text(&key),
        "--tls-ca-cert-file",
        &text(&good),
        "--tls-auth-clients",
        "no",
    ];
    let Some(redis) = Redis::start(&options).await else { return };
    let connect = async |host: &str, ca_file: Option<&std::path::Path>| {
        let config = RedisConfig {
            url: format!("rediss://{host}:{port}"),
            ca_file: ca_file.map(std::path::Path::to_owned),
            ..redis.config()
        };
        RedisQueue::connect(&config).await.map(drop)
    };
    connect("localhost", Some(&good)).await.unwrap();
    for (host, ca) in [("localhost", None), ("localhost", Some(&*other)), ("127.0.0.1", Some(&*good))] {
        let refused = connect(host, ca).await.unwrap_err();
        assert!(refused.to_string().contains(&port), "{refused}");
    }
}
