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
    pub kind: &'static str,
    pub name: &'a ResourceName,
    pub call: ApiRequest,
    /// Wait for a resource that is busy.
    pub patience: Patience,
}

/// Compares one field; a difference is described as text.
pub(super) fn differs(field: &str, requested: &str, found: Option<&str>) -> Difference {
    (found != Some(requested))
        .then(|| format!("with {field} {:?} in place of {requested:?}", found.unwrap_or("none")))
}

impl RegionClient {
    /// Creates the resource, or adopts an existing one of the same name that matches the request.
    pub(super) async fn create<T, F>(
        &self,
        creation: &Creation<'_>,
        find: impl Fn() -> F,
        id_of: impl Fn(&T) -> &str,
        differs: impl Fn(&T) -> Difference,
    ) -> Result<T, VpcError>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<Option<T>, VpcError>>,
    {
        self.create_unless(creation, find, id_of, differs, async || Ok(false)).await
    }

    /// Like `create`. After a conflict although no resource has the name, it fails if `forbidden` returns
    /// true because of a permanent obstacle, and otherwise waits and tries again.
    pub(super) async fn create_unless<T, F>(
        &self,
        creation: &Creation<'_>,
        find: impl Fn() -> F,
        id_of: impl Fn(&T) -> &str,
        differs: impl Fn(&T) -> Difference,
        forbidden: impl AsyncFn() -> Result<bool, VpcError>,
    ) -> Result<T, VpcError>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<Option<T>, VpcError>>,
    {
        let Creation { kind, name, call, patience } = creation;
        let (started, mut conflicts) = (self.clock().instant(), 0);
        let adopt = |found: T| match differs(&found) {
            None => {
                tracing::info!("{kind} {name} is there already, as {}", id_of(&found));
                Ok(found)
            }
            Some(difference) => Err(VpcError::NameTaken {
                kind,
                name: name.as_str().to_owned(),
                id: id_of(&found).to_owned(),
                difference,
            }),
        };
        let mut next = 1;
        let mut lost = false;
        loop {
            let sent = self.client.send(call).await;
            let err = match sent.and_then(|response| response.read()) {
                Ok(created) => return Ok(created),
                Err(err) => err,
            };
            if err.is_ambiguous() {
                lost = true;
                if let Some(found) = find().await? {
                    return adopt(found);
                }
                next += 1;
                let Some(wait) = self.client.policy.backoff.wait_before(next) else { return Err(err) };
                tracing::warn!(
                    attempt = next,
                    "{kind} {name} may or may not have been made, and does not show: {}",
                    chain(&err)
                );
                self.client.pause(&format!("{kind} {name}"), wait).await?;
                // A resource that has appeared meanwhile was created by the lost request.
                if let Some(found) = find().await? {
                    return adopt(found);
                }
            } else if may_be_a_taken_name(&err) {
                // If the lost request created it and the list lags behind, it appears after a while.
                let found = if lost {
                    self.find_until_listed(&format!("{kind} {name}"), &find).await?
                } else {
                    find().await?
                };
                if let Some(found) = found {
                    return adopt(found);
                }
                if !err.is_conflict() || forbidden().await? {
                    return Err(err);
                }
                // No resource has the name, so a resource that the new one depends on is busy.
                conflicts += 1;
                self.wait_after_conflict(
                    &format!("what {kind} {name} is made of or for"),
                    *patience,
                    started,
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
    async fn wait_after_conflict(
        &self,
        subject: &str,
        patience: Patience,
        started: Instant,
        conflicts: u32,
        err: VpcError,
    ) -> Result<(), VpcError> {
        let VpcError::Refused { request, refusal } = err else { return Err(err) };
        let waiting = self.client.waiting(subject.to_owned(), patience);
        let busy = ("busy".to_owned(), vec![refusal.to_string()]);
        if conflicts == 1 {
            waiting.watch.waiting(subject, &busy.0, &busy.1);
        }
        match waiting.pause(started, conflicts, &busy).await {
            Err(VpcError::Overdue { subject, waited, .. }) => {
                Err(VpcError::Busy { subject, waited, request, refusal })
            }
            paused => paused,
        }
    }

    /// Repeats `find` until it finds the resource, for as long as a list may lag behind.
    async fn find_until_listed<T, F>(
        &self,
        subject: &str,
        find: impl Fn() -> F,
    ) -> Result<Option<T>, VpcError>
    where
        F: Future<Output = Result<Option<T>, VpcError>>,
    {
        let policy = self.client.policy;
        let started = self.clock().instant();
        let mut next = 1;
        loop {
            let found = find().await?;
            if found.is_some() || self.clock().instant().duration_since(started) >= policy.list_lag {
                return Ok(found);
            }
            next = policy.backoff.attempts.min(next + 1);
            self.client
                .pause(subject, policy.backoff.wait_before(next).unwrap_or(policy.backoff.longest))
                .await?;
        }
    }
}

/// Returns true if the error may be about a name that is taken. The codes for it are not documented and have
/// changed, so the caller has to look the name up.
fn may_be_a_taken_name(err: &VpcError) -> bool {
    matches!(err, VpcError::Refused { refusal, .. } if refusal.status == 400 || refusal.is_conflict())
}
