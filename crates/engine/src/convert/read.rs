//! Reading stage: starts reads in disk order, many at a time, and passes each chunk to the compressors.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use snapferry_base::cancel::Stopped;
use snapferry_base::threads::{Died, Team};
use snapferry_base::units::{GuestOffset, to_u64, to_usize};

use super::compress::{Chunk, EncodedChunk, Workers};
use super::counters::Bottleneck;
use super::plan::{CHUNK, Plan};
use super::{Context, ConvertError};
use crate::pipeline::PipelineError;
use crate::source::aligned::BufferPool;
use crate::source::{Extent, Source, SourceError};

/// Entry of the queue to the assembler, in disk order.
#[derive(Debug)]
pub enum Slot {
    /// A chunk's bodies, once they are there. If the sender is dropped, they will never come.
    Chunk(Receiver<EncodedChunk>),
    /// Whole chunks of zeros that were not read.
    Hole {
        /// Offset of the hole's first byte.
        start: GuestOffset,
        /// Bytes of the disk: whole chunks, except for the disk's last one.
        len: u64,
    },
}

/// One read that a reader has to do.
struct Ticket {
    chunk: Chunk,
    slot: Sender<EncodedChunk>,
}

/// Reads the whole source. `slots` gets one slot for each chunk before its read begins. Returns the bytes of
/// the disk that were passed on, after every reader has ended without an error. Returns `None` if the work
/// stopped before that; the context holds the reason then.
pub fn run(
    source: &dyn Source,
    plan: &Plan,
    slots: &Sender<Slot>,
    workers: &Workers,
    context: &Context,
) -> Option<u64> {
    let (tickets, queue) = bounded(plan.readers);
    thread::scope(|scope| {
        // The readers own the queue: after the last reader has ended, the send of a ticket fails.
        let serving = move || serve(source, &queue, workers, context);
        let readers = match Team::start(scope, "read", workers.readers(plan.readers), serving) {
            Ok(readers) => readers,
            Err(refused) => {
                context.fail(ConvertError::Pipeline(PipelineError::Threads(refused)));
                return None;
            }
        };
        let issued = issue(source, plan, slots, &tickets, workers, context);
        drop(tickets);
        let served = readers.join().map(|each| each.into_iter().sum::<u64>());
        match (issued, served) {
            (Ok(Issued { holes, chunks }), Ok(served)) if served == chunks => return Some(holes + chunks),
            (Err(Halt::Failed(error)), _) => context.fail(error),
            (_, Err(Died)) => {
                context.fail(ConvertError::Pipeline(PipelineError::StageDied { stage: "reading" }));
            }
            // The stage that ended the work has reported the reason, or the caller finds it when all stages
            // have ended.
            (Ok(_) | Err(Halt::Stopped), Ok(_)) => {}
        }
        None
    })
}

/// Bytes of the disk that were passed on.
struct Issued {
    /// Bytes in holes, which are not read.
    holes: u64,
    /// Bytes that the readers have to read.
    chunks: u64,
}

enum Halt {
    /// Another stage ended the work, and reports the reason.
    Stopped,
    Failed(ConvertError),
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

fn issue(
    source: &dyn Source,
    plan: &Plan,
    slots: &Sender<Slot>,
    tickets: &Sender<Ticket>,
    workers: &Workers,
    context: &Context,
) -> Result<Issued, Halt> {
    let buffers = BufferPool::new(plan.chunks, to_usize(CHUNK.0));
    let body_buffers = BufferPool::new(plan.chunks, to_usize(CHUNK.0));
    let size = source.size().0;
    let mut issued = Issued { holes: 0, chunks: 0 };
    let mut at = 0;
    // Extent that the source reported last. At its end the source is asked for the next one.
    let mut extent = Extent::Data { end: GuestOffset(0) };
    while at < size {
        if let Extent::Data { end } | Extent::Hole { end } = extent
            && end.0 <= at
        {
            extent = source
                .extent_at(GuestOffset(at))
                .map_err(|source| Halt::Failed(ConvertError::Source(source)))?;
        }
        if let Extent::Hole { end } = extent {
            // Only whole chunks are skipped, so that the chunks to hash and compress never depend on the
            // places of holes.
            let skipped = if end.0 >= size { size - at } else { (end.0 - at) / CHUNK.0 * CHUNK.0 };
            if skipped > 0 {
                context.counters.holes.fetch_add(skipped, Relaxed);
                context.cancel.send(slots, Slot::Hole { start: GuestOffset(at), len: skipped })?;
                issued.holes += skipped;
                at += skipped;
                continue;
            }
        }
        note_bottleneck(&buffers, &body_buffers, workers, context);
        let len = CHUNK.0.min(size - at);
        // Buffers are taken in this order, one chunk after the other: the chunk that the assembler waits for
        // always has its buffers already.
        let buf = context.take(&buffers)?;
        let out = context.take(&body_buffers)?;
        let (slot, encoded) = bounded(1);
        context.cancel.send(slots, Slot::Chunk(encoded))?;
        let chunk = Chunk { start: GuestOffset(at), len: to_usize(len), buf, out };
        context.cancel.send(tickets, Ticket { chunk, slot })?;
        issued.chunks += len;
        at += len;
    }
    Ok(issued)
}

/// Records which stage delays the next read. If all buffers are in use, they are with the compressors or
/// behind them.
fn note_bottleneck(buffers: &BufferPool, body_buffers: &BufferPool, workers: &Workers, context: &Context) {
    let found = if !buffers.is_empty() && !body_buffers.is_empty() {
        Bottleneck::Read
    } else if workers.queued() > workers.threads() {
        Bottleneck::Compress
    } else {
        Bottleneck::Upload
    };
    context.counters.note_bottleneck(found);
}

/// Runs one reader. Returns the bytes of the disk that it has read and passed on.
fn serve(source: &dyn Source, queue: &Receiver<Ticket>, workers: &Workers, context: &Context) -> u64 {
    let mut served = 0;
    for Ticket { mut chunk, slot } in queue {
        if context.cancel.is_cancelled() {
            break;
        }
        // The buffer is as long as a chunk. The disk's last read needs less, in whole sectors and whole
        // clusters.
        let step = source.alignment().max(to_usize(snapferry_base::units::SECTOR));
        let read = chunk.len.next_multiple_of(step);
        if let Err(error) = source.read_at(chunk.start, &mut chunk.buf[..read]) {
            context.fail(ConvertError::Source(locate(source, error, chunk.start, &mut chunk.buf[..read])));
            break;
        }
        chunk.buf[read..].fill(0);
        let len = to_u64(chunk.len);
        context.counters.read.fetch_add(len, Relaxed);
        workers.submit(chunk, slot);
        served += len;
    }
    served
}

/// Finds the first sector that can't be read, because the read of a chunk fails as a whole. Reads from the
/// front and only once: a bad sector may keep a disk busy for many seconds each time.
fn locate(source: &dyn Source, error: SourceError, start: GuestOffset, buf: &mut [u8]) -> SourceError {
    if !matches!(error, SourceError::Read { .. }) {
        return error;
    }
    let step = source.alignment();
    let pieces = (start.0..).step_by(step).zip(buf.chunks_mut(step));
    pieces.map(|(at, piece)| source.read_at(GuestOffset(at), piece)).find_map(Result::err).unwrap_or(error)
}
