//! `snapferry restore`: writes an image's disk to a device or a file.

use std::cell::OnceCell;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args as Group;
use serde::Serialize;
use serde_json::json;
use snapferry_base::clock::SystemClock;
use snapferry_base::units::ByteCount;
use snapferry_engine::disk::{Existing, PageCache, ZeroPolicy};
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::counters::{Bottleneck, Counters};
use snapferry_engine::restore::{Destination, Prepared, Restoration, Restored};
use snapferry_engine::store::Overwrite;
use tracing::Level;

use super::consent::{Consent, Unasked};
use super::duration::clock_face;
use super::error::UsageError;
use super::exit::Code;
use super::image::ImageArgs;
use super::log::{self, Verbosity};
use super::metrics_file::MetricsFileArgs;
use super::open_image::Opened;
use super::print_json;
use super::printable::Form;
use super::progress::{Progress, per_second};
use super::rehearsal::would_with;
use super::report::Usage;
use super::signals::Unfinished;
use super::throughput::Transfer;
use crate::cli::args::{ConsentArgs, ReadingArgs, RehearsalArgs};
use crate::cli::error::CommandResult;
use crate::cli::session::Session;
use crate::cli::values;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry restore s3://images/web01.qcow2 --device /dev/vdd\n  snapferry restore web01.qcow2 --output web01.raw\n  snapferry restore --bucket images --key web01.qcow2 --region us-south --device /dev/vdd --force"
)]
pub struct RestoreArgs {
    /// Write the disk to this block device
    #[arg(long, value_name = "DEVICE", required_unless_present = "output", conflicts_with = "output")]
    pub device: Option<PathBuf>,

    /// Write the disk to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Write over what the device holds, or replace the file
    #[arg(long)]
    pub force: bool,

    /// Write the file through the page cache, for a program that reads it next
    #[arg(long, requires = "output")]
    pub page_cache: bool,

    /// Treatment of zeros on a device; skip is for a device that is all zeros already
    #[arg(long, default_value = "discard", value_name = "POLICY", conflicts_with = "output",
        value_parser = values::zero_policies())]
    pub zero: ZeroPolicy,

    #[command(flatten)]
    pub rehearsal: RehearsalArgs,

    #[command(flatten)]
    pub consent: ConsentArgs,

    #[command(flatten)]
    pub reading: ReadingArgs,

    // Near the end, because its heading in the help holds for all that follows.
    #[command(flatten)]
    pub image: ImageArgs,

    #[command(flatten)]
    pub metrics_file: MetricsFileArgs,
}

pub fn run(args: &RestoreArgs, session: &Session) -> CommandResult<Code> {
    let consent = Consent::of(args.consent, session)?;
    let overwrite = Overwrite::if_forced(args.force);
    let cache = if args.page_cache { PageCache::Use } else { PageCache::Bypass };
    let destination = match (&args.device, &args.output) {
        (Some(path), _) => Destination::Device { path: path.clone(), overwrite, zero: args.zero },
        (None, Some(path)) => Destination::File { path: path.clone(), overwrite, cache },
        (None, None) => return Err(UsageError("give --device DEVICE or --output FILE".into()).into()),
    };
    if let (Some(device), Some(image)) = (&args.device, &args.image.image)
        && is_same_device(device, image.as_ref())
    {
        return Err(UsageError(format!(
            "the image is on {}, and would be overwritten while it is read",
            device.display()
        ))
        .into());
    }
    let opened = Opened::open(&args.image, &args.reading, Unfinished::Target, session)?;
    let counters = Arc::new(Counters::default());
    let _counted = session.throughput.count(Transfer::ReadingBack(Arc::clone(&counters)));
    let progress = OnceCell::new();
    let restoration = Restoration {
        file: &*opened.image.file,
        location: opened.location,
        destination: &destination,
        manifest: opened.manifest.as_ref(),
        limits: opened.limits,
        options: opened.options,
        clock: &SystemClock,
        cancel: session.cancel.clone(),
        counters: Arc::clone(&counters),
    };
    let prepared = restoration.prepare()?;
    let target = args
        .device
        .as_ref()
        .or(args.output.as_ref())
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    if args.rehearsal.dry_run || args.force {
        let existing = destination.examine(prepared.virtual_size()).map_err(RestoreError::from)?;
        if args.rehearsal.dry_run {
            return rehearse(args, &prepared, existing, opened.image.file.name(), &target);
        }
        if let Some(lost) = lost(existing) {
            consent.ask(session, Unasked::GoOn, &format!("write over {target} ({lost})"))?;
        }
    }
    let restored = restoration.run(prepared, &|size| {
        let _ =
            progress.set(Progress::show(&session.console, session.verbosity, Arc::clone(&counters), size));
    });
    drop(progress);
    let restored = restored?;
    let report = Report::new(&opened, target, &restored, &counters);
    if session.verbosity != Verbosity::Quiet {
        let summary = format!("{} holds the disk of {}", report.target, report.image);
        log::print_report(Level::INFO, &summary, &report, |to| report.write_for_people(&restored, to));
    }
    if args.reading.json {
        print_json(&report)?;
    }
    Ok(Code::Done)
}

