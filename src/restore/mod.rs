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

use crate::cancel::{Cancel, Reason, Stopped};
use crate::compress::{Codec, DecodeError};
use crate::limits::{OutOfMemory, TooTight};
use crate::qcow2::{Compression, FileError, Header, ImageError, ImageFile, Mappings};
use crate::retry::Class;
use crate::source::SourceError;
use crate::source::aligned::{BufferPool, PooledBuf, Untaken};
use crate::threads::{self, Refused, Team};
use crate::units::{GuestOffset, HostOffset};

mod compare;
mod copy;
pub mod counters;
mod damage;
mod decode;
mod differences;
mod hashes;
mod local;
pub mod plan;
mod read;
mod signature;
mod source;
mod sources;
mod stored;
mod sums;
mod target;
mod verify;
mod write;

pub use compare::Comparison;
pub use copy::{Copying, RawPlace, Zeros};
use counters::Counters;
pub use damage::{BadBodies, BadBody};
pub use decode::Piece;
pub use differences::{Difference, Differences};
pub use hashes::{ChunkHashes, HashFinding, ManifestError, check_manifest};
pub use local::{LocalImage, LocalImageError};
use plan::Plan;
pub use source::ImageSource;
pub use sources::{Until, compare_sources};
pub use stored::StoredImage;
pub use sums::{ParseSha256Error, Sha256Sum, Sums, WantedSums};
pub use target::{Force, PageCache, TargetError, UnknownPolicyError, ZeroPolicy};
pub use verify::{Finding, Sha256Wanted, Verdict, Verification};
pub use write::{Destination, Restoration, Restored};

/// Why an image was not read to its end, or what was read did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image's bytes can't be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// A body does not decode.
    #[error("{name}: the body at byte {host}, which holds the disk's bytes from {guest}, is damaged")]
    Body {
        /// The image.
        name: String,
        /// Where its cluster lies in the disk.
        guest: GuestOffset,
        /// Where it lies in the file.
        host: HostOffset,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The image holds something else than its manifest says.
    #[error("{name}: {finding}")]
    Manifest {
        /// The image.
        name: String,
        /// What differs.
        finding: HashFinding,
    },
    /// The manifest can't be held against the image.
    #[error("{name}: the manifest beside it is of no use")]
    Unusable {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// What it is compared with can't be read.
    #[error(transparent)]
    Source(SourceError),
    /// What it is restored to can't be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The target holds part of the image only.
    #[error("{target} is incomplete: do not use it")]
    Incomplete {
        /// The target.
        target: String,
        /// Why.
        #[source]
        source: Box<RestoreError>,
    },
    /// More at once than makes sense, or than a machine starts.
    #[error("{asked} {what} are too many: give at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// As asked for.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// Threads could not be started.
    #[error(transparent)]
    Threads(Refused),
    /// The stages ended without an error, and did not bring all that there is.
    #[error("only {found} of {expected} {what}: this is a bug in snapferry, and nothing is made of them")]
    Unaccounted {
        /// What was counted.
        what: &'static str,
        /// How much of it came.
        found: u64,
        /// How much of it there is.
        expected: u64,
    },
    /// The system refuses memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The limits of this process leave too little for any plan.
    #[error(transparent)]
    TooTight(#[from] TooTight),
    /// A stage ended without a word: a bug.
    #[error("the {stage} stage died: this is a bug in snapferry")]
    StageDied {
        /// Which.
        stage: &'static str,
    },
    /// Somebody asked us to stop.
    #[error("interrupted")]
    Interrupted,
}

impl RestoreError {
    /// What the error means for another attempt. Stores have been asked again already.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Interrupted => Class::Cancelled,
            Self::Incomplete { source, .. } => source.class(),
            _ => Class::Permanent,
        }
    }
}

/// What all stages share.
#[derive(Clone)]
struct Context {
    cancel: Cancel,
    counters: Arc<Counters>,
    outcome: Arc<Mutex<Option<RestoreError>>>,
}

impl Context {
    fn new(cancel: &Cancel, counters: &Arc<Counters>) -> Self {
        Self { cancel: cancel.clone(), counters: Arc::clone(counters), outcome: Arc::default() }
    }

    /// Ends the work with an error, unless it has ended already.
    fn fail(&self, error: RestoreError) {
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
    fn verdict(&self) -> Result<(), RestoreError> {
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
            let sinks = Team::start(scope, "write or compare", decoders.of_those_beside(plan::SINKS), draining)?;
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

/// Holds what was counted against what there is: that threads and channels have ended proves nothing.
fn count(what: &'static str, found: u64, expected: u64) -> Result<(), RestoreError> {
    if found == expected { Ok(()) } else { Err(RestoreError::Unaccounted { what, found, expected }) }
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

/// The codec that an image's bodies are compressed with.
#[must_use]
pub fn codec_of(header: &Header) -> Codec {
    match header.compression {
        Compression::Deflate => Codec::Deflate,
        Compression::Zstd => Codec::Zstd,
    }
}
