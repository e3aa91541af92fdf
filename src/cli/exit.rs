//! Exit codes, and errors as a person reads them.

use std::io::Write as _;
use std::process::ExitCode;

use crate::convert::{ConvertError, Failure, Leftover};
use crate::identity::IdentityError;
use crate::qcow2::{FileError, HeaderError, ImageError};
use crate::queue::QueueError;
use crate::restore::{LocalImageError, RestoreError, TargetError};
use crate::source::SourceError;
use crate::store::StoreError;
use crate::vpc::device::DeviceError;
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
    let mut lines = format!("snapferry: {}\n", sentence(error));
    if let Some(hint) = error.chain().find_map(hint_for) {
        lines.push_str(&format!("  {hint}\n"));
    }
    if let Some(Failure { leftover: Some(leftover), .. }) = error.downcast_ref::<Failure>() {
        lines.push_str(&format!("  {}\n", words_for_leftover(leftover)));
    }
    if let Some(error) = error.downcast_ref::<JobError>() {
        for left in &error.left {
            lines.push_str(&format!("  left behind: {left}; `snapferry gc` finds it\n"));
        }
        if error.resumable == Resumable::Yes {
            lines.push_str(&format!("  snapferry replicate --resume {} goes on with the job\n", error.id));
        }
    }
    // Nothing is left to do about a stderr that is gone.
    let _ = std::io::stderr().write_all(lines.as_bytes());
    error.chain().find_map(code_for).unwrap_or(Code::Unexpected)
}

/// What is still there, and how to be rid of it.
fn words_for_leftover(Leftover { upload, url, why }: &Leftover) -> String {
    match url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        Some((bucket, _)) => format!(
            "the upload could not be aborted ({why}), and is billed until it is: \
             snapferry uploads abort --bucket {bucket} --key {} --id {} (and the same --endpoint and --region)",
            upload.key, upload.id
        ),
        None => format!("the unfinished file beside {url}, with {} in its name, could not be removed: {why}", upload.id),
    }
}

/// What to try next, where there is something.
pub fn fix_for(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint_for)
}

/// `a: b: c`, each cause once: transparent errors repeat their source's words.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
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
            GcError::Names(_) => Some(Code::Usage),
        };
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
    if cause.is::<StoreError>() || cause.is::<IdentityError>() {
        return Some(Code::Store);
    }
    if cause.is::<SourceError>() || cause.is::<LocalImageError>() {
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
        Fault::Device(_) | Fault::Source(_) => Some(Code::Source),
        Fault::Names(_) | Fault::Journal(_) | Fault::Obstacles { .. } => Some(Code::Usage),
        Fault::NotTheSame { .. } | Fault::WrongFile { .. } | Fault::NoSum { .. } => Some(Code::Image),
        Fault::OutOfTurn { .. } | Fault::Died => Some(Code::Unexpected),
        Fault::Stopped => Some(Code::Interrupted),
    }
}

fn code_of_image(error: &ImageError) -> Option<Code> {
    match error {
        ImageError::File(FileError { source, .. }) => code_for(&**source),
        _ => Some(Code::Image),
    }
}

fn code_of_restore(error: &RestoreError) -> Option<Code> {
    match error {
        RestoreError::Image(error) => code_of_image(error),
        RestoreError::File(FileError { source, .. }) => code_for(&**source),
        RestoreError::Body { .. } | RestoreError::Manifest { .. } | RestoreError::Unusable { .. } => Some(Code::Image),
        RestoreError::Source(_) => Some(Code::Source),
        RestoreError::Target(_) => Some(Code::Store),
        RestoreError::Incomplete { source, .. } => code_of_restore(source),
        RestoreError::TooMany { .. } => Some(Code::Usage),
        RestoreError::Threads { .. } | RestoreError::StageDied { .. } => Some(Code::Unexpected),
        RestoreError::Interrupted => Some(Code::Interrupted),
    }
}

fn code_of_conversion(error: &ConvertError) -> Code {
    match error {
        ConvertError::Source(_) => Code::Source,
        ConvertError::Manifest { source: StoreError::Cancelled { .. }, .. } => Code::Interrupted,
        ConvertError::Store(_) | ConvertError::Exists { .. } | ConvertError::Manifest { .. } => Code::Store,
        ConvertError::Geometry(_)
        | ConvertError::TooLarge { .. }
        | ConvertError::Version2 { .. }
        | ConvertError::PartSize { .. }
        | ConvertError::TooMany { .. } => Code::Usage,
        ConvertError::Interrupted => Code::Interrupted,
        ConvertError::Threads { .. } | ConvertError::StageDied { .. } => Code::Unexpected,
    }
}

