//! Waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for a condition of a test; after it, the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `holds` returns true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
