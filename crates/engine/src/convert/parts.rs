//! Filling of parts as the planner decides. Part 1 stays in memory until the head is known, and is sent last.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use snapferry_base::cancel::Stopped;
use snapferry_base::units::{to_u64, to_usize};
use tokio::sync::mpsc;

use super::Context;
use super::plan::Plan;
use super::planner::{Action, Planner, Reusable};
use crate::hash::Crc64;
use crate::source::aligned::{BufferPool, PooledBuf};
use crate::store::{CopiedPart, Part, PartNumber};

/// Part for the upload.
#[derive(Debug)]
pub enum Outgoing {
    /// All bytes are here.
    Part(Part),
    /// Some bytes are in the base.
    Draft(Draft),
    /// The store copies the part from the base.
    Copy(Copy),
}

/// Part whose holes the upload fills with bytes of the base.
#[derive(Debug)]
pub struct Draft {
    pub number: PartNumber,
    /// Offset of the part in the image, in bytes.
    pub at: u64,
    buf: PooledBuf,
    filled: usize,
    pub holes: Vec<Hole>,
}

/// Range of a part that is in the base.
#[derive(Debug)]
pub struct Hole {
    /// Offset of the hole in the part, in bytes.
    pub start: usize,
    /// The hole's bytes in the base.
    pub range: Range<u64>,
    /// Pieces of the base that contain the range. The first and the last may reach beyond it.
    pub pieces: Vec<Piece>,
}

/// Segment of the base, or zeros between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Place in the base, in bytes.
    pub range: Range<u64>,
    /// Checksum of a segment; `None` for zeros.
    pub crc64: Option<Crc64>,
}

impl Piece {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn sum(&self) -> Crc64 {
        self.crc64.unwrap_or_else(|| Crc64::of_zeros(self.len()))
    }
}

/// Part that the store copies.
#[derive(Debug)]
pub struct Copy {
    pub part: CopiedPart,
    /// Pieces of the base that make up the part.
    pub pieces: Vec<Piece>,
}

impl Draft {
    /// Returns the hole's bytes, to fill.
    pub fn bytes_of(&mut self, hole: &Hole) -> &mut [u8] {
        &mut self.buf[hole.start..hole.start + to_usize(hole.range.end - hole.range.start)]
    }

    /// Returns the part, once its holes are filled.
    pub fn into_part(self) -> Part {
        let Self { number, at, buf, filled, .. } = self;
        let crc64 = Crc64::of(&buf[..filled]);
        // The buffer goes back to the pool when the last handle on these bytes is dropped. The bytes are
        // never copied.
        let body = Bytes::from_owner(buf).slice(..filled);
        Part { number, at, body, crc64 }
    }
}

/// Collects bytes into part buffers, and passes each part on when it ends.
pub struct PartWriter<'a> {
    pool: BufferPool,
    to: mpsc::Sender<Outgoing>,
    context: &'a Context,
    planner: Planner,
    /// Part 1, once it has ended.
    first: Option<Draft>,
    open: Option<Draft>,
    /// Number of the part that is open, or comes next.
    number: u32,
    /// Offset of that part in the image.
    at: u64,
    head_len: usize,
    /// Length of the image so far, with what is planned and in no part yet.
    position: u64,
    /// Segments of the base that are planned and in no part yet, in order.
    reused: VecDeque<Piece>,
}

impl<'a> PartWriter<'a> {
    /// Makes a writer that leaves room for the head at the front of part 1.
    pub fn new(plan: &Plan, to: mpsc::Sender<Outgoing>, context: &'a Context) -> Self {
        let head_len = plan.geometry.head_len();
        Self {
            pool: BufferPool::new(plan.part_buffers(), plan.part_len()),
            to,
            context,
            planner: Planner::new(plan.part_limits(), head_len),
            first: None,
            open: None,
            number: 1,
            at: 0,
            head_len: to_usize(head_len),
            position: head_len,
            reused: VecDeque::new(),
        }
    }

    /// Returns the number of bytes so far, including the room for the head.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Sets the most bytes of the image that may follow, those of the next segment included unless it is
    /// reused.
    pub fn expect_at_most(&mut self, rest: u64) {
        self.planner.expect_at_most(rest);
    }

