//! Work that another server has done or is doing: journals of jobs that another server has finished,
//! retention that no job has applied yet, and two jobs for one server.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use snapferry_fleet::replicate::snapshot_tags::Holder;
use snapferry_ibmcloud::vpc::Tag;
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule, When};

use super::crashes::{At, Moment};
use crate::support::{Bench, Ended, HOME, Host, SERVER};

/// Resumes all unfinished jobs with a journal on `host`.
async fn resume_all(bench: &Bench, host: Host) -> Ended {
    bench.finish(bench.command(host, &["replicate", "--resume"])).await
}

/// Killed on one server, finished on another, and pruned there by newer jobs: the old journal is closed, and
/// nothing changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_a_job_that_others_have_left_behind_is_closed() {
    for (at, moment) in [
        (At::Cloud(Op::GetSnapshot, 1), Moment::Before),
        (At::Cloud(Op::CreateAttachment, 1), Moment::In),
        (At::Cloud(Op::CreateImage, 1), Moment::In),
        (At::Cloud(Op::UpdateImage, 2), Moment::Before),
        (At::Cloud(Op::UpdateSnapshot, 1), Moment::Before),
    ] {
        let bench = Bench::with_history().await;
        bench.crash(at, moment).await;
        bench.resume(Host::Other).await.code(0);
        for _ in 0..2 {
            bench.run(Host::Other, &[]).await.code(0);
        }
        let (latest, requests) = (bench.latest().await.expect("there is one").id, bench.sim.history().len());
        let closed = resume_all(&bench, Host::Own).await.code(0);
        closed.says(&["is over, nothing was made", "newer job"]);
        assert_eq!(
            bench.sim.history().len(),
            requests,
            "{at:?}: {:?}",
            bench.sim.history().split_off(requests)
        );
        assert_eq!(bench.latest().await.map(|latest| latest.id), Some(latest), "{at:?}");
        resume_all(&bench, Host::Own).await.code(0).says(&["nothing to resume"]);
        assert_eq!(bench.leaks().await, Vec::<String>::new(), "{at:?}");
        bench.sim.shutdown().await;
    }
}

/// An old journal can't abandon a job that another server has finished.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_has_finished_is_not_given_up() {
    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::CreateAttachment, 1), Moment::In).await;
    bench.resume(Host::Other).await.code(0);
    let requests = bench.sim.history().len();
    let jobs = bench.state_folder(Host::Own).join("jobs");
    let job = std::fs::read_dir(jobs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .max()
        .unwrap();
    let abandon = ["replicate", "--abandon", job.trim_end_matches(".jsonl")];
    bench
        .finish(bench.command(Host::Own, &abandon))
        .await
        .code(2)
        .says(&["is done, and what it made is in use"]);
    assert_eq!(bench.sim.history().len(), requests);
    bench.sim.shutdown().await;
}

/// If the cloud does not answer, nothing is changed, and the journal stays open.
#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_known_nothing_is_changed() {
    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::CreateAttachment, 1), Moment::In).await;
    let requests = bench.sim.history().len();
    for operation in [Op::GetSnapshot, Op::ListSnapshots] {
        bench.sim.faults().add(RegionRule::on(operation), RegionAction::answer(403, "not_authorized"));
    }
    bench.resume(Host::Own).await.code(5).says(&["not_authorized", "--resume"]);
    assert_eq!(bench.sim.history().len(), requests);
    bench.disarm();
    bench.resume(Host::Own).await.code(0).says(&["web01: image web01-latest"]);
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;
}

/// The local journal is that of a finished job; the unfinished job began on another server.
#[tokio::test(flavor = "multi_thread")]
async fn the_unfinished_job_is_resumed_whatever_the_journal_here_says() {
    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::CreateAttachment, 1), Moment::In).await;
    bench.resume(Host::Other).await.code(0);
    bench.crash_on(Host::Other, At::Cloud(Op::CreateAttachment, 1), Moment::In).await;
    let before = bench.latest().await.expect("there is one").id;
    bench.resume(Host::Own).await.code(0).says(&["is over, nothing was made", "web01: image web01-latest"]);
    assert_ne!(bench.latest().await.map(|latest| latest.id), Some(before));
    let requests = bench.sim.history().len();
    bench.resume(Host::Other).await.code(0).says(&["is over, nothing was made"]);
    assert_eq!((bench.sim.history().len(), bench.leaks().await), (requests, Vec::new()));
    bench.sim.shutdown().await;
}

