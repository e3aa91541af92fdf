//! The command line: the only place that reads arguments and the environment, prints, and picks concrete stores and sources.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use serde::Serialize;

mod args;
mod cloud;
mod config;
mod convert;
mod credentials;
#[cfg(feature = "sim")]
mod demo;
mod exit;
mod fleet;
mod foreign;
mod hints;
mod image;
mod inspect;
mod lengths;
mod log;
mod manual;
mod panics;
mod process;
mod progress;
mod qemu;
mod qemu_img;
mod reading;
mod replicate;
mod report;
mod restore;
mod runtime;
mod settings;
mod shown;
mod signals;
#[cfg(feature = "sim")]
mod sim;
mod table;
mod uploads;
mod verify;

use args::{Args, Command};
use credentials::Environment;
use exit::Code;
use foreign::Form;
use runtime::runtime;
use settings::Settings;

/// Parses, runs, reports. A panic anywhere ends in exit code 1, with the work given up in order.
#[must_use]
pub fn main(typed: impl IntoIterator<Item = OsString>) -> ExitCode {
    let typed: Vec<OsString> = typed.into_iter().collect();
    if let Err(tight) = process::begin() {
        let name = if qemu_img::arguments(&typed).is_some() { "qemu-img" } else { "snapferry" };
        let _ = writeln!(std::io::stderr(), "{name}: {tight}");
        return Code::Unexpected.into();
    }
    let ended = std::panic::catch_unwind(|| run(&typed));
    match ended {
        Ok(code) if !panics::ended_the_work() => code,
        // The hook has said why.
        Ok(_) | Err(_) => Code::Unexpected.into(),
    }
}

fn run(typed: &[OsString]) -> ExitCode {
    if let Some(args) = qemu_img::arguments(typed) {
        log::start(log::Verbosity::Quiet, log::LogFormat::Text, &progress::Console::new());
        return qemu_img::run(args);
    }
    let environment = Environment::of_process();
    let (args, settings) = match read(typed, &environment) {
        Ok(read) => read,
        Err(error) => return refuse(&error).into(),
    };
    let console = progress::Console::new();
    let verbosity = args.verbosity();
    log::start(verbosity, args.log_format, &console);
    for (name, meant) in Settings::misspelt(&environment) {
        tracing::warn!("the variable {name} does nothing: was {} meant?", meant.join(" or "));
    }
    let outcome = match args.command {
        Command::Convert(args) => convert::run(&args, verbosity, &console),
        Command::Verify(args) => verify::run(&args, verbosity, &console),
        Command::Restore(args) => restore::run(&args, verbosity, &console),
        // Reached only where an option stands before the name.
        Command::QemuImg(args) => return qemu_img::run(&args.args),
        Command::Info(args) => inspect::info::run(&args),
        Command::Check(args) => inspect::check::run(&args),
        Command::Map(args) => inspect::map::run(&args),
        Command::Compare(args) => inspect::compare::run(&args),
        Command::Measure(args) => inspect::measure::run(&args),
        Command::Uploads(args) => uploads::run(&args),
        Command::Replicate(args) => replicate::run(&args, verbosity, &console),
        Command::Enqueue(args) => fleet::enqueue::run(&args),
        Command::Worker(args) => fleet::worker::run(&args, verbosity, &console),
        Command::Jobs(args) => fleet::jobs::run(&args),
        Command::Status(args) => fleet::status::run(&args),
        Command::Schedule(args) => fleet::schedule::run(&args),
        Command::Plan(args) => replicate::plan::run(&args),
        Command::Gc(args) => replicate::gc::run(&args, verbosity),
        Command::BootVolume(args) => cloud::boot_volume::run(&args),
        Command::Snapshot(args) => cloud::snapshot::run(&args),
        Command::Provision(args) => cloud::provision::run(&args),
        Command::Images(args) => cloud::images::run(&args),
        Command::Doctor(args) => cloud::doctor::run(&args),
        Command::Config(args) => shown::run(&args, &settings, &environment),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        #[cfg(feature = "sim")]
        Command::Demo(args) => demo::run(&args),
        #[cfg(feature = "sim")]
        Command::Sim(args) => sim::run(&args),
    };
    match outcome {
        Ok(code) => code.into(),
        Err(error) => exit::report(&error).into(),
    }
}

/// What the command line means, and the settings that it was read with.
fn read(typed: &[OsString], environment: &Environment) -> anyhow::Result<(Args, Settings)> {
    let bare = Args::command().try_get_matches_from(typed);
    if !settings::matter_to(&bare) {
        return Ok((Args::from_arg_matches(&bare?)?, Settings::default()));
    }
    let settings = Settings::find(typed, environment)?;
    let first = settings.apply(Args::command()).try_get_matches_from(typed)?;
    // What was typed may take the place of settings of other names.
    let matches = settings.beside(&first).apply(Args::command()).try_get_matches_from(typed)?;
    Ok((Args::from_arg_matches(&matches)?, settings))
}

/// Says why a command line can't be read, or what it asked clap for.
fn refuse(error: &anyhow::Error) -> Code {
    match error.downcast_ref::<clap::Error>() {
        Some(error) => {
            // Help and version are errors to clap too, with exit code 0 and stdout.
            let _ = error.print();
            if error.use_stderr() { Code::Usage } else { Code::Done }
        }
        None => exit::report(error),
    }
}

/// A result, for programs.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    writeln!(foreign::out_in(Form::Json), "{}", serde_json::to_string(value)?)?;
    Ok(())
}
