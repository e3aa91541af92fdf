//! `snapferry config show`: what is configured, and where it comes from.

use std::io::Write as _;

use clap::CommandFactory as _;
use serde_json::json;

use super::args::{Args, ConfigAction, ConfigArgs};
use super::credentials::Environment;
use super::exit::Code;
use super::foreign;
use super::settings::{DEFAULT_FILE, Settings, Shown};
use super::table::Table;

pub fn run(args: &ConfigArgs, settings: &Settings, environment: &Environment) -> anyhow::Result<Code> {
    let ConfigAction::Show { json } = &args.action;
    let shown = settings.show(&Args::command(), environment);
    if *json {
        let list: Vec<_> = shown
            .iter()
            .map(|Shown { name, value, origin }| json!({ "name": name, "value": value, "origin": origin.to_string() }))
            .collect();
        super::print_json(&list)?;
        return Ok(Code::Done);
    }
    let mut out = foreign::out();
    match settings.file() {
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
