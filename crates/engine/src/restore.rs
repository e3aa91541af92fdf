//! Restores an image to a disk.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::limits::Allowance;
use snapferry_base::threads;
use snapferry_base::units::{ByteCount, GuestOffset, MIB, to_u64, to_usize};
use snapferry_qcow2::{Image, ImageFile, Limits, Mappings};

use crate::compress::{Codec, cores, is_zero};
use crate::disk::{DeviceTarget, Disk, Existing, FileTarget, PageCache, Target, TargetError, ZeroPolicy};
use crate::error::{RestoreError, check_count};
use crate::image::counters::Counters;
use crate::image::plan::{Options, Plan, unmapped};
use crate::image::{ChunkHashes, Piece, Reading, RequestedSums, Sink, check_sizes};
use crate::manifest::Manifest;
use crate::pipeline::PipelineError;
use crate::store::Location;
use crate::store::Overwrite;

/// Number of bytes at the start of a device that are written last: as long as they are zero, there is no
/// partition table and no boot sector, so nothing takes the incomplete content for a disk.
const LAST: u64 = MIB;
/// Size in bytes of the blocks that are left out of files if they are zero.
const HOLE: usize = 64 << 10;

/// Target of a restore.
#[derive(Clone, Debug)]
pub enum Destination {
    File {
        path: PathBuf,
        /// Permission to replace a file of that name.
        overwrite: Overwrite,
        /// Use of the page cache by the writes.
        cache: PageCache,
    },
    Device {
        path: PathBuf,
        /// Permission to destroy the content of the device.
        overwrite: Overwrite,
        /// Treatment of the ranges of the device where the image holds zeros.
        zero: ZeroPolicy,
    },
}

/// Parameters of a restore.
pub struct Restoration<'a> {
    /// Bytes of the image.
    pub file: &'a dyn ImageFile,
    /// Location of the image.
    pub location: Location,
    /// Target of the restore.
    pub destination: &'a Destination,
    /// Manifest that the disk must match.
    pub manifest: Option<&'a Manifest>,
    /// Limits on tables that are accepted from the image.
    pub limits: Limits,
    /// Choices of the user.
    pub options: Options,
    /// Clock that measures the duration.
    pub clock: &'a dyn Clock,
    /// Stops the work from outside.
    pub cancel: Cancel,
    /// Progress, updated while the work is running.
    pub counters: Arc<Counters>,
}

/// Result of a successful restore.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Size of the disk in bytes.
    pub virtual_size: ByteCount,
    /// Bytes of the disk that the image stores.
    pub mapped: ByteCount,
    /// Bytes of the image that were fetched, without its tables.
    pub fetched: ByteCount,
    /// Number of segments whose hash was compared with the manifest.
    pub segments_checked: u64,
    /// Most memory that the work takes in bytes, by the plan.
    pub peak_memory: ByteCount,
    /// Duration of the restore.
    pub took: Duration,
}

/// Restore that is planned and was not begun yet.
pub struct Prepared {
    image: Image,
    mappings: Arc<Mappings>,
    plan: Plan,
    /// Duration of the preparation, which counts as part of the restore.
    took: Duration,
}

impl Prepared {
    /// Returns the size of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        self.image.virtual_size()
    }

    /// Returns the number of bytes of the disk that the image stores.
    #[must_use]
    pub fn mapped(&self) -> ByteCount {
        self.plan.mapped()
    }
}

impl Destination {
    /// Looks at the target of a disk of `size` bytes, without opening it for writing.
    ///
    /// # Errors
    /// If a restore would refuse the target.
    pub fn examine(&self, size: ByteCount) -> Result<Existing, TargetError> {
        match self {
            Self::File { path, overwrite, .. } => FileTarget::examine(path, *overwrite),
            Self::Device { path, overwrite, .. } => DeviceTarget::examine(path, size, *overwrite),
        }
    }
}

