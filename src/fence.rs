//! Asked before anything is changed anywhere: whether it is still ours to change.

use async_trait::async_trait;

/// It is not, or nobody can tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing was changed, since it is no longer ours to change: {0}")]
pub struct Fenced(pub String);

/// Whoever knows.
#[async_trait]
pub trait Fence: Send + Sync {
    /// Returns where the change may be made, at once.
    ///
    /// # Errors
    /// Where it must not be.
    async fn pass(&self) -> Result<(), Fenced>;

    /// The same before what can't be taken back: an answer of a moment ago does not do.
    ///
    /// # Errors
    /// As for [`Fence::pass`].
    async fn pass_surely(&self) -> Result<(), Fenced> {
        self.pass().await
    }
}

/// For a process that shares its work with nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unfenced;

#[async_trait]
impl Fence for Unfenced {
    async fn pass(&self) -> Result<(), Fenced> {
        Ok(())
    }
}
