//! Basic types of the other crates: sizes and addresses, time, cancellation, retries, limits, secrets. This
//! crate doesn't depend on any file format, store or network.

pub mod ca_file;
pub mod cancel;
pub mod choice;
pub mod clock;
pub mod fence;
pub mod identity;
pub mod job;
pub mod limits;
pub mod retry;
pub mod secret;
pub mod signals;
pub mod suggest;
pub mod threads;
pub mod units;
pub mod user_file;
