//! Exit codes, and errors as a person reads them.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::foreign::{line, lines as lines_of};
use super::hints;
use crate::convert::{ConvertError, Failure, Leftover, Remains};
use crate::identity::IdentityError;
use crate::limits::{self, OutOfMemory, TooTight};
use crate::qcow2::{FileError, ImageError};
use crate::queue::QueueError;
use crate::restore::{LocalImageError, RestoreError, TargetError};
use crate::source::SourceError;
use crate::store::StoreError;
use crate::vpc::{NameError, VpcError};
use crate::worker::gc::GcError;
use crate::worker::{Fault, JobError, JobNamesError, JournalError, Resumable};

/// How a run ended, as the README lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Done = 0,
    /// Something that nobody expected.
    Unexpected = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The source can't be used, or not all of it could be read (`--salvage`).
    Source = 3,
    /// The object store, or the output file or device.
    Store = 4,
    /// The cloud's API.
    Cloud = 5,
    /// The fleet's queue.
    Queue = 6,
    /// An image is refused, or failed its check.
    Image = 7,
    /// An image is older than it may be (`status --check`).
    Stale = 8,
    /// Somebody stopped it.
    Interrupted = 130,
    /// Whoever read stdout has closed it, as `head` does: as of a program that SIGPIPE ends. Not 0, since a `check` whose verdict
    /// nobody waited for has not called the image good.
    Unheard = 141,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// A mistake in what was typed or configured.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Prints the error's chain and what to try next, and gives the exit code.
pub fn report(error: &anyhow::Error) -> Code {
    if is_unheard(error) {
        return Code::Unheard;
    }
    let mut lines = format!("snapferry: {}\n", line(&sentence(error)));
    if let Some(hint) = error.chain().find_map(hints::of) {
        lines.push_str(&format!("  {}\n", lines_of(&hint)));
    }
    if let Some(Failure { leftover: Some(leftover), .. }) = error.downcast_ref::<Failure>() {
        lines.push_str(&format!("  {}\n", line(&words_for_leftover(leftover))));
    }
    if let Some(error) = error.downcast_ref::<JobError>() {
        for left in &error.left {
            lines.push_str(&format!("  left behind: {}\n", line(&format!("{left}; {}", hints::of_left(left)))));
        }
        if error.resumable == Resumable::Yes {
            lines.push_str(&format!("  snapferry replicate --resume {} goes on with the job\n", error.id));
        }
    }
    // Nothing is left to do about a stderr that is gone.
    let _ = std::io::stderr().write_all(lines.as_bytes());
    error.chain().find_map(code_for).unwrap_or(Code::Unexpected)
}

/// Whether a stdout that nobody reads is all that went wrong. Connections that break are causes of the store's and the cloud's errors.
fn is_unheard(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| match Errno::from_io_error(error) {
        Some(Errno::PIPE) => true,
        // What a terminal answers that has gone away.
        Some(Errno::IO) => fstat(stdout()).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice),
        _ => false,
    })
}

/// What is still there, and how to be rid of it.
fn words_for_leftover(Leftover { remains, upload, url, why }: &Leftover) -> String {
    if *remains == Remains::EmptyTarget {
        return format!("{url} could not be replaced and was written where it lies: what it held is gone, and it is empty now");
    }
    match url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        Some((bucket, _)) => format!(
            "the upload could not be aborted ({why}), and is billed until it is: \
             snapferry uploads abort --bucket {bucket} --key {} --id {} (and the same --endpoint and --region)",
            upload.key,
            upload.id.escape_debug()
        ),
        None => {
            format!("the unfinished file beside {url}, with {} in its name, could not be removed: {why}", upload.id.escape_debug())
        }
    }
}

/// What to try next, where there is something.
pub fn fix_for(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hints::of)
}

/// `a: b: c`, each cause once: transparent errors repeat their source's words.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let words = limits::words(cause);
        if text.ends_with(&words) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&words);
    }
    text
}

