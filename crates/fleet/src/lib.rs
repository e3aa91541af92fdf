//! Replication of servers: jobs that each copy the boot volume of one server and that any worker may
//! continue, the queue of such jobs, and the worker that takes jobs from the queue.

pub mod queue;
pub mod replicate;
pub mod worker;
