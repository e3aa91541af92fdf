//! The proof of an image that has just arrived: all of it read back, and its manifest stored anew with the
//! result.

use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::units::ByteCount;
use tokio::runtime::Handle;

use crate::convert::{ConvertError, Target};
use crate::error::RestoreError;
use crate::image::StoredImage;
use crate::image::counters::Counters;
use crate::manifest::Manifest;
use crate::store::{Location, StoreError};
use crate::verify::{Verdict, Verification};

/// Error of a proof. The image itself may be good.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The image can't be opened in its store.
    #[error(transparent)]
    Open(#[from] StoreError),
    /// The image can't be read to its end.
    #[error(transparent)]
    Read(#[from] RestoreError),
    /// The image is good, and its manifest could not be stored.
    #[error(transparent)]
    Manifest(#[from] ConvertError),
}

/// An image to prove.
pub struct Proof<'a> {
    /// The image.
    pub target: &'a Target,
    pub location: Location,
    pub clock: &'a dyn Clock,
    pub cancel: Cancel,
    /// Written while the image is read.
    pub counters: Arc<Counters>,
    /// Runs the requests to the store.
    pub runtime: &'a Handle,
}

impl Proof<'_> {
    /// Reads all of the image, decodes it, and compares it with `manifest`, which is from the conversion. If
    /// it is good, the manifest gets the file's SHA-256 and the time, and is stored. Blocks. `begin` is
    /// called with the disk's size before the first byte.
    ///
    /// # Errors
    /// If the image can't be read, or the manifest can't be stored. An image that is not good is a verdict,
    /// not an error.
    pub fn run(self, manifest: &mut Manifest, begin: &dyn Fn(ByteCount)) -> Result<Verdict, ProofError> {
        let Target { store, key, .. } = self.target;
        let file = StoredImage::open(Arc::clone(store), key.clone(), self.runtime.clone())?;
        let fresh = Verification::of_new(&file, self.location, manifest, self.clock, self.cancel);
        let verdict = Verification { counters: self.counters, ..fresh }.run(begin)?;
        if verdict.good {
            manifest.note_verified(verdict.sha256.map(|sum| sum.to_string()), self.clock.now());
            self.target.put_manifest(manifest, self.runtime)?;
        }
        Ok(verdict)
    }
}
