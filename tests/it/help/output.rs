//! Colours, and how much is printed.

use std::process::Command;

use snapferry_base::units::{ByteCount, MIB};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::skip::has_oracle;

use crate::support::{convert_into_file, folder, program, run, snapferry};

/// Start of every colour.
const ESCAPE: char = '\u{1b}';
/// A misspelt variable, of which every command warns in a log line.
const MISSPELT: (&str, &str) = ("SNAPFERRY_BUKET", "images");
const WARNING: &str = "the variable SNAPFERRY_BUKET does nothing";

/// Returns the log line of a command.
fn log_line(options: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = snapferry([&["config", "show"], options].concat());
    command.envs([MISSPELT]).envs(variables.iter().copied());
    let ended = run(command).code(0).says(&[WARNING]);
    ended.err.lines().find(|line| line.contains(WARNING)).unwrap().to_owned()
}

#[test]
fn log_lines_in_a_file_have_no_colours() {
    assert!(!log_line(&[], &[]).contains(ESCAPE));
}

#[test]
fn log_lines_are_coloured_if_the_user_wants_it() {
    assert!(log_line(&["--color", "always"], &[]).contains(ESCAPE));
}

#[test]
fn log_lines_are_coloured_if_the_environment_wants_it() {
    assert!(log_line(&[], &[("CLICOLOR_FORCE", "1")]).contains(ESCAPE));
}

#[test]
fn the_option_beats_the_environment() {
    assert!(!log_line(&["--color=never"], &[("CLICOLOR_FORCE", "1")]).contains(ESCAPE));
}

/// Returns the log line of a command on a terminal.
fn log_line_on_terminal(options: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("script");
    let call = format!("{} config show {options}", program());
    command.args(["--quiet", "--return", "--command", &call, "/dev/null"]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TERM", "xterm").env("HOME", "/nonexistent");
    command.envs([MISSPELT]).envs(variables.iter().copied());
    let ended = run(command).code(0).says(&[WARNING]);
    ended.out.lines().find(|line| line.contains(WARNING)).unwrap().to_owned()
}

#[test]
fn a_terminal_has_coloured_log_lines() {
    if has_oracle("script") {
        assert!(log_line_on_terminal("", &[]).contains(ESCAPE));
    }
}

#[test]
fn a_terminal_has_no_coloured_log_lines_if_the_environment_forbids_them() {
    if has_oracle("script") {
        assert!(!log_line_on_terminal("", &[("NO_COLOR", "1")]).contains(ESCAPE));
        assert!(!log_line_on_terminal("", &[("CLICOLOR", "0")]).contains(ESCAPE));
    }
}

#[test]
fn a_terminal_has_no_coloured_log_lines_if_the_user_forbids_them() {
    if has_oracle("script") {
        assert!(!log_line_on_terminal("--color never", &[]).contains(ESCAPE));
    }
}

/// Returns what a command prints, on stdout and stderr, with a choice of colours.
fn printed(choice: &str, args: &[&str]) -> String {
    let ended = run(snapferry([&["--color", choice], args].concat()));
    format!("{}{}", ended.out, ended.err)
}

#[test]
fn the_help_obeys_the_choice_of_colours() {
    let help = ["--help"];
    assert!(printed("always", &help).contains(ESCAPE));
    assert!(!printed("never", &help).contains(ESCAPE) && !printed("auto", &help).contains(ESCAPE));
}

#[test]
fn errors_obey_the_choice_of_colours() {
    let wrong = ["jobs", "lst"];
    assert!(printed("always", &wrong).contains(ESCAPE));
    assert!(!printed("never", &wrong).contains(ESCAPE) && !printed("auto", &wrong).contains(ESCAPE));
}

#[test]
fn a_second_v_shows_the_module_of_a_line() {
    assert!(!log_line(&["-v"], &[]).contains("snapferry::cli"));
    assert!(log_line(&["-vv"], &[]).contains("snapferry::cli"));
    assert!(log_line(&["-v", "-v"], &[]).contains("snapferry::cli"));
}

#[test]
fn quiet_and_verbose_exclude_each_other() {
    run(snapferry(["config", "show", "-q", "-vv"])).expect(2, &["'--quiet' cannot be used with"]);
}

/// Returns the number of lines about progress of a conversion that takes two seconds.
fn lines_of_progress(choice: &str) -> usize {
    let folder = folder();
    let disk = folder.path().join("disk.raw");
    Disk::new(Kind::Random, ByteCount(8 * MIB), 1).write(&disk).unwrap();
    let mut command = convert_into_file(&disk, &folder.path().join("disk.qcow2"), &[]);
    command.args(["--limit", "4M", "--part-size", "4M", "--progress", choice]);
    let ended = run(command).code(0);
    ended.err.lines().filter(|line| line.contains(" converting ")).count()
}

#[test]
fn progress_can_be_left_out() {
    assert_eq!(lines_of_progress("never"), 0);
}

#[test]
fn progress_comes_as_often_as_the_user_wants() {
    assert!(lines_of_progress("1s") > 0);
}

#[test]
fn a_wrong_choice_of_progress_is_refused() {
    run(snapferry(["config", "show", "--progress", "0s"]))
        .expect(2, &["none of auto, never and a time above 0"]);
}
