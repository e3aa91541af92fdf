//! Any source to a raw disk: the bytes as they are, with zeros left out or written as asked.
//!
//! Threads take pieces of the disk in order, and each reads, looks for zeros and writes by itself. A source that decodes as it is read
//! ([`crate::image::ImageSource`]) is so decoded on all of them.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::limits::Allowance;
use snapferry_base::threads;
use snapferry_base::units::{ByteCount, GIB, GuestOffset, SECTOR, to_u64, to_usize};

use super::target::{DeviceTarget, FileTarget, PageCache, Target};
use super::{Force, ZeroPolicy};
use crate::compress::{cores, is_zero};
use crate::error::{RestoreError, count};
use crate::hash::CHUNK;
use crate::image::READER;
use crate::image::plan::BASE;
use crate::source::aligned::AlignedBuf;
use crate::source::{Extent, Source};

/// Threads beside two for each core: most of them wait for disks, while the others decode.
const WAITING: usize = 4;
/// The least stretch of zeros that is left out: a page.
const LEAST_GRAIN: usize = 4096;
/// The least stretch of zeros that the kernel is asked for, rather than given: a request takes about as long as writing so much.
const LEAST_ZEROED: usize = 64 << 10;

/// Where the disk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawPlace<'a> {
    /// A file that is made, under a hidden name until it is whole; one of that name is replaced, or written over where it can't be.
    New(&'a Path),
    /// A block device, or a file that is long enough: written where it lies, and left half written when that fails.
    Existing(&'a Path),
}

/// What becomes of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Left out of a new file; on what was there before, taken care of as the policy says. Stretches of fewer bytes than the grain
    /// are written.
    Sparse {
        /// Bytes, at least a page.
        grain: ByteCount,
        /// For what was there before.
        policy: ZeroPolicy,
    },
    /// Written like everything else.
    Stored,
}

/// A copy to be made.
pub struct Copying<'a> {
    /// The disk.
    pub source: &'a dyn Source,
    /// Where it goes.
    pub to: RawPlace<'a>,
    /// What becomes of zeros.
    pub zeros: Zeros,
    /// Stops the work from outside.
    pub cancel: Cancel,
    /// Bytes of the disk that are through, written while the work goes on.
    pub done: &'a AtomicU64,
}

/// What a thread is to do next.
enum Job {
    Copy(Range<u64>),
    Zero(Range<u64>),
}

/// The next piece, and what the source said last.
struct Cursor {
    at: u64,
    extent: Extent,
}

impl Copying<'_> {
    /// Copies. Blocks. The target's bytes are on the disk when it returns.
    ///
    /// # Errors
    /// With the first error; [`RestoreError::Incomplete`] around it where something was there before and is of no use now.
    pub fn run(self) -> Result<(), RestoreError> {
        let size = ByteCount(self.source.size().0.next_multiple_of(SECTOR));
        let policy = match self.zeros {
            Zeros::Sparse { policy, .. } => policy,
            Zeros::Stored => ZeroPolicy::Write,
        };
        let target = match self.to {
            RawPlace::New(path) => {
                Target::File(FileTarget::create(path, size, Force::Yes, PageCache::Bypass)?)
            }
            RawPlace::Existing(path) => Target::Device(DeviceTarget::overwrite(path, size, policy)?),
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
        let wanted = Allowance::of_process().threads(2 * cores().get() + WAITING, CHUNK.0 + READER, BASE);
        let ended = threads::together("copy", wanted, || {
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
            return Err(RestoreError::Interrupted);
        }
        let copied = ended.map_err(|_died| RestoreError::StageDied { stage: "copying" })?;
        count("bytes of the disk were written or zeroed", copied.into_iter().sum(), size)?;
        self.source.settle().map_err(RestoreError::Source)
    }

    /// Gives the bytes of the disk that this thread has brought to the target.
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
        // A chunk never crosses into the next one, so that whole clusters are decoded once.
        let chunk_end = (at / CHUNK.0 + 1) * CHUNK.0;
        let job = match (cursor.extent, self.zeros) {
            (Extent::Hole { end }, Zeros::Sparse { .. }) => {
                let end = if end.0 >= self.source.size().0 { size } else { end.0 };
                // Only whole pages: what is copied begins where O_DIRECT can write.
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

    /// Writes what holds something, and takes care of the zeros between.
    fn write(&self, target: &Target, start: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let Zeros::Sparse { grain, .. } = self.zeros else {
            return Ok(target.disk().write(bytes, GuestOffset(start))?);
        };
        let least = match self.to {
            RawPlace::New(_) => LEAST_GRAIN,
            RawPlace::Existing(_) => LEAST_ZEROED,
        };
        let grain = to_usize(grain.0).clamp(least, to_usize(CHUNK.0));
        let mut at = 0;
        let blocks: Vec<(bool, usize)> =
            bytes.chunks(grain).map(|block| (is_zero(block), block.len())).collect();
        for run in blocks.chunk_by(|one, next| one.0 == next.0) {
            let len: usize = run.iter().map(|(_, len)| len).sum();
            let place = start + to_u64(at);
            if run[0].0 {
                self.zero(target, place..place + to_u64(len))?;
            } else {
                target.disk().write(&bytes[at..at + len], GuestOffset(place))?;
            }
            at += len;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
