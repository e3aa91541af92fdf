//! Conversion of a device into an image: the pipeline, which is connected here and nowhere else.
//!
//! ```text
//! read ──▶ compress ──▶ assemble ──▶ upload
//! read ──▶ hash ──▶ judge ──▶ compress ──▶ assemble ──▶ upload          with an older image, the base
//! ```
//!
//! Each stage is a function that runs until its input ends. Reads start in disk order, and each leaves a slot
//! in the queue to the assembler, so the order is kept whichever read finishes first. Memory is bounded by
//! pools of buffers that travel with the data; [`plan::Plan::peak_memory`] is the formula. The first real
//! error is kept, all other stages stop, and the upload ends completed or aborted.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::bounded;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::clock::Clock;
use snapferry_base::limits::Allowance;
use snapferry_base::retry::chain;
use snapferry_base::threads::{self, Refused};
use snapferry_base::units::{ByteCount, MIB, to_u64};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::compress::cores;
use crate::image::base::Base;
use crate::manifest::{self, BaseRecord, ImageRecord, Manifest, RefusedRecord, SourceRecord};
use crate::pipeline::PipelineError;
use crate::source::Source;
use crate::store::Location;
use crate::store::Overwrite;
use crate::store::{ETag, ObjectKey, ObjectStore, UploadPlan};

mod assemble;
mod compress;
mod context;
pub mod counters;
mod error;
mod judge;
mod parts;
pub mod plan;
mod planner;
mod proof;
mod read;
pub mod sample;
mod send;
mod upload;
mod why_full;

use assemble::Unfinished;
use context::{Context, Outcome};
use counters::Counters;
pub use error::{ConvertError, Failure, OrphanedUpload, Remains};
use plan::{ManifestPolicy, Options, Plan};
use read::{Pools, Queue};
pub use why_full::WhyFull;

/// Largest file that is read to find out if it is a manifest. The manifest of a 10 TB image has some 120 MB.
const LARGEST_MANIFEST: u64 = 256 * MIB;

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
    /// Older image of the disk, to take from what did not change. The plan is one with
    /// [`plan::Reuse::Unchanged`] then, which has the memory for it.
    pub base: Option<Arc<Base>>,
    /// Refusal of the store to copy parts that an earlier manifest records, if no base is used for that
    /// reason.
    pub refused: Option<RefusedRecord>,
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
    /// Bytes that were sent, in all attempts.
    pub sent: u64,
    /// What was taken from the base, if one was used to the end.
    pub reused: Option<Reused>,
    /// Reason why the base was given up, and all of the disk was sent.
    pub given_up: Option<Arc<WhyFull>>,
}

/// What an image took from its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reused {
    /// Key of the base.
    pub key: ObjectKey,
    /// Version of the base.
    pub etag: ETag,
    /// Number of segments that hold data.
    pub segments: u64,
    /// Number of these segments that did not change.
    pub unchanged: u64,
    /// Bytes that the store copied.
    pub copied: u64,
    /// Number of parts that the store copied.
    pub copies: u64,
    /// Bytes that were fetched from the base and sent again.
    pub fetched: u64,
    /// Number of copied segments that were read back and compared, because the store returned no checksum of
    /// what it copied.
    pub read_back: u64,
}

/// Image that an attempt has made.
struct Made {
    assembled: assemble::Assembled,
    completed: upload::Completed,
}

/// End of an attempt that has made no image.
enum Ended {
    /// The conversion fails.
    Failed(Failure),
    /// The base is given up.
    GaveUp { why: WhyFull, orphaned_upload: Option<OrphanedUpload> },
}

