//! Steps of a job, with a do and an undo for each. Both look at the cloud first, and may run any number of
//! times.
//!
//! | step | it makes | found again by | undo |
//! |---|---|---|---|
//! | resolve | - | the server's name | - |
//! | preflight | - | - | - |
//! | snapshot, stable | the snapshot | name, source volume | delete it, unless it was there before |
//! | clone | a fast-restore clone | the snapshot, the zone | delete it |
//! | volume | the volume | name, snapshot, zone | detach, delete |
//! | attach | the attachment | name, volume | detach |
//! | convert | the object and its manifest | key, the manifest's sums | abort the upload, delete both |
//! | release | - | - | -: it is the undo of attach, volume and clone |
//! | import, available | the image | name, the job's tag | delete it, unless it is the latest |
//! | promote | two new names | the images' ids | give the old image its name back |
//! | mark | a tag on the snapshot | the tag | - |
//! | prune | - | - | - |

use std::fmt;

use serde::{Deserialize, Serialize};

use super::context::JobContext;
use super::error::Fault;
use super::job::JobSpec;
use super::journal::{Entry, Journal, JournalError};
use super::saga::{Progress, ProgressObserver, Run};
use super::state::{DiskState, JobState};

mod attach;
mod clone;
pub(super) mod convert;
pub(super) mod import;
pub(super) mod preflight;
pub(super) mod promote;
mod prune;
mod release;
mod resolve;
mod snapshot;
mod volume;

/// Step of a job. The variants are in the order in which the steps run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Finds the server and its boot volume.
    Resolve,
    /// Looks for conditions that would stop the job later.
    Preflight,
    /// Takes the snapshot of the boot volume.
    Snapshot,
    /// Waits until the snapshot is complete.
    Stable,
    /// Clones the snapshot for a fast restore.
    Clone,
    /// Makes a volume from the snapshot.
    Volume,
    /// Attaches the volume, and finds its device.
    Attach,
    /// Sends the volume into the bucket as an image, and reads the image back.
    Convert,
    /// Detaches and deletes the volume.
    Release,
    /// Requests the import of the image.
    Import,
    /// Waits until the image is available, and proves that it was made of the file that was sent.
    Available,
    /// Makes the image the latest.
    Promote,
    /// Marks the snapshot as that of a job that is done.
    Mark,
    /// Removes the things that retention does not keep.
    Prune,
}

impl Step {
    /// All steps in the order in which they run.
    pub const ALL: [Self; 14] = [
        Self::Resolve,
        Self::Preflight,
        Self::Snapshot,
        Self::Stable,
        Self::Clone,
        Self::Volume,
        Self::Attach,
        Self::Convert,
        Self::Release,
        Self::Import,
        Self::Available,
        Self::Promote,
        Self::Mark,
        Self::Prune,
    ];

    /// True if the step is not needed once the object is in the bucket.
    pub(super) fn is_for_the_object(self) -> bool {
        (Self::Resolve..=Self::Convert).contains(&self)
    }

    /// True if the step works on the image in the library.
    pub(super) fn is_for_the_image(self) -> bool {
        (Self::Import..=Self::Promote).contains(&self)
    }

    /// Returns the name of the step, as reports show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Preflight => "preflight",
            Self::Snapshot => "snapshot",
            Self::Stable => "stable",
            Self::Clone => "clone",
            Self::Volume => "volume",
            Self::Attach => "attach",
            Self::Convert => "convert",
            Self::Release => "release",
            Self::Import => "import",
            Self::Available => "available",
            Self::Promote => "promote",
            Self::Mark => "mark",
            Self::Prune => "prune",
        }
    }

    /// Takes the step. Returns its result, as text for the user.
    pub(super) async fn run(self, run: &mut Run<'_>) -> Result<String, Fault> {
        match self {
            Self::Resolve => resolve::run(run).await,
            Self::Preflight => preflight::run(run).await,
            Self::Snapshot => snapshot::run(run).await,
            Self::Stable => snapshot::stable(run).await,
            Self::Clone => clone::run(run).await,
            Self::Volume => volume::run(run).await,
            Self::Attach => attach::run(run).await,
            Self::Convert => convert::run(run).await,
            Self::Release => release::run(run).await,
            Self::Import => import::run(run).await,
            Self::Available => import::available(run).await,
            Self::Promote => promote::run(run).await,
            Self::Mark => snapshot::mark(run).await,
            Self::Prune => prune::run(run).await,
        }
    }

    /// Undoes the step: removes everything that it makes. Succeeds if there is nothing to remove.
    pub(super) async fn undo(self, run: &mut Run<'_>) -> Result<(), Fault> {
        match self {
            Self::Snapshot => snapshot::undo(run).await,
            Self::Clone => clone::undo(run).await,
            Self::Volume => volume::undo(run).await,
            Self::Attach => attach::undo(run).await,
            Self::Convert => convert::undo(run).await,
            Self::Import => import::undo(run).await,
            Self::Promote => promote::undo(run).await,
            Self::Resolve
            | Self::Preflight
            | Self::Stable
            | Self::Release
            | Self::Available
            | Self::Mark
            | Self::Prune => Ok(()),
        }
    }
}

/// Result of a dry run: the disk that a job would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub disk: DiskState,
    /// Profile of the volume that would be read.
    pub profile: String,
}

impl Look {
    /// Takes the steps that change nothing: `resolve` and `preflight`.
    ///
    /// # Errors
    /// If a condition would stop the job, or a request fails.
    pub async fn at(job: &JobSpec, context: &JobContext) -> Result<Self, Fault> {
        let mut run = Run::new(job, context, JobState::default(), &Nowhere, &Nowhere)?;
        resolve::run(&mut run).await?;
        preflight::run(&mut run).await?;
        let disk = run.state.disk.ok_or(Fault::OutOfTurn { step: Step::Preflight })?;
        let (profile, _) = preflight::profile(&disk, job.volume_profile.as_deref());
        Ok(Self { disk, profile })
    }
}

/// Journal that keeps nothing, and observer that shows nothing.
struct Nowhere;

#[async_trait::async_trait]
impl Journal for Nowhere {
    async fn record(&self, _entry: &Entry) -> Result<(), JournalError> {
        Ok(())
    }
}

impl ProgressObserver for Nowhere {
    fn on_progress(&self, _progress: Progress<'_>) {}
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
