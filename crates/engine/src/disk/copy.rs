//! Copies any source to a raw disk: the bytes as they are, with zeros left out or written as requested.
//!
//! Threads take pieces of the disk in order, and each thread reads, looks for zeros and writes by itself. A
//! source that decodes as it is read ([`crate::image::ImageSource`]) is therefore decoded on all of them.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::limits::Allowance;
use snapferry_base::threads;
use snapferry_base::units::{ByteCount, GIB, GuestOffset, SECTOR, to_u64, to_usize};

use super::ZeroPolicy;
use super::target::{DeviceTarget, FileTarget, PageCache, Target};
use crate::compress::{cores, is_zero};
use crate::error::{RestoreError, check_count};
use crate::hash::CHUNK;
use crate::image::READER;
use crate::image::plan::BASE;
use crate::pipeline::PipelineError;
use crate::source::aligned::AlignedBuf;
use crate::source::{Extent, Source};
use crate::store::Overwrite;

/// Number of threads beside two for each core: most threads wait for disks, while the others decode.
const WAITING: usize = 4;
/// Shortest run of zeros that is left out, in bytes: a page.
const LEAST_GRAIN: usize = 4096;
/// Shortest run of zeros, in bytes, for which the kernel is asked to zero the range: the request takes about
/// as long as writing so many bytes.
const LEAST_ZEROED: usize = 64 << 10;

/// Target of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawDestination<'a> {
    /// New file that has a hidden name until it is complete. It replaces a file of that name, or overwrites
    /// it in place if it can't be replaced.
    New(&'a Path),
    /// Block device, or a file that is long enough. It is overwritten in place, and left half written if that
    /// fails.
    Existing(&'a Path),
}

/// Treatment of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Zeros are left out of a new file. On an existing target the policy decides. Runs that are shorter than
    /// the grain are written.
    Sparse {
        /// Shortest run of zeros that is left out, in bytes; at least a page.
        grain: ByteCount,
        /// Treatment of zeros on an existing target.
        policy: ZeroPolicy,
    },
    /// Zeros are written like all other bytes.
    Stored,
}

/// Copy of a source to a raw disk.
pub struct RawCopy<'a> {
    /// Disk to copy.
    pub source: &'a dyn Source,
    /// Target of the copy.
    pub to: RawDestination<'a>,
    pub zeros: Zeros,
    /// Stops the work from outside.
    pub cancel: Cancel,
    /// Bytes of the disk that were copied, updated while the work is running.
    pub done: &'a AtomicU64,
}

/// Next piece of work of a thread.
enum Job {
    Copy(Range<u64>),
    Zero(Range<u64>),
}

/// Next offset to copy, and the extent that the source reported last.
struct Cursor {
    at: u64,
    extent: Extent,
}

