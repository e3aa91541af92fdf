//! `snapferry convert`: compresses a raw device or file into a qcow2 image.

use std::cell::OnceCell;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args as Group;
use clap_complete::ArgValueCandidates;
use snapferry_base::clock::{Clock as _, SystemClock};
use snapferry_base::units::{ByteCount, ClusterBits};
use snapferry_engine::compress::Level;
use snapferry_engine::convert::counters::Counters;
use snapferry_engine::convert::plan::Plan;
use snapferry_engine::convert::plan::{Hashing, Options, Reuse};
use snapferry_engine::convert::{Conversion, Converted, Target, plan_for};
use snapferry_engine::image::counters::Counters as RestoreCounters;
use snapferry_engine::proof::{Proof, ProofError};
use snapferry_engine::source::{InUse, RawSource, Salvaging, Skipping, Source};
use snapferry_engine::store::Location;
use snapferry_engine::store::Overwrite;
use snapferry_engine::verify::Verdict;
use tokio::runtime::Runtime;

use super::base_choice::{BaseChoice, Choosing};
use super::completions::known;
use super::config::{self, ImageDestination, StoreOptions};
use super::error::UsageError;
use super::exit::Code;
use super::log::{self, Verbosity};
use super::metrics_file::MetricsFileArgs;
use super::print_json;
use super::printable;
use super::progress::Progress;
use super::report::{PlanReport, Report, write_plan};
use super::signals::Unfinished;
use super::skip_free::{FreeSpace, SkipFree};
use super::throughput::Transfer;
use super::verify::print_findings;
use crate::cli::args::{CodecChoice, DestinationArgs, StoreArgs};
use crate::cli::error::{CommandError, CommandResult};
use crate::cli::session::Session;
use crate::cli::values;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry convert --device /dev/vdc --bucket images\n  snapferry convert --device /dev/vdc --bucket images --key web01.qcow2 --region us-south\n  snapferry convert --device /dev/vdc --bucket images --base auto\n  snapferry convert --device disk.raw --output disk.qcow2 --codec zstd --level balanced\n  snapferry convert --device /dev/vdc --bucket images --dry-run"
)]
pub struct ConvertArgs {
    /// The disk: a block device, or a file that holds a raw disk
    #[arg(long, value_name = "PATH")]
    pub device: PathBuf,

    #[command(flatten)]
    pub destination: DestinationArgs,

    /// Replace what is stored there already
    #[arg(long)]
    pub force: bool,

    /// Copy what did not change from this older image: a key, or auto for the last one
    ///
    /// auto takes the image that this one replaces, or the newest one of the same device and host. The base
    /// must be in the same bucket or folder (with --output it is a path), and made with the same codec, level
    /// and library. If it can't be used, all of the disk is sent, and the report says why. The image is the
    /// same in any case, byte for byte.
    #[arg(long, value_name = "KEY", default_value = "none",
        add = ArgValueCandidates::new(|| known(&["auto", "none"])))]
    pub base: BaseChoice,

    /// Read a device that is mounted or claimed by another program
    #[arg(long)]
    pub in_use: bool,

    /// Codec of clusters
    ///
    /// deflate is read by every importer, zstd is smaller, none stores clusters uncompressed.
    #[arg(long, default_value = "deflate", value_name = "CODEC", value_parser = values::codecs_and_none())]
    pub codec: CodecChoice,

    /// Compression level: speed against size
    #[arg(long, default_value = "fast", value_name = "LEVEL", value_parser = values::levels())]
    pub level: Level,

    /// Cluster size of qcow2, 4k to 2M
    #[arg(long, default_value = "64k", value_name = "SIZE", hide_short_help = true)]
    pub cluster_size: ByteCount,

    /// Compression threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Bytes in each part of the upload, a multiple of 4M [default: 32M, more for very large disks]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    pub part_size: Option<ByteCount>,

    /// Parts uploaded at once [default: 6]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub connections: Option<NonZeroUsize>,

    /// Limit the upload rate, in bytes per second, e.g. 50M
    #[arg(long, visible_alias = "bwlimit", value_name = "RATE")]
    pub limit: Option<ByteCount>,

    /// Store unreadable sectors as zeros, list them, and exit with code 3
    #[arg(long)]
    pub salvage: bool,

    /// Leave out what the filesystems call free
    ///
    /// The disk must hold still, as a snapshot's volume does. The journal is replayed in memory first. A
    /// filesystem in doubt is copied whole; with `require` none over 1 GiB may be.
    #[arg(long, default_value = "off", value_name = "HOW", value_parser = values::skip_free())]
    pub skip_free: SkipFree,

    /// Write what the filesystems call free into this file, as JSON
    ///
    /// With `--skip-free off` the disk is copied whole all the same.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub free_map_out: Option<PathBuf>,

    /// Leave out the BLAKE3 sums of what was read
    #[arg(long, hide_short_help = true)]
    pub no_hash: bool,

    /// Read the image back and compare it with what was read
    ///
    /// The image's SHA-256 is recorded in the manifest.
    #[arg(long, conflicts_with_all = ["no_hash", "dry_run"])]
    pub verify: bool,

    /// Print what would be done: sizes, parts, memory
    #[arg(short = 'n', long, conflicts_with = "metrics_file")]
    pub dry_run: bool,

    /// Print the result as JSON on stdout
    #[arg(long)]
    pub json: bool,

    // Last, because its heading in the help applies to all options that follow.
    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub metrics_file: MetricsFileArgs,
}

