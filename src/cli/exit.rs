//! Exit codes, and error messages for the user.

use std::error::Error;
use std::io::{Write as _, stdout};
use std::process::ExitCode;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use serde_json::json;
use snapferry_base::limits;
use snapferry_engine::convert::{Failure, OrphanedUpload, Remains};
use snapferry_fleet::replicate::Resumable;

use super::end_record;
use super::error::CommandError;
use super::hints;
use super::log::{self, LogFormat};
use super::printable::{Form, line, lines as lines_of, out_as};

/// Exit codes of a run, as the README lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Done = 0,
    /// Failure that no other code covers, e.g. too little memory, or a bug.
    Unexpected = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The source can't be used, or not all of it could be read (`--salvage`).
    Source = 3,
    /// Failure of the object store, or of the output file or device.
    Store = 4,
    /// Failure of the cloud's API.
    Cloud = 5,
    /// Failure of the fleet's queue.
    Queue = 6,
    /// An image is refused, or failed its check.
    Image = 7,
    /// An image is older than it may be (`status --check`).
    Stale = 8,
    /// The user stopped the command: 128 + 2 (SIGINT), as shells report it.
    Interrupted = 130,
    /// The reader of stdout has closed it, as `head` does. The code is that of a program that SIGPIPE ends.
    /// It is not 0, because a `check` whose verdict was not read has not called the image good.
    BrokenPipe = 141,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

impl Code {
    /// Returns the class of an error that ends with this code, for programs.
    fn class(self) -> &'static str {
        match self {
            Self::Done => "none",
            Self::Unexpected => "unexpected",
            Self::Usage => "usage",
            Self::Source => "source",
            Self::Store => "store",
            Self::Cloud => "cloud",
            Self::Queue => "queue",
            Self::Image => "image",
            Self::Stale => "stale",
            Self::Interrupted => "interrupted",
            Self::BrokenPipe => "broken pipe",
        }
    }
}

/// Everything that is known of an error, in the words for the user.
pub struct Ending {
    pub message: String,
    /// Next steps for the user.
    pub hints: Vec<String>,
    /// Resources that the command could not remove.
    pub leftovers: Vec<String>,
}

impl Ending {
    fn of(error: &CommandError) -> Self {
        let mut ending = Self {
            message: sentence(error),
            hints: error.hint().into_iter().collect(),
            leftovers: Vec::new(),
        };
        match error {
            CommandError::CommandLine(error) => return Self::of_command_line(error),
            CommandError::Recorded(error) => return Self::of(error),
            CommandError::Conversion(Failure { orphaned_upload: Some(orphan), .. }) => {
                ending.leftovers.push(describe_orphan(orphan));
            }
            CommandError::Job(error) => {
                let describe = |left| format!("{left}; {}", hints::of_left(left));
                ending.leftovers.extend(error.orphaned.iter().map(describe));
                if error.resumable == Resumable::Yes {
                    ending
                        .hints
                        .push(format!("`snapferry replicate --resume {}` goes on with the job", error.id));
                }
            }
            _ => {}
        }
        ending
    }

    /// Divides clap's text: its first paragraph is the error, the others are what to do.
    fn of_command_line(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let mut paragraphs = text.split("\n\n").map(str::trim).filter(|text| !text.is_empty());
        let message = paragraphs.next().unwrap_or_default();
        Self {
            message: message.strip_prefix("error: ").unwrap_or(message).to_owned(),
            hints: paragraphs.map(|text| text.strip_prefix("tip: ").unwrap_or(text).to_owned()).collect(),
            leftovers: Vec::new(),
        }
    }

    /// Prints the text on stderr. If stderr is closed, there is no other place for it.
    fn print(&self, error: &CommandError) {
        let _ = match error {
            CommandError::CommandLine(error) => error.print(),
            _ => std::io::stderr().write_all(self.text().as_bytes()),
        };
    }

    /// Returns the text on stderr, which looks as that of clap's own errors.
    fn text(&self) -> String {
        let label = |text: &'static str| console::style(text).for_stderr();
        let mut text = format!("{} {}\n", label("error:").red().bold(), line(&self.message));
        if !self.hints.is_empty() || !self.leftovers.is_empty() {
            text.push('\n');
        }
        for hint in &self.hints {
            // Further lines stand below the first one.
            let hint = lines_of(hint).replace('\n', "\n       ");
            text.push_str(&format!("  {} {hint}\n", label("tip:").green()));
        }
        for left in &self.leftovers {
            text.push_str(&format!("  {} {}\n", label("left behind:").yellow(), line(left)));
        }
        text
    }
}

/// Prints the error's chain and what to try next, and returns the exit code. In the form of JSON an object
/// about the error goes to stdout, too.
pub fn report(error: &CommandError, form: Form) -> Code {
    if is_broken_pipe(error) {
        return Code::BrokenPipe;
    }
    let (ending, code) = (Ending::of(error), error.code());
    match log::format() {
        LogFormat::Json => end_record::of(error, &ending).print(),
        LogFormat::Journald => {
            end_record::send_to_journal(error, &ending);
            ending.print(error);
        }
        LogFormat::Text => ending.print(error),
    }
    if form == Form::Json && !error.is_recorded() {
        let object = json!({ "error": {
            "message": ending.message,
            "hint": (!ending.hints.is_empty()).then(|| ending.hints.join("\n")),
            "class": code.class(),
            "code": code as u8,
            "leftovers": ending.leftovers,
        }});
        // The text on stderr has it all, even if stdout is closed.
        let _ = writeln!(out_as(Form::Json), "{object}");
    }
    code
}

/// True if the only failure is a stdout that no process reads. Broken connections don't count: they are
/// causes of the store's and the cloud's errors.
fn is_broken_pipe(error: &CommandError) -> bool {
    let CommandError::Io(error) = error else { return false };
    match Errno::from_io_error(error) {
        Some(Errno::PIPE) => true,
        // A terminal that has gone away answers with EIO.
        Some(Errno::IO) => fstat(stdout())
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice),
        _ => false,
    }
}

/// Describes what a failed upload has left, and how the user can remove it.
fn describe_orphan(OrphanedUpload { remains, upload, url, reason }: &OrphanedUpload) -> String {
    if *remains == Remains::EmptyTarget {
        return format!(
            "{url} could not be replaced and was written where it lies: what it held is gone, and it is empty now"
        );
    }
    match url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        Some((bucket, _)) => format!(
            "the upload could not be aborted ({reason}), and is billed until it is: \
             snapferry uploads abort --bucket {bucket} --key {} --id {} (and the same --endpoint and --region)",
            upload.key,
            upload.id.escape_debug()
        ),
        None => {
            format!(
                "the unfinished file beside {url}, with {} in its name, could not be removed: {reason}",
                upload.id.escape_debug()
            )
        }
    }
}

/// Formats an error as `a: b: c`, with each cause once: transparent errors repeat their source's text.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(Some(error), |&error| error.source()) {
        let message = limits::message(cause);
        if text.ends_with(&message) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&message);
    }
    text
}
