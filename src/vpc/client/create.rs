//! Making things whose name is the key: never two of them, whatever becomes of the answers.
//!
//! The API has no idempotency keys, but names are unique. So after an answer that leaves open whether the thing was made, its name
//! is looked up: what is there and is what we asked for is ours, and only where there is nothing the request is sent again. A list may
//! lag behind: then the second request is refused because of the name, and the look is repeated until the thing shows. A conflict while
//! nothing has the name is about something that is busy, and is waited out.

use std::future::Future;
use std::time::Instant;

use serde::de::DeserializeOwned;

use super::RegionClient;
use crate::retry::chain;
use crate::vpc::error::VpcError;
use crate::vpc::http::Call;
use crate::vpc::names::ResourceName;
use crate::vpc::wait::Patience;

/// How a thing that is there already differs from the one asked for; none where it is the same.
pub(super) type Difference = Option<String>;

/// What is to be made.
pub(super) struct Creation<'a> {
    /// What it is, for messages.
    pub noun: &'static str,
    /// Its name.
    pub name: &'a ResourceName,
    /// The request.
    pub call: Call,
    /// How long something that is busy is waited for.
    pub patience: Patience,
}

/// `field` compared, in words.
pub(super) fn differs(field: &str, wanted: &str, found: Option<&str>) -> Difference {
    (found != Some(wanted)).then(|| format!("with {field} {:?} in place of {wanted:?}", found.unwrap_or("none")))
}

impl RegionClient {
    /// Makes it, or adopts the one of the same name that is what we asked for.
    pub(super) async fn create<T, F>(
        &self,
        creation: &Creation<'_>,
        look: impl Fn() -> F,
        id_of: impl Fn(&T) -> &str,
        differs: impl Fn(&T) -> Difference,
    ) -> Result<T, VpcError>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<Option<T>, VpcError>>,
    {
        self.create_unless(creation, look, id_of, differs, async || Ok(false)).await
    }

    /// The same; a conflict over no thing of that name is waited out unless `forbidden` finds what stands in the way for good.
    pub(super) async fn create_unless<T, F>(
        &self,
        creation: &Creation<'_>,
        look: impl Fn() -> F,
        id_of: impl Fn(&T) -> &str,
        differs: impl Fn(&T) -> Difference,
        forbidden: impl AsyncFn() -> Result<bool, VpcError>,
    ) -> Result<T, VpcError>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<Option<T>, VpcError>>,
    {
        let Creation { noun, name, call, patience } = creation;
        let (begun, mut conflicts) = (self.clock().instant(), 0);
        let adopt = |found: T| match differs(&found) {
            None => {
                tracing::info!("{noun} {name} is there already, as {}", id_of(&found));
                Ok(found)
            }
            Some(why) => Err(VpcError::NameTaken { noun, name: name.as_str().to_owned(), id: id_of(&found).to_owned(), why }),
        };
        let mut next = 1;
        let mut lost = false;
        loop {
            let sent = self.line.send(call).await;
            let err = match sent.and_then(|answer| answer.read()) {
                Ok(made) => return Ok(made),
                Err(err) => err,
            };
            if err.is_ambiguous() {
                lost = true;
                if let Some(found) = look().await? {
                    return adopt(found);
                }
                next += 1;
                let Some(wait) = self.line.policy.backoff.wait_before(next) else { return Err(err) };
                tracing::warn!(attempt = next, "{noun} {name} may or may not have been made, and does not show: {}", chain(&err));
                self.line.pause(&format!("{noun} {name}"), wait).await?;
                // What came to light meanwhile is ours.
                if let Some(found) = look().await? {
                    return adopt(found);
                }
            } else if may_be_a_taken_name(&err) {
                // Where we have made it ourselves and the list lags behind, it shows in a while.
                let found = if lost { self.look_for(&format!("{noun} {name}"), &look).await? } else { look().await? };
                if let Some(found) = found {
                    return adopt(found);
                }
                if !err.is_conflict() || forbidden().await? {
                    return Err(err);
                }
                // Nobody has the name: what it is made of, or for, is busy.
                conflicts += 1;
                self.stand_off(&format!("what {noun} {name} is made of or for"), *patience, begun, conflicts, err).await?;
            } else {
                return Err(err);
            }
        }
    }

    /// The wait after a conflict, or the error once it is overdue.
    async fn stand_off(&self, what: &str, patience: Patience, begun: Instant, asked: u32, err: VpcError) -> Result<(), VpcError> {
        let VpcError::Refused { request, refusal } = err else { return Err(err) };
        let waiting = self.line.waiting(what.to_owned(), patience);
        let busy = ("busy".to_owned(), vec![refusal.to_string()]);
        if asked == 1 {
            waiting.watch.waiting(what, &busy.0, &busy.1);
        }
        match waiting.pause(begun, asked, &busy).await {
            Err(VpcError::Overdue { what, waited, .. }) => Err(VpcError::Busy { what, waited, request, refusal }),
            paused => paused,
        }
    }

    /// Looks until it shows, for as long as a list may lag behind.
    async fn look_for<T, F>(&self, what: &str, look: impl Fn() -> F) -> Result<Option<T>, VpcError>
    where
        F: Future<Output = Result<Option<T>, VpcError>>,
    {
        let policy = self.line.policy;
        let begun = self.clock().instant();
        let mut next = 1;
        loop {
            let found = look().await?;
            if found.is_some() || self.clock().instant().duration_since(begun) >= policy.list_lag {
                return Ok(found);
            }
            next = policy.backoff.attempts.min(next + 1);
            self.line.pause(what, policy.backoff.wait_before(next).unwrap_or(policy.backoff.longest)).await?;
        }
    }
}

/// The codes for a name that is taken are not documented and have changed; that it is taken shows when it is looked up.
fn may_be_a_taken_name(err: &VpcError) -> bool {
    matches!(err, VpcError::Refused { refusal, .. } if refusal.status == 400 || refusal.is_conflict())
}
