//! Compression stage: turns chunks into bodies, on its own rayon pool with one encoder per thread.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use snapferry_base::limits::OutOfMemory;
use snapferry_base::threads::{Pool, ReservedThreads};
use snapferry_base::units::{ClusterBits, GuestCluster, GuestOffset, to_u64, to_usize};

pub use snapferry_qcow2::Body;

use super::plan::{self, Hashing, Plan, Reuse};
use super::{Context, ConvertError};
use crate::compress::{Codec, Encoder, Level, is_zero};
use crate::hash::{GuestHash, ZeroHashes};
use crate::pipeline::{JobGuard, PipelineError};
use crate::source::aligned::PooledBuf;

/// A chunk as it was read: `len` bytes of the disk from `start`, padded with zeros to a whole number of
/// clusters.
#[derive(Debug)]
pub struct Chunk {
    pub start: GuestOffset,
    /// Bytes of the disk, at most one chunk.
    pub len: usize,
    pub buf: PooledBuf,
}

/// Job of compression, for a chunk that was read.
#[derive(Debug)]
pub struct Encoding {
    /// Buffer for the chunk's bodies, taken before the job is queued. A job that waited for it could wait for
    /// ever, because the chunk that all other stages wait for may come last.
    pub out: PooledBuf,
    /// Hash of the chunk, if it is known.
    pub hash: Option<GuestHash>,
    /// Destination of the bodies.
    pub slot: Sender<EncodedChunk>,
}

/// A chunk that was read and hashed.
#[derive(Debug)]
pub struct HashedChunk {
    pub start: GuestOffset,
    /// Bytes of the disk.
    pub len: usize,
    /// Hash over the chunk's bytes of the disk, without padding.
    pub hash: GuestHash,
    /// The chunk, or `None` if it holds only zeros.
    pub data: Option<Chunk>,
}

/// Bodies of one chunk.
#[derive(Debug)]
pub struct EncodedChunk {
    pub first: GuestCluster,
    /// One entry for each cluster of the chunk. A compressed body lies right behind the chunk's previous one.
    pub kinds: Vec<Body>,
    /// The compressed bodies, end to end.
    pub compressed: Packed,
    /// The chunk as it was read, kept only if a cluster is stored raw.
    pub raw: Option<PooledBuf>,
    /// Hash over the chunk's bytes of the disk, without padding.
    pub hash: Option<GuestHash>,
    /// Bytes of the disk in the chunk.
    pub len: usize,
}

/// Front of a buffer, of `len` bytes.
#[derive(Debug)]
pub struct Packed {
    buf: Option<PooledBuf>,
    len: usize,
}

impl Packed {
    pub fn bytes(&self) -> &[u8] {
        self.buf.as_ref().map_or(&[], |buf| &buf[..self.len])
    }
}

impl EncodedChunk {
    /// Returns the range of cluster number `index` in [`EncodedChunk::raw`].
    pub fn range(index: usize, cluster: ClusterBits) -> Range<usize> {
        index * cluster.len()..(index + 1) * cluster.len()
    }
}

/// Compression pool, with everything that its jobs share.
pub struct Workers {
    pool: Pool,
    reserved: ReservedThreads,
    shared: Arc<Shared>,
}

struct Shared {
    /// One encoder per thread, made when it is first needed.
    encoders: Vec<Mutex<Option<Encoder>>>,
    codec: Codec,
    level: Level,
    cluster: ClusterBits,
    store_as: plan::StoreAs,
    hashing: Hashing,
    zeros: ZeroHashes,
    context: Context,
}

impl Workers {
    /// Starts `plan.threads` threads, or as many as the system allows beside those of the other stages.
    pub fn new(plan: &Plan, context: &Context) -> Result<Self, ConvertError> {
        // Threads of the other stages: the one that starts reads, the readers, the assembler, and the judge
        // of a run with a base.
        let others = if plan.reuse == Reuse::Unchanged { 3 } else { 2 };
        let reserved = ReservedThreads { min: others + 1, max: plan.readers + others };
        let panic_context = context.clone();
        // A job that panics drops its slot, too, so the assembler finds its chunk missing.
        let pool = Pool::start("compress", plan.threads, reserved, move || {
            panic_context.fail(ConvertError::Pipeline(PipelineError::StageDied { stage: "compression" }));
        })
        .map_err(|error| ConvertError::Pipeline(PipelineError::Threads(error)))?;
        let cluster = plan.geometry.cluster();
        let encoders = (0..pool.threads()).map(|_| Mutex::default()).collect();
        let Plan { codec, level, store_as, hashing, .. } = *plan;
        let shared = Shared {
            encoders,
            codec,
            level,
            cluster,
            store_as,
            hashing,
            zeros: ZeroHashes::default(),
            context: context.clone(),
        };
        Ok(Self { pool, reserved, shared: Arc::new(shared) })
    }

    /// Returns how many of `requested` readers to start.
    pub fn readers(&self, requested: usize) -> usize {
        self.pool.reserved_count(requested, self.reserved)
    }

