//! Questions before what can't be undone, on a real terminal: each answer, no answer, and Ctrl-C.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_engine::convert::plan::Options;
use snapferry_fleet::queue::{Lease, OnFailure, Queue as _, Timing, Token};
use snapferry_testkit::disks::{Disk, Kind};
use tempfile::TempDir;

use crate::support::{
    AWAY, Bench, Bucket, CTRL_C, CTRL_D, HOME, Host, Made, Redis, SAFE, Terminal, convert_disk, folder, job,
    run, snapferry,
};

const WIDTH: u16 = 200;

/// Runs a command on a terminal, waits for its question, and presses `keys`. Returns the exit code and all
/// that was printed.
#[track_caller]
fn answer(command: &Command, question: &str, keys: &str) -> (Option<i32>, String) {
    let mut terminal = Terminal::start(command, WIDTH);
    terminal.until(&format!("{question}? [y/N] "));
    terminal.press(keys);
    terminal.end()
}

/// Uploads of a bucket, two of them.
fn two_uploads() -> (Bucket, Command) {
    let bucket = Bucket::start();
    bucket.begin_upload("one.qcow2");
    bucket.begin_upload("two.qcow2");
    let command = bucket.command(["uploads", "abort", "--all"]);
    (bucket, command)
}

const ABORT: &str = "abort 2 incomplete uploads in images";

#[test]
fn yes_does_it() {
    for yes in ["y\n", "yes\n"] {
        let (bucket, command) = two_uploads();
        let (code, text) = answer(&command, ABORT, yes);
        assert_eq!((code, bucket.open_uploads()), (Some(0), 0), "{text}");
        assert!(text.contains("  one.qcow2  ") && text.contains("aborted one.qcow2  "), "{text}");
    }
}

#[test]
fn no_and_a_mere_return_do_nothing() {
    for no in ["n\n", "\n", "maybe\n"] {
        let (bucket, command) = two_uploads();
        let (code, text) = answer(&command, ABORT, no);
        assert_eq!((code, bucket.open_uploads()), (Some(130), 2), "{no:?}: {text}");
        assert!(text.contains("not confirmed, nothing was changed"), "{text}");
    }
}

#[test]
fn the_end_of_the_input_does_nothing() {
    let (bucket, command) = two_uploads();
    let (code, text) = answer(&command, ABORT, CTRL_D);
    assert_eq!((code, bucket.open_uploads()), (Some(130), 2), "{text}");
    assert!(text.contains("not confirmed, nothing was changed"), "{text}");
}

#[test]
fn ctrl_c_does_nothing() {
    let (bucket, command) = two_uploads();
    let (code, text) = answer(&command, ABORT, CTRL_C);
    assert_eq!((code, bucket.open_uploads()), (Some(130), 2), "{text}");
    assert!(text.contains("interrupted, nothing was changed"), "{text}");
}

#[test]
fn the_flag_answers_beforehand() {
    for flag in ["--yes", "-y"] {
        let (bucket, mut command) = two_uploads();
        let (code, text) = Terminal::start(command.arg(flag), WIDTH).end();
        assert_eq!((code, bucket.open_uploads()), (Some(0), 0), "{text}");
        assert!(!text.contains("[y/N]"), "{text}");
    }
}

#[test]
fn the_variable_answers_beforehand() {
    let (bucket, mut command) = two_uploads();
    let (code, text) = Terminal::start(command.env("SNAPFERRY_YES", "1"), WIDTH).end();
    assert_eq!((code, bucket.open_uploads()), (Some(0), 0), "{text}");
}

#[test]
fn a_variable_that_says_no_lets_the_command_ask() {
    let (bucket, mut command) = two_uploads();
    let (code, text) = answer(command.env("SNAPFERRY_YES", "0"), ABORT, "y\n");
    assert_eq!((code, bucket.open_uploads()), (Some(0), 0), "{text}");
}

#[test]
fn a_variable_that_is_neither_is_an_error() {
    let (bucket, mut command) = two_uploads();
    command.env("SNAPFERRY_YES", "ja");
    run(command).expect(2, &["error: SNAPFERRY_YES=ja: give 1 (yes) or 0 (ask)"]);
    assert_eq!(bucket.open_uploads(), 2);
}

