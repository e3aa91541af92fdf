//! Two disks side by side, whatever they are kept in.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::RestoreError;
use super::differences::{Difference, Differences, differences};
use crate::cancel::{Cancel, Reason};
use crate::hash::CHUNK;
use crate::source::aligned::AlignedBuf;
use crate::source::{Extent, Source};
use crate::units::{GuestOffset, to_usize};

/// Chunks that are read at once: as many reads as a device wants in flight.
const READERS: usize = 6;
/// How far a comparison goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// To the end.
    #[default]
    End,
    /// To the first chunk that differs: only the first difference is told.
    FirstDifference,
}

/// Compares two disks, byte for byte. What the longer one holds behind the other's end must be zeros. `done` is told how many bytes
/// have been looked at, now and then, from several threads.
///
/// # Errors
/// With the first read that fails, or where the work is cancelled.
pub fn compare_sources(
    one: &dyn Source,
    other: &dyn Source,
    until: Until,
    cancel: &Cancel,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Differences, RestoreError> {
    let size = one.size().0.max(other.size().0);
    let found = Mutex::new(Differences::default());
    let failed = Mutex::new(None);
    let next = AtomicU64::new(0);
    let stop = Cancel::new();
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut buffers = Pair::new();
                loop {
                    let at = next.fetch_add(CHUNK.0, Relaxed);
                    if at >= size || cancel.is_cancelled() || stop.is_cancelled() {
                        return;
                    }
                    let len = CHUNK.0.min(size - at);
                    match buffers.compare(one, other, at, len) {
                        Ok(differences) => {
                            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                            found.add(differences);
                            // Chunks are begun in order, and the ones begun are ended: none before this one is left out.
                            if until == Until::FirstDifference && !found.is_empty() {
                                stop.cancel(Reason::Failed);
                            }
                        }
                        Err(error) => {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            stop.cancel(Reason::Failed);
                            return;
                        }
                    }
                    done(len);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if cancel.is_cancelled() {
        return Err(RestoreError::Interrupted);
    }
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Room for a chunk of each.
struct Pair {
    one: AlignedBuf,
    other: AlignedBuf,
}

impl Pair {
    fn new() -> Self {
        let len = to_usize(CHUNK.0);
        Self { one: AlignedBuf::zeroed(len), other: AlignedBuf::zeroed(len) }
    }

    fn compare(&mut self, one: &dyn Source, other: &dyn Source, at: u64, len: u64) -> Result<Vec<Difference>, RestoreError> {
        let (in_one, in_other) = (read(one, at, &mut self.one)?, read(other, at, &mut self.other)?);
        let (len, start) = (to_usize(len), GuestOffset(at));
        Ok(match (in_one, in_other) {
            (Read::Zeros, Read::Zeros) => Vec::new(),
            (Read::Bytes, Read::Zeros) => differences(&self.one[..len], None, start),
            (Read::Zeros, Read::Bytes) => differences(&self.other[..len], None, start),
            (Read::Bytes, Read::Bytes) => differences(&self.one[..len], Some(&self.other[..len]), start),
        })
    }
}

/// What a chunk holds.
#[derive(Clone, Copy)]
enum Read {
    /// Nothing: a hole, or the disk has ended. The buffer is not touched.
    Zeros,
    Bytes,
}

fn read(source: &dyn Source, at: u64, into: &mut AlignedBuf) -> Result<Read, RestoreError> {
    let size = source.size().0;
    if at >= size {
        return Ok(Read::Zeros);
    }
    let end = size.min(at + CHUNK.0);
    if let Extent::Hole { end: hole } = source.extent_at(GuestOffset(at)).map_err(RestoreError::Source)?
        && hole.0 >= end
    {
        return Ok(Read::Zeros);
    }
    let step = source.alignment().max(to_usize(crate::units::SECTOR));
    let len = to_usize(end - at).next_multiple_of(step);
    source.read_at(GuestOffset(at), &mut into[..len]).map_err(RestoreError::Source)?;
    into[to_usize(end - at)..].fill(0);
    Ok(Read::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{InUse, RawSource};

    fn source(bytes: &[u8]) -> (tempfile::NamedTempFile, RawSource) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        let source = RawSource::open(file.path(), InUse::Read).expect("a source");
        (file, source)
    }

    #[test]
    fn differences_are_found_to_the_byte_and_a_longer_disk_of_zeros_is_the_same() {
        let mut bytes = vec![7; 5 << 20];
        let (_a, one) = source(&bytes);
        bytes.resize(7 << 20, 0);
        let (_b, longer) = source(&bytes);
        let compare = |one: &RawSource, other: &RawSource, until| {
            compare_sources(one, other, until, &Cancel::new(), &|_| {}).expect("a comparison")
        };
        assert!(compare(&one, &longer, Until::End).is_empty());
        for at in [6 << 20, 3_000_000, 3_000_001, 100] {
            bytes[at] ^= 1;
        }
        let (_c, other) = source(&bytes);
        let found = compare(&one, &other, Until::End);
        let first: Vec<_> = found.first.iter().map(|difference| (difference.offset.0, difference.length)).collect();
        assert_eq!((first, found.count), (vec![(100, 1), (3_000_000, 2), (6 << 20, 1)], 3));
        assert_eq!(compare(&other, &one, Until::FirstDifference).first[0].offset, GuestOffset(100));
    }
}
