//! Errors of stores, and their classes for retries.

use std::fmt;
use std::time::Duration;

use snapferry_base::fence::Fenced;
use snapferry_base::identity::IdentityError;
use snapferry_base::proxy::ProxyFault;
use snapferry_base::retry::Class;

/// Request to a store, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Name of the request in S3: `UploadPart`, `HeadObject`.
    pub request: &'static str,
    /// Target of the request: `s3://bucket/key`, with the number of the part if there is one.
    pub target: String,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.request, self.target)
    }
}

/// Reason why a request to a store failed. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store refused the request with an error code.
    #[error("{operation}: the store answered {status} {code}: {message}")]
    Refused {
        operation: Operation,
        /// HTTP status of the response.
        status: u16,
        /// Error code of S3, such as `SlowDown`, or the name of the HTTP status.
        code: String,
        /// Message of the store, cut to one line.
        message: String,
        /// Time that the store asks the client to wait before the next request.
        retry_after: Option<Duration>,
    },
    /// The bucket does not exist.
    #[error("bucket {bucket:?} does not exist at {endpoint}")]
    NoSuchBucket {
        bucket: String,
        /// Address of the store.
        endpoint: String,
    },
    /// The store does not accept the keys or the token, or they do not permit this request.
    #[error("{operation}: access denied: {code}: {message}")]
    Denied {
        operation: Operation,
        /// Error code of S3, such as `SignatureDoesNotMatch`.
        code: String,
        /// Message of the store, cut to one line.
        message: String,
    },
    /// The store does not know the upload, or no longer.
    #[error("{operation}: no such upload {}", id.escape_debug())]
    NoSuchUpload { operation: Operation, id: String },
    /// The store has no object under the key.
    #[error("{operation}: no such object")]
    NoSuchKey { operation: Operation },
    /// The object changed while it was being read, or existed although it must not.
    #[error("{operation}: a precondition failed: {reason}")]
    Precondition {
        operation: Operation,
        /// The precondition that failed.
        reason: String,
    },
    /// The address can't be reached, or the connection broke.
    #[error("{operation}: {endpoint}: {reason}")]
    Connection {
        operation: Operation,
        /// Address of the store: scheme, host and port.
        endpoint: String,
        /// Description of the error by the transport.
        reason: String,
    },
    /// The proxy on the way to the store gave no connection.
    #[error("{operation}")]
    Proxy {
        operation: Operation,
        #[source]
        source: Box<ProxyFault>,
    },
    /// The certificate of the store is not trusted.
    #[error("{operation}: the store's TLS certificate is not trusted: {reason}")]
    Untrusted {
        operation: Operation,
        /// Reason as rustls reports it.
        reason: String,
    },
    /// The store did not answer within the deadline.
    #[error("{operation}: no answer within {} s", deadline.as_secs())]
    TimedOut {
        operation: Operation,
        /// Time that the client waited.
        deadline: Duration,
    },
    /// The bytes that arrived are not the bytes that were sent: their checksums differ.
    #[error("{operation}: damaged on the way: {reason}")]
    Damaged {
        operation: Operation,
        /// The checksum that differs.
        reason: String,
    },
    /// The bucket is in another region than the one that the requests are signed for.
    #[error("{operation}: {reason}{}", expected.as_ref().map_or_else(String::new, |region| format!("; use region {region:?}")))]
    WrongRegion {
        operation: Operation,
        /// Region that the request was signed for, and the message of the store.
        reason: String,
        /// Region to use, if the store reports it.
        expected: Option<String>,
    },
    /// The store does not support this request at all.
    #[error("{operation}: the store does not offer this request: {reason}")]
    Unsupported {
        operation: Operation,
        /// Answer of the store.
        reason: String,
    },
    /// The store refuses to copy parts of objects: it does not offer that, or not for this range, or the
    /// identity lacks the right. Sending the bytes may work all the same.
    #[error("{operation}: the store refused to copy: {status} {code}: {message}")]
    CopyRefused {
        operation: Operation,
        /// HTTP status of the response.
        status: u16,
        /// Error code of S3, such as `AccessDenied`, or the name of the HTTP status.
        code: String,
        /// Message of the store, cut to one line.
        message: String,
    },
    /// The disk is full.
    #[error("{operation}: the disk is full")]
    Full {
        operation: Operation,
        #[source]
        source: std::io::Error,
    },
    /// The work was cancelled before the store had executed the request.
    #[error("{operation}: stopped")]
    Cancelled { operation: Operation },
    /// The request was not sent, because this process has lost the ownership of the work.
    #[error("{operation}")]
    Fenced {
        /// Request that would have been sent.
        operation: Operation,
        #[source]
        source: Fenced,
    },
    /// The store answered, but without the requested information. That proves nothing about the stored data.
    #[error("{operation}: {reason}")]
    Untold {
        operation: Operation,
        /// The information that is missing.
        reason: String,
    },
    /// The stored data is not the data that was sent, or a response makes no sense.
    #[error("{operation}: {reason}")]
    Mismatch {
        operation: Operation,
        /// The difference that was found.
        reason: String,
    },
    /// The upload has become an object, and a later step failed: there is nothing to abort any more.
    #[error("{operation}: the object was made")]
    Completed {
        operation: Operation,
        /// Error of the later step.
        #[source]
        source: Box<StoreError>,
    },
    /// The response to the completion of an upload was lost, and so was every response to the check whether
    /// the object exists.
    #[error("{operation}: whether the object was made is not known")]
    InDoubt {
        operation: Operation,
        /// Error of that check.
        #[source]
        source: Box<StoreError>,
    },
    /// The upload was aborted and nothing is left of it. The file in whose place it was written is empty,
    /// because it could not be replaced.
    #[error("{operation}: it was written where it lies, and is empty now")]
    Emptied { operation: Operation },
    /// An operation on a local file or folder failed.
    #[error("{operation}")]
    Io {
        operation: Operation,
        #[source]
        source: std::io::Error,
    },
    /// There is no token for the request.
    #[error("{operation}")]
    Identity {
        operation: Operation,
        #[source]
        source: Box<IdentityError>,
    },
    /// The store can't be set up at all: a bad endpoint, an unreadable CA file.
    #[error("{0}")]
    Setup(String),
}

