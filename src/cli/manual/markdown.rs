//! The reference of commands in Markdown: an index, and a page for each group of commands.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::prose::Prose;
use super::tables;
use crate::cli::command::GROUPS;
use crate::cli::settings::variable_of;

/// Name of the index among the pages.
const INDEX: &str = "README.md";
/// First line of each page: the documents' checks and their readers see that an edit would be lost.
const WRITTEN: &str = "<!-- Written by `snapferry man --markdown`: an edit here is lost. -->\n";
/// Columns of a line of text. Code is not wrapped.
const COLUMNS: usize = 108;

/// Returns each page with its file's name, the index first. `command` must be the whole command line, built.
pub fn pages(command: &Command) -> Vec<(String, String)> {
    let mut pages = vec![(INDEX.to_owned(), index(command))];
    for (group, names) in GROUPS {
        let mut text = format!("{WRITTEN}# Commands: {}\n", group.to_lowercase());
        for found in names.iter().filter_map(|name| command.find_subcommand(name)) {
            describe(&mut text, found, 2);
        }
        pages.push((file(group), text));
    }
    pages
}

/// Returns the name of a group's file.
pub fn file(group: &str) -> String {
    format!("{}.md", group.to_lowercase())
}

/// Returns the full name of a command, as a user types it.
pub fn full_name(command: &Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

fn index(command: &Command) -> String {
    let mut text = format!("{WRITTEN}# Reference of commands\n");
    for (group, names) in GROUPS {
        let file = file(group);
        add(&mut text, &format!("\n## {group}\n\n| command | |\n|---|---|\n"));
        for found in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let (name, about) = (full_name(found), about(found));
            let anchor = name.replace(' ', "-");
            add(&mut text, &format!("| [`{name}`]({file}#{anchor}) | {} |\n", marked(&about)));
        }
    }
    text.push_str("\n## Global options\n\nEach command has these options.\n\n");
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        option(&mut text, command, arg);
    }
    text.push_str("\n## Exit codes\n\n");
    for (code, meaning) in tables::EXIT_CODES {
        item(&mut text, &format!("`{}`: {}", code as u8, marked(meaning)));
    }
    text.push_str("\n## Environment variables\n\nBeside a variable for each setting, which stands with its ");
    text.push_str("option:\n\n");
    for variable in &tables::VARIABLES {
        item(&mut text, &format!("`{}`: {}", variable.name, marked(variable.about)));
    }
    text
}

/// Adds a command under a heading of a level, and below it its subcommands.
fn describe(text: &mut String, command: &Command, level: usize) {
    let help = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    add(text, &format!("\n{} {}\n\n", "#".repeat(level), full_name(command)));
    for paragraph in help.split("\n\n") {
        add(text, &format!("{}\n\n", wrap(&marked(paragraph), "")));
    }
    let usage = command.clone().render_usage().to_string();
    let lines = usage.trim_start_matches("Usage:").lines().map(str::trim).filter(|line| !line.is_empty());
    add(text, &format!("```text\n{}\n```\n", lines.collect::<Vec<_>>().join("\n")));
    let aliases: Vec<String> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        add(text, &format!("\nAlso: {}.\n", aliases.join(", ")));
    }
    options(text, command);
    let prose = Prose::of(command);
    if !prose.notes.is_empty() {
        add(text, &format!("\n{}\n", wrap(&marked(&prose.notes), "")));
    }
    if !prose.examples.is_empty() {
        add(text, &format!("\nExamples:\n\n```sh\n{}\n```\n", prose.examples.join("\n")));
    }
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        describe(text, below, level + 1);
    }
}

/// True for an option that stands in the index alone, since each command has it.
pub fn is_everywhere(arg: &Arg) -> bool {
    arg.is_global_set() || ["help", "version"].contains(&arg.get_id().as_str())
}

/// Adds the arguments and options of a command, heading by heading.
fn options(text: &mut String, command: &Command) {
    let shown: Vec<&Arg> =
        command.get_arguments().filter(|arg| !arg.is_hide_set() && !is_everywhere(arg)).collect();
    let mut headings: Vec<&str> = Vec::new();
    for arg in &shown {
        if !headings.contains(&heading(arg)) {
            headings.push(heading(arg));
        }
    }
    for title in headings {
        add(text, &format!("\n**{title}**\n\n"));
        for arg in shown.iter().filter(|arg| heading(arg) == title) {
            option(text, command, arg);
        }
    }
}

