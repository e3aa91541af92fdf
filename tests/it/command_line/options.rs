//! Options that every command of a kind has. The commands are those that the help lists, so that a new one is
//! not forgotten.

use crate::support::{Described, all_commands};

/// Commands without `--json`: `worker` prints log lines, `jobs watch` a picture for people, the others
/// scripts and pages.
const WITHOUT_JSON: [&str; 4] = ["completions", "jobs watch", "man", "worker"];

/// Commands that change something outside of this machine, or destroy something on it.
const CHANGE: [&str; 20] = [
    "convert",
    "enqueue",
    "gc",
    "images delete",
    "images export",
    "images rename",
    "images tag",
    "jobs cancel",
    "jobs purge",
    "jobs retry",
    "provision",
    "replicate",
    "restore",
    "schedule add",
    "schedule rm",
    "snapshot copy",
    "snapshot create",
    "snapshot delete",
    "status",
    "uploads abort",
];

/// Commands that ask before they do what can't be undone.
const ASK: [&str; 9] = [
    "gc",
    "images delete",
    "jobs purge",
    "replicate",
    "restore",
    "schedule rm",
    "snapshot delete",
    "status",
    "uploads abort",
];

fn names(commands: &[Described], is_chosen: impl Fn(&Described) -> bool) -> Vec<String> {
    let mut names: Vec<String> =
        commands.iter().filter(|command| command.acts() && is_chosen(command)).map(Described::name).collect();
    names.sort();
    names
}

#[test]
fn every_command_prints_json_but_a_few() {
    assert_eq!(names(&all_commands(), |command| !command.has("--json")), WITHOUT_JSON);
}

#[test]
fn every_command_that_changes_something_can_be_rehearsed() {
    let all = all_commands();
    assert_eq!(names(&all, |command| command.has("--dry-run")), CHANGE);
    assert_eq!(names(&all, |command| command.help.contains("-n, --dry-run")), CHANGE, "-n is the short form");
}

#[test]
fn every_command_that_asks_takes_an_answer_beforehand() {
    let all = all_commands();
    assert_eq!(names(&all, |command| command.has("--yes")), ASK);
    assert_eq!(names(&all, |command| command.help.contains("-y, --yes")), ASK, "-y is the short form");
}
