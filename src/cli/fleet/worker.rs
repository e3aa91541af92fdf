//! `snapferry worker`: this server's share in the fleet.

use crate::cli::error::CommandResult;
use std::num::NonZeroUsize;
use std::net::SocketAddr;
use std::str::FromStr;
use crate::cli::session::Session;
use crate::cli::args::{CloudArgs, PlaceArgs, QueueArgs, RecoveryArgs};
use clap::Args as Group;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::fence::Fence;
use snapferry_base::identity::IdentityError;
use snapferry_base::retry::chain;
use snapferry_fleet::queue::{Queue, RedisQueue};
use snapferry_fleet::replicate::{Age, Finished, Job, JobError, Onlooker, OwnServer, Site};
use snapferry_fleet::worker::{Grounds, Share, Told, Words, Worker};
use snapferry_ibmcloud::iam::{CLOUD_INIT, instance_of_cloud_init};

use super::metrics::{Answers, Counting, Metrics};
use super::{config, metrics, notify, timing};
use crate::cli::cloud::{Cloud, Terms, run_leaving};
use crate::cli::credentials;
use crate::cli::exit::Code;
use crate::cli::hints;
use crate::cli::replicate::record;
use crate::cli::replicate::show::Shown;
use crate::cli::replicate::site::Ground;
use crate::cli::signals::Left;

/// How long one request to the cloud may take: a worker stops by itself 90 s after its last good beat, and 25 s after that nothing of its
/// is under way any more, when its lease of 120 s runs out.
const DEADLINE: Duration = Duration::from_secs(25);

/// How long this server's metadata service may take to answer. At boot a worker may be there before the way to it is.
const AWAKE: Duration = Duration::from_secs(120);
/// How often it is asked until then.
const ASK: Duration = Duration::from_secs(2);

/// Jobs made ready for work on this server.
struct Here<'a> {
    cloud: &'a Cloud,
    ground: Ground<'a>,
    own: OwnServer,
    session: &'a Session,
    metrics: Arc<Metrics>,
}

impl Grounds for Here<'_> {
    fn site(&self, job: &Job, cancel: &Cancel, fence: Arc<dyn Fence>) -> Result<Site, String> {
        let terms = Terms {
            cancel: cancel.clone(),
            watch: Arc::new(Answers(Arc::clone(&self.metrics))),
            fence,
            deadline: Some(DEADLINE),
        };
        // Whoever can write to the queue must not choose where this worker's credentials go.
        let job = Job { endpoint: None, ..job.clone() };
        self.ground.site(self.cloud, &job, &self.own, &terms).map_err(|error| format!("{error:#}"))
    }

    fn onlooker(&self, _job: &Job) -> Arc<dyn Onlooker> {
        // Several jobs at once: a line for each change, whoever looks on.
        let shown = Arc::new(Shown::new(&self.session.console.without_terminal(), self.session.verbosity));
        Arc::new(Counting { metrics: Arc::clone(&self.metrics), next: shown })
    }

    fn result(&self, job: &Job, finished: &Finished) -> String {
        let took: f64 = finished.steps.iter().map(|step| step.seconds).sum();
        let begun = SystemTime::now()
            .checked_sub(Duration::from_secs_f64(took.max(0.0)))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        record(job, finished, begun).to_string()
    }

    fn words(&self, error: &JobError) -> String {
        let mut words = format!("{}: {}", error.step, chain(&*error.fault));
        if let Some(hint) = hints::of_job(error) {
            words.push('\n');
            words.push_str(&hint);
        }
        words
    }

    fn told(&self, told: Told<'_>) {
        self.metrics.told(told);
    }
}

/// Waits until this server's metadata service answers, where nothing else tells who and where this server is. One that stays silent is off,
/// which those who ask it afterwards say; one that fails is an error that may pass.
async fn awake(args: &WorkerArgs) -> CommandResult<()> {
    let known = args.place.instance.is_some() || instance_of_cloud_init(Path::new(CLOUD_INIT)).is_some();
    if known && args.cloud.region.is_some() {
        return Ok(());
    }
    let (metadata, begun) = (credentials::metadata(&args.cloud.identity)?, Instant::now());
    loop {
        let silent = match metadata.instance().await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let is_off = matches!(silent, IdentityError::MetadataOff { .. });
        if !is_off && !silent.class().is_retryable() {
            return Ok(());
        }
        if begun.elapsed() >= AWAKE {
            return if is_off { Ok(()) } else { Err(silent.into()) };
        }
        tracing::warn!("asking again, for {} s in all: {}", AWAKE.as_secs(), chain(&silent));
        tokio::time::sleep(ASK).await;
    }
}

/// Says at the start what the first job would trip over. The folder may come with the first disk.
fn look(devices: &Path) {
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

    /// How long jobs that are over are remembered
    #[arg(long, default_value = "30d", value_name = "AGE")]
    pub keep_jobs: Age,

    /// Address that serves /metrics, /healthz and /readyz, or off
    #[arg(long, default_value = "127.0.0.1:9419", value_name = "ADDRESS|off")]
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

/// Where a worker is asked.
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
            .map_err(|_| format!("{typed:?} is no address: give one as in 127.0.0.1:9419, or off"))
    }
}

pub fn run(args: &WorkerArgs, session: &Session) -> CommandResult<Code> {
    // Before anybody is asked: no answer mends that.
    let redis = config(&args.queue, &session.environment)?;
    session.runtime()?.block_on(awake(args))?;
    let hurry = Cancel::new();
    run_leaving(&args.cloud, session, Left::Jobs(hurry.clone()), async |cloud| {
        let ground = Ground { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place, session };
        let own = ground.own(cloud).await?;
        let queue: Arc<dyn Queue> = Arc::new(RedisQueue::connect(&redis).await?);
        // A right that is missing is told now, and not once a job is lost.
        queue.rights().await?;
        let store = args.recovery.store(&args.cloud.identity);
        credentials::find(&store, &session.environment)?;
        look(&args.place.device_folder);
        let name = format!("{} ({})", own.name, own.id);
        let metrics = Arc::new(Metrics::new());
        let here = Here { cloud, ground, own, session, metrics: Arc::clone(&metrics) };
        let (Age(grace), Age(remembered)) = (args.stop_within, args.keep_jobs);
        let share = Share { conversions: args.concurrency.get(), grace, remembered };
        let drain = cloud.cancel().clone();
        let clock = Arc::new(SystemClock);
        let words = Words { drain: drain.clone(), hurry };
        let worker =
            Worker::new(Arc::clone(&queue), name.clone(), timing(&args.queue), share, &here, clock, words);
        tracing::info!("{name} converts {} at a time", args.concurrency);
        let beside = async {
            match args.metrics {
                MetricsAddress::At(address) => metrics::serve(address, metrics, queue, worker.health()).await,
                MetricsAddress::Off => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = worker.run() => {}
            () = notify::keep(&worker, &drain) => {}
            () = beside => {}
        }
        tracing::info!("{name} has nothing left in its hands");
        Ok(Code::Done)
    })
}