impl<E: Into<Failure>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Conversion<'_> {
    /// Converts the disk. Blocks; `runtime` runs the upload. Returns with the image complete under its key,
    /// or with nothing there. A base that can't be used to the end is given up, and the disk is converted
    /// again, without one.
    ///
    /// `bad_ranges` is called at the end for the ranges that a salvaging source could not read.
    ///
    /// # Errors
    /// Returns the first real error, and the upload that could not be ended, if there is one.
    pub fn run(self, runtime: &Handle) -> Result<Converted, Failure> {
        let begun = self.clock.instant();
        let created = self.clock.now();
        let mut given_up = None;
        let made = match self.attempt(runtime, self.base.as_deref()) {
            Err(Ended::GaveUp { why, orphaned_upload }) => {
                tracing::warn!("the base is given up, and all of the disk is sent: {}", chain(&why));
                self.counters.begin_again();
                given_up = Some(Arc::new(why));
                self.attempt(runtime, None).map_err(|ended| match ended {
                    Ended::Failed(failure) => Ended::Failed(Failure {
                        orphaned_upload: failure.orphaned_upload.or(orphaned_upload),
                        ..failure
                    }),
                    ended => ended,
                })
            }
            ended => ended,
        };
        let Made { assembled, completed } = made.map_err(|ended| match ended {
            Ended::Failed(failure) => failure,
            // Only an attempt with a base gives one up.
            Ended::GaveUp { orphaned_upload, .. } => {
                let error = ConvertError::Pipeline(PipelineError::StageDied { stage: "upload" });
                Failure { error, orphaned_upload }
            }
        })?;
        let reused = self.base.as_ref().filter(|_| given_up.is_none()).map(|base| {
            let from = base.copy_source();
            Reused {
                key: from.key.clone(),
                etag: from.etag.clone(),
                segments: to_u64(assembled.segments.len()),
                unchanged: assembled.reused,
                copied: completed.copied,
                copies: completed.copies,
                fetched: completed.fetched,
                read_back: completed.read_back,
            }
        });
        let mut manifest = self.manifest(assembled, completed.etag, created, self.source.bad_ranges());
        manifest.base = reused.as_ref().filter(|reused| reused.unchanged > 0).map(|reused| BaseRecord {
            key: reused.key.clone(),
            etag: reused.etag.clone(),
            segments: reused.unchanged,
            bytes: ByteCount(reused.copied),
        });
        let refusal = given_up.as_deref().and_then(WhyFull::refusal);
        manifest.refused = refusal
            .map(|what| RefusedRecord { what, at: snapferry_base::clock::rfc3339(self.clock.now()) })
            .or_else(|| self.refused.clone());
        let Target { store, key, .. } = &self.target;
        let (url, manifest_url) = (store.url(key), store.url(&key.manifest()));
        if self.plan.manifest_policy == ManifestPolicy::Manifest {
            self.target.put_manifest(&manifest, runtime)?;
        }
        let took = self.clock.instant().duration_since(begun);
        let sent = self.counters.totals().sent;
        Ok(Converted { url, manifest, manifest_url, took, sent, reused, given_up })
    }

    /// Makes the image once, from the first request to the last.
    fn attempt(&self, runtime: &Handle, base: Option<&Base>) -> Result<Made, Ended> {
        let Target { store, key, overwrite, .. } = &self.target;
        let replaces = runtime.block_on(self.existing())?;
        let upload_plan = UploadPlan { part_size: self.plan.part_size, overwrite: *overwrite };
        let context = Context {
            // An attempt that gives its base up ends alone.
            cancel: if base.is_some() { self.cancel.child() } else { self.cancel.clone() },
            whole: self.cancel.clone(),
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
            base: base.map(|base| base.copy_source().clone()),
        };
        let made = self.pipeline(runtime, &workers, uploading, base, &context);
        let mut outcome = context.outcome();
        let Outcome { error, orphaned_upload, given_up } = std::mem::take(&mut *outcome);
        match (made, error, given_up) {
            (Some(made), ..) => Ok(made),
            (None, None, Some(why)) => Err(Ended::GaveUp { why, orphaned_upload }),
            (None, error, _) => {
                let error = error.unwrap_or(match context.cancel.reason() {
                    Some(Reason::Requested) => ConvertError::Pipeline(PipelineError::Interrupted),
                    Some(Reason::Failed) | None => {
                        ConvertError::Pipeline(PipelineError::StageDied { stage: "assembly" })
                    }
                });
                Err(Ended::Failed(Failure { error, orphaned_upload }))
            }
        }
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
        base: Option<&Base>,
        context: &Context,
    ) -> Option<Made> {
        let plan = self.plan;
        let pools = Pools::new(plan);
        let pools = &pools;
        // A slot holds no more than its chunk's buffers, which bound the queue; the capacity only has to be
        // no less.
        let (slots_in, slots) = bounded(plan.chunks);
        let (parts_in, parts) = mpsc::channel(1);
        let died = |stage| ConvertError::Pipeline(PipelineError::StageDied { stage });
        let started = thread::scope(|scope| {
            // Each stage owns its ends of the channels, so that its neighbours end when it does, for whatever
            // reason.
            let assembling = move || assemble::run(self.source, &slots, plan, base, parts_in, context);
            // The assembler starts before the readers, because these take all threads that are left.
            let assembler = threads::spawn_scoped(scope, "assemble", assembling)?;
            let (queue, judge) = match base {
                None => (Queue::Slots(slots_in), None),
                Some(base) => {
                    let (unjudged_in, unjudged) = bounded(plan.chunk_buffers());
                    let judging = move || judge::run(base, &unjudged, &slots_in, pools, workers, context);
                    let judge = threads::spawn_scoped(scope, "judge", judging)?;
                    (Queue::Unjudged(unjudged_in), Some(judge))
                }
            };
            let reading = move || read::run(self.source, plan, pools, &queue, workers, context);
            let reader = threads::spawn_scoped(scope, "start reads", reading)?;
            let received = runtime.block_on(uploading.receive(parts, context));
            let assembled = assembler.join().map_err(|_panic| died("assembly"));
            let judged = judge.map_or(Ok(()), |judge| judge.join().map_err(|_panic| died("judging")));
            let read = reader.join().map_err(|_panic| died("reading"));
            Ok::<_, Refused>((received, assembled, read, judged))
        });
        // All threads have ended here. Nothing is completed before this point.
        let image = started
            .map_err(|error| ConvertError::Pipeline(PipelineError::Threads(error)))
            .and_then(|(received, assembled, read, judged)| {
                judged?;
                Ok((received, self.whole(assembled?, read?, context)?))
            })
            .map_err(|error| context.fail(error));
        let image = image.ok().and_then(|(received, assembled)| Some((received?, assembled)));
        let (received, assembled) = image.unzip();
        let completed = runtime.block_on(uploading.end(received.zip(assembled.as_ref()), context))?;
        Some(Made { assembled: assembled?, completed })
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
        etag: Option<ETag>,
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
                etag,
                head: Some(assembled.head),
                tables: Some(assembled.tables),
                accounted: Some(assembled.accounted),
                sha256: None,
                verified_at: None,
            },
            encoder: plan.encoder_record(),
            base: None,
            refused: None,
            salvaged,
            free: self.source.skipped(),
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
