//! What can go wrong with a store, and what that means for another attempt.

use std::fmt;
use std::time::Duration;

use snapferry_base::fence::Fenced;
use snapferry_base::identity::IdentityError;
use snapferry_base::retry::Class;

/// What was being asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The request, by S3's own name: `UploadPart`, `HeadObject`.
    pub request: &'static str,
    /// What it was about: `s3://bucket/key`, with the part's number where there is one.
    pub target: String,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.request, self.target)
    }
}

/// Why a store did not do as asked. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store answered no, with a code.
    #[error("{operation}: the store answered {status} {code}: {message}")]
    Refused {
        /// What was asked.
        operation: Operation,
        /// HTTP status.
        status: u16,
        /// S3's error code, such as `SlowDown`, or the status' own name.
        code: String,
        /// The store's words, cut to a line.
        message: String,
        /// How long the store asks us to stay away.
        retry_after: Option<Duration>,
    },
    /// There is no such bucket.
    #[error("bucket {bucket:?} does not exist at {endpoint}")]
    NoSuchBucket {
        /// The bucket.
        bucket: String,
        /// Where it was looked for.
        endpoint: String,
    },
    /// The keys or the token are not accepted, or may not do this.
    #[error("{operation}: access denied: {code}: {message}")]
    Denied {
        /// What was asked.
        operation: Operation,
        /// S3's error code, such as `SignatureDoesNotMatch`.
        code: String,
        /// The store's words, cut to a line.
        message: String,
    },
    /// The upload is not known (any more).
    #[error("{operation}: no such upload {}", id.escape_debug())]
    NoSuchUpload {
        /// What was asked.
        operation: Operation,
        /// The upload's id.
        id: String,
    },
    /// Nothing is stored under the key.
    #[error("{operation}: no such object")]
    NoSuchKey {
        /// What was asked.
        operation: Operation,
    },
    /// The object changed while it was being read, or existed where it must not.
    #[error("{operation}: a precondition failed: {reason}")]
    Precondition {
        /// What was asked.
        operation: Operation,
        /// Which one.
        reason: String,
    },
    /// The address can't be reached, or the line broke.
    #[error("{operation}: {reason}")]
    Connection {
        /// What was asked.
        operation: Operation,
        /// What happened, as the transport tells it.
        reason: String,
    },
    /// The store's certificate is not trusted.
    #[error("{operation}: the store's TLS certificate is not trusted: {reason}")]
    Untrusted {
        /// What was asked.
        operation: Operation,
        /// As rustls tells it.
        reason: String,
    },
    /// No answer within the deadline.
    #[error("{operation}: no answer within {} s", deadline.as_secs())]
    TimedOut {
        /// What was asked.
        operation: Operation,
        /// How long we waited.
        deadline: Duration,
    },
    /// The bytes that arrived are not the bytes that were sent: a checksum says so.
    #[error("{operation}: damaged on the way: {reason}")]
    Damaged {
        /// What was asked.
        operation: Operation,
        /// Which sum differs.
        reason: String,
    },
    /// The bucket is in another region than the requests are signed for.
    #[error("{operation}: {reason}{}", expected.as_ref().map_or_else(String::new, |region| format!("; use region {region:?}")))]
    WrongRegion {
        /// What was asked.
        operation: Operation,
        /// The region that we signed for, and the store's words.
        reason: String,
        /// The one to use, where the store tells.
        expected: Option<String>,
    },
    /// The store does not have this request at all.
    #[error("{operation}: the store does not offer this request: {reason}")]
    Unsupported {
        /// What was asked.
        operation: Operation,
        /// What it answered.
        reason: String,
    },
    /// There is no room for more.
    #[error("{operation}: the disk is full")]
    Full {
        /// What was asked.
        operation: Operation,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// We were told to stop before the store had done as asked.
    #[error("{operation}: stopped")]
    Cancelled {
        /// What was asked.
        operation: Operation,
    },
    /// Nothing was asked: what is stored is no longer ours to change.
    #[error("{operation}")]
    Fenced {
        /// What would have been asked.
        operation: Operation,
        /// Why not.
        #[source]
        source: Fenced,
    },
    /// The store answered, and did not tell what was asked: that is no verdict on what is stored.
    #[error("{operation}: {reason}")]
    Untold {
        /// What was asked.
        operation: Operation,
        /// What is not known.
        reason: String,
    },
    /// What is stored is not what was sent, or an answer makes no sense.
    #[error("{operation}: {reason}")]
    Mismatch {
        /// What was asked.
        operation: Operation,
        /// What differs.
        reason: String,
    },
    /// The upload has become an object, and what came after that went wrong: there is nothing to abort any more.
    #[error("{operation}: the object was made")]
    Completed {
        /// What was asked.
        operation: Operation,
        /// What went wrong then.
        #[source]
        source: Box<StoreError>,
    },
    /// The answer to the completion of an upload was lost, and so was every answer to whether there is an object now.
    #[error("{operation}: whether the object was made is not known")]
    InDoubt {
        /// What was asked.
        operation: Operation,
        /// Why it is not known.
        #[source]
        source: Box<StoreError>,
    },
    /// The upload was ended, and nothing is left of it; nor of the file in whose place it was written, since that could not be replaced.
    #[error("{operation}: it was written where it lies, and is empty now")]
    Emptied {
        /// What was asked.
        operation: Operation,
    },
    /// A local file or folder failed.
    #[error("{operation}")]
    Io {
        /// What was asked.
        operation: Operation,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// There is no token to ask with.
    #[error("{operation}")]
    Identity {
        /// What was asked.
        operation: Operation,
        /// Why not.
        #[source]
        source: Box<IdentityError>,
    },
    /// The store can't be set up at all: a bad endpoint, an unreadable CA file.
    #[error("{0}")]
    Setup(String),
}

impl StoreError {
    /// What the error means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { status, code, .. } => class_of_refusal(*status, code),
            Self::Connection { .. } | Self::TimedOut { .. } | Self::Damaged { .. } => Class::Transient,
            Self::Cancelled { .. } => Class::Cancelled,
            Self::Fenced { .. } => Class::LeaseLost,
            Self::Identity { source, .. } => source.class(),
            Self::Completed { source, .. } | Self::InDoubt { source, .. } => source.class(),
            Self::NoSuchBucket { .. }
            | Self::Denied { .. }
            | Self::NoSuchUpload { .. }
            | Self::NoSuchKey { .. }
            | Self::Precondition { .. }
            | Self::Untrusted { .. }
            | Self::WrongRegion { .. }
            | Self::Unsupported { .. }
            | Self::Full { .. }
            | Self::Mismatch { .. }
            | Self::Untold { .. }
            | Self::Emptied { .. }
            | Self::Io { .. }
            | Self::Setup(_) => Class::Permanent,
        }
    }

    /// Whether a checksum did not match. Worth another attempt or two, since a bit may have flipped on the way; not many, since a
    /// bad memory module flips it every time.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Refused { code, .. } => is_digest_code(code),
            _ => false,
        }
    }
}

/// The codes by which stores say that a body and its checksum differ.
pub fn is_digest_code(code: &str) -> bool {
    matches!(code, "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch")
}

/// Throttling and passing faults by status and code: S3's error list, IBM COS' "429 or 503" for its limits, and the digest errors
/// that a flipped bit on the way gives.
fn class_of_refusal(status: u16, code: &str) -> Class {
    match (status, code) {
        (429 | 503, _) | (_, "SlowDown" | "TooManyRequests" | "ServiceUnavailable" | "Throttling") => {
            Class::Throttled
        }
        (500 | 502 | 504, _) | (_, "InternalError" | "RequestTimeout" | "OperationAborted") => {
            Class::Transient
        }
        _ if is_digest_code(code) => Class::Transient,
        _ => Class::Permanent,
    }
}
