//! Jobs killed at every change that they make, and resumed: on the same server, and on another one that has
//! none of the first one's files.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use snapferry_fleet::replicate::Step;
use snapferry_sim::{
    Action, Operation as Store, RegionAction, RegionOperation as Op, RegionRule, Rule, When,
};

use crate::support::{Bench, Host, SERVER};

/// A request at which a job is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A request to the cloud, with its number among those of its kind, from 1.
    Cloud(Op, u32),
    /// A request to the bucket, with its number among those of its kind, from 1.
    Bucket(Store, u32),
}

/// Moment of the kill, relative to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The request was sent, and has no effect.
    Before,
    /// The request has taken effect, and the response was not sent.
    In,
    /// The job has received and recorded the response; its next request gets no response.
    After,
}

/// Makes the table of points, and for each point the tests that kill a job there. A job that is killed before
/// the renamings leaves something to remove. After them its image is the latest one, so that it counts as
/// done, and can't be given up any more.
macro_rules! points {
    (before { $($before:tt)* } renamings { $($renamings:tt)* } after { $($after:tt)* }) => {
        points! { @table $($before)* $($renamings)* $($after)* }
        points! { @tests killed_and_resumed_here: resumed_here, $($before)* $($renamings)* $($after)* }
        points! { @tests killed_and_resumed_elsewhere: resumed_elsewhere, $($before)* $($renamings)* $($after)* }
        points! { @tests killed_and_never_resumed: found_by_gc, $($before)* }
        points! { @tests killed_and_given_up: given_up_twice, $($before)* $($renamings)* }
    };
    (@table $($name:ident: $step:ident, $at:expr;)*) => {
        /// Every change that each step makes, and one read for each step that changes nothing. In the bucket,
        /// the moment after a change is the moment before the next one.
        pub const POINTS: &[(Step, At)] = &[$((Step::$step, $at)),*];
    };
    (@tests $module:ident: $check:ident, $($name:ident: $step:ident, $at:expr;)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    $check($at).await;
                }
            )*
        }
    };
}

points! {
    before {
        list_instances: Resolve, At::Cloud(Op::ListInstances, 1);
        list_attachments: Preflight, At::Cloud(Op::ListAttachments, 1);
        create_snapshot: Snapshot, At::Cloud(Op::CreateSnapshot, 1);
        get_snapshot: Stable, At::Cloud(Op::GetSnapshot, 1);
        create_clone: Clone, At::Cloud(Op::CreateClone, 1);
        create_volume: Volume, At::Cloud(Op::CreateVolume, 1);
        create_attachment: Attach, At::Cloud(Op::CreateAttachment, 1);
        get_object_of_a_base: Convert, At::Bucket(Store::GetObject, 1);
        create_multipart_upload: Convert, At::Bucket(Store::CreateMultipartUpload, 1);
        upload_part: Convert, At::Bucket(Store::UploadPart, 1);
        complete_multipart_upload: Convert, At::Bucket(Store::CompleteMultipartUpload, 1);
        put_object_1: Convert, At::Bucket(Store::PutObject, 1);
        get_object: Convert, At::Bucket(Store::GetObject, 3);
        put_object_2: Convert, At::Bucket(Store::PutObject, 2);
        delete_attachment: Release, At::Cloud(Op::DeleteAttachment, 1);
        delete_volume: Release, At::Cloud(Op::DeleteVolume, 1);
        delete_clone: Release, At::Cloud(Op::DeleteClone, 1);
        create_image: Import, At::Cloud(Op::CreateImage, 1);
        attach_tag: Import, At::Cloud(Op::AttachTag, 1);
        get_image: Available, At::Cloud(Op::GetImage, 1);
    }
    renamings {
        update_image_1: Promote, At::Cloud(Op::UpdateImage, 1);
        update_image_2: Promote, At::Cloud(Op::UpdateImage, 2);
    }
    after {
        update_snapshot: Mark, At::Cloud(Op::UpdateSnapshot, 1);
        delete_snapshot: Prune, At::Cloud(Op::DeleteSnapshot, 1);
        delete_image: Prune, At::Cloud(Op::DeleteImage, 1);
        delete_object_1: Prune, At::Bucket(Store::DeleteObject, 1);
        delete_object_2: Prune, At::Bucket(Store::DeleteObject, 2);
    }
}

impl At {
    pub fn moments(self) -> &'static [Moment] {
        match self {
            Self::Cloud(Op::ListInstances | Op::ListAttachments | Op::GetSnapshot | Op::GetImage, _)
            | Self::Bucket(Store::GetObject, _) => &[Moment::Before],
            Self::Cloud(..) => &[Moment::Before, Moment::In, Moment::After],
            Self::Bucket(..) => &[Moment::Before, Moment::In],
        }
    }
}

