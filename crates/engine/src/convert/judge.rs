//! Judging stage of a run with a base: compares the hash of each segment with the base's, and has only those
//! compressed that differ.
//!
//! No state locks up. Chunk buffers are taken in disk order, and hashing waits for nothing. Body buffers are
//! taken in disk order by this stage alone; a segment needs as many as it has chunks, at most, and the
//! assembler gives them back without waiting for a later segment.

use crossbeam_channel::{Receiver, Sender, bounded};
use snapferry_base::cancel::Stopped;
use snapferry_base::units::{GuestOffset, to_u64, to_usize};
use snapferry_qcow2::SEGMENT;

use super::compress::{Chunk, Encoding, HashedChunk, Workers};
use super::plan::CHUNK;
use super::read::{Pools, Slot, Unjudged};
use super::{Context, ConvertError};
use crate::hash::{GuestHash, ZeroHashes, segment_hash};
use crate::image::base::Base;
use crate::pipeline::PipelineError;

/// Judges every segment of the disk, in its order. If the work stops before the end, the context has the
/// reason, or the stage that ended the work has.
pub fn run(
    base: &Base,
    queue: &Receiver<Unjudged>,
    slots: &Sender<Slot>,
    pools: &Pools,
    workers: &Workers,
    context: &Context,
) {
    let zeros = ZeroHashes::default();
    let mut judge = Judge { base, slots, pools, workers, context, open: Segment::default(), next: 0 };
    // An error means that another stage has ended the work.
    let _stopped = queue.iter().try_for_each(|unjudged| match unjudged {
        Unjudged::Hole { start, len } => {
            let end = start.0 + len;
            (start.0..end).step_by(to_usize(CHUNK.0)).try_for_each(|at| {
                let len = CHUNK.0.min(end - at);
                judge.add(Piece::Zeros { start: GuestOffset(at), len }, zeros.of(to_usize(len)))
            })
        }
        Unjudged::Chunk(hashed) => {
            let Ok(HashedChunk { start, len, hash, data }) = hashed.recv() else {
                // A reader or a hash job has stopped. If it failed, its own error came first and stays.
                context.fail(ConvertError::Pipeline(PipelineError::StageDied { stage: "hashing" }));
                return Err(Stopped);
            };
            let piece = data.map_or(Piece::Zeros { start, len: to_u64(len) }, Piece::Data);
            judge.add(piece, hash)
        }
    });
}

/// One chunk of the open segment.
enum Piece {
    Zeros { start: GuestOffset, len: u64 },
    Data(Chunk),
}

/// Segment whose chunks are coming in.
#[derive(Default)]
struct Segment {
    pieces: Vec<Piece>,
    /// One hash for each piece.
    hashes: Vec<GuestHash>,
}

struct Judge<'a> {
    base: &'a Base,
    slots: &'a Sender<Slot>,
    pools: &'a Pools,
    workers: &'a Workers,
    context: &'a Context,
    open: Segment,
    /// Offset on the disk up to which all chunks have come.
    next: u64,
}

impl Judge<'_> {
    fn add(&mut self, piece: Piece, hash: GuestHash) -> Result<(), Stopped> {
        let (start, len) = match &piece {
            Piece::Zeros { start, len } => (*start, *len),
            Piece::Data(chunk) => (chunk.start, to_u64(chunk.len)),
        };
        self.next = start.0 + len;
        self.open.pieces.push(piece);
        self.open.hashes.push(hash);
        if self.next.is_multiple_of(SEGMENT.0) || self.next == self.context.source_size {
            self.judge((self.next - 1) / SEGMENT.0)?;
        }
        Ok(())
    }

    /// Passes the open segment on, all of whose chunks are there.
    fn judge(&mut self, number: u64) -> Result<(), Stopped> {
        let Segment { pieces, hashes } = std::mem::take(&mut self.open);
        let start = GuestOffset(number * SEGMENT.0);
        let len = self.next - start.0;
        if pieces.iter().all(|piece| matches!(piece, Piece::Zeros { .. })) {
            return self.context.cancel.send(self.slots, Slot::Hole { start, len });
        }
        let old = self.base.segment(number);
        if old.is_some_and(|old| old.blake3 == segment_hash(&hashes)) {
            // The chunks' buffers go back.
            drop(pieces);
            return self.context.cancel.send(self.slots, Slot::Reused { number, start, len });
        }
        for (piece, hash) in pieces.into_iter().zip(hashes) {
            match piece {
                Piece::Zeros { start, len } => {
                    self.context.cancel.send(self.slots, Slot::Hole { start, len })?;
                }
                Piece::Data(chunk) => {
                    let out = self.context.take(&self.pools.bodies)?;
                    let (slot, encoded) = bounded(1);
                    self.context.cancel.send(self.slots, Slot::Chunk(encoded))?;
                    self.workers.encode(chunk, Encoding { out, hash: Some(hash), slot });
                }
            }
        }
        Ok(())
    }
}
