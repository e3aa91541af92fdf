//! Texts for people, compared with the files in `snapshots`. `make snapshots` writes those anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use insta::{Settings, assert_snapshot};
use snapferry_fleet::queue::{Lease, OnFailure, Queue as _, Timing, Token};

use crate::support::{AWAY, Ended, HOME, Redis, SAFE, Terminal, all_commands, job, left_in, run, snapferry};

/// Prefix of the files with help texts.
const HELP: &str = "help-";

fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/command_line/snapshots")
}

/// Compares a text with the file of that name.
#[track_caller]
fn assert_same(name: &str, text: &str) {
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| assert_snapshot!(name, text));
}

/// Output of a command, as a terminal would show it.
fn shown(ended: &Ended) -> String {
    format!("{}{}exit code {}\n", ended.out, ended.err, ended.code.expect("no signal"))
}

/// Replaces ids and times by others of the same length, which are the same in every run.
fn masked(text: &str) -> String {
    let mask = |word: &str| match word.len() {
        20 if word.ends_with('Z') => "2026-01-02T03:04:05Z".to_owned(),
        // A time that is cut after its year.
        8 if word.ends_with("-…") => "2026-…".to_owned(),
        26 if word.starts_with("01") => "01KB3V9W6RJ0C2XQ4M8S5T7YZA".to_lowercase(),
        _ => word.to_owned(),
    };
    // How long ago a worker was heard of depends on the machine's speed.
    text.lines()
        .filter(|line| !line.starts_with("worker "))
        .map(|line| line.split(' ').map(mask).collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

/// Help of every command, short and long.
#[test]
fn help() {
    let (mut wrong, mut names) = (Vec::new(), Vec::new());
    for command in all_commands() {
        let short = run(snapferry(command.words.iter().map(String::as_str).chain(["-h"]))).code(0).out;
        let long = if short == command.help { "(the same)\n" } else { &command.help };
        let name = format!(
            "{HELP}{}",
            if command.words.is_empty() { "snapferry".into() } else { command.words.join("-") }
        );
        let text = format!("-h\n\n{short}\n--help\n\n{long}");
        if catch_unwind(AssertUnwindSafe(|| assert_same(&name, &text))).is_err() {
            wrong.push(name.clone());
        }
        names.push(format!("{name}.snap"));
    }
    assert_eq!(wrong, Vec::<String>::new(), "if these texts are right, `make snapshots` writes them");
    names.sort();
    let mut files = left_in(&files());
    files.retain(|name| name.starts_with(HELP) && name.ends_with(".snap"));
    assert_eq!(files, names, "a file without a command is to be removed");
}

#[test]
fn settings_in_force() {
    let mut command = snapferry(["config", "show"]);
    command.env("SNAPFERRY_REGION", "us-east").env("SNAPFERRY_YES", "0");
    command.env("IBMCLOUD_API_KEY", "secret");
    assert_same("config-show", &shown(&run(command)));
}

/// A queue with a dead job, one that waits, and a schedule.
async fn queue() -> Option<Redis> {
    let redis = Redis::start(&SAFE).await?;
    let queue = redis.queue(Timing::default()).await;
    queue.enqueue(&job("db01")).await.unwrap();
    let taken = queue.claim("ferry (0716_1)", &Token::new()).await.unwrap().expect("a job");
    let lease = Lease { id: taken.job.id, token: taken.token };
    queue
        .fail(&lease, "there is no server \"db01\" in us-south\n  look at --region", OnFailure::Dead)
        .await
        .unwrap();
    queue.enqueue(&job("web01")).await.unwrap();
    let mut add = snapferry(["schedule", "add", "nightly", "--cron", "30 2 * * *", "web01", "db01"]);
    add.args(["--region", HOME, "--to", AWAY, "--bucket", "images", "--redis", &redis.url()]);
    run(add).expect(0, &[]);
    Some(redis)
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_the_fleet() {
    let Some(redis) = queue().await else { return };
    let url = redis.url();
    for args in [["jobs", "list"], ["schedule", "list"], ["status", "--max-age=1d"]] {
        let ended = run(snapferry(args.into_iter().chain(["--redis", &url])));
        assert_same(&format!("table-{}", args[0]), &masked(&shown(&ended)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_on_a_terminal_of_80_columns() {
    let Some(redis) = queue().await else { return };
    let (_, text) = Terminal::start(&snapferry(["jobs", "list", "--redis", &redis.url()]), 80).end();
    assert_same("table-jobs-80", &masked(&text));
}

#[test]
fn an_error_of_the_command_line() {
    assert_same("error-command-line", &shown(&run(snapferry(["restore", "x.qcow2", "--outptu", "x.raw"]))));
}

#[test]
fn an_error_without_a_hint() {
    assert_same("error-usage", &shown(&run(snapferry(["verify", "s3://images"]))));
}

#[test]
fn an_error_with_a_hint() {
    assert_same("error-hint", &shown(&run(snapferry(["verify", "s3:/images/web01.qcow2"]))));
}

#[test]
fn an_error_as_json() {
    assert_same("error-json", &shown(&run(snapferry(["verify", "s3:/images/web01.qcow2", "--json"]))));
}
