//! What can go wrong with the cloud, and what that means for another attempt.

use std::fmt;
use std::time::Duration;

use super::refusal::Refusal;
use crate::fence::Fenced;
use crate::identity::IdentityError;
use crate::retry::Class;

/// What was being asked of the cloud, without anything secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// HTTP's word for it.
    pub method: reqwest::Method,
    /// Of whom: `https://us-south.iaas.cloud.ibm.com`.
    pub host: String,
    /// Where, without the query, as in `/v1/snapshots`.
    pub path: String,
    /// The id under which IBM's support finds it.
    pub id: String,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Why the cloud did not do as asked. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum VpcError {
    /// The API answered no.
    #[error("{request}: {refusal} (request {})", request.id)]
    Refused {
        /// What was asked.
        request: Request,
        /// IBM's own words.
        refusal: Refusal,
    },
    /// The address can't be reached, or the line broke before anything was sent.
    #[error("{request}: {} can't be reached: {reason}", request.host)]
    Unreachable {
        /// What was asked.
        request: Request,
        /// What happened, as the transport tells it.
        reason: String,
    },
    /// The line broke after the request was sent: whether it was done is not known.
    #[error("{request}: the answer of {} was lost: {reason} (request {})", request.host, request.id)]
    Lost {
        /// What was asked.
        request: Request,
        /// What happened, as the transport tells it.
        reason: String,
    },
    /// No answer within the deadline: whether it was done is not known.
    #[error("{request}: no answer of {} within {} s (request {})", request.host, deadline.as_secs_f64(), request.id)]
    TimedOut {
        /// What was asked.
        request: Request,
        /// How long we waited.
        deadline: Duration,
    },
    /// The answer is not what the API's model promises.
    #[error("{request}: the answer makes no sense: {reason} (request {})", request.id)]
    Malformed {
        /// What was asked.
        request: Request,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no token to ask with.
    #[error("{request}")]
    Identity {
        /// What was asked.
        request: Request,
        /// Why not.
        #[source]
        source: Box<IdentityError>,
    },
    /// The name is in use by something that is not what we were to create.
    #[error("the name {name:?} is taken: {noun} {id} has it, {why}")]
    NameTaken {
        /// What it is.
        noun: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
        /// In what it differs.
        why: String,
    },
    /// There is none of that name or id.
    #[error("there is no {noun} {name:?} in {place}{}", or_near(near))]
    Missing {
        /// What was looked for.
        noun: &'static str,
        /// Under which name.
        name: String,
        /// Where.
        place: String,
        /// Others that may have been meant, with where they are if that is elsewhere.
        near: Vec<String>,
    },
    /// It came to a state that it does not leave for the one we waited for.
    #[error("{what} is {state}{}", in_brackets(reasons))]
    Ended {
        /// What we waited for.
        what: String,
        /// The state.
        state: String,
        /// The API's own reasons.
        reasons: Vec<String>,
    },
    /// It did not come to the state that we waited for.
    #[error("{what} is still {state} after {} s{}", waited.as_secs(), in_brackets(reasons))]
    Overdue {
        /// What we waited for.
        what: String,
        /// Its last state.
        state: String,
        /// How long we waited.
        waited: Duration,
        /// The API's own reasons.
        reasons: Vec<String>,
    },
    /// It is busy with another change, and was so until the deadline.
    #[error("{what} is still busy with another change after {} s: {request}: {refusal} (request {})", waited.as_secs(), request.id)]
    Busy {
        /// What is busy.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What was asked last.
        request: Request,
        /// IBM's own words.
        refusal: Refusal,
    },
    /// We were told to stop.
    #[error("{what}: stopped")]
    Cancelled {
        /// What was being done.
        what: String,
    },
    /// Nothing was asked: what it would change is no longer ours.
    #[error("{request}")]
    Fenced {
        /// What would have been asked.
        request: Request,
        /// Why not.
        #[source]
        source: Fenced,
    },
    /// The client can't be set up at all: a bad endpoint, an unreadable CA file.
    #[error("{0}")]
    Setup(String),
}

/// ` (one; two)`, or nothing.
pub(super) fn in_brackets(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

/// `, but web01 or web02`, or nothing.
fn or_near(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(", but {}", near.join(" or ")) }
}

impl VpcError {
    /// There is none, and nothing is known that may have been meant.
    #[must_use]
    pub fn missing(noun: &'static str, name: &str, place: &str) -> Self {
        Self::Missing { noun, name: name.to_owned(), place: place.to_owned(), near: Vec::new() }
    }

    /// What the error means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { refusal, .. } => refusal.class(),
            Self::Busy { .. } => Class::Throttled,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::TimedOut { .. } => Class::Transient,
            Self::Identity { source, .. } => source.class(),
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

    /// Whether the request may have been done although it failed: the answer was lost, or a server failed while it was at it.
    ///
    /// 429 is a refusal at the door. An answer in the 500s or one that makes no sense may come from a gateway that stands before a
    /// server which has done as asked.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::TimedOut { .. } | Self::Malformed { .. } => true,
            Self::Refused { refusal, .. } => refusal.status >= 500 && refusal.status != 501,
            _ => false,
        }
    }

    /// Whether the API said that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Missing { .. }) || matches!(self, Self::Refused { refusal, .. } if refusal.status == 404)
    }
}
