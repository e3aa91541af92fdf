//! Free space of filesystems: which of it a conversion leaves out, and how that is reported.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use serde::Serialize;
use snapferry_base::choice::UnknownNameError;
use snapferry_base::units::{ByteCount, GIB};
use snapferry_engine::manifest::FreeRecord;
use snapferry_engine::source::{RawSource, Skipping, Source, find_free};
use snapferry_freespace::{Doubt, Outcome, Probed, Verdict};

use super::convert::ConvertArgs;
use super::error::{CommandError, CommandResult, UsageError};
use super::exit::Code;

/// Largest partition that `require` lets be copied whole: EFI system partitions, boot loaders and `/boot`
/// have no free space worth a refusal.
const LARGEST_WHOLE: u64 = GIB;

/// Treatment of free space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkipFree {
    /// Copy everything.
    #[default]
    Off,
    /// Leave out free space where it is known, and copy the other filesystems whole.
    Auto,
    /// As `Auto`, but refuse a disk on which a large filesystem would be copied whole.
    Require,
}

impl SkipFree {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Off, Self::Auto, Self::Require];

    /// Returns the name that users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Require => "require",
        }
    }
}

impl FromStr for SkipFree {
    type Err = UnknownNameError;
    fn from_str(typed: &str) -> Result<Self, UnknownNameError> {
        let found = Self::ALL.into_iter().find(|choice| choice.name() == typed);
        found.ok_or_else(|| UnknownNameError { typed: typed.to_owned(), choices: "off, auto, require" })
    }
}

impl std::fmt::Display for SkipFree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Free space of a source, and whether it is left out.
#[derive(Clone, Debug, Default)]
pub struct FreeSpace {
    skip: SkipFree,
    /// `None` if the source was not looked at.
    found: Option<Probed>,
}

/// One filesystem in `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct FilesystemReport {
    /// Partition, such as `p1`, or `disk`.
    name: String,
    /// First byte on the disk.
    offset: u64,
    /// Length in bytes.
    length: u64,
    kind: &'static str,
    uuid: Option<String>,
    /// Bytes that are free; `None` if the filesystem is copied whole.
    free: Option<u64>,
    /// Grounds on which the free space is known.
    evidence: Option<String>,
    /// Reason for copying the filesystem whole.
    whole: Option<String>,
}

/// Error about free space that is to be left out.
#[derive(Debug, thiserror::Error)]
pub enum FreeSpaceError {
    /// A loop device writes to the file.
    #[error("{disk} is in use through {device}: which of its blocks are free changes while it is read")]
    InUse { disk: String, device: String },
    /// A large filesystem would be copied whole.
    #[error("{disk}: {partition}, {kind} of {length}, would be copied whole: {why}")]
    Whole { disk: String, partition: String, kind: &'static str, length: ByteCount, why: Doubt },
    /// A disk and an image leave out different blocks.
    #[error(
        "the free space of {disk} is not that of {image}, which holds zeros in its place: they can't be compared"
    )]
    Other { disk: String, image: String },
}

impl FreeSpaceError {
    /// Returns the exit code of a command that ends with this error.
    pub fn code(&self) -> Code {
        match self {
            Self::InUse { .. } | Self::Whole { .. } => Code::Source,
            Self::Other { .. } => Code::Image,
        }
    }

    /// Returns what the user can try next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "give a snapshot of it, or leave out --skip-free",
            Self::Whole { .. } => "nothing was written. `--skip-free auto` copies such a filesystem whole",
            Self::Other { .. } => "compare the image with the very snapshot that it was made from",
        }
    }
}

/// Content of the file that `--free-map-out` writes.
#[derive(Serialize)]
struct FreeMap<'a> {
    disk: &'a str,
    size: ByteCount,
    filesystems: Vec<FilesystemReport>,
    /// Free ranges: first byte and length.
    free: Vec<[u64; 2]>,
}

