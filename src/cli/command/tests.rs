//! Tests of the help: headings, groups, variables, length.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args as _, Command};

use super::*;
use crate::cli::args::{CloudArgs, HowArgs, PlaceArgs, QueueArgs, RecoveryArgs, StoreArgs};
use crate::cli::metrics_file::MetricsFileArgs;
use crate::cli::settings::{names, variable_of};

/// Most lines of a short help: those of a screen.
const SCREEN: usize = 45;

/// Calls `look` with each command and its full name.
fn walk(command: &Command, name: &str, look: &mut impl FnMut(&str, &Command)) {
    look(name, command);
    for below in command.get_subcommands() {
        walk(below, &format!("{name} {}", below.get_name()), look);
    }
}

/// Returns the headings that each flag has in its group.
fn headings() -> BTreeMap<String, BTreeSet<String>> {
    let empty = || Command::new("group");
    let groups = [
        StoreArgs::augment_args(empty()),
        CloudArgs::augment_args(empty()),
        RecoveryArgs::augment_args(empty()),
        QueueArgs::augment_args(empty()),
        HowArgs::augment_args(empty()),
        PlaceArgs::augment_args(empty()),
        MetricsFileArgs::augment_args(empty()),
    ];
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for arg in groups.iter().flat_map(Command::get_arguments) {
        let heading = arg.get_help_heading().expect("each group has a heading");
        all.entry(arg.get_id().to_string()).or_default().insert(heading.to_owned());
    }
    all
}

#[test]
fn each_option_is_under_the_heading_of_its_group() {
    let headings = headings();
    let mut misplaced = Vec::new();
    walk(&definition(), "snapferry", &mut |name, command| {
        for arg in command.get_arguments() {
            let Some(heading) = arg.get_help_heading() else { continue };
            let of_group = headings.get(arg.get_id().as_str()).is_some_and(|all| all.contains(heading));
            if !(of_group || heading == GLOBAL && name == "snapferry") {
                misplaced.push(format!("{name}: {} is under {heading}", arg.get_id()));
            }
        }
    });
    assert!(misplaced.is_empty(), "{misplaced:#?}");
    assert!(headings["iam_endpoint"].contains("Identity") && headings["endpoint"].len() == 2, "{headings:?}");
}

#[test]
fn the_global_options_are_under_their_own_heading() {
    let command = definition();
    let others = command.get_arguments().filter(|arg| arg.get_help_heading() != Some(GLOBAL));
    assert_eq!(others.map(|arg| arg.get_id().to_string()).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn each_command_is_in_exactly_one_group() {
    let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let mut command = definition();
    command.build();
    for found in command.get_subcommands().map(Command::get_name) {
        assert_eq!(grouped.iter().filter(|name| **name == found).count(), 1, "{found}");
    }
    assert_eq!(grouped.len(), command.get_subcommands().count(), "a group has a command that does not exist");
}

#[test]
fn the_top_level_help_lists_the_groups_on_a_narrow_terminal() {
    let help = definition().term_width(80).render_help().to_string();
    for (group, names) in GROUPS {
        let (_, list) = help.split_once(&format!("\n{group}:\n")).expect(group);
        for name in names {
            assert!(
                list.contains(&format!("\n  {name} ")) || list.starts_with(&format!("  {name} ")),
                "{name}"
            );
        }
    }
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    assert!(help.contains("--quiet") && help.contains("Usage: snapferry"), "{help}");
}

/// Returns the number of lines of a command's short help.
fn lines(name: &str) -> usize {
    let mut command = definition().term_width(100);
    command.build();
    let help = command.find_subcommand_mut(name).expect(name).render_help().to_string();
    assert!(help.contains("-h, --help"), "{help}");
    help.lines().count()
}

#[test]
fn the_short_help_of_convert_fits_a_screen() {
    assert!(lines("convert") <= SCREEN, "{}", lines("convert"));
}

#[test]
fn the_short_help_of_replicate_fits_a_screen() {
    assert!(lines("replicate") <= SCREEN, "{}", lines("replicate"));
}

#[test]
fn the_short_help_leaves_out_what_is_seldom_needed() {
    let mut command = definition();
    command.build();
    let replicate = command.find_subcommand_mut("replicate").expect("a command");
    let (short, long) = (replicate.render_help().to_string(), replicate.render_long_help().to_string());
    for option in ["--endpoint", "--iam-endpoint", "--metadata-endpoint", "--state-folder", "--poll-every"] {
        assert!(long.contains(option) && !short.contains(option), "{option}");
    }
    let jobs = command.find_subcommand_mut("jobs").expect("a command");
    let list = jobs.find_subcommand_mut("list").expect("a command");
    let (short, long) = (list.render_help().to_string(), list.render_long_help().to_string());
    assert!(short.contains("--redis ") && !short.contains("--redis-prefix"), "{short}");
    assert!(long.contains("--redis-prefix"), "{long}");
}

#[test]
fn the_help_of_each_flag_names_its_variable_and_no_other() {
    let mut found = BTreeSet::new();
    walk(&definition(), "snapferry", &mut |_, command| {
        for arg in command.get_arguments() {
            let help = arg.get_long_help().map(ToString::to_string).unwrap_or_default();
            let named = help.split_once("[env: ").and_then(|(_, rest)| rest.split(']').next());
            let setting = variable_of(command.get_name(), arg.get_id().as_str());
            assert_eq!(named, setting.as_deref(), "{} {}: {help}", command.get_name(), arg.get_id());
            found.extend(setting);
        }
    });
    assert_eq!(found.len(), names().count(), "{found:?}");
}

#[test]
fn commands_answer_to_their_aliases() {
    for (alias, command) in [
        ("image ls", "images list"),
        ("image rm", "images delete"),
        ("images remove", "images delete"),
        ("snapshots ls", "snapshot list"),
        ("snapshot rm", "snapshot delete"),
        ("job ls", "jobs list"),
        ("schedules ls", "schedule list"),
        ("schedule delete", "schedule rm"),
        ("schedule remove", "schedule rm"),
        ("upload ls", "uploads list"),
        ("uploads rm", "uploads abort"),
    ] {
        let root = definition();
        let find = |line: &str| {
            let below = |command: &Command, name: &str| command.find_subcommand(name).cloned();
            let (noun, verb) = line.split_once(' ')?;
            below(&below(&root, noun)?, verb)
        };
        assert_eq!(
            find(alias).map(|found| found.get_about().map(ToString::to_string)),
            find(command).map(|found| found.get_about().map(ToString::to_string)),
            "{alias}"
        );
        assert!(find(alias).is_some(), "{alias}");
    }
}
