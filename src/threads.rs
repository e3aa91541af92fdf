//! Threads, of which the system may refuse one at any time: a container's pids limit, systemd's `TasksMax`, `ulimit -u`, address space.
//!
//! Nothing here panics because of a refusal. Where fewer threads do the job there are fewer, and where none can be had the caller gets
//! [`Refused`], which names the limits that may be behind it. Whoever starts a thread joins it, and looks at how it ended, before anything
//! that it worked for is taken for done.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};
use rustix::process::{Resource, getrlimit};

use crate::limits::tasks_of_process;

/// How often, and how long each time, the kernel is given time to forget threads that have ended: it counts them a little longer than
/// they run.
const FORGETS_WITHIN: (u32, Duration) = (200, Duration::from_millis(1));

/// A thread that the system did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread to {what}: the system allows no more{limits}")]
pub struct Refused {
    what: &'static str,
    limits: Limits,
    #[source]
    source: io::Error,
}

impl Refused {
    /// What the system said when a thread was to be started to `what`. The limits are looked up now.
    #[must_use]
    pub fn new(what: &'static str, source: io::Error) -> Self {
        Self { what, limits: Limits::of_process(), source }
    }
}

/// A thread that ended in a panic: a bug. What it worked for is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a thread died: this is a bug in snapferry")]
pub struct Died;

/// The limits that may be behind a refusal; those that are not set are left out.
#[derive(Debug, Default)]
struct Limits {
    user: Option<u64>,
    tasks: Option<u64>,
    address_space: Option<u64>,
}

impl Limits {
    fn of_process() -> Self {
        Self { user: getrlimit(Resource::Nproc).current, tasks: tasks_of_process(), address_space: getrlimit(Resource::As).current }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.map(|most| format!("{most} processes and threads of this user (ulimit -u)"));
        let tasks =
            self.tasks.map(|most| format!("{most} tasks in this cgroup (pids.max, a container's pids limit, systemd's TasksMax)"));
        let space = self.address_space.map(|most| format!("{most} bytes of address space (ulimit -v)"));
        let set: Vec<String> = [user, tasks, space].into_iter().flatten().collect();
        if set.is_empty() { Ok(()) } else { write!(f, "; at most {}", set.join(", ")) }
    }
}

/// Starts a thread of its own.
///
/// # Errors
/// [`Refused`] where the system starts none.
pub fn spawn<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, Refused> {
    thread::Builder::new().name(what.to_owned()).spawn(work).map_err(|source| Refused::new(what, source))
}

/// Starts a thread within `scope`.
///
/// # Errors
/// [`Refused`] where the system starts none.
pub fn scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Refused> {
    thread::Builder::new().name(what.to_owned()).spawn_scoped(scope, work).map_err(|source| Refused::new(what, source))
}

/// Threads that do the same, and share what there is to do.
#[derive(Debug)]
pub struct Team<'scope, T> {
    threads: Vec<ScopedJoinHandle<'scope, T>>,
}

impl<'scope, T: Send + 'scope> Team<'scope, T> {
    /// Starts `wanted` threads within `scope`, or as many of them as the system allows.
    ///
    /// # Errors
    /// [`Refused`] where it allows not even one.
    pub fn start(
        scope: &'scope Scope<'scope, '_>,
        what: &'static str,
        wanted: usize,
        work: impl FnOnce() -> T + Clone + Send + 'scope,
    ) -> Result<Self, Refused> {
        let mut threads = Vec::with_capacity(wanted);
        while threads.len() < wanted {
            match scoped(scope, what, work.clone()) {
                Ok(thread) => threads.push(thread),
                Err(refused) if threads.is_empty() => return Err(refused),
                Err(refused) => {
                    tracing::debug!("{} of {wanted} threads do: {refused}", threads.len());
                    break;
                }
            }
        }
        Ok(Self { threads })
    }

    /// Waits for all of them, and gives what each has to say.
    ///
    /// # Errors
    /// [`Died`] where one of them panicked.
    pub fn join(self) -> Result<Vec<T>, Died> {
        // All of them, also behind one that died.
        let ended: Vec<_> = self.threads.into_iter().map(ScopedJoinHandle::join).collect();
        ended.into_iter().map(|end| end.map_err(|_panic| Died)).collect()
    }
}

