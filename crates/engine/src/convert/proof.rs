//! Reading back of copied segments, from a store that returned no checksum of what it copied.

use snapferry_base::units::{to_u64, to_usize};

use super::plan::FETCH;
use super::send::{CopiedSegment, Sent};
use super::why_full::{Trouble, WhyFull};
use crate::hash::RunningCrc64;
use crate::store::{ETag, ObjectKey, ObjectStore, StoreError};

/// Number of segments that are read back. They show a store that copies something else altogether; a proof of
/// every byte is the verification of the image.
const READ_BACK: usize = 4;

/// Returns the copied segments of parts that have no checksum from the store.
pub(super) fn unproved(parts: &[Sent]) -> Vec<CopiedSegment> {
    let unproved = parts.iter().filter(|part| part.stored.crc64.is_none());
    unproved.filter_map(|part| part.copied.as_ref()).flatten().cloned().collect()
}

/// Reads some of the segments back, at random, and compares their checksums. Returns how many were equal.
/// Fewer only if the work was stopped: the object is complete then, and its sizes are right.
pub(super) async fn read_back(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    version: &ETag,
    segments: &[CopiedSegment],
) -> Result<u64, Trouble> {
    let count = segments.len().min(READ_BACK);
    let offset = if count == 0 { 0 } else { to_usize(rand::random::<u64>() % to_u64(segments.len())) };
    for number in 0..count {
        let place = (offset + number * segments.len() / count) % segments.len();
        let CopiedSegment { range, crc64 } = &segments[place];
        let mut sum = RunningCrc64::default();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + FETCH.0);
            let version = Some(version).filter(|version| !version.0.is_empty());
            match store.get_range(key, at..end, version).await {
                Ok(bytes) => sum.update(&bytes),
                Err(StoreError::Cancelled { .. }) => return Ok(to_u64(number)),
                Err(error) => return Err(error.into()),
            }
            at = end;
        }
        if sum.sum() != *crc64 {
            let (start, end) = (range.start, range.end);
            let reason = format!("bytes {start} to {end} have CRC64NVME {}, not {crc64}", sum.sum());
            return Err(WhyFull::Disproved(reason).into());
        }
    }
    Ok(to_u64(count))
}
