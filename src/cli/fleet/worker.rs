//! `snapferry worker`: this server's share in the fleet.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::args::{MetricsAddress, WorkerArgs};
use super::metrics::{Answers, Counting, Metrics};
use super::{metrics, notify, open, timing};
use crate::cancel::Cancel;
use crate::cli::cloud::{Cloud, Terms, run_leaving};
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
use crate::queue::Queue;
use crate::retry::chain;
use crate::worker::fleet::{Grounds, Share, Told, Words, Worker};
use crate::worker::{Age, Finished, Job, JobError, Onlooker, OwnServer, Site};

/// How long one request to the cloud may take: a worker stops by itself 90 s after its last good beat, and 25 s after that nothing of its
/// is under way any more, when its lease of 120 s runs out.
const DEADLINE: Duration = Duration::from_secs(25);

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

pub fn run(args: &WorkerArgs, verbosity: Verbosity, console: &Console) -> anyhow::Result<Code> {
    let hurry = Cancel::new();
    run_leaving(&args.cloud, Left::Jobs(hurry.clone()), async |cloud| {
        let ground = Ground { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place };
        let own = ground.own(cloud).await?;
        let queue: Arc<dyn Queue> = Arc::new(open(&args.queue).await?);
        let name = format!("{} ({})", own.name, own.id);
        let metrics = Arc::new(Metrics::new());
        let here = Here { cloud, ground, own, console, verbosity, metrics: Arc::clone(&metrics) };
        let Age(grace) = args.stop_within;
        let share = Share { conversions: args.concurrency.get(), grace };
        let drain = cloud.cancel().clone();
        let clock = Arc::new(SystemClock);
        let words = Words { drain: drain.clone(), hurry };
        let worker = Worker::new(Arc::clone(&queue), name.clone(), timing(&args.queue), share, &here, clock, words);
        tracing::info!("{name} converts {} at a time", args.concurrency);
        let beside = async {
            match args.metrics {
                MetricsAddress::At(address) => metrics::serve(address, metrics, queue).await,
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
