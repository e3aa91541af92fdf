//! Metrics of a worker for Prometheus, and its health, at an address of their own: on loopback unless the
//! user gives another one.
//!
//! | file | content |
//! |---|---|
//! | `mod` | counters of this worker, and the registry of everything that a scrape returns |
//! | `fleet` | figures that the queue knows, which every worker returns |
//! | `process` | memory, processor time and files of this process |
//! | `format` | text formats, and which of them a client asks for |
//! | `server` | the server |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use snapferry_base::retry::Class;
use snapferry_base::units::to_u64;
use snapferry_fleet::queue::Queue;
use snapferry_fleet::replicate::{Progress, ProgressObserver, Step};
use snapferry_fleet::worker::{Health, HeldJobs, WorkerEvent};
use snapferry_ibmcloud::vpc::{LogWatch, Watch};

use crate::cli::throughput::{STAGES, Throughput, WAITING_STAGES};

mod fleet;
mod format;
mod process;
mod server;

pub use format::Format;
pub use server::serve;

/// Buckets of the step histogram, in seconds: steps take from a second to hours.
const STEP_SECONDS: [f64; 12] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 2400.0, 4800.0, 9600.0];

/// Gauge of a value with fractions, such as seconds.
type FloatGauge = Gauge<f64, AtomicU64>;

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
pub struct StageLabel {
    pub stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

/// Number of leftovers by kind, which `gc` stores in the queue as JSON; only kinds that it could list
/// completely.
pub type Leftovers = BTreeMap<String, u32>;

/// Everything that a scrape reads.
pub struct Exporter {
    pub metrics: Arc<Metrics>,
    pub queue: Arc<dyn Queue>,
    pub health: Arc<Health>,
    pub held_jobs: Arc<HeldJobs>,
    /// Number of conversions that the worker runs at a time.
    pub slots: usize,
}

impl Exporter {
    /// Returns all figures as text. If the queue does not answer, the figures of this process are there all
    /// the same, and `snapferry_queue_up` is 0.
    async fn text(&self, format: Format) -> String {
        let mut registry = Registry::default();
        process::register(&mut registry);
        let ours = registry.sub_registry_with_prefix("snapferry");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "Version of snapferry that runs", build);
        self.metrics.register(ours);
        self.register_work(ours);
        let found = fleet::Figures::ask(&*self.queue).await;
        let up: Gauge = Gauge::default();
        up.set(i64::from(found.is_ok()));
        ours.register("queue_up", "1 if the queue answered this scrape, and 0 if it did not", up);
        match found {
            Ok(figures) => figures.register(ours),
            Err(reason) => tracing::debug!("figures of the queue are missing from the metrics: {reason}"),
        }
        format.encode(&registry)
    }

    /// Adds the figures of the work in progress.
    fn register_work(&self, registry: &mut Registry) {
        let jobs: Family<StepLabel, Gauge> = Family::default();
        let gauge = |step: &str| jobs.get_or_create_owned(&StepLabel { step: step.to_owned() });
        for step in Step::ALL {
            gauge(step.name()).set(0);
        }
        for job in self.held_jobs.all() {
            // Before its first step, a job is about to be looked up in the cloud.
            gauge(job.step().unwrap_or(Step::Resolve).name()).inc();
        }
        registry.register("held_jobs", "Jobs that this worker holds, by step", jobs);
        let gauge = |value: usize| {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            gauge
        };
        registry.register(
            "conversion_slots",
            "Conversions that this worker runs at a time at most",
            gauge(self.slots),
        );
        registry.register(
            "running_transfers",
            "Conversions and proofs that move data on this worker",
            gauge(self.metrics.throughput.running()),
        );
    }
}

/// Counters of one worker process.
pub struct Metrics {
    results: Family<ResultLabels, Counter>,
    steps: Family<StepLabel, Histogram, fn() -> Histogram>,
    requests: Family<RequestLabels, Counter>,
    full_runs: Family<ReasonLabel, Counter>,
    leases_lost: Counter,
    takeovers: Counter,
    queue_failures: Counter,
    throughput: Arc<Throughput>,
}

