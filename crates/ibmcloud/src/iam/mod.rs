//! Identity of this process to the cloud: sources of bearer tokens, which they refresh long before they
//! expire.
//!
//! A conversion takes longer than a token's life of one hour. So no client keeps a token: each request gets
//! one from the source.

use std::time::Duration;

use snapferry_base::retry::chain;

use crate::response_limits::BodyError;

mod api_key;
mod instance;
mod metadata;
mod refreshing;

pub use api_key::{ApiKeyConfig, ApiKeySource, IBM_IAM};
pub use instance::{CLOUD_INIT, Instance, Learned, instance_of_cloud_init, region_of_zone};
pub use metadata::{METADATA_HTTP, METADATA_HTTPS, Metadata, MetadataConfig, Profile, ProfileSource};

/// Longest time that a token is kept, even if its issuer grants a longer life: a large number costs nothing
/// to claim.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Limit on each text from an issuer that an error repeats, in characters.
const LONGEST_MESSAGE: usize = 400;

/// Returns the life of a token that is granted for `seconds`, limited to `LONGEST_LIFE`.
fn capped_lifetime(seconds: u64) -> Duration {
    Duration::from_secs(seconds).min(LONGEST_LIFE)
}

/// Returns the beginning of an issuer's text, up to `LONGEST_MESSAGE` characters.
fn truncated(text: &str) -> String {
    text.chars().take(LONGEST_MESSAGE).collect()
}

/// Describes why a body can't be read, without the URL.
fn body_error_reason(err: BodyError) -> String {
    match err {
        BodyError::Transport(err) => chain(&err.without_url()),
        err @ BodyError::TooLong { .. } => err.to_string(),
    }
}
