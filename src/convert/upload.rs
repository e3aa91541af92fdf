//! Parts to the store: the one bridge from threads to tasks, and the one place that ends an upload.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::parts::Message;
use super::{Context, ConvertError, Leftover};
use crate::hash::Crc64;
use crate::store::{ETag, ObjectMeta, ObjectStore, Operation, Part, StoreError, StoredPart, Upload, Whole};
use crate::units::to_u64;

/// How long the way out may take: past it the upload is left to the user, by name.
const ABORT_WITHIN: Duration = Duration::from_secs(30);

/// What is known of a part that the store holds.
struct Sent {
    stored: StoredPart,
    crc64: Crc64,
}

/// Sends parts as they come, and completes the upload, or aborts it. The upload is over either way, unless the context is told of
/// a [`Leftover`].
pub async fn run(
    mut parts: mpsc::Receiver<Message>,
    store: Arc<dyn ObjectStore>,
    upload: Upload,
    connections: usize,
    replaces: Option<ETag>,
    context: &Context,
) -> Option<ObjectMeta> {
    let ended = match send_all(&mut parts, &store, &upload, connections, context).await {
        Ok(Some((sent, size, crc64))) => finish(&*store, &upload, sent, Whole { size, crc64, replaces }).await,
        // Another stage stopped, and has said why.
        Ok(None) => {
            abort(&*store, &upload, context).await;
            return None;
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(meta) => Some(meta),
        Err(error) => {
            context.fail(ConvertError::Store(error));
            // Wakes an assembler that waits to hand over a part.
            parts.close();
            abort(&*store, &upload, context).await;
            None
        }
    }
}

type Received = Option<(Vec<Sent>, u64, Crc64)>;

async fn send_all(
    parts: &mut mpsc::Receiver<Message>,
    store: &Arc<dyn ObjectStore>,
    upload: &Upload,
    connections: usize,
    context: &Context,
) -> Result<Received, StoreError> {
    let mut flying = JoinSet::new();
    let received = fly(parts, store, upload, connections, context, &mut flying).await;
    // Ended for certain, not only told to: a part that arrives after the abort would stay in the store.
    flying.shutdown().await;
    received
}

async fn fly(
    parts: &mut mpsc::Receiver<Message>,
    store: &Arc<dyn ObjectStore>,
    upload: &Upload,
    connections: usize,
    context: &Context,
    flying: &mut JoinSet<Result<Sent, StoreError>>,
) -> Result<Received, StoreError> {
    let mut sent = Vec::new();
    let mut whole = None;
    let mut open = true;
    while open || !flying.is_empty() {
        tokio::select! {
            biased;
            _ = context.cancel.cancelled() => return Ok(None),
            Some(landed) = flying.join_next() => {
                let part = landed.map_err(|panic| StoreError::Setup(format!("sending a part failed: {panic}")))??;
                context.counters.sent.fetch_add(part.stored.size, Relaxed);
                sent.push(part);
            }
            message = parts.recv(), if open && flying.len() < connections => match message {
                Some(Message::Part(part)) => {
                    let (store, upload) = (Arc::clone(store), upload.clone());
                    flying.spawn(async move { send(&*store, &upload, part).await });
                }
                Some(Message::Done { size, crc64 }) => { whole = Some((size, crc64)); open = false; }
                None => open = false,
            },
        }
    }
    Ok(whole.map(|(size, crc64)| (sent, size, crc64)))
}

async fn send(store: &dyn ObjectStore, upload: &Upload, part: Part) -> Result<Sent, StoreError> {
    let (number, size, crc64) = (part.number, to_u64(part.body.len()), part.crc64);
    let stored = store.put_part(upload, part).await?;
    if stored.number != number || stored.size != size {
        let reason = format!("part {number} of {size} bytes was stored as part {} of {}", stored.number, stored.size);
        return Err(mismatch(store, upload, "UploadPart", reason));
    }
    Ok(Sent { stored, crc64 })
}

/// Compares what was sent with what the assembler made, completes, and looks at what the store says then.
async fn finish(store: &dyn ObjectStore, upload: &Upload, mut sent: Vec<Sent>, whole: Whole) -> Result<ObjectMeta, StoreError> {
    sent.sort_by_key(|part| part.stored.number);
    let size: u64 = sent.iter().map(|part| part.stored.size).sum();
    let crc64 = sent.iter().fold(Crc64::default(), |sum, part| sum.then(part.crc64, part.stored.size));
    let in_order = (1_u32..).zip(&sent).all(|(number, part)| part.stored.number.0 == number);
    if size != whole.size || crc64 != whole.crc64 || !in_order {
        let reason =
            format!("{} parts with {size} bytes and CRC {crc64} were sent, not {} and {}", sent.len(), whole.size, whole.crc64);
        return Err(mismatch(store, upload, "CompleteMultipartUpload", reason));
    }
    let parts: Vec<StoredPart> = sent.into_iter().map(|part| part.stored).collect();
    store.complete(upload, &parts, &whole).await?;
    let found = match store.head(&upload.key).await {
        // Told to stop, and too late: the object is there, made of parts that were all checked.
        Err(StoreError::Cancelled { .. }) => {
            return Ok(ObjectMeta { size: whole.size, etag: ETag(String::new()), crc64: Some(whole.crc64) });
        }
        answer => answer?,
    };
    match found {
        Some(meta) if meta.size == whole.size && meta.crc64.is_none_or(|crc64| crc64 == whole.crc64) => Ok(meta),
        Some(meta) => {
            let crc64 = meta.crc64.map_or("none".to_owned(), |crc64| crc64.to_string());
            let reason = format!("{} bytes with CRC {crc64} are stored, not {} and {}", meta.size, whole.size, whole.crc64);
            Err(mismatch(store, upload, "HeadObject", reason))
        }
        None => Err(mismatch(store, upload, "HeadObject", "the object is not there after it was completed".to_owned())),
    }
}

fn mismatch(store: &dyn ObjectStore, upload: &Upload, request: &'static str, reason: String) -> StoreError {
    StoreError::Mismatch { operation: Operation { request, target: store.url(&upload.key) }, reason }
}

/// Ends the upload on the way out.
pub async fn abort(store: &dyn ObjectStore, upload: &Upload, context: &Context) {
    let why = match tokio::time::timeout(ABORT_WITHIN, store.abort(upload)).await {
        Ok(Ok(())) => {
            tracing::info!(upload = upload.id, "the upload was aborted, no part of it is left");
            return;
        }
        Ok(Err(error)) => crate::retry::chain(&error),
        Err(_) => format!("no answer within {} s", ABORT_WITHIN.as_secs()),
    };
    context.leave_behind(Leftover { upload: upload.clone(), url: store.url(&upload.key), why });
}
