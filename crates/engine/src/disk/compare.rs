//! Comparison of two disks, whatever format they are stored in.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapferry_base::cancel::Cancel;
use snapferry_base::limits::{Allowance, OutOfMemory};
use snapferry_base::threads;
use snapferry_base::units::{GuestOffset, SECTOR, to_usize};

use super::differences::{Difference, Differences, differences};
use crate::compress::cores;
use crate::error::{RestoreError, check_count};
use crate::hash::CHUNK;
use crate::image::READER;
use crate::image::plan::BASE;
use crate::pipeline::PipelineError;
use crate::source::aligned::AlignedBuf;
use crate::source::{Extent, Source};

/// Number of threads beside two for each core: most threads wait for disks, while the others decode.
const WAITING: usize = 4;
/// Memory of each thread in bytes: a chunk of both disks, and the buffers to decode two images.
const EACH: u64 = 2 * (CHUNK.0 + READER);

/// End of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// The comparison goes to the end of the longer disk.
    #[default]
    End,
    /// The comparison ends at the first chunk that differs, and only the first difference is reported.
    FirstDifference,
}

/// Compares two disks, byte for byte. Bytes of the longer disk past the end of the other must be zeros. Calls
/// `done` now and then, from several threads, with the number of bytes that were compared since.
///
/// # Errors
/// With the read error that comes first on the disk, unless it comes after the first difference and `until`
/// asks for no more. If a disk changed meanwhile, or the work is cancelled.
pub fn compare_sources(
    one: &dyn Source,
    other: &dyn Source,
    until: Until,
    cancel: &Cancel,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Differences, RestoreError> {
    let size = one.size().0.max(other.size().0);
    let comparing = Comparing {
        cursor: Mutex::new(Cursor { at: 0, size, sides: [one, other].map(Side::new) }),
        found: Mutex::default(),
        failed: Mutex::default(),
        stop: AtomicBool::new(false),
        until,
        cancel,
        done,
        looked_at: AtomicU64::new(0),
    };
    let thread_count = Allowance::of_process().threads(2 * cores().get() + WAITING, EACH, BASE);
    let ended = threads::run_on_threads("compare", thread_count, || comparing.serve());
    let looked_at = comparing.looked_at.into_inner();
    let found = comparing.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, error)) = comparing.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let first = found.first.first().map(|difference| difference.offset.0);
        if until == Until::End || first.is_none_or(|first| first >= at) {
            return Err(error);
        }
    }
    if cancel.is_cancelled() {
        return Err(RestoreError::Pipeline(PipelineError::Interrupted));
    }
    ended.map_err(|_died| RestoreError::Pipeline(PipelineError::StageDied { stage: "comparison" }))?;
    // If only the first difference is wanted, the rest of the disks is not compared.
    if until == Until::End || found.is_empty() {
        check_count("bytes of the disks were compared", looked_at, size)?;
    }
    [one, other].into_iter().try_for_each(|source| source.settle().map_err(RestoreError::Source))?;
    Ok(found)
}

/// State that the threads share.
struct Comparing<'a> {
    cursor: Mutex<Cursor<'a>>,
    found: Mutex<Differences>,
    /// The failure that comes first on the disk, and its offset.
    failed: Mutex<Option<(u64, RestoreError)>>,
    /// True if the threads must begin no more chunks.
    stop: AtomicBool,
    until: Until,
    cancel: &'a Cancel,
    done: &'a (dyn Fn(u64) + Sync),
    /// Bytes of the longer disk that were compared, or are holes in both disks.
    looked_at: AtomicU64,
}

impl Comparing<'_> {
    /// Compares chunks until the end. Threads begin chunks in the order of the disk and complete each that
    /// they began, so nothing before a difference or a failure is left out.
    fn serve(&self) {
        let mut buffers = None;
        while !self.cancel.is_cancelled() && !self.stop.load(Relaxed) {
            let next = {
                let mut cursor = lock(&self.cursor);
                cursor.next().map_err(|error| (cursor.at, error))
            };
            let chunk = match next {
                Ok(Some(Step::Compare(chunk))) => chunk,
                Ok(Some(Step::Skip { len })) => {
                    self.note(len);
                    continue;
                }
                Ok(None) => return,
                Err((at, error)) => return self.fail(at, error),
            };
            let pair = match &mut buffers {
                Some(pair) => Ok(pair),
                none => Pair::new().map(|pair| none.insert(pair)),
            };
            let compared = pair.map_err(RestoreError::from).and_then(|pair| pair.compare(&chunk));
            match compared {
                Ok(differences) if differences.is_empty() => {}
                Ok(differences) => {
                    lock(&self.found).add(differences);
                    if self.until == Until::FirstDifference {
                        self.stop.store(true, Relaxed);
                    }
                }
                Err(error) => return self.fail(chunk.at, error),
            }
            self.note(chunk.len);
        }
    }

    fn note(&self, len: u64) {
        self.looked_at.fetch_add(len, Relaxed);
        (self.done)(len);
    }

    fn fail(&self, at: u64, error: RestoreError) {
        let mut failed = lock(&self.failed);
        if failed.as_ref().is_none_or(|(first, _)| at < *first) {
            *failed = Some((at, error));
        }
        self.stop.store(true, Relaxed);
    }
}

