//! Limits on the length of HTTP response bodies.
//!
//! A server may be broken, or not be the server that the caller expects. A `Content-Length` costs it nothing
//! to claim, and a body need not end. So each response over HTTP is read up to a named limit, and a longer
//! response is an error. The contents of objects are requested in ranges, whose lengths are their limits.

use snapferry_base::units::to_usize;

/// Limit on a response of the cloud's API, in bytes: a page of a hundred instances takes less than one MiB.
pub const MAX_API_BODY: usize = 64 << 20;
/// Limit on a response that grants a token or describes this server, in bytes: such a response takes a few
/// KiB.
pub const MAX_IDENTITY_BODY: usize = 1 << 20;

/// Reason why a response body can't be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body is longer than the limit.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// Limit on the body, in bytes.
        limit: usize,
    },
    /// The connection broke before the end of the body.
    #[error(transparent)]
    Transport(#[from] reqwest::Error),
}

/// Reads the body of a response, up to `limit` bytes.
///
/// # Errors
/// If the body is longer than `limit` bytes, or the connection breaks.
pub async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, BodyError> {
    let content_length = response.content_length().unwrap_or(0);
    if to_usize(content_length) > limit {
        return Err(BodyError::TooLong { limit });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