/// Longest time for a job to reach its point.
const PATIENCE: Duration = Duration::from_secs(60);

impl Bench {
    pub fn arm(&self, at: At, moment: Moment) {
        match at {
            At::Cloud(operation, nth) => {
                let action = match moment {
                    Moment::Before => RegionAction::Hang,
                    Moment::In => RegionAction::ApplyThenHang,
                    Moment::After => RegionAction::ThenSilence,
                };
                self.sim.faults().add(RegionRule::on(operation).when(When::Nth(nth)), action);
            }
            At::Bucket(operation, nth) => {
                let action = if moment == Moment::Before { Action::Hang } else { Action::ApplyThenHang };
                self.sim.store().faults().add(Rule::on(operation).when(When::Nth(nth)), action);
            }
        }
    }

    pub fn has_fired(&self, at: At) -> bool {
        match at {
            At::Cloud(..) => self.sim.faults().fired() == [1],
            At::Bucket(..) => self.sim.store().faults().fired() == [1],
        }
    }

    /// Starts a job on [`Host::Own`] and kills it at that point.
    pub async fn crash(&self, at: At, moment: Moment) {
        self.crash_on(Host::Own, at, moment).await;
    }

    /// Starts a job on `host` and kills it at that point.
    pub async fn crash_on(&self, host: Host, at: At, moment: Moment) {
        self.crash_with(host, at, moment, &["--fast-restore-clone"]).await;
    }

    /// Starts a job with these options and kills it at that point.
    pub async fn crash_with(&self, host: Host, at: At, moment: Moment, words: &[&str]) {
        self.arm(at, moment);
        let mut command = self.command(host, &[&["replicate", SERVER], words].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !self.has_fired(at) {
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "{at:?} was never reached: {status}: {}",
                    std::io::read_to_string(child.stderr.take().unwrap()).unwrap()
                );
            }
            assert!(begun.elapsed() < PATIENCE, "{at:?} was not reached in time");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Time for the change itself, if the server is to make it. A kill a moment earlier is another point,
        // and as good a test.
        tokio::time::sleep(Duration::from_millis(20)).await;
        kill(&mut child);
        self.disarm();
    }

    pub fn disarm(&self) {
        self.sim.faults().clear();
        self.sim.store().faults().clear();
    }
}

/// Kills the process with SIGKILL, so that it can't clean up.
fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills a job at `at`, resumes it on `host`, and checks the final state.
async fn matrix(at: At, moment: Moment, host: Host) {
    let bench = Bench::with_history().await;
    let case = format!("{at:?} {moment:?}, resumed on {host:?}");
    let (before, since) = (bench.latest().await.expect("there is one"), bench.sim.history().len());
    bench.crash(at, moment).await;
    // At every point there is an image to recover from, and it was verified.
    let usable = bench.images().await.into_iter().any(|image| image.id == before.id);
    assert!(usable, "{case}: the image before is gone");
    let resumed = bench.resume(host).await.code(0);
    if resumed.out.contains("nothing to resume") {
        // Another server can't know of a job that has made nothing yet, or that only had to clean up after
        // itself.
        let begun = bench.made(Op::CreateSnapshot, since) > 0;
        let promoted = bench.latest().await.is_some_and(|latest| latest.id != before.id);
        assert!(promoted || (host == Host::Other && !begun), "{case}: {}", resumed.err);
        if !begun {
            bench.run(host, &["--fast-restore-clone"]).await.code(0);
        }
    }
    let found = bench.gc(Host::Own).await;
    let images = bench.images().await;
    let latest: Vec<_> = images.iter().filter(|image| image.name == "web01-latest").collect();
    assert_eq!(latest.len(), 1, "{case}: {images:?}");
    assert_ne!(latest[0].id, before.id, "{case}: the latest is not new");
    assert!(
        images.iter().any(|image| image.id == before.id && image.name != "web01-latest"),
        "{case}: the one before is gone"
    );
    assert_eq!(bench.made(Op::CreateImage, since), 1, "{case}: imports");
    assert_eq!(bench.made(Op::CreateSnapshot, since), 1, "{case}: snapshots");
    let volumes = if host == Host::Own { 1 } else { 2 };
    assert!(bench.made(Op::CreateVolume, since) <= volumes, "{case}: volumes");
    assert_eq!(bench.leaks().await, Vec::<String>::new(), "{case}: gc removed {found:?}");
    assert_eq!(bench.gc(Host::Other).await, Vec::<String>::new(), "{case}: a second look finds more");
    // Both servers keep their journals, but neither resumes a finished job, whichever server finished it.
    let deeds = bench.sim.history().len();
    let (stored, other) =
        (bench.sim.store().stats(), if host == Host::Own { Host::Other } else { Host::Own });
    for again in [other, host] {
        bench.resume(again).await.code(0);
        assert_eq!(
            bench.sim.history().len(),
            deeds,
            "{case}, then on {again:?}: {:?}",
            bench.sim.history().split_off(deeds)
        );
    }
    for operation in [Store::PutObject, Store::CompleteMultipartUpload, Store::DeleteObject] {
        let (before, after) =
            (stored.of(operation).requests, bench.sim.store().stats().of(operation).requests);
        assert_eq!(after, before, "{case}: {operation} again");
    }
    // The next run succeeds as usual.
    bench.sim.shutdown().await;
}

