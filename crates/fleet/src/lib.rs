//! Replicating servers: one server's boot volume as a job that may be taken up anywhere, the queue of such jobs, and the worker that takes
//! them from it.

pub mod queue;
pub mod replicate;
pub mod worker;
