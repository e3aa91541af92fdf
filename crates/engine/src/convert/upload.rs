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

use snapferry_base::retry::Class;
use snapferry_base::units::to_u64;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::assemble::Assembled;
use super::parts::Outgoing;
use super::plan::FETCHES;
use super::send::{From, Sent, bring};
use super::why_full::{Trouble, WhyFull, is_unchanged, of_completion};
use super::{Context, ConvertError, OrphanedUpload, Remains, proof};
use crate::hash::Crc64;
use crate::pipeline::PipelineError;
use crate::store::{
    CopySource, ETag, ExpectedObject, ObjectKey, ObjectMeta, ObjectStore, Operation, StoreError, StoredPart,
    Upload,
};

/// Longest wait for the abort of an upload. If it takes longer, the error names the upload and leaves it to
/// the user.
const ABORT_WITHIN: Duration = Duration::from_secs(30);

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
    /// Older image that unchanged segments are copied from.
    pub base: Option<CopySource>,
}

/// The object that an upload became.
pub struct Completed {
    /// Version of the object, if the store returned one.
    pub etag: Option<ETag>,
    /// Bytes that were fetched from the base and sent.
    pub fetched: u64,
    /// Bytes that the store copied.
    pub copied: u64,
    /// Parts that the store copied.
    pub copies: u64,
    /// Copied segments that were read back, because the store returned no checksum of what it copied.
    pub read_back: u64,
}

/// Failure of a step between the last part and the complete object.
enum Halt {
    /// The conversion fails.
    Final(ConvertError),
    /// The base is given up before the object is made.
    GiveUp(WhyFull),
    /// The object was made, and is not the image.
    Wrong(WhyFull),
}

impl std::convert::From<Trouble> for Halt {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Final(error) => Self::Final(ConvertError::of_store(error)),
            Trouble::GiveUp(why) => Self::GiveUp(why),
        }
    }
}

impl std::convert::From<ConvertError> for Halt {
    fn from(error: ConvertError) -> Self {
        Self::Final(error)
    }
}

impl Uploading {
    /// Sends parts as they come, until there are no more. Returns `None` if the work stopped before that; the
    /// context holds the reason then.
    pub async fn receive(&self, mut parts: mpsc::Receiver<Outgoing>, context: &Context) -> Option<Received> {
        let mut in_flight = JoinSet::new();
        let received = self.bring_parts(&mut parts, context, &mut in_flight).await;
        // This waits until every task has ended: a part that arrives after the abort would stay in the store.
        in_flight.shutdown().await;
        // The parts' channel closes after this, which wakes an assembler that waits to send a part.
        received.unwrap_or_else(|halt| {
            match halt {
                Halt::Final(error) => context.fail(error),
                Halt::GiveUp(why) | Halt::Wrong(why) => context.give_up(why),
            }
            None
        })
    }

    /// Completes the upload, or aborts it if there is no `image` to complete. The upload has ended in either
    /// case, unless the context gets a [`OrphanedUpload`].
    pub async fn end(&self, image: Option<(Received, &Assembled)>, context: &Context) -> Option<Completed> {
        if let Some((received, assembled)) = image {
            match self.finish(received, assembled).await {
                Ok(completed) => return Some(completed),
                Err(Halt::Final(error)) => {
                    let made = error.is_of_a_made_image();
                    context.fail(error);
                    if made {
                        return None;
                    }
                }
                Err(Halt::GiveUp(why)) => context.give_up(why),
                Err(Halt::Wrong(why)) => {
                    self.remove_wrong_image(why, context).await;
                    return None;
                }
            }
        }
        abort(&*self.store, &self.upload, context).await;
        None
    }

