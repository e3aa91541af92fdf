//! The requests that bring one part into the store: sent as it is, sent with bytes of the base in it, or
//! copied from the base.

use std::ops::Range;

use snapferry_base::units::{to_u64, to_usize};
use tokio::sync::Semaphore;

use super::parts::{Copy, Draft, Hole, Outgoing};
use super::plan::FETCH;
use super::upload::mismatch;
use super::why_full::{Trouble, WhyFull, of_base};
use crate::hash::{Crc64, RunningCrc64};
use crate::store::{CopySource, ObjectStore, Part, StoredPart, Upload};

/// Part that the store holds, with the checksum that it must have.
pub(super) struct Sent {
    pub stored: StoredPart,
    pub crc64: Crc64,
    /// Segments of the base that the store copied into the part.
    pub copied: Option<Vec<CopiedSegment>>,
    /// Bytes of the part that were fetched from the base.
    pub fetched: u64,
}

/// Segment of the base, at its place in the new image.
#[derive(Clone, Debug)]
pub(super) struct CopiedSegment {
    pub range: Range<u64>,
    pub crc64: Crc64,
}

/// Object that parts are copied from.
pub(super) struct From<'a> {
    pub base: Option<&'a CopySource>,
    /// Bounds the memory of what is fetched.
    pub fetches: &'a Semaphore,
}

/// Brings a part into the store.
pub(super) async fn bring(
    store: &dyn ObjectStore,
    upload: &Upload,
    part: Outgoing,
    from: From<'_>,
) -> Result<Sent, Trouble> {
    match (part, from.base) {
        (Outgoing::Part(part), _) => Ok(send(store, upload, part).await?),
        (Outgoing::Draft(mut draft), Some(base)) => {
            let fetched = fill(store, base, &mut draft, from.fetches).await?;
            Ok(Sent { fetched, ..send(store, upload, draft.into_part()).await? })
        }
        (Outgoing::Copy(part), Some(base)) => copy(store, upload, part, base).await,
        (Outgoing::Draft(_) | Outgoing::Copy(_), None) => {
            let reason = "a part of no base was planned: this is a bug in snapferry".to_owned();
            Err(mismatch(store, upload, "UploadPart", reason).into())
        }
    }
}

async fn send(
    store: &dyn ObjectStore,
    upload: &Upload,
    part: Part,
) -> Result<Sent, crate::store::StoreError> {
    let (number, size, crc64) = (part.number, to_u64(part.body.len()), part.crc64);
    let stored = store.put_part(upload, part).await?;
    if stored.number != number || stored.size != size {
        let reason =
            format!("part {number} of {size} bytes was stored as part {} of {}", stored.number, stored.size);
        return Err(mismatch(store, upload, "UploadPart", reason));
    }
    Ok(Sent { stored, crc64, copied: None, fetched: 0 })
}

async fn copy(
    store: &dyn ObjectStore,
    upload: &Upload,
    Copy { part, pieces }: Copy,
    base: &CopySource,
) -> Result<Sent, Trouble> {
    let (number, size, crc64) = (part.number, part.len(), part.crc64);
    let (at, start) = (part.at, part.range.start);
    let stored = match store.copy_part(upload, part, base).await {
        Ok(stored) => stored,
        Err(error) => return Err(of_base(store, base, error).await),
    };
    if (stored.number, stored.size) != (number, size) || stored.crc64.is_some_and(|found| found != crc64) {
        let (found, bytes) = (stored.number, stored.size);
        let reason = format!("part {number} of {size} bytes was stored as part {found} of {bytes}");
        return Err(WhyFull::Disproved(reason).into());
    }
    let segments = pieces.into_iter().filter_map(|piece| {
        let place = at + (piece.range.start - start);
        Some(CopiedSegment { range: place..place + piece.len(), crc64: piece.crc64? })
    });
    Ok(Sent { stored, crc64, copied: Some(segments.collect()), fetched: 0 })
}

/// Fills the holes of a part with bytes of the base, and returns how many were fetched. Whole segments are
/// fetched and compared with their checksums, even if a hole needs only a part of one.
async fn fill(
    store: &dyn ObjectStore,
    base: &CopySource,
    draft: &mut Draft,
    fetches: &Semaphore,
) -> Result<u64, Trouble> {
    // An error would mean that the semaphore is closed, which no code does.
    let _permit = fetches.acquire().await;
    let holes = std::mem::take(&mut draft.holes);
    let mut fetched = 0;
    for hole in &holes {
        for piece in &hole.pieces {
            let Some(expected) = piece.crc64 else {
                draft.bytes_of(hole)[within(hole, &piece.range)].fill(0);
                continue;
            };
            let mut sum = RunningCrc64::default();
            let mut at = piece.range.start;
            while at < piece.range.end {
                let range = at..piece.range.end.min(at + FETCH.0);
                let version = Some(&base.etag).filter(|etag| !etag.0.is_empty());
                let bytes = match store.get_range(&base.key, range.clone(), version).await {
                    Ok(bytes) => bytes,
                    Err(error) => return Err(of_base(store, base, error).await),
                };
                if to_u64(bytes.len()) != range.end - range.start {
                    let reason = format!("{} bytes came of {}", bytes.len(), range.end - range.start);
                    return Err(WhyFull::Damaged { at, reason }.into());
                }
                sum.update(&bytes);
                let target = within(hole, &range);
                let skipped = to_usize(hole.range.start.clamp(range.start, range.end) - range.start);
                draft.bytes_of(hole)[target.clone()].copy_from_slice(&bytes[skipped..][..target.len()]);
                fetched += to_u64(bytes.len());
                at = range.end;
            }
            if sum.sum() != expected {
                let reason = format!("CRC64NVME {}, not {expected}", sum.sum());
                return Err(WhyFull::Damaged { at: piece.range.start, reason }.into());
            }
        }
    }
    Ok(fetched)
}

/// Returns the part of a hole that `range` of the base fills, from the hole's first byte on.
fn within(hole: &Hole, range: &Range<u64>) -> Range<usize> {
    let place = |at: u64| to_usize(at.clamp(hole.range.start, hole.range.end) - hole.range.start);
    place(range.start)..place(range.end)
}
