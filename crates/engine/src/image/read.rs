//! The first stage: starts fetches in the order of the file, several at a time, and hands each batch's bodies to the decoders.

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
use crate::source::aligned::{BufferPool, PooledBuf};

/// Bytes of the file, from `start`.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub start: u64,
    buf: PooledBuf,
    len: usize,
    /// How many of the bytes, from the first, are in no later batch.
    own: usize,
}

impl Fetched {
    /// What was fetched.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[..self.len]
    }

    /// What sums count.
    pub fn own(&self) -> &[u8] {
        &self.buf[..self.own]
    }
}

/// A batch's bytes once they are there. A sender that hangs up means that they never will be.
pub(crate) type Slot = Receiver<Arc<Fetched>>;

/// A fetch to be done.
struct Ticket {
    batch: Batch,
    buf: PooledBuf,
    slot: Sender<Arc<Fetched>>,
}

/// Fetches every batch of the plan: `slots` gets one slot for each before its fetch begins. Whether all of them came to where they belong,
/// whoever takes them counts.
pub(crate) fn run(
    file: &dyn ImageFile,
    plan: &Plan,
    slots: &Sender<Slot>,
    decoders: &Decoders,
    context: &Context,
) {
    let (tickets, queue) = bounded(plan.readers);
    thread::scope(|scope| {
        // The queue goes with them: once the last one is gone, there is nobody to hand a ticket to.
        let serving = move || serve(file, plan, &queue, decoders, context);
        let readers = match Team::start(scope, "read", decoders.of_those_beside(plan.readers), serving) {
            Ok(readers) => readers,
            Err(refused) => return context.fail(RestoreError::Threads(refused)),
        };
        // Who stopped us has said why.
        let _ = issue(plan, slots, &tickets, decoders, context);
        drop(tickets);
        if readers.join().is_err() {
            context.fail(RestoreError::StageDied { stage: "reading" });
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
        // In this order and one batch after the other: the batch that the sums wait for always has its buffer already.
        let buf = context.take(&buffers)?;
        let (slot, fetched) = bounded(1);
        context.cancel.send(slots, fetched)?;
        context.cancel.send(tickets, Ticket { batch, buf, slot })?;
    }
    Ok(())
}

/// Who holds the next fetch up? Buffers that are all out are with the decoders or behind them.
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
        // Where nobody wants sums, nobody listens.
        let _ = slot.send(Arc::clone(&fetched));
        if decoders.submit(plan, &batch, &fetched).is_err() {
            return;
        }
    }
}