    /// Returns the number of compression threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Returns the number of jobs that wait or run.
    pub fn queued(&self) -> usize {
        self.shared.context.counters.jobs.load(Relaxed)
    }

    /// Queues a chunk for compression. Never waits: the number of chunk buffers bounds the queue.
    pub fn encode(&self, chunk: Chunk, job: Encoding) {
        let Encoding { out, hash, slot } = job;
        self.queue(move |shared| match shared.encode(chunk, out, hash) {
            // If the assembler has ended already, no stage needs the bodies.
            Ok(Some(encoded)) => drop(slot.send(encoded)),
            Ok(None) => {}
            Err(refused) => shared.context.fail(refused.into()),
        });
    }

    /// Queues a chunk for hashing alone. Never waits, as above.
    pub fn hash(&self, chunk: Chunk, slot: Sender<HashedChunk>) {
        self.queue(move |shared| {
            if !shared.context.cancel.is_cancelled() {
                // If the judge has ended already, no stage needs the hash.
                drop(slot.send(shared.hash(chunk)));
            }
        });
    }

    fn queue(&self, job: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        shared.context.counters.jobs.fetch_add(1, Relaxed);
        // First in, first out: the assembler waits for the oldest.
        self.pool.spawn_fifo(move || {
            let counted = JobGuard(&shared.context.counters.jobs);
            job(&shared);
            drop(counted);
        });
    }
}

impl Shared {
    /// Returns the length of a chunk in whole clusters.
    fn padded(&self, chunk: &Chunk) -> usize {
        to_usize(self.cluster.round_up(to_u64(chunk.len)))
    }

    fn hash(&self, chunk: Chunk) -> HashedChunk {
        let Chunk { start, len, .. } = chunk;
        if is_zero(&chunk.buf[..self.padded(&chunk)]) {
            return HashedChunk { start, len, hash: self.zeros.of(len), data: None };
        }
        let hash = *blake3::hash(&chunk.buf[..len]).as_bytes();
        HashedChunk { start, len, hash, data: Some(chunk) }
    }

    /// Compresses one chunk, and hashes it unless its hash is known. Returns `None` if the work was
    /// cancelled.
    fn encode(
        &self,
        chunk: Chunk,
        out: PooledBuf,
        known: Option<GuestHash>,
    ) -> Result<Option<EncodedChunk>, OutOfMemory> {
        if self.context.cancel.is_cancelled() {
            return Ok(None);
        }
        let cluster = self.cluster;
        let padded = self.padded(&chunk);
        let clusters = padded / cluster.len();
        let first = chunk.start.cluster(cluster);
        let hashed = self.hashing == Hashing::Blake3 && known.is_none();
        if is_zero(&chunk.buf[..padded]) {
            let hash = known.or_else(|| hashed.then(|| self.zeros.of(chunk.len)));
            let kinds = vec![Body::Zero; clusters];
            return Ok(Some(EncodedChunk {
                first,
                kinds,
                compressed: Packed { buf: None, len: 0 },
                raw: None,
                hash,
                len: chunk.len,
            }));
        }
        let mut out = out;
        let index = rayon::current_thread_index().expect("jobs run on the pool");
        let mut encoder = self.encoders[index].lock().unwrap_or_else(PoisonError::into_inner);
        let mut encoder = match (self.store_as, &mut *encoder) {
            (plan::StoreAs::Raw, _) => None,
            (plan::StoreAs::Compressed, Some(encoder)) => Some(encoder),
            (plan::StoreAs::Compressed, none) => {
                Some(none.insert(Encoder::new(self.codec, self.level, cluster)?))
            }
        };
        let mut hasher = hashed.then(blake3::Hasher::new);
        let mut kinds = Vec::with_capacity(clusters);
        let mut packed = 0;
        let mut any_raw = false;
        for index in 0..clusters {
            let range = EncodedChunk::range(index, cluster);
            let bytes = &chunk.buf[range.clone()];
            if let Some(hasher) = &mut hasher {
                // Cluster by cluster, while the bytes are in the cache for the encoder.
                hasher.update(&chunk.buf[range.start..range.end.min(chunk.len)]);
            }
            let kind = if is_zero(bytes) {
                Body::Zero
            } else {
                let len = encoder.as_mut().and_then(|encoder| encoder.encode(bytes, &mut out[packed..]));
                packed += len.unwrap_or(0);
                any_raw |= len.is_none();
                len.map_or(Body::Raw, Body::Compressed)
            };
            kinds.push(kind);
        }
        let compressed =
            if packed == 0 { Packed { buf: None, len: 0 } } else { Packed { buf: Some(out), len: packed } };
        let hash = known.or_else(|| hasher.map(|hasher| *hasher.finalize().as_bytes()));
        Ok(Some(EncodedChunk {
            first,
            kinds,
            compressed,
            raw: any_raw.then_some(chunk.buf),
            hash,
            len: chunk.len,
        }))
    }
}