/// Does `work` on this thread and on others beside it, `wanted` in all, or as many as the system allows: this one alone does it as well.
/// Gives what each has to say.
///
/// # Errors
/// [`Died`] where one of them panicked. All have ended then, too.
pub fn together<T: Send>(what: &'static str, wanted: usize, work: impl Fn() -> T + Sync) -> Result<Vec<T>, Died> {
    let work = &work;
    thread::scope(|scope| {
        let others = Team::start(scope, what, wanted.saturating_sub(1), work);
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

/// Threads that will be wanted beside a [`Pool`], which must not take all that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Without so many nothing goes.
    pub least: usize,
    /// So many are started where they can be had.
    pub most: usize,
}

/// A rayon pool of one's own, whose threads have all ended when it is dropped.
#[derive(Debug)]
pub struct Pool {
    /// Taken when dropped.
    pool: Option<ThreadPool>,
    threads: Vec<JoinHandle<()>>,
    left: usize,
}

/// A thread that waits to be told what it is for.
struct Parked {
    tell: Sender<ThreadBuilder>,
    thread: JoinHandle<()>,
}

impl Parked {
    fn start(what: &'static str) -> Result<Self, Refused> {
        let (tell, told) = bounded::<ThreadBuilder>(1);
        let thread = spawn(what, move || {
            if let Ok(builder) = told.recv() {
                builder.run();
            }
        })?;
        Ok(Self { tell, thread })
    }

    /// As many as the system allows, up to `wanted`, and why there are no more.
    fn start_up_to(what: &'static str, wanted: usize) -> (Vec<Self>, Option<Refused>) {
        let mut parked = Vec::with_capacity(wanted);
        while parked.len() < wanted {
            match Self::start(what) {
                Ok(one) => parked.push(one),
                Err(refused) => return (parked, Some(refused)),
            }
        }
        (parked, None)
    }

    /// Ends them. The system takes them for gone when this returns, so that others can be started in their place.
    fn let_go(parked: Vec<Self>) {
        let tasks = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if parked.is_empty() {
            return;
        }
        let goal = tasks().saturating_sub(parked.len());
        for Self { tell, thread } in parked {
            drop(tell);
            // It did nothing that could fail.
            let _ = thread.join();
        }
        let (times, pause) = FORGETS_WITHIN;
        for _ in 0..times {
            thread::yield_now();
            if tasks() <= goal {
                return;
            }
            thread::sleep(pause);
        }
    }
}

/// How many threads the system would start now, up to `wanted`; and why no more.
#[must_use]
pub fn room(what: &'static str, wanted: usize) -> (usize, Option<Refused>) {
    let (parked, refused) = Parked::start_up_to(what, wanted);
    let room = parked.len();
    Parked::let_go(parked);
    (room, refused)
}

impl Pool {
    /// Starts `wanted` threads, or as many of them as the system allows with those `beside` them. `on_panic` is told of each job that
    /// panics, on whose thread the pool goes on.
    ///
    /// # Errors
    /// [`Refused`] where not even one can be started.
    pub fn start(
        what: &'static str,
        wanted: usize,
        beside: Beside,
        on_panic: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, Refused> {
        let (mut parked, refused) = Parked::start_up_to(what, wanted + beside.most);
        let started = parked.len();
        let count = match &refused {
            None => wanted,
            Some(_) => started.saturating_sub(beside.least).clamp(1, wanted).min(started),
        };
        // Their places are for those beside the pool.
        Parked::let_go(parked.split_off(count));
        if let Some(refused) = refused {
            if count == 0 {
                return Err(refused);
            }
            tracing::warn!("{count} of {wanted} threads do, and the work takes longer: {refused}");
        }
        let (tells, threads): (Vec<_>, Vec<_>) = parked.into_iter().map(|one| (one.tell, one.thread)).unzip();
        let mut tells = tells.into_iter();
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .panic_handler(move |_panic| on_panic())
            .spawn_handler(|builder| {
                let tell = tells.next().ok_or(io::ErrorKind::NotFound)?;
                tell.send(builder).map_err(|_| io::ErrorKind::BrokenPipe.into())
            })
            .build()
            .map_err(|error| Refused::new(what, io::Error::other(error)))?;
        Ok(Self { pool: Some(pool), threads, left: started - count })
    }

    /// Threads in it.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// How many threads of `wanted` ones are to be started beside it, at least one: one alone where the system hardly has any.
    #[must_use]
    pub fn of_those_beside(&self, wanted: usize, all: Beside) -> usize {
        if self.left >= all.most { wanted } else { 1 }
    }

    /// Queues a job; jobs begin in the order in which they come.
    pub fn spawn_fifo(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(pool) = &self.pool {
            pool.spawn_fifo(job);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Its threads end once their jobs have.
        drop(self.pool.take());
        for thread in self.threads.drain(..) {
            // What a job left undone, its owner has been told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn a_refusal_names_the_limits_that_are_set() {
        let refused = |limits| Refused { what: "read", limits, source: io::ErrorKind::WouldBlock.into() }.to_string();
        assert_eq!(refused(Limits::default()), "cannot start a thread to read: the system allows no more");
        let all = Limits { user: Some(7), tasks: Some(64), address_space: Some(1 << 30) };
        let said = refused(all);
        assert!(
            ["7 processes", "ulimit -u", "64 tasks", "TasksMax", "1073741824 bytes", "ulimit -v"]
                .iter()
                .all(|word| said.contains(word)),
            "{said}"
        );
    }

    #[test]
    fn a_pool_runs_every_job_tells_of_panics_and_ends_with_its_threads() {
        let (done, died) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let told = Arc::clone(&died);
        let beside = Beside { least: 1, most: 2 };
        let pool = Pool::start("test", 3, beside, move || {
            told.fetch_add(1, Relaxed);
        })
        .expect("threads");
        assert_eq!((pool.threads(), pool.of_those_beside(2, beside)), (3, 2));
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
            assert_eq!(team.expect("threads").join().map(|said| said.len()), Err(Died));
        });
        assert_eq!(ended.into_inner(), 3);
    }

    #[test]
    fn what_is_done_together_is_over_when_all_have_ended_and_fails_with_any() {
        let left = AtomicUsize::new(1000);
        let take = || (0..).take_while(|_| left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()).count();
        assert_eq!(together("test", 4, take).map(|each| (each.len(), each.iter().sum::<usize>())), Ok((4, 1000)));
        for dies in [1, 3] {
            let begun = AtomicUsize::new(0);
            let ended = together("test", 3, || assert_ne!(begun.fetch_add(1, Relaxed) + 1, dies, "told to"));
            assert_eq!(ended, Err(Died));
        }
    }

    #[test]
    fn there_is_room_for_a_few_threads() {
        let (room, refused) = room("test", 3);
        assert!(room == 3 && refused.is_none(), "{refused:?}");
    }
}
