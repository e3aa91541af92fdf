//! `qemu-img convert`: copies disks into a raw disk or a qcow2 image.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::retry::chain;
use snapferry_base::units::ByteCount;
use snapferry_engine::compress::Level;
use snapferry_engine::convert::plan::{Hashing, ManifestPolicy, Options, StoreAs};
use snapferry_engine::convert::{Conversion, ConvertError, Failure, Target, plan_for};
use snapferry_engine::disk::{RawCopy, RawDestination, TargetError, ZeroPolicy, Zeros};
use snapferry_engine::error::RestoreError;
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::source::{Joined, Paced, Salvaging, Source};
use snapferry_engine::store::Location;
use snapferry_engine::store::Overwrite;
use snapferry_engine::store::{FolderStore, ObjectStore, StoreError};

use super::args::{Format, size};
use super::getopt::{Known, Takes, Typed, flag, long, value};
use super::images::{self, There};
use super::output::Output;
use super::progress::{Counts, Progress, Shown, Watchable};
use super::{Ended, Stop, check_cache, read, refuse};
use crate::cli::signals;

const USAGE: &str = "[-f SRC_FMT] [-O TGT_FMT] [-c] [-p] [-q] [-n [--target-is-zero]] [-o TGT_OPTS]\n          \
    [-t TGT_CACHE] [-T SRC_CACHE] [-S SPARSE_SIZE] [-m NUM_COROUTINES] [-W] [-r RATE] [-U] [--salvage]\n          \
    SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME";

/// Options as in QEMU 10.0.2's `img_convert`.
const KNOWN: [Known; 26] = [
    flag(b'q', Some("quiet")),
    flag(b'p', Some("progress")),
    value(b'f', Some("source-format")),
    long("source-image-opts", Takes::Nothing),
    long("image-opts", Takes::Nothing),
    value(b'l', Some("source-snapshot")),
    value(b'T', Some("source-cache")),
    value(b'O', Some("target-format")),
    long("target-image-opts", Takes::Nothing),
    value(b'o', Some("target-options")),
    flag(b'c', Some("compress")),
    value(b't', Some("target-cache")),
    value(b'B', Some("backing")),
    value(b'F', Some("backing-format")),
    flag(b'n', Some("no-create")),
    long("target-is-zero", Takes::Nothing),
    value(b'S', Some("sparse-size")),
    long("bitmaps", Takes::Nothing),
    long("skip-broken-bitmaps", Takes::Nothing),
    flag(b'U', Some("force-share")),
    value(b'r', Some("rate")),
    value(b'm', Some("parallel")),
    flag(b'C', Some("copy-range-offloading")),
    long("salvage", Takes::Nothing),
    flag(b'W', Some("oob-writes")),
    long("object", Takes::Value),
];

/// Default of `-S`: length of the shortest run of zeros that is left out, in bytes.
const SPARSE: u64 = 4096;
/// Largest value of `-S` in bytes.
const MOST_SPARSE: u64 = 16 << 20;
/// Bytes that QEMU reads at once (`IO_BUF_SIZE`), if it does not compress. If it does, it reads a cluster.
const QEMUS_BUFFER: u64 = 2 << 20;
/// Largest value of `-m`, QEMU's number of coroutines. Snapferry uses threads, as many as there are cores.
const MOST_COROUTINES: u64 = 16;

/// Conversion as the arguments describe it, before anything is opened.
struct Asked {
    sources: Vec<PathBuf>,
    target: PathBuf,
    output: Output,
    bodies: StoreAs,
    create: Create,
    /// Length of the shortest run of zeros to leave out, in bytes. None if zeros are stored.
    sparse: Option<u64>,
    rate: Option<ByteCount>,
    on_error: OnError,
    shown: Shown,
}