    /// Adds `bytes` to the image, and passes every part on that ends, except part 1.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.position += to_u64(bytes.len());
        self.planner.bytes(to_u64(bytes.len()));
        self.follow(bytes)
    }

    /// Adds a segment of the base to the image, with the gap in front of it.
    pub fn reuse(&mut self, segment: Reusable, crc64: Crc64) -> Result<(), Stopped> {
        let range = segment.range.clone();
        self.position += segment.gap + (range.end - range.start);
        self.reused.push_back(Piece { range, crc64: Some(crc64) });
        self.planner.reuse(segment);
        self.follow(&[])
    }

    /// Does what the planner says, with the bytes that were announced to it.
    fn follow(&mut self, mut announced: &[u8]) -> Result<(), Stopped> {
        while let Some(action) = self.planner.next() {
            match action {
                Action::Append(len) => {
                    let (now, rest) = announced.split_at(to_usize(len));
                    self.room(now.len())?.copy_from_slice(now);
                    announced = rest;
                }
                Action::Zeros(len) => self.room(to_usize(len))?.fill(0),
                Action::Hole(range) => {
                    let pieces = self.pieces(&range);
                    let draft = self.open()?;
                    let start = draft.filled;
                    draft.filled += to_usize(range.end - range.start);
                    draft.holes.push(Hole { start, range, pieces });
                }
                Action::End => self.end()?,
                Action::Copy(range) => self.copy(range)?,
            }
        }
        Ok(())
    }

    /// Returns the open part. Waits for a buffer if a new part begins.
    fn open(&mut self) -> Result<&mut Draft, Stopped> {
        if self.open.is_none() {
            let buf = self.context.take(&self.pool)?;
            let filled = if self.number == 1 { self.head_len } else { 0 };
            let (number, at) = (PartNumber(self.number), self.at);
            self.open = Some(Draft { number, at, buf, filled, holes: Vec::new() });
        }
        Ok(self.open.as_mut().expect("set above"))
    }

    /// Returns the next `len` bytes of the open part, to fill.
    fn room(&mut self, len: usize) -> Result<&mut [u8], Stopped> {
        let draft = self.open()?;
        let start = draft.filled;
        draft.filled += len;
        Ok(&mut draft.buf[start..][..len])
    }

    /// Returns the pieces of the base that contain `range`, and forgets those that end with it.
    fn pieces(&mut self, range: &Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while let Some(next) = self.reused.front().filter(|next| next.range.start < range.end) {
            if at < next.range.start {
                pieces.push(Piece { range: at..next.range.start, crc64: None });
            }
            pieces.push(next.clone());
            at = next.range.end;
            if at > range.end {
                break;
            }
            self.reused.pop_front();
        }
        if at < range.end {
            pieces.push(Piece { range: at..range.end, crc64: None });
        }
        pieces
    }

    /// Ends the open part, which is full, the last one, or in front of a copy.
    fn end(&mut self) -> Result<(), Stopped> {
        // Part 1 may consist of the head alone.
        self.open()?;
        let Some(draft) = self.open.take() else { return Ok(()) };
        self.at += to_u64(draft.filled);
        self.number += 1;
        if draft.number == PartNumber(1) {
            self.first = Some(draft);
            return Ok(());
        }
        self.send(draft)
    }

    fn copy(&mut self, range: Range<u64>) -> Result<(), Stopped> {
        let pieces = self.pieces(&range);
        let crc64 = pieces.iter().fold(Crc64::default(), |sum, piece| sum.then(piece.sum(), piece.len()));
        let len = range.end - range.start;
        debug_assert_eq!(pieces.iter().map(Piece::len).sum::<u64>(), len, "cuts are ends of segments");
        let part = CopiedPart { number: PartNumber(self.number), at: self.at, range, crc64 };
        self.at += len;
        self.number += 1;
        self.pass_on(Outgoing::Copy(Copy { part, pieces }))
    }

    fn send(&self, draft: Draft) -> Result<(), Stopped> {
        let complete = draft.holes.is_empty();
        self.pass_on(if complete { Outgoing::Part(draft.into_part()) } else { Outgoing::Draft(draft) })
    }

    fn pass_on(&self, part: Outgoing) -> Result<(), Stopped> {
        self.to.blocking_send(part).map_err(|_| Stopped)
    }

    /// Writes `head` into its room, and passes the parts on that are left.
    pub fn finish(mut self, head: &[u8]) -> Result<(), Stopped> {
        assert_eq!(head.len(), self.head_len, "the head has the length it was planned with");
        self.planner.finish();
        self.follow(&[])?;
        assert_eq!(self.at, self.position, "all bytes are in parts");
        let mut first = self.first.take().expect("every image has a tail behind its head");
        first.buf[..head.len()].copy_from_slice(head);
        self.send(first)
    }
}
