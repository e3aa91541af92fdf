//! Upload stage: sends parts to the store. It is the only bridge from threads to tasks, and the only place
//! that ends an upload.
//!
//! The end of the parts does not prove that the image is whole: an earlier stage may have failed. So an
//! upload ends in two steps. [`Uploading::receive`] sends parts until there are no more. [`Uploading::end`]
//! completes the upload after the other stages have ended and have reported the size and checksum that the
//! parts must have.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use snapferry_base::units::to_u64;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::assemble::Assembled;
use super::{Context, ConvertError, OrphanedUpload, Remains};
use crate::hash::Crc64;
use crate::pipeline::PipelineError;
use crate::store::{
    ETag, ExpectedObject, ObjectKey, ObjectStore, Operation, Part, StoreError, StoredPart, Upload,
};

/// Longest wait for the abort of an upload. If it takes longer, the error names the upload and leaves it to
/// the user.
const ABORT_WITHIN: Duration = Duration::from_secs(30);

/// Part that the store holds, with its checksum.
struct Sent {
    stored: StoredPart,
    crc64: Crc64,
}

/// Guard that aborts the upload if this thread panics and so skips the code that would have ended it.
pub struct AbortOnPanic<'a> {
    /// Runtime that runs the abort request.
    pub runtime: &'a Handle,
    pub store: Arc<dyn ObjectStore>,
    pub upload: Upload,
}

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The program reports the panic, not this error.
            let _ = self
                .runtime
                .block_on(async { tokio::time::timeout(ABORT_WITHIN, self.store.abort(&self.upload)).await });
        }
    }
}

/// All parts that came; the store holds each of them.
pub struct Received(Vec<Sent>);

/// Upload that has begun, and the settings for the rest of it.
pub struct Uploading {
    pub store: Arc<dyn ObjectStore>,
    pub upload: Upload,
    /// Most parts in flight at a time.
    pub connections: usize,
    /// Version of the image that the upload replaces.
    pub replaces: Option<ETag>,
    /// Manifest of an image that was there before.
    pub stale: Option<ObjectKey>,
}

impl Uploading {
    /// Sends parts as they come, until there are no more. Returns `None` if the work stopped before that; the
    /// context holds the reason then.
    pub async fn receive(&self, mut parts: mpsc::Receiver<Part>, context: &Context) -> Option<Received> {
        let mut in_flight = JoinSet::new();
        let received = self.send_parts(&mut parts, context, &mut in_flight).await;
        // This waits until every task has ended: a part that arrives after the abort would stay in the store.
        in_flight.shutdown().await;
        // The parts' channel closes after this, which wakes an assembler that waits to send a part.
        received.unwrap_or_else(|error| {
            context.fail(error);
            None
        })
    }

    /// Completes the upload, or aborts it if there is no `image` to complete. The upload has ended in either
    /// case, unless the context gets a [`OrphanedUpload`].
    pub async fn end(&self, image: Option<(Received, &Assembled)>, context: &Context) -> Option<()> {
        if let Some((received, assembled)) = image {
            let Err(error) = self.finish(received, assembled).await else { return Some(()) };
            let made = error.is_of_a_made_image();
            context.fail(error);
            if made {
                return None;
            }
        }
        abort(&*self.store, &self.upload, context).await;
        None
    }