/// Killed between the mark and pruning: the next `gc` or `--resume` prunes, by the rules of the job and not
/// by its own.
#[tokio::test(flavor = "multi_thread")]
async fn retention_is_caught_up_with_by_the_jobs_own_rules() {
    for by_gc in [false, true] {
        for (kept, images) in [("2", 2), ("3", 3)] {
            let bench = Bench::with_history().await;
            let rules = ["--keep-images", kept, "--keep-objects", kept];
            bench.crash_with(Host::Own, At::Cloud(Op::DeleteSnapshot, 1), Moment::Before, &rules).await;
            assert_eq!((bench.snapshots().await.len(), bench.images().await.len()), (2, 3));
            // Whatever options this command has: the rules were set when the job began.
            if by_gc {
                let gone = bench.gc(Host::Other).await;
                assert!(gone.contains(&"snapshot".to_owned()), "{gone:?}");
            } else {
                bench
                    .run(Host::Other, &["--resume", "--keep-images", "1"])
                    .await
                    .code(0)
                    .says(&["nothing to resume"]);
            }
            let waited = async || (bench.snapshots().await.len(), bench.images().await.len()) == (1, images);
            while !waited().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(bench.gc(Host::Other).await, Vec::<String>::new());
            let requests = bench.sim.history().len();
            bench.resume(Host::Own).await.code(0).says(&["is over", "marked as done"]);
            assert_eq!(bench.sim.history().len(), requests);
            assert_eq!(bench.leaks().await, Vec::<String>::new());
            bench.sim.shutdown().await;
        }
    }
}

/// While the newest job is unfinished, no other process prunes for it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_caught_up_with_while_the_newest_job_is_open() {
    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::DeleteSnapshot, 1), Moment::Before).await;
    bench.crash_on(Host::Other, At::Cloud(Op::GetSnapshot, 1), Moment::Before).await;
    let found = bench.finish(bench.command(Host::Own, &["gc", "--min-age", "0s", "--json"])).await.json();
    let found: Vec<&str> =
        found["findings"].as_array().unwrap().iter().map(|one| one["because"].as_str().unwrap()).collect();
    assert_eq!(found, ["unfinished"]);
    bench.sim.shutdown().await;
}

/// Two jobs begin at once: one continues, the other one ends, and names the first.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_begin_at_once_one_goes_on() {
    for round in 0..3 {
        let bench = Bench::with_history().await;
        let (before, since) = (bench.latest().await.expect("there is one"), bench.sim.history().len());
        // Both have searched for other jobs before either has made anything.
        let slow = RegionAction::delay(Duration::from_millis(400));
        bench.sim.faults().add(RegionRule::on(Op::CreateSnapshot).when(When::First(2)), slow);
        let (one, two) = tokio::join!(bench.run(Host::Own, &[]), bench.run(Host::Other, &[]));
        let mut ended = [one, two];
        ended.sort_by_key(|ended| ended.code);
        let [winner, loser] = ended;
        let both = format!("{}\n---\n{}", winner.err, loser.err);
        assert_eq!(winner.code, Some(0), "round {round}: {both}");
        if loser.code == Some(0) {
            // Both began within one second, and one was finished before the other searched again: both
            // succeed, and the newer image is the latest.
            assert!(both.contains("web01-latest is of a newer job already"), "round {round}: {both}");
            assert!(bench.images().await.iter().any(|image| image.id == before.id), "round {round}: {both}");
            assert_eq!(bench.leaks().await, Vec::<String>::new(), "round {round}");
            bench.sim.shutdown().await;
            continue;
        }
        winner.code(0).says(&["web01: image web01-latest"]);
        let refused = loser.code(2);
        refused.says(&["is under way on ferry", "and not done", "--resume 01", "counts for dead"]);
        assert_eq!(bench.made(Op::CreateImage, since), 1, "round {round}");
        let images = bench.images().await;
        assert!(
            images.len() == 2 && images.iter().any(|image| image.id == before.id),
            "round {round}: {images:?}"
        );
        assert_eq!(bench.leaks().await, Vec::<String>::new(), "round {round}");
        // The job that ended has nothing to resume.
        for host in [Host::Own, Host::Other] {
            bench.resume(host).await.code(0).says(&["nothing to resume"]);
        }
        bench.sim.shutdown().await;
    }
}

