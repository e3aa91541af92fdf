//! Drop-in replacement for `qemu-img`: the command lines that its callers use, with its options, messages,
//! exit codes and output.
//!
//! Features that are not supported are refused by name, or handed to the real program if `SNAPFERRY_QEMU_IMG`
//! names one. Either way this is decided before anything is written: [`Stop::NotDone`] comes from reading
//! arguments and opening sources, never later.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _, stderr, stdout};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Args as Group;
use snapferry_base::limits;

mod args;
mod check;
mod compare;
mod convert;
mod create;
mod getopt;
mod images;
mod info;
mod map;
mod measure;
mod output;
mod progress;

/// Name under which the program acts as this tool.
const NAME: &str = "qemu-img";
/// Environment variable with the path of the real program.
const REAL: &str = "SNAPFERRY_QEMU_IMG";
/// Version of QEMU whose behaviour this tool has, as checked against it. Callers look for
/// `qemu-img version ([0-9.]*)`.
const BEHAVES_AS: &str = "10.0.2";

/// Commands of QEMU's tool that are not supported.
const NOT_DONE: [&str; 8] = ["amend", "bench", "bitmap", "commit", "dd", "rebase", "resize", "snapshot"];

/// Reason for which a command ends before it is done.
#[derive(Debug)]
pub enum Stop {
    /// Error: one line, and an exit code.
    Says(String, u8),
    /// Wrong command line: a message that also names the help.
    Usage(String),
    /// Feature that is not supported; perhaps the real program has it.
    NotDone(String),
    /// Interruption by the user, perhaps with a message about what was left behind.
    Interrupted(Option<String>),
}

impl Stop {
    /// Returns an error with exit code 1, which nearly all errors have.
    pub fn error(message: impl Into<String>) -> Self {
        Self::Says(message.into(), 1)
    }
}

/// Errors of the system, such as a stdout whose reader is gone: exit code 1.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::error(limits::message(&error))
    }
}

/// Result of a command: its exit code, or the reason for which it stopped.
pub type Ended = Result<u8, Stop>;

/// Returns the arguments if the command line is one of `qemu-img`'s: the program is called by that name, or
/// as `snapferry qemu-img`.
pub fn arguments(typed: &[OsString]) -> Option<&[OsString]> {
    let (program, rest) = typed.split_first()?;
    if Path::new(program).file_name() == Some(OsStr::new(NAME)) {
        return Some(rest);
    }
    let (first, rest) = rest.split_first()?;
    (first == NAME).then_some(rest)
}

/// Command line of QEMU's tool, parsed by QEMU's own rules.
#[derive(Debug, Group)]
pub struct QemuImgArgs {
    /// Arguments as for QEMU's tool
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<std::ffi::OsString>,
}

/// Runs one command line.
pub fn run(args: &[OsString]) -> ExitCode {
    let command = args.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stop = match dispatch(&command, args) {
        Ok(code) => return code.into(),
        Err(stop) => stop,
    };
    let (message, code) = match stop {
        Stop::Says(message, code) => (format!("{NAME}: {message}"), code),
        Stop::Usage(message) => (message, 1),
        Stop::NotDone(what) => match hand_over(args) {
            Some(error) => (format!("{NAME}: cannot run what {REAL} names: {error}"), 1),
            None => (
                format!(
                    "{NAME}: snapferry does not do {what}: use QEMU's own tool, or set {REAL} to its path to have it called"
                ),
                1,
            ),
        },
        Stop::Interrupted(None) => (format!("{NAME}: interrupted"), 130),
        Stop::Interrupted(Some(left)) => (format!("{NAME}: interrupted: {left}"), 130),
    };
    // If stderr is gone, nothing can be done about it.
    let _ = writeln!(stderr(), "{message}");
    code.into()
}

fn dispatch(command: &str, args: &[OsString]) -> Ended {
    let rest = args.get(1..).unwrap_or_default();
    match command {
        "" => Err(Stop::Usage(format!("{NAME}: Not enough arguments\n{}", try_help(None)))),
        "--version" | "-V" => version(),
        "--help" | "-h" => help(),
        "check" => check::run(rest),
        "compare" => compare::run(rest),
        "convert" => convert::run(rest),
        "create" => create::run(rest),
        "info" => info::run(rest),
        "map" => map::run(rest),
        "measure" => measure::run(rest),
        not_done if NOT_DONE.contains(&not_done) => Err(Stop::NotDone(format!("{NAME} {not_done}"))),
        standard if standard.starts_with('-') => {
            Err(Stop::NotDone(format!("the option {standard} before a command")))
        }
        unknown => Err(Stop::Usage(format!("{NAME}: Command not found: {unknown}\n{}", try_help(None)))),
    }
}

