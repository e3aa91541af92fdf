//! Verification of an image: decodes every cluster, and compares every checksum with the one that was
//! recorded when the image was made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::limits::Allowance;
use snapferry_base::units::{ByteCount, SECTOR, to_u64};
use snapferry_qcow2::{Image, ImageFile, Limits, Mappings};

use crate::compress::cores;
use crate::disk::{Difference, Differences};
use crate::error::RestoreError;
use crate::hash::Crc64;
use crate::image::counters::Counters;
use crate::image::plan::{Cover, Options, Plan};
use crate::image::{
    BadBodies, BadBody, ChunkHashes, Context, HashFinding, Piece, Reading, RequestedSums, Sha256Sum, Sink,
    Sums, check_manifest, hashed_segments,
};
use crate::manifest::Manifest;
use crate::source::Source;
use crate::store::Location;

mod comparison;

pub use comparison::Comparison;

/// Most findings of one kind that are kept. The others are only counted.
const KEPT: usize = 16;

/// Use of the SHA-256 of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sha256Wanted {
    /// The SHA-256 is not computed.
    #[default]
    No,
    /// The SHA-256 is computed and reported.
    Taken,
    /// The SHA-256 is computed, and must be this one.
    MustBe(Sha256Sum),
}

/// Parameters of a verification.
pub struct Verification<'a> {
    /// Bytes of the image.
    pub file: &'a dyn ImageFile,
    /// Location of the image.
    pub location: Location,
    /// Manifest that the image must match.
    pub manifest: Option<&'a Manifest>,
    /// Use of the SHA-256 of the file.
    pub sha256: Sha256Wanted,
    /// Disk that must have the same content.
    pub against: Option<&'a dyn Source>,
    /// Limits on tables that are accepted from the image.
    pub limits: Limits,
    /// Choices of the user. The cover is ignored: it follows from the checksums that are wanted.
    pub options: Options,
    /// Clock that measures the duration.
    pub clock: &'a dyn Clock,
    /// Stops the work from outside.
    pub cancel: Cancel,
    /// Progress, updated while the work is running.
    pub counters: Arc<Counters>,
}

/// One defect that a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum Finding {
    /// A body does not decode.
    Body(BadBody),
    /// The file has another length than when it was made.
    FileSize {
        /// Size by the manifest.
        expected: ByteCount,
        /// Actual size.
        found: ByteCount,
    },
    /// The disk in the image has another size than the one that was read.
    DiskSize {
        /// Size by the manifest, or of the disk to compare with.
        expected: ByteCount,
        /// Actual size.
        found: ByteCount,
    },
    /// The CRC64NVME of the file differs.
    Crc64 {
        /// Checksum by the manifest.
        expected: Crc64,
        /// Checksum of the file.
        found: Crc64,
    },
    /// The SHA-256 of the file differs.
    Sha256 {
        /// Checksum that the user gave, or by the manifest.
        expected: String,
        /// Checksum of the file.
        found: Sha256Sum,
    },
    /// The decoded bytes are not those that were read from the disk.
    Hash(HashFinding),
    /// The disk has other content than the image.
    Differs(Difference),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(BadBody { guest, host, error }) => {
                write!(
                    f,
                    "the body at byte {host}, which holds the disk's bytes from {guest}, is damaged: {error}"
                )
            }
            Self::FileSize { expected, found } => {
                write!(f, "the file has {} bytes, and had {} when it was made", found.0, expected.0)
            }
            Self::DiskSize { expected, found } => {
                write!(f, "the disk in it has {} bytes, not {}", found.0, expected.0)
            }
            Self::Crc64 { expected, found } => {
                write!(f, "the file's CRC64NVME is {found}, and was {expected} when it was made")
            }
            Self::Sha256 { expected, found } => write!(f, "the file's SHA-256 is {found}, not {expected}"),
            Self::Hash(finding) => finding.fmt(f),
            Self::Differs(Difference { offset, length }) => {
                write!(f, "the disk differs at offset {offset}, for {length} bytes")
            }
        }
    }
}