#[test]
fn a_rehearsal_asks_nothing() {
    for more in [&["--dry-run"][..], &["--dry-run", "--yes"]] {
        let (bucket, mut command) = two_uploads();
        let (code, text) = Terminal::start(command.args(more), WIDTH).end();
        assert_eq!((code, bucket.open_uploads()), (Some(0), 2), "{text}");
        assert!(text.contains("would abort one.qcow2") && !text.contains("[y/N]"), "{text}");
    }
}

#[test]
fn one_upload_that_is_named_is_aborted_without_a_question() {
    let (bucket, _) = two_uploads();
    let (code, text) =
        Terminal::start(&bucket.command(["uploads", "abort", "--key", "one.qcow2"]), WIDTH).end();
    assert_eq!((code, bucket.open_uploads()), (Some(0), 1), "{text}");
}

/// An image, and a file that it would be restored over.
fn precious() -> (Made, TempDir, PathBuf) {
    let made = convert_disk(&Disk::new(Kind::Mixed, ByteCount(4 * MIB), 3), &Options::default());
    let home = folder();
    let target = home.path().join("back.raw");
    std::fs::write(&target, b"precious").expect("written");
    (made, home, target)
}

fn restore(image: &Path, to: &Path) -> Command {
    let mut command = snapferry(["restore", "--force"]);
    command.arg(image).arg("--output").arg(to);
    command
}

#[test]
fn a_file_is_restored_over_only_after_a_yes() {
    let (made, _home, target) = precious();
    let question = format!("write over {} (a file of 8 B)", target.display());
    let (code, text) = answer(&restore(&made.path, &target), &question, "\n");
    assert_eq!(code, Some(130), "{text}");
    assert_eq!(std::fs::read(&target).expect("it is there"), b"precious");
    let (code, text) = answer(&restore(&made.path, &target), &question, "y\n");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(std::fs::metadata(&target).expect("it is there").len(), 4 * MIB);
}

#[test]
fn an_interrupted_question_leaves_the_file() {
    let (made, home, target) = precious();
    let question = format!("write over {} (a file of 8 B)", target.display());
    let (code, text) = answer(&restore(&made.path, &target), &question, CTRL_C);
    assert_eq!(code, Some(130), "{text}");
    assert_eq!(crate::support::left_in(home.path()), ["back.raw"]);
    assert_eq!(std::fs::read(&target).expect("it is there"), b"precious");
}

