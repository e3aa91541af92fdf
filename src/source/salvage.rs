//! Reading on past bad sectors: each becomes zeros, and each is reported.

use std::sync::{Mutex, PoisonError};

use super::{Extent, Source, SourceError};
use crate::units::{BadRange, ByteCount, GuestOffset, to_u64};

/// A source whose unreadable sectors read as zeros. Everything that is not a read error (a vanished device, a shrunken file) stays an error.
#[derive(Debug)]
pub struct Salvaging<S> {
    inner: S,
    bad: Mutex<Vec<BadRange>>,
}

impl<S: Source> Salvaging<S> {
    /// Wraps a source.
    pub fn new(inner: S) -> Self {
        Self { inner, bad: Mutex::new(Vec::new()) }
    }

    /// What could not be read, in order, neighbours joined.
    #[must_use]
    pub fn bad_ranges(&self) -> Vec<BadRange> {
        let mut found = self.bad.lock().unwrap_or_else(PoisonError::into_inner).clone();
        found.sort_unstable();
        found.dedup_by(|next, last| {
            let touches = last.offset.0 + last.length == next.offset.0;
            if touches {
                last.length += next.length;
            }
            touches
        });
        found
    }

    /// Reads what can be read of `into` by halving, down to the device's own block.
    fn salvage(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        match self.inner.read_at(offset, into) {
            Err(SourceError::Read { .. }) => {}
            other => return other,
        }
        let step = self.inner.alignment();
        if into.len() <= step {
            into.fill(0);
            let length = to_u64(into.len()).min(self.size().0 - offset.0);
            tracing::warn!(source = self.name(), offset = offset.0, length, "unreadable, stored as zeros");
            self.bad.lock().unwrap_or_else(PoisonError::into_inner).push(BadRange { offset, length });
            return Ok(());
        }
        let half = (into.len() / 2).next_multiple_of(step);
        let (front, back) = into.split_at_mut(half);
        self.salvage(offset, front)?;
        self.salvage(offset + to_u64(half), back)
    }
}

impl<S: Source> Source for Salvaging<S> {
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
        self.salvage(offset, into)
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        self.inner.extent_at(from)
    }

    fn settle(&self) -> Result<(), SourceError> {
        self.inner.settle()
    }
}