impl Metrics {
    pub fn new(throughput: Arc<Throughput>) -> Self {
        Self {
            results: Family::default(),
            steps: Family::new_with_constructor(|| Histogram::new(STEP_SECONDS)),
            requests: Family::default(),
            full_runs: Family::default(),
            leases_lost: Counter::default(),
            takeovers: Counter::default(),
            queue_failures: Counter::default(),
            throughput,
        }
    }

    pub fn observe(&self, event: WorkerEvent) {
        let ended = |result: &str, class: &str| {
            self.results
                .get_or_create(&ResultLabels { result: result.to_owned(), class: class.to_owned() })
                .inc();
        };
        match event {
            WorkerEvent::Done => ended("done", ""),
            WorkerEvent::Failed(class) => ended("failed", label(class)),
            WorkerEvent::LeaseLost => {
                self.leases_lost.inc();
            }
            WorkerEvent::TakenBack(jobs) => {
                self.takeovers.inc_by(to_u64(jobs));
            }
            WorkerEvent::QueueFailed => {
                self.queue_failures.inc();
            }
        }
    }

    /// Adds the counters to a registry.
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "job_results",
            "Attempts at jobs that ended on this worker, by result and class of the error",
            self.results.clone(),
        );
        registry.register_with_unit(
            "step_duration",
            "Duration of the steps of jobs",
            Unit::Seconds,
            self.steps.clone(),
        );
        registry.register(
            "cloud_requests",
            "Requests that the cloud answered, by method, kind of resource and status",
            self.requests.clone(),
        );
        registry.register(
            "lease_lost",
            "Jobs that another worker took over while this worker held them",
            self.leases_lost.clone(),
        );
        registry.register(
            "takeovers",
            "Jobs that this worker took back from lost workers",
            self.takeovers.clone(),
        );
        registry.register(
            "queue_errors",
            "Requests that the queue did not answer or refused",
            self.queue_failures.clone(),
        );
        let totals = self.throughput.totals();
        let bytes = |count: u64| {
            let counter: Counter = Counter::default();
            counter.inc_by(count);
            counter
        };
        registry.register_with_unit(
            "source",
            "Bytes of source disks that are in images, holes included",
            Unit::Bytes,
            bytes(totals.source),
        );
        registry.register_with_unit(
            "sent",
            "Bytes of images that were sent to the bucket",
            Unit::Bytes,
            bytes(totals.sent()),
        );
        registry.register_with_unit(
            "copied",
            "Bytes of images that the store has copied from earlier ones",
            Unit::Bytes,
            bytes(totals.copied),
        );
        registry.register(
            "full_runs",
            "Images for which all of the disk was sent, by the reason in one word",
            self.full_runs.clone(),
        );
        let family = |stages: &[&'static str], values: &[u64]| {
            let family: Family<StageLabel, Counter> = Family::default();
            for (&stage, &value) in stages.iter().zip(values) {
                family.get_or_create(&StageLabel { stage }).inc_by(value);
            }
            family
        };
        registry.register_with_unit(
            "stage",
            "Bytes that each stage has moved: of the disk for read and decode, of the image for the others",
            Unit::Bytes,
            family(&STAGES, &totals.bytes),
        );
        registry.register(
            "stage_waits",
            "Times that the other stages waited for a stage: the highest rate is the bottleneck",
            family(&WAITING_STAGES, &totals.waits),
        );
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

    fn answered(&self, method: &str, resource: &str, status: u16) {
        let labels = RequestLabels { method: method.to_owned(), resource: resource.to_owned(), code: status };
        self.0.requests.get_or_create(&labels).inc();
    }
}

/// Measures how long steps take, counts the images that were sent in full, and passes every event on.
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
        if let Progress::SentInFull(reason) = &progress {
            self.metrics.full_runs.get_or_create(&ReasonLabel { reason: (*reason).to_owned() }).inc();
        }
        self.next.on_progress(progress);
    }
}
