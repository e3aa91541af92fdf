//! Check before a change that this process still owns the job.

use async_trait::async_trait;

/// Error of a change that was not made: this process no longer owns the job, or that can't be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing was changed, since it is no longer ours to change: {0}")]
pub struct Fenced(pub String);

/// Check that this process still owns the job and may make changes.
#[async_trait]
pub trait Fence: Send + Sync {
    /// Checks the ownership. It may rely on the result of a recent check.
    ///
    /// # Errors
    /// If this process must not make the change.
    async fn pass(&self) -> Result<(), Fenced>;

    /// Checks the ownership anew, without relying on a recent check. Used before a change that can't be
    /// undone.
    ///
    /// # Errors
    /// As for [`Fence::pass`].
    async fn pass_uncached(&self) -> Result<(), Fenced> {
        self.pass().await
    }
}

/// Fence that always passes, for a process that shares its work with no other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unfenced;

#[async_trait]
impl Fence for Unfenced {
    async fn pass(&self) -> Result<(), Fenced> {
        Ok(())
    }
}
