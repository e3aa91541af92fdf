//! Changes that meet a conflict. The API answers 409 while a server, a volume or an image is busy with
//! another change, and also if a change is impossible; the codes are not published. So the client looks at
//! the resource: it is already as requested, its state forbids the change for good, or the change is
//! requested again at growing intervals until a deadline.

use std::sync::{Mutex, PoisonError};

use crate::vpc::error::VpcError;
use crate::vpc::http::HttpClient;
use crate::vpc::wait::{Patience, Sighting, Verdict, Waiting};

/// Result of a look at the resource after a conflict.
pub(super) enum Conflict<T> {
    /// The resource is as requested, changed by this process or another one.
    Done(T),
    /// The state allows the change, but another change is in progress.
    Passing,
    /// The state forbids the change for good.
    Final,
}

impl<T> Conflict<T> {
    /// Returns [`Conflict::Done`] if the look found the requested result, and else [`Conflict::Passing`].
    pub fn unless(done: Option<T>) -> Self {
        done.map_or(Self::Passing, Self::Done)
    }
}

impl HttpClient {
    pub(super) fn waiting(&self, subject: String, patience: Patience) -> Waiting<'_> {
        let patience = self.policy.waits.of(patience);
        Waiting { subject, patience, clock: &*self.clock, cancel: &self.cancel, watch: &*self.watch }
    }

    /// Makes a change by `attempt`; after each conflict, `check` decides how to go on. `subject` is the busy
    /// resource, as text for messages.
    ///
    /// # Errors
    /// [`VpcError::Busy`] at the deadline, and those of `attempt` and `check`.
    pub(super) async fn change<T>(
        &self,
        subject: &str,
        patience: Patience,
        attempt: impl AsyncFn() -> Result<T, VpcError>,
        check: impl AsyncFn() -> Result<Conflict<T>, VpcError>,
    ) -> Result<T, VpcError> {
        let last_refusal = Mutex::new(None);
        let waiting = self.waiting(subject.to_owned(), patience);
        let outcome = waiting
            .until(async || {
                let reached = |resource| {
                    Ok(Sighting {
                        resource,
                        verdict: Verdict::Reached,
                        state: "changed".to_owned(),
                        reasons: Vec::new(),
                    })
                };
                let (request, refusal) = match attempt().await {
                    Err(VpcError::Refused { request, refusal }) if refusal.is_conflict() => {
                        (request, refusal)
                    }
                    outcome => return reached(outcome),
                };
                match check().await {
                    Err(err) => reached(Err(err)),
                    Ok(Conflict::Done(resource)) => reached(Ok(resource)),
                    Ok(Conflict::Final) => reached(Err(VpcError::Refused { request, refusal })),
                    Ok(Conflict::Passing) => {
                        let reasons = vec![refusal.to_string()];
                        *last_refusal.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some((request.clone(), refusal.clone()));
                        let resource = Err(VpcError::Refused { request, refusal });
                        Ok(Sighting {
                            resource,
                            verdict: Verdict::Underway,
                            state: "busy".to_owned(),
                            reasons,
                        })
                    }
                }
            })
            .await;
        match (outcome, last_refusal.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Ok(resource), _) => resource,
            (Err(VpcError::Overdue { subject, waited, .. }), Some((request, refusal))) => {
                Err(VpcError::Busy { subject, waited, request, refusal })
            }
            (Err(err), _) => Err(err),
        }
    }
}

impl VpcError {
    /// Returns true if the API refused the request as wrong for the resource's present state.
    pub(super) fn is_bad_request(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.status == 400)
    }

    /// Returns true if the error may be about a busy resource.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.is_conflict())
    }
}
