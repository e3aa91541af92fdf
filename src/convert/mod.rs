//! A device to an image: the pipeline, wired here and nowhere else.
//!
//! ```text
//! read ──▶ compress ──▶ assemble ──▶ upload
//! ```
//!
//! Each stage is a function that runs until its input ends. Reads start in disk order and each leaves a slot in the queue to the assembler,
//! so that order is kept whoever finishes first. Memory is bounded by pools of buffers that travel with the data;
//! [`plan::Plan::peak_memory`] is the formula. The first real error is kept, everybody else is told to stop, and the
//! upload ends completed or aborted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::bounded;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::cancel::{Cancel, Reason};
use crate::clock::Clock;
use crate::compress::{Codec, cores};
use crate::manifest::{self, EncoderRecord, ImageRecord, Manifest, SourceRecord};
use crate::qcow2::GeometryError;
use crate::retry::Class;
use crate::source::{Source, SourceError};
use crate::store::{ETag, ObjectKey, ObjectStore, StoreError, Upload, UploadPlan};
use crate::units::{ByteCount, GuestOffset};

mod assemble;
mod compress;
pub mod counters;
mod parts;
pub mod plan;
mod read;
pub mod sample;
mod upload;

use counters::Counters;
use plan::{Beside, Destination, Options, Plan};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The source failed.
    #[error(transparent)]
    Source(SourceError),
    /// The destination failed.
    #[error(transparent)]
    Store(StoreError),
    /// The format can't hold the disk.
    #[error(transparent)]
    Geometry(GeometryError),
    /// The store can't hold the image.
    #[error("a disk of {size} may make an image of {bound}, and a store holds objects of at most {limit}")]
    TooLarge {
        /// The disk.
        size: ByteCount,
        /// The image at most.
        bound: ByteCount,
        /// The store's limit.
        limit: ByteCount,
    },
    /// A version 2 image that would need what only version 3 has.
    #[error("version 2 of qcow2 knows deflate alone, not {codec}")]
    Version2 {
        /// As asked for.
        codec: Codec,
    },
    /// The part size can't be used.
    #[error("a part size of {asked} won't do: {why}")]
    PartSize {
        /// As asked for.
        asked: ByteCount,
        /// The rule it breaks.
        why: String,
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
    /// Something is stored there already.
    #[error("{url} exists already")]
    Exists {
        /// The destination.
        url: String,
    },
    /// The image is complete, its manifest is not.
    #[error("the image {url} is complete, but its manifest could not be written")]
    Manifest {
        /// The image.
        url: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// Threads could not be started.
    #[error("cannot start the compression threads: {reason}")]
    Threads {
        /// The system's words.
        reason: String,
    },
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

impl ConvertError {
    /// What the error means for another attempt at the whole conversion.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Source(error) => error.class(),
            Self::Store(error) | Self::Manifest { source: error, .. } => error.class(),
            Self::Interrupted => Class::Cancelled,
            Self::Geometry(_)
            | Self::TooLarge { .. }
            | Self::Version2 { .. }
            | Self::PartSize { .. }
            | Self::TooMany { .. }
            | Self::Exists { .. }
            | Self::Threads { .. }
            | Self::StageDied { .. } => Class::Permanent,
        }
    }
}

impl ConvertError {
    /// The place on the disk that could not be read.
    fn offset(&self) -> Option<GuestOffset> {
        match self {
            Self::Source(
                SourceError::Read { offset, .. } | SourceError::Vanished { offset, .. } | SourceError::Shrunk { offset, .. },
            ) => Some(*offset),
            _ => None,
        }
    }
}

/// An upload that could not be ended, and costs money until somebody does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Which.
    pub upload: Upload,
    /// What it was to become.
    pub url: String,
    /// Why it is still there.
    pub why: String,
}

/// A conversion that did not end in an image.
#[derive(Debug)]
pub struct Failure {
    /// The first real error.
    pub error: ConvertError,
    /// What is left in the store, if anything.
    pub leftover: Option<Leftover>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Self {
        Self { error, leftover: None }
    }
}

