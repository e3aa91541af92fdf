//! Output of `--dry-run`: what a command would do.

use std::fmt::Arguments;
use std::io::Write as _;

use serde_json::{Value, json};

use super::error::CommandResult;
use super::printable::{self, Form};

/// Prints one thing that the command would do: as a line of text, or as an object with `--json`.
pub fn would(form: Form, what: Arguments<'_>) -> CommandResult<()> {
    would_with(form, what, &Value::Null)
}

/// Prints one thing that the command would do. The object of `--json` has the fields of `more`, too.
pub fn would_with(form: Form, what: Arguments<'_>, more: &Value) -> CommandResult<()> {
    let mut out = printable::out_as(form);
    if form == Form::Text {
        return Ok(writeln!(out, "would {what}")?);
    }
    let mut object = json!({ "dry_run": true, "would": what.to_string() });
    for (name, value) in more.as_object().into_iter().flatten() {
        object[name.as_str()] = value.clone();
    }
    Ok(writeln!(out, "{object}")?)
}
