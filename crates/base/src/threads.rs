//! Threads and thread pools that handle a refusal by the system. It may refuse a thread at any time because
//! of a container's pids limit, systemd's `TasksMax`, `ulimit -u`, or the address space.
//!
//! No function of this module panics because of a refusal. If the work can be done with fewer threads, it is;
//! otherwise the caller gets [`Refused`], which names the limits that may be the reason. The function that
//! starts a thread joins it, and checks that it didn't panic, before it reports the thread's work as done.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};
use rustix::process::{Resource, getrlimit};
use tracing::Span;

use crate::limits::tasks_of_process;

/// Number of waits, and length of each, for the kernel to stop counting threads that have ended: it counts
/// them a little longer than they run.
const TASK_COUNT_POLL: (u32, Duration) = (200, Duration::from_millis(1));

/// Error of a thread that the system refused to start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread to {purpose}: the system allows no more{limits}")]
pub struct Refused {
    purpose: &'static str,
    limits: Limits,
    #[source]
    source: io::Error,
}

impl Refused {
    /// Returns the error for a thread that was to `purpose`. Looks up the limits that are set now.
    #[must_use]
    pub fn new(purpose: &'static str, source: io::Error) -> Self {
        Self { purpose, limits: Limits::of_process(), source }
    }
}

/// Error of a thread that panicked, which is a bug. Its work is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a thread died: this is a bug in snapferry")]
pub struct Died;

/// The limits that may explain a refusal, `None` for those that are not set.
#[derive(Debug, Default)]
struct Limits {
    user: Option<u64>,
    tasks: Option<u64>,
    address_space: Option<u64>,
}

impl Limits {
    fn of_process() -> Self {
        Self {
            user: getrlimit(Resource::Nproc).current,
            tasks: tasks_of_process(),
            address_space: getrlimit(Resource::As).current,
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.map(|max| format!("{max} processes and threads of this user (ulimit -u)"));
        let tasks = self.tasks.map(|max| {
            format!("{max} tasks in this cgroup (pids.max, a container's pids limit, systemd's TasksMax)")
        });
        let space = self.address_space.map(|max| format!("{max} bytes of address space (ulimit -v)"));
        let set: Vec<String> = [user, tasks, space].into_iter().flatten().collect();
        if set.is_empty() { Ok(()) } else { write!(f, "; at most {}", set.join(", ")) }
    }
}

/// Starts a thread that isn't bound to a scope. Its log lines are in the caller's span.
///
/// # Errors
/// [`Refused`] if the system doesn't start the thread.
pub fn spawn<T: Send + 'static>(
    purpose: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Refused> {
    let span = Span::current();
    thread::Builder::new()
        .name(purpose.to_owned())
        .spawn(move || span.in_scope(work))
        .map_err(|source| Refused::new(purpose, source))
}

/// Starts a thread within `scope`. Its log lines are in the caller's span.
///
/// # Errors
/// [`Refused`] if the system doesn't start the thread.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    purpose: &'static str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Refused> {
    let span = Span::current();
    thread::Builder::new()
        .name(purpose.to_owned())
        .spawn_scoped(scope, move || span.in_scope(work))
        .map_err(|source| Refused::new(purpose, source))
}

/// Threads that run the same function and share the work.
#[derive(Debug)]
pub struct Team<'scope, T> {
    threads: Vec<ScopedJoinHandle<'scope, T>>,
}

impl<'scope, T: Send + 'scope> Team<'scope, T> {
    /// Starts `requested` threads within `scope`, or as many of them as the system allows.
    ///
    /// # Errors
    /// [`Refused`] if the system doesn't allow even one.
    pub fn start(
        scope: &'scope Scope<'scope, '_>,
        purpose: &'static str,
        requested: usize,
        work: impl FnOnce() -> T + Clone + Send + 'scope,
    ) -> Result<Self, Refused> {
        let mut threads = Vec::with_capacity(requested);
        while threads.len() < requested {
            match spawn_scoped(scope, purpose, work.clone()) {
                Ok(thread) => threads.push(thread),
                Err(refused) if threads.is_empty() => return Err(refused),
                Err(refused) => {
                    tracing::debug!("{} of {requested} threads do: {refused}", threads.len());
                    break;
                }
            }
        }
        Ok(Self { threads })
    }

    /// Waits for all threads and returns their results.
    ///
    /// # Errors
    /// [`Died`] if one of them panicked.
    pub fn join(self) -> Result<Vec<T>, Died> {
        // Join all of them, also those after a thread that panicked.
        let ended: Vec<_> = self.threads.into_iter().map(ScopedJoinHandle::join).collect();
        ended.into_iter().map(|end| end.map_err(|_panic| Died)).collect()
    }
}

