//! The fleet's commands as a user runs them: enqueue, worker, jobs, status, schedule.

use snapferry_base::proxy::Proxies;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use snapferry_fleet::queue::{JobState, Queue as _, Timing};
use snapferry_ibmcloud::vpc::{Policy, Tagging, TaggingConfig};
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule, ServerSeed, When};

use super::{Fleet, Worker};
use crate::support::{HOME, Host, Redis, SERVER, client_context, tokens};

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_on_two_workers_all_arrive() {
    let Some(fleet) = Fleet::start().await else { return };
    let disk = fleet.bench.disk();
    let names: Vec<String> = (1..=4).map(|number| format!("app{number}")).collect();
    for name in &names {
        fleet.bench.sim.seed_server(ServerSeed::new(HOME, name, &disk)).await.unwrap();
    }
    let (one, two) = (fleet.worker(Host::Own), fleet.worker(Host::Other));
    let mut args = vec!["enqueue", "--wait", SERVER];
    args.extend(names.iter().map(String::as_str));
    fleet.run(&args).await.code(0).says(&[
        "app1 into us-east: done",
        "app4 into us-east: done",
        "web01 into us-east: done",
    ]);
    let images: Vec<String> = fleet.bench.images().await.into_iter().map(|image| image.name).collect();
    for name in &names {
        assert!(images.contains(&format!("{name}-latest")), "{images:?}");
    }
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
    let ended = fleet.run(&["jobs", "list"]).await.code(0);
    let both = ended.out.contains("ferry (") && ended.out.contains("ferry2 (");
    assert!(both, "both have taken a share: {}", ended.out);
    for worker in [one, two] {
        worker.signal(Signal::TERM);
        assert_eq!(worker.ended().await, Some(0), "an idle worker ends at once");
    }
    // A server that does not exist in the cloud ends as dead, with the reason; an invalid name is not even
    // added.
    let worker = fleet.worker(Host::Own);
    let ended = fleet.run(&["enqueue", "web97", "--wait", "--json"]).await.code(5);
    let lines: Vec<Value> =
        ended.out.lines().map(|line| serde_json::from_str(line).expect("JSON alone")).collect();
    assert_eq!((&lines[0]["added"], &lines[1]["state"]), (&true.into(), &"dead".into()), "{lines:?}");
    fleet
        .run(&["enqueue", "web99", "--wait"])
        .await
        .code(5)
        .says(&["web99 into us-east: dead", "there is no server"]);
    fleet.run(&["enqueue", "Web_1"]).await.code(2).says(&["is no name for the cloud"]);
    drop(worker);
    fleet.run(&["jobs", "purge", "--older-than", "0s"]).await.code(0).says(&["jobs forgotten"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_gives_back_what_it_has() {
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    let slow = RegionAction::delay(Duration::from_millis(300));
    fleet.bench.sim.faults().add(RegionRule::on(Op::GetAttachment).when(When::First(1)), slow);
    let first = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    first.signal(Signal::TERM);
    assert_eq!(first.ended().await, Some(0));
    let job = fleet.job().await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&"ready".into(), &0.into()),
        "given back, and nothing counted: {job}"
    );
    let leaks = fleet.bench.leaks().await;
    assert!(leaks.len() == 1 && leaks[0].starts_with("snapshot"), "the volume is gone: {leaks:?}");
    let _second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    fleet.check(since, "drained").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_it_runs_leaves_nothing() {
    let Some(fleet) = Fleet::start().await else { return };
    let (since, before) = (fleet.bench.sim.history().len(), fleet.bench.latest().await.unwrap());
    let slow = RegionAction::delay(Duration::from_millis(1500));
    fleet.bench.sim.faults().add(RegionRule::on(Op::GetAttachment).when(When::First(1)), slow);
    let _worker = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    let job = fleet.job().await["job"].as_str().unwrap().to_owned();
    fleet.run(&["jobs", "cancel", &job]).await.code(0).says(&["its worker is told"]);
    fleet.until_state("cancelled").await;
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
    assert_eq!(fleet.bench.latest().await.map(|latest| latest.id), Some(before.id));
    let ended = fleet.run(&["jobs", "show", &job]).await.code(0);
    ended.says(&["cancelled since", "claimed", "web01 into us-east"]);
    // The same job once more, from its beginning.
    fleet.run(&["jobs", "retry", &job]).await.code(0).says(&["ready"]);
    fleet.until_state("done").await;
    let job = fleet.job().await;
    assert_eq!(job["attempts"], 0, "nothing had to be tried again: {job}");
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_how_old_the_images_are_and_fails_where_they_are_too_old() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet.run(&["status"]).await.code(0).says(&["no server was ever enqueued"]);
    fleet.run(&["status", "--check"]).await.code(8);
    let worker = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER, "--wait"]).await.code(0);
    fleet.run(&["status", "--check"]).await.code(0).says(&[
        "web01",
        "us-east",
        "web01-latest",
        "worker ferry (",
    ]);
    let row = fleet.run(&["status", "--json", SERVER]).await.json()["servers"][0].clone();
    assert!(row["age_seconds"].as_u64().unwrap() < 60 && row["too_old"] == false, "{row}");
    fleet.run(&["status", "--check", "--max-age", "0s"]).await.code(8).says(&["too old"]);
    // A server whose job failed is listed, as one that never had a good image.
    fleet.run(&["enqueue", "web99", "--wait"]).await.code(5);
    fleet.run(&["status", "--check"]).await.code(8).says(&["web99", "never, too old", "there is no server"]);
    fleet.run(&["status", "--check", SERVER]).await.code(0);
    // A server that only a schedule names, and that was never tried, is listed too.
    fleet
        .run(&["schedule", "add", "nightly", "--cron", "30 2 * * *", "db01"])
        .await
        .code(0)
        .says(&["nightly: 1 server, next at"]);
    fleet.run(&["status", "db01", "--check"]).await.code(8).says(&["db01", "never"]);
    // A server that was never enqueued, as when its name is mistyped, beside one with a good image.
    fleet
        .run(&["status", "--check", SERVER, "web98"])
        .await
        .code(8)
        .says(&["never, too old", "web98 was never enqueued"]);
    let all = fleet.run(&["status", "--json", "web98"]).await.json();
    let row = &all["servers"][0];
    assert_eq!(
        (&row["server"], &row["region"], &row["too_old"]),
        (&"web98".into(), &Value::Null, &true.into()),
        "{all}"
    );
    assert!(all["workers"][0]["worker"].as_str().unwrap().starts_with("ferry ("), "{all}");
    // A server that no longer exists is forgotten, and then no image of it counts as missing.
    fleet.run(&["status", "--forget", "web98"]).await.code(2).says(&["nothing is known of web98"]);
    fleet.run(&["status", "--forget", "web99", "--to", "eu-de"]).await.code(2);
    fleet.run(&["status", "--forget", "web99"]).await.code(0).says(&["web99 into us-east is forgotten"]);
    fleet.run(&["status", "--forget", "db01"]).await.code(0).says(&["still in the queue, or in a schedule"]);
    fleet.run(&["schedule", "rm", "nightly"]).await.code(0);
    fleet.run(&["status", "--check"]).await.code(0);
    drop(worker);
    // Workers delete old finished jobs; the last success stays known.
    let mut command = fleet.command(Host::Own, &["worker", "--metrics", "off", "--keep-jobs", "0s"]);
    let queue = fleet.queue().await;
    assert!(queue.counts().await.unwrap().of(JobState::Done) > 0);
    command.stderr(std::process::Stdio::null());
    let _worker = Worker::start(command);
    fleet.until("nothing to remember", async || queue.counts().await.unwrap().of(JobState::Done) == 0).await;
    fleet.run(&["status", "--check"]).await.code(0).says(&["web01"]);
}