#[test]
fn a_new_or_an_empty_file_is_no_question() {
    let (made, home, target) = precious();
    std::fs::write(&target, b"").expect("written");
    for to in [target, home.path().join("new.raw")] {
        let (code, text) = Terminal::start(&restore(&made.path, &to), WIDTH).end();
        assert_eq!(code, Some(0), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_images_are_deleted_only_after_a_yes() {
    let bench = Bench::with_history().await;
    let names: Vec<String> = bench.images().await.into_iter().map(|image| image.name).collect();
    let before = bench.sim.history().len();
    let command = |names: &[String]| {
        let mut args = vec!["images", "delete", "--region", AWAY];
        args.extend(names.iter().map(String::as_str));
        bench.command(Host::Own, &args)
    };
    let question = format!("delete 2 images in us-east: {}", names.join(", "));
    let (code, text) = answer(&command(&names), &question, "n\n");
    assert_eq!((code, bench.sim.history().len()), (Some(130), before), "{text}");
    // One that is named is no question.
    let (code, text) = Terminal::start(&command(&names[..1]), WIDTH).end();
    assert_eq!((code, bench.images().await.len()), (Some(0), 1), "{text}");
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_snapshots_are_deleted_only_after_a_yes() {
    let bench = Bench::start().await;
    for name in ["one", "two"] {
        let args = ["snapshot", "create", "web01", "--name", name];
        bench.finish(bench.command(Host::Own, &args)).await.code(0);
    }
    let command = bench.command(Host::Own, &["snapshot", "delete", "one", "two"]);
    let question = format!("delete 2 snapshots in {HOME}: one, two");
    let (code, text) = answer(&command, &question, CTRL_C);
    assert_eq!((code, bench.snapshots().await.len()), (Some(130), 2), "{text}");
    let (code, text) = answer(&command, &question, "y\n");
    assert_eq!((code, bench.snapshots().await.len()), (Some(0), 0), "{text}");
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_given_up_and_leftovers_are_removed_only_after_a_yes() {
    let bench = Bench::start().await;
    let failed = bench.run(Host::Own, &["--bucket-location", "us-geo", "--json"]).await.code(5);
    let record: Value = serde_json::from_str(failed.out.lines().last().unwrap()).unwrap();
    let id = record["job"].as_str().unwrap();
    let (before, leaks) = (bench.sim.history().len(), bench.leaks().await);
    let unchanged = async || (bench.sim.history().len(), bench.leaks().await) == (before, leaks.clone());

    let abandon = bench.command(Host::Own, &["replicate", "--abandon", id]);
    let mut terminal = Terminal::start(&abandon, WIDTH);
    terminal.until(&format!("give up job {id}, web01 into us-east, and remove object s3://"));
    terminal.until("? [y/N] ");
    terminal.press(CTRL_C);
    let (code, text) = terminal.end();
    assert_eq!((code, unchanged().await), (Some(130), true), "{text}");

    let gc = bench.command(Host::Other, &["gc", "--apply", "--min-age", "0s"]);
    let mut terminal = Terminal::start(&gc, WIDTH);
    terminal.until("? [y/N] ");
    terminal.press("\n");
    let (code, text) = terminal.end();
    assert_eq!((code, unchanged().await), (Some(130), true), "{text}");
    assert!(text.contains("remove ") && text.contains("snapshot  web01-"), "{text}");
    let mut terminal = Terminal::start(&gc, WIDTH);
    terminal.until("? [y/N] ");
    terminal.press("y\n");
    let (code, text) = terminal.end();
    assert_eq!((code, bench.leaks().await), (Some(0), Vec::new()), "{text}");
    bench.sim.shutdown().await;
}

/// A queue with two dead jobs and two schedules.
async fn queue() -> Option<Redis> {
    let redis = Redis::start(&SAFE).await?;
    let queue = redis.queue(Timing::default()).await;
    for server in ["db01", "web01"] {
        queue.enqueue(&job(server)).await.unwrap();
        let taken = queue.claim("ferry", &Token::new()).await.unwrap().expect("a job");
        let lease = Lease { id: taken.job.id, token: taken.token };
        queue.fail(&lease, "no such server", OnFailure::Dead).await.unwrap();
        let mut add = snapferry(["schedule", "add", server, "--cron", "0 4 * * *", server, "--region", HOME]);
        add.args(["--to", AWAY, "--bucket", "images", "--redis", &redis.url()]);
        run(add).expect(0, &[]);
    }
    Some(redis)
}

async fn asked_on_queue(args: &[&str], question: &str, done: &str) {
    let Some(redis) = queue().await else { return };
    let mut command = snapferry(args);
    command.args(["--redis", &redis.url()]);
    let before = redis.contents().await;
    let (code, text) = answer(&command, question, "\n");
    assert_eq!(code, Some(130), "{text}");
    assert!(redis.contents().await == before, "{args:?} has changed the queue");
    let (code, text) = answer(&command, question, "y\n");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(done) && redis.contents().await != before, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_jobs_are_forgotten_only_after_a_yes() {
    let question = "forget 2 jobs that ended more than 0s ago";
    asked_on_queue(&["jobs", "purge", "--older-than", "0s"], question, "2 jobs forgotten").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_schedules_are_removed_only_after_a_yes() {
    let question = "remove 2 schedules: db01, web01";
    asked_on_queue(&["schedule", "rm", "db01", "web01"], question, "web01 is no more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_are_forgotten_only_after_a_yes() {
    let question = "forget the last images of 2 servers: db01 into us-east, web01 into us-east";
    asked_on_queue(&["status", "--forget", "db01", "web01"], question, "web01 into us-east is forgotten")
        .await;
}
