//! Cancellation of work: threads poll it or select on it, tasks await it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use tokio::sync::watch;

/// Reason for a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The user or another process asked for it: by a signal, or by cancelling the job.
    Requested,
    /// Another stage of the same work failed; its error is the one to report.
    Failed,
}

/// Error of a stage that has to stop. The reason is reported by another stage: the work was cancelled, or the
/// receiver of a channel is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// A type without values. No message is sent on [`Cancel::closed`]; the channel only disconnects.
pub enum Never {}

#[derive(Debug)]
struct Shared {
    reason: watch::Sender<Option<Reason>>,
    /// Dropped by the first call of [`Cancel::cancel`], which wakes every thread that selects on `closed`.
    open: Mutex<Option<Sender<Never>>>,
    /// Handles that are cancelled together with this one.
    children: Mutex<Vec<Weak<Shared>>>,
}

impl Shared {
    fn cancel(&self, reason: Reason) {
        self.reason.send_if_modified(|current| {
            current.is_none() && {
                *current = Some(reason);
                true
            }
        });
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let children = std::mem::take(&mut *self.children.lock().unwrap_or_else(PoisonError::into_inner));
        for child in children.iter().filter_map(Weak::upgrade) {
            child.cancel(reason);
        }
    }
}

/// Handle on a cancellation; clones share it. Only the first reason is kept.
#[derive(Clone, Debug)]
pub struct Cancel {
    shared: Arc<Shared>,
    closed: Receiver<Never>,
}

impl Default for Cancel {
    fn default() -> Self {
        let (open, closed) = bounded(0);
        Self {
            shared: Arc::new(Shared {
                reason: watch::Sender::new(None),
                open: Mutex::new(Some(open)),
                children: Mutex::default(),
            }),
            closed,
        }
    }
}

impl Cancel {
    /// Returns a handle on work that isn't cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a handle on a part of the work. It is cancelled with the whole, and can be cancelled alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::new();
        let mut children = self.shared.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(&child.shared));
        drop(children);
        // The whole may have been cancelled before the child was in the list.
        if let Some(reason) = self.reason() {
            child.cancel(reason);
        }
        child
    }

    /// Cancels the work and wakes all threads and tasks that wait for it. Later calls change nothing.
    pub fn cancel(&self, reason: Reason) {
        self.shared.cancel(reason);
    }

    /// Returns the reason, or `None` if the work isn't cancelled.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        *self.shared.reason.borrow()
    }

    /// True if the work has to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.reason().is_some()
    }

    /// Returns a channel for `crossbeam_channel::select!` in threads. It never yields a message, and
    /// disconnects when the work has to stop.
    #[must_use]
    pub fn closed(&self) -> &Receiver<Never> {
        &self.closed
    }

    /// Sends `value`, from a thread. Waits for room in the channel until the work has to stop or the receiver
    /// is gone.
    ///
    /// # Errors
    /// If the value was not sent.
    pub fn send<T>(&self, to: &Sender<T>, value: T) -> Result<(), Stopped> {
        select! {
            send(to, value) -> sent => sent.map_err(|_| Stopped),
            recv(self.closed) -> _ => Err(Stopped),
        }
    }

    /// Waits, in a task, until the work has to stop, and returns the reason.
    pub async fn cancelled(&self) -> Reason {
        let mut receiver = self.shared.reason.subscribe();
        let reason = receiver.wait_for(Option::is_some).await.expect("the sender lives in self");
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
        cancel.cancel(Reason::Requested);
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
        cancel.cancel(Reason::Requested);
        assert_eq!(full.join().expect("the sender ends"), Err(Stopped));
        drop(from);
        assert_eq!(Cancel::new().send(&to, 3), Err(Stopped));
    }

    #[test]
    fn a_part_ends_with_the_whole_or_alone() {
        let whole = Cancel::new();
        let (one, two) = (whole.child(), whole.child());
        one.cancel(Reason::Failed);
        assert_eq!((one.reason(), two.reason(), whole.reason()), (Some(Reason::Failed), None, None));
        let waiter = {
            let part = two.child();
            std::thread::spawn(move || part.closed().recv().is_err())
        };
        whole.cancel(Reason::Requested);
        assert!(waiter.join().expect("the waiter ends"), "also a part of a part");
        assert_eq!((one.reason(), two.reason()), (Some(Reason::Failed), Some(Reason::Requested)));
        assert_eq!(whole.child().reason(), Some(Reason::Requested), "a part that begins too late");
    }

    #[tokio::test]
    async fn tasks_wake_also_when_they_come_late() {
        let cancel = Cancel::new();
        cancel.cancel(Reason::Requested);
        assert_eq!(cancel.cancelled().await, Reason::Requested);
    }
}
