//! Several disks joined end to end.

use snapferry_base::units::{ByteCount, GuestOffset, SECTOR, to_u64, to_usize};

use super::aligned::{AlignedBuf, BUFFER_ALIGNMENT};
use super::{Extent, Source, SourceError};

/// Sources one after the other, each rounded up to whole sectors.
pub struct Joined {
    name: String,
    /// Sources in order, each with its start offset.
    parts: Vec<(u64, Box<dyn Source>)>,
    size: u64,
}

impl Joined {
    /// Joins the sources in this order.
    #[must_use]
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        let name = sources.iter().map(|source| source.name()).collect::<Vec<_>>().join(" + ");
        let mut size = 0;
        let mut parts = Vec::with_capacity(sources.len());
        for source in sources {
            let len = source.size().0.next_multiple_of(SECTOR);
            parts.push((size, source));
            size += len;
        }
        Self { name, parts, size }
    }

    /// Returns the start offset, the end offset and the source of the part that holds `at`, which lies within
    /// the whole.
    fn part_at(&self, at: u64) -> (u64, u64, &dyn Source) {
        let after = self.parts.partition_point(|(start, _)| *start <= at);
        let (start, source) = &self.parts[after - 1];
        let end = self.parts.get(after).map_or(self.size, |(start, _)| *start);
        (*start, end, &**source)
    }
}

/// Fills `into` from `offset` of `source`, whatever their alignment.
fn read_any(source: &dyn Source, offset: u64, into: &mut [u8]) -> Result<(), SourceError> {
    let step = to_u64(source.alignment());
    let aligned = offset.is_multiple_of(step)
        && to_u64(into.len()).is_multiple_of(step)
        && into.as_ptr().addr().is_multiple_of(source.alignment());
    if aligned {
        return source.read_at(GuestOffset(offset), into);
    }
    let first = offset / step * step;
    let end = (offset + to_u64(into.len())).next_multiple_of(step);
    let mut hull = AlignedBuf::zeroed(to_usize(end - first))?;
    source.read_at(GuestOffset(first), &mut hull)?;
    into.copy_from_slice(&hull[to_usize(offset - first)..][..into.len()]);
    Ok(())
}

impl Source for Joined {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.size)
    }

    /// Returns the largest alignment of the parts. If a part begins at an offset that is not aligned, its
    /// reads are copied.
    fn alignment(&self) -> usize {
        self.parts.iter().map(|(_, source)| source.alignment()).max().unwrap_or(BUFFER_ALIGNMENT)
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let mut at = offset.0;
        let mut rest = into;
        while !rest.is_empty() {
            if at >= self.size {
                rest.fill(0);
                return Ok(());
            }
            let (start, end, source) = self.part_at(at);
            // The last part also fills what lies past its end with zeros.
            let len = if end == self.size { rest.len() } else { rest.len().min(to_usize(end - at)) };
            let (now, later) = rest.split_at_mut(len);
            read_any(source, at - start, now).map_err(|error| moved(error, start))?;
            at += to_u64(len);
            rest = later;
        }
        Ok(())
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        if from.0 >= self.size {
            return Ok(Extent::Hole { end: GuestOffset(self.size) });
        }
        let (start, end, source) = self.part_at(from.0);
        // `from` lies in the part's last sector, past the part's own end.
        if from.0 - start >= source.size().0 {
            return Ok(Extent::Hole { end: GuestOffset(end) });
        }
        let whole = |part_end: GuestOffset| {
            let reached = if part_end.0 >= source.size().0 { end } else { start + part_end.0 };
            GuestOffset(reached)
        };
        Ok(match source.extent_at(GuestOffset(from.0 - start))? {
            Extent::Data { end } => Extent::Data { end: whole(end) },
            Extent::Hole { end } => Extent::Hole { end: whole(end) },
        })
    }

    fn settle(&self) -> Result<(), SourceError> {
        self.parts.iter().try_for_each(|(_, source)| source.settle())
    }
}

/// Returns the error with its offset in the whole instead of the part; only the reader of the whole uses the
/// offset.
fn moved(error: SourceError, start: u64) -> SourceError {
    match error {
        SourceError::Read { path, offset, source } => {
            SourceError::Read { path, offset: offset + start, source }
        }
        SourceError::Vanished { path, offset, source } => {
            SourceError::Vanished { path, offset: offset + start, source }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{InUse, RawSource};

    #[test]
    fn parts_follow_each_other_at_whole_sectors() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut expected = Vec::new();
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for (byte, len) in [(1_u8, 5000_usize), (2, 512), (3, 1), (4, 20_000)] {
            let path = folder.path().join(len.to_string());
            std::fs::write(&path, vec![byte; len]).expect("written");
            sources.push(Box::new(RawSource::open(&path, InUse::Refuse).expect("a file")));
            expected.extend(vec![byte; len]);
            expected.resize(expected.len().next_multiple_of(512), 0);
        }
        let joined = Joined::new(sources);
        assert_eq!(joined.size(), ByteCount(to_u64(expected.len())));
        for len in [4096, 8192, 32_768] {
            let mut read = Vec::new();
            let mut piece = AlignedBuf::zeroed(len).expect("a buffer");
            while read.len() < expected.len() {
                joined.read_at(GuestOffset(to_u64(read.len())), &mut piece).expect("read");
                read.extend_from_slice(&piece);
            }
            assert!(
                read[..expected.len()] == expected && read[expected.len()..].iter().all(|&byte| byte == 0),
                "{len}"
            );
        }
        let mut at = 0;
        while at < joined.size().0 {
            let (Extent::Data { end } | Extent::Hole { end }) =
                joined.extent_at(GuestOffset(at)).expect("an answer");
            assert!(end.0 > at && end.0 <= joined.size().0);
            at = end.0;
        }
        joined.settle().expect("nobody touched them");
    }
}
