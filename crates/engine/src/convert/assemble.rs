//! Assembly stage: puts bodies into parts. It is the only owner of the layout.

use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::Receiver;
use snapferry_base::cancel::Stopped;
use snapferry_base::units::{ByteCount, GuestOffset, to_u64, to_usize};
use snapferry_qcow2::{Finished, Layout};
use tokio::sync::mpsc;

use super::compress::{Body, EncodedChunk};
use super::parts::{Outgoing, PartWriter};
use super::plan::{CHUNK, Hashing, Plan};
use super::planner::Reusable;
use super::read::Slot;
use super::{Context, ConvertError};
use crate::hash::{Crc64, GuestHash, RunningCrc64, ZeroHashes, segment_hash};
use crate::image::base::{Base, BaseSegment};
use crate::manifest::{Folded, HeadRecord, Segment, TablesRecord, fold};
use crate::pipeline::PipelineError;
use crate::source::Source;

/// Result of the assembly, for the manifest and the report.
#[derive(Debug)]
pub struct Assembled {
    /// Size of the image in bytes.
    pub size: u64,
    /// Checksum of the whole image, joined from those of head, segments and tables. The parts' checksums do
    /// not go into it: the upload compares the two, which come from the same bytes on two ways.
    pub crc64: Crc64,
    /// Length and checksum of the head.
    pub head: HeadRecord,
    /// Place and checksum of the tables.
    pub tables: TablesRecord,
    /// Bytes of the disk that were laid out, as bodies or as zeros: all of them.
    pub accounted: ByteCount,
    /// Every segment that holds data, in disk order.
    pub segments: Vec<Segment>,
    /// Number of these segments that were taken from the base.
    pub reused: u64,
}

/// Reason why the assembler made no image.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// The work stopped before the end; the context holds the reason.
    Stopped,
    /// The slots did not cover the whole disk; this many of its bytes came in order. The earlier stages know
    /// the reason.
    Short(ByteCount),
}

impl From<Stopped> for Unfinished {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Lays out every slot's bodies in disk order, then the tables, then the head. The end of the slots proves
/// nothing: they also end if the reading stage fails. The image is whole only if the slots cover the disk,
/// from its first byte to its last.
pub fn run(
    source: &dyn Source,
    slots: &Receiver<Slot>,
    plan: &Plan,
    base: Option<&Base>,
    to: mpsc::Sender<Outgoing>,
    context: &Context,
) -> Result<Assembled, Unfinished> {
    let mut assembler = Assembler::new(plan, to, context);
    for slot in slots {
        match slot {
            Slot::Hole { start, len } => assembler.skip(start, len)?,
            Slot::Reused { number, start, len } => {
                let old = base.and_then(|base| Some((base.segment(number)?, base.shape(number)?)));
                let Some((old, bodies)) = old else {
                    context.fail(ConvertError::Pipeline(PipelineError::StageDied { stage: "judging" }));
                    return Err(Unfinished::Stopped);
                };
                assembler.reuse(old, &bodies, start, len)?;
            }
            Slot::Chunk(chunk) => {
                let Ok(chunk) = chunk.recv() else {
                    // A reader or compressor has stopped. If it failed, its own error came first and stays.
                    context.fail(ConvertError::Pipeline(PipelineError::StageDied { stage: "compression" }));
                    return Err(Unfinished::Stopped);
                };
                assembler.take(chunk)?;
            }
        }
        if context.cancel.is_cancelled() {
            return Err(Unfinished::Stopped);
        }
    }
    if context.cancel.is_cancelled() {
        return Err(Unfinished::Stopped);
    }
    if assembler.next != context.source_size {
        return Err(Unfinished::Short(ByteCount(assembler.next)));
    }
    if let Err(error) = source.settle() {
        context.fail(ConvertError::Source(error));
        return Err(Unfinished::Stopped);
    }
    Ok(assembler.finish()?)
}

struct Assembler<'a> {
    plan: &'a Plan,
    context: &'a Context,
    /// Offset where the next slot has to begin: everything before it is laid out.
    next: u64,
    layout: Layout,
    parts: PartWriter<'a>,
    open: Option<OpenSegment>,
    segments: Vec<Segment>,
    reused: u64,
    zeros: ZeroHashes,
}

/// Segment whose chunks are coming in. Nothing of it is written before it is complete: its raw clusters go
/// first, and only then is it known if there are any.
#[derive(Default)]
struct OpenSegment {
    number: u64,
    /// Chunks of the segment that hold data.
    held: Vec<EncodedChunk>,
    /// One hash for each chunk so far.
    hashes: Vec<GuestHash>,
}

