//! Who we are to the cloud: sources of bearer tokens, refreshed long before they expire.
//!
//! A conversion outlasts a token's hour, so nobody keeps a token: whoever sends a request asks the source for one.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::answers::BodyError;
use crate::retry::{Class, chain};
use crate::secret::Secret;

mod api_key;
mod instance;
mod metadata;
mod refreshing;

pub use api_key::{ApiKeyConfig, ApiKeySource, IBM_IAM};
pub use instance::{CLOUD_INIT, Instance, Learned, instance_of_cloud_init, region_of_zone};
pub use metadata::{METADATA_HTTP, METADATA_HTTPS, Metadata, MetadataConfig, Profile, ProfileSource};

/// No token is held for longer, whatever its issuer says: a number costs nothing to claim.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// No words of an issuer are told beyond this many characters.
const LONGEST_MESSAGE: usize = 400;

/// The life of a token that is granted for so many seconds.
fn life_of(seconds: u64) -> Duration {
    Duration::from_secs(seconds).min(LONGEST_LIFE)
}

/// The front of what an issuer says.
fn cut(words: &str) -> String {
    words.chars().take(LONGEST_MESSAGE).collect()
}

/// Why there is no body, without the address that it was to come from.
fn reason_of(err: BodyError) -> String {
    match err {
        BodyError::Line(err) => chain(&err.without_url()),
        err @ BodyError::TooLong { .. } => err.to_string(),
    }
}

/// A bearer token and the moment from which it is refused.
#[derive(Clone, Debug)]
pub struct Token {
    /// The text after `Bearer `.
    pub bearer: Secret,
    /// When the issuer stops honouring it.
    pub expires: SystemTime,
}

/// Gives tokens that are good for a while yet. One refresh serves all callers that wait for it.
#[async_trait]
pub trait TokenSource: Send + Sync + 'static {
    /// A token that is still good, refreshed if it is getting old. A failing refresh is an error only once the old token is of no use.
    async fn token(&self) -> Result<Token, IdentityError>;

    /// Somebody was told that `token` is not good although its time is not over, as when it was revoked: the next one asked for is another.
    fn refused(&self, _token: &Token) {}
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The identity service said no: a wrong or revoked API key, a trusted profile that is not ours.
    #[error("{endpoint} refused: {code}: {message}")]
    Refused {
        /// Where we asked.
        endpoint: String,
        /// IAM's own error code, such as `BXNIM0415E`.
        code: String,
        /// IAM's own words.
        message: String,
    },
    /// The identity service could not be reached, or failed.
    #[error("no token from {endpoint}: {reason}")]
    Unreachable {
        /// Where we asked.
        endpoint: String,
        /// What happened, without any secret in it.
        reason: String,
    },
    /// We can't ask at all: a bad address, an unreadable CA file.
    #[error("{0}")]
    Setup(String),
    /// The instance metadata service does not answer: it is off unless it was switched on for the server.
    #[error("the instance metadata service does not answer at {}: {reason}", endpoints.join(" or "))]
    MetadataOff {
        /// Where we asked.
        endpoints: Vec<String>,
        /// What happened there.
        reason: String,
    },
    /// The answer was no token.
    #[error("{endpoint} answered with something that is no token: {reason}")]
    Malformed {
        /// Where we asked.
        endpoint: String,
        /// What was wrong with it.
        reason: String,
    },
}

impl IdentityError {
    /// What the error means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            // A metadata service is on or off; one that is on and fails is unreachable.
            Self::Refused { .. } | Self::Malformed { .. } | Self::MetadataOff { .. } | Self::Setup(_) => Class::Permanent,
            Self::Unreachable { .. } => Class::Transient,
        }
    }
}