/// Result of a verification.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Name of the image, as the user gave it.
    pub image: String,
    /// True if there are no findings.
    pub good: bool,
    /// Size of the disk in the image, in bytes.
    pub virtual_size: ByteCount,
    /// Size of the file in bytes.
    pub file_size: ByteCount,
    /// Number of clusters that hold anything. All of them were decoded.
    pub clusters: u64,
    /// Bytes of the file that were fetched to decode it. The header and the tables, which are read before,
    /// are not counted.
    pub bytes_fetched: u64,
    /// True if there was a manifest to check the image against.
    pub manifest: bool,
    /// Number of segments whose BLAKE3 hash was compared with the manifest.
    pub segments_checked: u64,
    /// Number of segments for which the manifest has no hash.
    pub segments_without_hash: u64,
    /// CRC64NVME of the file, if it was computed.
    pub crc64nvme: Option<Crc64>,
    /// SHA-256 of the file, if it was computed.
    pub sha256: Option<Sha256Sum>,
    /// Name of the disk with which every byte was compared.
    pub against: Option<String>,
    /// Defects that were found: of each kind, the first ones on the disk.
    pub findings: Vec<Finding>,
    /// Number of further findings of these kinds, which are not listed.
    pub more_findings: u64,
    /// Most memory that the work takes in bytes, by the plan.
    pub peak_memory: ByteCount,
    /// Duration of the verification.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
}

fn seconds<S: serde::Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(took.as_secs_f64())
}

/// Findings so far.
#[derive(Default)]
struct Findings {
    listed: Vec<Finding>,
    more: u64,
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        self.listed.push(finding);
    }

    /// Adds the first of `count` findings, and counts the others.
    fn add_first(&mut self, first: impl IntoIterator<Item = Finding>, count: u64) {
        let before = self.listed.len();
        self.listed.extend(first.into_iter().take(KEPT));
        self.more += count - to_u64(self.listed.len() - before);
    }
}

impl<'a> Verification<'a> {
    /// Creates a verification of an image that was just written, against the records made while its disk was
    /// read: all of it, and the SHA-256 of the file.
    #[must_use]
    pub fn of_new(
        file: &'a dyn ImageFile,
        location: Location,
        manifest: &'a Manifest,
        clock: &'a dyn Clock,
        cancel: Cancel,
    ) -> Self {
        Self {
            file,
            location,
            manifest: Some(manifest),
            sha256: Sha256Wanted::Taken,
            against: None,
            limits: Limits { largest_disk: manifest.image.virtual_size, ..Limits::default() },
            options: Options::default(),
            clock,
            cancel,
            counters: Arc::default(),
        }
    }

