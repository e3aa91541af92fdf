//! Report of a finished conversion, for the user and for programs.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use snapferry_base::retry::chain;
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters::Totals;
use snapferry_engine::convert::plan::PlanSummary;
use snapferry_engine::convert::{Converted, WhyFull};
use snapferry_engine::hash::Crc64;
use snapferry_engine::source::BadRange;
use tracing::Level;

use super::base_choice::Unused;
use super::duration::clock_face;
use super::hints;
use super::progress::{per_second, ratio};
use super::skip_free::{FilesystemReport, FreeSpace};

/// Report that `--json` prints as one object on stdout, with sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Report {
    /// URL or path of the image.
    image: String,
    /// URL or path of the image's manifest.
    manifest: String,
    /// Size of the disk as the guest sees it.
    virtual_size: ByteCount,
    /// Bytes read from the source.
    bytes_read: u64,
    /// Bytes of the disk that were known to be holes, and not read.
    bytes_hole: u64,
    /// Bytes of the disk that hold zeros, holes included.
    bytes_zero: u64,
    /// Bytes of the disk stored as they are.
    bytes_raw: u64,
    /// Bytes of the image.
    bytes_stored: u64,
    /// Bytes that were sent, in all attempts.
    bytes_sent: u64,
    /// Older image that was used; null if none was.
    base: Option<BaseReport>,
    /// Reason in one word why all of the disk was sent; null if an older image was used to the end.
    full_because: Option<&'static str>,
    /// Reason for people why all of the disk was sent.
    #[serde(skip)]
    full_reason: Option<String>,
    /// Next step for people, if an older image was given up.
    #[serde(skip)]
    hint: Option<String>,
    /// Image bytes per byte of the disk.
    ratio: f64,
    /// Seconds from the first request to the store to its last response.
    seconds: f64,
    /// Bytes of the disk per second.
    bytes_per_second: u64,
    /// Checksum of the whole image, as S3 returns it.
    crc64nvme: Crc64,
    /// SHA-256 of the whole image, once it was read back and found right.
    sha256: Option<String>,
    /// Time of that check: UTC, RFC 3339.
    verified_at: Option<String>,
    /// Stage that held the others up most often.
    bottleneck: Option<&'static str>,
    /// Unreadable ranges, which `--salvage` stored as zeros.
    salvaged: Vec<BadRange>,
    /// Bytes that the filesystems call free and that the image holds as zeros.
    bytes_free: ByteCount,
    /// Filesystems that were looked at for free space.
    filesystems: Vec<FilesystemReport>,
    /// Processor time, user and system, of the whole process.
    cpu_seconds: f64,
    /// Most memory that the process has held.
    peak_rss_bytes: Option<u64>,
    plan: PlanSummary,
    #[serde(skip)]
    free: FreeSpace,
}

/// Plan that `--dry-run --json` prints.
#[derive(Debug, Serialize)]
pub struct PlanReport {
    #[serde(flatten)]
    pub plan: PlanSummary,
    pub filesystems: Vec<FilesystemReport>,
}

/// What an image took from an older one.
#[derive(Debug, Serialize)]
struct BaseReport {
    /// Key of the older image.
    key: String,
    /// Segments that hold data.
    segments: u64,
    /// Segments that did not change.
    segments_unchanged: u64,
    /// Bytes that the store copied.
    bytes_copied: u64,
    /// Bytes that were fetched and sent again.
    bytes_fetched: u64,
    /// Parts that the store copied.
    copies: u64,
    /// Copied segments that were read back, because the store returned no checksum of what it copied.
    segments_read_back: u64,
}

impl Report {
    /// Makes the report of a conversion; `unused` is the reason why it had no base.
    pub fn new(converted: &Converted, totals: &Totals, plan: PlanSummary, unused: Option<&Unused>) -> Self {
        let manifest = &converted.manifest;
        let size = manifest.image.virtual_size;
        let usage = Usage::of_process();
        let given_up = converted.given_up.as_deref();
        let base = converted.reused.as_ref().map(|reused| BaseReport {
            key: reused.key.to_string(),
            segments: reused.segments,
            segments_unchanged: reused.unchanged,
            bytes_copied: reused.copied,
            bytes_fetched: reused.fetched,
            copies: reused.copies,
            segments_read_back: reused.read_back,
        });
        Self {
            bytes_sent: converted.sent,
            base,
            full_because: given_up.map(WhyFull::word).or(unused.map(|unused| unused.word)),
            hint: given_up.and_then(hints::of_given_up),
            full_reason: given_up
                .map(|why| format!("given up: {}; all of the disk was sent", chain(why)))
                .or_else(|| {
                    unused
                        .filter(|unused| !unused.reason.is_empty())
                        .map(|unused| format!("none: {}", unused.reason))
                }),
            image: converted.url.clone(),
            manifest: converted.manifest_url.clone(),
            virtual_size: size,
            bytes_read: totals.read,
            bytes_hole: totals.holes,
            bytes_zero: totals.zero,
            bytes_raw: totals.raw,
            bytes_stored: manifest.image.size.0,
            ratio: ratio(manifest.image.size.0, size.0).parse().unwrap_or(0.0),
            seconds: converted.took.as_secs_f64(),
            bytes_per_second: per_second(size.0, converted.took),
            crc64nvme: manifest.image.crc64,
            sha256: manifest.image.sha256.clone(),
            verified_at: manifest.image.verified_at.clone(),
            bottleneck: totals
                .bottleneck_since(&Totals::default())
                .map(snapferry_engine::convert::counters::Bottleneck::name),
            salvaged: manifest.salvaged.clone(),
            bytes_free: ByteCount(manifest.free.iter().map(|record| record.bytes.0).sum()),
            filesystems: Vec::new(),
            cpu_seconds: usage.cpu.as_secs_f64(),
            peak_rss_bytes: usage.peak_rss,
            plan,
            free: FreeSpace::default(),
        }
    }

