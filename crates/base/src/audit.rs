//! Audit trail: one log line, under a target of its own, for each change that a request has made in a cloud
//! or a bucket, or may have made.
//!
//! A request whose response never came may have made its change all the same. So a change has a line unless
//! its refusal is certain: [`SentChange`] is made before the request is sent, and logs an unknown outcome if
//! it is dropped before the outcome is noted, as by a deadline, a signal or a broken connection.

use std::fmt::Display;

use tracing::field::display;

/// Log target of the audit trail.
pub const CHANGES: &str = "snapferry::changes";

/// Request for a change, from the moment in which it is sent.
#[derive(Debug)]
#[must_use = "dropped at once, it logs an unknown outcome"]
pub struct SentChange<R: Display> {
    /// Method and target of the request, for the line.
    request: R,
    /// Id that the client has given the request.
    id: Option<String>,
    is_settled: bool,
}

impl<R: Display> SentChange<R> {
    /// Begins a line for a request that is about to be sent. `id` is the id that the client gives it, if the
    /// service takes one.
    pub fn new(request: R, id: Option<String>) -> Self {
        Self { request, id, is_settled: false }
    }

    /// Notes that the change is made. `status` is the HTTP status of the response, if it is known, and
    /// `service_id` the id that the service has given the request.
    pub fn done(mut self, status: Option<u16>, service_id: Option<&str>) {
        self.is_settled = true;
        let request_id = self.id.as_deref().or(service_id).map(display);
        tracing::info!(target: CHANGES, request_id, status, outcome = %"done", "{}", self.request);
    }

    /// Notes that the change was certainly not made: the service has refused it, or never received it.
    pub fn not_made(mut self) {
        self.is_settled = true;
    }
}

impl<R: Display> Drop for SentChange<R> {
    fn drop(&mut self) {
        if !self.is_settled {
            let request_id = self.id.as_deref().map(display);
            tracing::info!(target: CHANGES, request_id, outcome = %"unknown", "{}", self.request);
        }
    }
}