    /// Runs the verification. Blocks. Calls `begin` with the number of bytes to decode, before the first is
    /// decoded.
    ///
    /// # Errors
    /// If the image is refused or can't be read, or the disk can't. Defects of bytes that were read are in
    /// the verdict.
    pub fn run(self, begin: &dyn Fn(ByteCount)) -> Result<Verdict, RestoreError> {
        let begun = self.clock.instant();
        if let Some(manifest) = self.manifest {
            check_manifest(manifest)
                .map_err(|source| RestoreError::Unusable { name: self.file.name().to_owned(), source })?;
        }
        let image = Image::open(self.file, &self.limits)?;
        let mappings = Arc::new(image.load(self.file)?);
        let expected = self.expected_sha256();
        let sums = match (&expected, self.sha256, self.manifest) {
            (None, Sha256Wanted::No, None) => RequestedSums::None,
            (None, Sha256Wanted::No, Some(_)) => RequestedSums::Crc64,
            _ => RequestedSums::Both,
        };
        let cover = if sums == RequestedSums::None { Cover::Bodies } else { Cover::WholeFile };
        let options = Options { cover, ..self.options };
        let plan = Plan::new(&mappings, self.file.size(), self.location, &options, cores())?;
        let plan = plan.within(self.location, &options, &Allowance::of_process())?;
        begin(plan.mapped());
        let hashes = self.manifest.map(|manifest| Arc::new(ChunkHashes::new(manifest.source.size)));
        let damaged = Arc::new(BadBodies::default());
        let comparison = self.against.map(Comparison::new);
        let sink: &dyn Sink = comparison.as_ref().map_or(&Nothing, |comparison| comparison);
        let reading = Reading {
            file: self.file,
            mappings: &mappings,
            codec: image.header().compression,
            plan: &plan,
            sink,
            hashes: hashes.as_ref(),
            damaged: Some(&damaged),
            sums,
            cancel: self.cancel.clone(),
            counters: Arc::clone(&self.counters),
        };
        let sums = reading.run()?;
        let mut found = Findings::default();
        let (bad, count) = damaged.first();
        found.add_first(bad.into_iter().map(Finding::Body), count);
        self.check_sizes(&mappings, &mut found);
        self.check_sums(sums, expected, &mut found);
        let mut segments_checked = 0;
        if let (Some(manifest), Some(hashes)) = (self.manifest, hashes) {
            let (differing, compared) = hashes.compare(manifest);
            segments_checked = compared;
            let count = to_u64(differing.len());
            found.add_first(differing.into_iter().map(Finding::Hash), count);
        }
        if let (Some(comparison), Some(against)) = (&comparison, self.against) {
            comparison.finish(&mappings, &Context::new(&self.cancel, &self.counters))?;
            against.settle().map_err(RestoreError::Source)?;
            let Differences { first, count } = comparison.differences();
            found.add_first(first.into_iter().map(Finding::Differs), count);
        }
        let hashed = self.manifest.map_or(0, hashed_segments);
        Ok(Verdict {
            image: self.file.name().to_owned(),
            good: found.listed.is_empty(),
            virtual_size: image.virtual_size(),
            file_size: self.file.size(),
            clusters: plan.clusters(),
            bytes_fetched: self.counters.totals().fetched,
            manifest: self.manifest.is_some(),
            segments_checked,
            segments_without_hash: self.manifest.map_or(0, |manifest| to_u64(manifest.segments.len()))
                - hashed,
            crc64nvme: sums.crc64,
            sha256: sums.sha256,
            against: self.against.map(|source| source.name().to_owned()),
            findings: found.listed,
            more_findings: found.more,
            peak_memory: plan.peak_memory(),
            took: self.clock.instant().duration_since(begun),
        })
    }

    /// Returns the SHA-256 that the file must have: the one that the user gave, otherwise that of the
    /// manifest.
    fn expected_sha256(&self) -> Option<String> {
        match self.sha256 {
            Sha256Wanted::MustBe(sum) => Some(sum.to_string()),
            Sha256Wanted::No | Sha256Wanted::Taken => self.manifest?.image.sha256.clone(),
        }
    }

    fn check_sizes(&self, mappings: &Mappings, found: &mut Findings) {
        let disk = mappings.virtual_size();
        let mut expected: Vec<ByteCount> = Vec::new();
        if let Some(manifest) = self.manifest {
            if manifest.image.size != self.file.size() {
                found.add(Finding::FileSize { expected: manifest.image.size, found: self.file.size() });
            }
            expected.push(manifest.image.virtual_size);
        }
        // The disk in an image is a multiple of whole sectors.
        expected.extend(self.against.map(|source| ByteCount(source.size().0.next_multiple_of(SECTOR))));
        for expected in expected.into_iter().filter(|expected| *expected != disk) {
            found.add(Finding::DiskSize { expected, found: disk });
        }
    }

    fn check_sums(&self, sums: Sums, expected: Option<String>, found: &mut Findings) {
        if let (Some(manifest), Some(crc64)) = (self.manifest, sums.crc64)
            && crc64 != manifest.image.crc64
        {
            found.add(Finding::Crc64 { expected: manifest.image.crc64, found: crc64 });
        }
        if let (Some(expected), Some(sha256)) = (expected, sums.sha256)
            && !expected.eq_ignore_ascii_case(&sha256.to_string())
        {
            found.add(Finding::Sha256 { expected, found: sha256 });
        }
    }
}

/// Sink for a verification without a disk to compare with. The decoded bytes have been hashed already.
struct Nothing;

impl Sink for Nothing {
    fn take(&self, _: &Piece) -> Result<(), RestoreError> {
        Ok(())
    }
}