impl FreeSpace {
    /// Looks for free space on the source, as the arguments want it.
    pub fn find(args: &ConvertArgs, source: &RawSource) -> CommandResult<Self> {
        let skip = args.skip_free;
        if skip == SkipFree::Off && args.free_map_out.is_none() {
            return Ok(Self::default());
        }
        if args.in_use {
            return Err(UsageError(
                "--in-use reads a disk that changes: which of its blocks are free can't be known; leave out --skip-free and --free-map-out"
                    .into(),
            )
            .into());
        }
        if let Some(device) = source.written_through() {
            return Err(FreeSpaceError::InUse { disk: source.name().into(), device }.into());
        }
        let found = find_free(source)?;
        let free = Self { skip, found: Some(found) };
        if skip == SkipFree::Require {
            free.check_required(source.name())?;
        }
        if let Some(path) = &args.free_map_out {
            free.write_map(path, source).map_err(|error| {
                CommandError::from(error).during(format!("cannot write {}", path.display()))
            })?;
        }
        Ok(free)
    }

    fn check_required(&self, disk: &str) -> CommandResult<()> {
        let whole = self.verdicts().iter().find_map(|verdict| match &verdict.outcome {
            Outcome::Whole { why } if verdict.length > LARGEST_WHOLE => Some((verdict, why)),
            _ => None,
        });
        match whole {
            None => Ok(()),
            Some((verdict, why)) => Err(FreeSpaceError::Whole {
                disk: disk.to_owned(),
                partition: verdict.name.clone(),
                kind: verdict.kind,
                length: ByteCount(verdict.length),
                why: why.clone(),
            }
            .into()),
        }
    }

    fn write_map(&self, path: &Path, source: &RawSource) -> io::Result<()> {
        let ranges = self.found.iter().flat_map(|found| found.free.as_slice());
        let map = FreeMap {
            disk: source.name(),
            size: source.size(),
            filesystems: self.filesystems(),
            free: ranges.map(|range| [range.start, range.end - range.start]).collect(),
        };
        let mut to = BufWriter::new(File::create(path)?);
        serde_json::to_writer(&mut to, &map)?;
        to.write_all(b"\n")?;
        to.into_inner()?.sync_all()
    }

    fn verdicts(&self) -> &[Verdict] {
        self.found.as_ref().map_or(&[], |found| &found.filesystems)
    }

    /// Returns what is to be left out; `None` if everything is copied.
    pub fn to_skip(&self) -> Option<Probed> {
        if self.skip == SkipFree::Off { None } else { self.found.clone() }
    }

    /// Returns a report of each filesystem, for programs.
    pub fn filesystems(&self) -> Vec<FilesystemReport> {
        self.verdicts().iter().map(FilesystemReport::of).collect()
    }

    /// Writes a line for each filesystem.
    pub fn write_for_people(&self, to: &mut impl Write) -> io::Result<()> {
        let did = if self.skip == SkipFree::Off { "free, and copied" } else { "free and not read" };
        for verdict in self.verdicts() {
            let (name, kind) = (&verdict.name, verdict.kind);
            match &verdict.outcome {
                Outcome::Skipped { uuid, free, evidence } => {
                    let free = ByteCount(free.total());
                    writeln!(to, "  free      {name} {kind} {uuid}: {free} {did}; {evidence}")?;
                }
                Outcome::Whole { why } => writeln!(to, "  free      {name} {kind}: copied whole: {why}")?,
            }
        }
        Ok(())
    }
}

impl FilesystemReport {
    fn of(verdict: &Verdict) -> Self {
        let mut report = Self {
            name: verdict.name.clone(),
            offset: verdict.offset,
            length: verdict.length,
            kind: verdict.kind,
            uuid: None,
            free: None,
            evidence: None,
            whole: None,
        };
        match &verdict.outcome {
            Outcome::Skipped { uuid, free, evidence } => {
                report.uuid = Some(uuid.clone());
                report.free = Some(free.total());
                report.evidence = Some(evidence.to_string());
            }
            Outcome::Whole { why } => report.whole = Some(why.to_string()),
        }
        report
    }
}

/// Looks for the free space of a disk that an image is compared with, if the image leaves out any. The disk
/// must have the same: zeros in its place prove nothing otherwise.
pub fn find_same(source: RawSource, records: &[FreeRecord], image: &str) -> CommandResult<Box<dyn Source>> {
    if records.is_empty() {
        return Ok(Box::new(source));
    }
    let found = find_free(&source)?;
    let own = FreeRecord::all_of(&found);
    let same =
        own.len() == records.len() && own.iter().zip(records).all(|(own, other)| own.is_same_map(other));
    if same {
        Ok(Box::new(Skipping::new(source, found)))
    } else {
        Err(FreeSpaceError::Other { disk: source.name().into(), image: image.into() }.into())
    }
}
