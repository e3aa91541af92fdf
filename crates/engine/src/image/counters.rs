//! Progress of a running restore or verification. Its stages update it once for each batch or piece; the
//! progress display reads it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Stage that the other stages wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// The file or bucket of the image delivers no faster.
    Fetch,
    /// The processor cores are busy.
    Decode,
    /// The target accepts no more, or the disk that is compared delivers no faster.
    Sink,
}

impl Bottleneck {
    /// Returns the name that the progress display shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Sink => "disk",
        }
    }
}

/// Running totals and gauges. All accesses are relaxed: each value is right by itself, and those that must
/// agree are compared after all threads have ended.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the image fetched.
    pub(super) fetched: AtomicU64,
    /// Clusters decoded or found damaged.
    pub(super) clusters: AtomicU64,
    /// Bytes of the disk that the sink has taken.
    pub(super) done: AtomicU64,
    /// Clusters in the pieces that the sink has taken.
    pub(super) taken: AtomicU64,
    /// Decoding jobs that are waiting or running.
    pub(super) jobs: AtomicUsize,
    /// Number of times that each stage was the bottleneck, in the order of `Bottleneck`.
    waits: [AtomicU64; 3],
}

/// Snapshot of the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of the image fetched.
    pub fetched: u64,
    /// Bytes of the disk decoded and taken by the sink. Zeros that are not stored do not count.
    pub done: u64,
    /// Number of times that fetch, decode and the sink delayed the other stages.
    pub waits: [u64; 3],
}

impl Counters {
    /// Returns the current totals.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            fetched: self.fetched.load(Relaxed),
            done: self.done.load(Relaxed),
            waits: [0, 1, 2].map(|stage: usize| self.waits[stage].load(Relaxed)),
        }
    }

    pub(super) fn take(&self, bytes: u64, clusters: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.taken.fetch_add(clusters, Relaxed);
    }

    /// Counts `found` once. The stage that starts fetches calls this once for each batch.
    pub(super) fn note_bottleneck(&self, found: Bottleneck) {
        self.waits[found as usize].fetch_add(1, Relaxed);
    }
}

impl Totals {
    /// Returns the stage that delayed the others most often, if any did.
    #[must_use]
    pub fn bottleneck(&self) -> Option<Bottleneck> {
        let found = [Bottleneck::Fetch, Bottleneck::Decode, Bottleneck::Sink];
        found
            .into_iter()
            .max_by_key(|&stage| self.waits[stage as usize])
            .filter(|&stage| self.waits[stage as usize] > 0)
    }
}
