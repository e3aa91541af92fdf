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
    /// Offset on the disk up to which everything is in the image, in guest bytes.
    pub(super) done: AtomicU64,
    /// Bytes read from the source.
    pub(super) read: AtomicU64,
    /// Bytes that were known to be zero without a read.
    pub(super) holes: AtomicU64,
    /// Bytes of guest clusters that hold only zeros, holes included.
    pub(super) zero: AtomicU64,
    /// Bytes of guest clusters stored raw.
    pub(super) raw: AtomicU64,
    /// Bytes of the image laid out so far.
    pub(super) stored: AtomicU64,
    /// Bytes of the image that the destination has confirmed.
    pub(super) sent: AtomicU64,
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
    /// Bytes of the image confirmed by the destination.
    pub sent: u64,
    /// Times that read, compress and upload held the others up.
    pub waits: [u64; 3],
}

impl Counters {
    /// Returns the totals at this moment.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            done: self.done.load(Relaxed),
            read: self.read.load(Relaxed),
            holes: self.holes.load(Relaxed),
            zero: self.zero.load(Relaxed),
            raw: self.raw.load(Relaxed),
            stored: self.stored.load(Relaxed),
            sent: self.sent.load(Relaxed),
            waits: [0, 1, 2].map(|stage: usize| self.waits[stage].load(Relaxed)),
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
