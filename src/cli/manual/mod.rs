//! `snapferry man`: manual pages, and the same reference in Markdown, generated from the definition of the
//! command line and the table of settings.

use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use clap::{Args as Group, Command};

use super::error::UsageError;
use super::exit::Code;
use crate::cli::error::CommandResult;

mod config_file;
mod markdown;
mod page;
mod prose;
mod tables;

use page::page;

/// Name of the page on the configuration file, and its file.
const CONFIG_PAGE: &str = "snapferry-config.toml";
const CONFIG_PAGE_FILE: &str = "snapferry-config.toml.5";

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry man | man -l -\n  snapferry man --to /usr/local/share/man/man1\n  snapferry man --markdown --to reference"
)]
pub struct ManArgs {
    /// Write a page for each command and for the configuration file into this folder, instead of the first
    /// one to stdout
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
    pub to: Option<PathBuf>,

    /// Write the reference in Markdown instead: a page for each group of commands
    #[arg(long, requires = "to")]
    pub markdown: bool,
}

/// Prints the manual page of `command`, or writes it, the pages of all its subcommands and that of the
/// configuration file into a folder.
pub fn run(args: &ManArgs, mut command: Command) -> CommandResult<Code> {
    command.build();
    match &args.to {
        None => stdout().lock().write_all(&page(&command)?)?,
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .map_err(|error| UsageError(format!("cannot make {}: {error}", folder.display())))?;
            if args.markdown {
                for (file, text) in markdown::pages(&command) {
                    std::fs::write(folder.join(file), text)?;
                }
            } else {
                write(&command, folder)?;
                std::fs::write(folder.join(CONFIG_PAGE_FILE), config_file::page(&command)?)?;
            }
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

#[cfg(test)]
mod tests;
