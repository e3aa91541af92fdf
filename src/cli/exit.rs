//! Exit codes, and error messages for the user.

use std::error::Error;
use std::io::{Write as _, stdout};
use std::process::ExitCode;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use snapferry_base::limits;
use snapferry_engine::convert::{Failure, OrphanedUpload, Remains};
use snapferry_fleet::replicate::Resumable;

use super::error::CommandError;
use super::hints;
use super::printable::{line, lines as lines_of};

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

/// Prints the error's chain and what to try next, and returns the exit code.
pub fn report(error: &CommandError) -> Code {
    if is_broken_pipe(error) {
        return Code::BrokenPipe;
    }
    let mut lines = format!("snapferry: {}\n", line(&sentence(error)));
    if let Some(hint) = error.hint() {
        lines.push_str(&format!("  {}\n", lines_of(&hint)));
    }
    match error {
        CommandError::Conversion(Failure { orphaned_upload: Some(orphan), .. }) => {
            lines.push_str(&format!("  {}\n", line(&describe_orphan(orphan))));
        }
        CommandError::Job(error) => {
            for left in &error.orphaned {
                let text = format!("{left}; {}", hints::of_left(left));
                lines.push_str(&format!("  left behind: {}\n", line(&text)));
            }
            if error.resumable == Resumable::Yes {
                lines
                    .push_str(&format!("  snapferry replicate --resume {} goes on with the job\n", error.id));
            }
        }
        _ => {}
    }
    // If stderr is closed, there is no other place for the message.
    let _ = std::io::stderr().write_all(lines.as_bytes());
    error.code()
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
