//! Workers killed at every change, suspended past their lease, or stopped during a job: another worker
//! continues, and the first one changes nothing more.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use snapferry_fleet::queue::{JobState, Lease, Queue as _, Token};
use snapferry_sim::{
    Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, When,
};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

use super::{Fleet, Worker, patience};
use crate::replicate::crashes::{At, Moment, POINTS};
use crate::support::{Cut, Host, Proxy, SERVER, job};

/// Number of fleets at a time, with the short lease of tests and with the real one: most of their time is a
/// wait for the lease to run out.
const AT_ONCE: [usize; 2] = [4, 20];

/// Kills the worker that has the job at that point. Returns the time until the other worker has it: `None`
/// inside if the job was done by then, and `None` outside if the fleet can't start here.
async fn killed(at: At, moment: Moment) -> Option<Option<Duration>> {
    let fleet = Fleet::start().await?;
    let case = format!("{at:?} {moment:?}");
    let (since, before) =
        (fleet.bench.sim.history().len(), fleet.bench.latest().await.expect("there is one"));
    fleet.bench.arm(at, moment);
    let mut workers = [fleet.worker(Host::Own), fleet.worker(Host::Other)];
    fleet.run(&["enqueue", SERVER, "--fast-restore-clone"]).await.code(0);
    let queue = fleet.queue().await;
    let begun = Instant::now();
    while !fleet.bench.has_fired(at) {
        assert!(begun.elapsed() < patience(), "{case} was not reached");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Time for the change itself, if the server is to make it. A kill a moment earlier is another point, and
    // as good a test.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let victim = loop {
        match queue.jobs_in(&[JobState::Running, JobState::Done], 1).await.unwrap().pop() {
            // After the job's last change to the cloud no request is left to hang.
            Some(job) if job.state == JobState::Done => return Some(None),
            Some(running) => break running.worker.unwrap(),
            // On a slow machine the lease may have run out meanwhile; one of the two workers then claims the
            // job again.
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    workers[usize::from(victim.starts_with("ferry2"))].kill();
    let killed_at = SystemTime::now();
    fleet.bench.disarm();
    assert!(
        fleet.bench.images().await.iter().any(|image| image.id == before.id),
        "{case}: no image to recover from"
    );
    fleet.until_state("done").await;
    let claims = queue.events(1000).await.unwrap().into_iter().filter(|event| event.what == "claimed");
    let taken =
        claims.filter(|event| event.at >= killed_at && event.details != victim).map(|event| event.at).next();
    assert_eq!(fleet.job().await["attempts"], 0, "{case}: attempts");
    assert_ne!(fleet.bench.latest().await.unwrap().id, before.id, "{case}: the latest is not new");
    fleet.check(since, &case).await;
    fleet.nothing_is_left(&case).await;
    Some(Some(taken.expect("the other one has claimed it").duration_since(killed_at).unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_at_every_change_and_another_one_takes_over() {
    let (slots, local, mut running) = (
        Arc::new(Semaphore::new(AT_ONCE[usize::from(super::has_real_lease())])),
        LocalSet::new(),
        JoinSet::new(),
    );
    for &(_, at) in POINTS {
        for &moment in at.moments() {
            let slots = Arc::clone(&slots);
            // The futures of tests stay in their thread; the work is done in other processes.
            let case = async move {
                let _slot = slots.acquire().await.unwrap();
                killed(at, moment).await
            };
            running.spawn_local_on(case, &local);
        }
    }
    let tried = running.len();
    let ended: Vec<Option<Duration>> =
        local.run_until(running.join_all()).await.into_iter().flatten().collect();
    let mut took: Vec<Duration> = ended.iter().copied().flatten().collect();
    took.sort_unstable();
    let Some(&longest) = took.last() else { return };
    let (half, most) = (took[took.len() / 2], took[took.len() * 95 / 100]);
    let _ = writeln!(
        std::io::stderr(),
        "killed at {tried} points, lease {}: {} were over by then, {} taken over and done; takeover p50 {half:.1?}, p95 {most:.1?}, max {longest:.1?}",
        super::lease(),
        ended.len() - took.len(),
        took.len()
    );
    assert!(ended.len() == tried && took.len() + 3 >= tried, "{} of {tried} were taken over", took.len());
}

/// A worker that was suspended at `at` while another one took over changes nothing more.
async fn wakes_up_too_late(at: At) {
    let Some(fleet) = Fleet::start().await else { return };
    let (case, since) = (format!("asleep at {at:?}"), fleet.bench.sim.history().len());
    // The response arrives while the worker is suspended, and the worker reads it when it continues.
    let wait = Duration::from_millis(300);
    match at {
        At::Cloud(operation, nth) => {
            fleet
                .bench
                .sim
                .faults()
                .add(RegionRule::on(operation).when(When::Nth(nth)), RegionAction::delay(wait));
        }
        At::Bucket(operation, nth) => {
            fleet
                .bench
                .sim
                .store()
                .faults()
                .add(Rule::on(operation).when(When::Nth(nth)), Action::Delay { milliseconds: 300 });
        }
    }
    let log = fleet.bench.state_folder(Host::Own).with_extension("log");
    let mut command = fleet.command(Host::Own, &["worker", "--metrics", "off"]);
    command.stderr(std::fs::File::create(&log).unwrap());
    let sleeper = Worker::start(command);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the point", async || fleet.bench.has_fired(at)).await;
    sleeper.signal(Signal::STOP);
    tokio::time::sleep(wait).await;
    let second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await, Some(0));
    let changes = |fleet: &Fleet| {
        let changing = [
            Store::UploadPart,
            Store::CompleteMultipartUpload,
            Store::PutObject,
            Store::DeleteObject,
            Store::CreateMultipartUpload,
        ];
        let stats = fleet.bench.sim.store().stats();
        (fleet.bench.sim.history(), changing.map(|operation| stats.of(operation).requests))
    };
    let before = changes(&fleet);
    sleeper.signal(Signal::CONT);
    let has_given_up = async || std::fs::read_to_string(&log).unwrap().contains("nothing more was changed");
    fleet.until("the end of the sleeper's job", has_given_up).await;
    sleeper.signal(Signal::TERM);
    assert_eq!(sleeper.ended().await, Some(0));
    assert_eq!(changes(&fleet), before, "{case}: it has changed something");
    assert_eq!(fleet.job().await["state"], "done", "{case}");
    fleet.check(since, &case).await;
}

macro_rules! sleepers {
    ($($name:ident: $at:expr;)*) => {
        mod a_worker_that_wakes_up_too_late_touches_nothing {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    wakes_up_too_late($at).await;
                }
            )*
        }
    };
}

sleepers! {
    create_snapshot: At::Cloud(Op::CreateSnapshot, 1);
    create_attachment: At::Cloud(Op::CreateAttachment, 1);
    upload_part: At::Bucket(Store::UploadPart, 1);
    complete_multipart_upload: At::Bucket(Store::CompleteMultipartUpload, 1);
    delete_attachment: At::Cloud(Op::DeleteAttachment, 1);
    create_image: At::Cloud(Op::CreateImage, 1);
    update_image: At::Cloud(Op::UpdateImage, 1);
}

/// Resources of a job that waits for its next attempt are no leftovers, whatever their age.
#[tokio::test(flavor = "multi_thread")]
async fn gc_spares_what_the_fleet_has_still_to_do() {
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    fleet.bench.sim.faults().add(
        RegionRule::on(Op::CreateVolume),
        RegionAction::Answer { status: 403, code: None, retry_after_s: None },
    );
    let worker = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until_state("dead").await;
    drop(worker);
    fleet.bench.disarm();
    let job = fleet.job().await["job"].as_str().unwrap().to_owned();
    fleet.run(&["jobs", "retry", &job]).await.code(0);
    let collect = ["gc", "--apply", "--min-age", "0s"];
    fleet.run(&collect).await.code(0).says(&["no leftovers"]);
    fleet.run(&["jobs", "cancel", &job]).await.code(0).says(&["a worker is told"]);
    let _worker = fleet.worker(Host::Other);
    fleet.until_state("cancelled").await;
    fleet.nothing_is_left("cancelled while it waited").await;
    assert_eq!(fleet.bench.made(Op::CreateSnapshot, since), 1);
}

/// A job is cancelled after its worker died between the two renamings: the image before gets its name back,
/// by the record in the journal alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_between_two_renamings_gives_the_name_back() {
    let Some(fleet) = Fleet::start().await else { return };
    let before = fleet.bench.latest().await.expect("there is one");
    fleet.bench.sim.faults().add(RegionRule::on(Op::UpdateImage).when(When::Nth(2)), RegionAction::Hang);
    let first = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the second renaming", async || fleet.bench.sim.faults().fired() == [1]).await;
    first.signal(Signal::KILL);
    first.ended().await;
    fleet.bench.disarm();
    let job = fleet.job().await["job"].as_str().unwrap().to_owned();
    fleet.run(&["jobs", "cancel", &job]).await.code(0);
    let _second = fleet.worker(Host::Other);
    fleet.until_state("cancelled").await;
    assert_eq!(fleet.bench.latest().await.map(|latest| latest.id), Some(before.id));
    fleet.nothing_is_left("cancelled between two renamings").await;
}

/// A worker finishes the conversion under proxy, and no other worker converts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_finishes_what_it_converts() {
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    fleet
        .bench
        .sim
        .store()
        .faults()
        .add(Rule::on(Store::UploadPart).when(When::First(1)), Action::Delay { milliseconds: 1500 });
    let socket = fleet.bench.state_folder(Host::Own).with_extension("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = fleet.command(Host::Own, &["worker", "--metrics", "off"]);
    command.env("NOTIFY_SOCKET", &socket);
    let first = Worker::start(command);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the part", async || fleet.bench.sim.store().faults().fired() == [1]).await;
    first.signal(Signal::TERM);
    let stops = tokio::task::spawn_blocking(move || {
        let mut words = [0; 4096];
        loop {
            let length = systemd.recv(&mut words).expect("systemd is told");
            let told = String::from_utf8_lossy(&words[..length]).into_owned();
            if told.contains("STOPPING=1") {
                return told;
            }
        }
    });
    let stops = stops.await.unwrap();
    assert!(stops.contains("EXTEND_TIMEOUT_USEC=60000000"), "it asks for time to end in: {stops}");
    assert_eq!(first.ended().await, Some(0));
    let job = fleet.job().await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&"ready".into(), &0.into()),
        "given back, and nothing counted: {job}"
    );
    let sent = fleet.bench.sim.store().stats().of(Store::CompleteMultipartUpload).requests;
    let _second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    assert_eq!(
        fleet.bench.sim.store().stats().of(Store::CompleteMultipartUpload).requests,
        sent,
        "it was converted again"
    );
    fleet.check(since, "ended while converting").await;
}

