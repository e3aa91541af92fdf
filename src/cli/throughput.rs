//! Bytes that the transfers of this process have moved so far, stage by stage: for the metrics of a worker,
//! and for the figures of one run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapferry_engine::convert::counters as convert;
use snapferry_engine::image::counters as read_back;
use snapferry_fleet::replicate::{Progress, ProgressObserver};

/// Stages whose bytes are counted, under the names that the progress display shows: bytes of the disk that
/// were read, bytes of the image that were made and that the destination has confirmed, bytes of the image
/// that were fetched, and bytes of the disk that were decoded.
pub const STAGES: [&str; 5] = [
    convert::Bottleneck::Read.name(),
    convert::Bottleneck::Compress.name(),
    convert::Bottleneck::Upload.name(),
    read_back::Bottleneck::Fetch.name(),
    read_back::Bottleneck::Decode.name(),
];

/// Stages that may hold the others up. The last one takes what was decoded, and moves the same bytes as the
/// one before.
pub const WAITING_STAGES: [&str; 6] =
    [STAGES[0], STAGES[1], STAGES[2], STAGES[3], STAGES[4], read_back::Bottleneck::Sink.name()];

/// One transfer, with its counters.
#[derive(Clone, Debug)]
pub enum Transfer {
    Converting(Arc<convert::Counters>),
    ReadingBack(Arc<read_back::Counters>),
}

/// Sums over transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of source disks that are in images, holes included.
    pub source: u64,
    /// Bytes of images that the store has copied from earlier ones.
    pub copied: u64,
    /// Bytes by stage, in the order of [`STAGES`].
    pub bytes: [u64; STAGES.len()],
    /// Number of times that a stage held the others up, in the order of [`WAITING_STAGES`].
    pub waits: [u64; WAITING_STAGES.len()],
}

impl Totals {
    fn of(transfer: &Transfer) -> Self {
        match transfer {
            Transfer::Converting(counters) => {
                let convert::Totals {
                    done_in_all,
                    read,
                    stored_in_all,
                    sent,
                    copied,
                    waits: [reads, compressions, uploads],
                    ..
                } = counters.totals();
                Self {
                    source: done_in_all,
                    copied,
                    bytes: [read, stored_in_all, sent, 0, 0],
                    waits: [reads, compressions, uploads, 0, 0, 0],
                }
            }
            Transfer::ReadingBack(counters) => {
                let read_back::Totals { fetched, done, waits: [fetches, decodings, sinks] } =
                    counters.totals();
                Self {
                    source: 0,
                    copied: 0,
                    bytes: [0, 0, 0, fetched, done],
                    waits: [0, 0, 0, fetches, decodings, sinks],
                }
            }
        }
    }

    /// Returns the bytes that destinations have confirmed.
    pub fn sent(&self) -> u64 {
        let [_, _, sent, ..] = self.bytes;
        sent
    }

    fn plus(mut self, other: &Self) -> Self {
        self.source = self.source.saturating_add(other.source);
        self.copied = self.copied.saturating_add(other.copied);
        self.bytes.iter_mut().zip(other.bytes).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        self.waits.iter_mut().zip(other.waits).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        self
    }
}

/// Sums over all transfers of this process, those that run included. They never decrease.
#[derive(Debug, Default)]
pub struct Throughput(Mutex<Transfers>);

#[derive(Debug, Default)]
struct Transfers {
    ended: Totals,
    running: BTreeMap<u64, Transfer>,
    /// Number of the next transfer.
    next: u64,
}

impl Throughput {
    fn transfers(&self) -> MutexGuard<'_, Transfers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a transfer, until the guard is dropped. Its bytes stay in the sums.
    pub fn count(self: &Arc<Self>, transfer: Transfer) -> Counted {
        let mut transfers = self.transfers();
        let number = transfers.next;
        transfers.next += 1;
        transfers.running.insert(number, transfer);
        Counted { throughput: Arc::clone(self), number }
    }

    /// Returns the sums at this moment.
    pub fn totals(&self) -> Totals {
        let transfers = self.transfers();
        transfers.running.values().fold(transfers.ended, |sum, transfer| sum.plus(&Totals::of(transfer)))
    }

    /// Returns the number of transfers that run.
    pub fn running(&self) -> usize {
        self.transfers().running.len()
    }
}

/// Guard of a transfer that is counted.
#[derive(Debug)]
pub struct Counted {
    throughput: Arc<Throughput>,
    number: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut transfers = self.throughput.transfers();
        if let Some(transfer) = transfers.running.remove(&self.number) {
            transfers.ended = transfers.ended.plus(&Totals::of(&transfer));
        }
    }
}

/// Counts the transfers of a job, and passes every event on.
pub struct Metered {
    throughput: Arc<Throughput>,
    next: Arc<dyn ProgressObserver>,
    counted: Mutex<Option<Counted>>,
}

impl Metered {
    pub fn new(throughput: &Arc<Throughput>, next: Arc<dyn ProgressObserver>) -> Self {
        Self { throughput: Arc::clone(throughput), next, counted: Mutex::default() }
    }

    fn set(&self, transfer: Option<Transfer>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted = transfer.map(|transfer| self.throughput.count(transfer));
    }
}

impl ProgressObserver for Metered {
    fn on_progress(&self, progress: Progress<'_>) {
        match &progress {
            Progress::Converting(counters, _) => {
                self.set(Some(Transfer::Converting(Arc::clone(counters))));
            }
            Progress::ReadingBack(counters, _) => {
                self.set(Some(Transfer::ReadingBack(Arc::clone(counters))));
            }
            Progress::Begun(_) | Progress::Still | Progress::CleaningUp => self.set(None),
            Progress::Done { .. } | Progress::SentInFull(_) => {}
        }
        self.next.on_progress(progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Transfer {
        Transfer::Converting(Arc::default())
    }

    #[test]
    fn a_transfer_runs_until_its_guard_is_dropped() {
        let throughput: Arc<Throughput> = Arc::default();
        let (one, two) = (throughput.count(nothing()), throughput.count(nothing()));
        assert_eq!(throughput.running(), 2);
        drop(one);
        assert_eq!(throughput.running(), 1);
        drop(two);
        assert_eq!(throughput.running(), 0);
    }

    #[test]
    fn sums_are_by_stage() {
        let one = Totals { source: 1, copied: 2, bytes: [1, 2, 3, 0, 0], waits: [1, 0, 0, 0, 0, 0] };
        let two = Totals { source: 0, copied: 5, bytes: [0, 0, 0, 4, 5], waits: [0, 0, 0, 0, 0, 9] };
        let both = Totals { source: 1, copied: 7, bytes: [1, 2, 3, 4, 5], waits: [1, 0, 0, 0, 0, 9] };
        assert_eq!(one.plus(&two), both);
        assert_eq!(both.sent(), 3);
    }

    #[test]
    fn no_stage_has_the_name_of_another() {
        let names: std::collections::BTreeSet<&str> = WAITING_STAGES.into_iter().collect();
        assert_eq!(names.len(), WAITING_STAGES.len());
    }
}
