//! `info`, `check`, `map`, `compare` and `measure`, beside qemu-img and on objects.

mod beside_qemu;
mod commands;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// What the program answers.
pub fn snapferry(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_snapferry")).args(arguments).output().unwrap()
}

/// Its stdout as JSON, of a run that ended with `code`.
pub fn json(arguments: &[&str], code: i32) -> Value {
    let answer = snapferry(arguments);
    let said = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(code), "{arguments:?}: {said}");
    serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs another program, which must end well.
pub fn run(program: &str, arguments: &[&str]) {
    let answer = Command::new(program).args(arguments).output().unwrap();
    assert!(answer.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&answer.stderr));
}
