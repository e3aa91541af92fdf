//! `snapferry worker`: works on jobs of the fleet on this server.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args as Group;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::fence::Fence;
use snapferry_base::identity::IdentityError;
use snapferry_base::retry::chain;
use snapferry_fleet::queue::{Queue, RedisQueue};
use snapferry_fleet::replicate::{
    Age, BucketOptions, Finished, JobContext, JobError, JobSpec, OwnServer, ProgressObserver,
};
use snapferry_fleet::worker::{JobEnvironment, ShutdownSignals, Worker, WorkerEvent, WorkerLimits};
use snapferry_ibmcloud::iam::{CLOUD_INIT, instance_of_cloud_init};

use super::metrics::{Answers, Counting, Exporter, Metrics};
use super::{config, metrics, notify, timing};
use crate::cli::args::{CloudArgs, PlaceArgs, QueueArgs, RecoveryArgs};
use crate::cli::cloud::{Cloud, RequestContext, run_leaving};
use crate::cli::credentials;
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::hints;
use crate::cli::replicate::record;
use crate::cli::replicate::show::Shown;
use crate::cli::replicate::site::SiteArgs;
use crate::cli::session::Session;
use crate::cli::signals::Unfinished;
use crate::cli::throughput::Metered;

/// Time limit for one request to the cloud. A worker stops by itself 90 s after its last good beat; 25 s
/// later none of its requests is under way any more, before its lease of 120 s runs out.
const DEADLINE: Duration = Duration::from_secs(25);

/// Time limit for this server's metadata service to answer. At boot, a worker may start before the service
/// can be reached.
const METADATA_TIMEOUT: Duration = Duration::from_secs(120);
/// Time between two requests to the metadata service until it answers.
const METADATA_POLL: Duration = Duration::from_secs(2);

/// Environment for the jobs on this server.
struct WorkerHost<'a> {
    cloud: &'a Cloud,
    site_args: SiteArgs<'a>,
    own: OwnServer,
    session: &'a Session,
    metrics: Arc<Metrics>,
}

impl JobEnvironment for WorkerHost<'_> {
    fn context(&self, job: &JobSpec, cancel: &Cancel, fence: Arc<dyn Fence>) -> Result<JobContext, String> {
        let request_context = RequestContext {
            cancel: cancel.clone(),
            watch: Arc::new(Answers(Arc::clone(&self.metrics))),
            fence,
            deadline: Some(DEADLINE),
        };
        // A client that can write to the queue must not choose where this worker's credentials go.
        let bucket_options = BucketOptions { addressing: None, ..job.bucket_options.clone() };
        let job = JobSpec { endpoint: None, bucket_options, ..job.clone() };
        self.site_args
            .site(self.cloud, &job, &self.own, &request_context)
            .map_err(|error| format!("{error:#}"))
    }

    fn observer(&self, _job: &JobSpec) -> Arc<dyn ProgressObserver> {
        // Several jobs run at once, so each change is a line of its own, on a terminal too.
        let shown = Arc::new(Shown::new(&self.session.console.without_terminal(), self.session.verbosity));
        let metered = Arc::new(Metered::new(&self.session.throughput, shown));
        Arc::new(Counting { metrics: Arc::clone(&self.metrics), next: metered })
    }

    fn result(&self, job: &JobSpec, finished: &Finished) -> String {
        let took: f64 = finished.steps.iter().map(|step| step.seconds).sum();
        let begun = SystemTime::now()
            .checked_sub(Duration::from_secs_f64(took.max(0.0)))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        record(job, finished, begun).to_string()
    }

    fn error_text(&self, error: &JobError) -> String {
        let mut message = format!("{}: {}", error.step, chain(&*error.fault));
        if let Some(hint) = hints::of_job(error) {
            message.push('\n');
            message.push_str(&hint);
        }
        message
    }

    fn record(&self, event: WorkerEvent) {
        self.metrics.observe(event);
    }
}

/// Waits until this server's metadata service answers, if nothing else reports the id and the region of this
/// server. If the service stays silent it is off: this succeeds, because the requests that follow report
/// that. If it only fails, this returns an error that may pass.
async fn wait_for_metadata(args: &WorkerArgs) -> CommandResult<()> {
    let known = args.place.instance.is_some() || instance_of_cloud_init(Path::new(CLOUD_INIT)).is_some();
    if known && args.cloud.region.is_some() {
        return Ok(());
    }
    let (metadata, begun) = (credentials::metadata(&args.cloud.identity)?, Instant::now());
    loop {
        let error = match metadata.instance().await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let is_off = matches!(error, IdentityError::MetadataOff { .. });
        if !is_off && !error.class().is_retryable() {
            return Ok(());
        }
        if begun.elapsed() >= METADATA_TIMEOUT {
            return if is_off { Ok(()) } else { Err(error.into()) };
        }
        tracing::warn!("asking again, for {} s in all: {}", METADATA_TIMEOUT.as_secs(), chain(&error));
        tokio::time::sleep(METADATA_POLL).await;
    }
}