/// At boot, a worker may start before the network route to its metadata service exists.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_metadata_service_and_for_no_queue_that_nobody_named() {
    let Some(fleet) = Fleet::start().await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let command = || {
        let mut command = fleet.command(Host::Own, &["worker", "--metrics", "off"]);
        command
            .env_remove("SNAPFERRY_VPC_REGION")
            .env("SNAPFERRY_METADATA_ENDPOINT", format!("http://{address}"));
        command
    };
    let mut unnamed = command();
    unnamed.env_remove("SNAPFERRY_REDIS");
    fleet.bench.finish(unnamed).await.code(2).says(&["which Redis keeps the jobs?"]);
    let worker = Worker::start(command());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let service = fleet.bench.sim.metadata_endpoint().strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((mut theirs, _)) = listener.accept().await {
            let mut ours = tokio::net::TcpStream::connect(&service).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut theirs, &mut ours).await });
        }
    });
    let queue = fleet.queue().await;
    fleet.until("the worker", async || !queue.workers().await.unwrap().is_empty()).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_adds_its_jobs_once_however_many_workers_look() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet
        .run(&["schedule", "add", "nightly", "--cron", "61 * * * *", SERVER])
        .await
        .code(2)
        .says(&["no time for a schedule", "five fields"]);
    fleet
        .run(&["schedule", "add", "never", "--cron", "0 0 30 2 *", SERVER])
        .await
        .code(2)
        .says(&["never comes"]);
    fleet.run(&["schedule", "rm", "nightly"]).await.code(2).says(&["there is no schedule nightly"]);
    fleet.run(&["schedule", "add", "often", "--cron", "* * * * *", SERVER]).await.code(0);
    let listed = fleet.run(&["schedule", "list", "--json"]).await.json();
    assert_eq!(
        (&listed[0]["schedule"], &listed[0]["servers"][0], &listed[0]["last"]),
        (&"often".into(), &SERVER.into(), &Value::Null),
        "{listed}"
    );
    // As if the schedule were a day old: several ticks were missed, and only one counts.
    let queue = fleet.redis.queue(Timing::default()).await;
    let plan = queue.schedules().await.unwrap()[0].plan.clone();
    let yesterday =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() - 86_400_000;
    fleet.redis.command(&["HSET", "{snapferry}:ticks", "often", &yesterday.to_string()]).await;
    // The same times again, as for another server: a tick that is due stays due.
    fleet.run(&["schedule", "add", "often", "--cron", "* * * * *", SERVER]).await.code(0);
    let last = queue.schedules().await.unwrap()[0].last;
    assert_eq!(last.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis(), yesterday);
    let workers = [fleet.worker(Host::Own), fleet.worker(Host::Other)];
    fleet.until("the tick", async || !queue.events(10).await.unwrap().is_empty()).await;
    let listed = fleet.run(&["schedule", "list", "--json"]).await.json();
    let last = listed[0]["last"].as_str().expect("it was due");
    assert!(last.ends_with(":00Z"), "{listed}");
    fleet.run(&["schedule", "rm", "often"]).await.code(0).says(&["often is no more"]);
    fleet.until_state("done").await;
    let added = queue.events(1000).await.unwrap().iter().filter(|event| event.what == "added").count();
    // A minute may have passed meanwhile; the next tick then adds a second job.
    assert!(added <= 2, "{added} jobs of two ticks at most");
    assert!(plan.contains("\"cron\":\"* * * * *\""), "{plan}");
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_list_is_taken_over_and_what_makes_no_job_is_kept() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet.redis.command(&["RPUSH", "queue", "web01", "Web_2", "web01"]).await;
    fleet.run(&["enqueue", "--import-legacy"]).await.code(2).says(&[
        "1 jobs from the list queue, 1 were in the queue already",
        "\"Web_2\" makes no job",
        "queue:snapferry-refused",
    ]);
    fleet.run(&["enqueue", "--import-legacy"]).await.code(0).says(&["0 jobs from the list queue"]);
    fleet.run(&["enqueue", "--import-legacy", "--wait"]).await.code(2).says(&["cannot be used with"]);
    fleet.run(&["enqueue", "db01", "--at", "2099-01-31T02:30:00Z"]).await.code(0);
    fleet.run(&["jobs", "list", "--state", "delayed"]).await.code(0).says(&["db01"]);
    fleet.run(&["enqueue", "db02", "--at", "tomorrow"]).await.code(2);
    // `doctor` checks that Redis has safe settings.
    let report = fleet.run(&["doctor"]).await;
    report.says(&[
        "ok       queue            version: redis 7",
        "append-only file: every change is written to a file",
        "eviction",
    ]);
    let unsafe_one = Redis::start(&["--appendonly", "no"]).await.unwrap();
    let mut command = fleet.command(Host::Own, &["doctor"]);
    command.env("SNAPFERRY_REDIS", unsafe_one.url());
    let report = fleet.bench.finish(command).await;
    report.says(&[
        "FAILURE  queue            append-only file: a crash of the server loses every job",
        "-> set `appendonly yes`",
    ]);
    // All servers with a tag.
    fleet
        .run(&["enqueue", "--tag", "nightly"])
        .await
        .code(2)
        .says(&["no server in us-south has the tag nightly"]);
    let server = fleet.bench.client(HOME).instance_by_name(SERVER).await.unwrap().unwrap();
    let config = TaggingConfig {
        endpoint: fleet.bench.sim.tagging_endpoint(),
        ca_file: None,
        proxies: Proxies::default(),
        policy: Policy::default(),
    };
    let tagging = Tagging::new(&config, client_context(tokens(&fleet.bench.sim))).unwrap();
    tagging.attach(&server.crn, &["nightly".parse().unwrap()]).await.unwrap();
    let first = fleet.job().await["job"].as_str().unwrap().to_owned();
    fleet.run(&["jobs", "cancel", &first]).await.code(0);
    fleet.run(&["enqueue", "--tag", "nightly", "web01"]).await.code(0).says(&["web01 into us-east"]);
    fleet
        .run(&["jobs", "logs"])
        .await
        .code(0)
        .says(&["added      web01 into us-east", "added      db01 into us-east"]);
}

