//! The second night of a server in the fleet: the worker that takes a job over copies from the image that the
//! first one chose, and `status`, `jobs show` and the metrics report what was copied and what was sent.

use std::time::Duration;

use serde_json::Value;
use snapferry_sim::{Action, Operation as Store, Rule, When};

use super::metrics::{address, figure, scrape, value};
use super::{Fleet, Worker};
use crate::support::{Bench, Host, Redis, SAFE, SERVER};

impl Fleet {
    /// Starts a fleet whose server has one image, which is large enough to copy from.
    async fn after_a_night() -> Option<Self> {
        let redis = Redis::start(&SAFE).await?;
        Some(Self { bench: Bench::with_large_night().await, redis })
    }

    /// The newest job of the server, with its journal.
    async fn shown(&self) -> Value {
        let id = self.job().await["job"].as_str().unwrap().to_owned();
        self.run(&["jobs", "show", &id, "--json"]).await.json()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_jobs_report_what_was_copied_and_what_was_sent() {
    let Some(fleet) = Fleet::after_a_night().await else { return };
    let base = fleet.bench.stored_images().pop().expect("the first night's");
    fleet.bench.use_disk(1);
    let address = address();
    let _worker = Worker::start(fleet.command(Host::Own, &["worker", "--metrics", &address]));
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until_state("done").await;
    let shown = fleet.shown().await;
    let object = &shown["result"]["object"];
    assert_eq!(
        (&object["base"]["key"], &object["base"]["segments_unchanged"]),
        (&base.as_str().into(), &5.into())
    );
    let status = fleet.run(&["status", "--json"]).await.json();
    let last = &status["servers"][0]["last_success"];
    for field in ["bytes_sent", "base", "full_because"] {
        assert_eq!(last[field], object[field], "{field}: {last}");
    }
    fleet.run(&["status"]).await.code(0).says(&[", 5 of 7 segments unchanged"]);
    let id = shown["job"].as_str().unwrap();
    let line = format!("{base}: 5 of 7 segments unchanged; ");
    fleet.run(&["jobs", "show", id]).await.code(0).says(&[&line, "copied in the store,", "sent"]);
    let scraped = scrape(&address).await;
    for (name, bytes) in [("sent", &object["bytes_sent"]), ("copied", &object["base"]["bytes_copied"])] {
        let counted = figure(&scraped, &format!("snapferry_{name}_bytes_total"));
        assert_eq!(Some(counted), bytes.as_f64(), "{name}: {object}");
    }
    let full_runs = "snapferry_full_runs_total{reason=\"not-asked\"}";
    assert_eq!(value(&scraped, full_runs), None);
    // The user wants all of it sent.
    fleet.run(&["enqueue", SERVER, "--base", "none"]).await.code(0);
    fleet
        .until("the second job", async || {
            let job = fleet.job().await;
            job["state"] == "done" && job["job"] != *id
        })
        .await;
    let full = fleet.shown().await;
    assert_eq!(
        (&full["spec"]["base"], &full["result"]["object"]["full_because"]),
        (&"none".into(), &"not-asked".into())
    );
    assert_eq!(full["result"]["object"]["sha256"], object["sha256"], "the images differ");
    fleet.run(&["status"]).await.code(0).says(&[", full: not-asked"]);
    assert_eq!(figure(&scrape(&address).await, full_runs), 1.0);
}

/// The worker is killed at a request of its conversion. The other one uses the same base.
async fn killed_at(call: Store, nth: u32, action: Action) {
    let Some(fleet) = Fleet::after_a_night().await else { return };
    let (case, since) = (format!("{call} {nth} {action:?}"), fleet.bench.sim.history().len());
    let base = fleet.bench.stored_images().pop().expect("the first night's");
    let expected = std::fs::read(fleet.bench.stored(&base)).unwrap();
    fleet.bench.sim.store().faults().add(Rule::on(call).when(When::Nth(nth)), action);
    let mut first = fleet.worker(Host::Own);
    fleet.run(&["enqueue", SERVER]).await.code(0);
    fleet.until("the request", async || fleet.bench.sim.store().faults().fired() == [1]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.kill();
    fleet.bench.disarm();
    let chosen = fleet.shown().await["journal"]["state"]["base"].clone();
    let _second = fleet.worker(Host::Other);
    fleet.until_state("done").await;
    let shown = fleet.shown().await;
    let object = &shown["result"]["object"];
    assert_eq!(object["base"]["key"], *base, "{case}: {shown}");
    assert!(chosen.is_null() || chosen == shown["journal"]["state"]["base"], "{case}: {chosen} was chosen");
    assert!(chosen["key"] == *base || call == Store::GetObject, "{case}: it was not recorded: {chosen}");
    let key = object["key"].as_str().expect("a key");
    assert!(
        std::fs::read(fleet.bench.stored(key)).unwrap() == expected,
        "{case}: not the image of a full run"
    );
    fleet.check(since, &case).await;
}

macro_rules! killed {
    ($($name:ident: $call:ident, $nth:expr, $action:ident;)*) => {
        mod a_worker_is_killed_and_the_other_one_uses_the_same_base {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::killed_at(super::Store::$call, $nth, super::Action::$action).await;
            }
        )*}
    };
}

killed! {
    read_of_its_manifest: GetObject, 1, Hang;
    read_of_its_tables: GetObject, 3, Hang;
    create_multipart_upload: CreateMultipartUpload, 1, ApplyThenHang;
    upload_part_copy: UploadPartCopy, 1, Hang;
    upload_part_copy_done: UploadPartCopy, 1, ApplyThenHang;
    complete_multipart_upload: CompleteMultipartUpload, 1, Hang;
}
