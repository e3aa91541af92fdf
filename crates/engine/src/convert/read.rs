//! Reading stage: starts reads in disk order, many at a time, and passes each chunk to the compressors, or,
//! in a run with a base, to be hashed first.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use snapferry_base::cancel::Stopped;
use snapferry_base::threads::{Died, Team};
use snapferry_base::units::{GuestOffset, to_u64, to_usize};

use super::compress::{Chunk, EncodedChunk, Encoding, HashedChunk, Workers};
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
    /// Segment that is equal to the base's, and is not compressed.
    Reused {
        /// Number of the segment.
        number: u64,
        /// Offset of its first byte on the disk.
        start: GuestOffset,
        /// Bytes of the disk.
        len: u64,
    },
}

/// Entry of the queue to the judge, in disk order.
#[derive(Debug)]
pub enum Unjudged {
    /// A chunk with its hash, once it is there. If the sender is dropped, it will never come.
    Chunk(Receiver<HashedChunk>),
    /// Whole chunks of zeros that were not read, as in [`Slot::Hole`].
    Hole { start: GuestOffset, len: u64 },
}

/// Buffers of a conversion's chunks. They bound its memory.
#[derive(Debug)]
pub struct Pools {
    /// Chunks as they are read.
    pub chunks: BufferPool,
    /// Bodies of chunks.
    pub bodies: BufferPool,
}

impl Pools {
    pub fn new(plan: &Plan) -> Self {
        let pool = |count| BufferPool::new(count, to_usize(CHUNK.0));
        Self { chunks: pool(plan.chunk_buffers()), bodies: pool(plan.chunks) }
    }
}

/// Queue that the reading stage fills, in disk order.
pub enum Queue {
    /// Each chunk is compressed as soon as it is read.
    Slots(Sender<Slot>),
    /// Each chunk is hashed, and the judge decides.
    Unjudged(Sender<Unjudged>),
}

impl Queue {
    fn push_hole(&self, start: GuestOffset, len: u64, context: &Context) -> Result<(), Stopped> {
        match self {
            Self::Slots(slots) => context.cancel.send(slots, Slot::Hole { start, len }),
            Self::Unjudged(queue) => context.cancel.send(queue, Unjudged::Hole { start, len }),
        }
    }

    /// Pushes the place of a chunk, and returns the job that has to fill it.
    fn push_chunk(&self, pools: &Pools, context: &Context) -> Result<Job, Stopped> {
        match self {
            Self::Slots(slots) => {
                let out = context.take(&pools.bodies)?;
                let (slot, encoded) = bounded(1);
                context.cancel.send(slots, Slot::Chunk(encoded))?;
                Ok(Job::Encode(Encoding { out, hash: None, slot }))
            }
            Self::Unjudged(queue) => {
                let (slot, hashed) = bounded(1);
                context.cancel.send(queue, Unjudged::Chunk(hashed))?;
                Ok(Job::Hash(slot))
            }
        }
    }
}

/// Job that follows a read.
enum Job {
    Encode(Encoding),
    Hash(Sender<HashedChunk>),
}

/// One read that a reader has to do.
struct Ticket {
    chunk: Chunk,
    job: Job,
}

/// Reads the whole source. `queue` gets the place of each chunk before its read begins. Returns the bytes of
/// the disk that were passed on, after every reader has ended without an error. Returns `None` if the work
/// stopped before that; the context holds the reason then.
pub fn run(
    source: &dyn Source,
    plan: &Plan,
    pools: &Pools,
    queue: &Queue,
    workers: &Workers,
    context: &Context,
) -> Option<u64> {
    let (tickets, taken) = bounded(plan.readers);
    thread::scope(|scope| {
        // The readers own this end: after the last reader has ended, the send of a ticket fails.
        let serving = move || serve(source, &taken, workers, context);
        let readers = match Team::start(scope, "read", workers.readers(plan.readers), serving) {
            Ok(readers) => readers,
            Err(refused) => {
                context.fail(ConvertError::Pipeline(PipelineError::Threads(refused)));
                return None;
            }
        };
        let issued = issue(source, pools, queue, &tickets, workers, context);
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
    pools: &Pools,
    queue: &Queue,
    tickets: &Sender<Ticket>,
    workers: &Workers,
    context: &Context,
) -> Result<Issued, Halt> {
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
                queue.push_hole(GuestOffset(at), skipped, context)?;
                issued.holes += skipped;
                at += skipped;
                continue;
            }
        }
        note_bottleneck(pools, workers, context);
        let len = CHUNK.0.min(size - at);
        // Buffers are taken in this order, one chunk after the other: the chunk that the assembler waits for
        // always has its buffers already.
        let buf = context.take(&pools.chunks)?;
        let job = queue.push_chunk(pools, context)?;
        let chunk = Chunk { start: GuestOffset(at), len: to_usize(len), buf };
        context.cancel.send(tickets, Ticket { chunk, job })?;
        issued.chunks += len;
        at += len;
    }
    Ok(issued)
}

/// Records which stage delays the next read. If all buffers are in use, they are with the compressors or
/// behind them.
fn note_bottleneck(pools: &Pools, workers: &Workers, context: &Context) {
    let found = if !pools.chunks.is_empty() && !pools.bodies.is_empty() {
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
    for Ticket { mut chunk, job } in queue {
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
        match job {
            Job::Encode(job) => workers.encode(chunk, job),
            Job::Hash(slot) => workers.hash(chunk, slot),
        }
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
