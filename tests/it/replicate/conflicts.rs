//! Every change of a job answered with 409: IBM returns it while a server, a volume or an image is busy with
//! another change. A job waits for a conflict that passes, whatever its code; one that stays ends the job at
//! its deadline, with the name of the busy resource.

use std::time::Duration;

use snapferry_base::cancel::Cancel;
use snapferry_fleet::replicate::Fault;
use snapferry_fleet::replicate::ResourceKind;
use snapferry_ibmcloud::vpc::VpcError;
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule, When};

use super::faults::{Ends, case, words};
use crate::support::Bench;

/// Every change of a complete run.
const CHANGES: [Op; 13] = [
    Op::CreateSnapshot,
    Op::CreateClone,
    Op::CreateVolume,
    Op::CreateAttachment,
    Op::DeleteAttachment,
    Op::DeleteVolume,
    Op::DeleteClone,
    Op::CreateImage,
    Op::AttachTag,
    Op::UpdateImage,
    Op::UpdateSnapshot,
    Op::DeleteSnapshot,
    Op::DeleteImage,
];
/// Codes that IBM's drivers handle, and one that none of them knows.
const CODES: [&str; 4] =
    ["conflict", "volume_in_use", "instance_busy_with_an_attachment", "snapshots_source_volume_busy"];

/// Each change is busy `times` times at first, each with another code.
async fn passing(times: u32) {
    for (call, code) in CHANGES.into_iter().zip(CODES.into_iter().cycle()) {
        let bench = Bench::with_history().await;
        let site = bench.site(&Cancel::new());
        let rule = RegionRule::on(call).when(When::First(times));
        let arm = |bench: &Bench| bench.sim.faults().add(rule, RegionAction::answer(409, code));
        case(bench, &format!("{call:?} {code} {times} times"), Ends::Done, site, arm).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_that_is_busy_once_is_made() {
    Box::pin(passing(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_that_is_busy_for_a_while_is_made() {
    Box::pin(passing(4)).await;
}

/// The change was made, and the response is a conflict nevertheless: the job finds the resource, and uses it.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_that_was_made_and_told_of_as_a_conflict_is_made_once() {
    for call in CHANGES {
        let bench = Bench::with_history().await;
        let site = bench.site(&Cancel::new());
        let rule = RegionRule::on(call).when(When::First(1));
        let done = RegionAction::ApplyThenAnswer { status: 409, code: "conflict".to_owned() };
        let arm = |bench: &Bench| bench.sim.faults().add(rule, done);
        case(bench, &format!("{call:?} done, and a conflict"), Ends::Done, site, arm).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_that_is_busy_for_ever_ends_the_job_at_its_deadline() {
    for call in CHANGES {
        let bench = Bench::with_history().await;
        let site = bench.site(&Cancel::new());
        let arm = |bench: &Bench| {
            bench.sim.faults().add(RegionRule::on(call), RegionAction::answer(409, "conflict"));
        };
        // A job does not fail because it can't prune.
        let ends =
            if matches!(call, Op::DeleteSnapshot | Op::DeleteImage) { Ends::Done } else { Ends::Failed };
        let Some(error) = case(bench, &format!("{call:?} busy for ever"), ends, site, arm).await else {
            continue;
        };
        let message = words(&error);
        assert!(
            message.contains("is still busy with another change after") && message.contains("409 conflict"),
            "{message}"
        );
        // A worker retries the job later.
        assert!(error.class().is_retryable(), "{message}");
        let Fault::Cloud(VpcError::Busy { waited, .. }) = &*error.fault else { panic!("{message}") };
        assert!(*waited < Duration::from_secs(5), "{message}");
        // Resources that could not be removed are named.
        if matches!(call, Op::DeleteAttachment | Op::DeleteVolume) {
            assert!(
                error.orphaned.iter().any(|left| left.kind == ResourceKind::Volume),
                "{call:?}: {:?}",
                error.orphaned
            );
        }
    }
}