impl Restoration<'_> {
    /// Reads the image's tables, and plans the work. Nothing is written.
    ///
    /// # Errors
    /// If the image is refused, does not fit the manifest, or the limits of this process are too tight.
    pub fn prepare(&self) -> Result<Prepared, RestoreError> {
        let begun = self.clock.instant();
        let image = Image::open(self.file, &self.limits)?;
        let mappings = Arc::new(image.load(self.file)?);
        let plan = Plan::new(&mappings, self.file.size(), self.location, &self.options, cores())?;
        let plan = plan.within(self.location, &self.options, &Allowance::of_process())?;
        if let Some(manifest) = self.manifest {
            let name = self.file.name().to_owned();
            check_sizes(manifest, self.file.size(), image.virtual_size())
                .map_err(|source| RestoreError::Unusable { name, source })?;
        }
        let took = self.clock.instant().duration_since(begun);
        Ok(Prepared { image, mappings, plan, took })
    }

    /// Runs the restore. Blocks. Calls `begin` with the number of bytes to decode, before the first is
    /// decoded.
    ///
    /// # Errors
    /// With the first real error. [`RestoreError::Incomplete`] wraps it if the target was written to and is
    /// of no use now.
    pub fn run(self, prepared: Prepared, begin: &dyn Fn(ByteCount)) -> Result<Restored, RestoreError> {
        let begun = self.clock.instant();
        let Prepared { image, mappings, plan, took: prepared_in } = prepared;
        let size = image.virtual_size();
        let target = match self.destination {
            Destination::File { path, overwrite, cache } => {
                Target::File(FileTarget::create(path, size, *overwrite, *cache)?)
            }
            Destination::Device { path, overwrite, zero } => {
                Target::Device(DeviceTarget::open(path, size, *overwrite, *zero)?)
            }
        };
        begin(plan.mapped());
        let codec = image.header().compression;
        let (name, in_place) = (target.disk().path.to_owned(), target.is_in_place());
        let finished = self.fill(&target, &mappings, codec, &plan).and_then(|segments_checked| {
            if let Target::File(file) = target {
                file.publish()?;
            }
            Ok(Restored {
                virtual_size: size,
                mapped: plan.mapped(),
                fetched: ByteCount(self.counters.totals().fetched),
                segments_checked,
                peak_memory: plan.peak_memory(),
                took: prepared_in + self.clock.instant().duration_since(begun),
            })
        });
        finished.map_err(|error| match error {
            // A new file has been removed, and a device that is read-only has received nothing.
            error if !in_place => error,
            error @ RestoreError::Target(TargetError::ReadOnly { .. }) => error,
            error => RestoreError::Incomplete { target: name, source: Box::new(error) },
        })
    }

    /// Writes the disk to the target, and returns the number of segments that were compared with the
    /// manifest.
    fn fill(
        &self,
        target: &Target,
        mappings: &Arc<Mappings>,
        codec: Codec,
        plan: &Plan,
    ) -> Result<u64, RestoreError> {
        let hashes = self.manifest.map(|manifest| Arc::new(ChunkHashes::new(manifest.source.size)));
        let writer = Writer::new(target, mappings.virtual_size());
        writer.wipe()?;
        let reading = Reading {
            file: self.file,
            mappings,
            codec,
            plan,
            sink: &writer,
            hashes: hashes.as_ref(),
            damaged: None,
            sums: RequestedSums::None,
            cancel: self.cancel.clone(),
            counters: Arc::clone(&self.counters),
        };
        let zero = || {
            let zeroed = writer.zero(mappings, &|| !self.cancel.is_cancelled());
            if zeroed.is_err() {
                self.cancel.cancel(Reason::Failed);
            }
            zeroed
        };
        let zeroed = thread::scope(|scope| {
            let zeroing = threads::spawn_scoped(scope, "zero", zero);
            // If the system refuses the thread, the zeroing is done before all else.
            let zeroed = if zeroing.is_err() { zero() } else { Ok(()) };
            let read = if zeroed.is_ok() { reading.run().map(drop) } else { Ok(()) };
            let zeroed = zeroing.map_or(zeroed, |zeroing| {
                zeroing
                    .join()
                    .unwrap_or(Err(RestoreError::Pipeline(PipelineError::StageDied { stage: "zeroing" })))
            });
            // If both failed, the error of the reader came first, unless the reader has none of its own.
            match (read, zeroed) {
                (Err(RestoreError::Pipeline(PipelineError::StageDied { .. })) | Ok(()), Err(error)) => {
                    Err(error)
                }
                (Err(error), _) => Err(error),
                (Ok(()), Ok(())) => Ok(()),
            }
        });
        zeroed?;
        // Zeroing ends early without an error if the user cancels the work.
        if self.cancel.is_cancelled() {
            return Err(RestoreError::Pipeline(PipelineError::Interrupted));
        }
        check_count(
            "bytes of the disk were written or zeroed",
            writer.accounted.load(Relaxed),
            mappings.virtual_size().0,
        )?;
        let mut segments_checked = 0;
        if let (Some(hashes), Some(manifest)) = (hashes, self.manifest) {
            let (findings, compared) = hashes.compare(manifest);
            segments_checked = compared;
            if let Some(finding) = findings.into_iter().next() {
                return Err(RestoreError::Manifest { name: self.file.name().to_owned(), finding });
            }
        }
        writer.finish()?;
        Ok(segments_checked)
    }
}

