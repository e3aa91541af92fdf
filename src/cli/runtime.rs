//! Runtime of requests, timers and signals.
//!
//! tokio panics if the system refuses it a thread: when a runtime is created, and when `spawn_blocking` is
//! called and no thread for blocking work runs yet. So a runtime is created only if there is room for its
//! threads, and one thread for blocking work is started with it and stays: if there can be no other, later
//! work waits for that one. Work that waits for other blocking work must therefore not be given to
//! `spawn_blocking`; it has a thread of its own ([`snapferry_base::threads::spawn`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::time::Duration;

use snapferry_base::limits::Allowance;
use snapferry_base::threads::{self, Refused};
use tokio::runtime::{Builder, Runtime};

/// Threads for requests, TLS and timers. They do little beside the compressors, and one of them always runs
/// the pipeline's end.
const WORKERS: usize = 2;
/// Fewest threads that a runtime works with: one for requests, one for blocking work.
const LEAST: usize = 2;
/// Number of free threads that is plenty: other processes that start some at the same moment can't take those
/// that tokio will start.
const PLENTY: usize = 8;
/// Time that an idle thread for blocking work stays: longer than any command runs.
const STAYS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const WHAT: &str = "send requests";

/// Creates a runtime.
///
/// # Errors
/// If the limits of this process leave too little for it, the system has too few threads (with [`Refused`]),
/// or the runtime can't be set up.
pub fn runtime() -> io::Result<Runtime> {
    Allowance::of_process().runtime().map_err(io::Error::other)?;
    let (room, refused) = threads::available_threads(WHAT, PLENTY);
    let workers = match refused {
        None => WORKERS,
        Some(refused) if room < LEAST => return Err(io::Error::other(refused)),
        // If the second worker were refused after all, the first would wait for ever.
        Some(_few) => 1,
    };
    unless_refused(|| {
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("store")
            .thread_keep_alive(STAYS)
            .enable_all()
            .build()?;
        let first = runtime.spawn_blocking(|| {});
        runtime.block_on(first).map_err(io::Error::other)?;
        Ok(runtime)
    })?
}

/// Runs code that panics if the system refuses it a thread, and returns an error then, without the panic's
/// message.
fn unless_refused<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let started = catch_unwind(AssertUnwindSafe(start));
    set_hook(hook);
    started.map_err(|_panic| io::Error::other(Refused::new(WHAT, io::ErrorKind::WouldBlock.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_start_is_an_error_that_names_limits() {
        let refused = unless_refused(|| panic!("OS can't spawn worker thread")).expect_err("refused");
        assert!(refused.get_ref().is_some_and(|within| within.is::<Refused>()), "{refused:?}");
    }
}