/// Waits until the worker listens, and returns its response for `path`.
fn get(address: &str, path: &str) -> String {
    let begun = Instant::now();
    loop {
        if let Some(response) = try_get(address, path) {
            return response;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the response for `path`, or `None` if no process listens on `address` yet.
pub fn try_get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    Some(response)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_refused_keeps_what_to_do_about_it() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet
        .bench
        .sim
        .faults()
        .add(RegionRule::on(Op::CreateSnapshot), RegionAction::answer(403, "not_authorized"));
    let worker = fleet.worker(Host::Own);
    let next = "it needs the role Editor on VPC Infrastructure Services";
    let ended = fleet.run(&["enqueue", SERVER, "--wait"]).await.code(5).says(&[
        "dead: snapshot: POST",
        "403 not_authorized",
        next,
    ]);
    let id = ended.out.split_whitespace().next().unwrap().to_owned();
    let listed = fleet.run(&["jobs", "list"]).await.code(0).says(&["403 not_authorized"]);
    assert_eq!(listed.out.lines().count(), 2, "{}", listed.out);
    fleet
        .run(&["jobs", "cancel", &id])
        .await
        .code(0)
        .says(&["dead already, and nothing was removed: `snapferry gc`"]);
    fleet
        .run(&["jobs", "list", "--most", "0"])
        .await
        .code(0)
        .says(&["there are more jobs that are dead: --most N shows them"]);
    let ended = fleet.run(&["jobs", "show", &id]).await.code(0).says(&["403 not_authorized", next]);
    assert_eq!(ended.out.matches(next).count(), 1, "{}", ended.out);
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gc_saw_last_is_in_every_workers_metrics() {
    let Some(fleet) = Fleet::start().await else { return };
    let (bench, faults) = (&fleet.bench, fleet.bench.sim.faults());
    let before = bench.sim.history().len();
    faults.add(RegionRule::on(Op::CreateVolume), RegionAction::ApplyThenHang);
    let mut child = bench.command(Host::Own, &["replicate", SERVER]).spawn().unwrap();
    while bench.made(Op::CreateVolume, before) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    faults.clear();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let worker = Worker::start(fleet.command(Host::Own, &["worker", "--metrics", &address]));
    let leaked = async |more: &[&str], volumes: usize| {
        fleet.run(&[&["gc", "--min-age", "0s"], more].concat()).await.code(0);
        let address = address.clone();
        let metrics = tokio::task::spawn_blocking(move || get(&address, "/metrics")).await.unwrap();
        for line in [
            format!("snapferry_leaked_resources{{region=\"us-south\",kind=\"volume\"}} {volumes}"),
            "snapferry_leaked_resources{region=\"us-south\",kind=\"image\"} 0".to_owned(),
            "snapferry_last_survey_timestamp_seconds{region=\"us-south\"} 1".to_owned(),
        ] {
            assert!(metrics.contains(&line), "{line:?} is not in:\n{metrics}");
        }
    };
    leaked(&[], 1).await;
    leaked(&["--apply"], 0).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_and_prometheus_finds_what_counts() {
    let Some(mut fleet) = Fleet::start().await else { return };
    let socket = fleet.bench.state_folder(Host::Own).with_extension("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let log = fleet.bench.state_folder(Host::Own).with_extension("log");
    let mut command = fleet.command(Host::Own, &["--log-format", "json", "worker", "--metrics", &address]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "1500000");
    command.stderr(std::fs::File::create(&log).unwrap());
    let worker = Worker::start(command);
    let receive = |systemd: &UnixDatagram| {
        let mut buffer = [0; 4096];
        let length = systemd.recv(&mut buffer).expect("systemd is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let first = receive(&systemd);
    assert!(first.contains("READY=1") && first.contains("STATUS=idle"), "{first}");
    fleet.bench.sim.faults().add(
        RegionRule::on(Op::GetAttachment).when(When::First(1)),
        RegionAction::delay(Duration::from_millis(1500)),
    );
    fleet.run(&["enqueue", SERVER]).await.code(0);
    let mut seen = String::new();
    while !seen.contains("STATUS=web01 attach") {
        seen = receive(&systemd);
        assert!(seen.contains("WATCHDOG=1"), "{seen}");
    }
    // A thread must receive the worker's messages, as systemd does; otherwise the worker can't send more.
    let (sender, messages) = std::sync::mpsc::channel();
    std::thread::spawn(move || while sender.send(receive(&systemd)).is_ok() {});
    fleet.until_state("done").await;
    let (served, at) = (address.clone(), "/metrics");
    let metrics = tokio::task::spawn_blocking(move || get(&served, at)).await.unwrap();
    for line in [
        "snapferry_jobs{state=\"done\"} 1",
        "snapferry_last_success_timestamp_seconds{server=\"web01\",region=\"us-east\"} 1",
        "snapferry_job_results_total{result=\"done\",class=\"\"} 1",
        "snapferry_step_duration_seconds_count{step=\"convert\"} 1",
        "snapferry_oldest_ready_seconds 0",
        "snapferry_cloud_requests_total{method=\"POST\",resource=\"snapshots\",code=\"201\"} 1",
        "snapferry_source_bytes_total 1073741824",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in:\n{metrics}");
    }
    // Without the queue the worker stays healthy, and reports that it is not ready.
    fleet.redis.kill();
    let (served, again) = (address.clone(), address.clone());
    let health = tokio::task::spawn_blocking(move || get(&served, "/healthz")).await.unwrap();
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let ready = tokio::task::spawn_blocking(move || get(&again, "/readyz")).await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    while messages.try_recv().is_ok() {}
    let fed = messages.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(fed.contains("WATCHDOG=1"), "the watchdog is fed whatever Redis does: {fed}");
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0));
    let lines: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let step = lines
        .iter()
        .find(|line| line["message"].as_str().is_some_and(|text| text.starts_with("convert done")));
    let step = step.expect("a line for the step");
    assert_eq!(
        (&step["spans"][0]["server"], &step["spans"][0]["region"]),
        (&SERVER.into(), &"us-east".into()),
        "{step}"
    );
    assert!(
        lines.iter().any(|line| line["request_id"].as_str().is_some_and(|id| id.starts_with("snapferry-"))),
        "requests have their ids"
    );
}
