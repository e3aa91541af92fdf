//! Pipeline that reads and decodes an image. Every operation that needs all of an image uses it.
//!
//! ```text
//! issue ──▶ read ──▶ decode ──▶ sink: write, compare, or discard
//!             └────▶ checksums over the file
//! ```
//!
//! An image is read through [`ImageFile`]: a [`LocalImage`] on this machine, or a [`StoredImage`] in a
//! bucket, which is the only bridge from these threads to the asynchronous tasks of the store. [`plan::Plan`]
//! decides which bytes are fetched in which pieces: in the order of the file, each byte once. Decoded bytes
//! leave in pieces of 2 MiB of the disk, in no particular order. Pools of buffers that travel with the data
//! bound the memory; [`plan::Plan::peak_memory`] is the formula. The first real error is kept, and cancels
//! all other stages.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use snapferry_base::cancel::{Cancel, Reason, Stopped};
use snapferry_base::threads::{self, Refused, Team};
use snapferry_qcow2::{ImageFile, Mappings};

use crate::compress::Codec;
use crate::error::{RestoreError, check_count};
use crate::pipeline::PipelineError;
use crate::source::aligned::{BufferPool, PooledBuf, Untaken};

pub mod base;
mod checksums;
pub mod counters;
mod damage;
mod decode;
mod fill;
mod hashes;
mod image_source;
mod local_image;
pub mod plan;
mod read;
mod stored_image;

pub use checksums::{ParseSha256Error, RequestedSums, Sha256Sum, Sums};
use counters::Counters;
pub use damage::{BadBodies, BadBody};
pub use decode::Piece;
pub use hashes::{ChunkHashes, HashFinding, ManifestError, check_manifest};
pub(crate) use hashes::{check_sizes, hashed_segments};
pub use image_source::ImageSource;
pub(crate) use image_source::READER;
pub use local_image::{LocalImage, LocalImageError};
use plan::Plan;
pub use stored_image::StoredImage;

/// State that all stages share.
#[derive(Clone)]
pub(crate) struct Context {
    pub cancel: Cancel,
    counters: Arc<Counters>,
    outcome: Arc<Mutex<Option<RestoreError>>>,
}

impl Context {
    pub fn new(cancel: &Cancel, counters: &Arc<Counters>) -> Self {
        Self { cancel: cancel.clone(), counters: Arc::clone(counters), outcome: Arc::default() }
    }

    /// Ends the work with an error, unless it has ended already.
    pub fn fail(&self, error: RestoreError) {
        let ended = self.cancel.is_cancelled();
        let mut outcome = self.outcome();
        if outcome.is_none() && !ended {
            *outcome = Some(error);
        }
        drop(outcome);
        self.cancel.cancel(Reason::Failed);
    }

    /// Takes a buffer from a pool. Ends the work if the system refuses the memory.
    fn take(&self, pool: &BufferPool) -> Result<PooledBuf, Stopped> {
        pool.take(&self.cancel).map_err(|untaken| {
            if let Untaken::Memory(refused) = untaken {
                self.fail(refused.into());
            }
            Stopped
        })
    }

    fn outcome(&self) -> MutexGuard<'_, Option<RestoreError>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first error, or [`PipelineError::Interrupted`] if the user cancelled the work.
    pub fn verdict(&self) -> Result<(), RestoreError> {
        match (self.outcome().take(), self.cancel.reason()) {
            (Some(error), _) => Err(error),
            (None, Some(Reason::Requested)) => Err(RestoreError::Pipeline(PipelineError::Interrupted)),
            (None, Some(Reason::Failed)) => {
                Err(RestoreError::Pipeline(PipelineError::StageDied { stage: "reading" }))
            }
            (None, None) => Ok(()),
        }
    }
}

/// Consumer of decoded bytes. Several threads call it at once, in no particular order.
pub trait Sink: Sync {
    /// Takes a piece of the disk. Must not keep any of it after the call.
    ///
    /// # Errors
    /// If the bytes can't be written or compared.
    fn take(&self, piece: &Piece) -> Result<(), RestoreError>;

