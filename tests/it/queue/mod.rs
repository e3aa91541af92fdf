//! The queue: one suite on both kinds, a model that compares the two, and a real Redis under every fault.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `suite` | behaviour of every queue |
//! | `model` | any mix of operations, resends and jumps of time: same effect on both, no rule broken |
//! | `rights` | rights that a user of Redis needs; keys that other clients have written |
//! | `faults` | Redis killed, restarted, paused, out of memory, promoted, emptied |

mod faults;
mod model;
mod rights;
mod suite;

use snapferry_base::clock::{Clock as _, SystemClock};
use snapferry_fleet::queue::QueueError;

/// True if the lease is lost: another worker has the job by now.
pub fn is_lost<T: std::fmt::Debug>(outcome: &Result<T, QueueError>) -> bool {
    matches!(outcome, Err(QueueError::LeaseLost { .. }))
}

/// Current time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemClock.now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
