//! What a running restore or verification has done so far: written by its stages once a batch or piece, read by whoever shows progress.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The stage that the others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// The image's file or bucket gives no more.
    Fetch,
    /// The cores are busy.
    Decode,
    /// The target takes no more, or what is compared gives no more.
    Sink,
}

impl Bottleneck {
    /// As shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Sink => "disk",
        }
    }
}

/// Running totals, and gauges. Relaxed throughout: each is right by itself, and what must agree is looked at after all threads ended.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the image fetched.
    pub(super) fetched: AtomicU64,
    /// Clusters decoded, or found damaged.
    pub(super) clusters: AtomicU64,
    /// Bytes of the disk that the sink has taken.
    pub(super) done: AtomicU64,
    /// Clusters in the pieces that it has taken.
    pub(super) taken: AtomicU64,
    /// Decoding jobs that wait or run.
    pub(super) jobs: AtomicUsize,
    /// How often each stage was found to be the one that others wait for, by `Bottleneck`'s order.
    waits: [AtomicU64; 3],
}

/// The totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of the image fetched.
    pub fetched: u64,
    /// Bytes of the disk decoded and taken; zeros that lie nowhere are not counted.
    pub done: u64,
    /// Times that fetch, decode and the sink held the others up.
    pub waits: [u64; 3],
}

impl Counters {
    /// The totals now.
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

    /// Called once a batch by the stage that starts fetches.
    pub(super) fn note_bottleneck(&self, found: Bottleneck) {
        self.waits[found as usize].fetch_add(1, Relaxed);
    }
}

impl Totals {
    /// The stage that held the others up most, if any did.
    #[must_use]
    pub fn bottleneck(&self) -> Option<Bottleneck> {
        let found = [Bottleneck::Fetch, Bottleneck::Decode, Bottleneck::Sink];
        found
            .into_iter()
            .max_by_key(|&stage| self.waits[stage as usize])
            .filter(|&stage| self.waits[stage as usize] > 0)
    }
}
