//! `info`, `check`, `map`, `compare` and `measure`, compared with qemu-img, and on objects.

mod against_qemu;
mod commands;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::program;

/// Output of the program.
pub fn snapferry(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().unwrap()
}

/// Parses the program's stdout as JSON; the exit code must be `code`.
pub fn json(arguments: &[&str], code: i32) -> Value {
    let output = snapferry(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {stderr}"))
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs another program, which must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
