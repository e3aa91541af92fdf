//! A clock for tests that stands still until the test moves it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use snapferry_base::clock::Clock;
use tokio::sync::watch;

/// Clock that a test moves, or, if hurried, that jumps ahead at every wait.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    epoch: SystemTime,
    passed: watch::Sender<Duration>,
    sleeps: Mutex<u32>,
    hurried: bool,
}

impl ManualClock {
    fn build(hurried: bool) -> Arc<Self> {
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Arc::new(Self {
            start: Instant::now(),
            epoch,
            passed: watch::Sender::new(Duration::ZERO),
            sleeps: Mutex::new(0),
            hurried,
        })
    }

    /// Makes a clock that only [`ManualClock::advance`] moves.
    #[must_use]
    pub fn standing() -> Arc<Self> {
        Self::build(false)
    }

    /// Makes a clock that moves ahead at every wait, so that no wait takes real time.
    #[must_use]
    pub fn hurried() -> Arc<Self> {
        Self::build(true)
    }

    /// Moves the clock ahead.
    pub fn advance(&self, by: Duration) {
        self.passed.send_modify(|passed| *passed += by);
    }

    /// Returns the number of waits so far.
    #[must_use]
    pub fn sleeps(&self) -> u32 {
        *self.sleeps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.epoch + *self.passed.borrow()
    }

    fn instant(&self) -> Instant {
        self.start + *self.passed.borrow()
    }

    async fn sleep(&self, duration: Duration) {
        *self.sleeps.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut passed = self.passed.subscribe();
        let until = *passed.borrow() + duration;
        if self.hurried {
            self.advance(duration);
        }
        // This can't fail: the sender lives in self.
        let _ended = passed.wait_for(|passed| *passed >= until).await;
    }
}
