//! Bodies to parts: the one owner of the layout.

use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::Receiver;
use tokio::sync::mpsc;

use super::compress::{Bodies, Body, GuestHash, ZeroHashes};
use super::manifest::Segment;
use super::parts::{Message, PartWriter};
use super::plan::{CHUNK, Hashing, Plan};
use super::read::Slot;
use super::{Context, ConvertError, Stopped};
use crate::hash::{Crc64, RunningCrc64};
use crate::qcow2::{Compression, Image, Layout};
use crate::source::Source;
use crate::units::{GuestOffset, HostOffset, to_u64, to_usize};

/// What came out, for the manifest and the report.
#[derive(Debug)]
pub struct Assembled {
    /// Bytes of the image.
    pub size: u64,
    /// Over all of them.
    pub crc64: Crc64,
    /// Every segment that holds anything, in order.
    pub segments: Vec<Segment>,
}

/// Lays out every slot's bodies in disk order, then the tables, then the head. `None` when the work stopped before; the reason is
/// with the context.
pub fn run(
    source: &dyn Source,
    slots: &Receiver<Slot>,
    plan: &Plan,
    to: mpsc::Sender<Message>,
    context: &Context,
) -> Option<Assembled> {
    let mut assembler = Assembler::new(plan, to, context);
    for slot in slots {
        match slot {
            Slot::Hole { start, len } => assembler.skip(start, len).ok()?,
            Slot::Chunk(bodies) => {
                let Ok(bodies) = bodies.recv() else {
                    // A reader or compressor gave up. Where it did so of itself, its own error came first and stays.
                    context.fail(ConvertError::StageDied { stage: "compression" });
                    return None;
                };
                assembler.take(bodies).ok()?;
            }
        }
        if context.cancel.is_cancelled() {
            return None;
        }
    }
    // The channel also closes when the reading stage gave up.
    if context.cancel.is_cancelled() {
        return None;
    }
    if let Err(error) = source.settle() {
        context.fail(ConvertError::Source(error));
        return None;
    }
    assembler.finish().ok()
}

struct Assembler<'a> {
    plan: &'a Plan,
    context: &'a Context,
    layout: Layout,
    parts: PartWriter<'a>,
    open: Option<OpenSegment>,
    segments: Vec<Segment>,
    zeros: ZeroHashes,
}

/// The segment whose chunks are coming in.
struct OpenSegment {
    number: u64,
    /// Where its first body went, once there is one.
    host: HostOffset,
    crc64: RunningCrc64,
    len: u64,
    /// Chunks with raw clusters, which go behind the last compressed body.
    held: Vec<Bodies>,
    /// One hash for each chunk so far.
    hashes: Vec<GuestHash>,
}

impl<'a> Assembler<'a> {
    fn new(plan: &'a Plan, to: mpsc::Sender<Message>, context: &'a Context) -> Self {
        let compression = match plan.codec {
            crate::compress::Codec::Deflate => Compression::Deflate,
            crate::compress::Codec::Zstd => Compression::Zstd,
        };
        Self {
            plan,
            context,
            layout: Layout::new(plan.geometry, compression),
            parts: PartWriter::new(plan, to, context),
            open: None,
            segments: Vec::new(),
            zeros: ZeroHashes::default(),
        }
    }

    fn segment_of(&self, start: GuestOffset) -> u64 {
        start.0 / self.plan.geometry.segment_size().0
    }

    /// The segment that `start` lies in, opened if it is a new one.
    fn open(&mut self, start: GuestOffset) -> Result<&mut OpenSegment, Stopped> {
        let number = self.segment_of(start);
        if self.open.as_ref().is_some_and(|open| open.number != number) {
            self.close()?;
        }
        let host = self.layout.end();
        Ok(self.open.get_or_insert_with(|| OpenSegment {
            number,
            host,
            crc64: RunningCrc64::default(),
            len: 0,
            held: Vec::new(),
            hashes: Vec::new(),
        }))
    }

    fn skip(&mut self, start: GuestOffset, len: u64) -> Result<(), Stopped> {
        let end = start.0 + len;
        let mut at = start.0;
        while at < end {
            let number = self.segment_of(GuestOffset(at));
            let segment_end = ((number + 1) * self.plan.geometry.segment_size().0).min(end);
            let whole = at == number * self.plan.geometry.segment_size().0;
            if whole && self.open.as_ref().is_none_or(|open| open.number != number) && segment_end - at == self.segment_len(number)
            {
                // A segment of nothing but holes leaves no trace.
                self.close()?;
            } else {
                while at < segment_end {
                    let chunk = CHUNK.0.min(segment_end - at);
                    let hash = self.zeros.of(to_usize(chunk));
                    self.open(GuestOffset(at))?.hashes.push(hash);
                    at += chunk;
                }
            }
            at = segment_end;
        }
        self.context.counters.zero.fetch_add(len, Relaxed);
        self.context.counters.done.store(end, Relaxed);
        Ok(())
    }

