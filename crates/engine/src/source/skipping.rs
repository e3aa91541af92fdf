//! Source whose free blocks read as zeros and are not read.

use std::io;
use std::ops::Range;

use snapferry_base::units::{ByteCount, GuestOffset, KIB, to_u64, to_usize};
use snapferry_freespace::{Disk, ProbeError, Probed, RangeSet};

use super::aligned::AlignedBuf;
use super::{BadRange, Extent, Source, SourceError};
use crate::manifest::FreeRecord;

/// Longest stretch of free blocks that a read includes: a disk in a network takes longer to begin a request
/// than to read as much.
const JOINED: u64 = 128 * KIB;
/// Shortest range of free blocks that is reported as a hole: one cluster of the default size.
const HOLE: u64 = 64 * KIB;

/// Finds what the filesystems on `source` call free.
///
/// # Errors
/// If a read fails.
pub fn find_free(source: &dyn Source) -> Result<Probed, SourceError> {
    snapferry_freespace::probe(&Unaligned(source)).map_err(|ProbeError::Read(error)| {
        // Every error of `Unaligned` is one of the source.
        error.downcast::<SourceError>().unwrap_or_else(|source_error| SourceError::Ask {
            path: source.name().to_owned(),
            question: "reading filesystem metadata",
            source: source_error,
        })
    })
}

/// Source that is read at any offset.
struct Unaligned<'a>(&'a dyn Source);

impl Disk for Unaligned<'_> {
    fn size(&self) -> u64 {
        self.0.size().0
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let step = to_u64(self.0.alignment());
        let first = offset - offset % step;
        let end = (offset + to_u64(into.len())).next_multiple_of(step);
        let read = || -> Result<AlignedBuf, SourceError> {
            let mut hull = AlignedBuf::zeroed(to_usize(end - first))?;
            self.0.read_at(GuestOffset(first), &mut hull)?;
            Ok(hull)
        };
        let hull = read().map_err(io::Error::other)?;
        into.copy_from_slice(&hull[to_usize(offset - first)..][..into.len()]);
        Ok(())
    }
}

/// Disk that is `inner` with zeros in place of its free blocks.
#[derive(Debug)]
pub struct Skipping<S> {
    inner: S,
    free: RangeSet,
    /// Free ranges that are reported as holes.
    holes: RangeSet,
    records: Vec<FreeRecord>,
}

impl<S: Source> Skipping<S> {
    /// Takes a source, and what was found on it.
    pub fn new(inner: S, found: Probed) -> Self {
        let records = FreeRecord::all_of(&found);
        let free = found.free;
        let mut holes = RangeSet::default();
        free.as_slice()
            .iter()
            .filter(|range| range.end - range.start >= HOLE)
            .for_each(|range| holes.push(range.clone()));
        Self { inner, free, holes, records }
    }

    /// Returns the stretches of `range` to read, aligned, in order.
    fn needed(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let step = to_u64(self.inner.alignment());
        let mut needed: Vec<Range<u64>> = Vec::new();
        for stretch in self.free.outside(range.clone()) {
            let start = (stretch.start - stretch.start % step).max(range.start);
            let end = stretch.end.next_multiple_of(step).min(range.end);
            match needed.last_mut() {
                Some(last) if start < last.end.saturating_add(JOINED) => last.end = last.end.max(end),
                _ => needed.push(start..end),
            }
        }
        needed
    }
}

