//! Each signal to each command of the fleet that takes its time.

use std::process::Stdio;
use std::time::Duration;

use snapferry_sim::{
    Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, When,
};

use super::{Fleet, Worker};
use crate::region::SERVER;
use crate::replicate::Host;
use crate::ways_out::WORDS;

/// Whoever looks on stops looking, and no job is the worse for it; a worker ends once nothing is left in its hands.
#[tokio::test(flavor = "multi_thread")]
async fn every_word_ends_a_worker_and_who_looks_on() {
    let Some(fleet) = Fleet::start().await else { return };
    // With no worker there the job waits, and whoever waits for it.
    fleet.run(&["enqueue", SERVER]).await.code(0);
    for word in WORDS {
        for (words, code) in [
            (&["jobs", "watch"][..], 0),
            (&["jobs", "logs", "--follow"], 0),
            (&["enqueue", SERVER, "--wait"], 130),
        ] {
            let mut command = fleet.command(Host::Own, words);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            // It has listened since before the first line.
            let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            std::io::BufRead::read_line(&mut out, &mut line).unwrap();
            assert!(!line.is_empty(), "{words:?}");
            let looking = Worker(child);
            looking.signal(word);
            assert_eq!(looking.ended().await, Some(code), "{word:?} {words:?}");
        }
    }
    assert_eq!(fleet.job().await["state"], "ready");
    for word in WORDS {
        let faults = fleet.bench.sim.store().faults();
        faults.clear();
        faults.add(Rule::on(Store::UploadPart).when(When::First(1)), Action::Delay { milliseconds: 3000 });
        // What comes behind the conversion takes its time as well, as it does in the cloud: the simulated one would be through with the
        // job before the worker has looked at it again.
        let clouds = fleet.bench.sim.faults();
        clouds.clear();
        clouds.add(
            RegionRule::on(Op::DeleteAttachment).when(When::First(1)),
            RegionAction::delay(Duration::from_secs(3)),
        );
        let worker = fleet.worker(Host::Own);
        fleet.run(&["enqueue", SERVER]).await.code(0);
        fleet.until("the part", async || fleet.bench.sim.store().faults().fired() == [1]).await;
        worker.signal(word);
        assert_eq!(worker.ended().await, Some(0), "{word:?}");
        let job = fleet.job().await;
        assert_eq!((&job["state"], &job["attempts"]), (&"ready".into(), &0.into()), "{word:?}: {job}");
        fleet.run(&["jobs", "cancel", job["job"].as_str().unwrap()]).await.code(0);
        let other = fleet.worker(Host::Other);
        fleet.until_state("cancelled").await;
        drop(other);
    }
    assert_eq!(fleet.bench.leaks().await, Vec::<String>::new());
}
