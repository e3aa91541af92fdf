//! Decodes bodies to clusters, on a dedicated rayon pool with one decoder for each thread.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use snapferry_base::cancel::Stopped;
use snapferry_base::threads::{Pool, ReservedThreads};
use snapferry_base::units::{ByteCount, GuestCluster, GuestOffset, HostOffset, to_u64, to_usize};
use snapferry_qcow2::Mappings;

use super::damage::{BadBodies, BadBody};
use super::fill::fill;
use super::hashes::{ChunkHashes, Decoded};
use super::plan::{Batch, BodyPosition, Plan, SINKS, extent};
use super::read::Fetched;
use super::{Context, Reading};
use crate::compress::{Codec, DecodeError, Decoder};
use crate::error::RestoreError;
use crate::hash::CHUNK;
use crate::pipeline::{JobGuard, PipelineError};
use crate::source::aligned::{BufferPool, PooledBuf};

/// Decoded bytes of one chunk of the disk, as far as one batch holds them.
#[derive(Debug)]
pub struct Piece {
    start: GuestOffset,
    len: usize,
    buf: PooledBuf,
    runs: Vec<Range<usize>>,
    whole: bool,
    clusters: u64,
    undecoded: u64,
}

impl Piece {
    /// Returns the disk offset at which the chunk begins: a multiple of 2 MiB.
    #[must_use]
    pub fn start(&self) -> GuestOffset {
        self.start
    }

    /// Returns the number of bytes of the disk in the chunk.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the piece holds every stored cluster of its chunk. Then [`Piece::chunk`] is valid as a whole,
    /// if the sink wants whole chunks.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Returns the bytes of the chunk, with zeros where nothing is stored. Unless the piece is whole, only
    /// the ranges of [`Piece::runs`] are valid.
    #[must_use]
    pub fn chunk(&self) -> &[u8] {
        &self.buf[..self.len]
    }

    /// Returns the stored ranges of the chunk in order, no two of them adjacent: the disk offset of each, and
    /// its bytes.
    pub fn runs(&self) -> impl Iterator<Item = (GuestOffset, &[u8])> + '_ {
        self.runs.iter().map(|run| (self.start + to_u64(run.start), &self.buf[run.clone()]))
    }

    /// Returns the number of clusters whose bodies the piece was made from, those that do not decode
    /// included.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Returns the number of bytes of the disk that are in no run because their bodies do not decode.
    pub(crate) fn undecoded(&self) -> u64 {
        self.undecoded
    }

    /// Returns the number of bytes in all runs.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        self.runs.iter().map(|run| to_u64(run.len())).sum()
    }
}

/// Decoder threads, and the state that their jobs share.
pub(crate) struct Decoders {
    pool: Pool,
    reserved: ReservedThreads,
    shared: Arc<Shared>,
    buffers: BufferPool,
}

struct Shared {
    /// One decoder for each thread, made when the thread first needs it.
    decoders: Vec<Mutex<Option<Decoder>>>,
    codec: Codec,
    mappings: Arc<Mappings>,
    file_len: ByteCount,
    name: String,
    hashes: Option<Arc<ChunkHashes>>,
    damaged: Option<Arc<BadBodies>>,
    /// True if the sink wants zeros between the runs.
    fill_gaps: bool,
    pieces: Sender<Piece>,
    context: Context,
}

impl Decoders {
    /// Starts the threads of the plan, or as many as the system allows beside those of the other stages.
    /// Their output goes to `pieces`.
    pub fn new(
        reading: &Reading<'_>,
        pieces: Sender<Piece>,
        context: &Context,
    ) -> Result<Self, RestoreError> {
        let plan = reading.plan;
        // The threads of checksums, sinks and readers.
        let reserved = ReservedThreads { min: 3, max: 1 + SINKS + plan.readers };
        let panic_context = context.clone();
        // The final count fails too if a job panics, because its clusters are not counted.
        let pool = Pool::start("decode", plan.threads, reserved, move || {
            panic_context.fail(RestoreError::Pipeline(PipelineError::StageDied { stage: "decoding" }));
        })
        .map_err(|error| RestoreError::Pipeline(PipelineError::Threads(error)))?;
        let shared = Shared {
            decoders: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            codec: reading.codec,
            mappings: Arc::clone(reading.mappings),
            file_len: reading.file.size(),
            name: reading.file.name().to_owned(),
            hashes: reading.hashes.cloned(),
            damaged: reading.damaged.cloned(),
            fill_gaps: reading.sink.wants_whole_chunks(),
            pieces,
            context: context.clone(),
        };
        Ok(Self {
            pool,
            reserved,
            shared: Arc::new(shared),
            buffers: BufferPool::new(plan.chunk_buffers(), to_usize(CHUNK.0)),
        })
    }

    /// Returns how many of `requested` readers or sinks to start.
    pub fn threads_to_start(&self, requested: usize) -> usize {
        self.pool.reserved_count(requested, self.reserved)
    }

