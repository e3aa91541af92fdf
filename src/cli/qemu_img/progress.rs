//! QEMU's progress line: `    (12.34/100%)`, drawn over itself, on stdout.

use std::io::{Write as _, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapferry_base::units::{ByteCount, GuestOffset, to_u64};
use snapferry_engine::source::{Extent, Source, SourceError};

/// The whole work, in hundredths of a percent.
const ALL: u128 = 10_000;

/// Choice to show the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Yes,
    No,
}

/// Progress of the work, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Way {
    done: u64,
    of: u64,
    /// Value of `done` when the line was last drawn.
    drawn: u64,
}

impl Way {
    /// Adds `bytes`. Returns the value to draw, if there is one: at the end, and at each step of more than a
    /// percent.
    fn advance(&mut self, bytes: u64) -> Option<u128> {
        let before = self.done;
        self.done = before.saturating_add(bytes).min(self.of);
        let step = u128::from(self.done - self.drawn) * 100 > u128::from(self.of);
        (step || (self.done == self.of && before < self.of)).then(|| {
            self.drawn = self.done;
            hundredths(self.done, self.of)
        })
    }
}

/// Returns hundredths of a percent, rounded half to even, as the C library rounds.
fn hundredths(done: u64, of: u64) -> u128 {
    let (done, of) = (u128::from(done) * ALL, u128::from(of.max(1)));
    let (whole, rest) = (done / of, done % of);
    whole + u128::from(rest * 2 > of || (rest * 2 == of && whole % 2 == 1))
}

/// Progress line that is drawn as the work goes on, and ended when this is dropped.
pub struct Progress {
    shown: Shown,
    state: Mutex<Way>,
}

impl Progress {
    /// Draws the first line, `(0.00/100%)`.
    pub fn start(shown: Shown) -> Self {
        let progress = Self { shown, state: Mutex::default() };
        progress.draw(0);
        progress
    }

    fn state(&self) -> MutexGuard<'_, Way> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the bytes of the whole work.
    pub fn expect(&self, bytes: u64) {
        self.state().of = bytes;
    }

    /// Adds bytes that are done. The thread that adds a step also draws it, so that every step is drawn,
    /// whatever time that takes.
    pub fn add(&self, bytes: u64) {
        let mut state = self.state();
        if let Some(now) = state.advance(bytes) {
            self.draw(now);
        }
    }

    /// Draws `(100.00/100%)`, for work that is done.
    pub fn complete(&self) {
        self.draw(ALL);
    }

    fn draw(&self, hundredths: u128) {
        if self.shown == Shown::No {
            return;
        }
        let mut out = stdout().lock();
        // A line that can't be drawn is no reason to fail.
        let _ = write!(out, "    ({}.{:02}/100%)\r", hundredths / 100, hundredths % 100);
        let _ = out.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown == Shown::Yes {
            let _ = stdout().write_all(b"\n");
        }
    }
}

/// Bytes that count as work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Bytes that are not known to be zeros.
    Data,
    /// All bytes of the disk.
    All,
}

/// Source that reports each read as QEMU reports its own: before it is done, and in pieces of the size that
/// QEMU reads.
pub struct Watchable<'a> {
    source: &'a dyn Source,
    progress: &'a Progress,
    counts: Counts,
    /// Size of a piece in bytes.
    piece: u64,
}

impl<'a> Watchable<'a> {
    /// Adds up the work, if a line is shown.
    pub fn new(
        source: &'a dyn Source,
        progress: &'a Progress,
        counts: Counts,
        piece: u64,
    ) -> Result<Self, SourceError> {
        let watched = Self { source, progress, counts, piece: piece.max(1) };
        if progress.shown == Shown::Yes {
            progress.expect(watched.work_in(0, source.size().0)?);
        }
        Ok(watched)
    }

    /// Returns the bytes that count as work between two offsets.
    fn work_in(&self, from: u64, to: u64) -> Result<u64, SourceError> {
        if self.counts == Counts::All {
            return Ok(to - from);
        }
        let (mut at, mut work) = (from, 0);
        while at < to {
            let extent = self.source.extent_at(GuestOffset(at))?;
            let (Extent::Data { end } | Extent::Hole { end }) = extent;
            let end = end.0.clamp(at + 1, to);
            if let Extent::Data { .. } = extent {
                work += end - at;
            }
            at = end;
        }
        Ok(work)
    }
}

impl Source for Watchable<'_> {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn size(&self) -> ByteCount {
        self.source.size()
    }

    fn alignment(&self) -> usize {
        self.source.alignment()
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        if self.progress.shown == Shown::Yes {
            let end = (offset.0 + to_u64(into.len())).min(self.size().0);
            let mut work = self.work_in(offset.0.min(end), end)?;
            while work > 0 {
                let piece = work.min(self.piece);
                self.progress.add(piece);
                work -= piece;
            }
        }
        self.source.read_at(offset, into)
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.source.extent_at(from)
    }

    fn settle(&self) -> Result<(), SourceError> {
        self.source.settle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_more_than_a_percent_are_drawn_and_the_end_once() {
        let mut state = Way { of: 1000, ..Way::default() };
        // 10 of 1000 are one percent, and a step has to be more.
        assert_eq!(
            [10, 1, 9, 2, 478, 500].map(|bytes| state.advance(bytes)),
            [None, Some(110), None, Some(220), Some(5000), Some(10_000)]
        );
        assert_eq!(state.advance(1), None);
        let mut quarters = Way { of: 4 << 20, ..Way::default() };
        assert_eq!([1 << 20; 4].map(|bytes| quarters.advance(bytes)), [2500, 5000, 7500, 10_000].map(Some));
        let mut steps = Way { of: 64, ..Way::default() };
        assert_eq!([1; 6].map(|bytes| steps.advance(bytes)), [156, 312, 469, 625, 781, 938].map(Some));
        assert_eq!(Way::default().advance(1), None);
    }
}
