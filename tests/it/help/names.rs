//! Names of commands and options, and what a wrong one is answered with.

use crate::support::{BUCKET, Bucket, run, snapferry};

#[test]
fn an_alias_runs_its_command() {
    let bucket = Bucket::start();
    let by_name = run(bucket.command(["uploads", "list"]));
    assert_eq!(by_name.code, Some(0), "{by_name:?}");
    assert_eq!(run(bucket.command(["upload", "ls"])), by_name);
}

#[test]
fn the_help_shows_an_alias() {
    run(snapferry(["jobs", "--help"])).code(0).says(&["list", "[alias: ls]"]);
    run(snapferry(["schedule", "-h"])).code(0).says(&["[aliases: delete, remove]"]);
}

#[test]
fn a_wrong_command_is_answered_with_similar_ones() {
    run(snapferry(["imagse", "list"])).expect(2, &["unrecognized subcommand 'imagse'", "'image"]);
    run(snapferry(["jobs", "lst"])).expect(2, &["unrecognized subcommand 'lst'", "'list'"]);
}

#[test]
fn a_mistyped_alias_is_answered_with_the_alias() {
    run(snapferry(["schedule", "delte", "nightly"]))
        .expect(2, &["unrecognized subcommand 'delte'", "'delete'"]);
}

#[test]
fn an_unknown_option_is_not_said_to_be_a_file() {
    let ended = run(snapferry(["verify", "web01.qcow2", "--dry-run"]));
    ended.expect(2, &["unexpected argument '--dry-run'"]);
    assert!(!ended.err.contains("-- --dry-run"), "{}", ended.err);
}

#[test]
fn a_wrong_value_is_answered_with_the_right_ones() {
    run(snapferry(["convert", "--device", "a", "--output", "b", "--codec", "zsdt"]))
        .expect(2, &["'zsdt'", "[possible values: deflate, zstd, none]", "'zstd'"]);
}

#[test]
fn the_buckets_region_has_one_name_everywhere() {
    let bucket = Bucket::start();
    let config = bucket.sim.config();
    for name in ["--bucket-region", "--region"] {
        let mut command = snapferry(["uploads", "list", "--bucket", BUCKET, "--endpoint"]);
        command.arg(bucket.sim.endpoint()).args([name, &config.region]);
        command.env("AWS_ACCESS_KEY_ID", &config.access_key);
        command.env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
        let ended = run(command);
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
    }
    for command in ["convert", "verify", "replicate", "gc"] {
        let help = run(snapferry([command, "--help"]));
        assert!(help.out.contains("--bucket-region"), "{command}: {}", help.out);
    }
}

#[test]
fn the_help_names_variables_and_no_values() {
    let mut command = snapferry(["jobs", "list", "--help"]);
    command.env("SNAPFERRY_REDIS", "redis://:hunter2@db");
    let ended = run(command).code(0).says(&["[env: SNAPFERRY_REDIS]"]);
    assert!(!ended.out.contains("hunter2"), "{}", ended.out);
}

#[test]
fn the_short_help_is_shorter() {
    let lines = |option| run(snapferry(["convert", option])).out.lines().count();
    assert!(lines("-h") * 2 < lines("--help"), "{} {}", lines("-h"), lines("--help"));
}