/// Choice to create the target, or to write into an existing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Create {
    Yes,
    /// The target exists (`-n`), with any content.
    No,
    /// The target exists and holds zeros (`-n --target-is-zero`).
    NoAndZero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnError {
    Fail,
    Salvage,
}

pub fn run(args: &[std::ffi::OsString]) -> Ended {
    let Some(typed) = read("convert", USAGE, args, &KNOWN)? else { return Ok(0) };
    let request = parse_request(&typed)?;
    let sources = request.sources.iter().map(|path| {
        let format = images::format_of(path, typed.last("source-format"), 1)?;
        images::open(path, format, 1)
    });
    let joined = Joined::new(sources.collect::<Result<Vec<_>, Stop>>()?);
    if joined.size().0 == 0 {
        return Err(Stop::NotDone("disks of no bytes".into()));
    }
    let existing = images::target_kind(&request.target)?;
    check_target(&request, existing, joined.size())?;

    let runtime = crate::cli::runtime()?;
    let cancel = Cancel::new();
    signals::listen(runtime.handle(), &cancel, signals::Unfinished::Target)?;
    let source: Box<dyn Source> = match request.rate {
        Some(rate) => Box::new(Paced::new(joined, rate, cancel.clone())),
        None => Box::new(joined),
    };
    let progress = Progress::start(request.shown);
    let work = |source: &dyn Source| -> Result<(), Stop> {
        // Zeros that are to be stored are work, too.
        let counts = if request.sparse.is_some() { Counts::Data } else { Counts::All };
        let piece = if request.bodies == StoreAs::Compressed { request.output.cluster } else { QEMUS_BUFFER };
        let watched =
            Watchable::new(source, &progress, counts, piece).map_err(|error| Stop::error(chain(&error)))?;
        match request.output.format {
            Format::Qcow2 => to_qcow2(&request, &watched, &runtime, &cancel),
            Format::Raw => to_raw(&request, &watched, existing, &cancel),
        }?;
        progress.complete();
        Ok(())
    };
    if request.on_error == OnError::Fail {
        work(&source)?;
    } else {
        let salvaging = Salvaging::new(source);
        work(&salvaging)?;
        for range in salvaging.bad_ranges() {
            super::warn(&format!(
                "error while reading at byte {}: {} bytes were left out and read as zeros",
                range.offset, range.length
            ));
        }
    }
    Ok(0)
}