    /// True if a piece that holds every cluster of its chunk needs zeros between its runs.
    fn wants_whole_chunks(&self) -> bool {
        false
    }
}

/// One pass over all of an image.
pub struct Reading<'a> {
    /// Bytes of the image.
    pub file: &'a dyn ImageFile,
    /// Positions of the stored clusters in the file.
    pub mappings: &'a Arc<Mappings>,
    /// Compression of the clusters.
    pub codec: Codec,
    /// Batches to fetch, and the number of threads.
    pub plan: &'a Plan,
    /// Consumer of the decoded bytes.
    pub sink: &'a dyn Sink,
    /// Receives the hash of each chunk that holds anything.
    pub hashes: Option<&'a Arc<ChunkHashes>>,
    /// Collects bodies that do not decode. Without it, the first one ends the work.
    pub damaged: Option<&'a Arc<BadBodies>>,
    /// Checksums over the file to compute. If there are any, the plan must cover all of the file.
    pub sums: RequestedSums,
    /// Stops the work from outside; the work cancels it too when it fails.
    pub cancel: Cancel,
    /// Progress, updated while the work is running.
    pub counters: Arc<Counters>,
}

impl Reading<'_> {
    /// Reads and decodes everything. Blocks until a sink has taken the last piece.
    ///
    /// # Errors
    /// With the first real error.
    pub fn run(self) -> Result<Sums, RestoreError> {
        let context = Context::new(&self.cancel, &self.counters);
        let plan = self.plan;
        let (pieces_in, pieces) = bounded(plan.chunk_buffers());
        let decoders = decode::Decoders::new(&self, pieces_in, &context)?;
        let (slots_in, slots) = bounded(plan.batch_buffers());
        let (sink, requested, context) = (self.sink, self.sums, &context);
        let before = Counted::of(&context.counters);
        let ended = thread::scope(|scope| {
            let sums =
                threads::spawn_scoped(scope, "sum up the file", move || checksums::run(&slots, requested))?;
            let draining = move || drain(pieces, sink, context);
            let sinks =
                Team::start(scope, "write or compare", decoders.threads_to_start(plan::SINKS), draining)?;
            read::run(self.file, plan, &slots_in, &decoders, context);
            // The channel of pieces closes when the last job ends.
            drop(decoders);
            drop(slots_in);
            let sums = sums
                .join()
                .map_err(|_panic| RestoreError::Pipeline(PipelineError::StageDied { stage: "sums" }));
            let sinks = sinks
                .join()
                .map_err(|_died| RestoreError::Pipeline(PipelineError::StageDied { stage: "disk" }));
            Ok::<_, Refused>((sums, sinks))
        });
        // All threads have ended here, so the counters are final.
        let (sums, sinks) = ended.map_err(|error| RestoreError::Pipeline(PipelineError::Threads(error)))?;
        context.verdict()?;
        sinks?;
        let (sums, passed) =
            sums?.ok_or(RestoreError::Pipeline(PipelineError::StageDied { stage: "sums" }))?;
        let after = Counted::of(&context.counters);
        let expected = if requested == RequestedSums::None { plan.own_bytes() } else { self.file.size().0 };
        check_count("bytes of the image were read", passed, expected)?;
        check_count("clusters were decoded", after.decoded - before.decoded, plan.clusters())?;
        check_count("clusters came to where they belong", after.taken - before.taken, plan.clusters())?;
        Ok(sums)
    }
}

/// Clusters that have passed the stages so far.
struct Counted {
    decoded: u64,
    taken: u64,
}

impl Counted {
    fn of(counters: &Counters) -> Self {
        Self { decoded: counters.clusters.load(Relaxed), taken: counters.taken.load(Relaxed) }
    }
}

/// Runs one sink thread.
fn drain(pieces: Receiver<Piece>, sink: &dyn Sink, context: &Context) {
    for piece in pieces {
        if context.cancel.is_cancelled() {
            continue;
        }
        match sink.take(&piece) {
            Ok(()) => context.counters.take(piece.mapped(), piece.clusters()),
            Err(error) => context.fail(error),
        }
    }
}
