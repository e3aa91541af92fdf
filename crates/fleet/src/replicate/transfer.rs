//! Transfer of a device into a bucket, and the proof that it arrived: the part of a job that runs on threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters::Counters as ConvertCounters;
use snapferry_engine::convert::plan::{Options, Plan};
use snapferry_engine::convert::{Conversion, ConvertError, Converted, Failure, Target, plan_for};
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::base::Base;
use snapferry_engine::image::counters::Counters as RestoreCounters;
use snapferry_engine::manifest::{Manifest, RefusedRecord};
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::proof::{self, ProofError};
use snapferry_engine::source::{InUse, RawSource, Source as _};
use snapferry_engine::store::Location;
use tokio::runtime::Handle;

use super::error::Fault;

/// Returns the size of a device, and a plan to convert it within the limits of this process.
///
/// # Errors
/// If the device can't be opened for this process alone, or no plan fits.
pub fn plan(device: &Path, options: &Options) -> Result<(ByteCount, Plan), Fault> {
    let source = RawSource::open(device, InUse::Refuse)?;
    Ok((source.size(), plan_for(&source, options, Location::Bucket)?))
}

/// Transfer of a device into the bucket.
pub struct Send {
    pub device: PathBuf,
    /// Bucket and key of the new object.
    pub target: Target,
    /// Form of the image, and limits of the work.
    pub plan: Plan,
    /// Earlier image that unchanged parts are copied from.
    pub base: Option<Arc<Base>>,
    /// Refusal of the store to copy parts, which the new manifest keeps.
    pub refused: Option<RefusedRecord>,
    /// Name of this server, for the manifest.
    pub host: String,
    pub clock: Arc<dyn Clock>,
    /// Progress, updated during the transfer.
    pub counters: Arc<ConvertCounters>,
    /// Runtime that runs the requests to the store.
    pub runtime: Handle,
}

impl Send {
    /// Sends the device. Blocks until it is done.
    ///
    /// # Errors
    /// If the device can't be read or sent: the first error that occurred. An upload that could not be
    /// aborted is logged, and `gc` finds it later.
    pub fn run(self, cancel: Cancel) -> Result<Converted, Fault> {
        let source = RawSource::open(&self.device, InUse::Refuse)?;
        let conversion = Conversion {
            source: &source,
            target: self.target,
            plan: &self.plan,
            host: self.host,
            clock: &*self.clock,
            cancel,
            counters: self.counters,
            base: self.base,
            refused: self.refused,
        };
        conversion.run(&self.runtime).map_err(|Failure { error, orphaned_upload }| {
            if let Some(orphan) = orphaned_upload {
                tracing::warn!(url = %orphan.url, upload = %orphan.upload.id, "the upload could not be aborted: {}", orphan.reason);
            }
            match error {
                ConvertError::Pipeline(PipelineError::Interrupted) => Fault::Stopped,
                error => error.into(),
            }
        })
    }
}

/// Proof of an image in the bucket.
pub struct Proof {
    /// Bucket and key of the image.
    pub target: Target,
    /// Manifest that was made while the device was read.
    pub manifest: Manifest,
    pub clock: Arc<dyn Clock>,
    /// Progress, updated during the proof.
    pub counters: Arc<RestoreCounters>,
    /// Runtime that runs the requests to the store.
    pub runtime: Handle,
}

impl Proof {
    /// Reads the whole image back, decodes it, and compares it with the manifest, which is then stored again
    /// with the file's SHA-256. Blocks until it is done.
    ///
    /// # Errors
    /// [`Fault::NotTheSame`] if the image holds other data. Also if the image can't be read, or the manifest
    /// can't be stored.
    pub fn run(mut self, cancel: Cancel) -> Result<Manifest, Fault> {
        let proof = proof::Proof {
            target: &self.target,
            location: Location::Bucket,
            clock: &*self.clock,
            cancel,
            counters: self.counters,
            runtime: &self.runtime,
        };
        let verdict = proof.run(&mut self.manifest, &|_size| {}).map_err(|error| match error {
            ProofError::Open(error) => Fault::Store(error),
            ProofError::Read(RestoreError::Pipeline(PipelineError::Interrupted)) => Fault::Stopped,
            ProofError::Read(error) => Fault::ReadBack(error),
            ProofError::Manifest(error) => Fault::Convert(error),
        })?;
        if let Some(finding) = verdict.findings.first().filter(|_| !verdict.good) {
            let url = self.target.store.url(&self.target.key);
            return Err(Fault::NotTheSame { url, finding: finding.to_string() });
        }
        Ok(self.manifest)
    }
}
