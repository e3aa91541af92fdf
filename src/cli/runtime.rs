//! The runtime that requests, timers and signals run on.
//!
//! tokio panics where the system refuses it a thread: when a runtime is made, and when something is to run beside it and nothing else
//! runs there yet. So a runtime is made once there is room for its threads, and the thread for what blocks is started with it and stays:
//! what is to run beside it later waits for that one where there can be no other. Nothing may therefore be given to `spawn_blocking` that
//! waits for something else there; such work has a thread of its own ([`snapferry_base::threads::spawn`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::time::Duration;

use snapferry_base::limits::Allowance;
use snapferry_base::threads::{self, Refused};
use tokio::runtime::{Builder, Runtime};

/// Threads for requests, TLS and timers. They do little beside the compressors, and one of them always runs the pipeline's end.
const WORKERS: usize = 2;
/// The least: one for requests, one for what blocks.
const LEAST: usize = 2;
/// Where so many threads can be had, others who want some at the same moment can't take those that tokio will start.
const PLENTY: usize = 8;
/// How long a thread for what blocks waits for more: as long as any command runs.
const STAYS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const WHAT: &str = "send requests";

/// Makes one.
///
/// # Errors
/// Where the limits of this process leave too little for it, the system has too few threads, with [`Refused`], or the runtime can't be
/// set up.
pub fn runtime() -> io::Result<Runtime> {
    Allowance::of_process().runtime().map_err(io::Error::other)?;
    let (room, refused) = threads::room(WHAT, PLENTY);
    let workers = match refused {
        None => WORKERS,
        Some(refused) if room < LEAST => return Err(io::Error::other(refused)),
        // A second one that was refused after all would leave the first waiting for ever.
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

/// Runs what panics where it is refused a thread, without a word of that panic.
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