/// Next piece of work.
enum Step<'a> {
    /// Bytes that are holes in both disks.
    Skip {
        len: u64,
    },
    Compare(Chunk<'a>),
}

/// One chunk of both disks.
struct Chunk<'a> {
    at: u64,
    len: u64,
    /// The disks to read. `None` if the disk has ended, or has a hole as long as the chunk.
    sources: [Option<&'a dyn Source>; 2],
}

/// Next offset to compare, and the current extent of each disk.
struct Cursor<'a> {
    at: u64,
    /// Size of the longer disk, in bytes.
    size: u64,
    sides: [Side<'a>; 2],
}

impl<'a> Cursor<'a> {
    fn next(&mut self) -> Result<Option<Step<'a>>, RestoreError> {
        let (at, size) = (self.at, self.size);
        if at >= size {
            return Ok(None);
        }
        let [one, other] = &mut self.sides;
        let zeros_until = [one.zeros_until(at)?, other.zeros_until(at)?];
        // Chunks begin at multiples of their size, so that each whole cluster is decoded once.
        let end = size.min(at + CHUNK.0);
        let both = zeros_until[0].min(zeros_until[1]);
        if both >= end {
            let end = if both >= size { size } else { both / CHUNK.0 * CHUNK.0 };
            self.at = end;
            return Ok(Some(Step::Skip { len: end - at }));
        }
        self.at = end;
        let source = |side: usize| (zeros_until[side] < end).then_some(self.sides[side].source);
        Ok(Some(Step::Compare(Chunk { at, len: end - at, sources: [source(0), source(1)] })))
    }
}

/// One of the disks, and the extent that it reported last. The extent is kept because a query may take time
/// in proportion to the length of the extent.
struct Side<'a> {
    source: &'a dyn Source,
    extent: Extent,
}

impl<'a> Side<'a> {
    fn new(source: &'a dyn Source) -> Self {
        Self { source, extent: Extent::Data { end: GuestOffset(0) } }
    }

    /// Returns the offset up to which the disk holds nothing but zeros from `at` on. Calls must be in the
    /// order of the disk.
    fn zeros_until(&mut self, at: u64) -> Result<u64, RestoreError> {
        let size = self.source.size().0;
        if at >= size {
            return Ok(u64::MAX);
        }
        let (Extent::Data { end } | Extent::Hole { end }) = self.extent;
        if end.0 <= at {
            self.extent = self.source.extent_at(GuestOffset(at)).map_err(RestoreError::Source)?;
        }
        Ok(match self.extent {
            Extent::Data { .. } => at,
            Extent::Hole { end } if end.0 >= size => u64::MAX,
            Extent::Hole { end } => end.0,
        })
    }
}

/// Buffers for one chunk of each disk.
struct Pair([AlignedBuf; 2]);

impl Pair {
    fn new() -> Result<Self, OutOfMemory> {
        Ok(Self([AlignedBuf::zeroed(to_usize(CHUNK.0))?, AlignedBuf::zeroed(to_usize(CHUNK.0))?]))
    }

    fn compare(&mut self, chunk: &Chunk<'_>) -> Result<Vec<Difference>, RestoreError> {
        let (len, start) = (to_usize(chunk.len), GuestOffset(chunk.at));
        for (source, into) in chunk.sources.iter().zip(&mut self.0) {
            if let Some(source) = source {
                read(*source, chunk.at, into)?;
            }
        }
        let Self([one, other]) = self;
        Ok(match chunk.sources {
            [None, None] => Vec::new(),
            [Some(_), None] => differences(&one[..len], None, start),
            [None, Some(_)] => differences(&other[..len], None, start),
            [Some(_), Some(_)] => differences(&one[..len], Some(&other[..len]), start),
        })
    }
}

