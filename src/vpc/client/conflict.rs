//! Changes that meet a conflict. IBM answers 409 while a server, a volume or an image is busy with another change, and also where a change
//! can't be made at all; the codes are not published. So the thing itself is looked at: it is as was asked already, it is in a state that
//! forbids the change for good, or the change is asked for again, at growing intervals up to a deadline.

use std::sync::{Mutex, PoisonError};

use crate::vpc::error::VpcError;
use crate::vpc::http::Line;
use crate::vpc::wait::{Patience, Sighting, Verdict, Waiting};

/// What a look at the thing says of a change that met a conflict.
pub(super) enum Conflict<T> {
    /// It is as was asked, by us or by somebody else.
    AsAsked(T),
    /// Nothing speaks against the change: something else is at it.
    Passing,
    /// It is not going to be let, however long one waits.
    Final,
}

impl<T> Conflict<T> {
    /// Where a look finds what was asked for, or not yet.
    pub fn unless(done: Option<T>) -> Self {
        done.map_or(Self::Passing, Self::AsAsked)
    }
}

impl Line {
    pub(super) fn waiting(&self, what: String, patience: Patience) -> Waiting<'_> {
        let patience = self.policy.waits.of(patience);
        Waiting { what, patience, clock: &*self.clock, cancel: &self.cancel, watch: &*self.watch }
    }

    /// Makes a change by `attempt`; after each conflict `look` decides what becomes of it. `what` is busy, in words for people.
    ///
    /// # Errors
    /// [`VpcError::Busy`] at the deadline, and those of `attempt` and `look`.
    pub(super) async fn change<T>(
        &self,
        what: &str,
        patience: Patience,
        attempt: impl AsyncFn() -> Result<T, VpcError>,
        look: impl AsyncFn() -> Result<Conflict<T>, VpcError>,
    ) -> Result<T, VpcError> {
        let met = Mutex::new(None);
        let waiting = self.waiting(what.to_owned(), patience);
        let ended = waiting
            .until(async || {
                let reached =
                    |seen| Ok(Sighting { seen, verdict: Verdict::Reached, state: "changed".to_owned(), reasons: Vec::new() });
                let (request, refusal) = match attempt().await {
                    Err(VpcError::Refused { request, refusal }) if refusal.is_conflict() => (request, refusal),
                    ended => return reached(ended),
                };
                match look().await {
                    Err(err) => reached(Err(err)),
                    Ok(Conflict::AsAsked(thing)) => reached(Ok(thing)),
                    Ok(Conflict::Final) => reached(Err(VpcError::Refused { request, refusal })),
                    Ok(Conflict::Passing) => {
                        let reasons = vec![refusal.to_string()];
                        *met.lock().unwrap_or_else(PoisonError::into_inner) = Some((request.clone(), refusal.clone()));
                        let seen = Err(VpcError::Refused { request, refusal });
                        Ok(Sighting { seen, verdict: Verdict::Underway, state: "busy".to_owned(), reasons })
                    }
                }
            })
            .await;
        match (ended, met.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Ok(seen), _) => seen,
            (Err(VpcError::Overdue { what, waited, .. }), Some((request, refusal))) => {
                Err(VpcError::Busy { what, waited, request, refusal })
            }
            (Err(err), _) => Err(err),
        }
    }
}

impl VpcError {
    /// Whether the API took the request for one that makes no sense as things are.
    pub(super) fn is_bad_request(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.status == 400)
    }

    /// Whether it may be about something that is busy.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.is_conflict())
    }
}
