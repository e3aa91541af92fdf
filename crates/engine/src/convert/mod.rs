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

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::bounded;
use snapferry_base::cancel::{Cancel, Reason, Stopped};
use snapferry_base::clock::Clock;
use snapferry_base::limits::Allowance;
use snapferry_base::threads::{self, Refused};
use snapferry_base::units::{ByteCount, MIB};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::compress::cores;
use crate::manifest::{self, EncoderRecord, ImageRecord, Manifest, SourceRecord};
use crate::source::Source;
use crate::source::aligned::{BufferPool, PooledBuf, Untaken};
use crate::store::{ETag, ObjectKey, ObjectStore, UploadPlan};

mod assemble;
mod compress;
pub mod counters;
mod error;
mod parts;
pub mod plan;
mod read;
pub mod sample;
mod upload;

use assemble::Unfinished;
use counters::Counters;
pub use error::{ConvertError, Failure, Leftover, Remains};
use plan::{Beside, Destination, Options, Plan};

/// No file is looked into for a manifest that is larger: of an image of 10 TB it has some 120 MB.
const LARGEST_MANIFEST: u64 = 256 * MIB;

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
    /// Ends the work with an error, unless it has ended already; what is in the store is told even then. Of reads that fail side by side,
    /// the first place on the disk counts.
    fn fail(&self, error: ConvertError) {
        let ended = self.cancel.is_cancelled();
        let mut outcome = self.outcome();
        let counts = match &outcome.error {
            None => !ended || error.outlasts_a_stop(),
            Some(kept) => error.offset().zip(kept.offset()).is_some_and(|(ours, theirs)| ours < theirs),
        };
        if counts {
            outcome.error = Some(error);
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
    pub fn run(
        self,
        runtime: &Handle,
        bad_ranges: &dyn Fn() -> Vec<crate::source::BadRange>,
    ) -> Result<Converted, Failure> {
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
        let stale = runtime.block_on(self.stale_manifest(replaces.as_ref()));
        // Not cut short by a signal: an upload whose answer nobody heard would stay in the store. The pipeline ends it at once then.
        let upload =
            runtime.block_on(store.create_upload(key, &upload_plan)).map_err(ConvertError::of_store)?;
        let _ended_also_by_a_panic =
            upload::AbortOnPanic { runtime, store: Arc::clone(store), upload: upload.clone() };
        let uploading = upload::Uploading {
            store: Arc::clone(store),
            upload,
            connections: self.plan.connections,
            replaces,
            stale,
        };
        let assembled = self.pipeline(runtime, &workers, uploading, &context);
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
            found = store.head(key) => found.map_err(ConvertError::of_store)?,
        };
        match found {
            Some(_) if !replace => Err(ConvertError::Exists { url: store.url(key) }),
            found => Ok(found.map(|meta| meta.etag)),
        }
    }

    /// The manifest of the image that is replaced. A run that writes none of its own also looks for one whose image is gone, and leaves
    /// a file of that name alone that somebody else has made.
    async fn stale_manifest(&self, replaces: Option<&ETag>) -> Option<ObjectKey> {
        let Target { store, key, .. } = &self.target;
        let beside = key.manifest();
        if self.plan.beside == Beside::Manifest {
            return replaces.map(|_| beside);
        }
        let meta = store.head(&beside).await.ok().flatten().filter(|meta| meta.size <= LARGEST_MANIFEST)?;
        let json = store.get_range(&beside, 0..meta.size, None).await.ok()?;
        Manifest::from_json(&json).is_ok().then_some(beside)
    }

    fn pipeline(
        &self,
        runtime: &Handle,
        workers: &compress::Workers,
        uploading: upload::Uploading,
        context: &Context,
    ) -> Option<assemble::Assembled> {
        let plan = self.plan;
        // A slot holds no more than its chunk's buffers, which bound the queue; the capacity only has to be no less.
        let (slots_in, slots) = bounded(plan.chunks);
        let (parts_in, parts) = mpsc::channel(1);
        let started = thread::scope(|scope| {
            // What each stage takes and gives is moved into it, so that its neighbours come to an end when it does, however that is.
            let assembling = move || assemble::run(self.source, &slots, plan, parts_in, context);
            // Whoever takes comes first: the readers take what threads there are.
            let assembler = threads::scoped(scope, "assemble", assembling)?;
            let reading = move || read::run(self.source, plan, &slots_in, workers, context);
            let reader = threads::scoped(scope, "start reads", reading)?;
            let received = runtime.block_on(uploading.receive(parts, context));
            let assembled = assembler.join().map_err(|_panic| ConvertError::StageDied { stage: "assembly" });
            let read = reader.join().map_err(|_panic| ConvertError::StageDied { stage: "reading" });
            Ok::<_, Refused>((received, assembled, read))
        });
        // All threads have ended here, and only now is anything completed.
        let image = started
            .map_err(ConvertError::Threads)
            .and_then(|(received, assembled, read)| Ok((received, self.whole(assembled?, read?, context)?)))
            .map_err(|error| context.fail(error));
        let image = image.ok().and_then(|(received, assembled)| Some((received?, assembled)));
        let (received, assembled) = image.unzip();
        runtime.block_on(uploading.end(received.zip(assembled.as_ref()), context))?;
        assembled
    }

    /// What was assembled, if the stages have all come to a good end and agree that it is all of the disk.
    fn whole(
        &self,
        assembled: Result<assemble::Assembled, Unfinished>,
        read: Option<u64>,
        context: &Context,
    ) -> Result<assemble::Assembled, ConvertError> {
        let size = context.source_size;
        match (assembled, read) {
            (Ok(assembled), Some(read)) if (assembled.accounted.0, read) == (size, size) => Ok(assembled),
            (Ok(assembled), read) => Err(ConvertError::Unaccounted {
                accounted: read.unwrap_or_default().min(assembled.accounted.0),
                size,
            }),
            (Err(Unfinished::Short(accounted)), _) => {
                Err(ConvertError::Unaccounted { accounted: accounted.0, size })
            }
            // The context has the reason. Without one, a stage has died.
            (Err(Unfinished::Stopped), _) => Err(ConvertError::StageDied { stage: "assembly" }),
        }
    }

    fn manifest(
        &self,
        assembled: assemble::Assembled,
        created: SystemTime,
        salvaged: Vec<crate::source::BadRange>,
    ) -> Manifest {
        let plan = self.plan;
        Manifest {
            version: manifest::VERSION,
            made_by: concat!("snapferry ", env!("CARGO_PKG_VERSION")).to_owned(),
            created: snapferry_base::clock::rfc3339(created),
            source: SourceRecord {
                name: self.source.name().to_owned(),
                host: self.host.clone(),
                size: self.source.size(),
            },
            image: ImageRecord {
                size: ByteCount(assembled.size),
                virtual_size: plan.geometry.virtual_size(),
                crc64: assembled.crc64,
                accounted: Some(assembled.accounted),
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

/// A plan for `source` at `target` on this machine, within the limits of this process.
///
/// # Errors
/// As [`Plan::new`] and [`Plan::within`].
pub fn plan_for(source: &dyn Source, options: &Options, kind: Destination) -> Result<Plan, ConvertError> {
    Plan::new(source.size(), options, kind, cores())?.within(options, kind, &Allowance::of_process())
}
