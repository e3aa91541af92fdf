//! A clock that stands still until it is moved.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use snapferry_base::clock::Clock;
use tokio::sync::watch;

/// Time by hand, or, hurried, time that jumps ahead whenever somebody waits.
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

    /// Moves only by [`ManualClock::advance`].
    #[must_use]
    pub fn standing() -> Arc<Self> {
        Self::build(false)
    }

    /// Moves ahead by every wait, so that nobody waits.
    #[must_use]
    pub fn hurried() -> Arc<Self> {
        Self::build(true)
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.passed.send_modify(|passed| *passed += by);
    }

    /// How often somebody waited.
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
        // The sender lives in self.
        let _ended = passed.wait_for(|passed| *passed >= until).await;
    }
}
