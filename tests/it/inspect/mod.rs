//! `info`, `check`, `map`, `compare` and `measure`, compared with qemu-img, and on objects.

mod beside_qemu;
mod commands;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Output of the program.
pub fn snapferry(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_snapferry")).args(arguments).output().unwrap()
}

/// Parses the program's stdout as JSON; the exit code must be `code`.
pub fn json(arguments: &[&str], code: i32) -> Value {
    let answer = snapferry(arguments);
    let said = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(code), "{arguments:?}: {said}");
    serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs another program, which must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let answer = Command::new(program).args(arguments).output().unwrap();
    assert!(answer.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&answer.stderr));
}
