//! Bodies back to clusters, on a rayon pool of our own with one decoder a thread.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use snapferry_base::cancel::Stopped;
use snapferry_base::threads::{Beside, Pool};
use snapferry_base::units::{ByteCount, GuestCluster, GuestOffset, HostOffset, to_u64, to_usize};
use snapferry_qcow2::mappings::SUBCLUSTERS;
use snapferry_qcow2::{Mappings, Stored};

use super::counters::Counters;
use super::damage::{BadBodies, BadBody};
use super::hashes::{ChunkHashes, Decoded};
use super::plan::{Batch, Place, Plan, SINKS, extent};
use super::read::Fetched;
use super::{Context, Reading};
use crate::compress::{Codec, DecodeError, Decoder};
use crate::error::RestoreError;
use crate::hash::CHUNK;
use crate::source::aligned::{BufferPool, PooledBuf};

/// Decoded bytes of the disk: what one batch holds of one chunk of it.
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
    /// The chunk's first byte in the disk: a multiple of 2 MiB.
    #[must_use]
    pub fn start(&self) -> GuestOffset {
        self.start
    }

    /// Bytes of the disk in the chunk.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds every cluster of its chunk that lies anywhere. Then [`Piece::chunk`] may be looked at, if the sink wants whole
    /// chunks.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The chunk's bytes, zeros where nothing is stored. Only what is in [`Piece::runs`] means anything unless the piece is whole.
    #[must_use]
    pub fn chunk(&self) -> &[u8] {
        &self.buf[..self.len]
    }

    /// The chunk's stretches that are stored, in order, none touching the next: where each begins, and its bytes.
    pub fn runs(&self) -> impl Iterator<Item = (GuestOffset, &[u8])> + '_ {
        self.runs.iter().map(|run| (self.start + to_u64(run.start), &self.buf[run.clone()]))
    }

    /// Clusters whose bodies it was made from, those that do not decode included.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Bytes of the disk that are in no run because their bodies do not decode.
    pub(crate) fn undecoded(&self) -> u64 {
        self.undecoded
    }

    /// Bytes in all runs.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        self.runs.iter().map(|run| to_u64(run.len())).sum()
    }
}

/// The pool and everything that its jobs share.
pub(crate) struct Decoders {
    pool: Pool,
    beside: Beside,
    shared: Arc<Shared>,
    buffers: BufferPool,
}

struct Shared {
    /// One a thread, made when it is first needed.
    decoders: Vec<Mutex<Option<Decoder>>>,
    codec: Codec,
    mappings: Arc<Mappings>,
    file_len: ByteCount,
    name: String,
    hashes: Option<Arc<ChunkHashes>>,
    damaged: Option<Arc<BadBodies>>,
    /// Whether the sink wants zeros between the runs.
    fill_gaps: bool,
    pieces: Sender<Piece>,
    context: Context,
}

impl Decoders {
    /// Starts the plan's threads, or as many as the system allows beside those of the other stages; what they decode goes to `pieces`.
    pub fn new(
        reading: &Reading<'_>,
        pieces: Sender<Piece>,
        context: &Context,
    ) -> Result<Self, RestoreError> {
        let plan = reading.plan;
        // The sums, sinks and readers.
        let beside = Beside { least: 3, most: 1 + SINKS + plan.readers };
        let told = context.clone();
        // A job that panics leaves its clusters uncounted, too.
        let pool = Pool::start("decode", plan.threads, beside, move || {
            told.fail(RestoreError::StageDied { stage: "decoding" })
        })
        .map_err(RestoreError::Threads)?;
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
            beside,
            shared: Arc::new(shared),
            buffers: BufferPool::new(plan.chunk_buffers(), to_usize(CHUNK.0)),
        })
    }

    /// How many of `wanted` readers or sinks are to be started.
    pub fn of_those_beside(&self, wanted: usize) -> usize {
        self.pool.of_those_beside(wanted, self.beside)
    }

    /// Threads that decode.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Whether every buffer is with a job or a sink.
    pub fn is_out_of_buffers(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Queues the batch's bodies, chunk by chunk. Waits for buffers to decode them into, which is what bounds the queue: jobs that run and
    /// pieces that are taken give them back, and neither waits for us.
    pub fn submit(&self, plan: &Plan, batch: &Batch, fetched: &Arc<Fetched>) -> Result<(), Stopped> {
        let cluster = self.shared.mappings.cluster();
        let mut places = plan.places[batch.places.clone()].to_vec();
        places.sort_unstable_by_key(|place| place.guest);
        let chunk = |place: &Place| place.guest.offset(cluster).0 / CHUNK.0;
        for members in places.chunk_by(|one, next| chunk(one) == chunk(next)) {
            let buf = self.shared.context.take(&self.buffers)?;
            let (shared, fetched) = (Arc::clone(&self.shared), Arc::clone(fetched));
            let start = GuestOffset(chunk(&members[0]) * CHUNK.0);
            let members: Box<[GuestCluster]> = members.iter().map(|place| place.guest).collect();
            shared.context.counters.jobs.fetch_add(1, Relaxed);
            self.pool.spawn_fifo(move || {
                let counted = JobGuard(&shared.context.counters);
                let done = shared.decode(start, &members, &fetched, buf);
                // The batch's buffer is wanted for the next fetch.
                drop(fetched);
                match done {
                    // The sinks are gone only when the work has failed.
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

/// Takes the job off the gauge also when it panics.
struct JobGuard<'a>(&'a Counters);

impl Drop for JobGuard<'_> {
    fn drop(&mut self) {
        self.0.jobs.fetch_sub(1, Relaxed);
    }
}

impl Shared {
    /// `None` when the work was cancelled.
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
                let Some(bodies) = &self.damaged else {
                    return Err(RestoreError::Body { name: self.name.clone(), guest, host, source });
                };
                bodies.add(BadBody { guest, host, error: source });
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

    /// Decodes one cluster, or tells where its body lies and what is wrong with it.
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
        // A body's last sector may hold the beginning of the next body, which is in the next batch then.
        let body = &fetched[from..to_usize(bytes.end - bytes.start + to_u64(from)).min(fetched.len())];
        match self.mappings.stored(guest) {
            Stored::Zero => into.fill(0),
            Stored::Raw(_) => copy(body, into),
            Stored::Subclusters(_, allocated) => {
                let size = into.len() / to_usize(u64::from(SUBCLUSTERS));
                copy(body, into);
                for (number, subcluster) in (0..SUBCLUSTERS).zip(into.chunks_mut(size)) {
                    if allocated >> number & 1 == 0 {
                        subcluster.fill(0);
                    }
                }
            }
            Stored::Compressed { at, .. } => decoder.decode(body, into).map_err(|source| (at, source))?,
        }
        Ok(())
    }
}

/// The bytes as they are, and zeros where the disk ends before its last cluster does.
fn copy(body: &[u8], into: &mut [u8]) {
    let (stored, rest) = into.split_at_mut(body.len());
    stored.copy_from_slice(body);
    rest.fill(0);
}

/// Zeros between the runs.
fn fill_gaps(chunk: &mut [u8], runs: &[Range<usize>]) {
    let mut at = 0;
    for run in runs {
        chunk[at..run.start].fill(0);
        at = run.end;
    }
    chunk[at..].fill(0);
}
