//! Replication of a server's boot volume into another region's image library, as one job that can stop at any
//! point and be resumed on any server.
//!
//! ```text
//! resolve ─▶ preflight ─▶ snapshot ─▶ stable ─▶ clone ─▶ volume ─▶ attach ─▶ convert
//!         ─▶ release ─▶ import ─▶ available ─▶ promote ─▶ mark ─▶ prune
//! ```
//!
//! | file | responsibility |
//! |---|---|
//! | `job` | the description of a job |
//! | `names` | the names of everything, which follow from the job alone |
//! | `saga` | the order of steps, the journal, the cleanup after a failed step |
//! | `steps/` | the do and undo of each step |
//! | `state`, `journal` | the knowledge of a job, and the file that keeps it |
//! | `base` | the choice of the earlier image that a job's image takes unchanged parts from |
//! | `transfer` | the device into the bucket, and the proof, on threads |
//! | `status` | the check if a job that is taken up again still has work to do |
//! | `snapshot_hold`, `snapshot_tags` | the holder of a job, and the tags of its snapshot |
//! | `server_locks` | one attach or detach at a time for each server |
//! | `holdings`, `retention` | the things that earlier runs have left, and the decision which of them stay |
//! | `gc`, `catchup` | the leftovers of dead jobs, and the things that they did not prune |
//! | `forecast` | the expected duration of a job, and its bottlenecks |
//! | `device` | the path of an attached volume, and the proof that it is the right one |
//! | `context` | everything that a job needs from outside |
//!
//! The journal is a hint and the cloud is the truth: each step looks for its result by name, takes an
//! existing one over, and makes one only if there is none. So a job can be resumed from its id alone.

mod base;
pub mod catchup;
pub mod context;
pub mod device;
pub mod error;
pub mod forecast;
pub mod gc;
pub mod holdings;
pub mod job;
pub mod journal;
pub mod names;
pub mod retention;
pub mod saga;
pub mod server_locks;
pub mod snapshot_hold;
pub mod snapshot_tags;
pub mod state;
mod status;
pub mod steps;
pub mod transfer;

#[cfg(test)]
mod testing;

pub use context::{JobContext, OwnServer, Waits};
pub use error::{Fault, JobError, Obstacle, OrphanedResource, ResourceKind, Resumable};
pub use job::{BaseRule, BucketOptions, Encoding, Goal, JobSpec, Origin, Restore, SnapshotFate, log_span};
pub use journal::{Entry, Event, FileJournal, Journal, JournalError, JournalFolder};
pub use names::{JobNames, JobNamesError};
pub use retention::{Age, Keep, Newest, Retention};
pub use saga::{Finished, Over, Progress, ProgressObserver, Saga, Taken};
pub use server_locks::ServerLocks;
pub use snapshot_hold::SnapshotHold;
pub use state::JobState;
pub use steps::Step;
