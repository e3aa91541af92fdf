//! Names by which servers see the program.

use snapferry_base::secret::Secret;
use snapferry_fleet::queue::{Queue as _, RedisConfig, RedisQueue};
use snapferry_sim::{Operation, RegionOperation};

use crate::support::{BUCKET, Bench, Host, Redis, job};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ibm_clouds_services_get_program_and_version() {
    let bench = Bench::start().await;
    bench.finish(bench.command(Host::Own, &["doctor"])).await;
    let expected = concat!("snapferry/", env!("CARGO_PKG_VERSION"), " (linux; ");
    for operation in [
        RegionOperation::CreateIdentityToken,
        RegionOperation::GetOwnInstance,
        RegionOperation::IdentityToken,
        RegionOperation::ListInstances,
        RegionOperation::ListTags,
    ] {
        let sent = bench.sim.user_agent(operation).unwrap_or_default();
        assert!(sent.starts_with(expected), "{operation:?}: {sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_gets_program_and_version_beside_the_sdks() {
    let bench = Bench::start().await;
    let mut command = bench.command(Host::Own, &["uploads", "list", "--bucket", BUCKET]);
    command.args(["--region", &bench.sim.store().config().region]);
    bench.finish(command).await.code(0);
    let stats = bench.sim.store().stats();
    let logged = stats.log.iter().find(|logged| logged.operation == Operation::ListMultipartUploads).unwrap();
    let expected = concat!("app/snapferry-", env!("CARGO_PKG_VERSION"));
    assert!(logged.headers["user-agent"].contains(expected), "{:?}", logged.headers);
}

async fn clients(redis: &Redis) -> String {
    redis::from_redis_value(redis.command(&["CLIENT", "LIST"]).await).unwrap()
}

#[tokio::test]
async fn redis_shows_program_version_and_process() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let _queue = RedisQueue::connect(&redis.config()).await.unwrap();
    let clients = clients(&redis).await;
    let begin = concat!(" name=snapferry-", env!("CARGO_PKG_VERSION"), "-");
    let end = format!("-{} ", std::process::id());
    assert!(clients.lines().any(|line| line.contains(begin) && line.contains(&end)), "{clients}");
}

#[tokio::test]
async fn a_redis_that_refuses_the_name_keeps_jobs_all_the_same() {
    let Some(redis) = Redis::start(&[]).await else { return };
    redis.command(&["ACL", "SETUSER", "mute", "on", ">hunter2", "~*", "+@all", "-client"]).await;
    let config = RedisConfig {
        user: Some("mute".to_owned()),
        password: Some(Secret::new("hunter2")),
        ..redis.config()
    };
    let queue = RedisQueue::connect(&config).await.unwrap();
    queue.enqueue(&job("web01")).await.unwrap();
    assert!(clients(&redis).await.lines().any(|line| line.contains(" name= ") && line.contains("user=mute")));
}
