//! An S3 store and a cloud in this process, each over a folder, for demonstrations, tests and benches.
//!
//! The store is strict where real stores differ: every digest that a request carries is checked, every rule of multipart uploads
//! enforced, nothing visible before it is whole. And it fails on command: see [`Faults`].
//!
//! ```text
//! socket ─▶ server (TCP, TLS) ─▶ front (log, script of faults, IAM and bearer tokens) ─▶ s3s (SigV4, XML) ─▶ store ─▶ folder, uploads
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `server`, `listener` | the store as a whole; sockets, TLS, connections |
//! | `front` | what happens to a request before and after S3 sees it |
//! | `requests`, `faults`, `stats` | telling requests apart, scripted faults, counters |
//! | `script`, `moment` | whose turn it is to go wrong; times as both services keep them |
//! | `iam` | API keys to bearer tokens, as IBM's IAM does it |
//! | `store` | S3's operations |
//! | `folder`, `uploads` | objects and uploads on disk, and their rules |
//! | `shapes` | S3's words for requests and answers, and the folder's |
//! | `receive`, `checks` | bodies and digests |
//! | `region/` | the cloud beside it: VPC regions, IAM, metadata service, tagging |
//!
//! It is no place for data that matters: it never syncs, and one key may do everything.

mod checks;
mod faults;
mod folder;
mod front;
mod iam;
mod listener;
mod moment;
mod receive;
mod region;
mod requests;
mod script;
mod server;
mod shapes;
mod stats;
mod store;
mod uploads;

pub use faults::{Action, Faults, Rule};
pub use region::{
    Deed, Delays, RegionAction, RegionConfig, RegionFaults, RegionOperation, RegionRule, ServerSeed,
    SimRegion,
};
pub use requests::Operation;
pub use script::When;
pub use server::{SimConfig, SimError, SimStore, TlsFiles, UnsignedPayload};
pub use stats::{Count, LoggedRequest, Stats};
