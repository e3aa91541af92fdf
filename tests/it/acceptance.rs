//! `scripts/acceptance.sh` against the simulated cloud: each assumption that it compares is one of
//! this cloud, and on every way out nothing is left behind.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use snapferry_sim::{RegionAction, RegionOperation, RegionRule};
use snapferry_testkit::skip::has_oracle;

use crate::support::{BUCKET, Bench, Ended, Host, SERVER, left_in, program, wait_until};

/// Returns the script with a bench's settings in its environment. Its temporary files are in a folder of the
/// bench.
fn script(bench: &Bench, options: &[&str]) -> Command {
    let mut command = Command::new(format!("{}/scripts/acceptance.sh", env!("CARGO_MANIFEST_DIR")));
    command.env_clear().stdin(Stdio::null());
    let settings = bench.command(Host::Own, &["doctor"]);
    command.envs(settings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let temporary = bench.path("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    command.env("TMPDIR", temporary);
    command.args(["--snapferry", program(), "--transcript"]).arg(transcript(bench));
    command.args(options).args([SERVER, "--", "--poll-every", "0.02", "--device-files"]);
    command
}

fn transcript(bench: &Bench) -> PathBuf {
    bench.folder.path().join("transcript")
}

/// Asserts that neither the cloud, nor the bucket, nor this machine has anything of the script's.
async fn assert_nothing_left(bench: &Bench, ended: &Ended) {
    assert!(bench.leaks().await.is_empty(), "{:?}\n{}", bench.leaks().await, ended.out);
    assert!(bench.snapshots().await.is_empty() && bench.images().await.is_empty(), "{}", ended.out);
    let bucket = bench.sim.store().config().folder.join(BUCKET);
    let objects: Vec<String> = left_in(&bucket).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert!(objects.is_empty(), "{objects:?}\n{}", ended.out);
    assert!(left_in(&bench.folder.path().join("tmp")).is_empty(), "{}", ended.out);
}

/// True if the script's tools are installed: curl and jq. CI must have them.
fn has_tools() -> bool {
    has_oracle("curl") && has_oracle("jq")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_cloud_is_as_assumed_in_every_step() {
    if !has_tools() {
        return;
    }
    let bench = Bench::start().await;
    let ended = bench.finish(script(&bench, &["--yes"])).await.code(0);
    for step in ["doctor", "snapshot", "replicate", "verify", "restore", "compare", "gc"] {
        assert!(ended.out.contains(&format!("\n{step}: exit code 0 ")), "{step}: {}", ended.out);
    }
    let ended =
        ended.says(&[" 0 differ, ", " 0 things are left behind", "== all steps are done", "== status 0"]);
    let agreed = ended.out.lines().filter(|line| line.starts_with("agrees ")).count();
    assert!(agreed > 60 && ended.out.contains(&format!("== {agreed} assumptions agree")), "{}", ended.out);
    let kept = std::fs::read_to_string(transcript(&bench)).unwrap();
    assert!(kept.contains("== status 0") && kept.contains("\"message\":\"answered\""), "{kept}");
    let key = bench.sim.api_key();
    let tokens = ["eyJ", "a/0123456789abcdef0123456789abcdef", key.reveal()];
    assert!(!tokens.iter().any(|secret| kept.contains(secret)), "{kept}");
    assert_eq!(bench.made(RegionOperation::CreateVolume, 0), 1, "{}", ended.out);
    assert_nothing_left(&bench, &ended).await;
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_answer_is_reported_and_has_its_own_exit_code() {
    if !has_tools() {
        return;
    }
    let bench = Bench::start().await;
    let rule = RegionRule::on(RegionOperation::GetImage);
    bench.sim.faults().add(rule, RegionAction::answer(404, "not_found"));
    let ended = bench.finish(script(&bench, &["--probes"])).await.code(3);
    let ended = ended.says(&[
        "DIFFERS  VPC: an image that is not there: assumed 404 image_id_not_found, seen 404 not_found",
        " 1 differ, ",
        "== status 3",
    ]);
    assert!(!ended.out.contains("== snapshot"), "{}", ended.out);
    assert_nothing_left(&bench, &ended).await;
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_ends_it_and_what_was_made_is_removed() {
    if !has_tools() {
        return;
    }
    let bench = Bench::start().await;
    let rule = RegionRule::on(RegionOperation::CreateImage);
    bench.sim.faults().add(rule, RegionAction::answer(403, "not_authorized"));
    let ended = bench.finish(script(&bench, &["--yes"])).await.code(1);
    let ended =
        ended.says(&["replicate: exit code 5 ", "not_authorized", "removed  what job ", "== status 1"]);
    assert!(!ended.out.contains("== verify"), "{}", ended.out);
    assert_eq!(bench.made(RegionOperation::CreateVolume, 0), 1, "{}", ended.out);
    assert_nothing_left(&bench, &ended).await;
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_in_the_middle_leaves_nothing() {
    if !has_tools() {
        return;
    }
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let bench = Bench::start().await;
        // The image never becomes available, so the job stays in the middle of its work.
        bench.sim.faults().add(RegionRule::on(RegionOperation::CreateImage), RegionAction::StuckPending);
        let mut command = script(&bench, &["--yes"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        wait_until("an import is under way", || bench.made(RegionOperation::CreateImage, 0) > 0);
        kill_process(pid, signal).unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        let ended = Ended::from(output).code(code).says(&["== cleaning up", "removed  what job "]);
        assert_nothing_left(&bench, &ended).await;
        bench.sim.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_without_a_yes_or_on_a_server_that_is_in_use() {
    if !has_tools() {
        return;
    }
    let bench = Bench::start().await;
    let ended = bench.finish(script(&bench, &[])).await.code(2).says(&["--yes is needed", "== status 2"]);
    assert_eq!(bench.made(RegionOperation::CreateSnapshot, 0), 0, "{}", ended.out);
    assert_nothing_left(&bench, &ended).await;
    bench.sim.shutdown().await;

    let bench = Bench::with_history().await;
    let before = bench.sim.history().len();
    let ended =
        bench.finish(script(&bench, &["--yes"])).await.code(2).says(&["web01-latest is in us-east already"]);
    assert!(bench.sim.history()[before..].iter().all(|entry| entry.status >= 300), "{}", ended.out);
    assert_eq!(bench.images().await.len(), 2);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_wrong_is_refused() {
    let bench = Bench::start().await;
    let wrong: [(&[&str], &str); 4] = [
        (&["--nonsense"], "--nonsense: no such option"),
        (&["web02"], "one server, not web02 and web01"),
        (&["--snapferry", "/nowhere/snapferry"], "/nowhere/snapferry is not installed"),
        (&["--restore-to", "/"], "/ exists already"),
    ];
    for (options, message) in wrong {
        bench.finish(script(&bench, options)).await.code(2).says(&[message]);
    }
    let mut command = script(&bench, &["--yes"]);
    command.env_remove("SNAPFERRY_BUCKET");
    bench.finish(command).await.code(2).says(&["bucket is not set"]);
    bench.sim.shutdown().await;
}
