//! How much of an answer is read.
//!
//! Whoever answers may be broken, or not who we think: a length costs nothing to claim, and a body need not end. So every answer over HTTP is
//! read up to a limit with a name, and what is longer is an error. The bytes of objects are asked for by ranges, whose lengths are their
//! limits.

use crate::units::{KIB, MIB, to_usize};

/// An answer of the cloud's API: a page of a hundred instances takes less than one MiB.
pub const LARGEST_OF_CLOUD: usize = 64 << 20;
/// An answer that grants a token, or describes the server that asks: a few KiB.
pub const LARGEST_OF_IDENTITY: usize = 1 << 20;
/// A page of a store's list: a thousand entries, each with a key of 1024 bytes that may be escaped six times as long.
pub const LARGEST_OF_STORE: u64 = 16 * MIB;
/// A store's refusal: a document of a few hundred bytes, or a proxy's page.
pub const LARGEST_REFUSAL: u64 = 256 * KIB;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It goes on.
    #[error("it is longer than {most} bytes")]
    TooLong {
        /// The limit.
        most: usize,
    },
    /// The line broke.
    #[error(transparent)]
    Line(#[from] reqwest::Error),
}

/// The body of an answer, up to `most` bytes.
///
/// # Errors
/// Where there are more, or the line breaks.
pub async fn body_of(mut answer: reqwest::Response, most: usize) -> Result<Vec<u8>, BodyError> {
    let told = answer.content_length().unwrap_or(0);
    if to_usize(told) > most {
        return Err(BodyError::TooLong { most });
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > most {
            return Err(BodyError::TooLong { most });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}
