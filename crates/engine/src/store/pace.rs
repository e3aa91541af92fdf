//! Limit of concurrent part uploads: as many as the user allows, fewer while the store throttles or the
//! connection is too slow.
//!
//! Additive increase, multiplicative decrease, as in TCP: throttling halves the window, at most once for all
//! the requests that were in flight together; a run of successful parts widens it by one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Number of consecutive successful parts that widens the window by one.
const WIDEN_AFTER: usize = 8;

#[derive(Debug)]
struct State {
    window: usize,
    in_flight: usize,
    successes: usize,
    /// Number of times that the window was halved. A throttled request halves it only if that has not
    /// happened since the request began: all requests that were throttled together count as one signal.
    cuts: u64,
}

/// Window of concurrent parts, shared by all senders to one store.
#[derive(Debug)]
pub struct Pace {
    connections: usize,
    state: Mutex<State>,
    room: Notify,
}

/// Permit to send one part. Dropping it returns it.
#[derive(Debug)]
pub struct Permit {
    pace: Arc<Pace>,
    cuts: u64,
}

impl Pace {
    /// Starts with a window of `connections` parts, which is also its maximum. Zero counts as one.
    #[must_use]
    pub fn new(connections: usize) -> Arc<Self> {
        let connections = connections.max(1);
        let state = State { window: connections, in_flight: 0, successes: 0, cuts: 0 };
        Arc::new(Self { connections, state: Mutex::new(state), room: Notify::new() })
    }

    /// Returns the number of parts that may be in flight now.
    #[must_use]
    pub fn window(&self) -> usize {
        self.state().window
    }

    /// Waits for room in the window.
    pub async fn permit(self: &Arc<Self>) -> Permit {
        loop {
            // Before the check, so that room made between the check and the wait is not missed.
            let room = self.room.notified();
            {
                let mut state = self.state();
                if state.in_flight < state.window {
                    state.in_flight += 1;
                    if state.in_flight < state.window {
                        self.room.notify_one();
                    }
                    return Permit { pace: Arc::clone(self), cuts: state.cuts };
                }
            }
            room.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Reports that the store took the part.
    pub fn succeeded(self) {
        let mut state = self.pace.state();
        state.successes += 1;
        if state.successes >= WIDEN_AFTER {
            state.successes = 0;
            state.window = (state.window + 1).min(self.pace.connections);
        }
    }

    /// Reports that the store throttled the part, or that the part timed out.
    pub fn was_throttled(self) {
        let mut state = self.pace.state();
        state.successes = 0;
        if state.cuts == self.cuts {
            state.cuts += 1;
            state.window = (state.window / 2).max(1);
            tracing::debug!(
                window = state.window,
                "fewer parts at once: the store asks for less, or the line carries less"
            );
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pace.state().in_flight -= 1;
        self.pace.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    async fn permits(pace: &Arc<Pace>, n: usize) -> Vec<Permit> {
        let mut permits = Vec::new();
        for _ in 0..n {
            permits.push(pace.permit().await);
        }
        permits
    }

    fn is_ready(future: &mut std::pin::Pin<Box<impl Future<Output = Permit>>>) -> Option<Permit> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn one_wave_of_throttling_halves_once() {
        let pace = Pace::new(8);
        for permit in permits(&pace, 8).await {
            permit.was_throttled();
        }
        assert_eq!(pace.window(), 4);
        for expected in [2, 1, 1] {
            pace.permit().await.was_throttled();
            assert_eq!(pace.window(), expected);
        }
    }

    #[tokio::test]
    async fn good_parts_widen_it_again_up_to_the_start_and_throttling_breaks_the_run() {
        let pace = Pace::new(4);
        pace.permit().await.was_throttled();
        for _ in 0..WIDEN_AFTER - 1 {
            pace.permit().await.succeeded();
        }
        assert_eq!(pace.window(), 2);
        pace.permit().await.was_throttled();
        assert_eq!(pace.window(), 1);
        for _ in 0..WIDEN_AFTER {
            pace.permit().await.succeeded();
        }
        assert_eq!(pace.window(), 2);
        for _ in 0..WIDEN_AFTER * 10 {
            pace.permit().await.succeeded();
        }
        assert_eq!(pace.window(), 4);
    }

    #[tokio::test]
    async fn nobody_goes_beyond_the_window_and_all_who_wait_get_in() {
        let pace = Pace::new(2);
        let mut held = permits(&pace, 2).await;
        let (mut third, mut fourth) = (Box::pin(pace.permit()), Box::pin(pace.permit()));
        assert!(is_ready(&mut third).is_none() && is_ready(&mut fourth).is_none());
        // The window was halved while two parts are in flight: the first that ends makes no room yet.
        held.pop().expect("two").was_throttled();
        assert!(is_ready(&mut third).is_none());
        drop(held);
        // One of the waiting tasks gets a permit, whichever is next, and then the other.
        let (in_third, in_fourth) = (is_ready(&mut third), is_ready(&mut fourth));
        assert!(in_third.is_some() != in_fourth.is_some());
        let mut other = if in_third.is_some() { fourth } else { third };
        drop((in_third, in_fourth));
        assert!(is_ready(&mut other).is_some());
    }

    #[tokio::test]
    async fn a_sender_that_gives_up_waiting_passes_its_turn_on() {
        let pace = Pace::new(1);
        let held = pace.permit().await;
        let (mut second, mut third) = (Box::pin(pace.permit()), Box::pin(pace.permit()));
        assert!(is_ready(&mut second).is_none() && is_ready(&mut third).is_none());
        drop(held);
        drop(second);
        assert!(is_ready(&mut third).is_some());
    }
}
