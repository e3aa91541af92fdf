//! Basic types of the other crates: sizes and addresses, time, cancellation, retries, limits, secrets,
//! proxies. This crate doesn't depend on any file format, store or cloud.

pub mod audit;
pub mod ca_file;
pub mod cancel;
pub mod choice;
pub mod client_name;
pub mod clock;
pub mod fence;
pub mod identity;
pub mod job;
pub mod limits;
pub mod message_id;
pub mod proxy;
pub mod retry;
pub mod secret;
pub mod signals;
pub mod suggest;
pub mod threads;
pub mod units;
pub mod user_file;
