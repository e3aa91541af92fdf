//! Errors that end a command before it is done, with their exit codes and hints.

use std::io;

use snapferry_base::identity::IdentityError;
use snapferry_base::limits::{OutOfMemory, TooTight};
use snapferry_base::threads::Refused;
use snapferry_engine::convert::{ConvertError, Failure};
use snapferry_engine::disk::TargetError;
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::LocalImageError;
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::source::SourceError;
use snapferry_engine::store::StoreError;
use snapferry_fleet::queue::QueueError;
use snapferry_fleet::replicate::gc::GcError;
use snapferry_fleet::replicate::{Fault, JobError, JobNamesError, JournalError};
use snapferry_ibmcloud::vpc::{NameError, VpcError};
use snapferry_qcow2::{FileError, ImageError};

use super::consent::NoConsent;
use super::exit::Code;
use super::hints;
use super::skip_free::FreeSpaceError;

/// Error in the command line or the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Result of a command, or of a part of one.
pub type CommandResult<T> = Result<T, CommandError>;

/// Error that ends a command before it is done. A new variant needs an exit code and a hint below, or the
/// program does not compile.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// Command line that clap refuses, or a request for help or the version.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error(transparent)]
    Plan(#[from] ConvertError),
    #[error(transparent)]
    Conversion(#[from] Failure),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    FreeSpace(#[from] FreeSpaceError),
    #[error(transparent)]
    LocalImage(#[from] LocalImageError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cloud(#[from] VpcError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Job(Box<JobError>),
    #[error(transparent)]
    Fault(Box<Fault>),
    #[error(transparent)]
    Gc(#[from] GcError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    JobNames(#[from] JobNamesError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    #[error(transparent)]
    Limits(#[from] TooTight),
    #[error(transparent)]
    Threads(#[from] Refused),
    /// Failure of stdout, or of a file that no other variant covers.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Failure that has no type of its own.
    #[error("{0}")]
    Failed(String),
    /// Question that the user did not answer with Yes.
    #[error(transparent)]
    NoConsent(#[from] NoConsent),
    /// Another error, of which the command has printed a record of its own as JSON.
    #[error(transparent)]
    Recorded(Box<CommandError>),
    /// Another error, with a message about what it ended.
    #[error("{what}")]
    During {
        what: String,
        #[source]
        source: Box<CommandError>,
    },
}

impl From<JobError> for CommandError {
    fn from(error: JobError) -> Self {
        Self::Job(Box::new(error))
    }
}

impl From<Fault> for CommandError {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

impl CommandError {
    /// Wraps the error in a message about what it ended.
    pub fn during(self, what: impl Into<String>) -> Self {
        Self::During { what: what.into(), source: Box::new(self) }
    }

    /// Marks the error as one of which the command has printed a record as JSON.
    pub fn recorded(self) -> Self {
        Self::Recorded(Box::new(self))
    }

    /// True if a record of the error, or of its cause, is on stdout already.
    pub fn is_recorded(&self) -> bool {
        match self {
            Self::Recorded(_) => true,
            Self::During { source, .. } => source.is_recorded(),
            _ => false,
        }
    }

    /// Returns the exit code of a command that ends with this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Usage(_) | Self::CommandLine(_) | Self::Journal(_) | Self::JobNames(_) | Self::Name(_) => {
                Code::Usage
            }
            Self::Plan(error) | Self::Conversion(Failure { error, .. }) => code_of_conversion(error),
            Self::Restore(error) => code_of_restore(error),
            Self::Source(error) => code_of_source(error),
            Self::FreeSpace(error) => error.code(),
            Self::LocalImage(_) => Code::Source,
            Self::Image(error) => code_of_image(error),
            Self::File(error) => code_of_file(error),
            Self::Store(error) => code_of_store(error),
            Self::Cloud(error) => code_of_cloud(error),
            Self::Identity(error) => code_of_identity(error),
            Self::Queue(_) => Code::Queue,
            Self::Job(error) => code_of_fault(&error.fault),
            Self::Fault(fault) => code_of_fault(fault),
            Self::Gc(error) => code_of_gc(error),
            Self::Memory(_)
            | Self::Limits(_)
            | Self::Threads(_)
            | Self::Io(_)
            | Self::Json(_)
            | Self::Failed(_) => Code::Unexpected,
            Self::NoConsent(_) => Code::Interrupted,
            Self::Recorded(source) | Self::During { source, .. } => source.code(),
        }
    }

    /// Returns what the user can try next, if there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Plan(error) | Self::Conversion(Failure { error, .. }) => hints::of_conversion(error),
            Self::Restore(error) => hints::of_restore(error),
            Self::Source(error) => hints::of_source(error),
            Self::FreeSpace(error) => Some(error.hint().into()),
            Self::LocalImage(error) => hints::of_local_image(error),
            Self::Image(error) => hints::of_image(error),
            Self::File(error) => hints::of_cause(&*error.source),
            Self::Store(error) => hints::of_store(error),
            Self::Cloud(error) => hints::of_cloud(error),
            Self::Identity(error) => hints::of_identity(error),
            Self::Queue(error) => hints::of_queue(error),
            Self::Job(error) => hints::of_job(error),
            Self::Fault(fault) => hints::of_fault(fault),
            Self::Gc(error) => hints::of_gc(error),
            Self::Journal(error) => hints::of_journal(error),
            Self::Recorded(source) | Self::During { source, .. } => source.hint(),
            Self::Usage(_)
            | Self::CommandLine(_)
            | Self::JobNames(_)
            | Self::Name(_)
            | Self::Memory(_)
            | Self::Limits(_)
            | Self::Threads(_)
            | Self::Io(_)
            | Self::Json(_)
            | Self::NoConsent(_)
            | Self::Failed(_) => None,
        }
    }
}

/// Returns the exit code of an error that the library keeps as a trait object, because each implementation of
/// an image file has an error type of its own.
fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    if let Some(error) = cause.downcast_ref::<StoreError>() {
        return Some(code_of_store(error));
    }
    if let Some(error) = cause.downcast_ref::<ImageError>() {
        return Some(code_of_image(error));
    }
    if let Some(error) = cause.downcast_ref::<RestoreError>() {
        return Some(code_of_restore(error));
    }
    if let Some(error) = cause.downcast_ref::<FileError>() {
        return Some(code_of_file(error));
    }
    if cause.is::<OutOfMemory>() {
        return Some(Code::Unexpected);
    }
    cause.is::<LocalImageError>().then_some(Code::Source)
}

fn code_of_file(error: &FileError) -> Code {
    code_of_cause(&*error.source).unwrap_or(Code::Unexpected)
}

fn code_of_store(error: &StoreError) -> Code {
    if matches!(error, StoreError::Cancelled { .. }) { Code::Interrupted } else { Code::Store }
}

fn code_of_cloud(error: &VpcError) -> Code {
    match error {
        VpcError::Cancelled { .. } => Code::Interrupted,
        VpcError::Setup(_) => Code::Usage,
        _ => Code::Cloud,
    }
}

fn code_of_identity(error: &IdentityError) -> Code {
    if matches!(error, IdentityError::Setup(_)) { Code::Usage } else { Code::Cloud }
}

fn code_of_gc(error: &GcError) -> Code {
    match error {
        GcError::Cloud { source, .. } => code_of_cloud(source),
        GcError::Store { source, .. } => code_of_store(source),
        GcError::Retention(fault) => code_of_fault(fault),
        GcError::Names(_) => Code::Usage,
    }
}

fn code_of_fault(fault: &Fault) -> Code {
    match fault {
        Fault::Cloud(error) => code_of_cloud(error),
        Fault::Store(error) => code_of_store(error),
        Fault::Convert(error) => code_of_conversion(error),
        Fault::ReadBack(error) => code_of_restore(error),
        Fault::Source(error) => code_of_source(error),
        Fault::Device(_) => Code::Source,
        Fault::Names(_)
        | Fault::Journal(_)
        | Fault::Obstacles { .. }
        | Fault::UnderWay { .. }
        | Fault::Over { .. } => Code::Usage,
        Fault::TakenOver { .. } | Fault::ServerBusy { .. } => Code::Cloud,
        Fault::NotTheSame { .. } | Fault::WrongFile { .. } | Fault::NoSum { .. } => Code::Image,
        Fault::OutOfTurn { .. } | Fault::Died => Code::Unexpected,
        Fault::Stopped => Code::Interrupted,
    }
}

/// Returns the exit code of an error in a source. If the source is an image that is read as a disk, the code
/// is that of the image's error inside.
fn code_of_source(error: &SourceError) -> Code {
    match error {
        SourceError::Memory(_) => Code::Unexpected,
        SourceError::Read { source, .. } => {
            source.get_ref().and_then(|within| code_of_cause(within)).unwrap_or(Code::Source)
        }
        _ => Code::Source,
    }
}

fn code_of_image(error: &ImageError) -> Code {
    match error {
        ImageError::File(error) => code_of_file(error),
        ImageError::Interrupted => Code::Interrupted,
        ImageError::Memory(_) => Code::Unexpected,
        _ => Code::Image,
    }
}

fn code_of_restore(error: &RestoreError) -> Code {
    match error {
        RestoreError::Image(error) => code_of_image(error),
        RestoreError::File(error) => code_of_file(error),
        RestoreError::Body { .. } | RestoreError::Manifest { .. } | RestoreError::Unusable { .. } => {
            Code::Image
        }
        RestoreError::Source(error) => code_of_source(error),
        RestoreError::Target(TargetError::Memory(_)) => Code::Unexpected,
        RestoreError::Target(_) => Code::Store,
        RestoreError::Incomplete { source, .. } => code_of_restore(source),
        RestoreError::Pipeline(error) => code_of_pipeline(error),
        RestoreError::Unaccounted { .. } => Code::Unexpected,
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
        | ConvertError::PartSize { .. } => Code::Usage,
        ConvertError::Pipeline(error) => code_of_pipeline(error),
        ConvertError::Unaccounted { .. } => Code::Unexpected,
    }
}

fn code_of_pipeline(error: &PipelineError) -> Code {
    match error {
        PipelineError::TooMany { .. } => Code::Usage,
        PipelineError::Interrupted => Code::Interrupted,
        PipelineError::Threads(_)
        | PipelineError::Memory(_)
        | PipelineError::TooTight(_)
        | PipelineError::StageDied { .. } => Code::Unexpected,
    }
}