fn code_for(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    if let Some(Failure { error, .. }) = cause.downcast_ref::<Failure>() {
        return Some(code_of_conversion(error));
    }
    if let Some(error) = cause.downcast_ref::<ConvertError>() {
        return Some(code_of_conversion(error));
    }
    if let Some(error) = cause.downcast_ref::<RestoreError>() {
        return code_of_restore(error);
    }
    if let Some(error) = cause.downcast_ref::<JobError>() {
        return code_of_fault(&error.fault);
    }
    if let Some(error) = cause.downcast_ref::<Fault>() {
        return code_of_fault(error);
    }
    if let Some(error) = cause.downcast_ref::<GcError>() {
        return match error {
            GcError::Cloud { source, .. } => code_for(source),
            GcError::Store { source, .. } => code_for(source),
            GcError::Retention(fault) => code_of_fault(fault),
            GcError::Names(_) => Some(Code::Usage),
        };
    }
    if cause.is::<OutOfMemory>() || cause.is::<TooTight>() {
        return Some(Code::Unexpected);
    }
    if cause.is::<QueueError>() {
        return Some(Code::Queue);
    }
    if let Some(StoreError::Cancelled { .. }) = cause.downcast_ref() {
        return Some(Code::Interrupted);
    }
    if let Some(error) = cause.downcast_ref::<VpcError>() {
        return Some(match error {
            VpcError::Cancelled { .. } => Code::Interrupted,
            VpcError::Setup(_) => Code::Usage,
            _ => Code::Cloud,
        });
    }
    if let Some(error) = cause.downcast_ref::<IdentityError>() {
        return Some(if matches!(error, IdentityError::Setup(_)) { Code::Usage } else { Code::Cloud });
    }
    if cause.is::<StoreError>() {
        return Some(Code::Store);
    }
    if let Some(error) = cause.downcast_ref::<SourceError>() {
        return Some(code_of_source(error));
    }
    if let Some(FileError { source, .. }) = cause.downcast_ref() {
        return code_for(&**source);
    }
    if cause.is::<LocalImageError>() {
        return Some(Code::Source);
    }
    if let Some(error) = cause.downcast_ref::<ImageError>() {
        return code_of_image(error);
    }
    let usage = cause.is::<UsageError>() || cause.is::<NameError>() || cause.is::<JobNamesError>() || cause.is::<JournalError>();
    usage.then_some(Code::Usage)
}

fn code_of_fault(fault: &Fault) -> Option<Code> {
    match fault {
        Fault::Cloud(error) => code_for(error),
        Fault::Store(error) => code_for(error),
        Fault::Convert(error) => code_for(error),
        Fault::ReadBack(error) => code_of_restore(error),
        Fault::Source(error) => Some(code_of_source(error)),
        Fault::Device(_) => Some(Code::Source),
        Fault::Names(_) | Fault::Journal(_) | Fault::Obstacles { .. } | Fault::UnderWay { .. } | Fault::Over { .. } => {
            Some(Code::Usage)
        }
        Fault::TakenOver { .. } | Fault::NoTurn { .. } => Some(Code::Cloud),
        Fault::NotTheSame { .. } | Fault::WrongFile { .. } | Fault::NoSum { .. } => Some(Code::Image),
        Fault::OutOfTurn { .. } | Fault::Died => Some(Code::Unexpected),
        Fault::Stopped => Some(Code::Interrupted),
    }
}

/// Of an image that is read as a disk, what is wrong is within.
fn code_of_source(error: &SourceError) -> Code {
    match error {
        SourceError::Memory(_) => Code::Unexpected,
        SourceError::Read { source, .. } => source.get_ref().and_then(|within| code_for(within)).unwrap_or(Code::Source),
        _ => Code::Source,
    }
}

fn code_of_image(error: &ImageError) -> Option<Code> {
    match error {
        ImageError::File(FileError { source, .. }) => code_for(&**source),
        ImageError::Interrupted => Some(Code::Interrupted),
        ImageError::Memory(_) => Some(Code::Unexpected),
        _ => Some(Code::Image),
    }
}

fn code_of_restore(error: &RestoreError) -> Option<Code> {
    match error {
        RestoreError::Image(error) => code_of_image(error),
        RestoreError::File(FileError { source, .. }) => code_for(&**source),
        RestoreError::Body { .. } | RestoreError::Manifest { .. } | RestoreError::Unusable { .. } => Some(Code::Image),
        RestoreError::Source(error) => Some(code_of_source(error)),
        RestoreError::Target(TargetError::Memory(_)) => Some(Code::Unexpected),
        RestoreError::Target(_) => Some(Code::Store),
        RestoreError::Incomplete { source, .. } => code_of_restore(source),
        RestoreError::TooMany { .. } => Some(Code::Usage),
        RestoreError::Threads(_)
        | RestoreError::Memory(_)
        | RestoreError::TooTight(_)
        | RestoreError::Unaccounted { .. }
        | RestoreError::StageDied { .. } => Some(Code::Unexpected),
        RestoreError::Interrupted => Some(Code::Interrupted),
    }
}

fn code_of_conversion(error: &ConvertError) -> Code {
    match error {
        ConvertError::Source(error) => code_of_source(error),
        ConvertError::Manifest { source: StoreError::Cancelled { .. }, .. } => Code::Interrupted,
        ConvertError::Store(_)
        | ConvertError::Exists { .. }
        | ConvertError::Manifest { .. }
        | ConvertError::Unproved { .. }
        | ConvertError::Disproved { .. } => Code::Store,
        ConvertError::Geometry(_)
        | ConvertError::TooLarge { .. }
        | ConvertError::Version2 { .. }
        | ConvertError::PartSize { .. }
        | ConvertError::TooMany { .. } => Code::Usage,
        ConvertError::Interrupted => Code::Interrupted,
        ConvertError::Threads(_)
        | ConvertError::Memory(_)
        | ConvertError::TooTight(_)
        | ConvertError::Unaccounted { .. }
        | ConvertError::StageDied { .. } => Code::Unexpected,
    }
}
