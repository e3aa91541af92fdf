//! Metrics of a worker for Prometheus, and its health, at an address of their own: on loopback unless the
//! user gives another one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use snapferry_base::retry::{Class, chain};
use snapferry_fleet::queue::{JobState, Queue, QueueError};
use snapferry_fleet::replicate::{Finished, Progress, ProgressObserver};
use snapferry_fleet::worker::{Health, WorkerEvent};
use snapferry_ibmcloud::vpc::{LogWatch, Watch};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Buckets of the step histogram, in seconds: steps take from a second to hours.
const STEP_SECONDS: [f64; 12] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 2400.0, 4800.0, 9600.0];
/// Time limit for a client to send the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// Longest head of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// Content type by which scrapers recognise the text format.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: String,
    class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: String,
    code: u16,
}

/// Number of leftovers by kind, which `gc` stores in the queue as JSON; only kinds that it could list
/// completely.
pub type Leftovers = BTreeMap<String, u32>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeftoverLabels {
    region: String,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabel {
    region: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: String,
    region: String,
}

/// Counters of one worker process.
pub struct Metrics {
    results: Family<ResultLabels, Counter>,
    steps: Family<StepLabel, Histogram, fn() -> Histogram>,
    requests: Family<RequestLabels, Counter>,
    leases_lost: Counter,
    takeovers: Counter,
    queue_failures: Counter,
    disk_bytes: Counter,
    stored_bytes: Counter,
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            results: Family::default(),
            steps: Family::new_with_constructor(|| Histogram::new(STEP_SECONDS)),
            requests: Family::default(),
            leases_lost: Counter::default(),
            takeovers: Counter::default(),
            queue_failures: Counter::default(),
            disk_bytes: Counter::default(),
            stored_bytes: Counter::default(),
        }
    }

    pub fn observe(&self, event: WorkerEvent<'_>) {
        let ended = |result: &str, class: &str| {
            self.results
                .get_or_create(&ResultLabels { result: result.to_owned(), class: class.to_owned() })
                .inc();
        };
        match event {
            WorkerEvent::Done(Finished { state, .. }) => {
                ended("done", "");
                if let Some(object) = &state.object {
                    self.disk_bytes.inc_by(object.virtual_size.0);
                    self.stored_bytes.inc_by(object.size.0);
                }
            }
            WorkerEvent::Failed(class) => ended("failed", label(class)),
            WorkerEvent::LeaseLost => {
                self.leases_lost.inc();
            }
            WorkerEvent::TakenBack(jobs) => {
                self.takeovers.inc_by(snapferry_base::units::to_u64(jobs));
            }
            WorkerEvent::QueueFailed => {
                self.queue_failures.inc();
            }
        }
    }

    /// Returns the counters, and figures that the queue knows, as text.
    async fn text(&self, queue: &dyn Queue) -> Result<String, QueueError> {
        let jobs: Family<StateLabel, Gauge> = Family::default();
        let counts = queue.counts().await?;
        for state in JobState::ALL {
            let count = i64::try_from(counts.of(state)).unwrap_or(i64::MAX);
            jobs.get_or_create(&StateLabel { state: state.name().to_owned() }).set(count);
        }
        let oldest: Gauge<f64, AtomicU64> = Gauge::default();
        oldest.set(queue.waiting().await?.unwrap_or_default().as_secs_f64());
        let last: Family<ServerLabels, Gauge<f64, AtomicU64>> = Family::default();
        for success in queue.last_successes().await? {
            let at = success.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            last.get_or_create(&ServerLabels { server: success.server, region: success.region }).set(at);
        }
        let leaked: Family<LeftoverLabels, Gauge<i64>> = Family::default();
        let last_surveys: Family<RegionLabel, Gauge<f64, AtomicU64>> = Family::default();
        for survey in queue.surveys().await? {
            // Another version of gc may have stored another form: then only the time of its survey is
            // reported.
            for (kind, count) in serde_json::from_str::<Leftovers>(&survey.found).unwrap_or_default() {
                leaked
                    .get_or_create(&LeftoverLabels { region: survey.place.clone(), kind })
                    .set(count.into());
            }
            let at = survey.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            last_surveys.get_or_create(&RegionLabel { region: survey.place }).set(at);
        }
        let mut registry = Registry::with_prefix("snapferry");
        registry.register("jobs", "Jobs in the queue", jobs);
        registry.register_with_unit(
            "oldest_ready",
            "For how long the job has been ready that has been so the longest",
            Unit::Seconds,
            oldest,
        );
        registry.register_with_unit(
            "last_success_timestamp",
            "When a server's image last arrived in a region",
            Unit::Seconds,
            last,
        );
        registry.register("leaked_resources", "What dead jobs had left when gc last looked", leaked);
        registry.register_with_unit(
            "last_survey_timestamp",
            "When gc last looked",
            Unit::Seconds,
            last_surveys,
        );
        registry.register("job_results", "How attempts at jobs ended on this worker", self.results.clone());
        registry.register_with_unit(
            "step_duration",
            "How long the steps of jobs took",
            Unit::Seconds,
            self.steps.clone(),
        );
        registry.register(
            "cloud_requests",
            "Requests that the cloud answered, by kind and status",
            self.requests.clone(),
        );
        registry.register(
            "lease_lost",
            "Jobs that became somebody else's while this worker had them",
            self.leases_lost.clone(),
        );
        registry.register(
            "takeovers",
            "Jobs that this worker took back from others that were gone",
            self.takeovers.clone(),
        );
        registry.register(
            "queue_errors",
            "Times that the queue could not be asked",
            self.queue_failures.clone(),
        );
        registry.register_with_unit(
            "disk",
            "Of disks that were carried",
            Unit::Bytes,
            self.disk_bytes.clone(),
        );
        registry.register_with_unit(
            "stored",
            "Of images that were stored",
            Unit::Bytes,
            self.stored_bytes.clone(),
        );
        let mut text = String::new();
        // Writing into a string fails only if a metric's own code returns an error; then the text so far is
        // better than none.
        let _ = text::encode(&mut text, &registry);
        Ok(text)
    }
}