/// Describes the data that a restore destroys, if there are any.
fn lost(existing: Existing) -> Option<String> {
    match existing {
        Existing::Nothing => None,
        Existing::File { size: ByteCount(0) } | Existing::Device { content: None, .. } => None,
        Existing::File { size } => Some(format!("a file of {size}")),
        Existing::Device { size, content: Some(content) } => Some(format!("{size}, holds {content}")),
    }
}

/// Prints what the restore would do.
fn rehearse(
    args: &RestoreArgs,
    prepared: &Prepared,
    existing: Existing,
    image: &str,
    target: &str,
) -> CommandResult<Code> {
    let (size, lost) = (prepared.virtual_size(), lost(existing));
    let over = lost.as_ref().map_or_else(String::new, |lost| format!(", over what is there: {lost}"));
    let more = json!({
        "image": image, "target": target, "virtual_size": size, "bytes_decoded": prepared.mapped(), "lost": lost,
    });
    would_with(
        Form::of(args.reading.json),
        format_args!("write the disk of {image}, {size}, to {target}{over}"),
        &more,
    )?;
    Ok(Code::Done)
}

/// True if two paths lead to the same block device.
fn is_same_device(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| {
        path.metadata().ok().filter(|found| found.file_type().is_block_device()).map(|found| found.rdev())
    };
    device(one).is_some_and(|one| device(other) == Some(one))
}

/// Result that `--json` prints, with sizes in bytes.
#[derive(Debug, Serialize)]
struct Report<'a> {
    image: &'a str,
    target: String,
    /// Size of the disk as the guest sees it.
    virtual_size: ByteCount,
    /// Bytes of the disk that the image stores; the rest is zeros.
    bytes_decoded: ByteCount,
    /// Bytes of the image that were fetched.
    bytes_fetched: ByteCount,
    /// Bytes that filesystems called free when the image was made, and that are zeros.
    bytes_free: ByteCount,
    /// True if there was a manifest to check against.
    manifest: bool,
    /// Segments whose BLAKE3 was compared with the manifest's.
    segments_checked: u64,
    seconds: f64,
    bytes_per_second: u64,
    bottleneck: Option<&'static str>,
    /// Most memory that the plan allows, in bytes.
    peak_memory: ByteCount,
    cpu_seconds: f64,
    peak_rss_bytes: Option<u64>,
}

impl<'a> Report<'a> {
    fn new(opened: &'a Opened, target: String, restored: &Restored, counters: &Counters) -> Self {
        let usage = Usage::of_process();
        let free = opened.manifest.iter().flat_map(|manifest| &manifest.free);
        Self {
            image: opened.image.file.name(),
            target,
            virtual_size: restored.virtual_size,
            bytes_decoded: restored.mapped,
            bytes_fetched: restored.fetched,
            bytes_free: ByteCount(free.map(|record| record.bytes.0).sum()),
            manifest: opened.manifest.is_some(),
            segments_checked: restored.segments_checked,
            seconds: restored.took.as_secs_f64(),
            bytes_per_second: per_second(restored.virtual_size.0, restored.took),
            bottleneck: counters.totals().bottleneck().map(Bottleneck::name),
            peak_memory: restored.peak_memory,
            cpu_seconds: usage.cpu.as_secs_f64(),
            peak_rss_bytes: usage.peak_rss,
        }
    }

    fn write_for_people(&self, restored: &Restored, to: &mut impl Write) -> io::Result<()> {
        writeln!(to, "{}", self.target)?;
        let (rate, took) = (ByteCount(self.bytes_per_second), clock_face(restored.took));
        writeln!(
            to,
            "  disk      {}, {} of it stored, {rate}/s in {took}",
            self.virtual_size, self.bytes_decoded
        )?;
        writeln!(to, "  image     {}, {} fetched", self.image, self.bytes_fetched)?;
        if self.bytes_free.0 > 0 {
            writeln!(to, "  free      {} are zeros: the image was made without them", self.bytes_free)?;
        }
        if self.manifest {
            writeln!(
                to,
                "  manifest  {} segments hold what was read when the image was made",
                self.segments_checked
            )?;
        } else {
            writeln!(to, "  manifest  none: that it decodes is all that is known")?;
        }
        if let Some(bottleneck) = self.bottleneck {
            writeln!(to, "  limit     {bottleneck}")?;
        }
        Ok(())
    }
}