pub fn run(args: &ConvertArgs, session: &Session) -> CommandResult<Code> {
    let options = options(args)?;
    let host = config::host();
    let destination = ImageDestination::resolve(&args.destination, &args.device, &host, SystemClock.now())?;
    let source = RawSource::open(&args.device, if args.in_use { InUse::Read } else { InUse::Refuse })?;
    if destination.path().is_some_and(|path| source.is_same_as(&path)) {
        return Err(UsageError(format!(
            "the output is the input: {} would be overwritten while it is read",
            args.device.display()
        ))
        .into());
    }
    let plan = plan_for(&source, &options, destination.location())?;
    let free = FreeSpace::find(args, &source)?;
    // Before credentials are looked up: a plan needs none.
    if args.dry_run {
        return dry_run(args, &plan, source.name(), &destination.url(), &free);
    }
    let unfinished = match destination.location() {
        Location::Bucket => Unfinished::Upload,
        Location::File => Unfinished::Target,
    };
    let runtime = session.start(unfinished)?;
    destination.check_manifest()?;
    let store = {
        // The HTTP client must be created inside the runtime that it uses.
        let _inside = runtime.enter();
        let usage = StoreOptions {
            limit: args.limit,
            ..StoreOptions::plain(plan.connections, &session.cancel, &session.environment)
        };
        config::open_store(&destination, &args.store, &usage)?
    };
    let target =
        Target { store, key: destination.key().clone(), overwrite: Overwrite::if_forced(args.force) };
    let chosen = Choosing {
        choice: &args.base,
        destination: &destination,
        device: &args.device,
        host: &host,
        store: &*target.store,
        plan: &plan,
    }
    .run(runtime.handle())?;
    let counters = Arc::new(Counters::default());
    let counted = session.throughput.count(Transfer::Converting(Arc::clone(&counters)));
    let progress = Progress::show(&session.console, session.verbosity, Arc::clone(&counters), source.size());
    let convert = |source: &dyn Source| {
        let counters = Arc::clone(&counters);
        Conversion {
            source,
            target: target.clone(),
            plan: &plan,
            host: host.clone(),
            clock: &SystemClock,
            cancel: session.cancel.clone(),
            counters,
            base: chosen.base.clone(),
            refused: chosen.refused.clone(),
        }
        .run(runtime.handle())
    };
    let source: Box<dyn Source> =
        if args.salvage { Box::new(Salvaging::new(source)) } else { Box::new(source) };
    let converted = match free.to_skip() {
        Some(found) => convert(&Skipping::new(source, found)),
        None => convert(&source),
    };
    drop((progress, counted));
    let mut converted = converted?;
    let verdict = if args.verify {
        Some(prove(&mut converted, &target, &destination, session, &runtime)?)
    } else {
        None
    };
    let good = verdict.as_ref().is_none_or(|verdict| verdict.good);
    let report = Report::new(&converted, &counters.totals(), plan.summary(), chosen.unused.as_ref())
        .with_free_space(free);
    print(args, session.verbosity, &converted, &report)?;
    if let Some(verdict) = verdict.filter(|verdict| !verdict.good) {
        print_findings(&verdict);
    }
    let complete = converted.manifest.salvaged.is_empty();
    Ok(match (good, complete) {
        (false, _) => Code::Image,
        (true, false) => Code::Source,
        (true, true) => Code::Done,
    })
}