/// A job under way is reported before a new one makes anything; on its own machine, where it is known to be
/// dead, it blocks no other job.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_may_be_under_way_elsewhere_keeps_others_off_for_a_day() {
    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::CreateVolume, 1), Moment::In).await;
    let requests = bench.sim.history().len();
    bench
        .run(Host::Other, &[])
        .await
        .code(2)
        .says(&["is under way on ferry since", "`snapferry replicate web01 --resume"]);
    assert_eq!(bench.sim.history().len(), requests);
    // A day later.
    let dead = bench
        .snapshots()
        .await
        .into_iter()
        .find(|snapshot| Holder::of(&snapshot.user_tags).is_some())
        .unwrap();
    let holder = Holder::of(&dead.user_tags).unwrap();
    let before = Holder { since: holder.since - Duration::from_secs(25 * 3600), ..holder };
    bench.client(HOME).retag_snapshot(&dead.id, Holder::is_tag, &[before.tag().unwrap()]).await.unwrap();
    bench.run(Host::Other, &[]).await.code(0).says(&["was begun elsewhere", "web01: image web01-latest"]);
    // Nothing of the open job was pruned; the older job ends without a change once it is resumed.
    bench.resume(Host::Own).await.code(0).says(&["web01-latest is of a newer job already"]);
    assert_eq!(bench.leaks().await, Vec::<String>::new());
    bench.sim.shutdown().await;

    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::CreateVolume, 1), Moment::In).await;
    bench.run(Host::Own, &[]).await.code(0).says(&["was broken off", "web01: image web01-latest"]);
    bench.sim.shutdown().await;
}

/// A job that failed by itself blocks no other job.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_holds_nobody_up() {
    let bench = Bench::with_history().await;
    bench.sim.faults().add(RegionRule::on(Op::CreateVolume), RegionAction::answer(403, "not_authorized"));
    bench.run(Host::Own, &[]).await.code(5);
    bench.disarm();
    bench.run(Host::Other, &[]).await.code(0).says(&["web01: image web01-latest"]);
    bench.sim.shutdown().await;
}

/// A job is suspended, then taken over and finished by another server: once it continues it finds that, and
/// changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_taken_over_from_touches_nothing() {
    for at in [Op::GetAttachment, Op::CreateVolume, Op::GetImage] {
        let bench = Bench::with_history().await;
        let slow = RegionAction::delay(Duration::from_millis(300));
        bench.sim.faults().add(RegionRule::on(at).when(When::First(1)), slow);
        let mut command = bench.command(Host::Own, &["replicate", SERVER]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while bench.sim.faults().fired() != [1] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        bench.disarm();
        bench
            .resume(Host::Other)
            .await
            .code(0)
            .says(&["is taken over from ferry", "web01: image web01-latest"]);
        let (latest, requests) = (bench.latest().await.map(|latest| latest.id), bench.sim.history().len());
        let stored = bench.sim.store().stats();
        kill_process(pid, Signal::CONT).unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        let ended = Ended::from(output);
        // If only reads were left, the job finds its work done.
        if at == Op::GetImage {
            ended.code(0).says(&["web01-latest already"]);
        } else {
            assert_ne!(ended.code, Some(0), "{at:?}: {}", ended.err);
            ended.says(&["taken the job over"]);
        }
        assert_eq!(
            bench.sim.history().len(),
            requests,
            "{at:?}: {:?}",
            bench.sim.history().split_off(requests)
        );
        for (operation, count) in bench.sim.store().stats().counts {
            let changes = matches!(
                operation,
                snapferry_sim::Operation::PutObject
                    | snapferry_sim::Operation::CompleteMultipartUpload
                    | snapferry_sim::Operation::DeleteObject
            );
            assert!(!changes || count.requests == stored.of(operation).requests, "{at:?}: {operation}");
        }
        assert_eq!(bench.latest().await.map(|latest| latest.id), latest, "{at:?}");
        assert_eq!(bench.leaks().await, Vec::<String>::new(), "{at:?}");
        bench.sim.shutdown().await;
    }
}

/// Snapshots without retention rules, from old versions, are left to their own jobs.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_prunes_by_rules_that_he_has_to_guess() {
    let bench = Bench::with_history().await;
    bench.crash(At::Cloud(Op::DeleteSnapshot, 1), Moment::Before).await;
    for snapshot in bench.snapshots().await {
        let none: &[Tag] = &[];
        let rules = |tag: &str| tag.starts_with("snapferry:rules:");
        bench.client(HOME).retag_snapshot(&snapshot.id, rules, none).await.unwrap();
    }
    assert_eq!(bench.gc(Host::Other).await, Vec::<String>::new());
    assert_eq!(bench.snapshots().await.len(), 2);
    bench.sim.shutdown().await;
}