/// The next thing to try, where there is one.
fn hint_for(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(Failure { error, .. }) = cause.downcast_ref::<Failure>() {
        return match error {
            ConvertError::Source(error) => hint_for(error),
            ConvertError::Store(error) => hint_for(error),
            other => hint_for(other),
        };
    }
    if let Some(error) = cause.downcast_ref::<ConvertError>() {
        return match error {
            ConvertError::Exists { .. } => Some("give another --key or --output, or --force to replace it".into()),
            ConvertError::Manifest { .. } => Some("the image can be used; only its manifest is missing".into()),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<SourceError>() {
        return hint_for_source(error);
    }
    if let Some(error) = cause.downcast_ref::<RestoreError>() {
        return hint_for_restore(error);
    }
    if let Some(error) = cause.downcast_ref::<LocalImageError>() {
        return hint_for_local_image(error);
    }
    if let Some(error) = cause.downcast_ref::<ImageError>() {
        return hint_for_image(error);
    }
    if let Some(error) = cause.downcast_ref::<JobError>() {
        return hint_for_fault(&error.fault);
    }
    if let Some(error) = cause.downcast_ref::<Fault>() {
        return hint_for_fault(error);
    }
    if let Some(error) = cause.downcast_ref::<VpcError>() {
        return hint_for_cloud(error);
    }
    if let Some(error) = cause.downcast_ref::<IdentityError>() {
        return hint_for_identity(error);
    }
    if let Some(error) = cause.downcast_ref::<QueueError>() {
        return match error {
            QueueError::Unavailable { .. } => Some("check --redis, and that this machine may reach it".into()),
            QueueError::Refused { .. } => Some(
                "check --redis-user, the password (SNAPFERRY_REDIS_PASSWORD or --redis-password-file) and --redis-ca-file".into(),
            ),
            QueueError::NoSuchJob { .. } => Some("`snapferry jobs list` shows those that there are".into()),
            _ => None,
        };
    }
    cause.downcast_ref::<StoreError>().and_then(hint_for_store)
}

fn hint_for_fault(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Cloud(error) => hint_for(error),
        Fault::Store(error) => hint_for(error),
        Fault::Convert(error) => hint_for(error),
        Fault::Source(error) => hint_for(error),
        Fault::Device(DeviceError::Absent { .. }) => {
            Some("see whether udev runs (`udevadm info --query=all /dev/vdb`), and that --device-folder is the right one".into())
        }
        Fault::Journal(JournalError::Busy { .. }) => Some("wait for it, or end that process".into()),
        Fault::Journal(JournalError::File { .. }) => Some("give a folder that can be written to: --state-folder".into()),
        Fault::WrongFile { .. } => Some("somebody replaced the object, or the image service read another one: look at both".into()),
        _ => None,
    }
}

fn hint_for_cloud(error: &VpcError) -> Option<String> {
    match error {
        VpcError::Refused { refusal, .. } if refusal.status == 401 => {
            Some("the token is not accepted: check whose it is, and this machine's clock".into())
        }
        VpcError::Refused { refusal, .. } if refusal.status == 403 => {
            Some("give it the rights that the README's \"Rights\" lists; `snapferry doctor` shows which are missing".into())
        }
        VpcError::Unreachable { .. } | VpcError::TimedOut { .. } => {
            Some("check --region and --vpc-endpoint, and that this machine may reach it".into())
        }
        VpcError::Missing { noun: "server" | "image" | "snapshot", .. } => {
            Some("check the name, and --region: each region has its own".into())
        }
        VpcError::NameTaken { .. } => Some("give another --name, or remove what has it".into()),
        VpcError::Overdue { .. } => Some("it may still get there: the same command again goes on waiting for what is there".into()),
        VpcError::Identity { source, .. } => hint_for_identity(source),
        _ => None,
    }
}

fn hint_for_identity(error: &IdentityError) -> Option<String> {
    match error {
        IdentityError::MetadataOff { .. } => Some(
            "switch the instance metadata service on (`ibmcloud is instance-update SERVER --metadata-service true`), or give \
             --api-key-file"
                .into(),
        ),
        IdentityError::Refused { .. } => Some("check the API key, or that the trusted profile is linked to this server".into()),
        _ => None,
    }
}

fn hint_for_restore(error: &RestoreError) -> Option<String> {
    match error {
        RestoreError::Image(error) => hint_for_image(error),
        RestoreError::Target(TargetError::Busy { path }) => {
            Some(format!("unmount it first: `findmnt -S {path}` and `lsblk {path}` tell what uses it"))
        }
        RestoreError::Target(TargetError::Holds { path, .. }) => {
            Some(format!("`lsblk -f {path}` shows more; --force writes over it"))
        }
        RestoreError::Target(TargetError::Exists { .. }) => Some("give another --output, or --force to replace it".into()),
        RestoreError::Target(TargetError::Kind { wanted: "a regular file", .. }) => Some("a device is named by --device".into()),
        RestoreError::Unusable { .. } => Some("give the right one by --manifest PATH, or --manifest none to go without".into()),
        RestoreError::Source(error) => hint_for(error),
        _ => None,
    }
}

fn hint_for_image(error: &ImageError) -> Option<String> {
    match error {
        ImageError::Header { name, source } => match source {
            HeaderError::BackingFile { .. } => {
                Some(format!("where you trust both, `qemu-img convert -O qcow2 {name} WHOLE.qcow2` makes one image of them"))
            }
            HeaderError::DataFile { .. } => {
                Some(format!("where you trust both, `qemu-img convert -O qcow2 {name} WHOLE.qcow2` puts the data into the image"))
            }
            HeaderError::Encrypted { .. } => Some("decrypt it with qemu-img, which asks for the key".into()),
            HeaderError::Corrupt => {
                Some("`snapferry check` tells what is wrong; `qemu-img check -r all` on a copy may mend it".into())
            }
            HeaderError::Magic => Some("a raw disk is read by convert, not from an image: give the image's name".into()),
            _ => None,
        },
        ImageError::TooLarge { .. } => Some("--max-size takes larger disks".into()),
        ImageError::L1Entry { .. } | ImageError::L2Entry { .. } => Some("`snapferry check` lists all that is wrong with it".into()),
        ImageError::File(_) => None,
    }
}

fn hint_for_local_image(error: &LocalImageError) -> Option<String> {
    match error {
        LocalImageError::Open { path, source } if source.kind() == std::io::ErrorKind::NotFound && path.starts_with("s3:/") => {
            Some("an object is named s3://BUCKET/KEY".into())
        }
        LocalImageError::Changed | LocalImageError::Shrunk { .. } => Some("stop what writes to it, and start again".into()),
        _ => None,
    }
}

fn hint_for_source(error: &SourceError) -> Option<String> {
    match error {
        SourceError::Open { path, source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some(format!("reading a device takes rights: run as root, or join the group that owns {path} (often \"disk\")"))
        }
        SourceError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Some("`lsblk` lists the devices that there are".into())
        }
        SourceError::Kind { .. } => Some("give the whole disk, as in --device /dev/vdc, or a file with a raw disk in it".into()),
        SourceError::Busy { path } => {
            Some(format!("unmount it (`findmnt -S {path}` tells where it is mounted), or give --in-use if nothing writes to it"))
        }
        SourceError::Read { source, .. } if source.raw_os_error().is_some() => {
            Some("--salvage stores what can be read, with zeros for the rest, and lists each range".into())
        }
        SourceError::Changed { .. } => Some("convert a snapshot, or stop what writes to it".into()),
        _ => None,
    }
}

fn hint_for_store(error: &StoreError) -> Option<String> {
    match error {
        StoreError::NoSuchBucket { .. } => Some("check the bucket's name, and that --region is the one it was made in".into()),
        StoreError::Denied { .. } => Some(
            "check the keys and that they may write to this bucket; the README's \"Credentials\" says where they are looked for"
                .into(),
        ),
        StoreError::Untrusted { .. } => Some("give the authority that signed it: --ca-file PEM".into()),
        StoreError::Connection { reason, .. } if reason.contains(".direct.") => {
            Some("IBM COS' direct endpoints are reached from inside a VPC only; elsewhere give --endpoint public".into())
        }
        StoreError::Connection { .. } | StoreError::TimedOut { .. } => {
            Some("check --endpoint, and that this machine may reach it".into())
        }
        StoreError::WrongRegion { .. } => Some("give the region that the bucket was made in: --region".into()),
        StoreError::Full { .. } => Some("free space on it, or send the image straight to a bucket: --bucket".into()),
        _ => None,
    }
}
