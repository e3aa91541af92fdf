//! Conversion of a device into an image: the pipeline, which is connected here and nowhere else.
//!
//! ```text
//! read ──▶ compress ──▶ assemble ──▶ upload
//! ```
//!
//! Each stage is a function that runs until its input ends. Reads start in disk order, and each leaves a slot
//! in the queue to the assembler, so the order is kept whichever read finishes first. Memory is bounded by
//! pools of buffers that travel with the data; [`plan::Plan::peak_memory`] is the formula. The first real
//! error is kept, all other stages stop, and the upload ends completed or aborted.

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
use crate::pipeline::PipelineError;
use crate::source::Source;
use crate::source::aligned::{BufferPool, PooledBuf, Untaken};
use crate::store::Location;
use crate::store::Overwrite;
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
pub use error::{ConvertError, Failure, OrphanedUpload, Remains};
use plan::{ManifestPolicy, Options, Plan};

/// Largest file that is read to find out if it is a manifest. The manifest of a 10 TB image has some 120 MB.
const LARGEST_MANIFEST: u64 = 256 * MIB;

/// State that all stages share.
#[derive(Clone)]
struct Context {
    cancel: Cancel,
    counters: Arc<Counters>,
    /// Size of the source in bytes.
    source_size: u64,
    outcome: Arc<Mutex<Outcome>>,
}

#[derive(Default)]
struct Outcome {
    error: Option<ConvertError>,
    orphaned_upload: Option<OrphanedUpload>,
}

impl Context {
    /// Ends the work with an error, unless it has ended already. An error about an image that is or may be in
    /// the store is kept even then. If several reads fail, the error with the lowest offset on the disk is
    /// kept.
    fn fail(&self, error: ConvertError) {
        let ended = self.cancel.is_cancelled();
        let mut outcome = self.outcome();
        let counts = match &outcome.error {
            None => !ended || error.outlasts_a_stop(),
            Some(kept) => error.offset().zip(kept.offset()).is_some_and(|(new, old)| new < old),
        };
        if counts {
            outcome.error = Some(error);
        }
        drop(outcome);
        self.cancel.cancel(Reason::Failed);
    }

    /// Takes a buffer from a pool. If the system refuses the memory, that ends the work.
    fn take(&self, pool: &BufferPool) -> Result<PooledBuf, Stopped> {
        pool.take(&self.cancel).map_err(|untaken| {
            if let Untaken::Memory(refused) = untaken {
                self.fail(refused.into());
            }
            Stopped
        })
    }