    async fn bring_parts(
        &self,
        parts: &mut mpsc::Receiver<Outgoing>,
        context: &Context,
        in_flight: &mut JoinSet<Result<Sent, Trouble>>,
    ) -> Result<Option<Received>, Halt> {
        let fetches = Arc::new(Semaphore::new(FETCHES));
        let base = self.base.clone().map(Arc::new);
        let mut sent = Vec::new();
        let mut open = true;
        while open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                _ = context.cancel.cancelled() => return Ok(None),
                Some(finished) = in_flight.join_next() => {
                    let finished = finished.map_err(|_panic| ConvertError::Pipeline(PipelineError::StageDied { stage: "upload" }))?;
                    let part = finished?;
                    let counter = if part.copied.is_some() { &context.counters.copied } else { &context.counters.sent };
                    counter.fetch_add(part.stored.size, Relaxed);
                    sent.push(part);
                }
                part = parts.recv(), if open && in_flight.len() < self.connections => match part {
                    Some(part) => {
                        let (store, upload) = (Arc::clone(&self.store), self.upload.clone());
                        let (base, fetches) = (base.clone(), Arc::clone(&fetches));
                        let bringing = async move {
                            bring(&*store, &upload, part, From { base: base.as_deref(), fetches: &fetches }).await
                        };
                        in_flight.spawn(bringing.in_current_span());
                    }
                    None => open = false,
                },
            }
        }
        Ok(Some(Received(sent)))
    }

    /// Compares the parts with the assembler's result and with the store's list, completes the upload, and
    /// checks the object that the store then holds.
    async fn finish(&self, Received(sent): Received, assembled: &Assembled) -> Result<Completed, Halt> {
        let whole =
            ExpectedObject { size: assembled.size, crc64: assembled.crc64, replaces: self.replaces.clone() };
        let mut sent = self.in_order(sent, &whole)?;
        self.compare_with_list(&mut sent).await?;
        if let Some(base) = self.base.as_ref().filter(|_| takes_from_base(&sent)) {
            is_unchanged(&*self.store, base).await?;
        }
        self.remove_stale_manifest().await;
        let parts: Vec<StoredPart> = sent.iter().map(|part| part.stored.clone()).collect();
        match self.store.complete(&self.upload, &parts, &whole).await {
            Ok(()) => self.check_object(&whole, sent).await,
            Err(StoreError::Completed { source, .. }) => Err(self.unconfirmed(*source).into()),
            Err(error) if sent.iter().any(|part| part.copied.is_some()) => Err(of_completion(error).into()),
            Err(error) => Err(ConvertError::of_store(error).into()),
        }
    }

    /// Returns the parts by number, after the proof that they are all of the image: the joined checksums of
    /// the parts are those of the assembler's pieces.
    fn in_order(&self, mut sent: Vec<Sent>, whole: &ExpectedObject) -> Result<Vec<Sent>, Trouble> {
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
            return Err(mismatch(&*self.store, &self.upload, "CompleteMultipartUpload", reason).into());
        }
        Ok(sent)
    }

    /// Compares the parts with the store's own list of them: one request for each thousand. A store that
    /// returns no list is accepted, because the object's size and checksum are compared as well, unless parts
    /// were copied: some stores copy less than they were asked for. Parts get the checksums of the list.
    async fn compare_with_list(&self, parts: &mut [Sent]) -> Result<(), Trouble> {
        let copies = parts.iter().any(|part| part.copied.is_some());
        let listed = match self.store.list_parts(&self.upload).await {
            Ok(listed) => listed,
            Err(error @ (StoreError::Cancelled { .. } | StoreError::NoSuchUpload { .. })) => {
                return Err(error.into());
            }
            Err(error) if copies && error.class() == Class::Permanent => {
                return Err(WhyFull::Unlisted(error).into());
            }
            Err(error) if copies => return Err(error.into()),
            Err(error) => {
                tracing::warn!(
                    "the parts can't be compared with the store's list of them: {}",
                    snapferry_base::retry::chain(&error)
                );
                return Ok(());
            }
        };
        let wrong = |reason: String, copied: bool| -> Result<(), Trouble> {
            if copied {
                return Err(WhyFull::Disproved(reason).into());
            }
            Err(mismatch(&*self.store, &self.upload, "ListParts", reason).into())
        };
        if listed.len() != parts.len() {
            let reason = format!("{} parts were sent, and the store holds {}", parts.len(), listed.len());
            return wrong(reason, copies);
        }
        for (part, held) in parts.iter_mut().zip(&listed) {
            let Sent { stored, crc64, copied, .. } = part;
            if (stored.number, stored.size) != (held.number, held.size) {
                let reason = format!(
                    "part {} of {} bytes was sent, and the store holds part {} of {}",
                    stored.number, stored.size, held.number, held.size
                );
                return wrong(reason, copied.is_some());
            }
            if let Some(found) = held.crc64.filter(|_| copied.is_some()) {
                if found != *crc64 {
                    let reason = format!("part {} has CRC64NVME {found}, not {crc64}", stored.number);
                    return wrong(reason, true);
                }
                stored.crc64 = held.crc64;
            }
        }
        Ok(())
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
    async fn check_object(&self, whole: &ExpectedObject, parts: Vec<Sent>) -> Result<Completed, Halt> {
        let copies = || parts.iter().filter(|part| part.copied.is_some());
        let mut completed = Completed {
            etag: None,
            fetched: parts.iter().map(|part| part.fetched).sum(),
            copied: copies().map(|part| part.stored.size).sum(),
            copies: to_u64(copies().count()),
            read_back: 0,
        };
        let found = match self.store.head(&self.upload.key).await {
            // The stop came too late: the object is there, made of parts that were all checked.
            Err(StoreError::Cancelled { .. }) => return Ok(completed),
            answer => answer.map_err(|error| self.unconfirmed(error))?,
        };
        let wrong = |reason: String| {
            Halt::Final(self.unconfirmed(mismatch(&*self.store, &self.upload, "HeadObject", reason)))
        };
        let Some(ObjectMeta { size, etag, crc64 }) = found else {
            return Err(wrong("the object is not there after it was completed".to_owned()));
        };
        if size != whole.size || crc64.is_some_and(|crc64| crc64 != whole.crc64) {
            let sum = crc64.map_or("none".to_owned(), |crc64| crc64.to_string());
            let reason =
                format!("{size} bytes with CRC {sum} are stored, not {} and {}", whole.size, whole.crc64);
            // An object of another size is not the one that was completed here.
            let ours = size == whole.size && completed.copies > 0;
            return Err(if ours { Halt::Wrong(WhyFull::Disproved(reason)) } else { wrong(reason) });
        }
        if crc64.is_none() {
            let unproved = proof::unproved(&parts);
            completed.read_back = proof::read_back(&*self.store, &self.upload.key, &etag, &unproved)
                .await
                .map_err(|trouble| match trouble {
                    Trouble::Final(error) => Halt::Final(self.unconfirmed(error)),
                    Trouble::GiveUp(why) => Halt::Wrong(why),
                })?;
        }
        completed.etag = Some(etag).filter(|etag| !etag.0.is_empty());
        Ok(completed)
    }

    /// Removes the image that was just made and proved wrong, so that another one can be made in its place.
    /// If it can't be removed, that is the error.
    async fn remove_wrong_image(&self, why: WhyFull, context: &Context) {
        match self.store.delete(&self.upload.key).await {
            Ok(()) => context.give_up(why),
            Err(error) => {
                tracing::warn!(
                    url = self.store.url(&self.upload.key),
                    "the image is wrong, and could not be removed: {}",
                    snapferry_base::retry::chain(&error)
                );
                let reason = why.to_string();
                let mismatch = mismatch(&*self.store, &self.upload, "GetObject", reason);
                context.fail(self.unconfirmed(mismatch));
            }
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

/// True if bytes of the base are in any part.
fn takes_from_base(parts: &[Sent]) -> bool {
    parts.iter().any(|part| part.copied.is_some() || part.fetched > 0)
}

pub(super) fn mismatch(
    store: &dyn ObjectStore,
    upload: &Upload,
    request: &'static str,
    reason: String,
) -> StoreError {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{FolderStore, PartNumber};

    /// Two parts of a file whose pieces are `crc64` and `size`.
    fn in_order(numbers: [u32; 2], size: u64, crc64: Crc64) -> Result<Vec<Sent>, Trouble> {
        let key = ObjectKey::new("disk.qcow2").expect("a key");
        let uploading = Uploading {
            store: Arc::new(FolderStore::new("/nowhere".into())),
            upload: Upload { key, id: "an id".to_owned() },
            connections: 1,
            replaces: None,
            stale: None,
            base: None,
        };
        let sent = numbers.into_iter().zip(["head and ", "tables"]).map(|(number, bytes)| Sent {
            stored: StoredPart {
                number: PartNumber(number),
                size: to_u64(bytes.len()),
                etag: ETag(String::new()),
                crc64: None,
            },
            crc64: Crc64::of(bytes.as_bytes()),
            copied: None,
            fetched: 0,
        });
        // The upload's parts arrive in any order.
        let sent = sent.rev().collect();
        uploading.in_order(sent, &ExpectedObject { size, crc64, replaces: None })
    }

    #[test]
    fn the_parts_sums_are_compared_with_those_of_the_pieces() {
        let whole = Crc64::of(b"head and tables");
        let numbers = |parts: Vec<Sent>| parts.iter().map(|part| part.stored.number.0).collect::<Vec<_>>();
        assert_eq!(in_order([1, 2], 15, whole).map(numbers).ok(), Some(vec![1, 2]));
        for (parts, size, crc64) in [
            ([1, 2], 15, Crc64::of(b"head and Tables")),
            ([1, 2], 16, whole),
            ([2, 3], 15, whole),
            ([1, 3], 15, whole),
            ([1, 1], 15, whole),
        ] {
            let refused = in_order(parts, size, crc64).err();
            assert!(matches!(refused, Some(Trouble::Final(StoreError::Mismatch { .. }))), "{refused:?}");
        }
    }
}
