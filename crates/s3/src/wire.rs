//! Values in requests and responses: limits on them, and conversions.

use aws_sdk_s3::primitives::{ByteStream, ByteStreamError};
use bytes::{Bytes, BytesMut};
use snapferry_base::units::{ByteCount, MIB, to_u64, to_usize};
use snapferry_engine::store::{ETag, MAX_PARTS, Operation, PartNumber, StoreError, Upload};

/// Number of entries on a full page, unless the request asks for fewer (S3's documentation).
const FULL_PAGE: usize = 1000;

/// Largest buffer that is allocated before a response arrives. It grows for longer responses: a server can
/// announce any length.
const LARGEST_BUFFER: u64 = 16 * MIB;

/// Longest ETag in bytes. Every known store uses a hash and a number.
const LONGEST_ETAG: usize = 1024;

/// Longest upload identifier that is sent to the store, in bytes. Stores use some hundred at most, and a URL
/// has no room for more than 64 KiB.
pub(crate) const LONGEST_UPLOAD_ID: usize = 2048;

/// Longest prefix of a request in bytes. No key is longer.
const LONGEST_PREFIX: usize = 1024;

/// Largest memory for the names and identifiers of a list. A million objects with keys of a hundred bytes
/// fit.
const LARGEST_LIST: u64 = 256 * MIB;

/// Memory of a list's entry besides its names and identifiers, in bytes.
const ENTRY: usize = 64;

/// True if a page is the last one of a list. If the store doesn't return that information, a page with fewer
/// than [`FULL_PAGE`] entries is the last one.
pub(crate) fn is_last(truncated: Option<bool>, entries: usize) -> Result<bool, String> {
    match truncated {
        Some(truncated) => Ok(!truncated),
        None if entries < FULL_PAGE => Ok(true),
        None => Err(format!("the answer holds {entries} entries, and does not say whether there are more")),
    }
}

/// Reads a body that should have `len` bytes. Stops soon after `len`, so a longer body can't exhaust the
/// memory.
pub(crate) async fn read_up_to(mut body: ByteStream, len: u64) -> Result<Bytes, ByteStreamError> {
    let mut bytes = BytesMut::with_capacity(to_usize(len.min(LARGEST_BUFFER)));
    while to_u64(bytes.len()) <= len
        && let Some(frame) = body.try_next().await?
    {
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.freeze())
}

pub(crate) fn wire_number(number: PartNumber, operation: &Operation) -> Result<i32, StoreError> {
    i32::try_from(number.0).ok().filter(|&n| n >= 1 && u64::from(number.0) <= MAX_PARTS).ok_or_else(|| {
        StoreError::Mismatch {
            operation: operation.clone(),
            reason: format!("part number {number} is not from 1 to {MAX_PARTS}"),
        }
    })
}

pub(crate) fn damaged(operation: &Operation, reason: String) -> StoreError {
    StoreError::Damaged { operation: operation.clone(), reason }
}

/// Removes the quotes, which only some responses have.
pub(crate) fn etag_of(text: Option<&str>, operation: &Operation) -> Result<ETag, StoreError> {
    let text = text.unwrap_or_default().trim_matches('"');
    within_limit("ETag", text, LONGEST_ETAG, operation).map(|text| ETag(text.to_owned()))
}

/// Returns the upload's identifier if it is short enough for a URL.
pub(crate) fn wire_id<'a>(upload: &'a Upload, operation: &Operation) -> Result<&'a str, StoreError> {
    within_limit("upload id", &upload.id, LONGEST_UPLOAD_ID, operation)
}

pub(crate) fn wire_prefix<'a>(prefix: &'a str, operation: &Operation) -> Result<&'a str, StoreError> {
    // The operation's target contains the prefix, which is too long for a message.
    let operation = || Operation { request: operation.request, target: "a prefix".to_owned() };
    if prefix.len() > LONGEST_PREFIX {
        within_limit("prefix", prefix, LONGEST_PREFIX, &operation())
    } else {
        Ok(prefix)
    }
}

pub(crate) fn within_limit<'a>(
    kind: &str,
    text: &'a str,
    max: usize,
    operation: &Operation,
) -> Result<&'a str, StoreError> {
    if text.len() <= max {
        return Ok(text);
    }
    let reason = format!("the {kind} has {} bytes; at most {max} are used", text.len());
    Err(StoreError::Mismatch { operation: operation.clone(), reason })
}

/// The memory left for a list.
pub(crate) struct ListMemory<'a> {
    remaining: u64,
    operation: &'a Operation,
}

impl<'a> ListMemory<'a> {
    pub(crate) fn new(operation: &'a Operation) -> Self {
        Self { remaining: LARGEST_LIST, operation }
    }

    /// Takes the memory for one more entry, whose names and identifiers have `text` bytes.
    pub(crate) fn reserve(&mut self, text: usize) -> Result<(), StoreError> {
        let reason = || {
            format!(
                "the list takes more than {} of memory; a longer prefix gives a shorter one",
                ByteCount(LARGEST_LIST)
            )
        };
        self.remaining = self
            .remaining
            .checked_sub(to_u64(text + ENTRY))
            .ok_or_else(|| StoreError::Mismatch { operation: self.operation.clone(), reason: reason() })?;
        Ok(())
    }
}

pub(crate) fn quoted(etag: &ETag) -> String {
    format!("\"{}\"", etag.0)
}
