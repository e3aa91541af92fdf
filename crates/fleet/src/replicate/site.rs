//! Where a job is worked on: this server, both regions, the bucket, and the word to stop.

use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_engine::store::ObjectStore;
pub use snapferry_ibmcloud::vpc::Waits;
use snapferry_ibmcloud::vpc::{InstanceId, RegionClient, Tagging};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::hold::Hold;
use super::turns::Turns;
use crate::replicate::device::DeviceFolder;

/// The server that we run on, to which volumes are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnServer {
    /// Its id.
    pub id: InstanceId,
    /// Its name, for journals and logs.
    pub name: String,
    /// Its zone: volumes can be attached within it only.
    pub zone: String,
    /// Its region.
    pub region: String,
}

/// Everything that a job needs from outside. All of it heeds the same word to stop.
pub struct Site {
    /// Where we run.
    pub own: OwnServer,
    /// The server's region.
    pub home: RegionClient,
    /// The recovery region.
    pub away: RegionClient,
    /// Tags for images.
    pub tagging: Tagging,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// Where attached volumes turn up.
    pub devices: DeviceFolder,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The word to stop.
    pub cancel: Cancel,
    /// Shared by all jobs of a process: who may have a volume at a time, and read it.
    pub turn: Arc<Semaphore>,
    /// Runs requests for the conversion's threads.
    pub runtime: Handle,
    /// How often and how long.
    pub waits: Waits,
    /// The hold on the job, by which whoever takes it over is known.
    pub hold: Arc<Hold>,
    /// Who may attach to a server, and detach from it.
    pub turns: Turns,
}
