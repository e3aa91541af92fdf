//! A device into a bucket, and the proof that it arrived: what a job does on threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::units::ByteCount;
use snapferry_engine::convert::counters::Counters as ConvertCounters;
use snapferry_engine::convert::plan::{Destination, Options};
use snapferry_engine::convert::{Conversion, ConvertError, Converted, Failure, Target, plan_for};
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::StoredImage;
use snapferry_engine::image::counters::Counters as RestoreCounters;
use snapferry_engine::image::plan::Origin;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{InUse, RawSource, Source as _};
use snapferry_engine::verify::Verification;
use tokio::runtime::Handle;

use super::error::Fault;

/// Bytes of a device.
///
/// # Errors
/// Where it can't be opened for us alone.
pub fn size_of(device: &Path) -> Result<ByteCount, Fault> {
    Ok(RawSource::open(device, InUse::Refuse)?.size())
}

/// A device to be sent.
pub struct Send {
    /// The device.
    pub device: PathBuf,
    /// Where to.
    pub target: Target,
    /// As what.
    pub options: Options,
    /// Who reads it, for the manifest.
    pub host: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Written while it goes on.
    pub counters: Arc<ConvertCounters>,
    /// Runs the requests.
    pub runtime: Handle,
}

impl Send {
    /// Sends it. Blocks.
    ///
    /// # Errors
    /// With what went wrong first. An upload that could not be aborted is logged, and `gc` finds it.
    pub fn run(self, cancel: Cancel) -> Result<Converted, Fault> {
        let source = RawSource::open(&self.device, InUse::Refuse)?;
        let plan = plan_for(&source, &self.options, Destination::Bucket)?;
        let conversion = Conversion {
            source: &source,
            target: self.target,
            plan: &plan,
            host: self.host,
            clock: &*self.clock,
            cancel,
            counters: self.counters,
        };
        conversion.run(&self.runtime, &Vec::new).map_err(|Failure { error, leftover }| {
            if let Some(left) = leftover {
                tracing::warn!(url = %left.url, upload = %left.upload.id, "the upload could not be aborted: {}", left.why);
            }
            match error {
                ConvertError::Interrupted => Fault::Stopped,
                error => error.into(),
            }
        })
    }
}

/// An image in the bucket that is to be proved.
pub struct Proof {
    /// Where it is.
    pub target: Target,
    /// What was noted while the device was read.
    pub manifest: Manifest,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Written while it goes on.
    pub counters: Arc<RestoreCounters>,
    /// Runs the requests.
    pub runtime: Handle,
}

impl Proof {
    /// Reads all of it back, decodes it, and holds it against the manifest, which is stored anew with the file's SHA-256. Blocks.
    ///
    /// # Errors
    /// [`Fault::NotTheSame`] where it holds something else; where it can't be read, or the manifest not be stored.
    pub fn run(mut self, cancel: Cancel) -> Result<Manifest, Fault> {
        let Target { store, key, .. } = &self.target;
        let file = StoredImage::open(Arc::clone(store), key.clone(), self.runtime.clone())?;
        let fresh = Verification::of_new(&file, Origin::Bucket, &self.manifest, &*self.clock, cancel);
        let verification = Verification { counters: self.counters, ..fresh };
        let verdict = verification.run(&|_size| {}).map_err(|error| match error {
            RestoreError::Interrupted => Fault::Stopped,
            error => Fault::ReadBack(error),
        })?;
        let url = store.url(key);
        if let Some(finding) = verdict.findings.first().filter(|_| !verdict.good) {
            return Err(Fault::NotTheSame { url, finding: finding.to_string() });
        }
        self.manifest.note_verified(verdict.sha256.map(|sum| sum.to_string()), self.clock.now());
        self.target.put_manifest(&self.manifest, &self.runtime)?;
        Ok(self.manifest)
    }
}
