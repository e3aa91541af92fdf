//! Comparison of an image with a disk.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapferry_base::threads;
use snapferry_base::units::{GuestOffset, to_u64, to_usize};
use snapferry_qcow2::Mappings;

use crate::disk::{Differences, differences};
use crate::error::{RestoreError, check_count};
use crate::hash::CHUNK;
use crate::image::plan::{SINKS, unmapped};
use crate::image::{Context, Piece, Sink};
use crate::pipeline::PipelineError;
use crate::source::aligned::{AlignedBuf, BUFFER_ALIGNMENT};
use crate::source::{Extent, Source};

/// Compares every byte of an image with a disk: stored bytes as a [`Sink`], all others when the verification
/// ends.
pub struct Comparison<'a> {
    source: &'a dyn Source,
    found: Mutex<Differences>,
    /// Numbers of the chunks that did not come in one piece. [`Comparison::finish`] compares the zeros in
    /// them.
    partial: Mutex<BTreeSet<u64>>,
    buffers: Mutex<Vec<AlignedBuf>>,
    /// Bytes of the disk in the image that were compared.
    compared: AtomicU64,
}

impl<'a> Comparison<'a> {
    /// Creates a comparison with this disk.
    #[must_use]
    pub fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            found: Mutex::default(),
            partial: Mutex::default(),
            buffers: Mutex::default(),
            compared: AtomicU64::new(0),
        }
    }

    /// Returns the differences that were found so far.
    #[must_use]
    pub fn differences(&self) -> Differences {
        lock(&self.found).clone()
    }

    /// Compares the ranges that the image does not store with the disk, which must be zero there. Must be
    /// called after the last piece.
    ///
    /// # Errors
    /// If the disk can't be read, or the work is cancelled.
    pub(super) fn finish(&self, mappings: &Mappings, context: &Context) -> Result<(), RestoreError> {
        let gaps = Mutex::new(unmapped(mappings).flat_map(by_chunks));
        let size = mappings.virtual_size().0;
        let next = || {
            let mut gaps = lock(&gaps);
            gaps.find(|gap| {
                let whole =
                    gap.start.is_multiple_of(CHUNK.0) && (gap.end.is_multiple_of(CHUNK.0) || gap.end == size);
                // All other chunks hold stored data, and were compared as a whole with their piece.
                whole || lock(&self.partial).contains(&(gap.start / CHUNK.0))
            })
        };
        let ended = threads::run_on_threads("compare", SINKS, || self.compare_zeros(&next, context));
        context.verdict()?;
        ended.map_err(|_died| RestoreError::Pipeline(PipelineError::StageDied { stage: "comparison" }))?;
        check_count("bytes of the disk were compared", self.compared.load(Relaxed), size)
    }

    fn compare_zeros(&self, next: &dyn Fn() -> Option<Range<u64>>, context: &Context) {
        let mut hole = GuestOffset(0);
        while !context.cancel.is_cancelled()
            && let Some(gap) = next()
        {
            self.compared.fetch_add(gap.end - gap.start, Relaxed);
            if hole.0 < gap.end
                && let Ok(Extent::Hole { end }) = self.source.extent_at(GuestOffset(gap.start))
            {
                hole = end;
            }
            if hole.0 >= gap.end {
                continue;
            }
            let start = GuestOffset(gap.start / CHUNK.0 * CHUNK.0);
            let outcome = self.with_chunk(start, to_usize(gap.end - start.0), |bytes| {
                let from = to_usize(gap.start - start.0);
                self.compare(GuestOffset(gap.start), &bytes[from..], None);
            });
            if let Err(error) = outcome {
                context.fail(error);
            }
        }
    }

    /// Reads the first `len` bytes of a chunk of the disk, and calls `visit` with them.
    fn with_chunk(
        &self,
        start: GuestOffset,
        len: usize,
        visit: impl FnOnce(&[u8]),
    ) -> Result<(), RestoreError> {
        let idle = lock(&self.buffers).pop();
        let mut buf = match idle {
            Some(buf) => buf,
            None => AlignedBuf::zeroed(to_usize(CHUNK.0))?,
        };
        let read = self
            .source
            .read_at(start, &mut buf[..len.next_multiple_of(BUFFER_ALIGNMENT)])
            .map_err(RestoreError::Source);
        if read.is_ok() {
            visit(&buf[..len]);
        }
        lock(&self.buffers).push(buf);
        read
    }

    /// Records where `disk` differs from `image`, or from zeros.
    fn compare(&self, start: GuestOffset, disk: &[u8], image: Option<&[u8]>) {
        let found = differences(disk, image, start);
        if !found.is_empty() {
            lock(&self.found).add(found);
        }
    }
}

impl Sink for Comparison<'_> {
    fn take(&self, piece: &Piece) -> Result<(), RestoreError> {
        let start = piece.start();
        if piece.is_whole() {
            self.compared.fetch_add(to_u64(piece.len()), Relaxed);
            return self
                .with_chunk(start, piece.len(), |disk| self.compare(start, disk, Some(piece.chunk())));
        }
        lock(&self.partial).insert(start.0 / CHUNK.0);
        // Bytes that can't be decoded can't be compared; they are reported separately.
        self.compared.fetch_add(piece.mapped() + piece.undecoded(), Relaxed);
        self.with_chunk(start, piece.len(), |disk| {
            for (at, bytes) in piece.runs() {
                let from = to_usize(at.0 - start.0);
                self.compare(at, &disk[from..from + bytes.len()], Some(bytes));
            }
        })
    }

    fn wants_whole_chunks(&self) -> bool {
        true
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Divides a range of the disk at the start of every chunk.
fn by_chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = ((at / CHUNK.0 + 1) * CHUNK.0).min(range.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}
