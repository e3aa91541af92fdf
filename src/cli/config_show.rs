//! `snapferry config show`: the settings in force, and the origin of each.

use std::io::Write as _;

use clap::{Args as Group, Subcommand};
use serde_json::json;

use super::exit::Code;
use super::printable;
use super::settings::{DEFAULT_FILE, Shown};
use super::table::Table;
use crate::cli::error::CommandResult;
use crate::cli::session::Session;

#[derive(Debug, Group)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Print every setting with its value and origin
    Show {
        /// Print JSON on stdout
        #[arg(long)]
        json: bool,
    },
}

/// Prints the settings that `command` runs with.
pub fn run(args: &ConfigArgs, session: &Session, command: &clap::Command) -> CommandResult<Code> {
    let ConfigAction::Show { json } = &args.action;
    let shown = session.settings.show(command, &session.environment);
    if *json {
        let list: Vec<_> = shown
            .iter()
            .map(|Shown { name, value, origin }| json!({ "name": name, "value": value, "origin": origin.to_string() }))
            .collect();
        super::print_json(&list)?;
        return Ok(Code::Done);
    }
    let mut out = printable::out();
    match session.settings.file() {
        Some(path) => writeln!(out, "file: {}", path.display())?,
        None => writeln!(out, "file: none ({DEFAULT_FILE} is not there)")?,
    }
    let mut table = Table::new(&["setting", "value", "from"]);
    for Shown { name, value, origin } in shown {
        table.row(vec![name, value.unwrap_or_default(), origin.to_string()]);
    }
    table.write(&mut out)?;
    Ok(Code::Done)
}
