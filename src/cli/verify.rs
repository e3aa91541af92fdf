//! `snapferry verify`: reads an image back and checks it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args as Group;
use snapferry_base::clock::SystemClock;
use snapferry_base::units::ByteCount;
use snapferry_engine::image::Sha256Sum;
use snapferry_engine::image::counters::Counters;
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::verify::{Sha256Wanted, Verdict, Verification};
use tracing::Level;

use super::duration::clock_face;
use super::exit::Code;
use super::image::ImageArgs;
use super::log::{self, Verbosity};
use super::metrics_file::MetricsFileArgs;
use super::open_image::Opened;
use super::print_json;
use super::progress::{Progress, per_second};
use super::signals::Unfinished;
use super::skip_free::find_same;
use super::throughput::Transfer;
use crate::cli::args::ReadingArgs;
use crate::cli::error::CommandResult;
use crate::cli::session::Session;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry verify s3://images/web01.qcow2\n  snapferry verify web01.qcow2 --against /dev/vdc\n  snapferry verify --bucket images --key web01.qcow2 --region us-south --sha256 9f86d081..."
)]
pub struct VerifyArgs {
    /// Compare every byte with this disk
    #[arg(long, value_name = "DEVICE")]
    pub against: Option<PathBuf>,

    /// Read a device that is mounted or claimed by another program
    #[arg(long, requires = "against")]
    pub in_use: bool,

    /// The SHA-256 that the file must have
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<Sha256Sum>,

    #[command(flatten)]
    pub reading: ReadingArgs,

    // Near the end, because its heading in the help holds for all that follows.
    #[command(flatten)]
    pub image: ImageArgs,

    #[command(flatten)]
    pub metrics_file: MetricsFileArgs,
}

pub fn run(args: &VerifyArgs, session: &Session) -> CommandResult<Code> {
    let opened = Opened::open(&args.image, &args.reading, Unfinished::Nothing, session)?;
    let in_use = if args.in_use { InUse::Read } else { InUse::Refuse };
    let free = opened.manifest.as_ref().map_or(&[][..], |manifest| &manifest.free);
    let against = args
        .against
        .as_deref()
        .map(|path| find_same(RawSource::open(path, in_use)?, free, opened.image.file.name()))
        .transpose()?;
    if opened.manifest.is_none()
        && args.sha256.is_none()
        && against.is_none()
        && args.reading.manifest.is_none()
    {
        tracing::warn!("there is no manifest beside the image: that it decodes is all that can be told");
    }
    let counters = Arc::new(Counters::default());
    let verification = Verification {
        file: &*opened.image.file,
        location: opened.location,
        manifest: opened.manifest.as_ref(),
        sha256: args.sha256.map_or(Sha256Wanted::No, Sha256Wanted::MustBe),
        against: against.as_deref(),
        limits: opened.limits,
        options: opened.options,
        clock: &SystemClock,
        cancel: session.cancel.clone(),
        counters: Arc::clone(&counters),
    };
    let verdict = run_with_progress(verification, session)?;
    print(&verdict, args.reading.json, session.verbosity)?;
    Ok(if verdict.good { Code::Done } else { Code::Image })
}

/// Verifies the image, with a progress bar or log lines.
fn run_with_progress(verification: Verification<'_>, session: &Session) -> CommandResult<Verdict> {
    let counters = Arc::clone(&verification.counters);
    let _counted = session.throughput.count(Transfer::ReadingBack(Arc::clone(&counters)));
    let progress = std::cell::OnceCell::new();
    let verdict = verification.run(&|size| {
        let _ =
            progress.set(Progress::show(&session.console, session.verbosity, Arc::clone(&counters), size));
    });
    drop(progress);
    Ok(verdict?)
}

fn print(verdict: &Verdict, json: bool, verbosity: Verbosity) -> CommandResult<()> {
    match verbosity {
        Verbosity::Quiet => print_findings(verdict),
        Verbosity::Normal | Verbosity::Verbose | Verbosity::Detailed => {
            let (level, summary) = summary(verdict);
            log::print_report(level, &summary, verdict, |to| write_for_people(verdict, to));
        }
    }
    if json {
        print_json(verdict)?;
    }
    Ok(())
}

fn summary(verdict: &Verdict) -> (Level, String) {
    let (level, word) = if verdict.good { (Level::INFO, "good") } else { (Level::ERROR, "NOT GOOD") };
    (level, format!("{}: {word}", verdict.image))
}

/// Prints the findings on stderr, also with `--quiet`, because they are errors.
pub fn print_findings(verdict: &Verdict) {
    if !verdict.good {
        let (level, summary) = summary(verdict);
        log::print_report(level, &summary, verdict, |to| write_findings(verdict, to));
    }
}

/// Writes the findings as text.
fn write_findings(verdict: &Verdict, to: &mut impl Write) -> io::Result<()> {
    for finding in &verdict.findings {
        writeln!(to, "  wrong     {finding}")?;
    }
    if verdict.more_findings > 0 {
        writeln!(to, "  wrong     ... and {} more", verdict.more_findings)?;
    }
    Ok(())
}

/// Writes the verdict as text.
pub fn write_for_people(verdict: &Verdict, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}", summary(verdict).1)?;
    let took = verdict.took;
    let rate = ByteCount(per_second(verdict.virtual_size.0, took));
    writeln!(
        to,
        "  disk      {}, {} clusters decoded, {rate}/s in {}",
        verdict.virtual_size,
        verdict.clusters,
        clock_face(took)
    )?;
    writeln!(to, "  image     {}, {} fetched", verdict.file_size, ByteCount(verdict.bytes_fetched))?;
    if verdict.manifest {
        let unhashed = match verdict.segments_without_hash {
            0 => String::new(),
            count => format!(", {count} without a hash"),
        };
        writeln!(to, "  manifest  {} segments compared{unhashed}", verdict.segments_checked)?;
    }
    if let Some(against) = &verdict.against {
        writeln!(to, "  against   {against}, every byte")?;
    }
    if let Some(crc64) = verdict.crc64nvme {
        writeln!(to, "  CRC64     {crc64}")?;
    }
    if let Some(sha256) = verdict.sha256 {
        writeln!(to, "  SHA-256   {sha256}")?;
    }
    write_findings(verdict, to)
}
