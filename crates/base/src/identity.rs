//! Authentication to the cloud: bearer tokens, and the trait of the sources that provide them.

use std::time::SystemTime;

use async_trait::async_trait;

use crate::proxy::ProxyFault;
use crate::retry::Class;
use crate::secret::Secret;

/// A bearer token and its expiry time.
#[derive(Clone, Debug)]
pub struct Token {
    /// Token text, which follows `Bearer ` in the header.
    pub bearer: Secret,
    /// Time from which the issuer refuses the token.
    pub expires: SystemTime,
}

/// Source of tokens that stay valid for a while. Callers that wait at the same time share one refresh.
#[async_trait]
pub trait TokenSource: Send + Sync + 'static {
    /// Returns a valid token, and refreshes it if it is getting old. A failed refresh is an error only when
    /// the old token has expired.
    async fn token(&self) -> Result<Token, IdentityError>;

    /// Reports that a server refused `token` before its expiry, for example because it was revoked. The next
    /// call of [`TokenSource::token`] returns another one.
    fn refused(&self, _token: &Token) {}
}

/// Reasons for a missing token.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The identity service refused the request: the API key is wrong or revoked, or the trusted profile
    /// isn't linked to this instance.
    #[error("{endpoint} refused: {code}: {message}")]
    Refused {
        /// URL of the identity service.
        endpoint: String,
        /// IAM's own error code, such as `BXNIM0415E`.
        code: String,
        /// Message of IAM.
        message: String,
    },
    /// The identity service could not be reached, or failed.
    #[error("no token from {endpoint}: {reason}")]
    Unreachable {
        /// URL of the identity service.
        endpoint: String,
        /// Description of the failure, without any secret.
        reason: String,
    },
    /// The proxy on the way to the identity service gave no connection.
    #[error("no token from {endpoint}")]
    Proxy {
        /// URL of the identity service.
        endpoint: String,
        #[source]
        source: Box<ProxyFault>,
    },
    /// No request could be sent: the address is invalid, or the CA file can't be read.
    #[error("{0}")]
    Setup(String),
    /// The instance metadata service doesn't answer: it is off unless the user enabled it for the server.
    #[error("the instance metadata service does not answer at {}: {reason}", endpoints.join(" or "))]
    MetadataOff {
        /// URLs that were tried.
        endpoints: Vec<String>,
        /// Description of the failure.
        reason: String,
    },
    /// The response contained no token.
    #[error("{endpoint} answered with something that is no token: {reason}")]
    Malformed {
        /// URL of the service that sent the response.
        endpoint: String,
        /// Description of the defect in the response.
        reason: String,
    },
}

impl IdentityError {
    /// Returns the class of the error, which decides on another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            // A metadata service is either on or off. If it is on and fails, the error is `Unreachable`.
            Self::Refused { .. } | Self::Malformed { .. } | Self::MetadataOff { .. } | Self::Setup(_) => {
                Class::Permanent
            }
            Self::Unreachable { .. } => Class::Transient,
            Self::Proxy { source, .. } => source.class(),
        }
    }
}
