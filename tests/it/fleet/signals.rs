//! Each signal to each long-running command of the fleet.

use std::process::Stdio;
use std::time::Duration;

use snapferry_sim::{
    Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, When,
};

use super::{Fleet, Worker};
use crate::signals::SIGNALS;
use crate::support::{Host, SERVER};

/// Commands that watch jobs stop at a signal without an effect on the jobs; a worker ends once it has no job.
#[tokio::test(flavor = "multi_thread")]
async fn every_word_ends_a_worker_and_who_looks_on() {
    let Some(fleet) = Fleet::start().await else { return };
    // No worker runs, so the job waits, and so does `enqueue --wait`.
    fleet.run(&["enqueue", SERVER]).await.code(0);
    for signal in SIGNALS {
        for (args, code) in [
            (&["jobs", "watch"][..], 0),
            (&["jobs", "logs", "--follow"], 0),
            (&["enqueue", SERVER, "--wait"], 130),
        ] {
            let mut command = fleet.command(Host::Own, args);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            // The command handles signals since before its first line.
            let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            std::io::BufRead::read_line(&mut out, &mut line).unwrap();
            assert!(!line.is_empty(), "{args:?}");
            let process = Worker(child);
            process.signal(signal);
            assert_eq!(process.ended().await, Some(code), "{signal:?} {args:?}");
        }
    }
    assert_eq!(fleet.job().await["state"], "ready");
    for signal in SIGNALS {
        let faults = fleet.bench.sim.store().faults();
        faults.clear();
        faults.add(Rule::on(Store::UploadPart).when(When::First(1)), Action::Delay { milliseconds: 3000 });
        // The step after the conversion is slow too, as it is in the cloud: the simulated cloud would finish
        // the job before the worker checks for the signal.
        let clouds = fleet.bench.sim.faults();
        clouds.clear();
        clouds.add(
            RegionRule::on(Op::DeleteAttachment).when(When::First(1)),
            RegionAction::delay(Duration::from_secs(3)),
        );
        let worker = fleet.worker(Host::Own);
        fleet.run(&["enqueue", SERVER]).await.code(0);
        fleet.until("the part", async || fleet.bench.sim.store().faults().fired() == [1]).await;
        worker.signal(signal);
        assert_eq!(worker.ended().await, Some(0), "{signal:?}");
        let job = fleet.job().await;
        assert_eq!((&job["state"], &job["attempts"]), (&"ready".into(), &0.into()), "{signal:?}: {job}");
        fleet.run(&["jobs", "cancel", job["job"].as_str().unwrap()]).await.code(0);
        let other = fleet.worker(Host::Other);
        fleet.until_state("cancelled").await;
        drop(other);
    }
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
}
