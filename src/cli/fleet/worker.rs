//! `snapferry worker`: this server's share in the fleet.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::args::{MetricsAddress, WorkerArgs};
use super::metrics::{Answers, Counting, Metrics};
use super::{config, metrics, notify, timing};
use crate::cancel::Cancel;
use crate::cli::cloud::{Cloud, Terms, run_leaving};
use crate::cli::credentials::{self, Environment};
use crate::cli::exit::Code;
use crate::cli::hints;
use crate::cli::log::Verbosity;
use crate::cli::progress::Console;
use crate::cli::replicate::record;
use crate::cli::replicate::show::Shown;
use crate::cli::replicate::site::Ground;
use crate::cli::signals::Left;
use crate::clock::SystemClock;
use crate::fence::Fence;
use crate::identity::{CLOUD_INIT, IdentityError, instance_of_cloud_init};
use crate::queue::{Queue, RedisQueue};
use crate::retry::chain;
use crate::worker::fleet::{Grounds, Share, Told, Words, Worker};
use crate::worker::{Age, Finished, Job, JobError, Onlooker, OwnServer, Site};

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
    console: &'a Console,
    verbosity: Verbosity,
    metrics: Arc<Metrics>,
}

impl Grounds for Here<'_> {
    fn site(&self, job: &Job, cancel: &Cancel, fence: Arc<dyn Fence>) -> Result<Site, String> {
        let terms =
            Terms { cancel: cancel.clone(), watch: Arc::new(Answers(Arc::clone(&self.metrics))), fence, deadline: Some(DEADLINE) };
        // Whoever can write to the queue must not choose where this worker's credentials go.
        let job = Job { endpoint: None, ..job.clone() };
        self.ground.site(self.cloud, &job, &self.own, &terms).map_err(|error| format!("{error:#}"))
    }

    fn onlooker(&self, _job: &Job) -> Arc<dyn Onlooker> {
        // Several jobs at once: a line for each change, whoever looks on.
        let shown = Arc::new(Shown::new(&self.console.without_terminal(), self.verbosity));
        Arc::new(Counting { metrics: Arc::clone(&self.metrics), next: shown })
    }

    fn result(&self, job: &Job, finished: &Finished) -> String {
        let took: f64 = finished.steps.iter().map(|step| step.seconds).sum();
        let begun = SystemTime::now().checked_sub(Duration::from_secs_f64(took.max(0.0))).unwrap_or(SystemTime::UNIX_EPOCH);
        record(job, finished, begun).to_string()
    }

    fn words(&self, error: &JobError) -> String {
        let mut words = format!("{}: {}", error.step, chain(&*error.fault));
        if let Some(hint) = hints::of(error) {
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
async fn awake(args: &WorkerArgs) -> anyhow::Result<()> {
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
        tracing::warn!("the folder of devices {folder}: {error}; it has to be there once a volume is attached (--device-folder)");
    }
}

pub fn run(args: &WorkerArgs, verbosity: Verbosity, console: &Console) -> anyhow::Result<Code> {
    // Before anybody is asked: no answer mends that.
    let redis = config(&args.queue)?;
    crate::cli::runtime()?.block_on(awake(args))?;
    let hurry = Cancel::new();
    run_leaving(&args.cloud, Left::Jobs(hurry.clone()), async |cloud| {
        let ground = Ground { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place };
        let own = ground.own(cloud).await?;
        let queue: Arc<dyn Queue> = Arc::new(RedisQueue::connect(&redis).await?);
        // A right that is missing is told now, and not once a job is lost.
        queue.rights().await?;
        let store = args.recovery.store(&args.cloud.identity);
        credentials::find(&store, &Environment::of_process())?;
        look(&args.place.device_folder);
        let name = format!("{} ({})", own.name, own.id);
        let metrics = Arc::new(Metrics::new());
        let here = Here { cloud, ground, own, console, verbosity, metrics: Arc::clone(&metrics) };
        let (Age(grace), Age(remembered)) = (args.stop_within, args.keep_jobs);
        let share = Share { conversions: args.concurrency.get(), grace, remembered };
        let drain = cloud.cancel().clone();
        let clock = Arc::new(SystemClock);
        let words = Words { drain: drain.clone(), hurry };
        let worker = Worker::new(Arc::clone(&queue), name.clone(), timing(&args.queue), share, &here, clock, words);
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
