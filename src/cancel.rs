//! One word to everybody that the work is to stop: threads poll it or select on it, tasks await it.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use tokio::sync::watch;

/// Why the work stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked: a signal, a cancelled job.
    Asked,
    /// A neighbouring stage failed, and its error is the one to report.
    Failed,
}

/// Stop: somebody else has said why, or wants nothing more of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// A nothing that is never sent: [`Cancel::closed`] only ever disconnects.
pub enum Never {}

#[derive(Debug)]
struct Shared {
    told: watch::Sender<Option<Reason>>,
    /// Dropped on the first word, which wakes every thread that selects on `closed`.
    open: Mutex<Option<Sender<Never>>>,
}

/// A handle on the one word; clones share it. The first reason given stays.
#[derive(Clone, Debug)]
pub struct Cancel {
    shared: Arc<Shared>,
    closed: Receiver<Never>,
}

impl Default for Cancel {
    fn default() -> Self {
        let (open, closed) = bounded(0);
        Self { shared: Arc::new(Shared { told: watch::Sender::new(None), open: Mutex::new(Some(open)) }), closed }
    }
}

impl Cancel {
    /// Nobody has asked for anything yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells everybody. Later calls change nothing.
    pub fn cancel(&self, reason: Reason) {
        self.shared.told.send_if_modified(|told| {
            told.is_none() && {
                *told = Some(reason);
                true
            }
        });
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The reason, once there is one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        *self.shared.told.borrow()
    }

    /// Whether the work is to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.reason().is_some()
    }

    /// For `crossbeam_channel::select!` in threads: never yields a message, disconnects when the work is to stop.
    #[must_use]
    pub fn closed(&self) -> &Receiver<Never> {
        &self.closed
    }

    /// For threads: sends, and gives up when the work is to stop or nobody receives any more.
    ///
    /// # Errors
    /// Where it gave up.
    pub fn send<T>(&self, to: &Sender<T>, value: T) -> Result<(), Stopped> {
        select! {
            send(to, value) -> sent => sent.map_err(|_| Stopped),
            recv(self.closed) -> _ => Err(Stopped),
        }
    }

    /// For tasks: returns once the work is to stop.
    pub async fn cancelled(&self) -> Reason {
        let mut told = self.shared.told.subscribe();
        let reason = told.wait_for(Option::is_some).await.expect("the sender lives in self");
        reason.expect("waited for it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_wake_and_the_first_reason_stays() {
        let cancel = Cancel::new();
        let waiter = {
            let cancel = cancel.clone();
            std::thread::spawn(move || cancel.closed().recv().is_err())
        };
        assert!(!cancel.is_cancelled());
        cancel.cancel(Reason::Failed);
        cancel.cancel(Reason::Asked);
        assert!(waiter.join().expect("the waiter ends"));
        assert_eq!(cancel.reason(), Some(Reason::Failed));
    }

    #[test]
    fn a_sender_gives_up_when_the_work_stops_or_nobody_receives() {
        let cancel = Cancel::new();
        let (to, from) = bounded(1);
        assert_eq!(cancel.send(&to, 1), Ok(()));
        let full = {
            let (cancel, to) = (cancel.clone(), to.clone());
            std::thread::spawn(move || cancel.send(&to, 2))
        };
        cancel.cancel(Reason::Asked);
        assert_eq!(full.join().expect("the sender ends"), Err(Stopped));
        drop(from);
        assert_eq!(Cancel::new().send(&to, 3), Err(Stopped));
    }

    #[tokio::test]
    async fn tasks_wake_also_when_they_come_late() {
        let cancel = Cancel::new();
        cancel.cancel(Reason::Asked);
        assert_eq!(cancel.cancelled().await, Reason::Asked);
    }
}