    async fn send_parts(
        &self,
        parts: &mut mpsc::Receiver<Part>,
        context: &Context,
        in_flight: &mut JoinSet<Result<Sent, StoreError>>,
    ) -> Result<Option<Received>, ConvertError> {
        let mut sent = Vec::new();
        let mut open = true;
        while open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                _ = context.cancel.cancelled() => return Ok(None),
                Some(finished) = in_flight.join_next() => {
                    let finished = finished.map_err(|_panic| ConvertError::Pipeline(PipelineError::StageDied { stage: "upload" }))?;
                    let part = finished.map_err(ConvertError::of_store)?;
                    context.counters.sent.fetch_add(part.stored.size, Relaxed);
                    sent.push(part);
                }
                part = parts.recv(), if open && in_flight.len() < self.connections => match part {
                    Some(part) => {
                        let (store, upload) = (Arc::clone(&self.store), self.upload.clone());
                        in_flight
                            .spawn(async move { send(&*store, &upload, part).await }.in_current_span());
                    }
                    None => open = false,
                },
            }
        }
        Ok(Some(Received(sent)))
    }

    /// Compares the sent parts with the assembler's result and with the store's list, completes the upload,
    /// and checks the object that the store then holds.
    async fn finish(&self, Received(sent): Received, assembled: &Assembled) -> Result<(), ConvertError> {
        let whole =
            ExpectedObject { size: assembled.size, crc64: assembled.crc64, replaces: self.replaces.clone() };
        let parts = self.in_order(sent, &whole).map_err(ConvertError::of_store)?;
        self.compare_with_list(&parts).await.map_err(ConvertError::of_store)?;
        self.remove_stale_manifest().await;
        match self.store.complete(&self.upload, &parts, &whole).await {
            Ok(()) => self.check_object(&whole).await,
            Err(StoreError::Completed { source, .. }) => Err(self.unconfirmed(*source)),
            Err(error) => Err(ConvertError::of_store(error)),
        }
    }

    /// Returns the parts by number, after the proof that they are all of the image.
    fn in_order(&self, mut sent: Vec<Sent>, whole: &ExpectedObject) -> Result<Vec<StoredPart>, StoreError> {
        sent.sort_by_key(|part| part.stored.number);
        let size: u64 = sent.iter().map(|part| part.stored.size).sum();
        let crc64 = sent.iter().fold(Crc64::default(), |sum, part| sum.then(part.crc64, part.stored.size));
        let in_order = (1_u32..).zip(&sent).all(|(number, part)| part.stored.number.0 == number);
        if size != whole.size || crc64 != whole.crc64 || !in_order {
            let reason = format!(
                "{} parts with {size} bytes and CRC {crc64} were sent, not {} and {}",
                sent.len(),
                whole.size,
                whole.crc64
            );
            return Err(mismatch(&*self.store, &self.upload, "CompleteMultipartUpload", reason));
        }
        Ok(sent.into_iter().map(|part| part.stored).collect())
    }

    /// Compares the parts with the store's own list of them: one request for each thousand. A store that
    /// returns no list is accepted, because the object's size and checksum are compared as well.
    async fn compare_with_list(&self, parts: &[StoredPart]) -> Result<(), StoreError> {
        let listed = match self.store.list_parts(&self.upload).await {
            Ok(listed) => listed,
            Err(error @ (StoreError::Cancelled { .. } | StoreError::NoSuchUpload { .. })) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(
                    "the parts can't be compared with the store's list of them: {}",
                    snapferry_base::retry::chain(&error)
                );
                return Ok(());
            }
        };
        let wrong = |reason: String| Err(mismatch(&*self.store, &self.upload, "ListParts", reason));
        if listed.len() != parts.len() {
            return wrong(format!("{} parts were sent, and the store holds {}", parts.len(), listed.len()));
        }
        let differing = parts
            .iter()
            .zip(&listed)
            .find(|(sent, held)| (sent.number, sent.size) != (held.number, held.size));
        match differing {
            None => Ok(()),
            Some((sent, held)) => wrong(format!(
                "part {} of {} bytes was sent, and the store holds part {} of {}",
                sent.number, sent.size, held.number, held.size
            )),
        }
    }

    /// Removes the old image's manifest right before the new image takes the name: it would describe another
    /// image, however the run ends. If it can't be removed, the new manifest most often replaces it a moment
    /// later.
    async fn remove_stale_manifest(&self) {
        let Some(stale) = &self.stale else { return };
        if let Err(error) = self.store.delete(stale).await {
            let url = self.store.url(stale);
            tracing::warn!(
                url,
                "the old image's manifest could not be removed: {}",
                snapferry_base::retry::chain(&error)
            );
        }
    }

    /// Checks the object that was just completed.
    async fn check_object(&self, whole: &ExpectedObject) -> Result<(), ConvertError> {
        let found = match self.store.head(&self.upload.key).await {
            // The stop came too late: the object is there, made of parts that were all checked.
            Err(StoreError::Cancelled { .. }) => return Ok(()),
            answer => answer.map_err(|error| self.unconfirmed(error))?,
        };
        let wrong = |reason: String| {
            Err(self.unconfirmed(mismatch(&*self.store, &self.upload, "HeadObject", reason)))
        };
        match found {
            Some(meta) if meta.size == whole.size && meta.crc64.is_none_or(|crc64| crc64 == whole.crc64) => {
                Ok(())
            }
            Some(meta) => {
                let crc64 = meta.crc64.map_or("none".to_owned(), |crc64| crc64.to_string());
                wrong(format!(
                    "{} bytes with CRC {crc64} are stored, not {} and {}",
                    meta.size, whole.size, whole.crc64
                ))
            }
            None => wrong("the object is not there after it was completed".to_owned()),
        }
    }

    /// Returns the error for a failure after the upload was completed.
    fn unconfirmed(&self, source: StoreError) -> ConvertError {
        let url = self.store.url(&self.upload.key);
        match source {
            StoreError::Mismatch { .. } => ConvertError::Disproved { url, source },
            source => ConvertError::Unproved { url, source },
        }
    }
}

async fn send(store: &dyn ObjectStore, upload: &Upload, part: Part) -> Result<Sent, StoreError> {
    let (number, size, crc64) = (part.number, to_u64(part.body.len()), part.crc64);
    let stored = store.put_part(upload, part).await?;
    if stored.number != number || stored.size != size {
        let reason =
            format!("part {number} of {size} bytes was stored as part {} of {}", stored.number, stored.size);
        return Err(mismatch(store, upload, "UploadPart", reason));
    }
    Ok(Sent { stored, crc64 })
}

fn mismatch(store: &dyn ObjectStore, upload: &Upload, request: &'static str, reason: String) -> StoreError {
    StoreError::Mismatch { operation: Operation { request, target: store.url(&upload.key) }, reason }
}

/// Aborts the upload after a failure. If that fails as well, the context gets a [`OrphanedUpload`].
async fn abort(store: &dyn ObjectStore, upload: &Upload, context: &Context) {
    let (remains, reason) = match tokio::time::timeout(ABORT_WITHIN, store.abort(upload)).await {
        Ok(Ok(())) => {
            tracing::info!(upload = upload.id, "the upload was aborted, no part of it is left");
            return;
        }
        Ok(Err(error @ StoreError::Emptied { .. })) => {
            (Remains::EmptyTarget, snapferry_base::retry::chain(&error))
        }
        Ok(Err(error)) => (Remains::Upload, snapferry_base::retry::chain(&error)),
        Err(_) => (Remains::Upload, format!("no answer within {} s", ABORT_WITHIN.as_secs())),
    };
    context.record_orphan(OrphanedUpload {
        remains,
        upload: upload.clone(),
        url: store.url(&upload.key),
        reason,
    });
}