impl<'a> Assembler<'a> {
    fn new(plan: &'a Plan, to: mpsc::Sender<Outgoing>, context: &'a Context) -> Self {
        Self {
            plan,
            context,
            next: 0,
            layout: Layout::new(plan.geometry, plan.codec).in_version(plan.version),
            parts: PartWriter::new(plan, to, context),
            open: None,
            segments: Vec::new(),
            reused: 0,
            zeros: ZeroHashes::default(),
        }
    }

    fn segment_of(&self, start: GuestOffset) -> u64 {
        start.0 / self.plan.geometry.segment_size().0
    }

    /// Returns the segment that contains `start`, and opens it if it is a new one.
    fn open(&mut self, start: GuestOffset) -> Result<&mut OpenSegment, Stopped> {
        let number = self.segment_of(start);
        if self.open.as_ref().is_some_and(|open| open.number != number) {
            self.close()?;
        }
        Ok(self.open.get_or_insert_with(|| OpenSegment { number, ..OpenSegment::default() }))
    }

    /// Records that `len` bytes of the disk from `start` are laid out. They must directly follow the bytes
    /// before.
    fn account(&mut self, start: GuestOffset, len: u64) -> Result<(), Unfinished> {
        let end = start
            .0
            .checked_add(len)
            .filter(|&end| start.0 == self.next && len > 0 && end <= self.context.source_size);
        self.next = end.ok_or(Unfinished::Short(ByteCount(self.next)))?;
        Ok(())
    }

