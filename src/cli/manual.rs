//! `snapferry completions` and `snapferry man`: shell completions and manual pages, generated from the
//! definition of the command line.

use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use clap::{Args as Group, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::error::UsageError;
use super::exit::Code;
use crate::cli::error::CommandResult;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry completions bash > /etc/bash_completion.d/snapferry\n  snapferry completions fish > ~/.config/fish/completions/snapferry.fish"
)]
pub struct CompletionsArgs {
    /// Shell to generate completions for
    #[arg(value_name = "bash|zsh|fish", hide_possible_values = true)]
    pub shell: Shell,
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry man | man -l -\n  snapferry man --to /usr/local/share/man/man1"
)]
pub struct ManArgs {
    /// Write a page for each command into this folder, instead of the first one to stdout
    #[arg(long, value_name = "FOLDER")]
    pub to: Option<PathBuf>,
}

/// Prints completions of `command` for a shell.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> CommandResult<Code> {
    let mut text = Vec::new();
    // Generated in memory, because clap_complete panics on a stream that can't be written to.
    clap_complete::generate(args.shell, &mut command, "snapferry", &mut text);
    stdout().lock().write_all(&text)?;
    Ok(Code::Done)
}

/// Prints the manual page of `command`, or writes it and the pages of all its subcommands into a folder.
pub fn man(args: &ManArgs, mut command: Command) -> CommandResult<Code> {
    command.build();
    match &args.to {
        None => stdout().lock().write_all(&page(&command)?)?,
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .map_err(|error| UsageError(format!("cannot make {}: {error}", folder.display())))?;
            write(&command, folder)?;
        }
    }
    Ok(Code::Done)
}

/// Writes the page of a command, and those of all its subcommands.
fn write(command: &Command, folder: &Path) -> CommandResult<()> {
    let name = name(command);
    std::fs::write(folder.join(format!("{name}.1")), page(command)?)?;
    command
        .get_subcommands()
        .filter(|below| below.get_name() != "help")
        .try_for_each(|below| write(below, folder))
}

/// Returns the name of a command's page: `snapferry-jobs-list` for `snapferry jobs list`.
fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or_else(|| command.get_name()).replace(' ', "-")
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // A page's name is one word; its synopsis shows what the user types.
    let titled = command.clone().name(name(command));
    Man::new(titled).section("1").render(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::command::Args;

    fn below(command: &Command, all: &mut Vec<Command>) {
        all.push(command.clone());
        command
            .get_subcommands()
            .filter(|found| found.get_name() != "help")
            .for_each(|found| below(found, all));
    }

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let folder = tempfile::tempdir().expect("a folder");
        man(&ManArgs { to: Some(folder.path().join("man")) }, Args::command()).expect("pages");
        let mut root = Args::command();
        root.build();
        let mut all = Vec::new();
        below(&root, &mut all);
        for command in &all {
            let name = name(command);
            let text = std::fs::read_to_string(folder.path().join(format!("man/{name}.1"))).expect(&name);
            assert!(
                text.contains(".SH SYNOPSIS") && text.contains(&name.replace('-', "\\-")),
                "{name}: {text}"
            );
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                !examples.starts_with("Examples:") || text.contains("Examples:"),
                "{name} has lost its examples"
            );
        }
        let pages = std::fs::read_dir(folder.path().join("man")).expect("a folder").count();
        assert_eq!(pages, all.len());
    }

    #[test]
    fn shells_know_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "snapferry", &mut text);
            let text = String::from_utf8(text).expect("UTF-8");
            for command in Args::command().get_subcommands() {
                assert!(text.contains(command.get_name()), "{shell} does not know {}", command.get_name());
            }
        }
    }
}