    /// Returns the number of decoding threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// True if every buffer is with a job or a sink.
    pub fn is_out_of_buffers(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Queues the bodies of the batch, chunk by chunk. Waits for buffers to decode them into, which is what
    /// bounds the queue: running jobs and finished pieces return buffers, and neither waits for this caller.
    pub fn submit(&self, plan: &Plan, batch: &Batch, fetched: &Arc<Fetched>) -> Result<(), Stopped> {
        let cluster = self.shared.mappings.cluster();
        let mut positions = plan.positions[batch.positions.clone()].to_vec();
        positions.sort_unstable_by_key(|position| position.guest);
        let chunk = |position: &BodyPosition| position.guest.offset(cluster).0 / CHUNK.0;
        for members in positions.chunk_by(|one, next| chunk(one) == chunk(next)) {
            let buf = self.shared.context.take(&self.buffers)?;
            let (shared, fetched) = (Arc::clone(&self.shared), Arc::clone(fetched));
            let start = GuestOffset(chunk(&members[0]) * CHUNK.0);
            let members: Box<[GuestCluster]> = members.iter().map(|position| position.guest).collect();
            shared.context.counters.jobs.fetch_add(1, Relaxed);
            self.pool.spawn_fifo(move || {
                let counted = JobGuard(&shared.context.counters.jobs);
                let done = shared.decode(start, &members, &fetched, buf);
                // Returns the buffer of the batch, because the next fetch needs it.
                drop(fetched);
                match done {
                    // The sinks are gone only if the work has failed.
                    Ok(Some(piece)) => drop(shared.pieces.send(piece)),
                    Ok(None) => {}
                    Err(error) => shared.context.fail(error),
                }
                drop(counted);
            });
        }
        Ok(())
    }
}

impl Shared {
    /// Decodes the clusters `members` of the chunk that begins at `start`. Returns `None` if the work was
    /// cancelled.
    fn decode(
        &self,
        start: GuestOffset,
        members: &[GuestCluster],
        fetched: &Fetched,
        mut buf: PooledBuf,
    ) -> Result<Option<Piece>, RestoreError> {
        if self.context.cancel.is_cancelled() {
            return Ok(None);
        }
        let cluster = self.mappings.cluster();
        let len = to_usize(CHUNK.0.min(self.mappings.virtual_size().0.saturating_sub(start.0)));
        let first = start.cluster(cluster);
        let all = self.mappings.range(first..first + to_u64(to_usize(CHUNK.0) / cluster.len())).count();
        let (mut damaged, mut undecoded) = (false, 0);
        let index = rayon::current_thread_index().expect("jobs run on the pool");
        let mut decoder = self.decoders[index].lock().unwrap_or_else(PoisonError::into_inner);
        let decoder = match &mut *decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new(self.codec, cluster)?),
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        for &guest in members {
            let at = to_usize(guest.offset(cluster).0 - start.0);
            let into = &mut buf[at..at + cluster.len()];
            if let Err((host, source)) = self.fill(decoder, guest, fetched, into) {
                let guest = guest.offset(cluster);
                let Some(bad_bodies) = &self.damaged else {
                    return Err(RestoreError::Body { name: self.name.clone(), guest, host, source });
                };
                bad_bodies.add(BadBody { guest, host, error: source });
                damaged = true;
                undecoded += to_u64((at + cluster.len()).min(len).saturating_sub(at));
                continue;
            }
            let run = at..(at + cluster.len()).min(len);
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ if run.is_empty() => {}
                _ => runs.push(run),
            }
        }
        self.context.counters.clusters.fetch_add(to_u64(members.len()), Relaxed);
        let whole = all == members.len() && !damaged;
        if whole && (self.fill_gaps || self.hashes.is_some()) {
            fill_gaps(&mut buf[..len], &runs);
        }
        if let Some(hashes) = &self.hashes {
            hashes.put(
                start,
                match (whole, damaged) {
                    (true, _) => Decoded::Whole(&buf[..len]),
                    (false, false) => Decoded::Part,
                    (false, true) => Decoded::Damaged,
                },
            );
        }
        Ok(Some(Piece { start, len, buf, runs, whole, clusters: to_u64(members.len()), undecoded }))
    }

    /// Decodes one cluster. If that fails, returns the file offset of its body and the error.
    fn fill(
        &self,
        decoder: &mut Decoder,
        guest: GuestCluster,
        fetched: &Fetched,
        into: &mut [u8],
    ) -> Result<(), (HostOffset, DecodeError)> {
        let bytes = extent(&self.mappings, self.file_len, guest);
        let from = to_usize(bytes.start - fetched.start);
        let fetched = fetched.bytes();
        // The last sector of a body may hold the beginning of the next body, which is then in the next batch.
        let body = &fetched[from..to_usize(bytes.end - bytes.start + to_u64(from)).min(fetched.len())];
        let len = into.len();
        fill(self.mappings.stored(guest), body, (0..len, len), decoder, &mut [], into)
            .map_err(|source| (HostOffset(bytes.start), source))
    }
}

/// Fills the space between the runs with zeros.
fn fill_gaps(chunk: &mut [u8], runs: &[Range<usize>]) {
    let mut at = 0;
    for run in runs {
        chunk[at..run.start].fill(0);
        at = run.end;
    }
    chunk[at..].fill(0);
}