/// At the second signal the worker gives back a job that it converts, too: it aborts the upload, and the
/// attempt does not count against the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_twice_ends_at_once() {
    let Some(fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    fleet.bench.sim.store().faults().add(Rule::on(Store::UploadPart).when(When::First(1)), Action::Hang);
    let first = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the part", async || fleet.bench.sim.store().faults().fired() == [1]).await;
    first.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fleet.job().await["state"], "running", "told once it goes on");
    first.signal(Signal::TERM);
    assert_eq!(first.ended().await, Some(0));
    let job = fleet.job().await;
    assert_eq!((&job["state"], &job["attempts"]), (&"ready".into(), &0.into()), "{job}");
    fleet.bench.disarm();
    let _second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    fleet.check(since, "told twice").await;
}

/// A request to the queue or its response is lost, and the worker sends the request again: the job does not
/// wait for the lease to run out.
async fn is_sent_again(words: &str, cut: Cut) {
    let Some(fleet) = Fleet::start().await else { return };
    let (since, queue) = (fleet.bench.sim.history().len(), fleet.queue().await);
    // Redis then knows the scripts, and executes each request at once.
    queue.enqueue(&job("other")).await.unwrap();
    let claimed = queue.claim("w1", &Token::new()).await.unwrap().unwrap();
    queue.finish(&Lease { id: claimed.job.id, token: claimed.token }, "{}").await.unwrap();
    queue.forget("other", "us-east").await.unwrap();
    fleet.run(&["enqueue", SERVER]).await.code(0);
    let proxy = Proxy::to(&fleet.redis).await;
    proxy.cut(words, cut);
    // A long lease, so that no renewal is sent meanwhile.
    let mut command = fleet.bench.command(Host::Own, &["worker", "--metrics", "off", "--lease", "30s"]);
    command.env("SNAPFERRY_REDIS", proxy.url());
    let _worker = Worker::start(command);
    fleet.until_state("done").await;
    assert!(proxy.has_cut(), "{words:?} was not sent");
    let id = fleet.job().await["job"].as_str().unwrap().to_owned();
    let events = queue.events(1000).await.unwrap().into_iter().filter(|event| event.id.to_string() == id);
    let claims = events.filter(|event| event.what == "claimed").count();
    assert_eq!(claims, 1, "cut {cut:?} {words:?}");
    fleet.check(since, &format!("cut {cut:?} {words:?}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_response_is_lost_is_sent_again() {
    is_sent_again("\r\nferry (", Cut::After).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_report_that_is_lost_is_sent_again() {
    is_sent_again("\r\ndone\r\n", Cut::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_report_whose_response_is_lost_is_sent_again() {
    is_sent_again("\r\ndone\r\n", Cut::After).await;
}

/// Redis stops for a while: if it is shorter than a lease, the job is not affected; if it is longer, the
/// worker gives the job up and continues it later. `enqueue --wait` keeps waiting.
async fn redis_is_gone(gone: Duration) {
    let Some(mut fleet) = Fleet::start().await else { return };
    let since = fleet.bench.sim.history().len();
    fleet.bench.sim.faults().add(
        RegionRule::on(Op::GetAttachment).when(When::First(1)),
        RegionAction::delay(Duration::from_millis(300)),
    );
    let _worker = fleet.worker(Host::Own);
    let mut waiting =
        fleet.command(Host::Own, &["enqueue", SERVER, "--wait"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(waiting.stdout.take().unwrap());
    // The job is in the queue.
    said.read_line(&mut String::new()).unwrap();
    let waiting = Worker(waiting);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    fleet.redis.kill();
    tokio::time::sleep(gone).await;
    fleet.redis.restart().await;
    fleet.until_state("done").await;
    assert_eq!(waiting.ended().await, Some(0));
    fleet.check(since, &format!("Redis gone for {gone:?}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restarts_within_a_lease() {
    redis_is_gone(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_gone_for_longer_than_a_lease() {
    redis_is_gone(Duration::from_secs(4)).await;
}

/// The queue has lost all its data: enqueueing again takes over the resources in the cloud, or leaves them to
/// gc.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_emptied_is_filled_again() {
    let Some(fleet) = Fleet::start().await else { return };
    fleet.bench.sim.faults().add(
        RegionRule::on(Op::GetAttachment).when(When::First(1)),
        RegionAction::delay(Duration::from_millis(300)),
    );
    let since = fleet.bench.sim.history().len();
    let _worker = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the attachment", async || fleet.bench.made(Op::CreateAttachment, since) == 1).await;
    fleet.redis.command(&["FLUSHALL"]).await;
    fleet.run(&["enqueue", SERVER, "--wait"]).await.code(0).says(&["web01 into us-east: done"]);
    fleet.nothing_is_left("emptied").await;
    assert_eq!(fleet.bench.images().await.iter().filter(|image| image.name == "web01-latest").count(), 1);
}