fn heading(arg: &Arg) -> &str {
    arg.get_help_heading().unwrap_or(if arg.is_positional() { "Arguments" } else { "Options" })
}

/// Adds an argument or option: its names, its help, its default and the variable that stands for it.
fn option(text: &mut String, command: &Command, arg: &Arg) {
    let mut names = format!("`{arg}`");
    if let Some(short) = arg.get_short().filter(|_| arg.get_long().is_some()) {
        names = format!("`-{short}`, {names}");
    }
    for alias in arg.get_visible_aliases().unwrap_or_default() {
        let _ = write!(names, ", `--{alias}`");
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split("\n\n[env: ").next().unwrap_or_default();
    let mut facts = Vec::new();
    let values = arg.get_possible_values();
    let values: Vec<String> = values.iter().filter(|value| !value.is_hide_set()).map(value_name).collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        facts.push(format!("Values: {}.", values.join(", ")));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if arg.get_action().takes_values() && defaults.iter().any(|value| !value.is_empty()) {
        facts.push(format!("Default: `{}`.", defaults.join("`, `")));
    }
    if let Some(variable) = variable_of(command.get_name(), arg.get_id().as_str()) {
        facts.push(format!("Variable: `{variable}`."));
    }
    let mut paragraphs: Vec<String> = help.split("\n\n").map(marked).collect();
    if let Some(last) = paragraphs.last_mut().filter(|_| !facts.is_empty()) {
        let end = if last.ends_with(['.', ':']) { "" } else { "." };
        let _ = write!(last, "{end} {}", facts.join(" "));
    }
    item(text, &format!("{names}: {}", paragraphs.first().map(String::as_str).unwrap_or_default()));
    for paragraph in paragraphs.iter().skip(1) {
        add(text, &format!("\n  {}\n", wrap(paragraph, "  ")));
    }
}

fn value_name(value: &clap::builder::PossibleValue) -> String {
    format!("`{}`", value.get_name())
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn add(text: &mut String, more: &str) {
    text.push_str(more);
}

/// Adds a list item.
fn item(text: &mut String, words: &str) {
    add(text, &format!("- {}\n", wrap(words, "  ")));
}

/// Returns a help text as Markdown: flags as code, and no letter that Markdown takes for its own.
fn marked(text: &str) -> String {
    let mut out = String::new();
    // Every second piece is code in the help already.
    for (number, piece) in text.split('`').enumerate() {
        if number % 2 == 1 {
            let _ = write!(out, "`{piece}`");
            continue;
        }
        for word in piece.split_inclusive(char::is_whitespace) {
            let end = word.trim_end_matches(|c: char| !c.is_alphanumeric()).len();
            let start = word.len() - word.trim_start_matches(['(', '[']).len();
            if word.get(start..).is_some_and(|rest| rest.starts_with('-')) && start + 1 < end {
                let (flag, after) = word.split_at(end);
                let (before, flag) = flag.split_at(start);
                let _ = write!(out, "{before}`{flag}`{after}");
            } else {
                out.push_str(&escaped(word));
            }
        }
    }
    out
}

fn escaped(word: &str) -> String {
    let mut out = String::new();
    let mut before = None;
    for (letter, after) in word.chars().zip(word.chars().skip(1).map(Some).chain([None])) {
        // An underscore within a word is a letter as any other.
        let within = [before, after].iter().all(|beside| beside.is_some_and(char::is_alphanumeric));
        if "<>*|\\".contains(letter) || letter == '_' && !within {
            out.push('\\');
        }
        out.push(letter);
        before = Some(letter);
    }
    out
}

/// Breaks a text into lines, all but the first one with an indent. No line begins with a word that Markdown
/// takes for the mark of a list, a heading or a quotation.
fn wrap(text: &str, indent: &str) -> String {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let is_mark = word.starts_with(['#', '>', '+', '=', '|'])
            || word == "-"
            || word.trim_end_matches(['.', ')']).chars().all(|c| c.is_ascii_digit());
        let Some(line) = lines.last_mut() else { continue };
        let width = line.chars().count() + word.chars().count() + indent.len() + 1;
        if line.is_empty() || width <= COLUMNS || is_mark {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join(&format!("\n{indent}"))
}
