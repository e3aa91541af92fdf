//! S3 store and cloud in this process, each kept in a folder, for demonstrations, tests and benches.
//!
//! The store is strict where real stores differ: it checks every digest that a request has, enforces every
//! rule of multipart uploads, and shows nothing before it is whole. It fails on command: see [`Faults`].
//!
//! ```text
//! socket ─▶ server (TCP, TLS) ─▶ front (log, fault script, IAM and bearer tokens)
//!        ─▶ s3s (SigV4, XML) ─▶ store ─▶ folder, uploads
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `server`, `listener` | the store as a whole; sockets, TLS, connections |
//! | `front` | steps before and after S3 handles a request |
//! | `requests`, `faults`, `stats` | operation of a request, scripted faults, counters |
//! | `terms` | names, paths and headers that a store demands |
//! | `script`, `timestamp` | selection of the requests that fail; times as both services keep them |
//! | `iam` | bearer tokens for API keys, as IBM's IAM issues them |
//! | `store` | S3's operations |
//! | `folder`, `uploads` | objects and uploads on disk, and their rules |
//! | `copies` | parts that are copied from another object |
//! | `dto` | conversion between S3's types and those of the folder |
//! | `receive`, `digests` | bodies and digests |
//! | `region/` | the cloud beside it: VPC regions, IAM, metadata service, tagging |
//!
//! Not for data that matters: the store never syncs to disk, and one key may do everything.

mod copies;
mod digests;
mod dto;
mod faults;
mod folder;
mod front;
mod iam;
mod listener;
mod receive;
mod region;
mod requests;
mod script;
mod server;
mod stats;
mod store;
mod terms;
mod timestamp;
mod uploads;

pub use faults::{Action, Faults, Rule};
pub use region::{
    Delays, HistoryEntry, RegionAction, RegionConfig, RegionFaults, RegionOperation, RegionRule, ServerSeed,
    SimRegion,
};
pub use requests::Operation;
pub use script::When;
pub use server::{SimConfig, SimError, SimStore, TlsFiles, UnsignedPayload};
pub use stats::{Count, LOGGED_HEADERS, LoggedRequest, Stats};
pub use terms::{Names, RequiredHeader};