/// Runs `work` on `requested` threads, this one included, or on as many as the system allows, which may be
/// this one alone. Returns their results.
///
/// # Errors
/// [`Died`] if one of the threads panicked. All of them have ended by then.
pub fn run_on_threads<T: Send>(
    purpose: &'static str,
    requested: usize,
    work: impl Fn() -> T + Sync,
) -> Result<Vec<T>, Died> {
    let work = &work;
    thread::scope(|scope| {
        let others = Team::start(scope, purpose, requested.saturating_sub(1), work);
        let own = catch_unwind(AssertUnwindSafe(work)).map_err(|_panic| Died);
        let others = match others {
            Ok(others) => others.join(),
            Err(refused) => {
                tracing::debug!("one thread does: {refused}");
                Ok(Vec::new())
            }
        };
        let mut all = others?;
        all.push(own?);
        Ok(all)
    })
}

/// Threads that will be started besides a [`Pool`], for which the pool must leave room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedThreads {
    /// Number of threads without which the work can't be done.
    pub min: usize,
    /// Number of threads that are started if the system allows them.
    pub max: usize,
}

/// A rayon pool of the caller's own. When it is dropped, it waits until all of its threads have ended.
#[derive(Debug)]
pub struct Pool {
    /// `None` only while the pool is being dropped.
    pool: Option<ThreadPool>,
    threads: Vec<JoinHandle<()>>,
    spare: usize,
}

/// A thread that waits for its task in the pool.
struct Parked {
    sender: Sender<ThreadBuilder>,
    thread: JoinHandle<()>,
}

impl Parked {
    fn start(purpose: &'static str) -> Result<Self, Refused> {
        let (sender, receiver) = bounded::<ThreadBuilder>(1);
        let thread = spawn(purpose, move || {
            if let Ok(builder) = receiver.recv() {
                builder.run();
            }
        })?;
        Ok(Self { sender, thread })
    }

    /// Starts `requested` threads, or as many of them as the system allows; also returns the refusal, if
    /// there was one.
    fn start_up_to(purpose: &'static str, requested: usize) -> (Vec<Self>, Option<Refused>) {
        let mut parked = Vec::with_capacity(requested);
        while parked.len() < requested {
            match Self::start(purpose) {
                Ok(one) => parked.push(one),
                Err(refused) => return (parked, Some(refused)),
            }
        }
        (parked, None)
    }

    /// Ends the threads. Waits until the system no longer counts them, so that other threads can be started
    /// in their place.
    fn release(parked: Vec<Self>) {
        let tasks = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if parked.is_empty() {
            return;
        }
        let goal = tasks().saturating_sub(parked.len());
        for Self { sender, thread } in parked {
            drop(sender);
            // A parked thread does nothing that could panic.
            let _ = thread.join();
        }
        let (times, pause) = TASK_COUNT_POLL;
        for _ in 0..times {
            thread::yield_now();
            if tasks() <= goal {
                return;
            }
            thread::sleep(pause);
        }
    }
}

/// Returns how many threads the system would start now, up to `requested`, and the refusal, if there was one.
#[must_use]
pub fn available_threads(purpose: &'static str, requested: usize) -> (usize, Option<Refused>) {
    let (parked, refused) = Parked::start_up_to(purpose, requested);
    let count = parked.len();
    Parked::release(parked);
    (count, refused)
}

