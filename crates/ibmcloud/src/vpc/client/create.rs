//! Creation of resources whose name is the key: never two resources of one name, even if responses are lost.
//!
//! The API has no idempotency keys, but names are unique. So after a response that leaves the outcome open,
//! the client looks the name up: it adopts a resource with that name that matches the request, and sends the
//! request again only if there is none. A list may lag behind: then the API refuses the second request
//! because of the name, and the client repeats the look-up until the resource appears. A conflict although no
//! resource has the name is about another resource that is busy, and the client waits for it.

use std::future::Future;
use std::time::Instant;

use serde::de::DeserializeOwned;
use snapferry_base::retry::chain;

use super::RegionClient;
use crate::vpc::error::VpcError;
use crate::vpc::http::ApiRequest;
use crate::vpc::names::ResourceName;
use crate::vpc::wait::Patience;

/// Difference between an existing resource and the requested one; none if they match.
pub(super) type Difference = Option<String>;

/// Request for a new resource.
pub(super) struct Creation<'a> {
    /// Kind of resource for messages, such as `snapshot`.
    pub noun: &'static str,
    pub name: &'a ResourceName,
    pub call: ApiRequest,
    /// Wait for a resource that is busy.
    pub patience: Patience,
}

/// Compares one field; a difference is described as text.
pub(super) fn differs(field: &str, wanted: &str, found: Option<&str>) -> Difference {
    (found != Some(wanted))
        .then(|| format!("with {field} {:?} in place of {wanted:?}", found.unwrap_or("none")))
}

impl RegionClient {
    /// Creates the resource, or adopts an existing one of the same name that matches the request.
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

    /// Like `create`. After a conflict although no resource has the name, it fails if `forbidden` returns
    /// true because of a permanent obstacle, and otherwise waits and tries again.
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
            Some(why) => Err(VpcError::NameTaken {
                noun,
                name: name.as_str().to_owned(),
                id: id_of(&found).to_owned(),
                why,
            }),
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
                tracing::warn!(
                    attempt = next,
                    "{noun} {name} may or may not have been made, and does not show: {}",
                    chain(&err)
                );
                self.line.pause(&format!("{noun} {name}"), wait).await?;
                // A resource that has appeared meanwhile was created by the lost request.
                if let Some(found) = look().await? {
                    return adopt(found);
                }
            } else if may_be_a_taken_name(&err) {
                // If the lost request created it and the list lags behind, it appears after a while.
                let found = if lost {
                    self.look_for(&format!("{noun} {name}"), &look).await?
                } else {
                    look().await?
                };
                if let Some(found) = found {
                    return adopt(found);
                }
                if !err.is_conflict() || forbidden().await? {
                    return Err(err);
                }
                // No resource has the name, so a resource that the new one depends on is busy.
                conflicts += 1;
                self.stand_off(
                    &format!("what {noun} {name} is made of or for"),
                    *patience,
                    begun,
                    conflicts,
                    err,
                )
                .await?;
            } else {
                return Err(err);
            }
        }
    }

    /// Waits after a conflict; returns the conflict as an error once the deadline has passed.
    async fn stand_off(
        &self,
        what: &str,
        patience: Patience,
        begun: Instant,
        asked: u32,
        err: VpcError,
    ) -> Result<(), VpcError> {
        let VpcError::Refused { request, refusal } = err else { return Err(err) };
        let waiting = self.line.waiting(what.to_owned(), patience);
        let busy = ("busy".to_owned(), vec![refusal.to_string()]);
        if asked == 1 {
            waiting.watch.waiting(what, &busy.0, &busy.1);
        }
        match waiting.pause(begun, asked, &busy).await {
            Err(VpcError::Overdue { what, waited, .. }) => {
                Err(VpcError::Busy { what, waited, request, refusal })
            }
            paused => paused,
        }
    }

    /// Repeats `look` until it finds the resource, for as long as a list may lag behind.
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

/// Returns true if the error may be about a name that is taken. The codes for it are not documented and have
/// changed, so the caller has to look the name up.
fn may_be_a_taken_name(err: &VpcError) -> bool {
    matches!(err, VpcError::Refused { refusal, .. } if refusal.status == 400 || refusal.is_conflict())
}
