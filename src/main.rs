//! The `snapferry` command: the only place that reads arguments and the environment, prints, and picks
//! concrete stores and sources.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main(std::env::args_os())
}
