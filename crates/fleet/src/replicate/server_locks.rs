//! Locks to attach and detach: one change at a time for each server, across all jobs and processes of this
//! machine, because the API refuses a second change of a server while the first is under way.
//!
//! Each one is a lock on a file. The kernel releases it when its process dies.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_ibmcloud::vpc::{InstanceId, LogWatch, Patience, Sighting, Verdict, VpcError, Waiting};

use super::error::Fault;

/// Folder with one lock file for each server.
#[derive(Clone, Debug, Default)]
pub struct ServerLocks {
    folder: Option<PathBuf>,
}

/// Lock for one server, which ends when this value is dropped.
#[derive(Debug)]
pub struct ServerLock {
    _locked: Option<File>,
}

impl ServerLocks {
    /// Takes locks in `folder`, which is made when it is first needed.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder: Some(folder) }
    }

    /// Waits for the lock of a server. If the lock file can't be opened, there is no lock and no wait: the
    /// API's own refusals are retried as well.
    ///
    /// # Errors
    /// [`Fault::ServerBusy`] if the deadline passes. Also if the wait is cancelled.
    pub async fn of(
        &self,
        server: &InstanceId,
        patience: Patience,
        clock: &dyn Clock,
        cancel: &Cancel,
    ) -> Result<ServerLock, Fault> {
        let Some(file) = self.open(server) else { return Ok(ServerLock { _locked: None }) };
        let subject = format!("the turn of server {server}");
        let waiting = Waiting { subject, patience, clock, cancel, watch: &LogWatch };
        let locked = waiting
            .until(async || {
                let (verdict, state) = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        (Verdict::Underway, "another job of this machine attaches or detaches")
                    }
                    _ => (Verdict::Reached, "ours"),
                };
                Ok(Sighting { resource: (), verdict, state: state.to_owned(), reasons: Vec::new() })
            })
            .await;
        match locked {
            Ok(()) => Ok(ServerLock { _locked: Some(file) }),
            Err(VpcError::Overdue { waited, .. }) => {
                Err(Fault::ServerBusy { server: server.to_string(), waited })
            }
            Err(err) => Err(err.into()),
        }
    }

    fn open(&self, server: &InstanceId) -> Option<File> {
        let folder = self.folder.as_ref()?;
        let name: String =
            server.as_str().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
        let path = folder.join(format!("{name}.lock"));
        let opened = fs::create_dir_all(folder)
            .and_then(|()| OpenOptions::new().create(true).write(true).truncate(false).open(&path));
        match opened {
            Ok(file) => Some(file),
            Err(err) => {
                tracing::warn!(
                    "attaching and detaching takes no turns, {} can't be used: {err}",
                    path.display()
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use snapferry_testkit::clock::ManualClock;

    use super::*;

    const SOON: Patience = Patience {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(1),
        deadline: Duration::from_secs(30),
    };

    #[tokio::test]
    async fn one_at_a_time_for_each_server_and_never_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let (locks, clock, cancel) =
            (ServerLocks::new(folder.path().join("turns")), ManualClock::hurried(), Cancel::new());
        let (one, two) = (InstanceId::new("0717-1"), InstanceId::new("0717-2"));
        let held = locks.of(&one, SOON, &*clock, &cancel).await.expect("it is free");
        drop(locks.of(&two, SOON, &*clock, &cancel).await.expect("another server's is free"));
        // Another process opens the file anew, and so does another job of this process.
        let late = ServerLocks::new(folder.path().join("turns")).of(&one, SOON, &*clock, &cancel).await;
        assert!(
            matches!(&late, Err(fault @ Fault::ServerBusy { .. }) if fault.class().is_retryable()),
            "{late:?}"
        );
        drop(held);
        drop(locks.of(&one, SOON, &*clock, &cancel).await.expect("it is free again"));
    }

    #[tokio::test]
    async fn those_who_wait_come_one_after_the_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let (clock, cancel, at_it) = (snapferry_base::clock::SystemClock, Cancel::new(), AtomicU32::new(0));
        let often = Patience { first: Duration::from_millis(1), longest: Duration::from_millis(1), ..SOON };
        let locks = ServerLocks::new(folder.path().to_owned());
        let job = async || {
            let lock = locks.of(&InstanceId::new("0717-1"), often, &clock, &cancel).await.expect("a turn");
            assert_eq!(at_it.fetch_add(1, Ordering::Relaxed), 0, "two at a time");
            tokio::task::yield_now().await;
            at_it.fetch_sub(1, Ordering::Relaxed);
            drop(lock);
        };
        tokio::join!(job(), job(), job());
    }

    #[tokio::test]
    async fn without_a_folder_nobody_waits() {
        let nowhere = ServerLocks::new(PathBuf::from("/dev/null/turns"));
        let (clock, cancel) = (ManualClock::hurried(), Cancel::new());
        let _one = nowhere.of(&InstanceId::new("0717-1"), SOON, &*clock, &cancel).await.expect("no lock");
        let _two = nowhere.of(&InstanceId::new("0717-1"), SOON, &*clock, &cancel).await.expect("no lock");
    }
}