fn label(class: Class) -> &'static str {
    match class {
        Class::Transient => "transient",
        Class::Throttled => "throttled",
        Class::Permanent => "permanent",
        Class::Cancelled => "cancelled",
        Class::LeaseLost => "lease_lost",
    }
}

/// Counts the cloud's responses, and logs what a job waits for.
pub struct Answers(pub Arc<Metrics>);

impl Watch for Answers {
    fn waiting(&self, what: &str, state: &str, reasons: &[String]) {
        LogWatch.waiting(what, state, reasons);
    }

    fn answered(&self, operation: &str, status: u16) {
        self.0.requests.get_or_create(&RequestLabels { operation: operation.to_owned(), code: status }).inc();
    }
}

/// Measures how long steps take, and passes every event on.
pub struct Counting {
    pub metrics: Arc<Metrics>,
    pub next: Arc<dyn ProgressObserver>,
}

impl ProgressObserver for Counting {
    fn on_progress(&self, progress: Progress<'_>) {
        if let Progress::Done { step, took, .. } = &progress {
            let label = StepLabel { step: step.name().to_owned() };
            self.metrics.steps.get_or_create(&label).observe(took.as_secs_f64());
        }
        self.next.on_progress(progress);
    }
}

/// Serves requests for as long as the process lives. If another process has the address, such as a second
/// worker on this machine, it warns and returns: that is no reason to end the worker.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, queue: Arc<dyn Queue>, health: Arc<Health>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(err) => {
            tracing::warn!(
                "no metrics at http://{address}/metrics: {err}; give another address by --metrics, or --metrics off"
            );
            return;
        }
    };
    let bound = listener.local_addr().unwrap_or(address);
    tracing::info!("metrics at http://{bound}/metrics, health at http://{bound}/healthz");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // While the permits are used up, further connections wait in the kernel's queue.
                let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                let (metrics, queue, health) =
                    (Arc::clone(&metrics), Arc::clone(&queue), Arc::clone(&health));
                tokio::spawn(async move {
                    serve_connection(stream, metrics, queue, health).await;
                    drop(permit);
                });
            }
            // Most often, too many files are open; later there may be fewer.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    metrics: Arc<Metrics>,
    queue: Arc<dyn Queue>,
    health: Arc<Health>,
) {
    let respond = service_fn(|request: Request<Incoming>| {
        let (metrics, queue, health) = (Arc::clone(&metrics), Arc::clone(&queue), Arc::clone(&health));
        async move { Ok::<_, std::convert::Infallible>(respond(&request, &metrics, &*queue, &health).await) }
    });
    let mut http = http1::Builder::new();
    let served = http
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    if let Err(err) = served.await {
        tracing::debug!("a scrape ended early: {err}");
    }
}

async fn respond(
    request: &Request<Incoming>,
    metrics: &Metrics,
    queue: &dyn Queue,
    health: &Health,
) -> Response<Full<Bytes>> {
    let response_with = |status: StatusCode, kind: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    };
    let plain = |status, body: &str| response_with(status, "text/plain; charset=utf-8", format!("{body}\n"));
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => match metrics.text(queue).await {
            Ok(text) => response_with(StatusCode::OK, TEXT, text),
            Err(err) => plain(StatusCode::SERVICE_UNAVAILABLE, &chain(&err)),
        },
        // Any response shows that the worker is alive; an outage of the queue is no reason to restart it.
        (&Method::GET | &Method::HEAD, "/healthz") => plain(StatusCode::OK, "alive"),
        (&Method::GET | &Method::HEAD, "/readyz") => match queue.rights().await {
            Ok(()) => match &health.failures()[..] {
                [] => plain(StatusCode::OK, "ready"),
                ails => plain(StatusCode::SERVICE_UNAVAILABLE, &ails.join("\n")),
            },
            Err(err) => plain(StatusCode::SERVICE_UNAVAILABLE, &chain(&err)),
        },
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
    }
}