/// What all stages share.
#[derive(Clone)]
struct Context {
    cancel: Cancel,
    counters: Arc<Counters>,
    /// Bytes of the source.
    source_size: u64,
    outcome: Arc<Mutex<Outcome>>,
}

#[derive(Default)]
struct Outcome {
    error: Option<ConvertError>,
    leftover: Option<Leftover>,
}

impl Context {
    /// Ends the work with an error, unless it has ended already. Of reads that fail side by side, the first place on the disk counts.
    fn fail(&self, error: ConvertError) {
        let ended = self.cancel.is_cancelled();
        let mut outcome = self.outcome();
        let counts = match &outcome.error {
            None => !ended,
            Some(kept) => error.offset().zip(kept.offset()).is_some_and(|(ours, theirs)| ours < theirs),
        };
        if counts {
            outcome.error = Some(error);
        }
        drop(outcome);
        self.cancel.cancel(Reason::Failed);
    }

    fn leave_behind(&self, leftover: Leftover) {
        self.outcome().leftover = Some(leftover);
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the image goes.
#[derive(Clone)]
pub struct Target {
    /// The bucket or folder.
    pub store: Arc<dyn ObjectStore>,
    /// The image's name in it.
    pub key: ObjectKey,
    /// Whether an image that is there already may be replaced.
    pub replace: bool,
}

impl Target {
    /// Puts the manifest beside the image. Blocks.
    ///
    /// # Errors
    /// [`ConvertError::Manifest`]: the image itself is there.
    pub fn put_manifest(&self, manifest: &Manifest, runtime: &Handle) -> Result<(), ConvertError> {
        let put = runtime.block_on(self.store.put(&self.key.manifest(), manifest.to_json().into()));
        put.map_err(|source| ConvertError::Manifest { url: self.store.url(&self.key), source })
    }
}

/// A disk to convert, with everything that the conversion needs from outside.
pub struct Conversion<'a> {
    /// The disk.
    pub source: &'a dyn Source,
    /// Where the image goes.
    pub target: Target,
    /// What was decided.
    pub plan: &'a Plan,
    /// For the manifest: the machine that reads.
    pub host: String,
    /// For the manifest's date.
    pub clock: &'a dyn Clock,
    /// Stops the work from outside.
    pub cancel: Cancel,
    /// Written while the work goes on.
    pub counters: Arc<Counters>,
}

/// An image that arrived.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Where it is.
    pub url: String,
    /// What lies beside it.
    pub manifest: Manifest,
    /// Where that is.
    pub manifest_url: String,
    /// How long it took, from the first question to the store to its last answer.
    pub took: Duration,
}

