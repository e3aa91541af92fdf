//! Figures that the queue knows of the whole fleet. Every worker returns the same ones, so rules take the
//! largest of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use snapferry_base::retry::chain;
use snapferry_fleet::queue::{
    Counts, GcSurvey, JobRecord, JobState, LastSuccess, Queue, QueueError, Schedule, WorkerSeen,
};
use snapferry_fleet::worker::schedule::read;

use super::{FloatGauge, Leftovers};
use crate::cli::fleet::snapshot_time;

/// Time limit for all questions to the queue. Prometheus gives a scrape 10 s.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest number of dead jobs that are read, the newest first.
const DEAD_JOBS: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeftoverLabels {
    region: String,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabel {
    region: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: String,
    region: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScheduleLabel {
    schedule: String,
}

/// Answers of the queue to one scrape.
pub struct Figures {
    counts: Counts,
    waiting: Option<Duration>,
    successes: Vec<LastSuccess>,
    dead: Vec<JobRecord>,
    schedules: Vec<Schedule>,
    workers: Vec<WorkerSeen>,
    surveys: Vec<GcSurvey>,
    now: SystemTime,
}

impl Figures {
    /// Asks the queue.
    ///
    /// # Errors
    /// If the queue refuses, or does not answer in time: the reason, for the log.
    pub async fn ask(queue: &dyn Queue) -> Result<Self, String> {
        let asked = tokio::time::timeout(TIMEOUT, async {
            Ok::<_, QueueError>(Self {
                counts: queue.counts().await?,
                waiting: queue.waiting().await?,
                successes: queue.last_successes().await?,
                dead: queue.jobs_in(&[JobState::Dead], DEAD_JOBS).await?,
                schedules: queue.schedules().await?,
                workers: queue.workers().await?,
                surveys: queue.surveys().await?,
                now: queue.now().await?,
            })
        });
        match asked.await {
            Ok(answered) => answered.map_err(|error| chain(&error)),
            Err(_) => Err(format!("the queue has not answered within {} s", TIMEOUT.as_secs())),
        }
    }

    /// Adds the figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let jobs: Family<StateLabel, Gauge> = Family::default();
        for state in JobState::ALL {
            let count = i64::try_from(self.counts.of(state)).unwrap_or(i64::MAX);
            jobs.get_or_create(&StateLabel { state: state.name().to_owned() }).set(count);
        }
        registry.register("jobs", "Jobs in the queue, by state", jobs);
        let oldest = FloatGauge::default();
        oldest.set(self.waiting.unwrap_or_default().as_secs_f64());
        registry.register_with_unit(
            "oldest_ready",
            "Time for which the longest-waiting ready job has been ready",
            Unit::Seconds,
            oldest,
        );
        self.register_servers(registry);
        let last_seen: Family<WorkerLabel, FloatGauge> = Family::default();
        for WorkerSeen { worker, at } in &self.workers {
            last_seen.get_or_create(&WorkerLabel { worker: worker.clone() }).set(seconds(*at));
        }
        registry.register_with_unit(
            "worker_last_seen_timestamp",
            "Time of each worker's last request to the queue",
            Unit::Seconds,
            last_seen,
        );
        let next_ticks: Family<ScheduleLabel, FloatGauge> = Family::default();
        for schedule in &self.schedules {
            let next = read(schedule).ok().and_then(|(_, ticks)| ticks.next(self.now));
            if let Some(next) = next {
                let label = ScheduleLabel { schedule: schedule.name.clone() };
                next_ticks.get_or_create(&label).set(seconds(next));
            }
        }
        registry.register_with_unit(
            "schedule_next_tick_timestamp",
            "Time at which a schedule adds its next jobs",
            Unit::Seconds,
            next_ticks,
        );
        self.register_surveys(registry);
    }

    /// Adds the figures of each server and region that is in a schedule, was replicated, or has a dead job.
    fn register_servers(&self, registry: &mut Registry) {
        let labels = |server: &str, region: &str| ServerLabels {
            server: server.to_owned(),
            region: region.to_owned(),
        };
        let successes: BTreeMap<ServerLabels, &LastSuccess> = self
            .successes
            .iter()
            .map(|success| (labels(&success.server, &success.region), success))
            .collect();
        let failed: BTreeSet<ServerLabels> = self
            .dead
            .iter()
            .map(|job| (labels(&job.server, &job.region), job))
            .filter(|(labels, job)| successes.get(labels).is_none_or(|success| success.at < job.changed_at))
            .map(|(labels, _)| labels)
            .collect();
        let plans = self.schedules.iter().filter_map(|schedule| read(schedule).ok());
        let scheduled = plans.flat_map(|(plan, _)| plan.jobs).map(|job| labels(&job.server, &job.to));
        let servers: BTreeSet<ServerLabels> =
            scheduled.chain(successes.keys().cloned()).chain(failed.iter().cloned()).collect();
        let snapshots: Family<ServerLabels, FloatGauge> = Family::default();
        let arrivals: Family<ServerLabels, FloatGauge> = Family::default();
        let failures: Family<ServerLabels, Gauge> = Family::default();
        for server in &servers {
            let success = successes.get(server);
            let taken = success.map_or(0.0, |success| seconds(snapshot_time(success)));
            snapshots.get_or_create(server).set(taken);
            if let Some(success) = success {
                arrivals.get_or_create(server).set(seconds(success.at));
            }
            failures.get_or_create(server).set(i64::from(failed.contains(server)));
        }
        registry.register_with_unit(
            "snapshot_timestamp",
            "Time of the snapshot in a server's last good image in a region; 0 if there is no image",
            Unit::Seconds,
            snapshots,
        );
        registry.register_with_unit(
            "last_success_timestamp",
            "Time at which a server's last good image was complete in a region",
            Unit::Seconds,
            arrivals,
        );
        registry.register(
            "server_failed",
            "1 if a server's newest job for a region is dead and no success came after it, otherwise 0",
            failures,
        );
    }

    fn register_surveys(&self, registry: &mut Registry) {
        let leaked: Family<LeftoverLabels, Gauge<i64>> = Family::default();
        let last_surveys: Family<RegionLabel, FloatGauge> = Family::default();
        for survey in &self.surveys {
            // Another version of gc may have stored another form: then only the time of its survey is
            // reported.
            for (kind, count) in serde_json::from_str::<Leftovers>(&survey.found).unwrap_or_default() {
                let labels = LeftoverLabels { region: survey.place.clone(), kind };
                leaked.get_or_create(&labels).set(count.into());
            }
            last_surveys.get_or_create(&RegionLabel { region: survey.place.clone() }).set(seconds(survey.at));
        }
        registry.register("leaked_resources", "Leftovers of dead jobs that gc last found", leaked);
        registry.register_with_unit(
            "last_survey_timestamp",
            "Time of the last search for leftovers by gc",
            Unit::Seconds,
            last_surveys,
        );
    }
}

/// Returns a time in seconds since 1970, as Prometheus counts.
fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