    /// Adds what was found of the source's free space.
    pub fn with_free_space(mut self, free: FreeSpace) -> Self {
        self.filesystems = free.filesystems();
        self.free = free;
        self
    }

    /// Returns the report in one sentence. Ranges that are missing from the image are errors.
    pub fn summary(&self) -> (Level, String) {
        match self.salvaged.len() {
            0 => (Level::INFO, format!("{} is complete", self.image)),
            ranges => {
                (Level::ERROR, format!("{}: {ranges} unreadable ranges are stored as zeros", self.image))
            }
        }
    }

    /// Writes the report as text.
    pub fn write_for_people(&self, took: Duration, to: &mut impl Write) -> io::Result<()> {
        let zero = ByteCount(self.bytes_zero);
        writeln!(to, "{}", self.image)?;
        writeln!(
            to,
            "  disk      {} ({} zero), read at {}/s in {}",
            self.virtual_size,
            zero,
            ByteCount(self.bytes_per_second),
            clock_face(took)
        )?;
        writeln!(
            to,
            "  image     {}, ratio {}, {} {}, CRC64NVME {}",
            ByteCount(self.bytes_stored),
            ratio(self.bytes_stored, self.virtual_size.0),
            self.plan.codec,
            self.plan.level,
            self.crc64nvme
        )?;
        writeln!(to, "  manifest  {}", self.manifest)?;
        if let Some(base) = &self.base {
            write!(
                to,
                "  base      {}: {} of {} segments unchanged; {} copied in the store, {} sent",
                base.key,
                base.segments_unchanged,
                base.segments,
                ByteCount(base.bytes_copied),
                ByteCount(self.bytes_sent)
            )?;
            match base.bytes_fetched {
                0 => writeln!(to)?,
                fetched => writeln!(to, " ({} of it fetched first)", ByteCount(fetched))?,
            }
            if base.segments_read_back > 0 {
                writeln!(
                    to,
                    "            the store proved no copies: {} of the segments were read back; --verify reads all",
                    base.segments_read_back
                )?;
            }
        }
        if let Some(reason) = &self.full_reason {
            writeln!(to, "  base      {reason}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(to, "            {hint}")?;
        }
        self.free.write_for_people(to)?;
        if let Some(sha256) = &self.sha256 {
            writeln!(to, "  verified  read back and decoded, SHA-256 {sha256}")?;
        }
        if let Some(bottleneck) = self.bottleneck {
            writeln!(to, "  limit     {bottleneck}")?;
        }
        self.write_salvaged(to)
    }

    /// Writes the ranges that are missing from the image, also with `--quiet`, because they are errors.
    pub fn write_salvaged(&self, to: &mut impl Write) -> io::Result<()> {
        for range in &self.salvaged {
            writeln!(to, "  unreadable, stored as zeros: {} bytes at offset {}", range.length, range.offset)?;
        }
        Ok(())
    }
}

/// Writes the plan as text, as `--dry-run` prints it.
pub fn write_plan(plan: &PlanSummary, source: &str, image: &str, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "would convert {source} ({}) into {image}", plan.virtual_size)?;
    writeln!(to, "  codec     {} {}: {}", plan.codec, plan.level, plan.encoder)?;
    writeln!(to, "  image     at most {}, clusters of {}", plan.largest_image, plan.cluster_size)?;
    writeln!(
        to,
        "  parts     at most {} of {}, {} at once",
        plan.most_parts, plan.part_size, plan.connections
    )?;
    writeln!(to, "  threads   {} compressing, {} reading", plan.threads, plan.readers)?;
    writeln!(to, "  memory    at most {}", plan.peak_memory)
}

/// Processor time and memory that the process has used so far.
pub struct Usage {
    pub cpu: Duration,
    pub peak_rss: Option<u64>,
}

impl Usage {
    /// Reads /proc, which exists on every system with block devices. Without it the time is zero, and the
    /// memory unknown.
    pub fn of_process() -> Self {
        // Fields 14 and 15 of /proc/self/stat are user and system time in ticks (proc(5)). The command's name
        // in brackets may hold blanks.
        let ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        });
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        let cpu = Duration::from_millis(ticks.unwrap_or(0) * 1000 / per_second);
        let peak_rss = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        });
        Self { cpu, peak_rss }
    }
}