impl Conversion<'_> {
    /// Converts. Blocks; `runtime` runs the upload. Returns with the image complete under its key, or with nothing there.
    ///
    /// `bad_ranges` is asked at the end for what a salvaging source could not read.
    ///
    /// # Errors
    /// With the first real error, and the upload that could not be ended, if there is one.
    pub fn run(self, runtime: &Handle, bad_ranges: &dyn Fn() -> Vec<crate::source::BadRange>) -> Result<Converted, Failure> {
        let begun = self.clock.instant();
        let created = self.clock.now();
        let Target { store, key, replace, .. } = &self.target;
        let replaces = runtime.block_on(self.existing()).map_err(Failure::from)?;
        let upload_plan = UploadPlan { part_size: self.plan.part_size, replace: *replace };
        let context = Context {
            cancel: self.cancel.clone(),
            counters: Arc::clone(&self.counters),
            source_size: self.source.size().0,
            outcome: Arc::default(),
        };
        let workers = compress::Workers::new(self.plan, &context)?;
        // Not cut short by a signal: an upload whose answer nobody heard would stay in the store. The pipeline ends it at once then.
        let upload = runtime.block_on(store.create_upload(key, &upload_plan)).map_err(ConvertError::Store)?;
        let assembled = self.pipeline(runtime, &workers, upload, replaces, &context);
        let mut outcome = context.outcome();
        let Some(assembled) = assembled else {
            let error = outcome.error.take().unwrap_or(match self.cancel.reason() {
                Some(Reason::Asked) => ConvertError::Interrupted,
                Some(Reason::Failed) | None => ConvertError::StageDied { stage: "assembly" },
            });
            return Err(Failure { error, leftover: outcome.leftover.take() });
        };
        let manifest = self.manifest(assembled, created, bad_ranges());
        let (url, manifest_url) = (store.url(key), store.url(&key.manifest()));
        if self.plan.beside == Beside::Manifest {
            self.target.put_manifest(&manifest, runtime)?;
        }
        let took = self.clock.instant().duration_since(begun);
        Ok(Converted { url, manifest, manifest_url, took })
    }

    /// Looks for something under the key; refuses it unless it may be replaced.
    async fn existing(&self) -> Result<Option<ETag>, ConvertError> {
        let Target { store, key, replace, .. } = &self.target;
        let found = tokio::select! {
            biased;
            _ = self.cancel.cancelled() => return Err(ConvertError::Interrupted),
            found = store.head(key) => found.map_err(ConvertError::Store)?,
        };
        match found {
            Some(_) if !replace => Err(ConvertError::Exists { url: store.url(key) }),
            found => Ok(found.map(|meta| meta.etag)),
        }
    }

    fn pipeline(
        &self,
        runtime: &Handle,
        workers: &compress::Workers,
        upload: Upload,
        replaces: Option<ETag>,
        context: &Context,
    ) -> Option<assemble::Assembled> {
        let plan = self.plan;
        // A slot holds no more than its chunk's buffers, which bound the queue; the capacity only has to be no less.
        let (slots_in, slots) = bounded(plan.chunks);
        let (parts_in, parts) = mpsc::channel(1);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // Moved in, so that the queue closes when reading ends.
                let slots = slots_in;
                read::run(self.source, plan, &slots, workers, context);
            });
            let assembler = scope.spawn(|| assemble::run(self.source, &slots, plan, parts_in, context));
            let store = Arc::clone(&self.target.store);
            let stored = runtime.block_on(upload::run(parts, store, upload, plan.connections, replaces, context));
            // A stage that panicked has dropped its channels, so that the others have ended; and the upload with them.
            let assembled = assembler.join().unwrap_or_else(|_| {
                context.fail(ConvertError::StageDied { stage: "assembly" });
                None
            });
            if reader.join().is_err() {
                context.fail(ConvertError::StageDied { stage: "reading" });
            }
            stored.and(assembled)
        })
    }

    fn manifest(&self, assembled: assemble::Assembled, created: SystemTime, salvaged: Vec<crate::source::BadRange>) -> Manifest {
        let plan = self.plan;
        Manifest {
            version: manifest::VERSION,
            made_by: concat!("snapferry ", env!("CARGO_PKG_VERSION")).to_owned(),
            created: crate::clock::rfc3339(created),
            source: SourceRecord { name: self.source.name().to_owned(), host: self.host.clone(), size: self.source.size() },
            image: ImageRecord {
                size: ByteCount(assembled.size),
                virtual_size: plan.geometry.virtual_size(),
                crc64: assembled.crc64,
                sha256: None,
                verified_at: None,
            },
            encoder: EncoderRecord {
                codec: plan.codec_name().to_owned(),
                level: plan.level.name().to_owned(),
                library: plan.encoder(),
                cluster_size: ByteCount(plan.geometry.cluster().size()),
                segment_size: plan.geometry.segment_size(),
                chunk_size: plan::CHUNK,
            },
            salvaged,
            segments: assembled.segments,
        }
    }
}

/// A plan for `source` at `target` on this machine.
///
/// # Errors
/// As [`Plan::new`].
pub fn plan_for(source: &dyn Source, options: &Options, kind: Destination) -> Result<Plan, ConvertError> {
    Plan::new(source.size(), options, kind, cores())
}