fn parse_request(typed: &Typed) -> Result<Asked, Stop> {
    refuse(
        typed,
        &[
            "source-image-opts",
            "image-opts",
            "source-snapshot",
            "target-image-opts",
            "backing",
            "backing-format",
            "bitmaps",
            "skip-broken-bitmaps",
            "object",
        ],
    )?;
    let text = |name: &str| typed.last(name).map(OsStr::to_string_lossy);
    let bodies = if typed.has("compress") { StoreAs::Compressed } else { StoreAs::Raw };
    if bodies == StoreAs::Compressed && typed.has("copy-range-offloading") {
        return Err(Stop::error("Cannot enable copy offloading when -c is used"));
    }
    let coroutines = text("parallel").map_or(Some(8), |count| count.parse::<u64>().ok());
    if !coroutines.is_some_and(|count| (1..=MOST_COROUTINES).contains(&count)) {
        return Err(Stop::error("Invalid number of coroutines specified. Must be between 1 and 16."));
    }
    let sparse = text("sparse-size").map_or(Some(SPARSE), |typed| size(&typed));
    let sparse = sparse.filter(|bytes| bytes.is_multiple_of(512) && *bytes <= MOST_SPARSE).ok_or_else(|| {
        Stop::error(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {MOST_SPARSE}. \
             Select 0 to disable sparse detection (fully allocates output)."
        ))
    })?;
    let rate = text("rate").map_or(Ok(0), |typed| {
        size(&typed).ok_or_else(|| Stop::error(format!("Invalid rate limit specified: '{typed}'.")))
    })?;
    let create = match (typed.has("no-create"), typed.has("target-is-zero")) {
        (false, false) => Create::Yes,
        (true, false) => Create::No,
        (true, true) => Create::NoAndZero,
        (false, true) => return Err(Stop::error("--target-is-zero requires use of -n flag")),
    };
    let [sources @ .., target] = &typed.operands[..] else {
        return Err(Stop::error("Must specify image file name"));
    };
    if sources.is_empty() {
        return Err(Stop::error("Must specify image file name"));
    }
    let sources = sources.iter().map(|name| images::path_of(name)).collect::<Result<Vec<_>, _>>()?;
    let target = images::path_of(target)?;
    let format = match typed.last("target-format") {
        None => Format::Raw,
        Some(named) => Format::parse(named)?
            .ok_or_else(|| Stop::error(format!("Unknown file format '{}'", named.to_string_lossy())))?,
    };
    let in_context = |message: String| while_converting(&target, format, &message);
    let output = Output::parse(format, typed.all("target-options"), &in_context)?;
    if format == Format::Raw && bodies == StoreAs::Compressed {
        return Err(Stop::error("Compression not supported for this file format"));
    }
    if output.size.is_some() {
        return Err(Stop::NotDone("-o size with convert".into()));
    }
    check_cache(typed, "target-cache", "")?;
    check_cache(typed, "source-cache", "source ")?;
    let shown = if typed.has("progress") && !typed.has("quiet") { Shown::Yes } else { Shown::No };
    Ok(Asked {
        sources,
        target,
        output,
        bodies,
        create,
        sparse: (sparse > 0).then_some(sparse),
        rate: (rate > 0).then_some(ByteCount(rate)),
        on_error: if typed.has("salvage") { OnError::Salvage } else { OnError::Fail },
        shown,
    })
}

fn while_converting(target: &Path, format: Format, message: &str) -> String {
    format!("{}: error while converting {}: {message}", target.display(), format.name())
}

/// Checks the target, as far as that is possible before anything is written.
fn check_target(request: &Asked, existing: There, source: ByteCount) -> Result<(), Stop> {
    let target_name = request.target.display();
    // QEMU detects this by its locks.
    if request.sources.iter().any(|source| images::are_same(source, &request.target)) {
        let message =
            format!("Failed to get \"write\" lock\nIs another process using the image [{target_name}]?");
        return Err(Stop::error(while_converting(&request.target, request.output.format, &message)));
    }
    match (request.output.format, request.create, existing) {
        (Format::Qcow2, Create::No | Create::NoAndZero, _) => {
            return Err(Stop::NotDone("-n with qcow2, which writes into an image that is there,".into()));
        }
        (Format::Qcow2, Create::Yes, There::Device) => {
            return Err(Stop::NotDone(format!("qcow2 on a block device, as {target_name} is one,")));
        }
        (Format::Raw, Create::No | Create::NoAndZero, There::Nothing) => {
            return Err(Stop::error(format!(
                "Could not open '{target_name}': Could not open '{target_name}': No such file or directory"
            )));
        }
        (Format::Raw, Create::No | Create::NoAndZero, There::File) => {
            let len = std::fs::metadata(&request.target)?.len();
            if len < source.0 {
                return Err(Stop::error("output file is smaller than input file"));
            }
        }
        _ => {}
    }
    Ok(())
}

fn to_qcow2(
    request: &Asked,
    source: &dyn Source,
    runtime: &tokio::runtime::Runtime,
    cancel: &Cancel,
) -> Result<(), Stop> {
    make_qcow2(&request.output, request.bodies, &request.target, source, runtime, cancel).map_err(|unmade| {
        unmade.into_stop(|message| while_converting(&request.target, Format::Qcow2, message))
    })
}

/// Reason for which no image was made.
pub enum Unmade {
    Says(String),
    /// Interruption by the user, perhaps with a message about what was left behind.
    Interrupted(Option<String>),
}

