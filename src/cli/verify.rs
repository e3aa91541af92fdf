//! `snapferry verify`.

use std::io::{self, Write};
use std::sync::Arc;

use super::args::VerifyArgs;
use super::exit::Code;
use super::foreign;
use super::lengths::clock_face;
use super::log::Verbosity;
use super::print_json;
use super::progress::{Console, Progress, per_second};
use super::reading::Opened;
use super::signals::Left;
use crate::clock::SystemClock;
use crate::restore::counters::Counters;
use crate::restore::{Sha256Wanted, Verdict, Verification};
use crate::source::{InUse, RawSource, Source};
use crate::units::ByteCount;

pub fn run(args: &VerifyArgs, verbosity: Verbosity, console: &Console) -> anyhow::Result<Code> {
    let opened = Opened::open(&args.image, &args.reading, Left::Nothing)?;
    let in_use = if args.in_use { InUse::Read } else { InUse::Refuse };
    let against = args.against.as_deref().map(|path| RawSource::open(path, in_use)).transpose()?;
    if opened.manifest.is_none() && args.sha256.is_none() && against.is_none() && args.reading.manifest.is_none() {
        tracing::warn!("there is no manifest beside the image: that it decodes is all that can be told");
    }
    let counters = Arc::new(Counters::default());
    let verification = Verification {
        file: &*opened.image.file,
        origin: opened.origin,
        manifest: opened.manifest.as_ref(),
        sha256: args.sha256.map_or(Sha256Wanted::No, Sha256Wanted::MustBe),
        against: against.as_ref().map(|source| -> &dyn Source { source }),
        limits: opened.limits,
        options: opened.options,
        clock: &SystemClock,
        cancel: opened.cancel.clone(),
        counters: Arc::clone(&counters),
    };
    let verdict = shown(verification, console, verbosity)?;
    print(&verdict, args.reading.json, verbosity)?;
    Ok(if verdict.good { Code::Done } else { Code::Image })
}

/// Verifies with a bar, or log lines.
pub fn shown(verification: Verification<'_>, console: &Console, verbosity: Verbosity) -> anyhow::Result<Verdict> {
    let counters = Arc::clone(&verification.counters);
    let progress = std::cell::OnceCell::new();
    let verdict = verification.run(&|size| {
        let _ = progress.set(Progress::show(console, verbosity, Arc::clone(&counters), size));
    });
    drop(progress);
    Ok(verdict?)
}

fn print(verdict: &Verdict, json: bool, verbosity: Verbosity) -> anyhow::Result<()> {
    let words = &mut foreign::err();
    // The verdict is in the exit code, whether or not somebody still listens on stderr.
    let _ = match verbosity {
        Verbosity::Quiet => write_findings(verdict, words),
        Verbosity::Normal | Verbosity::Verbose => write_for_people(verdict, words),
    };
    if json {
        print_json(verdict)?;
    }
    Ok(())
}

/// What is wrong: of interest also to whoever asked for errors alone.
pub fn write_findings(verdict: &Verdict, to: &mut impl Write) -> io::Result<()> {
    for finding in &verdict.findings {
        writeln!(to, "  wrong     {finding}")?;
    }
    if verdict.more_findings > 0 {
        writeln!(to, "  wrong     ... and {} more", verdict.more_findings)?;
    }
    Ok(())
}

/// The verdict for people.
pub fn write_for_people(verdict: &Verdict, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}: {}", verdict.image, if verdict.good { "good" } else { "NOT GOOD" })?;
    let took = verdict.took;
    let rate = ByteCount(per_second(verdict.virtual_size.0, took));
    writeln!(to, "  disk      {}, {} clusters decoded, {rate}/s in {}", verdict.virtual_size, verdict.clusters, clock_face(took))?;
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