    fn record_orphan(&self, orphaned_upload: OrphanedUpload) {
        self.outcome().orphaned_upload = Some(orphaned_upload);
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Destination of an image.
#[derive(Clone)]
pub struct Target {
    /// Bucket or folder that the image goes to.
    pub store: Arc<dyn ObjectStore>,
    /// Name of the image in the store.
    pub key: ObjectKey,
    /// True if the image may replace an existing one.
    pub overwrite: Overwrite,
}

impl Target {
    /// Writes the manifest beside the image. Blocks.
    ///
    /// # Errors
    /// [`ConvertError::Manifest`] if the store fails; the image itself is complete then.
    pub fn put_manifest(&self, manifest: &Manifest, runtime: &Handle) -> Result<(), ConvertError> {
        let put = runtime.block_on(self.store.put(&self.key.manifest(), manifest.to_json().into()));
        put.map_err(|source| ConvertError::Manifest { url: self.store.url(&self.key), source })
    }
}

/// One conversion of a disk, with everything that it needs from its caller.
pub struct Conversion<'a> {
    pub source: &'a dyn Source,
    pub target: Target,
    pub plan: &'a Plan,
    /// Host name of the machine that reads, for the manifest.
    pub host: String,
    /// Clock for the manifest's date and for the duration.
    pub clock: &'a dyn Clock,
    /// Lets the caller stop the work.
    pub cancel: Cancel,
    /// Progress of the work, written while it runs.
    pub counters: Arc<Counters>,
}

/// Result of a conversion: a complete image.
#[derive(Clone, Debug)]
pub struct Converted {
    /// URL or path of the image.
    pub url: String,
    /// Manifest of the image, stored or not.
    pub manifest: Manifest,
    /// URL or path of the manifest.
    pub manifest_url: String,
    /// Time between the first request to the store and its last response.
    pub took: Duration,
}

impl Conversion<'_> {
    /// Converts the disk. Blocks; `runtime` runs the upload. Returns with the image complete under its key,
    /// or with nothing there.
    ///
    /// `bad_ranges` is called at the end for the ranges that a salvaging source could not read.
    ///
    /// # Errors
    /// Returns the first real error, and the upload that could not be ended, if there is one.
    pub fn run(self, runtime: &Handle) -> Result<Converted, Failure> {
        let begun = self.clock.instant();
        let created = self.clock.now();
        let Target { store, key, overwrite, .. } = &self.target;
        let replaces = runtime.block_on(self.existing()).map_err(Failure::from)?;
        let upload_plan = UploadPlan { part_size: self.plan.part_size, overwrite: *overwrite };
        let context = Context {
            cancel: self.cancel.clone(),
            counters: Arc::clone(&self.counters),
            source_size: self.source.size().0,
            outcome: Arc::default(),
        };
        let workers = compress::Workers::new(self.plan, &context)?;
        let stale = runtime.block_on(self.stale_manifest(replaces.as_ref()));
        // A signal does not cancel this request: an upload whose response is lost would stay in the store.
        // The pipeline aborts it at once then.
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
                Some(Reason::Requested) => ConvertError::Pipeline(PipelineError::Interrupted),
                Some(Reason::Failed) | None => {
                    ConvertError::Pipeline(PipelineError::StageDied { stage: "assembly" })
                }
            });
            return Err(Failure { error, orphaned_upload: outcome.orphaned_upload.take() });
        };
        let manifest = self.manifest(assembled, created, self.source.bad_ranges());
        let (url, manifest_url) = (store.url(key), store.url(&key.manifest()));
        if self.plan.manifest_policy == ManifestPolicy::Manifest {
            self.target.put_manifest(&manifest, runtime)?;
        }
        let took = self.clock.instant().duration_since(begun);
        Ok(Converted { url, manifest, manifest_url, took })
    }

    /// Looks for an object under the key, and refuses it unless it may be replaced. Returns its version.
    async fn existing(&self) -> Result<Option<ETag>, ConvertError> {
        let Target { store, key, overwrite, .. } = &self.target;
        let found = tokio::select! {
            biased;
            _ = self.cancel.cancelled() => return Err(ConvertError::Pipeline(PipelineError::Interrupted)),
            found = store.head(key) => found.map_err(ConvertError::of_store)?,
        };
        match found {
            Some(_) if *overwrite == Overwrite::Refuse => Err(ConvertError::Exists { url: store.url(key) }),
            found => Ok(found.map(|meta| meta.etag)),
        }
    }

    /// Returns the key of the manifest of the image that is replaced. A run that writes no manifest also
    /// looks for one whose image is gone, and leaves a file of that name alone if it is not a manifest.
    async fn stale_manifest(&self, replaces: Option<&ETag>) -> Option<ObjectKey> {
        let Target { store, key, .. } = &self.target;
        let manifest_key = key.manifest();
        if self.plan.manifest_policy == ManifestPolicy::Manifest {
            return replaces.map(|_| manifest_key);
        }
        let meta =
            store.head(&manifest_key).await.ok().flatten().filter(|meta| meta.size <= LARGEST_MANIFEST)?;
        let json = store.get_range(&manifest_key, 0..meta.size, None).await.ok()?;
        Manifest::from_json(&json).is_ok().then_some(manifest_key)
    }

    fn pipeline(
        &self,
        runtime: &Handle,
        workers: &compress::Workers,
        uploading: upload::Uploading,
        context: &Context,
    ) -> Option<assemble::Assembled> {
        let plan = self.plan;
        // A slot holds no more than its chunk's buffers, which bound the queue; the capacity only has to be
        // no less.
        let (slots_in, slots) = bounded(plan.chunks);
        let (parts_in, parts) = mpsc::channel(1);
        let started = thread::scope(|scope| {
            // Each stage owns its ends of the channels, so that its neighbours end when it does, for whatever
            // reason.
            let assembling = move || assemble::run(self.source, &slots, plan, parts_in, context);
            // The assembler starts before the readers, because these take all threads that are left.
            let assembler = threads::spawn_scoped(scope, "assemble", assembling)?;
            let reading = move || read::run(self.source, plan, &slots_in, workers, context);
            let reader = threads::spawn_scoped(scope, "start reads", reading)?;
            let received = runtime.block_on(uploading.receive(parts, context));
            let assembled = assembler
                .join()
                .map_err(|_panic| ConvertError::Pipeline(PipelineError::StageDied { stage: "assembly" }));
            let read = reader
                .join()
                .map_err(|_panic| ConvertError::Pipeline(PipelineError::StageDied { stage: "reading" }));
            Ok::<_, Refused>((received, assembled, read))
        });
        // All threads have ended here. Nothing is completed before this point.
        let image = started
            .map_err(|error| ConvertError::Pipeline(PipelineError::Threads(error)))
            .and_then(|(received, assembled, read)| Ok((received, self.whole(assembled?, read?, context)?)))
            .map_err(|error| context.fail(error));
        let image = image.ok().and_then(|(received, assembled)| Some((received?, assembled)));
        let (received, assembled) = image.unzip();
        runtime.block_on(uploading.end(received.zip(assembled.as_ref()), context))?;
        assembled
    }

    /// Returns the assembled image if all stages have ended without an error and agree that it is all of the
    /// disk.
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
            // The context holds the reason. Without a reason, a stage has died.
            (Err(Unfinished::Stopped), _) => {
                Err(ConvertError::Pipeline(PipelineError::StageDied { stage: "assembly" }))
            }
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

/// Returns a plan to convert `source` to a destination of this `kind` on this machine, within the limits of
/// this process.
///
/// # Errors
/// As for [`Plan::new`] and [`Plan::within`].
pub fn plan_for(source: &dyn Source, options: &Options, kind: Location) -> Result<Plan, ConvertError> {
    Plan::new(source.size(), options, kind, cores())?.within(options, kind, &Allowance::of_process())
}
