//! Source that can be read past its bad sectors: each is replaced by zeros and reported.

use std::sync::{Mutex, PoisonError};

use snapferry_base::limits::is_shortage;
use snapferry_base::units::{BadRange, ByteCount, GuestOffset, to_u64};

use super::{Extent, Source, SourceError};
use crate::manifest::FreeRecord;

/// Source whose unreadable sectors read as zeros. Every error that is not a read error (a vanished device, a
/// shrunken file) stays an error.
#[derive(Debug)]
pub struct Salvaging<S> {
    inner: S,
    bad: Mutex<Vec<BadRange>>,
}

impl<S: Source> Salvaging<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, bad: Mutex::new(Vec::new()) }
    }

    /// Records what one read could not get, and logs it once for the whole read: a disk may have millions of
    /// bad blocks.
    fn record(&self, found: &[BadRange]) {
        let Some(first) = found.first() else { return };
        let bytes: u64 = found.iter().map(|range| range.length).sum();
        tracing::warn!(
            source = self.name(),
            offset = first.offset.0,
            bytes,
            ranges = found.len(),
            "unreadable, stored as zeros"
        );
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        for range in found {
            insert(&mut bad, *range);
        }
    }

    /// Reads what can be read of `into`, by halving a range that fails, down to the device's own block. Adds
    /// the blocks that can't be read to `bad`.
    fn salvage(
        &self,
        offset: GuestOffset,
        into: &mut [u8],
        bad: &mut Vec<BadRange>,
    ) -> Result<(), SourceError> {
        match self.inner.read_at(offset, into) {
            // A shortage of memory is no evidence against the disk.
            Err(SourceError::Read { source, .. }) if !is_shortage(&source) => {}
            other => return other,
        }
        let step = self.inner.alignment();
        if into.len() <= step {
            into.fill(0);
            let length = to_u64(into.len()).min(self.size().0 - offset.0);
            insert(bad, BadRange { offset, length });
            return Ok(());
        }
        let half = (into.len() / 2).next_multiple_of(step);
        let (front, back) = into.split_at_mut(half);
        self.salvage(offset, front, bad)?;
        self.salvage(offset + to_u64(half), back, bad)
    }
}

/// Adds a range to a sorted list, and joins it with the neighbours that it touches.
fn insert(list: &mut Vec<BadRange>, range: BadRange) {
    let end = |range: &BadRange| range.offset.0 + range.length;
    let from = list.partition_point(|existing| end(existing) < range.offset.0);
    let to = list.partition_point(|existing| existing.offset.0 <= end(&range));
    let joined = list[from..to].iter().fold(range, |joined, existing| {
        let offset = joined.offset.min(existing.offset);
        BadRange { offset, length: end(&joined).max(end(existing)) - offset.0 }
    });
    list.splice(from..to, [joined]);
}

impl<S: Source> Source for Salvaging<S> {
    fn bad_ranges(&self) -> Vec<BadRange> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

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
        let mut bad = Vec::new();
        let read = self.salvage(offset, into, &mut bad);
        self.record(&bad);
        read
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.inner.extent_at(from)
    }

    fn settle(&self) -> Result<(), SourceError> {
        self.inner.settle()
    }

    fn skipped(&self) -> Vec<FreeRecord> {
        self.inner.skipped()
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use snapferry_base::limits::OutOfMemory;
    use snapferry_base::units::{KIB, MIB};

    use super::*;

    /// Disk whose reads fail for lack of memory, with the error that the function returns.
    struct Short(fn() -> SourceError);

    impl Source for Short {
        fn name(&self) -> &str {
            "/dev/good"
        }
        fn size(&self) -> ByteCount {
            ByteCount(8 * MIB)
        }
        fn alignment(&self) -> usize {
            512
        }
        fn read_at(&self, _: GuestOffset, _: &mut [u8]) -> Result<(), SourceError> {
            Err((self.0)())
        }
        fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
            Ok(Extent::Data { end: GuestOffset(8 * MIB) })
        }
        fn settle(&self) -> Result<(), SourceError> {
            Ok(())
        }
    }

    fn read_error(source: std::io::Error) -> SourceError {
        SourceError::Read { path: "/dev/good".into(), offset: GuestOffset(0), source }
    }

    #[test]
    fn a_shortage_of_memory_is_no_bad_sector() {
        let errors: [fn() -> SourceError; 3] = [
            || OutOfMemory::of("a buffer", 4096).into(),
            || read_error(std::io::Error::from_raw_os_error(Errno::NOMEM.raw_os_error())),
            || read_error(std::io::Error::other(OutOfMemory::of("a decoder", 4096))),
        ];
        for error in errors {
            let salvaging = Salvaging::new(Short(error));
            salvaging.read_at(GuestOffset(0), &mut [0; 4096]).expect_err("the disk may be good");
            assert_eq!(salvaging.bad_ranges(), []);
        }
        let broken =
            Salvaging::new(Short(|| read_error(std::io::Error::from_raw_os_error(Errno::IO.raw_os_error()))));
        broken.read_at(GuestOffset(0), &mut [0; 4096]).expect("zeros");
        assert_eq!(broken.bad_ranges().len(), 1);
    }

    /// A disk of which no byte can be read.
    struct Dead;

    impl Source for Dead {
        fn name(&self) -> &str {
            "/dev/dead"
        }
        fn size(&self) -> ByteCount {
            ByteCount(8 * MIB)
        }
        fn alignment(&self) -> usize {
            512
        }
        fn read_at(&self, offset: GuestOffset, _: &mut [u8]) -> Result<(), SourceError> {
            let source = std::io::ErrorKind::Other.into();
            Err(SourceError::Read { path: self.name().to_owned(), offset, source })
        }
        fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
            Ok(Extent::Data { end: GuestOffset(self.size().0) })
        }
        fn settle(&self) -> Result<(), SourceError> {
            Ok(())
        }
    }

    #[test]
    fn a_dead_disk_is_one_range_whoever_reads_first() {
        let salvaging = Salvaging::new(Dead);
        let mut chunk = vec![1; 2 * 1024 * 1024];
        for (at, kept) in [(4, 1), (0, 2), (2, 1), (6, 1), (2, 1)] {
            salvaging.read_at(GuestOffset(at * MIB), &mut chunk).expect("zeros");
            assert!(chunk.iter().all(|&byte| byte == 0));
            assert_eq!(salvaging.bad.lock().expect("sound").len(), kept, "after the read at {at} MiB");
        }
        assert_eq!(salvaging.bad_ranges(), [BadRange { offset: GuestOffset(0), length: 8 * MIB }]);
    }

    #[test]
    fn ranges_that_do_not_touch_stay_apart() {
        let mut list = Vec::new();
        for at in [5, 1, 3] {
            insert(&mut list, BadRange { offset: GuestOffset(at * KIB), length: KIB });
        }
        assert_eq!(
            list.iter().map(|range| (range.offset.0, range.length)).collect::<Vec<_>>(),
            [1, 3, 5].map(|at| (at * KIB, KIB))
        );
        insert(&mut list, BadRange { offset: GuestOffset(2 * KIB), length: KIB });
        assert_eq!(list.len(), 2);
    }
}