impl Pool {
    /// Starts `requested` threads, or as many of them as the system allows together with the
    /// `reserved` ones. The pool calls `on_panic` for each job that panics, and keeps the thread.
    ///
    /// # Errors
    /// [`Refused`] if the system doesn't allow even one.
    pub fn start(
        purpose: &'static str,
        requested: usize,
        reserved: ReservedThreads,
        on_panic: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, Refused> {
        let (mut parked, refused) = Parked::start_up_to(purpose, requested + reserved.max);
        let started = parked.len();
        let count = match &refused {
            None => requested,
            Some(_) => started.saturating_sub(reserved.min).clamp(1, requested).min(started),
        };
        // These threads end again: they only reserved the room for those beside the pool.
        Parked::release(parked.split_off(count));
        if let Some(refused) = refused {
            if count == 0 {
                return Err(refused);
            }
            tracing::warn!("{count} of {requested} threads do, and the work takes longer: {refused}");
        }
        let (senders, threads): (Vec<_>, Vec<_>) =
            parked.into_iter().map(|one| (one.sender, one.thread)).unzip();
        let mut senders = senders.into_iter();
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .panic_handler(move |_panic| on_panic())
            .spawn_handler(|builder| {
                let sender = senders.next().ok_or(io::ErrorKind::NotFound)?;
                sender.send(builder).map_err(|_| io::ErrorKind::BrokenPipe.into())
            })
            .build()
            .map_err(|error| Refused::new(purpose, io::Error::other(error)))?;
        Ok(Self { pool: Some(pool), threads, spare: started - count })
    }

    /// Returns the number of threads in the pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Returns how many of `requested` threads to start beside the pool: all if there is room for all threads
    /// beside it, otherwise one.
    #[must_use]
    pub fn reserved_count(&self, requested: usize, reserved: ReservedThreads) -> usize {
        if self.spare >= reserved.max { requested } else { 1 }
    }

    /// Queues a job. Jobs begin in the order in which they were queued.
    pub fn spawn_fifo(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(pool) = &self.pool {
            pool.spawn_fifo(job);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The pool's threads end when all queued jobs have.
        drop(self.pool.take());
        for thread in self.threads.drain(..) {
            // A panic of a job was reported by `on_panic`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_refusal_names_the_limits_that_are_set() {
        let refused = |limits| {
            Refused { purpose: "read", limits, source: io::ErrorKind::WouldBlock.into() }.to_string()
        };
        assert_eq!(refused(Limits::default()), "cannot start a thread to read: the system allows no more");
        let all = Limits { user: Some(7), tasks: Some(64), address_space: Some(1 << 30) };
        let message = refused(all);
        assert!(
            ["7 processes", "ulimit -u", "64 tasks", "TasksMax", "1073741824 bytes", "ulimit -v"]
                .iter()
                .all(|word| message.contains(word)),
            "{message}"
        );
    }

    #[test]
    fn a_pool_runs_every_job_tells_of_panics_and_ends_with_its_threads() {
        let (done, died) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let panics = Arc::clone(&died);
        let reserved = ReservedThreads { min: 1, max: 2 };
        let pool = Pool::start("test", 3, reserved, move || {
            panics.fetch_add(1, Relaxed);
        })
        .expect("threads");
        assert_eq!((pool.threads(), pool.reserved_count(2, reserved)), (3, 2));
        for number in 0..100 {
            let done = Arc::clone(&done);
            pool.spawn_fifo(move || {
                assert_ne!(number, 50, "told to");
                done.fetch_add(1, Relaxed);
            });
        }
        drop(pool);
        assert_eq!((done.load(Relaxed), died.load(Relaxed)), (99, 1));
    }

    #[test]
    fn a_team_is_joined_to_the_last_and_its_deaths_are_told() {
        let begun = AtomicUsize::new(0);
        let ended = AtomicUsize::new(0);
        thread::scope(|scope| {
            let team = Team::start(scope, "test", 4, || {
                assert_ne!(begun.fetch_add(1, Relaxed), 1, "told to");
                ended.fetch_add(1, Relaxed)
            });
            assert_eq!(team.expect("threads").join().map(|results| results.len()), Err(Died));
        });
        assert_eq!(ended.into_inner(), 3);
    }

    #[test]
    fn what_is_done_together_is_over_when_all_have_ended_and_fails_with_any() {
        let remaining = AtomicUsize::new(1000);
        let take = || {
            (0..)
                .take_while(|_| {
                    remaining.fetch_update(Relaxed, Relaxed, |remaining| remaining.checked_sub(1)).is_ok()
                })
                .count()
        };
        assert_eq!(
            run_on_threads("test", 4, take).map(|each| (each.len(), each.iter().sum::<usize>())),
            Ok((4, 1000))
        );
        for dies in [1, 3] {
            let begun = AtomicUsize::new(0);
            let ended =
                run_on_threads("test", 3, || assert_ne!(begun.fetch_add(1, Relaxed) + 1, dies, "told to"));
            assert_eq!(ended, Err(Died));
        }
    }

    #[test]
    fn there_is_room_for_a_few_threads() {
        let (available, refused) = available_threads("test", 3);
        assert!(available == 3 && refused.is_none(), "{refused:?}");
    }
}