/// Reads the image back, with a progress bar or log lines, and records the result in its manifest.
fn prove(
    converted: &mut Converted,
    target: &Target,
    destination: &ImageDestination,
    session: &Session,
    runtime: &Runtime,
) -> CommandResult<Verdict> {
    let counters = Arc::new(RestoreCounters::default());
    let _counted = session.throughput.count(Transfer::ReadingBack(Arc::clone(&counters)));
    let proof = Proof {
        target,
        location: destination.location(),
        clock: &SystemClock,
        cancel: session.cancel.clone(),
        counters: Arc::clone(&counters),
        runtime: runtime.handle(),
    };
    let progress = OnceCell::new();
    let verdict = proof.run(&mut converted.manifest, &|size| {
        let _ =
            progress.set(Progress::show(&session.console, session.verbosity, Arc::clone(&counters), size));
    });
    drop(progress);
    let incomplete = |error: CommandError, what: &str| {
        error.during(format!("the image {} is complete, but {what}", converted.url))
    };
    verdict.map_err(|error| match error {
        ProofError::Open(error) => incomplete(error.into(), "can't be read back"),
        ProofError::Read(error) => incomplete(error.into(), "was not verified"),
        ProofError::Manifest(error) => error.into(),
    })
}

fn print(
    args: &ConvertArgs,
    verbosity: Verbosity,
    converted: &Converted,
    report: &Report,
) -> CommandResult<()> {
    match (verbosity, report.summary()) {
        (Verbosity::Quiet, (tracing::Level::INFO, _)) => {}
        (Verbosity::Quiet, (level, summary)) => {
            log::print_report(level, &summary, report, |to| report.write_salvaged(to));
        }
        (Verbosity::Normal | Verbosity::Verbose | Verbosity::Detailed, (level, summary)) => {
            log::print_report(level, &summary, report, |to| report.write_for_people(converted.took, to));
        }
    }
    if args.json {
        print_json(report)?;
    }
    Ok(())
}

fn dry_run(
    args: &ConvertArgs,
    plan: &Plan,
    source: &str,
    image: &str,
    free: &FreeSpace,
) -> CommandResult<Code> {
    let summary = plan.summary();
    if args.json {
        print_json(&PlanReport { plan: summary, filesystems: free.filesystems() })?;
    } else {
        let mut out = printable::out();
        write_plan(&summary, source, image, &mut out)?;
        free.write_for_people(&mut out)?;
    }
    Ok(Code::Done)
}

/// Smallest cluster size offered: below it an image is mostly tables.
const LEAST_CLUSTER: ClusterBits = ClusterBits::KIB4;

/// Returns the converter's options, as the arguments set them.
fn options(args: &ConvertArgs) -> CommandResult<Options> {
    let cluster = ClusterBits::from_size(args.cluster_size).map_err(|error| UsageError(error.to_string()))?;
    if cluster < LEAST_CLUSTER {
        return Err(UsageError(format!(
            "cluster size {cluster} is too small: give {LEAST_CLUSTER} to 2 MiB"
        ))
        .into());
    }
    if args.no_hash && args.base != BaseChoice::None {
        return Err(UsageError(
            "--no-hash and --base exclude each other: a base is compared by the hashes of what was read"
                .into(),
        )
        .into());
    }
    Ok(Options {
        codec: args.codec.codec(),
        store_as: args.codec.store_as(),
        level: args.level,
        cluster,
        threads: args.threads,
        part_size: args.part_size,
        connections: args.connections,
        readers: None,
        hashing: if args.no_hash { Hashing::Off } else { Hashing::Blake3 },
        reuse: if args.base == BaseChoice::None { Reuse::Nothing } else { Reuse::Unchanged },
        ..Options::default()
    })
}
