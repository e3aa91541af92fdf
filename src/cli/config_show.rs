//! `snapferry config show`: the settings in force, and the origin of each.

use std::io::Write as _;

use clap::{Args as Group, Subcommand};
use serde_json::json;

use super::exit::Code;
use super::printable::{self, terminal_width};
use super::settings::{SYSTEM_FILE, Shown, user_file};
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
    for path in session.settings.files() {
        writeln!(out, "file: {}", path.display())?;
    }
    if session.settings.files().is_empty() {
        let none = match user_file(&session.environment) {
            Some(path) => format!("neither {SYSTEM_FILE} nor {} is there", path.display()),
            None => format!("{SYSTEM_FILE} is not there"),
        };
        writeln!(out, "file: none ({none})")?;
    }
    let mut table = Table::new(&["setting", "value", "from"]);
    for Shown { name, value, origin } in shown {
        table.row(vec![name, value.unwrap_or_default(), origin.to_string()]);
    }
    table.write(&mut out, terminal_width())?;
    Ok(Code::Done)
}
