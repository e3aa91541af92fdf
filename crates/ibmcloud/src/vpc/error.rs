//! Errors of the cloud's API and client, and their classes for retries.

use std::fmt;
use std::time::Duration;

use snapferry_base::fence::Fenced;
use snapferry_base::identity::IdentityError;
use snapferry_base::proxy::ProxyFault;
use snapferry_base::retry::Class;

use super::refusal::Refusal;

/// Request to the cloud as errors and logs show it, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// HTTP method, such as `GET`.
    pub method: reqwest::Method,
    /// Scheme and host, as in `https://us-south.iaas.cloud.ibm.com`.
    pub host: String,
    /// Path without the query, as in `/v1/snapshots`.
    pub path: String,
    /// Identifier sent with the request, by which IBM's support finds it.
    pub id: String,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Reason why an operation failed. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum VpcError {
    /// The API refused the request.
    #[error("{request}: {refusal} (request {})", request.id)]
    Refused {
        /// Request that was refused.
        request: Request,
        /// Error response of the API.
        refusal: Refusal,
    },
    /// The host can't be reached, or the connection broke before the request was sent.
    #[error("{request}: {} can't be reached: {reason}", request.host)]
    Unreachable {
        /// Request that could not be sent.
        request: Request,
        /// Error of the transport, with its causes.
        reason: String,
    },
    /// The proxy on the way to the host gave no connection.
    #[error("{request}: {} can't be reached", request.host)]
    Proxy {
        /// Request that could not be sent.
        request: Request,
        /// Answer of the proxy.
        #[source]
        source: Box<ProxyFault>,
    },
    /// The connection broke after the request was sent. The API may have carried it out.
    #[error("{request}: the answer of {} was lost: {reason} (request {})", request.host, request.id)]
    Lost {
        /// Request whose response was lost.
        request: Request,
        /// Error of the transport, with its causes.
        reason: String,
    },
    /// No response arrived within the deadline. The API may have carried out the request.
    #[error("{request}: no answer of {} within {} s (request {})", request.host, deadline.as_secs_f64(), request.id)]
    TimedOut {
        /// Request that got no response.
        request: Request,
        /// Deadline for one attempt.
        deadline: Duration,
    },
    /// The response does not match the API's model.
    #[error("{request}: the answer makes no sense: {reason} (request {})", request.id)]
    Malformed {
        /// Request with the bad response.
        request: Request,
        /// Description of the mismatch.
        reason: String,
    },
    /// The token source returned no token for the request.
    #[error("{request}")]
    Identity {
        /// Request that was not sent.
        request: Request,
        /// Error of the token source.
        #[source]
        source: Box<IdentityError>,
    },
    /// The name is in use by a resource that differs from the requested one.
    #[error("the name {name:?} is taken: {kind} {id} has it, {difference}")]
    NameTaken {
        /// Kind of resource, such as `snapshot`.
        kind: &'static str,
        /// Name that was requested.
        name: String,
        /// Identifier of the resource that has the name.
        id: String,
        /// Difference between that resource and the requested one.
        difference: String,
    },
    /// No resource has this name or identifier.
    #[error("there is no {kind} {name:?} in {scope}{}", or_similar(similar))]
    Missing {
        /// Kind of resource, such as `snapshot`.
        kind: &'static str,
        /// Name or identifier that the caller searched for.
        name: String,
        /// Region or other scope of the search.
        scope: String,
        /// Similar names that the user may have meant, each with its place if it is elsewhere.
        similar: Vec<String>,
    },
    /// The resource is in a state that it does not leave, and not in the one that was waited for.
    #[error("{subject} is {state}{}", in_brackets(reasons))]
    Ended {
        /// Resource that was waited for, as in `snapshot web01-20260102`.
        subject: String,
        /// Final state of the resource.
        state: String,
        /// Reasons for the state, as the API gives them.
        reasons: Vec<String>,
    },
    /// The resource did not reach the wanted state before the deadline.
    #[error("{subject} is still {state} after {} s{}", waited.as_secs(), in_brackets(reasons))]
    Overdue {
        /// Resource that was waited for, as in `snapshot web01-20260102`.
        subject: String,
        /// Last known state of the resource.
        state: String,
        /// Time from the start of the wait to its end.
        waited: Duration,
        /// Reasons for the state, as the API gives them.
        reasons: Vec<String>,
    },
    /// The resource was busy with another change until the deadline.
    #[error("{subject} is still busy with another change after {} s: {request}: {refusal} (request {})", waited.as_secs(), request.id)]
    Busy {
        /// Resource that is busy, as in `server web01`.
        subject: String,
        /// Time from the first attempt to the last.
        waited: Duration,
        /// Last request that was refused.
        request: Request,
        /// Error response to that request.
        refusal: Refusal,
    },
    /// This process was asked to stop.
    #[error("{subject}: stopped")]
    Cancelled {
        /// Operation that was interrupted.
        subject: String,
    },
    /// The request was not sent, because this process no longer owns the resource that it would change.
    #[error("{request}")]
    Fenced {
        /// Request that was not sent.
        request: Request,
        /// Reason why this process is no longer the owner.
        #[source]
        source: Fenced,
    },
    /// The client can't be set up at all: a bad endpoint, an unreadable CA file.
    #[error("{0}")]
    Setup(String),
}

/// Returns ` (one; two)`, or an empty string.
pub(super) fn in_brackets(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

/// Returns `, but web01 or web02`, or an empty string.
fn or_similar(similar: &[String]) -> String {
    if similar.is_empty() { String::new() } else { format!(", but {}", similar.join(" or ")) }
}

impl VpcError {
    /// Returns [`VpcError::Missing`] without similar names.
    #[must_use]
    pub fn missing(kind: &'static str, name: &str, scope: &str) -> Self {
        Self::Missing { kind, name: name.to_owned(), scope: scope.to_owned(), similar: Vec::new() }
    }

    /// Returns the retry class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { refusal, .. } => refusal.class(),
            Self::Busy { .. } => Class::Throttled,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::TimedOut { .. } => Class::Transient,
            Self::Identity { source, .. } => source.class(),
            Self::Proxy { source, .. } => source.class(),
            Self::Cancelled { .. } => Class::Cancelled,
            Self::Fenced { .. } => Class::LeaseLost,
            Self::Malformed { .. }
            | Self::NameTaken { .. }
            | Self::Missing { .. }
            | Self::Ended { .. }
            | Self::Overdue { .. }
            | Self::Setup(_) => Class::Permanent,
        }
    }

    /// Returns true if the API may have carried out the request although it failed: the response was lost, or
    /// a server failed while it worked on it.
    ///
    /// 429 is a refusal before any work. A 5xx response or a malformed one may come from a gateway in front
    /// of a server that has carried out the request.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::TimedOut { .. } | Self::Malformed { .. } => true,
            Self::Refused { refusal, .. } => refusal.status >= 500 && refusal.status != 501,
            _ => false,
        }
    }

    /// Returns true if the API reported that the resource does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Missing { .. })
            || matches!(self, Self::Refused { refusal, .. } if refusal.status == 404)
    }
}