impl Unmade {
    pub fn into_stop(self, in_context: impl Fn(&str) -> String) -> Stop {
        match self {
            Self::Says(message) => Stop::error(in_context(&message)),
            Self::Interrupted(left) => Stop::Interrupted(left),
        }
    }
}

/// Makes a qcow2 image of `source` at `target`.
pub fn make_qcow2(
    output: &Output,
    bodies: StoreAs,
    target: &Path,
    source: &dyn Source,
    runtime: &tokio::runtime::Runtime,
    cancel: &Cancel,
) -> Result<(), Unmade> {
    let to_unmade = |error: ConvertError| match error {
        ConvertError::Pipeline(PipelineError::Interrupted) => Unmade::Interrupted(None),
        ConvertError::Store(StoreError::Io { source, .. })
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Unmade::Says(format!("Could not create '{}': {}", target.display(), images::os_message(&source)))
        }
        other => Unmade::Says(chain(&other)),
    };
    let options = Options {
        version: output.version,
        codec: output.codec,
        store_as: bodies,
        level: Level::Fast,
        cluster: output.cluster_bits().unwrap_or(snapferry_base::units::ClusterBits::DEFAULT),
        hashing: Hashing::Off,
        manifest_policy: ManifestPolicy::Nothing,
        ..Options::default()
    };
    let plan = plan_for(source, &options, Location::File).map_err(to_unmade)?;
    let path = images::resolve_links(target);
    let store = FolderStore::of(&path);
    let (store, key) =
        store.ok_or_else(|| Unmade::Says(format!("'{}' does not name a file", target.display())))?;
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    let converted = Conversion {
        source,
        target: Target { store, key, overwrite: Overwrite::Replace },
        plan: &plan,
        host: String::new(),
        clock: &SystemClock,
        cancel: cancel.clone(),
        counters: Arc::default(),
        base: None,
        refused: None,
    }
    .run(runtime.handle());
    converted.map(drop).map_err(|Failure { error, orphaned_upload }| {
        match (to_unmade(error), orphaned_upload) {
            (unmade, None) => unmade,
            (Unmade::Says(message), Some(leftover)) => {
                Unmade::Says(format!("{message}; {}", leftover.reason))
            }
            (Unmade::Interrupted(_), Some(leftover)) => Unmade::Interrupted(Some(leftover.reason)),
        }
    })
}

fn to_raw(request: &Asked, source: &dyn Source, existing: There, cancel: &Cancel) -> Result<(), Stop> {
    let path = images::resolve_links(&request.target);
    let to = match (request.create, existing) {
        (Create::Yes, There::Nothing | There::File) => RawDestination::New(&path),
        _ => RawDestination::Existing(&path),
    };
    let policy = if request.create == Create::NoAndZero { ZeroPolicy::Skip } else { ZeroPolicy::Discard };
    let zeros = match request.sparse {
        Some(grain) => Zeros::Sparse { grain: ByteCount(grain), policy },
        None => Zeros::Stored,
    };
    let copied = RawCopy { source, to, zeros, cancel: cancel.clone(), done: &AtomicU64::new(0) }.run();
    copied.map_err(|error| raw_error(&request.target, error))
}

fn raw_error(target: &Path, error: RestoreError) -> Stop {
    match error {
        RestoreError::Pipeline(PipelineError::Interrupted) => Stop::Interrupted(None),
        RestoreError::Incomplete { target, source }
            if matches!(*source, RestoreError::Pipeline(PipelineError::Interrupted)) =>
        {
            Stop::Interrupted(Some(format!("{target} is incomplete: do not use it")))
        }
        RestoreError::Target(TargetError::Open { source, .. }) => {
            let message = format!("Could not create '{}': {}", target.display(), images::os_message(&source));
            Stop::error(while_converting(target, Format::Raw, &message))
        }
        other => Stop::error(chain(&other)),
    }
}
