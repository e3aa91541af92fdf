//! `snapferry worker`: this server's share in the fleet.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::args::WorkerArgs;
use super::{open, timing};
use crate::cancel::Cancel;
use crate::cli::cloud::{Cloud, run_leaving};
use crate::cli::exit::Code;
use crate::cli::log::Verbosity;
use crate::cli::progress::Console;
use crate::cli::replicate::record;
use crate::cli::replicate::show::Shown;
use crate::cli::replicate::site::Ground;
use crate::cli::signals::Left;
use crate::clock::SystemClock;
use crate::vpc::{LogWatch, Watch};
use crate::worker::fleet::{Grounds, Worker};
use crate::worker::{Finished, Job, Onlooker, OwnServer, Site};

/// Jobs made ready for work on this server.
struct Here<'a> {
    cloud: &'a Cloud,
    ground: Ground<'a>,
    own: OwnServer,
    console: &'a Console,
    verbosity: Verbosity,
}

impl Grounds for Here<'_> {
    fn site(&self, job: &Job, cancel: &Cancel) -> Result<Site, String> {
        let watch: Arc<dyn Watch> = Arc::new(LogWatch);
        self.ground.site(self.cloud, job, &self.own, cancel, &watch).map_err(|error| format!("{error:#}"))
    }

    fn onlooker(&self, _job: &Job) -> Arc<dyn Onlooker> {
        // Several jobs at once: a line for each change, whoever looks on.
        Arc::new(Shown::new(&self.console.without_terminal(), self.verbosity))
    }

    fn result(&self, job: &Job, finished: &Finished) -> String {
        let took: f64 = finished.steps.iter().map(|step| step.seconds).sum();
        let begun = SystemTime::now().checked_sub(Duration::from_secs_f64(took.max(0.0))).unwrap_or(SystemTime::UNIX_EPOCH);
        record(job, finished, begun).to_string()
    }
}

pub fn run(args: &WorkerArgs, verbosity: Verbosity, console: &Console) -> anyhow::Result<Code> {
    run_leaving(&args.cloud, Left::Job, async |cloud| {
        let ground = Ground { cloud_args: &args.cloud, recovery: &args.recovery, place: &args.place };
        let own = ground.own(cloud).await?;
        let queue = open(&args.queue).await?;
        let name = format!("{} ({})", own.name, own.id);
        let here = Here { cloud, ground, own, console, verbosity };
        let worker = Worker {
            queue: &queue,
            name: name.clone(),
            timing: timing(&args.queue),
            grounds: &here,
            clock: Arc::new(SystemClock),
            drain: cloud.cancel().clone(),
        };
        tracing::info!("{name} works on {} jobs at a time", args.concurrency);
        let hands: Vec<_> = (0..args.concurrency.get()).map(|_| Box::pin(worker.run())).collect();
        tokio::join!(worker.reap(), all(hands));
        tracing::info!("{name} has nothing left in its hands");
        Ok(Code::Done)
    })
}

/// Runs all of them side by side, in this task: they wait, and what takes time is on threads of its own.
async fn all<F: Future<Output = ()> + Unpin>(mut hands: Vec<F>) {
    std::future::poll_fn(|context| {
        hands.retain_mut(|hand| std::pin::Pin::new(hand).poll(context).is_pending());
        if hands.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
