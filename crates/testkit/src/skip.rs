//! Visible reports of tests that can't run on this machine.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Reports on stderr that the calling test does not run, and why. `eprintln!` would not do, because the test
/// harness captures it. If `SNAPFERRY_SKIPPED` names a file, the line is appended to it, so that `make test`
/// can repeat all of them at the end.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED: {reason} ({})\n", thread.name().unwrap_or("unnamed"));
    // A test must not fail because stderr is closed.
    let _ = io::stderr().lock().write_all(line.as_bytes());
    if let Some(path) = env::var_os("SNAPFERRY_SKIPPED") {
        let _ = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// True if `program`, an independent implementation that results are compared with, can be run. If it can't,
/// the test is skipped, except in CI (`CI=true`), where it fails.
///
/// # Panics
/// In CI, if the program is missing.
#[must_use]
pub fn has_oracle(program: &str) -> bool {
    let installed = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        assert!(!in_ci(), "{program} is missing, and CI must have it: scripts/install-system.sh --test");
        skip(&format!("{program} is not installed"));
    }
    installed
}

/// True in a CI run, which must have every oracle.
#[must_use]
pub fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

/// True if the process is root. If it isn't, the calling test is skipped.
#[must_use]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}
