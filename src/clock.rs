//! Time as something that is passed in, so that tests run on a clock of their own.

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;

/// What time it is, and a way to wait.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Wall clock time, for names, expiry dates and logs.
    fn now(&self) -> SystemTime;
    /// Monotonic time, for durations.
    fn instant(&self) -> Instant;
    /// Waits.
    async fn sleep(&self, duration: Duration);
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
