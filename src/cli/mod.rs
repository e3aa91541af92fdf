//! The command line: the only place that reads arguments and the environment, prints, and picks concrete
//! stores and sources.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::FromArgMatches as _;
use colour::ColourChoice;
use command::{Args, Command, definition};
use serde::Serialize;
use snapferry_base::cancel::Cancel;

use crate::cli::error::{CommandError, CommandResult};

mod args;
mod base_choice;
mod cloud;
mod colour;
mod command;
mod completions;
mod config;
mod config_show;
mod consent;
mod convert;
mod credentials;
mod duration;
mod end_record;
mod environment;
mod error;
mod exit;
mod fleet;
mod hints;
mod image;
mod inspect;
mod json_log;
mod log;
mod manual;
mod metrics_file;
mod open_image;
mod panics;
mod printable;
mod process;
mod progress;
mod qemu;
mod qemu_img;
mod rehearsal;
mod replicate;
mod report;
mod restore;
mod runtime;
mod session;
mod settings;
mod signals;
mod skip_free;
mod table;
mod throughput;
mod tips;
mod uploads;
mod values;
mod variables;
mod verify;
mod version;

use environment::Environment;
use exit::Code;
use log::LogFormat;
use metrics_file::MetricsFile;
use printable::Form;
use progress::ProgressChoice;
use runtime::runtime;
use session::Session;
use settings::Settings;

/// Parses the command line, runs the command, and reports its error. A panic anywhere ends in exit code 1,
/// after the work was given up in order.
#[must_use]
pub fn main(typed: impl IntoIterator<Item = OsString>) -> ExitCode {
    let typed: Vec<OsString> = typed.into_iter().collect();
    let is_qemu_img = qemu_img::arguments(&typed).is_some();
    if !is_qemu_img {
        log::find_format(&typed);
    }
    if let Err(tight) = process::begin() {
        if is_qemu_img {
            let _ = writeln!(std::io::stderr(), "qemu-img: {tight}");
            return Code::Unexpected.into();
        }
        return exit::report(&tight.into(), form_of(&typed)).into();
    }
    if completions::answer(&typed) {
        return Code::Done.into();
    }
    let ended = std::panic::catch_unwind(|| run(&typed));
    match ended {
        Ok(code) if !panics::ended_the_work() => code,
        // The panic hook has printed the reason.
        Ok(_) | Err(_) => Code::Unexpected.into(),
    }
}

fn run(typed: &[OsString]) -> ExitCode {
    if let Some(args) = qemu_img::arguments(typed) {
        let console = progress::Console::new(ProgressChoice::default());
        log::start(log::Verbosity::Quiet, log::LogFormat::Text, &console);
        return qemu_img::run(args);
    }
    let environment = Environment::of_process();
    ColourChoice::of_command_line(typed).apply(&environment);
    let (args, settings) = match read(typed, &environment) {
        Ok(read) => read,
        Err(error) => return refuse(&error, form_of(typed)).into(),
    };
    let console = progress::Console::new(args.progress);
    let session = Session {
        environment,
        settings,
        // A bar or a list of steps would stand between the objects.
        console: if args.log_format == LogFormat::Json { console.without_terminal() } else { console },
        verbosity: args.verbosity(),
        cancel: Cancel::new(),
        throughput: Arc::default(),
    };
    log::start(session.verbosity, args.log_format, &session.console);
    for (name, meant) in Settings::misspelt(&session.environment) {
        tracing::warn!("the variable {name} does nothing: was {} meant?", meant.join(" or "));
    }
    let metrics_file = match MetricsFile::of(&args.command, &session.throughput) {
        Ok(metrics_file) => metrics_file,
        Err(error) => return exit::report(&error.into(), form_of(typed)).into(),
    };
    for [used, ignored] in variables::contradictions(&session.environment) {
        tracing::warn!("{used} and {ignored} differ: {used} counts, and {ignored} is ignored");
    }
    let session = &session;
    let outcome = match args.command {
        Command::Convert(args) => convert::run(&args, session),
        Command::Verify(args) => verify::run(&args, session),
        Command::Restore(args) => restore::run(&args, session),
        // Reached only if an option stands before the name.
        Command::QemuImg(args) => return qemu_img::run(&args.args),
        Command::Info(args) => inspect::info::run(&args, session),
        Command::Check(args) => inspect::check::run(&args, session),
        Command::Map(args) => inspect::map::run(&args, session),
        Command::Compare(args) => inspect::compare::run(&args, session),
        Command::Measure(args) => inspect::measure::run(&args, session),
        Command::Uploads(args) => uploads::run(&args, session),
        Command::Replicate(args) => replicate::run(&args, session),
        Command::Enqueue(args) => fleet::enqueue::run(&args, session),
        Command::Worker(args) => fleet::worker::run(&args, session),
        Command::Jobs(args) => fleet::jobs::run(&args, session),
        Command::Status(args) => fleet::status::run(&args, session),
        Command::Schedule(args) => fleet::schedule::run(&args, session),
        Command::Plan(args) => replicate::plan::run(&args, session),
        Command::Gc(args) => replicate::gc::run(&args, session),
        Command::BootVolume(args) => cloud::boot_volume::run(&args, session),
        Command::Snapshot(args) => cloud::snapshot::run(&args, session),
        Command::Provision(args) => cloud::provision::run(&args, session),
        Command::Images(args) => cloud::images::run(&args, session),
        Command::Doctor(args) => cloud::doctor::run(&args, session),
        Command::Config(args) => config_show::run(&args, session, &definition()),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => manual::run(&args, definition()),
        Command::Version(args) => version::run(&args),
    };
    let code = outcome.unwrap_or_else(|error| exit::report(&error, form_of(typed)));
    if let Some(metrics_file) = metrics_file {
        metrics_file.write(if panics::ended_the_work() { Code::Unexpected } else { code });
    }
    code.into()
}

/// Returns the form of the output that a command line asks for, whether or not it can be read.
fn form_of(typed: &[OsString]) -> Form {
    Form::of(typed.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json"))
}

/// Reads the command line and the settings. The first parse ignores errors, and finds the command and the
/// identity that the user typed: they decide which settings become defaults of flags. The second parse is the
/// one that counts.
fn read(typed: &[OsString], environment: &Environment) -> CommandResult<(Args, Settings)> {
    let command = definition().color(ColourChoice::of_command_line(typed).into());
    // An error here is a request for help or the version; the second parse returns it again.
    let scanned = command.clone().ignore_errors(true).try_get_matches_from(typed);
    let scanned = scanned.ok().filter(|scanned| settings::matter_to(&command, scanned));
    let (settings, defaults) = match scanned {
        Some(scanned) => {
            let settings = Settings::find(typed, environment)?;
            let defaults = settings.without_replaced(&scanned);
            (settings, defaults)
        }
        None => (Settings::default(), Settings::default()),
    };
    let matches =
        defaults.apply(command).try_get_matches_from(typed).map_err(tips::without_those_that_mislead)?;
    Ok((Args::from_arg_matches(&matches)?, settings))
}

/// Prints why a command line can't be read, or the help or version that the user asked for.
fn refuse(error: &CommandError, form: Form) -> Code {
    match error {
        // Help and version are errors to clap too, with exit code 0 and stdout.
        CommandError::CommandLine(error) if !error.use_stderr() => {
            let _ = error.print();
            Code::Done
        }
        other => exit::report(other, form),
    }
}

/// Prints a result as one line of JSON on stdout.
fn print_json(value: &impl Serialize) -> CommandResult<()> {
    writeln!(printable::out_as(Form::Json), "{}", serde_json::to_string(value)?)?;
    Ok(())
}
