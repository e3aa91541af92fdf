//! Images back to bytes: the pipeline that everything uses which needs all of an image, wired here and nowhere else.
//!
//! ```text
//! issue ──▶ read ──▶ decode ──▶ sink: write, compare, or nothing
//!             └────▶ sums over the file
//! ```
//!
//! An image is read through [`ImageFile`]: a [`LocalImage`] on this machine, or a [`StoredImage`] in a bucket, which is the one bridge from
//! the threads here to the store's tasks. [`plan::Plan`] says which bytes are fetched in which pieces: in the order of the file, each byte
//! once. What is decoded leaves in pieces of 2 MiB of the disk, in no particular order. Memory is bounded by pools of buffers that travel with
//! the data; [`plan::Plan::peak_memory`] is the formula. The first real error is kept and everybody else is told to stop.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use snapferry_base::cancel::{Cancel, Reason, Stopped};
use snapferry_base::threads::{self, Refused, Team};
use snapferry_qcow2::{ImageFile, Mappings};

use crate::compress::Codec;
use crate::error::{RestoreError, count};
use crate::source::aligned::{BufferPool, PooledBuf, Untaken};

pub mod counters;
mod damage;
mod decode;
mod hashes;
mod image_source;
mod local;
pub mod plan;
mod read;
mod stored;
mod sums;

use counters::Counters;
pub use damage::{BadBodies, BadBody};
pub use decode::Piece;
pub use hashes::{ChunkHashes, HashFinding, ManifestError, check_manifest};
pub(crate) use hashes::{check_sizes, hashed_segments};
pub use image_source::ImageSource;
pub(crate) use image_source::READER;
pub use local::{LocalImage, LocalImageError};
use plan::Plan;
pub use stored::StoredImage;
pub use sums::{ParseSha256Error, Sha256Sum, Sums, WantedSums};

/// What all stages share.
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

    /// A buffer of a pool; where the system refuses the memory, that ends the work.
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

    /// The first error, or that somebody asked us to stop, or nothing.
    pub fn verdict(&self) -> Result<(), RestoreError> {
        match (self.outcome().take(), self.cancel.reason()) {
            (Some(error), _) => Err(error),
            (None, Some(Reason::Asked)) => Err(RestoreError::Interrupted),
            (None, Some(Reason::Failed)) => Err(RestoreError::StageDied { stage: "reading" }),
            (None, None) => Ok(()),
        }
    }
}

/// Where decoded bytes go. Called by several threads at once, in no particular order.
pub trait Sink: Sync {
    /// Takes a piece of the disk. It keeps nothing of it.
    ///
    /// # Errors
    /// Where the bytes can't be brought to where they belong.
    fn take(&self, piece: &Piece) -> Result<(), RestoreError>;

    /// Whether pieces that hold every cluster of their chunk are wanted with zeros in between.
    fn wants_whole_chunks(&self) -> bool {
        false
    }
}

/// An image to be read to its end.
pub struct Reading<'a> {
    /// Its bytes.
    pub file: &'a dyn ImageFile,
    /// Where its bodies lie.
    pub mappings: &'a Arc<Mappings>,
    /// How they are compressed.
    pub codec: Codec,
    /// What was decided.
    pub plan: &'a Plan,
    /// Where decoded bytes go.
    pub sink: &'a dyn Sink,
    /// Gets the hash of each chunk that holds anything.
    pub hashes: Option<&'a Arc<ChunkHashes>>,
    /// Collects bodies that do not decode; without it the first one ends the work.
    pub damaged: Option<&'a Arc<BadBodies>>,
    /// Sums over the file, which the plan must cover as a whole then.
    pub sums: WantedSums,
    /// Stops the work from outside, and is told when it fails.
    pub cancel: Cancel,
    /// Written while the work goes on.
    pub counters: Arc<Counters>,
}

impl Reading<'_> {
    /// Reads and decodes everything. Blocks until the last piece was taken.
    ///
    /// # Errors
    /// With the first real error.
    pub fn run(self) -> Result<Sums, RestoreError> {
        let context = Context::new(&self.cancel, &self.counters);
        let plan = self.plan;
        let (pieces_in, pieces) = bounded(plan.chunk_buffers());
        let decoders = decode::Decoders::new(&self, pieces_in, &context)?;
        let (slots_in, slots) = bounded(plan.batch_buffers());
        let (sink, wanted, context) = (self.sink, self.sums, &context);
        let before = Counted::of(&context.counters);
        let ended = thread::scope(|scope| {
            let sums = threads::scoped(scope, "sum up the file", move || sums::run(&slots, wanted))?;
            let draining = move || drain(pieces, sink, context);
            let sinks =
                Team::start(scope, "write or compare", decoders.of_those_beside(plan::SINKS), draining)?;
            read::run(self.file, plan, &slots_in, &decoders, context);
            // The pieces end when the last job does.
            drop(decoders);
            drop(slots_in);
            let sums = sums.join().map_err(|_panic| RestoreError::StageDied { stage: "sums" });
            let sinks = sinks.join().map_err(|_died| RestoreError::StageDied { stage: "disk" });
            Ok::<_, Refused>((sums, sinks))
        });
        // All threads have ended here, and only now is what they did taken for done.
        let (sums, sinks) = ended.map_err(RestoreError::Threads)?;
        context.verdict()?;
        sinks?;
        let (sums, passed) = sums?.ok_or(RestoreError::StageDied { stage: "sums" })?;
        let after = Counted::of(&context.counters);
        let expected = if wanted == WantedSums::None { plan.own_bytes() } else { self.file.size().0 };
        count("bytes of the image were read", passed, expected)?;
        count("clusters were decoded", after.decoded - before.decoded, plan.clusters())?;
        count("clusters came to where they belong", after.taken - before.taken, plan.clusters())?;
        Ok(sums)
    }
}

/// How far the stages have come.
struct Counted {
    decoded: u64,
    taken: u64,
}

impl Counted {
    fn of(counters: &Counters) -> Self {
        Self { decoded: counters.clusters.load(Relaxed), taken: counters.taken.load(Relaxed) }
    }
}

/// One sink thread.
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
