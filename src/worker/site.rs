//! Where a job is worked on: this server, both regions, the bucket, and the word to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::store::ObjectStore;
use crate::vpc::device::DeviceFolder;
use crate::vpc::{InstanceId, Patience, RegionClient, Tagging};

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

/// How often the cloud is asked, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Asked so often from the start, in place of growing intervals of 2 to 10 s.
    pub every: Option<Duration>,
    /// Given up after so long, in place of each wait's own deadline.
    pub at_most: Option<Duration>,
}

impl Waits {
    /// `patience` with what the user wants otherwise.
    #[must_use]
    pub fn of(self, patience: Patience) -> Patience {
        let asked = match self.every {
            Some(every) => Patience { first: every, longest: every, ..patience },
            None => patience,
        };
        match self.at_most {
            Some(deadline) => asked.within(deadline),
            None => asked,
        }
    }
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
}
