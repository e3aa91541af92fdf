//! In `qemu-img`'s place: the command lines that its callers use, with its options, words, exit codes and output.
//!
//! What we don't do is refused by name, or handed to the real program where `SNAPFERRY_QEMU_IMG` names one. Either way it is found out
//! before anything is written: [`Stop::NotDone`] comes from reading arguments and opening sources, never later.

use clap::Args as Group;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _, stderr, stdout};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use snapferry_base::limits;

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
mod words;

/// The name that we answer to.
const NAME: &str = "qemu-img";
/// Names the real program.
const REAL: &str = "SNAPFERRY_QEMU_IMG";
/// The QEMU whose behaviour this is, as checked against it. Callers look for `qemu-img version ([0-9.]*)`.
const BEHAVES_AS: &str = "10.0.2";

/// What QEMU's tool does and we don't.
const NOT_DONE: [&str; 8] = ["amend", "bench", "bitmap", "commit", "dd", "rebase", "resize", "snapshot"];

/// Why a command ends before it is done.
#[derive(Debug)]
pub enum Stop {
    /// Something is wrong: one line, and an exit code.
    Says(String, u8),
    /// The command line is wrong: where to read more is told too.
    Usage(String),
    /// We don't do that; perhaps the real program does.
    NotDone(String),
    /// It was told to; perhaps something is left to be said.
    Interrupted(Option<String>),
}

impl Stop {
    /// With exit code 1, as for nearly everything.
    pub fn says(words: impl Into<String>) -> Self {
        Self::Says(words.into(), 1)
    }
}

/// Where stdout is gone, nobody is left to read.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::says(limits::words(&error))
    }
}

/// How a command ended: its exit code.
pub type Ended = Result<u8, Stop>;

/// The arguments, where the command line is one of `qemu-img`'s: called by its name, or as `snapferry qemu-img`.
pub fn arguments(typed: &[OsString]) -> Option<&[OsString]> {
    let (program, rest) = typed.split_first()?;
    if Path::new(program).file_name() == Some(OsStr::new(NAME)) {
        return Some(rest);
    }
    let (first, rest) = rest.split_first()?;
    (first == NAME).then_some(rest)
}

/// A command line of QEMU's, which we read by QEMU's own rules.
#[derive(Debug, Group)]
pub struct QemuImgArgs {
    /// As for QEMU's tool
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
    let (words, code) = match stop {
        Stop::Says(words, code) => (format!("{NAME}: {words}"), code),
        Stop::Usage(words) => (words, 1),
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
    // Nothing is left to do about a stderr that is gone.
    let _ = writeln!(stderr(), "{words}");
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

/// Becomes the real program, with the same arguments. Returns only where there is none, or it can't be run.
fn hand_over(args: &[OsString]) -> Option<io::Error> {
    let real = std::env::var_os(REAL).filter(|path| !path.is_empty())?;
    // Without the variable: should it name ourselves after all, we would hand over for ever.
    Some(Command::new(real).args(args).env_remove(REAL).exec())
}

fn try_help(command: Option<&str>) -> String {
    let command = command.map_or(String::new(), |name| format!("{name} "));
    format!("Try '{NAME} {command}--help' for more info")
}

/// Reads a subcommand's arguments; `None` where only help was wanted, and given.
fn read(
    command: &str,
    usage: &str,
    args: &[OsString],
    known: &[getopt::Known],
) -> Result<Option<getopt::Typed>, Stop> {
    let all: Vec<getopt::Known> = known.iter().copied().chain([getopt::flag(b'h', Some("help"))]).collect();
    let typed = getopt::parse(args, &all)
        .map_err(|words| Stop::Usage(format!("{NAME} {command}: {words}\n{}", try_help(Some(command)))))?;
    if typed.has("help") {
        writeln!(
            stdout(),
            "Usage:\n\n  {NAME} {command} {usage}\n\ndocs/qemu-img.md says what each option does here."
        )?;
        return Ok(None);
    }
    Ok(Some(typed))
}

/// A command line that lacks something, or has too much.
fn usage(command: &str, words: &str) -> Stop {
    Stop::Usage(format!("{NAME}: {words}\n{}", try_help(Some(command))))
}

/// The one name that a subcommand takes.
fn one_file<'a>(command: &str, typed: &'a getopt::Typed) -> Result<&'a OsStr, Stop> {
    match &typed.operands[..] {
        [name] => Ok(name),
        _ => Err(usage(command, "Expecting one image file name")),
    }
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Human,
    Json,
}

/// What `--output` asks for.
fn report(command: &str, typed: &getopt::Typed) -> Result<Report, Stop> {
    match typed.last("output").map(OsStr::to_string_lossy).as_deref() {
        None | Some("human") => Ok(Report::Human),
        Some("json") => Ok(Report::Json),
        Some(other) => Err(usage(command, &format!("--output expects 'human' or 'json' not '{other}'"))),
    }
}

/// Refuses options that we know and don't do.
fn refuse(typed: &getopt::Typed, names: &[&'static str]) -> Result<(), Stop> {
    match typed.first_of(names) {
        Some(name) => Err(Stop::NotDone(format!("--{name}"))),
        None => Ok(()),
    }
}

/// Checks a cache mode. We read and write past the page cache where that goes, and flush at the end, whatever it is.
fn check_cache(typed: &getopt::Typed, name: &str, what: &str) -> Result<(), Stop> {
    const MODES: [&str; 6] = ["none", "off", "directsync", "writeback", "unsafe", "writethrough"];
    match typed.last(name).map(OsStr::to_string_lossy) {
        Some(mode) if !MODES.contains(&&*mode) => {
            Err(Stop::says(format!("Invalid {what}cache option: {mode}")))
        }
        _ => Ok(()),
    }
}

/// Says something that does not end the work.
fn warn(words: &str) {
    let _ = writeln!(stderr(), "{NAME}: warning: {words}");
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
