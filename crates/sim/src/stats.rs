//! What the store was asked: counters by operation, and a log of requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::{Method, StatusCode};

use super::requests::{Operation, Target};

/// Requests that the log remembers.
const LOG_LENGTH: usize = 1 << 16;

/// Counters of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that began.
    pub requests: u64,
    /// Those that were answered with a status below 400.
    pub succeeded: u64,
    /// Bytes of bodies received, also of those that were refused.
    pub bytes_in: u64,
    /// Bytes of bodies that answers announced.
    pub bytes_out: u64,
}

/// One request that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// What it asked for.
    pub operation: Operation,
    /// HTTP method.
    pub method: String,
    /// Path and query as they came.
    pub path: String,
    /// The part it was about.
    pub part: Option<u32>,
    /// HTTP status; nothing where the connection went without an answer.
    pub status: Option<u16>,
}

/// Everything counted so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By operation.
    pub counts: BTreeMap<Operation, Count>,
    /// Parts being uploaded now.
    pub parts_in_flight: usize,
    /// Most parts that were ever being uploaded at the same time.
    pub most_parts_in_flight: usize,
    /// The last requests, in the order in which they ended.
    pub log: VecDeque<LoggedRequest>,
}

impl Stats {
    /// The counters of one operation.
    #[must_use]
    pub fn of(&self, operation: Operation) -> Count {
        self.counts.get(&operation).copied().unwrap_or_default()
    }
}

/// The counters, shared by all connections.
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

    /// A request begins; it ends when the visit is dropped.
    pub(super) fn begin(&self, target: &Target, method: &Method, path: &str) -> Visit {
        let mut stats = self.lock();
        stats.counts.entry(target.operation).or_default().requests += 1;
        if target.operation == Operation::UploadPart {
            stats.parts_in_flight += 1;
            stats.most_parts_in_flight = stats.most_parts_in_flight.max(stats.parts_in_flight);
        }
        drop(stats);
        let request = LoggedRequest {
            operation: target.operation,
            method: method.to_string(),
            path: path.to_owned(),
            part: target.part,
            status: None,
        };
        Visit { ledger: self.clone(), request: Some(request), received: Arc::default(), sent: 0 }
    }
}

/// One request under way. Dropped without an answer, it is logged as such.
#[derive(Debug)]
pub(super) struct Visit {
    ledger: Ledger,
    request: Option<LoggedRequest>,
    received: Arc<AtomicU64>,
    sent: u64,
}

impl Visit {
    /// The counter of the body's bytes.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
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
        if stats.log.len() == LOG_LENGTH {
            stats.log.pop_front();
        }
        stats.log.push_back(request);
    }
}
