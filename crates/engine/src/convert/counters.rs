//! What a running conversion has done so far: written by its stages once a chunk or part, read by whoever shows progress.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The stage that the others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// The source gives no more.
    Read,
    /// The cores are busy.
    Compress,
    /// The destination takes no more.
    Upload,
}

impl Bottleneck {
    /// As shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Compress => "compress",
            Self::Upload => "upload",
        }
    }
}

/// Running totals in bytes, and gauges. Relaxed throughout: each is right by itself, and nothing is decided by two of them together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Disk position up to which everything is in the image: bytes of the guest.
    pub(super) done: AtomicU64,
    /// Bytes read from the source.
    pub(super) read: AtomicU64,
    /// Bytes that were known to be zero without reading.
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
    /// How often each stage was found to be the one that others wait for, by `Bottleneck`'s order.
    pub(super) waits: [AtomicU64; 3],
}

/// The totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// See [`Counters`]: bytes of the guest that are in the image.
    pub done: u64,
    /// Bytes read from the source.
    pub read: u64,
    /// Bytes known to be zero without reading.
    pub holes: u64,
    /// Bytes of the guest that are zero.
    pub zero: u64,
    /// Bytes of the guest stored raw.
    pub raw: u64,
    /// Bytes of the image laid out.
    pub stored: u64,
    /// Bytes of the image confirmed by the destination.
    pub sent: u64,
    /// Times that read, compress and upload held the others up.
    pub waits: [u64; 3],
}

impl Counters {
    /// The totals now.
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

    /// Called once a chunk by the stage that starts reads.
    pub(super) fn note_bottleneck(&self, found: Bottleneck) {
        self.waits[found as usize].fetch_add(1, Relaxed);
    }
}

impl Totals {
    /// The stage that held the others up most since `earlier`, if any did.
    #[must_use]
    pub fn bottleneck_since(&self, earlier: &Self) -> Option<Bottleneck> {
        let found = [Bottleneck::Read, Bottleneck::Compress, Bottleneck::Upload];
        let waits =
            |stage: Bottleneck| self.waits[stage as usize].saturating_sub(earlier.waits[stage as usize]);
        found.into_iter().max_by_key(|&stage| waits(stage)).filter(|&stage| waits(stage) > 0)
    }
}
