//! Environment of a job: this server, both regions, the bucket, and the cancellation.

use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_engine::store::ObjectStore;
pub use snapferry_ibmcloud::vpc::Waits;
use snapferry_ibmcloud::vpc::{InstanceId, RegionClient, Tagging};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::server_locks::ServerLocks;
use super::snapshot_hold::SnapshotHold;
use crate::replicate::device::DeviceFolder;

/// Server that this process runs on, to which volumes are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnServer {
    pub id: InstanceId,
    /// Name of the server, for journals and logs.
    pub name: String,
    /// Zone of the server: only volumes of the same zone can be attached.
    pub zone: String,
    /// Region of the server.
    pub region: String,
}

/// Everything that a job needs from outside. All parts obey the same `cancel`.
pub struct JobContext {
    /// Server that this process runs on.
    pub own: OwnServer,
    /// Client for the replicated server's region.
    pub home: RegionClient,
    /// Client for the recovery region.
    pub away: RegionClient,
    /// Client for the tags of images.
    pub tagging: Tagging,
    /// Bucket for the object.
    pub store: Arc<dyn ObjectStore>,
    /// Folder in which attached volumes appear.
    pub devices: DeviceFolder,
    pub clock: Arc<dyn Clock>,
    /// Request to stop the job.
    pub cancel: Cancel,
    /// Limit on the volumes that exist and are read at a time, shared by all jobs of a process.
    pub volume_permits: Arc<Semaphore>,
    /// Runtime that runs the requests of the conversion's threads.
    pub runtime: Handle,
    /// The user's settings for polling intervals and deadlines.
    pub waits: Waits,
    /// Hold on the job, by which a process that takes it over is recognised.
    pub hold: Arc<SnapshotHold>,
    /// Locks to attach to a server, and to detach from it.
    pub server_locks: ServerLocks,
}
