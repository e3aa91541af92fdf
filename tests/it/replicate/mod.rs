//! A server replicated by the real program on the simulated cloud: as a user runs it, killed at every point,
//! and under every fault.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `commands` | replicate, plan and gc: output, JSON, exit codes |
//! | `crashes` | killed at every change it makes, and resumed on the same or another server |
//! | `faults` | every call under every fault |
//! | `conflicts` | every change while its resource is busy |
//! | `nights` | a second night, which copies what did not change from the first one's image |
//! | `night_faults` | the calls of such a night under every fault; its base removed or replaced |
//! | `other_server` | jobs that were finished, or are under way, on another server |

mod commands;
mod conflicts;
pub mod crashes;
mod faults;
mod night_faults;
mod nights;
mod other_server;
