//! The first stage: starts reads in disk order, many at a time, and hands each chunk to the compressors.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use snapferry_base::cancel::Stopped;
use snapferry_base::threads::{Died, Team};
use snapferry_base::units::{GuestOffset, to_u64, to_usize};

use super::compress::{Bodies, Chunk, Workers};
use super::counters::Bottleneck;
use super::plan::{CHUNK, Plan};
use super::{Context, ConvertError};
use crate::source::aligned::BufferPool;
use crate::source::{Extent, Source, SourceError};

/// What the assembler gets, in disk order.
#[derive(Debug)]
pub enum Slot {
    /// A chunk's bodies, once they are there. A sender that hangs up means that they never will be.
    Chunk(Receiver<Bodies>),
    /// Whole chunks of zeros that were not read.
    Hole {
        /// First byte.
        start: GuestOffset,
        /// Bytes of the disk, whole chunks but for the disk's last.
        len: u64,
    },
}

/// A read to be done.
struct Ticket {
    chunk: Chunk,
    slot: Sender<Bodies>,
}

/// Reads the whole source: `slots` gets one slot for each chunk before its read begins. Gives the bytes of the disk that were handed on,
/// once every reader has come to a good end; nothing where the work stopped before, and then the context knows why.
pub fn run(
    source: &dyn Source,
    plan: &Plan,
    slots: &Sender<Slot>,
    workers: &Workers,
    context: &Context,
) -> Option<u64> {
    let (tickets, queue) = bounded(plan.readers);
    thread::scope(|scope| {
        // The queue goes with them: once the last one is gone, there is nobody to hand a ticket to.
        let serving = move || serve(source, &queue, workers, context);
        let readers = match Team::start(scope, "read", workers.readers(plan.readers), serving) {
            Ok(readers) => readers,
            Err(refused) => {
                context.fail(ConvertError::Threads(refused));
                return None;
            }
        };
        let issued = issue(source, plan, slots, &tickets, workers, context);
        drop(tickets);
        let served = readers.join().map(|each| each.into_iter().sum::<u64>());
        match (issued, served) {
            (Ok(Issued { holes, chunks }), Ok(served)) if served == chunks => return Some(holes + chunks),
            (Err(Halt::Failed(error)), _) => context.fail(error),
            (_, Err(Died)) => context.fail(ConvertError::StageDied { stage: "reading" }),
            // Whoever ended the work has said why, or it is found out when all have ended.
            (Ok(_) | Err(Halt::Stopped), Ok(_)) => {}
        }
        None
    })
}

/// What was handed on, in bytes of the disk.
struct Issued {
    /// Not read.
    holes: u64,
    /// To be read.
    chunks: u64,
}

enum Halt {
    /// Somebody else ended the work, and says why.
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
    let bodies = BufferPool::new(plan.chunks, to_usize(CHUNK.0));
    let size = source.size().0;
    let mut issued = Issued { holes: 0, chunks: 0 };
    let mut at = 0;
    // What the source said last; asked again where it ends.
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
            // Only whole chunks are skipped, so that what is hashed and compressed never depends on where holes lie.
            let skipped = if end.0 >= size { size - at } else { (end.0 - at) / CHUNK.0 * CHUNK.0 };
            if skipped > 0 {
                context.counters.holes.fetch_add(skipped, Relaxed);
                context.cancel.send(slots, Slot::Hole { start: GuestOffset(at), len: skipped })?;
                issued.holes += skipped;
                at += skipped;
                continue;
            }
        }
        note_bottleneck(&buffers, &bodies, workers, context);
        let len = CHUNK.0.min(size - at);
        // In this order and one chunk after the other: the chunk that the assembler waits for always has its buffers already.
        let buf = context.take(&buffers)?;
        let out = context.take(&bodies)?;
        let (slot, bodies_of_chunk) = bounded(1);
        context.cancel.send(slots, Slot::Chunk(bodies_of_chunk))?;
        let chunk = Chunk { start: GuestOffset(at), len: to_usize(len), buf, out };
        context.cancel.send(tickets, Ticket { chunk, slot })?;
        issued.chunks += len;
        at += len;
    }
    Ok(issued)
}

/// Who holds the next read up? Buffers that are all out are with the compressors or behind them.
fn note_bottleneck(buffers: &BufferPool, bodies: &BufferPool, workers: &Workers, context: &Context) {
    let found = if !buffers.is_empty() && !bodies.is_empty() {
        Bottleneck::Read
    } else if workers.queued() > workers.threads() {
        Bottleneck::Compress
    } else {
        Bottleneck::Upload
    };
    context.counters.note_bottleneck(found);
}

/// One reader: gives the bytes of the disk that it has read and handed on.
fn serve(source: &dyn Source, queue: &Receiver<Ticket>, workers: &Workers, context: &Context) -> u64 {
    let mut served = 0;
    for Ticket { mut chunk, slot } in queue {
        if context.cancel.is_cancelled() {
            break;
        }
        // The buffer is as long as a chunk; a disk's last read needs less, in whole sectors and whole clusters.
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

/// The read of a chunk fails as a whole; this finds the first sector to blame. From the front and once only: a bad sector may keep a
/// disk busy for many seconds each time.
fn locate(source: &dyn Source, error: SourceError, start: GuestOffset, buf: &mut [u8]) -> SourceError {
    if !matches!(error, SourceError::Read { .. }) {
        return error;
    }
    let step = source.alignment();
    let pieces = (start.0..).step_by(step).zip(buf.chunks_mut(step));
    pieces.map(|(at, piece)| source.read_at(GuestOffset(at), piece)).find_map(Result::err).unwrap_or(error)
}
