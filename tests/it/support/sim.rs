//! The program `snapferry-sim`, which is another package's.

use std::path::Path;
use std::process::Command;

use super::program;

/// `snapferry-sim`, beside the program under test.
///
/// # Panics
/// If cargo has not built it: `cargo nextest run --workspace` does, and so does `cargo build -p
/// snapferry-sim`.
pub fn snapferry_sim() -> Command {
    let path = Path::new(program()).with_file_name("snapferry-sim");
    assert!(path.is_file(), "{} is not built: cargo build -p snapferry-sim", path.display());
    Command::new(path)
}