impl RawCopy<'_> {
    /// Runs the copy. Blocks until the bytes of the target are safely on the disk.
    ///
    /// # Errors
    /// With the first error. [`RestoreError::Incomplete`] wraps it if the target had content before and is of
    /// no use now.
    pub fn run(self) -> Result<(), RestoreError> {
        let size = ByteCount(self.source.size().0.next_multiple_of(SECTOR));
        let policy = match self.zeros {
            Zeros::Sparse { policy, .. } => policy,
            Zeros::Stored => ZeroPolicy::Write,
        };
        let target = match self.to {
            RawDestination::New(path) => {
                Target::File(FileTarget::create(path, size, Overwrite::Replace, PageCache::Bypass)?)
            }
            RawDestination::Existing(path) => Target::Device(DeviceTarget::overwrite(path, size, policy)?),
        };
        let (name, in_place) = (target.disk().path.to_owned(), target.is_in_place());
        let copied = self.copy(&target, size.0).and_then(|()| match target {
            Target::File(file) => file.publish().map_err(RestoreError::Target),
            Target::Device(device) => device.disk().sync().map_err(RestoreError::Target),
        });
        copied.map_err(|error| {
            if in_place { RestoreError::Incomplete { target: name, source: Box::new(error) } } else { error }
        })
    }

    fn copy(&self, target: &Target, size: u64) -> Result<(), RestoreError> {
        let cursor = Mutex::new(Cursor { at: 0, extent: Extent::Data { end: GuestOffset(0) } });
        let failed = Mutex::new(None);
        let thread_count =
            Allowance::of_process().threads(2 * cores().get() + WAITING, CHUNK.0 + READER, BASE);
        let ended = threads::run_on_threads("copy", thread_count, || {
            let served = self.serve(target, size, &cursor);
            served.unwrap_or_else(|error| {
                lock(&failed).get_or_insert(error);
                self.cancel.cancel(Reason::Failed);
                0
            })
        });
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        if self.cancel.is_cancelled() {
            return Err(RestoreError::Pipeline(PipelineError::Interrupted));
        }
        let copied =
            ended.map_err(|_died| RestoreError::Pipeline(PipelineError::StageDied { stage: "copying" }))?;
        check_count("bytes of the disk were written or zeroed", copied.into_iter().sum(), size)?;
        self.source.settle().map_err(RestoreError::Source)
    }

    /// Copies pieces until the end. Returns the number of bytes that this thread has written or zeroed.
    fn serve(&self, target: &Target, size: u64, cursor: &Mutex<Cursor>) -> Result<u64, RestoreError> {
        let (mut buf, mut copied) = (None, 0);
        while !self.cancel.is_cancelled() {
            let Some(job) = self.next(&mut lock(cursor), size)? else { break };
            let (Job::Copy(range) | Job::Zero(range)) = &job;
            let len = range.end - range.start;
            match job {
                Job::Zero(range) => self.zero(target, range)?,
                Job::Copy(range) => {
                    let buf = match &mut buf {
                        Some(buf) => buf,
                        none => none.insert(AlignedBuf::zeroed(to_usize(CHUNK.0))?),
                    };
                    let read = to_usize(len).next_multiple_of(self.source.alignment());
                    self.source
                        .read_at(GuestOffset(range.start), &mut buf[..read])
                        .map_err(RestoreError::Source)?;
                    self.write(target, range.start, &buf[..to_usize(len)])?;
                }
            }
            copied += len;
            self.done.fetch_add(len, Relaxed);
        }
        Ok(copied)
    }

    fn next(&self, cursor: &mut Cursor, size: u64) -> Result<Option<Job>, RestoreError> {
        let at = cursor.at;
        if at >= size {
            return Ok(None);
        }
        let (Extent::Data { end } | Extent::Hole { end }) = cursor.extent;
        if end.0 <= at {
            cursor.extent = self.source.extent_at(GuestOffset(at)).map_err(RestoreError::Source)?;
        }
        // No job crosses the start of a chunk, so that each whole cluster is decoded once.
        let chunk_end = (at / CHUNK.0 + 1) * CHUNK.0;
        let job = match (cursor.extent, self.zeros) {
            (Extent::Hole { end }, Zeros::Sparse { .. }) => {
                let end = if end.0 >= self.source.size().0 { size } else { end.0 };
                // The hole ends at the start of a chunk, so that the copy after it begins where O_DIRECT can
                // write.
                let end = if end == size { size } else { end / CHUNK.0 * CHUNK.0 };
                if end > at { Job::Zero(at..end.min(at + GIB)) } else { Job::Copy(at..chunk_end.min(size)) }
            }
            _ => Job::Copy(at..chunk_end.min(size)),
        };
        let (Job::Copy(range) | Job::Zero(range)) = &job;
        cursor.at = range.end;
        Ok(Some(job))
    }

    fn zero(&self, target: &Target, range: Range<u64>) -> Result<(), RestoreError> {
        match target {
            // A new file is all zeros already.
            Target::File(_) => Ok(()),
            Target::Device(device) => Ok(device.zero(range, &|| !self.cancel.is_cancelled())?),
        }
    }

    /// Writes the blocks that hold data, and zeroes the runs between them.
    fn write(&self, target: &Target, start: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let Zeros::Sparse { grain, .. } = self.zeros else {
            return Ok(target.disk().write(bytes, GuestOffset(start))?);
        };
        let least = match self.to {
            RawDestination::New(_) => LEAST_GRAIN,
            RawDestination::Existing(_) => LEAST_ZEROED,
        };
        let grain = to_usize(grain.0).clamp(least, to_usize(CHUNK.0));
        let mut at = 0;
        let blocks: Vec<(bool, usize)> =
            bytes.chunks(grain).map(|block| (is_zero(block), block.len())).collect();
        for run in blocks.chunk_by(|one, next| one.0 == next.0) {
            let len: usize = run.iter().map(|(_, len)| len).sum();
            let offset = start + to_u64(at);
            if run[0].0 {
                self.zero(target, offset..offset + to_u64(len))?;
            } else {
                target.disk().write(&bytes[at..at + len], GuestOffset(offset))?;
            }
            at += len;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