impl StoreError {
    /// Returns the class of the error for a retry.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { status, code, .. } => class_of_refusal(*status, code),
            Self::Connection { .. } | Self::TimedOut { .. } | Self::Damaged { .. } => Class::Transient,
            Self::Cancelled { .. } => Class::Cancelled,
            Self::Fenced { .. } => Class::LeaseLost,
            Self::Identity { source, .. } => source.class(),
            Self::Proxy { source, .. } => source.class(),
            Self::Completed { source, .. } | Self::InDoubt { source, .. } => source.class(),
            Self::NoSuchBucket { .. }
            | Self::Denied { .. }
            | Self::NoSuchUpload { .. }
            | Self::NoSuchKey { .. }
            | Self::Precondition { .. }
            | Self::Untrusted { .. }
            | Self::WrongRegion { .. }
            | Self::Unsupported { .. }
            | Self::CopyRefused { .. }
            | Self::Full { .. }
            | Self::Mismatch { .. }
            | Self::Untold { .. }
            | Self::Emptied { .. }
            | Self::Io { .. }
            | Self::Setup(_) => Class::Permanent,
        }
    }

    /// True if a checksum did not match. One or two more attempts make sense, because a bit may have flipped
    /// in transit. Many do not, because a bad memory module flips it every time.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Refused { code, .. } => is_digest_code(code),
            _ => false,
        }
    }
}

/// True if `code` is one with which a store reports that a body and its checksum differ.
pub fn is_digest_code(code: &str) -> bool {
    matches!(code, "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch")
}

/// Returns the class of a refusal by status and code: from the error list of S3, "429 or 503" of IBM COS for
/// its limits, and the digest errors that a bit flipped in transit causes.
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