    /// Bytes of the disk in segment `number`.
    fn segment_len(&self, number: u64) -> u64 {
        let size = self.plan.geometry.segment_size().0;
        size.min(self.context.source_size - number * size)
    }

    fn take(&mut self, mut bodies: Bodies) -> Result<(), Stopped> {
        let cluster = self.plan.geometry.cluster();
        let start = bodies.first.offset(cluster);
        let end = start.0 + to_u64(bodies.len);
        self.open(start)?;
        let (mut zero, mut raw) = (0, 0);
        for (index, kind) in (0_u64..).zip(&bodies.kinds) {
            match *kind {
                Body::Zero => zero += 1,
                Body::Raw => raw += 1,
                Body::Compressed(len) => {
                    self.layout.place_compressed(bodies.first + index, len);
                }
            }
        }
        self.write(bodies.compressed.bytes())?;
        bodies.compressed.release();
        let counters = &self.context.counters;
        // The disk's last cluster may reach past its end.
        counters.zero.fetch_add((zero * cluster.size()).min(to_u64(bodies.len)), Relaxed);
        counters.raw.fetch_add((raw * cluster.size()).min(to_u64(bodies.len)), Relaxed);
        counters.stored.store(self.parts.position(), Relaxed);
        counters.done.store(end, Relaxed);
        let open = self.open(start)?;
        open.hashes.extend(bodies.hash);
        if bodies.raw.is_some() {
            open.held.push(bodies);
        }
        if end == (self.segment_of(start) + 1) * self.plan.geometry.segment_size().0 {
            self.close()?;
        }
        Ok(())
    }

    /// Adds bytes to the image and to the open segment's sum.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        if let Some(open) = &mut self.open {
            open.crc64.update(bytes);
            open.len += to_u64(bytes.len());
        }
        self.parts.append(bytes)
    }

    /// Gaps are less than a cluster.
    fn write_gap(&mut self, len: u64) -> Result<(), Stopped> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = to_usize(len);
        while left > 0 {
            let piece = left.min(ZEROS.len());
            self.write(&ZEROS[..piece])?;
            left -= piece;
        }
        Ok(())
    }

    /// Ends the open segment: its raw clusters, and zeros up to the next host cluster.
    fn close(&mut self) -> Result<(), Stopped> {
        let cluster = self.plan.geometry.cluster();
        let Some(open) = &mut self.open else { return Ok(()) };
        for bodies in std::mem::take(&mut open.held) {
            let bytes = bodies.raw.as_ref().expect("only chunks with raw clusters are held");
            for (index, kind) in bodies.kinds.iter().enumerate() {
                if *kind == Body::Raw {
                    let place = self.layout.place_raw(bodies.first + to_u64(index));
                    self.write_gap(place.gap)?;
                    self.write(&bytes[Bodies::range(index, cluster)])?;
                }
            }
        }
        let gap = self.layout.end_segment();
        self.write_gap(gap)?;
        debug_assert_eq!(self.layout.end().0, self.parts.position(), "the layout and the bytes written agree");
        let Some(open) = self.open.take() else { return Ok(()) };
        if open.len > 0 {
            let blake3 = (self.plan.hashing == Hashing::Blake3).then(|| segment_hash(&open.hashes));
            let guest = GuestOffset(open.number * self.plan.geometry.segment_size().0);
            self.segments.push(Segment { guest, host: open.host, length: open.len, crc64: open.crc64.sum(), blake3 });
        }
        self.context.counters.stored.store(self.parts.position(), Relaxed);
        Ok(())
    }

    fn finish(mut self) -> Result<Assembled, Stopped> {
        self.close()?;
        let Image { head, tail, file_len } = self.layout.finish();
        for table in tail {
            self.parts.append(&table)?;
        }
        assert_eq!(self.parts.position(), file_len.0, "the tables end where the layout says");
        self.context.counters.stored.store(self.parts.position(), Relaxed);
        let (size, crc64) = self.parts.finish(&head)?;
        Ok(Assembled { size, crc64, segments: self.segments })
    }
}

/// BLAKE3 over the segment's chunk hashes, in order.
fn segment_hash(chunks: &[GuestHash]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for hash in chunks {
        hasher.update(hash);
    }
    hasher.finalize()
}
