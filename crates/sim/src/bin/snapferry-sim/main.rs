//! Simulated cloud and object store on this machine's loopback address, and a demonstration of snapferry on
//! them.

#![allow(clippy::print_stderr)]

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::signals::{self, Stop};
use tokio::runtime::{Builder, Handle, Runtime};
use tracing_subscriber::EnvFilter;

mod demo;
mod second_night;
mod serve;

/// Run a simulated cloud or object store to try snapferry on, without an account
#[derive(Debug, Parser)]
#[command(name = "snapferry-sim", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replicate a server in a simulated cloud, and convert its disk into the store and back, beside qemu-img
    Demo(demo::DemoArgs),
    /// Serve an S3 store from a folder, on this machine's loopback address
    Store(serve::StoreArgs),
    /// Serve a cloud from a folder: VPC regions, IAM, metadata service, tagging and an S3 store, on this
    /// machine's loopback address
    Region(serve::RegionArgs),
}

/// Exit codes, the same as those of snapferry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Done = 0,
    Unexpected = 1,
    Usage = 2,
    Interrupted = 130,
    /// The reader of stdout has closed it.
    BrokenPipe = 141,
}

/// Error in the command line or the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("SNAPFERRY_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,s3s=off,snapferry=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let ended = match &cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Store(args) => serve::store(args),
        Command::Region(args) => serve::region(args),
    };
    let code = ended.unwrap_or_else(|error| report(&error));
    ExitCode::from(code as u8)
}

fn report(error: &anyhow::Error) -> Code {
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return Code::BrokenPipe;
    }
    eprintln!("snapferry-sim: {error:#}");
    if error.is::<UsageError>() { Code::Usage } else { Code::Unexpected }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// Cancels the work at the first signal to stop. At a second one the process prints `note` and ends at once.
fn listen(runtime: &Handle, cancel: &Cancel, note: &'static str) -> io::Result<()> {
    let cancel = cancel.clone();
    signals::listen(runtime, move |stop| match stop {
        Stop::Begin => {
            tracing::warn!("stopping (once more to exit at once)");
            cancel.cancel(Reason::Requested);
        }
        Stop::AtOnce => {
            eprintln!("snapferry-sim: stopped at once{}{note}", if note.is_empty() { "" } else { "; " });
            std::process::exit(Code::Interrupted as i32);
        }
    })
}
