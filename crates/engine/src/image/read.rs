//! First stage: starts fetches in the order of the file, several at a time, and hands the bodies of each
//! batch to the decoders.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use snapferry_base::cancel::Stopped;
use snapferry_base::threads::Team;
use snapferry_base::units::{HostOffset, to_u64, to_usize};
use snapferry_qcow2::ImageFile;

use super::Context;
use super::counters::Bottleneck;
use super::decode::Decoders;
use super::plan::{Batch, Plan};
use crate::error::RestoreError;
use crate::pipeline::PipelineError;
use crate::source::aligned::{BufferPool, PooledBuf};

/// Bytes of the file that were fetched, from offset `start`.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub start: u64,
    buf: PooledBuf,
    len: usize,
    /// Number of bytes, from the first, that are in no later batch.
    own: usize,
}

impl Fetched {
    /// Returns all bytes that were fetched.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[..self.len]
    }

    /// Returns the bytes that are in no later batch, which are those that the checksums cover.
    pub fn own(&self) -> &[u8] {
        &self.buf[..self.own]
    }
}

/// Receiver of the bytes of one batch. If the sender hangs up, they will never arrive.
pub(crate) type Slot = Receiver<Arc<Fetched>>;

/// Fetch that is waiting for a reader thread.
struct Ticket {
    batch: Batch,
    buf: PooledBuf,
    slot: Sender<Arc<Fetched>>,
}

/// Fetches every batch of the plan. Sends one slot for each batch to `slots` before its fetch begins. The
/// stages that take the bytes count whether all of them arrived.
pub(crate) fn run(
    file: &dyn ImageFile,
    plan: &Plan,
    slots: &Sender<Slot>,
    decoders: &Decoders,
    context: &Context,
) {
    let (tickets, queue) = bounded(plan.readers);
    thread::scope(|scope| {
        // The reader threads own the queue: once the last one is gone, sending a ticket fails.
        let serving = move || serve(file, plan, &queue, decoders, context);
        let readers = match Team::start(scope, "read", decoders.threads_to_start(plan.readers), serving) {
            Ok(readers) => readers,
            Err(refused) => return context.fail(RestoreError::Pipeline(PipelineError::Threads(refused))),
        };
        // The stage that cancelled the work has recorded the reason.
        let _ = issue(plan, slots, &tickets, decoders, context);
        drop(tickets);
        if readers.join().is_err() {
            context.fail(RestoreError::Pipeline(PipelineError::StageDied { stage: "reading" }));
        }
    });
}

fn issue(
    plan: &Plan,
    slots: &Sender<Slot>,
    tickets: &Sender<Ticket>,
    decoders: &Decoders,
    context: &Context,
) -> Result<(), Stopped> {
    let buffers = BufferPool::new(plan.batch_buffers(), plan.batch_len());
    for batch in plan.batches.iter().flat_map(Batch::pieces) {
        note_bottleneck(&buffers, decoders, context);
        // In this order and one batch after the other: the batch that the checksums wait for always has its
        // buffer already.
        let buf = context.take(&buffers)?;
        let (slot, fetched) = bounded(1);
        context.cancel.send(slots, fetched)?;
        context.cancel.send(tickets, Ticket { batch, buf, slot })?;
    }
    Ok(())
}

/// Records the stage that delays the next fetch. If no buffer is free, all of them are with the decoders or
/// with the stages after them.
fn note_bottleneck(buffers: &BufferPool, decoders: &Decoders, context: &Context) {
    let found = if !buffers.is_empty() {
        Bottleneck::Fetch
    } else if context.counters.jobs.load(Relaxed) > decoders.threads() || !decoders.is_out_of_buffers() {
        Bottleneck::Decode
    } else {
        Bottleneck::Sink
    };
    context.counters.note_bottleneck(found);
}

fn serve(
    file: &dyn ImageFile,
    plan: &Plan,
    queue: &Receiver<Ticket>,
    decoders: &Decoders,
    context: &Context,
) {
    for Ticket { batch, mut buf, slot } in queue {
        if context.cancel.is_cancelled() {
            return;
        }
        let len = batch.len();
        if let Err(error) = file.read_at(HostOffset(batch.fetch.start), &mut buf[..len]) {
            context.fail(RestoreError::File(error));
            return;
        }
        context.counters.fetched.fetch_add(to_u64(len), Relaxed);
        let fetched = Arc::new(Fetched { start: batch.fetch.start, buf, len, own: to_usize(batch.own) });
        // The send fails if no checksums were requested: then there is no receiver.
        let _ = slot.send(Arc::clone(&fetched));
        if decoders.submit(plan, &batch, &fetched).is_err() {
            return;
        }
    }
}