impl<S: Source> Source for Skipping<S> {
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
        let range = offset.0..offset.0 + to_u64(into.len());
        let place = |part: &Range<u64>| to_usize(part.start - range.start)..to_usize(part.end - range.start);
        for stretch in self.needed(&range) {
            self.inner.read_at(GuestOffset(stretch.start), &mut into[place(&stretch)])?;
        }
        for free in self.free.within(range.clone()) {
            into[place(&free)].fill(0);
        }
        Ok(())
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        let size = self.size().0;
        let mut at = from.0;
        // Holes of the source and free blocks that touch are one hole.
        while at < size {
            if let Some(free) = self.holes.within(at..size).next().filter(|free| free.start == at) {
                at = free.end;
                continue;
            }
            match self.inner.extent_at(GuestOffset(at))? {
                Extent::Hole { end } if end.0 > at => at = end.0,
                Extent::Hole { .. } => break,
                Extent::Data { end } if at == from.0 => {
                    let next = self.holes.within(at..size).next().map_or(size, |free| free.start);
                    return Ok(Extent::Data { end: GuestOffset(end.0.min(next)) });
                }
                Extent::Data { .. } => break,
            }
        }
        Ok(Extent::Hole { end: GuestOffset(at) })
    }

    fn settle(&self) -> Result<(), SourceError> {
        self.inner.settle()
    }

    fn bad_ranges(&self) -> Vec<BadRange> {
        self.inner.bad_ranges()
    }

    fn skipped(&self) -> Vec<FreeRecord> {
        self.records.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use snapferry_base::units::MIB;

    use super::*;

    /// Disk of ones that notes what is read.
    struct Noted(Mutex<Vec<Range<u64>>>);

    impl Source for Noted {
        fn name(&self) -> &str {
            "/dev/noted"
        }
        fn size(&self) -> ByteCount {
            ByteCount(8 * MIB)
        }
        fn alignment(&self) -> usize {
            4096
        }
        fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
            assert!(offset.0.is_multiple_of(4096) && into.len().is_multiple_of(4096), "aligned");
            self.0.lock().expect("sound").push(offset.0..offset.0 + to_u64(into.len()));
            into.fill(1);
            Ok(())
        }
        fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
            Ok(if from.0 < 6 * MIB {
                Extent::Data { end: GuestOffset(6 * MIB) }
            } else {
                Extent::Hole { end: GuestOffset(8 * MIB) }
            })
        }
        fn settle(&self) -> Result<(), SourceError> {
            Ok(())
        }
    }

    fn skipping(free: &[Range<u64>]) -> Skipping<Noted> {
        let free = RangeSet::union_of(free.to_vec());
        Skipping::new(Noted(Mutex::default()), Probed { free, ..Probed::default() })
    }

    #[test]
    fn free_blocks_are_zeros_and_long_ones_are_not_read() {
        let free = [1000..2024, 64 * KIB..100 * KIB, 300 * KIB..1000 * KIB, 2 * MIB..4 * MIB];
        let source = skipping(&free);
        let mut buf = AlignedBuf::zeroed(to_usize(2 * MIB)).expect("memory");
        buf.fill(7);
        source.read_at(GuestOffset(0), &mut buf).expect("read");
        for (at, byte) in (0..).zip(buf.iter()) {
            assert_eq!(*byte, u8::from(!free.iter().any(|range| range.contains(&at))), "at {at}");
        }
        let read = std::mem::take(&mut *source.inner.0.lock().expect("sound"));
        assert_eq!(read, [0..300 * KIB, 1000 * KIB..2 * MIB]);
        source.read_at(GuestOffset(2 * MIB), &mut buf).expect("read");
        assert!(buf.iter().all(|byte| *byte == 0));
        assert_eq!(*source.inner.0.lock().expect("sound"), []);
    }

    #[test]
    fn free_blocks_and_the_sources_holes_are_one_hole() {
        let free = [MIB..MIB + 4096, 2 * MIB..3 * MIB, 5 * MIB..6 * MIB];
        let source = skipping(&free);
        let extent = |at| source.extent_at(GuestOffset(at)).expect("an answer");
        let data = |end| Extent::Data { end: GuestOffset(end) };
        let hole = |end| Extent::Hole { end: GuestOffset(end) };
        assert_eq!(extent(0), data(2 * MIB));
        assert_eq!(extent(2 * MIB), hole(3 * MIB));
        assert_eq!(extent(2 * MIB + 512), hole(3 * MIB));
        assert_eq!(extent(3 * MIB), data(5 * MIB));
        assert_eq!(extent(5 * MIB), hole(8 * MIB));
    }
}
