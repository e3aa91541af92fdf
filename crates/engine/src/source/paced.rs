//! Source with a limit on the bytes read per second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use snapferry_base::cancel::Cancel;
use snapferry_base::units::{ByteCount, GuestOffset, to_u64};

use super::{Extent, Source, SourceError};
use crate::manifest::FreeRecord;

/// Source wrapper that delays reads to keep to a rate. Holes cost nothing.
pub struct Paced<S> {
    inner: S,
    bytes_per_second: u64,
    /// Earliest start of the next read.
    next: Mutex<Instant>,
    cancel: Cancel,
}

impl<S: Source> Paced<S> {
    /// Limits `inner` to `rate` bytes per second. A wait ends when the work is cancelled.
    ///
    /// # Panics
    /// If the rate is zero.
    pub fn new(inner: S, rate: ByteCount, cancel: Cancel) -> Self {
        assert!(rate.0 > 0, "nothing would ever be read");
        Self { inner, bytes_per_second: rate.0, next: Mutex::new(Instant::now()), cancel }
    }

    fn wait(&self, bytes: u64) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let start = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*next).max(Instant::now());
            *next = start.checked_add(cost).unwrap_or(start);
            start
        };
        // Nothing is ever sent: the channel only closes.
        let _ = self.cancel.closed().recv_deadline(start);
    }
}

impl<S: Source> Source for Paced<S> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> ByteCount {
        self.inner.size()
    }

    fn alignment(&self) -> usize {
        self.inner.alignment()
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        self.wait(to_u64(into.len()));
        self.inner.read_at(offset, into)
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.inner.extent_at(from)
    }

    fn settle(&self) -> Result<(), SourceError> {
        self.inner.settle()
    }

    fn bad_ranges(&self) -> Vec<super::BadRange> {
        self.inner.bad_ranges()
    }

    fn skipped(&self) -> Vec<FreeRecord> {
        self.inner.skipped()
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::cancel::Reason;

    use super::*;
    use crate::source::{InUse, RawSource};

    #[test]
    fn each_read_puts_the_next_one_off_and_a_stop_ends_the_wait() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), [7; 8192]).expect("written");
        let cancel = Cancel::new();
        let source = RawSource::open(file.path(), InUse::Read).expect("a source");
        let paced = Paced::new(source, ByteCount(4), cancel.clone());
        let mut bytes = super::super::aligned::AlignedBuf::zeroed(4096).expect("a buffer");
        let before = Instant::now();
        paced.read_at(GuestOffset(0), &mut bytes).expect("the first read waits for nobody");
        assert!(bytes.iter().all(|&byte| byte == 7));
        let next = *paced.next.lock().expect("nobody panicked");
        assert!(next >= before + Duration::from_secs(1024), "4096 bytes at 4 a second");
        cancel.cancel(Reason::Requested);
        paced.read_at(GuestOffset(4096), &mut bytes).expect("it is not waited for");
        assert!(*paced.next.lock().expect("nobody panicked") >= next + Duration::from_secs(1024));
    }
}