/// Replaces this process by the real program, with the same arguments. Returns only if there is none, or if
/// it can't be run.
fn hand_over(args: &[OsString]) -> Option<io::Error> {
    let real = std::env::var_os(REAL).filter(|path| !path.is_empty())?;
    // The variable is removed: if it names this program after all, the process would hand over for ever.
    Some(Command::new(real).args(args).env_remove(REAL).exec())
}

fn try_help(command: Option<&str>) -> String {
    let command = command.map_or(String::new(), |name| format!("{name} "));
    format!("Try '{NAME} {command}--help' for more info")
}

/// Parses a subcommand's arguments. None if the user asked for help, which is then printed.
fn read(
    command: &str,
    usage: &str,
    args: &[OsString],
    known: &[getopt::Known],
) -> Result<Option<getopt::Typed>, Stop> {
    let all: Vec<getopt::Known> = known.iter().copied().chain([getopt::flag(b'h', Some("help"))]).collect();
    let typed = getopt::parse(args, &all).map_err(|message| {
        Stop::Usage(format!("{NAME} {command}: {message}\n{}", try_help(Some(command))))
    })?;
    if typed.has("help") {
        writeln!(
            stdout(),
            "Usage:\n\n  {NAME} {command} {usage}\n\ndocs/qemu-img.md says what each option does here."
        )?;
        return Ok(None);
    }
    Ok(Some(typed))
}

/// Returns the error for a command line that lacks something, or has too much.
fn usage(command: &str, message: &str) -> Stop {
    Stop::Usage(format!("{NAME}: {message}\n{}", try_help(Some(command))))
}

/// Returns the one file name that a subcommand takes.
fn one_file<'a>(command: &str, typed: &'a getopt::Typed) -> Result<&'a OsStr, Stop> {
    match &typed.operands[..] {
        [name] => Ok(name),
        _ => Err(usage(command, "Expecting one image file name")),
    }
}

/// Format of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Human,
    Json,
}

/// Returns the format that `--output` asks for.
fn report(command: &str, typed: &getopt::Typed) -> Result<Report, Stop> {
    match typed.last("output").map(OsStr::to_string_lossy).as_deref() {
        None | Some("human") => Ok(Report::Human),
        Some("json") => Ok(Report::Json),
        Some(other) => Err(usage(command, &format!("--output expects 'human' or 'json' not '{other}'"))),
    }
}

/// Refuses options that are known but not supported.
fn refuse(typed: &getopt::Typed, names: &[&'static str]) -> Result<(), Stop> {
    match typed.first_of(names) {
        Some(name) => Err(Stop::NotDone(format!("--{name}"))),
        None => Ok(()),
    }
}

/// Checks the name of a cache mode, which has no effect: reads and writes bypass the page cache if that is
/// possible, and are flushed at the end.
fn check_cache(typed: &getopt::Typed, name: &str, what: &str) -> Result<(), Stop> {
    const MODES: [&str; 6] = ["none", "off", "directsync", "writeback", "unsafe", "writethrough"];
    match typed.last(name).map(OsStr::to_string_lossy) {
        Some(mode) if !MODES.contains(&&*mode) => {
            Err(Stop::error(format!("Invalid {what}cache option: {mode}")))
        }
        _ => Ok(()),
    }
}

/// Prints a warning, which does not end the work.
fn warn(message: &str) {
    let _ = writeln!(stderr(), "{NAME}: warning: {message}");
}

fn version() -> Ended {
    writeln!(
        stdout(),
        "{NAME} version {BEHAVES_AS} (snapferry {})\nNot QEMU's own: snapferry in its place, behaving as that version does.",
        env!("CARGO_PKG_VERSION")
    )?;
    Ok(0)
}

fn help() -> Ended {
    version()?;
    writeln!(
        stdout(),
        "\nUsage:\n\n  {NAME} COMMAND [--help | command options]\n\nCommands:\n\n  \
         check      Check an image's tables\n  \
         compare    Compare two disks\n  \
         convert    Copy one image to another, with another format if wanted\n  \
         create     Make an empty image\n  \
         info       Tell what an image is\n  \
         map        Tell where a disk's bytes lie\n  \
         measure    Tell how large an image gets\n\n\
         The formats are raw and qcow2. What else QEMU's {NAME} does is refused, or handed to it where\n\
         {REAL} holds its path: other formats, backing files, encryption, and\n{}.",
        NOT_DONE.join(", ")
    )?;
    Ok(0)
}
