//! The `snapferry` command. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapferry::cli::main(std::env::args_os())
}
