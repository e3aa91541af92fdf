//! `qemu-img create`: makes images that hold nothing.

use std::ffi::OsString;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use snapferry_base::cancel::Cancel;
use snapferry_base::retry::chain;
use snapferry_base::units::{ByteCount, GuestOffset, SECTOR};
use snapferry_engine::compress::Codec;
use snapferry_engine::convert::plan::StoreAs;
use snapferry_engine::disk::{RawCopy, RawDestination, TargetError, ZeroPolicy, Zeros};
use snapferry_engine::error::RestoreError;
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::source::{Extent, Source, SourceError};

use super::args::{Format, size};
use super::convert::make_qcow2;
use super::getopt::{Known, Takes, flag, long, value};
use super::images::{self, There};
use super::output::Output;
use super::{Ended, Stop, read, refuse, try_help};
use crate::cli::signals;

const USAGE: &str = "[-f FMT] [-o FMT_OPTS] [-q] FILENAME [SIZE[bkKMGTPE]]";

const KNOWN: [Known; 7] = [
    flag(b'q', Some("quiet")),
    value(b'f', Some("format")),
    value(b'o', Some("options")),
    value(b'b', Some("backing")),
    value(b'F', Some("backing-format")),
    flag(b'u', Some("backing-unsafe")),
    long("object", Takes::Value),
];

pub fn run(args: &[OsString]) -> Ended {
    let Some(typed) = read("create", USAGE, args, &KNOWN)? else { return Ok(0) };
    refuse(&typed, &["backing", "backing-format", "backing-unsafe", "object"])?;
    let usage = |message: String| Stop::Usage(format!("qemu-img: {message}\n{}", try_help(Some("create"))));
    let (name, bytes) = match &typed.operands[..] {
        [] => return Err(usage("Expecting image file name".into())),
        [name] => (name, None),
        [name, bytes] => (name, Some(bytes)),
        [_, _, more, ..] => return Err(usage(format!("Unexpected argument: {}", more.to_string_lossy()))),
    };
    let path = images::path_of(name)?;
    let shown = path.display().to_string();
    let in_context = |message: String| format!("{shown}: {message}");
    let format = match typed.last("format") {
        None => Format::Raw,
        Some(named) => Format::parse(named)?.ok_or_else(|| {
            Stop::error(in_context(format!("Unknown file format '{}'", named.to_string_lossy())))
        })?,
    };
    let bytes = match bytes.map(|bytes| bytes.to_string_lossy()) {
        None => None,
        Some(typed) => Some(
            size(&typed).ok_or_else(|| Stop::error(format!("Invalid image size specified: '{typed}'.")))?,
        ),
    };
    let output = Output::parse(format, typed.all("options"), &|message| message)
        .map_err(|stop| named(stop, &shown))?;
    let bytes = bytes
        .or(output.size)
        .ok_or_else(|| Stop::error(in_context("Image creation needs a size parameter".into())))?;
    if format == Format::Qcow2 && bytes == 0 {
        return Err(Stop::NotDone("images of disks of no bytes".into()));
    }
    match images::target_kind(&path)? {
        There::Device => return Err(Stop::NotDone(format!("create on a block device, as {shown} is one,"))),
        There::Nothing | There::File => {}
    }
    if !typed.has("quiet") {
        writeln!(stdout(), "{}", formatting(&shown, bytes, &output))?;
    }
    make(&path, bytes, &output).map_err(|stop| named(stop, &shown))?;
    Ok(0)
}

/// Puts the file's name before the message of `stop`.
fn named(stop: Stop, name: &str) -> Stop {
    match stop {
        Stop::Says(message, code) => Stop::Says(format!("{name}: {message}"), code),
        other => other,
    }
}

/// Returns the line that QEMU prints, with its order of options.
fn formatting(shown: &str, bytes: u64, output: &Output) -> String {
    let preallocation =
        output.preallocation.as_ref().map_or(String::new(), |mode| format!(" preallocation={mode}"));
    let compat = output.compat.as_ref().map_or(String::new(), |compat| format!(" compat={compat}"));
    match output.format {
        Format::Raw => format!("Formatting '{shown}', fmt=raw size={bytes}{preallocation}"),
        Format::Qcow2 => {
            let codec = match output.codec {
                Codec::Deflate => "zlib",
                Codec::Zstd => "zstd",
            };
            format!(
                "Formatting '{shown}', fmt=qcow2 cluster_size={} extended_l2=off{preallocation} compression_type={codec} size={bytes}{compat} \
                 lazy_refcounts=off refcount_bits=16",
                output.cluster
            )
        }
    }
}

fn make(path: &Path, bytes: u64, output: &Output) -> Result<(), Stop> {
    let nothing = Nothing { size: ByteCount(bytes.next_multiple_of(SECTOR)) };
    // This takes hardly any time, but an interruption must leave nothing behind all the same.
    let runtime = crate::cli::runtime()?;
    let cancel = Cancel::new();
    signals::listen(runtime.handle(), &cancel, signals::Unfinished::Target)?;
    match output.format {
        Format::Qcow2 => make_qcow2(output, StoreAs::Raw, path, &nothing, &runtime, &cancel)
            .map_err(|unmade| unmade.into_stop(str::to_owned)),
        Format::Raw => {
            let resolved = images::resolve_links(path);
            let zeros = Zeros::Sparse { grain: ByteCount(0), policy: ZeroPolicy::Discard };
            let copying = RawCopy {
                source: &nothing,
                to: RawDestination::New(&resolved),
                zeros,
                cancel,
                done: &AtomicU64::new(0),
            };
            copying.run().map_err(|error| match error {
                RestoreError::Pipeline(PipelineError::Interrupted) => Stop::Interrupted(None),
                RestoreError::Target(TargetError::Open { source, .. }) => Stop::error(format!(
                    "Could not create '{}': {}",
                    path.display(),
                    images::os_message(&source)
                )),
                other => Stop::error(chain(&other)),
            })
        }
    }
}

/// A disk that is one hole.
struct Nothing {
    size: ByteCount,
}

impl Source for Nothing {
    fn name(&self) -> &str {
        "nothing"
    }

    fn size(&self) -> ByteCount {
        self.size
    }

    fn alignment(&self) -> usize {
        512
    }

    fn read_at(&self, _: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        into.fill(0);
        Ok(())
    }

    fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
        Ok(Extent::Hole { end: GuestOffset(self.size.0) })
    }

    fn settle(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
