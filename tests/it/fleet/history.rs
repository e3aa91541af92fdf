//! Rules that hold whatever has happened, checked on the queue's events and on the cloud's history.

use std::collections::{BTreeMap, BTreeSet};

use snapferry_base::job::JobId;
use snapferry_fleet::queue::{EVENTS_KEPT, JobState, Queue as _};
use snapferry_sim::RegionOperation as Op;

use super::Fleet;
use crate::support::Host;

impl Fleet {
    /// Checks all rules from `since` on, an index into the cloud's history.
    pub(super) async fn history(&self, since: usize, case: &str) {
        let queue = self.queue().await;
        self.one_worker_at_a_time(&queue, case).await;
        self.nothing_is_made_twice(since, case);
        self.every_job_is_somewhere(&queue, case).await;
        self.every_success_is_the_latest(&queue, case).await;
    }

    /// Between two claims of a job the first lease has ended, according to the queue's events.
    async fn one_worker_at_a_time(&self, queue: &snapferry_fleet::queue::RedisQueue, case: &str) {
        let mut running: BTreeSet<JobId> = BTreeSet::new();
        for event in queue.events(EVENTS_KEPT).await.unwrap() {
            match event.what.as_str() {
                "claimed" => assert!(running.insert(event.id), "{case}: {} was claimed by two", event.id),
                "step" => assert!(
                    running.contains(&event.id),
                    "{case}: {} went on without a lease: {event:?}",
                    event.id
                ),
                "done" | "dead" | "cancelled" | "failed" | "released" | "taken-back" => {
                    running.remove(&event.id);
                }
                _ => {}
            }
        }
    }

    /// No snapshot and no image is made twice under the same name.
    fn nothing_is_made_twice(&self, since: usize, case: &str) {
        let mut made: BTreeMap<(Op, String), usize> = BTreeMap::new();
        for entry in self.bench.sim.history().into_iter().skip(since).filter(|entry| entry.status < 300) {
            if matches!(entry.operation, Op::CreateSnapshot | Op::CreateImage) {
                *made.entry((entry.operation, entry.name.unwrap_or_default())).or_default() += 1;
            }
        }
        let twice: Vec<_> = made.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{case}: {twice:?}");
    }

    /// No job is lost: each job that was added is in exactly one state.
    async fn every_job_is_somewhere(&self, queue: &snapferry_fleet::queue::RedisQueue, case: &str) {
        let added: BTreeSet<JobId> = queue
            .events(EVENTS_KEPT)
            .await
            .unwrap()
            .into_iter()
            .filter(|event| event.what == "added")
            .map(|event| event.id)
            .collect();
        let mut there = BTreeSet::new();
        for state in JobState::ALL {
            for job in queue.jobs(state, EVENTS_KEPT).await.unwrap() {
                assert!(there.insert(job.id), "{case}: {} is in two states", job.id);
            }
        }
        assert_eq!(there, added, "{case}: jobs");
    }

    /// The latest image of each server is the image of its last successful job.
    async fn every_success_is_the_latest(&self, queue: &snapferry_fleet::queue::RedisQueue, case: &str) {
        let images = self.bench.images().await;
        for success in queue.last_successes().await.unwrap() {
            let latest: Vec<_> =
                images.iter().filter(|image| image.name == format!("{}-latest", success.server)).collect();
            assert_eq!(latest.len(), 1, "{case}: {} has {latest:?}", success.server);
            let result: serde_json::Value = serde_json::from_str(&success.result).unwrap();
            assert_eq!(result["image"]["id"], latest[0].id.to_string(), "{case}: {}", success.server);
        }
    }

    /// Nothing is left of finished jobs, and a second `gc` finds nothing more.
    pub(super) async fn nothing_is_left(&self, case: &str) {
        self.bench.gc(Host::Own).await;
        assert_eq!(
            self.bench.gc(Host::Other).await,
            Vec::<String>::new(),
            "{case}: a second look finds more"
        );
        assert_eq!(self.bench.leaks().await, Vec::<String>::new(), "{case}");
    }
}
