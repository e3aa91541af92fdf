//! `--log-format journald`, with a socket in place of the journal.

use rustix::process::Signal;
use snapferry_base::audit::CHANGES;
use snapferry_base::message_id::{JOB_DEAD, JOB_DONE};
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule};

use super::documented_fields;
use crate::fleet::{Fleet, Worker};
use crate::support::{Bench, Host, JournalRecord, SERVER, TestJournal, run, snapferry};

/// Asserts that docs/logs.md describes each field, by its name in the journal or in JSON.
#[track_caller]
fn check(records: &[JournalRecord]) {
    let documented = documented_fields();
    for record in records {
        assert_eq!(record.value("SYSLOG_IDENTIFIER"), Some("snapferry"), "{record:?}");
        for (name, _) in &record.0 {
            let is_known = documented.contains(name) || documented.contains(&name.to_lowercase());
            assert!(is_known, "{name} is not in docs/logs.md: {record:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_of_a_replication_is_found_by_its_job() {
    let Some(journal) = TestJournal::start() else { return };
    let bench = Bench::start().await;
    let command =
        bench.command(Host::Own, &["replicate", SERVER, "--log-format", "journald", "-v", "--json"]);
    let report = bench.finish(journal.around(&command)).await.json();
    let job = report["job"].as_str().unwrap();
    let records = journal.end().0;
    check(&records);
    let first = records.iter().position(|record| record.value("JOB").is_some()).expect("records of the job");
    for record in &records[first..] {
        assert_eq!((record.value("JOB"), record.value("SERVER")), (Some(job), Some(SERVER)), "{record:?}");
        assert!(record.values("ID").is_empty() && record.values("NAME").is_empty(), "{record:?}");
    }
    let changes: Vec<_> =
        records.iter().filter(|record| record.values("TARGET").contains(&CHANGES)).collect();
    assert!(changes.iter().all(|record| record.value("STEP").is_some()), "{changes:?}");
    assert!(changes.len() > 10, "{changes:?}");
    let done = records.iter().filter(|record| record.value("MESSAGE_ID") == Some(JOB_DONE)).count();
    assert_eq!(done, 1);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_at_the_end_is_in_the_journal_and_on_stderr() {
    let Some(journal) = TestJournal::start() else { return };
    let bench = Bench::start().await;
    bench.sim.faults().add(RegionRule::on(Op::CreateVolume), RegionAction::answer(400, "bad_field"));
    let command = bench.command(Host::Own, &["replicate", SERVER, "--log-format", "journald"]);
    bench.finish(journal.around(&command)).await.code(5).says(&["error: ", "replicate --resume"]);
    let records = journal.end().0;
    check(&records);
    let last = records.last().unwrap();
    let found = ["PRIORITY", "STEP", "SERVER", "EXIT_CODE"].map(|name| last.value(name));
    assert_eq!(found, [Some("3"), Some("volume"), Some(SERVER), Some("5")], "{last:?}");
    let job = last.value("JOB");
    assert!(job.is_some() && records.iter().filter(|record| record.value("JOB") == job).count() > 5);
    bench.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_logs_errors_alone_still_names_the_job_that_died() {
    let Some(journal) = TestJournal::start() else { return };
    let Some(fleet) = Fleet::start().await else { return };
    let args = ["--log-format", "journald", "--quiet", "worker", "--metrics", "off"];
    let worker = Worker::start(journal.around(&fleet.command(Host::Own, &args)));
    let ended = fleet.run(&["enqueue", "web97", "--wait", "--json"]).await.code(5);
    let added: serde_json::Value = serde_json::from_str(ended.out.lines().next().unwrap()).unwrap();
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0));
    let records = journal.end().0;
    check(&records);
    let [dead] = &records[..] else { panic!("{records:?}") };
    let found = ["JOB", "SERVER", "REGION", "MESSAGE_ID", "PRIORITY"].map(|name| dead.value(name));
    let expected = [added["job"].as_str(), Some("web97"), Some("us-east"), Some(JOB_DEAD), Some("3")];
    assert_eq!(found, expected, "{dead:?}");
}

#[test]
fn without_a_journal_the_lines_are_text_and_the_error_stands_once() {
    let Some(journal) = TestJournal::start() else { return };
    let mut command = snapferry(["convert", "--device", "/nonexistent", "--output", "/tmp/x.qcow2"]);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).args(["--log-format", "journald"]);
    let command = journal.around(&command);
    // The socket stays, and no process reads it any more.
    let (_records, _folder) = journal.end();
    let ended = run(command).code(3);
    assert!(ended.err.contains("there is no journal to write to"), "{}", ended.err);
    assert_eq!(ended.err.matches("/nonexistent").count(), 1, "{}", ended.err);
}
