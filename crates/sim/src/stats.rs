//! Statistics of the store: counters for each operation, and a log of requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::{HeaderMap, Method, StatusCode};

use super::requests::{Operation, Target};

/// Number of requests that the log keeps; older ones are dropped.
const LOG_LENGTH: usize = 1 << 16;

/// Counters of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that were begun, whatever became of them.
    pub requests: u64,
    /// Requests that were answered with a status below 400.
    pub succeeded: u64,
    /// Bytes of request bodies received, those of refused requests included.
    pub bytes_in: u64,
    /// Bytes of response bodies, as the responses announced them.
    pub bytes_out: u64,
}

/// One request that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    pub operation: Operation,
    pub method: String,
    /// Path and query as the client sent them.
    pub path: String,
    /// Part number in the query, if it has one.
    pub part: Option<u32>,
    /// HTTP status; `None` if the connection ended without a response.
    pub status: Option<u16>,
    /// Those headers of the request that [`LOGGED_HEADERS`] lists, by their names.
    pub headers: BTreeMap<&'static str, String>,
    /// Id of the request, as the response's header has it.
    pub id: String,
}

/// Headers that the log keeps: who asks, what for, and on what terms. None of them holds a secret.
pub const LOGGED_HEADERS: [&str; 6] = [
    "host",
    "user-agent",
    "x-amz-request-payer",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-storage-class",
];

/// All counters so far, and the log.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub counts: BTreeMap<Operation, Count>,
    /// Number of parts that are being uploaded now.
    pub parts_in_flight: usize,
    /// Highest number of parts that were uploaded at the same time.
    pub max_parts_in_flight: usize,
    /// Bytes that were copied from object to object, those of parts that were sent again included.
    pub bytes_copied: u64,
    /// Last requests, in the order in which they ended.
    pub log: VecDeque<LoggedRequest>,
}

impl Stats {
    /// Returns the counters of one operation; zeros if it was never requested.
    #[must_use]
    pub fn of(&self, operation: Operation) -> Count {
        self.counts.get(&operation).copied().unwrap_or_default()
    }
}

/// Counters that all connections share.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    stats: Arc<Mutex<Stats>>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self) -> Stats {
        self.lock().clone()
    }

    /// Counts a request that begins; it ends when the [`Visit`] is dropped.
    pub(super) fn begin(&self, target: &Target, method: &Method, path: &str, headers: &HeaderMap) -> Visit {
        let mut stats = self.lock();
        stats.counts.entry(target.operation).or_default().requests += 1;
        if target.operation == Operation::UploadPart {
            stats.parts_in_flight += 1;
            stats.max_parts_in_flight = stats.max_parts_in_flight.max(stats.parts_in_flight);
        }
        drop(stats);
        let request = LoggedRequest {
            operation: target.operation,
            method: method.to_string(),
            path: path.to_owned(),
            part: target.part,
            status: None,
            headers: logged(headers),
            id: format!("{:032x}", rand::random::<u128>()),
        };
        Visit {
            ledger: self.clone(),
            request: Some(request),
            received: Arc::default(),
            copied: CopiedBytes::default(),
            sent: 0,
        }
    }
}

fn logged(headers: &HeaderMap) -> BTreeMap<&'static str, String> {
    let value = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    LOGGED_HEADERS.into_iter().filter_map(|name| Some((name, value(name)?))).collect()
}

/// Bytes that a request has copied inside the store. Passed in the request's extensions.
#[derive(Clone, Debug, Default)]
pub(super) struct CopiedBytes(Arc<AtomicU64>);

impl CopiedBytes {
    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One request in progress. If it is dropped without a response, the log has it without a status.
#[derive(Debug)]
pub(super) struct Visit {
    ledger: Ledger,
    request: Option<LoggedRequest>,
    received: Arc<AtomicU64>,
    copied: CopiedBytes,
    sent: u64,
}

impl Visit {
    /// Returns the counter of the body's bytes.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Returns the counter of the bytes that are copied.
    pub(super) fn copied(&self) -> CopiedBytes {
        self.copied.clone()
    }

    /// Returns the id for the response's header.
    pub(super) fn id(&self) -> &str {
        self.request.as_ref().map_or("", |request| &request.id)
    }

    pub(super) fn answered(mut self, status: StatusCode, sent: u64) {
        self.sent = sent;
        if let Some(request) = &mut self.request {
            request.status = Some(status.as_u16());
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        tracing::debug!(method = request.method, path = request.path, status = request.status, "request");
        let mut stats = self.ledger.lock();
        if request.operation == Operation::UploadPart {
            stats.parts_in_flight -= 1;
        }
        let count = stats.counts.entry(request.operation).or_default();
        count.bytes_in += self.received.load(Ordering::Relaxed);
        count.bytes_out += self.sent;
        count.succeeded += u64::from(request.status.is_some_and(|status| status < 400));
        stats.bytes_copied += self.copied.0.load(Ordering::Relaxed);
        if stats.log.len() == LOG_LENGTH {
            stats.log.pop_front();
        }
        stats.log.push_back(request);
    }
}