    fn skip(&mut self, start: GuestOffset, len: u64) -> Result<(), Unfinished> {
        self.account(start, len)?;
        let end = start.0 + len;
        let mut at = start.0;
        while at < end {
            let number = self.segment_of(GuestOffset(at));
            let segment_end = ((number + 1) * self.plan.geometry.segment_size().0).min(end);
            let whole = at == number * self.plan.geometry.segment_size().0;
            if whole
                && self.open.as_ref().is_none_or(|open| open.number != number)
                && segment_end - at == self.segment_len(number)
            {
                // A segment of holes alone leaves no entry.
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
        self.context.counters.set_done(end);
        Ok(())
    }

    /// Returns the number of bytes of the disk in segment `number`.
    fn segment_len(&self, number: u64) -> u64 {
        let size = self.plan.geometry.segment_size().0;
        size.min(self.context.source_size - number * size)
    }

    fn take(&mut self, chunk: EncodedChunk) -> Result<(), Unfinished> {
        let cluster = self.plan.geometry.cluster();
        let start = chunk.first.offset(cluster);
        let len = to_u64(chunk.len);
        // A chunk without a body for each of its clusters does not count.
        let covered = if to_u64(chunk.kinds.len()) == cluster.clusters_in(len) { len } else { 0 };
        self.account(start, covered)?;
        let end = start.0 + len;
        let bytes_of = |kind: Body| {
            let clusters = to_u64(chunk.kinds.iter().filter(|&&found| found == kind).count());
            // The disk's last cluster may reach past its end.
            (clusters * cluster.size()).min(len)
        };
        let counters = &self.context.counters;
        counters.zero.fetch_add(bytes_of(Body::Zero), Relaxed);
        counters.raw.fetch_add(bytes_of(Body::Raw), Relaxed);
        counters.set_done(end);
        let open = self.open(start)?;
        open.hashes.extend(chunk.hash);
        if chunk.kinds.iter().any(|kind| *kind != Body::Zero) {
            open.held.push(chunk);
        }
        if end == (self.segment_of(start) + 1) * self.plan.geometry.segment_size().0 {
            self.close()?;
        }
        Ok(())
    }

    /// Takes a segment from the base. It is placed as a new one is, by the lengths of its bodies, so that the
    /// image is the one that compression would have made.
    fn reuse(
        &mut self,
        old: &BaseSegment,
        bodies: &[Body],
        start: GuestOffset,
        len: u64,
    ) -> Result<(), Unfinished> {
        let cluster = self.plan.geometry.cluster();
        let covered = if to_u64(bodies.len()) == cluster.clusters_in(len) { len } else { 0 };
        self.account(start, covered)?;
        self.close()?;
        let first = start.cluster(cluster);
        let bodies = || (0_u64..).zip(bodies);
        let before = self.layout.end();
        let mut host = None;
        let mut bytes_of_raw = 0;
        for (index, _) in bodies().filter(|(_, body)| **body == Body::Raw) {
            let position = self.layout.place_raw(first + index);
            host.get_or_insert(position.at);
            bytes_of_raw += cluster.size();
        }
        let host = host.unwrap_or(before);
        let mut bytes_of_zeros = 0;
        for (index, body) in bodies() {
            match *body {
                Body::Compressed(len) => {
                    self.layout.place_compressed(first + index, len);
                }
                Body::Zero => bytes_of_zeros += cluster.size(),
                Body::Raw => {}
            }
        }
        let length = self.layout.end().0 - host.0;
        assert_eq!(length, old.length, "the base was checked when it was opened");
        self.expect_at_most(self.segment_of(start), 0);
        let reusable = Reusable {
            gap: host.0 - before.0,
            range: old.host.0..old.host.0 + old.length,
            before: old.before,
            behind: old.behind,
        };
        self.parts.reuse(reusable, old.crc64)?;
        debug_assert_eq!(
            self.layout.end().0,
            self.parts.position(),
            "the layout and the bytes written agree"
        );
        let BaseSegment { guest, crc64, blake3, .. } = *old;
        self.segments.push(Segment { guest, host, length, crc64, blake3: Some(blake3) });
        self.reused += 1;
        let counters = &self.context.counters;
        // The disk's last cluster may reach past its end.
        counters.zero.fetch_add(bytes_of_zeros.min(len), Relaxed);
        counters.raw.fetch_add(bytes_of_raw.min(len), Relaxed);
        counters.unchanged.fetch_add(len, Relaxed);
        counters.set_done(start.0 + len);
        counters.set_stored(self.parts.position());
        Ok(())
    }

    /// Prepares the parts for the end of segment `number`, of which at most `new` bytes are to come.
    fn expect_at_most(&mut self, number: u64, new: u64) {
        let geometry = &self.plan.geometry;
        let cluster = geometry.cluster();
        let behind = (number + 1).saturating_mul(geometry.segment_size().0);
        let clusters = cluster.round_up(geometry.virtual_size().0.saturating_sub(behind));
        // One cluster for the gaps: those of full clusters make up for the rest.
        self.parts.expect_at_most(new + clusters + cluster.size() + geometry.tables_bound().0);
    }

    /// Adds `gap` zeros to the image.
    fn write_gap(&mut self, gap: u64) -> Result<(), Stopped> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut remaining = to_usize(gap);
        while remaining > 0 {
            let piece = remaining.min(ZEROS.len());
            self.parts.append(&ZEROS[..piece])?;
            remaining -= piece;
        }
        Ok(())
    }

    /// Ends the open segment: writes its raw clusters, if any, from the start of a host cluster on, and its
    /// compressed bodies right behind. So only segments with raw clusters have a gap in front of them, and no
    /// segment has a gap inside.
    fn close(&mut self) -> Result<(), Stopped> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if open.held.is_empty() {
            return Ok(());
        }
        let cluster = self.plan.geometry.cluster();
        self.expect_at_most(open.number, self.plan.geometry.segment_size().0 + cluster.size());
        let mut crc64 = RunningCrc64::default();
        let mut host = None;
        for chunk in open.held.iter().filter(|chunk| chunk.raw.is_some()) {
            let bytes = chunk.raw.as_ref().expect("filtered for it");
            for (index, _) in chunk.kinds.iter().enumerate().filter(|(_, kind)| **kind == Body::Raw) {
                let position = self.layout.place_raw(chunk.first + to_u64(index));
                self.write_gap(position.gap)?;
                host.get_or_insert(position.at);
                let bytes = &bytes[EncodedChunk::range(index, cluster)];
                crc64.update(bytes);
                self.parts.append(bytes)?;
            }
        }
        let host = host.unwrap_or(self.layout.end());
        for chunk in open.held {
            for (index, kind) in (0_u64..).zip(&chunk.kinds) {
                if let Body::Compressed(len) = *kind {
                    self.layout.place_compressed(chunk.first + index, len);
                }
            }
            crc64.update(chunk.compressed.bytes());
            self.parts.append(chunk.compressed.bytes())?;
        }
        debug_assert_eq!(
            self.layout.end().0,
            self.parts.position(),
            "the layout and the bytes written agree"
        );
        let blake3 = (self.plan.hashing == Hashing::Blake3).then(|| segment_hash(&open.hashes));
        let guest = GuestOffset(open.number * self.plan.geometry.segment_size().0);
        let length = self.layout.end().0 - host.0;
        self.segments.push(Segment { guest, host, length, crc64: crc64.sum(), blake3 });
        self.context.counters.set_stored(self.parts.position());
        Ok(())
    }

