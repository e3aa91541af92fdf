//! A server's boot volume into another region's image library, as one job that may be broken off anywhere and taken up anywhere.
//!
//! ```text
//! resolve ─▶ preflight ─▶ snapshot ─▶ stable ─▶ clone ─▶ volume ─▶ attach ─▶ convert ─▶ release ─▶ import ─▶ available ─▶ promote ─▶ mark ─▶ prune
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `job` | what is to be done |
//! | `names` | what everything is called, which follows from the job alone |
//! | `saga` | the order of steps, the journal beside them, what is cleaned up when one fails |
//! | `steps/` | each step's do and undo |
//! | `state`, `journal` | what is known, and where it is kept |
//! | `transfer` | the device into the bucket, and the proof, on threads |
//! | `standing` | whether a job that is taken up again is still to be done |
//! | `hold`, `marks` | who works on a job, and what its snapshot tells others in tags |
//! | `turns` | one attach or detach at a time for each server |
//! | `holdings`, `retention` | what there is of earlier runs; what of it stays |
//! | `gc`, `catchup` | what dead jobs have left; what they did not come to prune |
//! | `forecast` | how long a job will take, and what limits it |
//! | `device` | the path of an attached volume, and the proof that it is the one |
//! | `site` | what a job needs from outside |
//!
//! The journal is a hint and the cloud is the truth: each step looks for what it would make by its name, takes that over, and makes it
//! only where there is none. So a job can be resumed from its id alone.

pub mod catchup;
pub mod device;
pub mod error;
pub mod forecast;
pub mod gc;
pub mod hold;
pub mod holdings;
pub mod job;
pub mod journal;
pub mod marks;
pub mod names;
pub mod retention;
pub mod saga;
pub mod site;
mod standing;
pub mod state;
pub mod steps;
pub mod transfer;
pub mod turns;

#[cfg(test)]
mod testing;

pub use error::{Fault, JobError, Left, Obstacle, Resumable};
pub use hold::Hold;
pub use job::{Encoding, Goal, Job, Origin, Restore, SnapshotFate};
pub use journal::{Entry, Event, FileJournal, Journal, JournalError, JournalFolder};
pub use names::{JobNames, JobNamesError};
pub use retention::{Age, Keep, Newest, Retention};
pub use saga::{Finished, Onlooker, Over, Progress, Saga, Taken};
pub use site::{OwnServer, Site, Waits};
pub use state::State;
pub use steps::Step;
pub use turns::Turns;
