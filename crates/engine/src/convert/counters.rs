//! Progress of a running conversion: its stages write it once per chunk or part, and the progress display
//! reads it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Stage that the other stages wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// The source delivers no more.
    Read,
    /// All cores are busy.
    Compress,
    /// The destination accepts no more.
    Upload,
}

impl Bottleneck {
    /// Returns the name that the progress display shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Compress => "compress",
            Self::Upload => "upload",
        }
    }
}

/// Running totals in bytes, and gauges. Every access is relaxed: each value is right by itself, and no
/// decision depends on two of them together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Guest bytes that are in the image, those of attempts that were given up included.
    done: AtomicU64,
    /// Value of `done` when the present attempt began.
    done_before: AtomicU64,
    /// Bytes read from the source, in all attempts.
    pub(super) read: AtomicU64,
    /// Bytes that were known to be zero without a read.
    pub(super) holes: AtomicU64,
    /// Bytes of guest clusters that hold only zeros, holes included.
    pub(super) zero: AtomicU64,
    /// Bytes of guest clusters stored raw.
    pub(super) raw: AtomicU64,
    /// Bytes of the image laid out so far, those of attempts that were given up included.
    stored: AtomicU64,
    /// Value of `stored` when the present attempt began.
    stored_before: AtomicU64,
    /// Bytes that were sent and that the destination has confirmed, in all attempts.
    pub(super) sent: AtomicU64,
    /// Bytes that the store has copied from an older image, in all attempts.
    pub(super) copied: AtomicU64,
    /// Bytes of the disk that did not change since the older image.
    pub(super) unchanged: AtomicU64,
    /// Compression jobs that wait or run.
    pub(super) jobs: AtomicUsize,
    /// Number of times that each stage was found to be the one that others wait for, in `Bottleneck`'s order.
    pub(super) waits: [AtomicU64; 3],
}

/// Totals of [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Guest bytes that are in the image.
    pub done: u64,
    /// The same, with those of attempts that were given up. Never decreases.
    pub done_in_all: u64,
    /// Bytes read from the source.
    pub read: u64,
    /// Bytes known to be zero without a read.
    pub holes: u64,
    /// Guest bytes that are zero.
    pub zero: u64,
    /// Guest bytes that are stored raw.
    pub raw: u64,
    /// Bytes of the image laid out.
    pub stored: u64,
    /// The same, with those of attempts that were given up. Never decreases.
    pub stored_in_all: u64,
    /// Bytes sent and confirmed by the destination.
    pub sent: u64,
    /// Bytes that the store has copied from an older image.
    pub copied: u64,
    /// Guest bytes that did not change since the older image.
    pub unchanged: u64,
    /// Times that read, compress and upload held the others up.
    pub waits: [u64; 3],
}

impl Counters {
    /// Returns the totals at this moment.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (done, stored) = (self.done.load(Relaxed), self.stored.load(Relaxed));
        Totals {
            done: done.saturating_sub(self.done_before.load(Relaxed)),
            done_in_all: done,
            read: self.read.load(Relaxed),
            holes: self.holes.load(Relaxed),
            zero: self.zero.load(Relaxed),
            raw: self.raw.load(Relaxed),
            stored: stored.saturating_sub(self.stored_before.load(Relaxed)),
            stored_in_all: stored,
            sent: self.sent.load(Relaxed),
            copied: self.copied.load(Relaxed),
            unchanged: self.unchanged.load(Relaxed),
            waits: [0, 1, 2].map(|stage: usize| self.waits[stage].load(Relaxed)),
        }
    }

    /// Sets the offset on the disk up to which everything is in the image.
    pub(super) fn set_done(&self, end: u64) {
        self.done.store(self.done_before.load(Relaxed) + end, Relaxed);
    }

    /// Sets the length of the image so far.
    pub(super) fn set_stored(&self, len: u64) {
        self.stored.store(self.stored_before.load(Relaxed) + len, Relaxed);
    }

    /// Begins another attempt at the same image. Sums over all attempts go on, so that no metric decreases.
    pub(super) fn begin_again(&self) {
        self.done_before.store(self.done.load(Relaxed), Relaxed);
        self.stored_before.store(self.stored.load(Relaxed), Relaxed);
        for of_one_attempt in [&self.holes, &self.zero, &self.raw, &self.unchanged] {
            of_one_attempt.store(0, Relaxed);
        }
    }

    /// Counts a stage as the bottleneck. The stage that starts reads calls it once per chunk.
    pub(super) fn note_bottleneck(&self, found: Bottleneck) {
        self.waits[found as usize].fetch_add(1, Relaxed);
    }
}

impl Totals {
    /// Returns the stage that delayed the others most since `earlier`, if any did.
    #[must_use]
    pub fn bottleneck_since(&self, earlier: &Self) -> Option<Bottleneck> {
        let found = [Bottleneck::Read, Bottleneck::Compress, Bottleneck::Upload];
        let waits =
            |stage: Bottleneck| self.waits[stage as usize].saturating_sub(earlier.waits[stage as usize]);
        found.into_iter().max_by_key(|&stage| waits(stage)).filter(|&stage| waits(stage) > 0)
    }
}