/// Reads a chunk of a disk that does not end before the chunk. Bytes past the end of the disk become zeros.
fn read(source: &dyn Source, at: u64, into: &mut AlignedBuf) -> Result<(), RestoreError> {
    let len = to_usize(CHUNK.0.min(source.size().0 - at));
    let step = source.alignment().max(to_usize(SECTOR));
    source.read_at(GuestOffset(at), &mut into[..len.next_multiple_of(step)]).map_err(RestoreError::Source)?;
    into[len..].fill(0);
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io;

    use snapferry_base::units::{ByteCount, GIB, to_u64};

    use super::*;
    use crate::source::{InUse, RawSource, SourceError};

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
        let first: Vec<_> =
            found.first.iter().map(|difference| (difference.offset.0, difference.length)).collect();
        assert_eq!((first, found.count), (vec![(100, 1), (3_000_000, 2), (6 << 20, 1)], 3));
        assert_eq!(compare(&other, &one, Until::FirstDifference).first[0].offset, GuestOffset(100));
    }

    /// Disk of `size` bytes that holds `byte` in its last `data` ones, fails from `fails` on, and panics from
    /// `dies` on.
    struct Made {
        size: u64,
        data: u64,
        byte: u8,
        fails: u64,
        dies: u64,
        questions: AtomicU64,
    }

    impl Made {
        fn new(size: u64, data: u64, byte: u8) -> Self {
            Self { size, data, byte, fails: u64::MAX, dies: u64::MAX, questions: AtomicU64::new(0) }
        }
    }

    impl Source for Made {
        fn name(&self) -> &str {
            "made"
        }

        fn size(&self) -> ByteCount {
            ByteCount(self.size)
        }

        fn alignment(&self) -> usize {
            512
        }

        fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
            assert!(offset.0 + to_u64(into.len()) <= self.dies, "told to");
            if offset.0 + to_u64(into.len()) > self.fails {
                return Err(SourceError::Read {
                    path: "made".into(),
                    offset,
                    source: io::Error::other("told to"),
                });
            }
            into.fill(self.byte);
            let zeros = (self.size - self.data).saturating_sub(offset.0).min(to_u64(into.len()));
            into[..to_usize(zeros)].fill(0);
            Ok(())
        }

        fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
            self.questions.fetch_add(1, Relaxed);
            let first = self.size - self.data;
            Ok(if from.0 < first {
                Extent::Hole { end: GuestOffset(first) }
            } else {
                Extent::Data { end: GuestOffset(self.size) }
            })
        }

        fn settle(&self) -> Result<(), SourceError> {
            Ok(())
        }
    }

    #[test]
    fn the_first_difference_is_the_first_one_whoever_finds_another_sooner() {
        let (one, other) = (Made::new(16 << 20, 16 << 20, 1), Made::new(16 << 20, 16 << 20, 2));
        for _ in 0..50 {
            let found = compare_sources(&one, &other, Until::FirstDifference, &Cancel::new(), &|_| {})
                .expect("a comparison");
            assert_eq!(found.first[0].offset, GuestOffset(0));
        }
        // A read error after the difference does not matter; one before it does.
        let broken = |fails| Made { fails, ..Made::new(16 << 20, 8 << 20, 2) };
        let whole = Made::new(16 << 20, 8 << 20, 1);
        let compare = |other: &Made, until| compare_sources(&whole, other, until, &Cancel::new(), &|_| {});
        for _ in 0..50 {
            let found =
                compare(&broken(12 << 20), Until::FirstDifference).expect("a difference before the failure");
            assert_eq!(found.first[0].offset, GuestOffset(8 << 20));
            assert!(matches!(compare(&broken(12 << 20), Until::End), Err(RestoreError::Source(_))));
            assert!(matches!(
                compare(&broken(9 << 20), Until::FirstDifference),
                Err(RestoreError::Source(_))
            ));
        }
    }

    #[test]
    fn a_thread_that_dies_is_no_verdict() {
        let whole = || Made::new(16 << 20, 16 << 20, 1);
        for dies in [0, 2 << 20, 9 << 20, (16 << 20) - 1] {
            for until in [Until::End, Until::FirstDifference] {
                let compared =
                    compare_sources(&whole(), &Made { dies, ..whole() }, until, &Cancel::new(), &|_| {});
                assert!(
                    matches!(
                        compared,
                        Err(RestoreError::Pipeline(PipelineError::StageDied { stage: "comparison" }))
                    ),
                    "{compared:?}"
                );
            }
        }
    }

    #[test]
    fn a_disk_that_is_written_to_meanwhile_is_no_copy() {
        let (file, one) = source(&vec![7; 3 << 20]);
        let (_other, other) = source(&vec![7; 3 << 20]);
        let touched = std::fs::OpenOptions::new().write(true).open(file.path()).expect("opened again");
        touched.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("another time");
        let compared = compare_sources(&one, &other, Until::End, &Cancel::new(), &|_| {});
        assert!(matches!(compared, Err(RestoreError::Source(SourceError::Changed { .. }))), "{compared:?}");
    }

    #[test]
    fn holes_of_both_are_skipped_and_each_is_asked_for_once() {
        let size = 4096 * GIB + 5;
        let (one, other) = (Made::new(size, 1000, 7), Made::new(size - 5, 3 << 20, 7));
        let reported = AtomicU64::new(0);
        let count = |bytes: u64| {
            reported.fetch_add(bytes, Relaxed);
        };
        let found = compare_sources(&one, &other, Until::End, &Cancel::new(), &count).expect("a comparison");
        assert_eq!(found.first[0].offset, GuestOffset(size - 5 - (3 << 20)));
        assert_eq!(reported.into_inner(), size);
        assert!([one, other].iter().all(|disk| disk.questions.load(Relaxed) <= 4));
    }
}
