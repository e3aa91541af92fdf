//! How many parts travel at once: as many as the user allows, fewer while the store asks for less or the line carries less.
//!
//! Additive increase, multiplicative decrease, as TCP does it: throttling halves the window, at most once for all the requests that
//! were under way together; a run of parts that went well widens it by one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// This many parts in a row that went well widen the window by one.
const GOOD_RUN: usize = 8;

#[derive(Debug)]
struct State {
    window: usize,
    in_flight: usize,
    good_run: usize,
    /// Counts the cuts. A throttled request cuts only if none was made since it began: one full bucket is one message.
    cuts: u64,
}

/// The window. Shared by all senders to one store.
#[derive(Debug)]
pub struct Pace {
    connections: usize,
    state: Mutex<State>,
    room: Notify,
}

/// The right to send one part, once. Given back when dropped.
#[derive(Debug)]
pub struct Permit {
    pace: Arc<Pace>,
    cuts: u64,
}

impl Pace {
    /// Starts with `connections` parts at once, and never has more. Less than one means one.
    #[must_use]
    pub fn new(connections: usize) -> Arc<Self> {
        let connections = connections.max(1);
        let state = State { window: connections, in_flight: 0, good_run: 0, cuts: 0 };
        Arc::new(Self { connections, state: Mutex::new(state), room: Notify::new() })
    }

    /// How many parts may travel at once right now.
    #[must_use]
    pub fn window(&self) -> usize {
        self.state().window
    }

    /// Waits for room in the window.
    pub async fn permit(self: &Arc<Self>) -> Permit {
        loop {
            // Before the look: room made between the look and the wait is not missed.
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
    /// The part was taken.
    pub fn went_well(self) {
        let mut state = self.pace.state();
        state.good_run += 1;
        if state.good_run >= GOOD_RUN {
            state.good_run = 0;
            state.window = (state.window + 1).min(self.pace.connections);
        }
    }

    /// The store asked for less, or the part did not get through in time.
    pub fn was_throttled(self) {
        let mut state = self.pace.state();
        state.good_run = 0;
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
        for _ in 0..GOOD_RUN - 1 {
            pace.permit().await.went_well();
        }
        assert_eq!(pace.window(), 2);
        pace.permit().await.was_throttled();
        assert_eq!(pace.window(), 1);
        for _ in 0..GOOD_RUN {
            pace.permit().await.went_well();
        }
        assert_eq!(pace.window(), 2);
        for _ in 0..GOOD_RUN * 10 {
            pace.permit().await.went_well();
        }
        assert_eq!(pace.window(), 4);
    }

    #[tokio::test]
    async fn nobody_goes_beyond_the_window_and_all_who_wait_get_in() {
        let pace = Pace::new(2);
        let mut held = permits(&pace, 2).await;
        let (mut third, mut fourth) = (Box::pin(pace.permit()), Box::pin(pace.permit()));
        assert!(is_ready(&mut third).is_none() && is_ready(&mut fourth).is_none());
        // Halved while two are out: one that comes back makes no room yet.
        held.pop().expect("two").was_throttled();
        assert!(is_ready(&mut third).is_none());
        drop(held);
        // One gets in, whoever's turn it is, and then the other.
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
