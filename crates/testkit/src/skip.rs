//! Tests that can't run here say so, in a way that is seen.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Says on stderr that the calling test does not run, and why. Not by `eprintln!`: the test harness would swallow that. Where
/// `SNAPFERRY_SKIPPED` names a file, the line goes there too, so that `make test` can repeat all of them at the end.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED: {why} ({})\n", thread.name().unwrap_or("unnamed"));
    // A test is not to fail because nobody listens.
    let _ = io::stderr().lock().write_all(line.as_bytes());
    if let Some(path) = env::var_os("SNAPFERRY_SKIPPED") {
        let _ = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Whether `program`, an independent implementation that results are held against, can be run. Where it can't, the test is skipped, except
/// in CI (`CI=true`), where that is a failure.
///
/// # Panics
/// In CI, when the program is missing.
#[must_use]
pub fn has_oracle(program: &str) -> bool {
    let there = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        assert!(!in_ci(), "{program} is missing, and CI must have it: scripts/install-system.sh --test");
        skip(&format!("{program} is not installed"));
    }
    there
}

/// Whether this is a CI run, which must have every oracle.
#[must_use]
pub fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

/// Whether the process is root; where it isn't, the calling test is skipped.
#[must_use]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}