async fn resumed_here(at: At) {
    for &moment in at.moments() {
        matrix(at, moment, Host::Own).await;
    }
}

async fn resumed_elsewhere(at: At) {
    for &moment in at.moments() {
        matrix(at, moment, Host::Other).await;
    }
}

#[test]
fn every_step_has_a_point() {
    for step in Step::ALL {
        assert!(POINTS.iter().any(|(of, _)| *of == step), "{step} has no point");
    }
}

/// Every change of a complete run is in the table: a step with a new change needs a new point.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_has_a_point() {
    let bench = Bench::with_history().await;
    let since = bench.sim.history().len();
    bench.run(Host::Own, &["--fast-restore-clone"]).await.code(0);
    for deed in bench.sim.history().iter().skip(since) {
        let known = POINTS
            .iter()
            .any(|(_, at)| matches!(at, At::Cloud(operation, _) if *operation == deed.operation));
        assert!(known, "{deed:?} has no point");
    }
    for (operation, count) in bench.sim.store().stats().counts {
        let reads = matches!(
            operation,
            Store::HeadObject
                | Store::ListMultipartUploads
                | Store::ListObjectsV2
                | Store::ListParts
                | Store::IdentityToken
        );
        let known = POINTS.iter().any(|(_, at)| matches!(at, At::Bucket(known, _) if *known == operation));
        assert!(reads || known || count.requests == 0, "{operation} has no point");
    }
    bench.sim.shutdown().await;
}

/// Leftovers of a killed job that is never resumed: `gc` finds them on a server without the job's journal.
async fn found_by_gc(at: At) {
    let bench = Bench::with_history().await;
    bench.crash(at, if at.moments().contains(&Moment::In) { Moment::In } else { Moment::Before }).await;
    let (leaks, removed) = (bench.leaks().await, bench.gc(Host::Other).await);
    assert_eq!(bench.leaks().await, Vec::<String>::new(), "{at:?}: of {leaks:?} gc removed {removed:?}");
    assert_eq!((bench.images().await.len(), bench.snapshots().await.len()), (2, 1), "{at:?}");
    bench.sim.shutdown().await;
}

/// A job that is abandoned at any point leaves nothing, the image before is the latest again, and abandoning
/// it twice has no further effect.
async fn given_up_twice(at: At) {
    let is_last = at == At::Cloud(Op::UpdateImage, 2);
    let bench = Bench::with_history().await;
    let (before, snapshots) = (bench.latest().await.expect("there is one"), bench.snapshots().await.len());
    bench
        .crash(at, if at.moments().contains(&Moment::In) && !is_last { Moment::In } else { Moment::Before })
        .await;
    let jobs = bench.state_folder(Host::Own).join("jobs");
    let job = std::fs::read_dir(jobs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .max()
        .unwrap();
    let job = job.trim_end_matches(".jsonl").to_owned();
    for _ in 0..2 {
        bench
            .finish(bench.command(Host::Own, &["replicate", "--abandon", &job]))
            .await
            .code(0)
            .says(&["is given up"]);
    }
    assert_eq!(bench.leaks().await, Vec::<String>::new(), "{at:?}");
    assert_eq!(bench.gc(Host::Own).await, Vec::<String>::new(), "{at:?}");
    assert_eq!(bench.latest().await.map(|latest| latest.id), Some(before.id), "{at:?}");
    assert_eq!(bench.snapshots().await.len(), snapshots, "{at:?}");
    bench.resume(Host::Own).await.code(0).says(&["nothing to resume"]);
    bench.sim.shutdown().await;
}
