//! The proof of a copy: every cluster decoded, every sum held against what was noted when the image was made.

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
use crate::image::plan::{Cover, Options, Origin, Plan};
use crate::image::{
    BadBodies, BadBody, ChunkHashes, Context, HashFinding, Piece, Reading, Sha256Sum, Sink, Sums, WantedSums,
    check_manifest, hashed_segments,
};
use crate::manifest::Manifest;
use crate::source::Source;

mod against;

pub use against::Comparison;

/// Hash findings that are kept at most; the others are counted.
const KEPT: usize = 16;

/// Whether the file's SHA-256 is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sha256Wanted {
    /// No.
    #[default]
    No,
    /// It is taken and told.
    Taken,
    /// It must be this one.
    MustBe(Sha256Sum),
}

/// An image to be verified, with everything that takes.
pub struct Verification<'a> {
    /// The image's bytes.
    pub file: &'a dyn ImageFile,
    /// What kind of place they come from.
    pub origin: Origin,
    /// What the image must hold.
    pub manifest: Option<&'a Manifest>,
    /// The SHA-256 of the file.
    pub sha256: Sha256Wanted,
    /// A disk that must hold the same.
    pub against: Option<&'a dyn Source>,
    /// What is put up with.
    pub limits: Limits,
    /// What the user chose; what is covered follows from the sums that are wanted.
    pub options: Options,
    /// Measures the time.
    pub clock: &'a dyn Clock,
    /// Stops the work from outside.
    pub cancel: Cancel,
    /// Written while the work goes on.
    pub counters: Arc<Counters>,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum Finding {
    /// A body does not decode.
    Body(BadBody),
    /// The file has another length than when it was made.
    FileSize {
        /// By the manifest.
        expected: ByteCount,
        /// As it is.
        found: ByteCount,
    },
    /// The disk in it has another size than the one that was read.
    DiskSize {
        /// By the manifest, or the disk compared with.
        expected: ByteCount,
        /// As it is.
        found: ByteCount,
    },
    /// The file's CRC64NVME is another.
    Crc64 {
        /// By the manifest.
        expected: Crc64,
        /// As it is.
        found: Crc64,
    },
    /// The file's SHA-256 is another.
    Sha256 {
        /// As asked for, or by the manifest.
        expected: String,
        /// As it is.
        found: Sha256Sum,
    },
    /// What was decoded is not what was read from the disk.
    Hash(HashFinding),
    /// The disk holds something else.
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

/// What a verification found.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The image, as named.
    pub image: String,
    /// Whether nothing was found wrong.
    pub good: bool,
    /// Bytes of the disk in it.
    pub virtual_size: ByteCount,
    /// Bytes of the file.
    pub file_size: ByteCount,
    /// Clusters that hold anything: all of them were decoded.
    pub clusters: u64,
    /// Bytes of the file fetched for that. What was read before of its header and tables, to find them, is not counted.
    pub bytes_fetched: u64,
    /// Whether a manifest was there to check against.
    pub manifest: bool,
    /// Segments whose BLAKE3 was compared with the manifest's.
    pub segments_checked: u64,
    /// Segments that the manifest has no hash of.
    pub segments_without_hash: u64,
    /// The file's CRC64NVME, where it was taken.
    pub crc64nvme: Option<Crc64>,
    /// The file's SHA-256, where it was taken.
    pub sha256: Option<Sha256Sum>,
    /// The disk that every byte was compared with.
    pub against: Option<String>,
    /// What is wrong: of each kind the first on the disk.
    pub findings: Vec<Finding>,
    /// More of the same kinds, which are not listed.
    pub more_findings: u64,
    /// Memory at most, by the plan.
    pub peak_memory: ByteCount,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
}

fn seconds<S: serde::Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(took.as_secs_f64())
}

/// What was found so far.
#[derive(Default)]
struct Found {
    listed: Vec<Finding>,
    more: u64,
}

impl Found {
    fn add(&mut self, finding: Finding) {
        self.listed.push(finding);
    }

    /// Adds the first ones of many.
    fn add_first(&mut self, first: impl IntoIterator<Item = Finding>, count: u64) {
        let before = self.listed.len();
        self.listed.extend(first.into_iter().take(KEPT));
        self.more += count - to_u64(self.listed.len() - before);
    }
}

impl<'a> Verification<'a> {
    /// Of an image that was just written, against what was noted while its disk was read: all of it, and the file's SHA-256.
    #[must_use]
    pub fn of_new(
        file: &'a dyn ImageFile,
        origin: Origin,
        manifest: &'a Manifest,
        clock: &'a dyn Clock,
        cancel: Cancel,
    ) -> Self {
        Self {
            file,
            origin,
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

    /// Verifies. Blocks. `begin` is told how many bytes will be decoded before the first is.
    ///
    /// # Errors
    /// Where the image is refused or can't be read, or the disk can't; what is wrong with what was read is in the verdict.
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
            (None, Sha256Wanted::No, None) => WantedSums::None,
            (None, Sha256Wanted::No, Some(_)) => WantedSums::Crc64,
            _ => WantedSums::Both,
        };
        let cover = if sums == WantedSums::None { Cover::Bodies } else { Cover::WholeFile };
        let options = Options { cover, ..self.options };
        let plan = Plan::new(&mappings, self.file.size(), self.origin, &options, cores())?;
        let plan = plan.within(self.origin, &options, &Allowance::of_process())?;
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
        let mut found = Found::default();
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

    /// What the file's SHA-256 must be: as asked for, else as the manifest says.
    fn expected_sha256(&self) -> Option<String> {
        match self.sha256 {
            Sha256Wanted::MustBe(sum) => Some(sum.to_string()),
            Sha256Wanted::No | Sha256Wanted::Taken => self.manifest?.image.sha256.clone(),
        }
    }

    fn check_sizes(&self, mappings: &Mappings, found: &mut Found) {
        let disk = mappings.virtual_size();
        let mut expected: Vec<ByteCount> = Vec::new();
        if let Some(manifest) = self.manifest {
            if manifest.image.size != self.file.size() {
                found.add(Finding::FileSize { expected: manifest.image.size, found: self.file.size() });
            }
            expected.push(manifest.image.virtual_size);
        }
        // An image holds whole sectors.
        expected.extend(self.against.map(|source| ByteCount(source.size().0.next_multiple_of(SECTOR))));
        for expected in expected.into_iter().filter(|expected| *expected != disk) {
            found.add(Finding::DiskSize { expected, found: disk });
        }
    }

    fn check_sums(&self, sums: Sums, expected: Option<String>, found: &mut Found) {
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

/// For a verification without a disk to compare with: what was decoded has been hashed already.
struct Nothing;

impl Sink for Nothing {
    fn take(&self, _: &Piece) -> Result<(), RestoreError> {
        Ok(())
    }
}