/// Sink that writes pieces to the target.
struct Writer<'a> {
    target: &'a Target,
    /// First bytes of a device, kept until all others are written.
    first: Mutex<Vec<u8>>,
    /// Number of bytes in `first`; zero for a file.
    held: u64,
    /// Bytes of the disk that were written, or are zeros as they must be.
    accounted: AtomicU64,
}

impl<'a> Writer<'a> {
    fn new(target: &'a Target, size: ByteCount) -> Self {
        let held = match target {
            Target::File(_) => 0,
            Target::Device(_) => to_usize(LAST.min(size.0)),
        };
        Self { target, first: Mutex::new(vec![0; held]), held: to_u64(held), accounted: AtomicU64::new(0) }
    }

    fn disk(&self) -> Disk<'_> {
        self.target.disk()
    }

    fn first(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroes the first bytes of a device, so that nothing takes its old content for complete any more.
    fn wipe(&self) -> Result<(), RestoreError> {
        let zeros = self.first();
        if !zeros.is_empty() {
            self.disk().write(&zeros, GuestOffset(0))?;
            self.disk().sync()?;
        }
        Ok(())
    }

    /// Zeroes the ranges that the image does not store. A new file is all zeros already.
    fn zero(&self, mappings: &Mappings, go_on: &dyn Fn() -> bool) -> Result<(), RestoreError> {
        let held = self.held;
        for Range { start, end } in unmapped(mappings) {
            let from = start.max(held);
            if let Target::Device(device) = self.target
                && from < end
                && go_on()
            {
                device.zero(from..end, go_on)?;
            }
            self.accounted.fetch_add(end - start, Relaxed);
        }
        Ok(())
    }

    /// Writes the first bytes of a device, after all others are on the disk.
    fn finish(&self) -> Result<(), RestoreError> {
        let first = self.first();
        if !first.is_empty() {
            self.disk().sync()?;
            self.disk().write(&first, GuestOffset(0))?;
            self.disk().sync()?;
        }
        Ok(())
    }

    /// Writes the blocks that are not zero. The others stay holes of the file.
    fn write_sparse(&self, start: GuestOffset, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut open: Option<Range<usize>> = None;
        for (from, piece) in (0..).step_by(HOLE).zip(bytes.chunks(HOLE)) {
            if is_zero(piece) {
                self.write_range(start, bytes, open.take())?;
            } else {
                open = Some(open.map_or(from, |open| open.start)..from + piece.len());
            }
        }
        self.write_range(start, bytes, open)
    }

    fn write_range(
        &self,
        start: GuestOffset,
        bytes: &[u8],
        range: Option<Range<usize>>,
    ) -> Result<(), RestoreError> {
        if let Some(range) = range {
            self.disk().write(&bytes[range.clone()], start + to_u64(range.start))?;
        }
        Ok(())
    }
}

impl Sink for Writer<'_> {
    fn take(&self, piece: &Piece) -> Result<(), RestoreError> {
        for (start, bytes) in piece.runs() {
            // Counted before the write, because an error ends the work.
            self.accounted.fetch_add(to_u64(bytes.len()), Relaxed);
            if let Target::File(_) = self.target {
                self.write_sparse(start, bytes)?;
                continue;
            }
            let (mut start, mut bytes) = (start, bytes);
            let held = self.held;
            if start.0 < held {
                let kept = bytes.len().min(to_usize(held - start.0));
                let from = to_usize(start.0);
                self.first()[from..from + kept].copy_from_slice(&bytes[..kept]);
                (start, bytes) = (start + to_u64(kept), &bytes[kept..]);
            }
            if !bytes.is_empty() {
                self.disk().write(bytes, start)?;
            }
        }
        Ok(())
    }
}