    fn finish(mut self) -> Result<Assembled, Stopped> {
        self.close()?;
        let gap = self.layout.pad_to_cluster();
        self.parts.expect_at_most(gap + self.plan.geometry.tables_bound().0);
        self.write_gap(gap)?;
        let offset = self.layout.end();
        let Finished { head, tail, file_len } = self.layout.finish();
        let mut crc64 = RunningCrc64::default();
        for table in tail {
            crc64.update(&table);
            self.parts.append(&table)?;
        }
        assert_eq!(self.parts.position(), file_len.0, "the tables end where the layout says");
        self.context.counters.set_stored(self.parts.position());
        let tables = TablesRecord { offset, length: file_len.0 - offset.0, crc64: crc64.sum() };
        let head_record = HeadRecord { length: to_u64(head.len()), crc64: Crc64::of(&head) };
        self.parts.finish(&head)?;
        let cluster = ByteCount(self.plan.geometry.cluster().size());
        let Folded { size, crc64 } = fold(&head_record, &self.segments, &tables, cluster)
            .expect("the layout places pieces one behind the other");
        Ok(Assembled {
            size: size.0,
            crc64,
            head: head_record,
            tables,
            accounted: ByteCount(self.next),
            segments: self.segments,
            reused: self.reused,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::compress::cores;
    use crate::convert::plan::Options;
    use crate::source::{Extent, SourceError};
    use crate::store::Location;

    const SIZE: u64 = 5 * CHUNK.0 + 512;

    /// A disk of zeros.
    struct Zeros;

    impl Source for Zeros {
        fn name(&self) -> &str {
            "zeros"
        }
        fn size(&self) -> ByteCount {
            ByteCount(SIZE)
        }
        fn alignment(&self) -> usize {
            512
        }
        fn read_at(&self, _: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
            into.fill(0);
            Ok(())
        }
        fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
            Ok(Extent::Hole { end: GuestOffset(SIZE) })
        }
        fn settle(&self) -> Result<(), SourceError> {
            Ok(())
        }
    }

    /// Runs the assembler on these slots, after which the channel closes. Returns its result and the
    /// context's error.
    fn assembled(slots: Vec<Slot>) -> (Result<Assembled, Unfinished>, Option<ConvertError>) {
        let plan = Plan::new(ByteCount(SIZE), &Options::default(), Location::File, cores()).expect("a plan");
        let context = Context {
            cancel: Default::default(),
            counters: Arc::default(),
            whole: Default::default(),
            source_size: SIZE,
            outcome: Arc::default(),
        };
        let (to, from) = bounded(slots.len());
        for slot in slots {
            to.send(slot).expect("there is room");
        }
        drop(to);
        let (parts, _taken) = mpsc::channel(16);
        let done = run(&Zeros, &from, &plan, None, parts, &context);
        let error = context.outcome().error.take();
        (done, error)
    }

    fn hole(chunk: u64, len: u64) -> Slot {
        Slot::Hole { start: GuestOffset(chunk * CHUNK.0), len }
    }

    #[test]
    fn only_slots_that_cover_the_disk_from_end_to_end_make_an_image() {
        let (whole, error) = assembled(vec![hole(0, CHUNK.0), hole(1, SIZE - CHUNK.0)]);
        assert!(whole.is_ok_and(|made| made.accounted == ByteCount(SIZE)) && error.is_none());
        for (slots, counted) in [
            (vec![], 0),
            (vec![hole(0, CHUNK.0)], 1),
            (vec![hole(0, 5 * CHUNK.0)], 5),
            (vec![hole(0, 2 * CHUNK.0), hole(3, SIZE - 3 * CHUNK.0)], 2),
            (vec![hole(1, SIZE - CHUNK.0)], 0),
            (vec![hole(0, CHUNK.0), hole(0, SIZE)], 1),
            (vec![hole(0, SIZE + 512)], 0),
        ] {
            let (short, error) = assembled(slots);
            // The earlier stages know the reason.
            assert_eq!(
                (short.expect_err("not all of it"), error.is_none()),
                (Unfinished::Short(ByteCount(counted * CHUNK.0)), true)
            );
        }
    }

    #[test]
    fn a_chunk_that_never_comes_is_an_error() {
        let (to, from) = bounded(1);
        drop(to);
        let (stopped, error) = assembled(vec![Slot::Chunk(from)]);
        assert_eq!(stopped.expect_err("it never came"), Unfinished::Stopped);
        assert!(
            matches!(error, Some(ConvertError::Pipeline(PipelineError::StageDied { stage: "compression" }))),
            "{error:?}"
        );
    }
}