/// Warns at the start if there is no folder of devices, because the first job would fail. The folder may come
/// with the first disk.
fn check_device_folder(devices: &Path) {
    if let Err(error) = std::fs::read_dir(devices) {
        let folder = devices.display();
        tracing::warn!(
            "the folder of devices {folder}: {error}; it has to be there once a volume is attached (--device-folder)"
        );
    }
}

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry worker\n  snapferry worker --concurrency 3\n\nSIGTERM: nothing more is claimed, what is being converted comes to its end, and then everything is given back; another worker goes on with it."
)]
pub struct WorkerArgs {
    /// Conversions at once, each with a volume attached; jobs that only wait for the cloud do not count
    #[arg(long, default_value = "2", value_name = "N")]
    pub concurrency: NonZeroUsize,

    /// On SIGTERM, how long conversions may continue before they are given back unfinished
    #[arg(long, default_value = "14m", value_name = "AGE")]
    pub stop_within: Age,

    /// Time for which jobs that are over are remembered
    #[arg(long, default_value = "30d", value_name = "AGE")]
    pub keep_jobs: Age,

    /// Address that serves /metrics, /healthz and /readyz, or off
    #[arg(long, default_value = "127.0.0.1:19419", value_name = "ADDRESS|off")]
    pub metrics: MetricsAddress,

    #[command(flatten)]
    pub queue: QueueArgs,

    #[command(flatten)]
    pub place: PlaceArgs,

    #[command(flatten)]
    pub cloud: CloudArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

/// Address of the metrics and the health of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    At(SocketAddr),
    Off,
}

impl FromStr for MetricsAddress {
    type Err = String;
    fn from_str(typed: &str) -> Result<Self, String> {
        if typed == "off" {
            return Ok(Self::Off);
        }
        typed
            .parse()
            .map(Self::At)
            .map_err(|_| format!("{typed:?} is no address: give one as in 127.0.0.1:19419, or off"))
    }
}

pub fn run(args: &WorkerArgs, session: &Session) -> CommandResult<Code> {
    // This comes before any request, because no response could mend a wrong configuration.
    let redis = config(&args.queue, &session.environment)?;
    session.runtime()?.block_on(wait_for_metadata(args))?;
    let hurry = Cancel::new();
    run_leaving(&args.cloud, session, Unfinished::Jobs(hurry.clone()), async |cloud| {
        let site_args =
            SiteArgs { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place, session };
        let own = site_args.own(cloud).await?;
        let queue: Arc<dyn Queue> = Arc::new(RedisQueue::connect(&redis).await?);
        // A missing right is reported now, and not once a job is lost.
        queue.rights().await?;
        let store = args.recovery.store(&args.cloud.identity);
        credentials::find(&store, &session.environment)?;
        check_device_folder(&args.place.device_folder);
        let name = format!("{} ({})", own.name, own.id);
        let metrics = Arc::new(Metrics::new(Arc::clone(&session.throughput)));
        let host = WorkerHost { cloud, site_args, own, session, metrics: Arc::clone(&metrics) };
        let (Age(grace), Age(remembered)) = (args.stop_within, args.keep_jobs);
        let limits = WorkerLimits { conversions: args.concurrency.get(), grace, remembered };
        let drain = cloud.cancel().clone();
        let clock = Arc::new(SystemClock);
        let signals = ShutdownSignals { drain: drain.clone(), hurry };
        let worker =
            Worker::new(Arc::clone(&queue), name.clone(), timing(&args.queue), limits, &host, clock, signals);
        tracing::info!("{name} converts {} at a time", args.concurrency);
        let metrics_server = async {
            match args.metrics {
                MetricsAddress::At(address) => {
                    let (health, held_jobs) = (worker.health(), worker.held_jobs());
                    let slots = args.concurrency.get();
                    metrics::serve(address, Exporter { metrics, queue, health, held_jobs, slots }).await;
                }
                MetricsAddress::Off => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = worker.run() => {}
            () = notify::keep(&worker, &drain) => {}
            () = metrics_server => {}
        }
        tracing::info!("{name} has nothing left in its hands");
        Ok(Code::Done)
    })
}
