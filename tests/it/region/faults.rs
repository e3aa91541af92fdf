//! Every call under every fault ends in its error class, before its deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::proxy::Proxies;
use snapferry_base::retry::{Backoff, Class};
use snapferry_ibmcloud::vpc::model::Snapshot;
use snapferry_ibmcloud::vpc::{
    AttachmentId, ClientConfig, ClientContext, Endpoint, ExportPrototype, ImageFilter, ImageOrigin,
    ImagePrototype, InstanceAction, InstanceId, Policy, RegionClient, SnapshotFilter, Tag, VolumeFilter,
    VolumeId, VpcError, Waits,
};
use snapferry_sim::{RegionAction, RegionOperation as Op, RegionRule};

use super::{Cloud, name, snapshot_of, stable_snapshot, volume_of};
use crate::support::{HOME, POLICY, SERVER, client_context};

/// Policy with limits just long enough for a fault to show.
const HASTY: Policy = Policy {
    connect: Duration::from_secs(5),
    deadline: Duration::from_millis(300),
    budget: Duration::from_secs(3),
    backoff: Backoff { attempts: 3, first: Duration::from_millis(2), longest: Duration::from_millis(5) },
    list_lag: Duration::from_millis(50),
    waits: Waits { interval: Some(Duration::from_millis(5)), deadline: Some(Duration::from_millis(100)) },
};
/// Time limit for all calls together, run concurrently: the deadlines of their attempts, those of the lookup
/// afterwards, and time for a slow machine.
const LONGEST: Duration = Duration::from_secs(60);

type Outcome<'a> = Pin<Box<dyn Future<Output = Result<(), VpcError>> + 'a>>;

/// Every operation of the client, with the request that it sends. Ids need not exist: the fault comes first.
fn calls<'a>(client: &'a RegionClient, snapshot: &'a Snapshot) -> Vec<(Op, Outcome<'a>)> {
    fn unit<'a, T: 'a>(work: impl Future<Output = Result<T, VpcError>> + 'a) -> Outcome<'a> {
        Box::pin(async { work.await.map(|_| ()) })
    }
    let origin = ImageOrigin::File {
        href: "cos://us-south/images/a.qcow2".to_owned(),
        operating_system: "red-9-amd64".to_owned(),
    };
    let image = ImagePrototype { name: name("image"), origin, resource_group: None };
    let export =
        ExportPrototype { name: name("export"), bucket: "images".to_owned(), format: Default::default() };
    let prototype = volume_of(snapshot, "volume");
    let taken = snapferry_ibmcloud::vpc::SnapshotPrototype {
        name: name("snapshot"),
        source: VolumeId::new("r006-none"),
        tags: Vec::new(),
        resource_group: None,
        clone_zones: Vec::new(),
    };
    let (server, volume) = (InstanceId::new("0717-none"), VolumeId::new("r006-none"));
    let (attachment, picture) =
        (AttachmentId::new("0717-none"), snapferry_ibmcloud::vpc::ImageId::new("r006-none"));
    let job = snapferry_ibmcloud::vpc::ExportJobId::new("r006-none");
    let tags = vec![Tag::new("a").unwrap()];
    vec![
        (Op::ListInstances, unit(client.instances())),
        (Op::ListInstances, unit(client.instance_by_name(SERVER))),
        (
            Op::GetInstance,
            unit({
                let server = server.clone();
                async move { client.instance(&server).await }
            }),
        ),
        (
            Op::CreateInstanceAction,
            unit({
                let server = server.clone();
                async move { client.act(&server, InstanceAction::Start).await }
            }),
        ),
        (
            Op::DeleteInstance,
            unit({
                let server = server.clone();
                async move { client.delete_instance(&server).await }
            }),
        ),
        (
            Op::ListAttachments,
            unit({
                let server = server.clone();
                async move { client.attachments(&server).await }
            }),
        ),
        (
            Op::CreateAttachment,
            unit({
                let (s, v) = (server.clone(), volume.clone());
                async move { client.attach(&s, &name("a"), &v).await }
            }),
        ),
        (
            Op::GetAttachment,
            unit({
                let (s, a) = (server.clone(), attachment.clone());
                async move { client.attachment(&s, &a).await }
            }),
        ),
        (Op::DeleteAttachment, unit(async move { client.detach(&server, &attachment).await })),
        (Op::ListVolumes, unit(async move { client.volumes(&VolumeFilter::default()).await })),
        (Op::CreateVolume, unit(async move { client.create_volume(&prototype).await })),
        (
            Op::GetVolume,
            unit({
                let volume = volume.clone();
                async move { client.volume(&volume).await }
            }),
        ),
        (
            Op::GetVolume,
            unit({
                let volume = volume.clone();
                async move { client.tag_volume(&volume, &tags).await }
            }),
        ),
        (Op::DeleteVolume, unit(async move { client.delete_volume(&volume).await })),
        (Op::ListVolumeProfiles, unit(client.volume_profiles())),
        (Op::ListSnapshots, unit(async move { client.snapshots(&SnapshotFilter::default()).await })),
        (Op::CreateSnapshot, unit(async move { client.create_snapshot(&taken).await })),
        (
            Op::CreateSnapshot,
            unit(async move { client.copy_snapshot(&name("copy"), &snapshot.crn, None, &[]).await }),
        ),
        (Op::GetSnapshot, unit(client.snapshot(&snapshot.id))),
        (
            Op::DeleteSnapshot,
            unit(async move {
                client.delete_snapshot(&snapferry_ibmcloud::vpc::SnapshotId::new("r006-none")).await
            }),
        ),
        (Op::ListClones, unit(client.clones(&snapshot.id))),
        (Op::CreateClone, unit(client.create_clone(&snapshot.id, "us-south-1"))),
        (Op::DeleteClone, unit(client.delete_clone(&snapshot.id, "us-south-2"))),
        (Op::ListImages, unit(async move { client.images(&ImageFilter::default()).await })),
        (Op::CreateImage, unit(async move { client.create_image(&image).await })),
        (
            Op::GetImage,
            unit({
                let picture = picture.clone();
                async move { client.image(&picture).await }
            }),
        ),
        (
            Op::UpdateImage,
            unit({
                let picture = picture.clone();
                async move { client.rename_image(&picture, &name("new")).await }
            }),
        ),
        (
            Op::DeprecateImage,
            unit({
                let picture = picture.clone();
                async move { client.deprecate_image(&picture).await }
            }),
        ),
        (
            Op::ObsoleteImage,
            unit({
                let picture = picture.clone();
                async move { client.obsolete_image(&picture).await }
            }),
        ),
        (
            Op::DeleteImage,
            unit({
                let picture = picture.clone();
                async move { client.delete_image(&picture).await }
            }),
        ),
        (
            Op::ListExportJobs,
            unit({
                let picture = picture.clone();
                async move { client.export_jobs(&picture).await }
            }),
        ),
        (
            Op::CreateExportJob,
            unit({
                let picture = picture.clone();
                async move { client.export_image(&picture, &export).await }
            }),
        ),
        (Op::DeleteExportJob, unit(async move { client.delete_export_job(&picture, &job).await })),
        (Op::ListOperatingSystems, unit(client.operating_systems())),
        (Op::GetOperatingSystem, unit(client.operating_system("red-9-amd64"))),
        (Op::ListRegions, unit(client.regions())),
        (Op::ListZones, unit(client.zones())),
        (Op::ListVpcs, unit(client.vpcs())),
        (Op::ListSubnets, unit(client.subnet("main-1", None))),
        (Op::ListKeys, unit(client.key("admin"))),
        (Op::ListInstanceProfiles, unit(client.instance_profiles())),
    ]
}

/// Permanent faults, and the class that each call must end in.
fn lasting() -> Vec<(RegionAction, Class)> {
    vec![
        (RegionAction::answer(400, "invalid_request"), Class::Permanent),
        (RegionAction::answer(401, "token_invalid"), Class::Permanent),
        (RegionAction::answer(403, "not_authorized"), Class::Permanent),
        (
            RegionAction::Answer { status: 429, code: Some("throttled".to_owned()), retry_after_s: Some(0) },
            Class::Throttled,
        ),
        (RegionAction::answer(500, "internal_error"), Class::Transient),
        (RegionAction::answer(501, "not_implemented"), Class::Permanent),
        (RegionAction::Answer { status: 503, code: None, retry_after_s: None }, Class::Transient),
        (RegionAction::Drop, Class::Transient),
        (RegionAction::Reset, Class::Transient),
    ]
}

/// Runs every call while all requests have this fault; returns the outcomes that are wrong.
async fn under(cloud: &Cloud, snapshot: &Snapshot, action: &RegionAction, expected: Class) -> Vec<String> {
    let client = cloud.client_with(HOME, HASTY);
    cloud.sim.faults().clear();
    for operation in Op::ALL.iter().filter(|operation| **operation != Op::IdentityToken) {
        cloud.sim.faults().add(RegionRule::on(*operation), action.clone());
    }
    let begun = Instant::now();
    let (operations, calls): (Vec<Op>, Vec<Outcome<'_>>) = calls(&client, snapshot).into_iter().unzip();
    let outcomes = all(calls).await;
    cloud.sim.faults().clear();
    assert!(begun.elapsed() < LONGEST, "{action:?} took {:?}", begun.elapsed());
    let judge = |(operation, outcome): (Op, Result<(), VpcError>)| match outcome {
        Err(err) if err.class() == expected => None,
        Err(err) => {
            Some(format!("{operation:?} under {action:?}: {:?}, not {expected:?}: {err}", err.class()))
        }
        Ok(()) => Some(format!("{operation:?} under {action:?}: done")),
    };
    operations.into_iter().zip(outcomes).filter_map(judge).collect()
}

/// Runs all calls concurrently.
async fn all(mut calls: Vec<Outcome<'_>>) -> Vec<Result<(), VpcError>> {
    let mut outcomes: Vec<Option<Result<(), VpcError>>> = calls.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (call, outcome) in calls.iter_mut().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_none()) {
            if let Poll::Ready(done) = call.as_mut().poll(cx) {
                *outcome = Some(done);
            }
        }
        if outcomes.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outcomes.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_under_every_lasting_fault_ends_in_its_class() {
    let cloud = Cloud::start().await;
    let snapshot = stable_snapshot(&cloud.client(HOME), "web01-1").await;
    let mut wrong = Vec::new();
    for (action, class) in lasting() {
        wrong.extend(under(&cloud, &snapshot, &action, class).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_is_never_answered_ends_at_its_deadline() {
    let cloud = Cloud::start().await;
    let snapshot = stable_snapshot(&cloud.client(HOME), "web01-1").await;
    let wrong = under(&cloud, &snapshot, &RegionAction::Hang, Class::Transient).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_answers_are_refused_by_every_call() {
    let cloud = Cloud::start().await;
    let snapshot = stable_snapshot(&cloud.client(HOME), "web01-1").await;
    let client = cloud.client_with(HOME, HASTY);
    let reads =
        [Op::ListInstances, Op::ListVolumes, Op::GetSnapshot, Op::ListImages, Op::ListZones, Op::ListClones];
    for operation in reads {
        cloud.sim.faults().add(RegionRule::on(operation), RegionAction::Garble);
    }
    for (operation, call) in
        calls(&client, &snapshot).into_iter().filter(|(operation, _)| reads.contains(operation))
    {
        let err = call.await.unwrap_err();
        assert!(matches!(err, VpcError::Malformed { .. }), "{operation:?}: {err}");
    }
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed_within_the_budget() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let throttled = |seconds| RegionAction::Answer { status: 429, code: None, retry_after_s: Some(seconds) };
    cloud.sim.faults().add(RegionRule::on(Op::ListZones).when(snapferry_sim::When::Nth(1)), throttled(1));
    let begun = Instant::now();
    client.zones().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "it came back after {:?}", begun.elapsed());
    // A wait that does not fit in the budget is not started.
    cloud.sim.faults().add(RegionRule::on(Op::ListZones), throttled(3600));
    let begun = Instant::now();
    let err = client.zones().await.unwrap_err();
    assert_eq!(err.class(), Class::Throttled);
    assert!(begun.elapsed() < POLICY.budget);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_reads_stop_at_once_and_creates_wait_for_their_answer() {
    let cloud = Cloud::start().await;
    let cancel = Cancel::new();
    let context = ClientContext { cancel: cancel.clone(), ..client_context(Arc::clone(&cloud.tokens)) };
    let endpoint = Endpoint::parse(&cloud.sim.endpoint_template());
    let config = ClientConfig {
        region: HOME.to_owned(),
        endpoint,
        ca_file: None,
        proxies: Proxies::default(),
        policy: POLICY,
    };
    let client = RegionClient::new(config, context).unwrap();
    let server = client.server(SERVER).await.unwrap();
    cloud.sim.faults().add(RegionRule::on(Op::ListZones), RegionAction::Hang);
    cloud.sim.faults().add(RegionRule::on(Op::CreateSnapshot), RegionAction::Delay { milliseconds: 300 });
    let prototype = snapshot_of(&server, "web01-1");
    let (read, made, ()) = tokio::join!(client.zones(), client.create_snapshot(&prototype), async {
        while cloud.sim.request_count(Op::ListZones) == 0 || cloud.sim.request_count(Op::CreateSnapshot) == 0
        {
            tokio::task::yield_now().await;
        }
        cancel.cancel(Reason::Requested);
    });
    assert!(matches!(read, Err(VpcError::Cancelled { .. })), "{read:?}");
    assert_eq!(made.unwrap().name, "web01-1");
    let later = client.instances().await;
    assert!(matches!(later, Err(VpcError::Cancelled { .. })), "{later:?}");
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_early_is_replaced_once() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    client.zones().await.unwrap();
    cloud.sim.expire_tokens();
    client.zones().await.unwrap();
    assert_eq!(cloud.sim.request_count(Op::IdentityToken), 2);
    // A token that is refused each time is not fetched without end.
    cloud.sim.faults().add(RegionRule::on(Op::ListZones), RegionAction::answer(401, "token_invalid"));
    let err = client.zones().await.unwrap_err();
    assert_eq!(err.class(), Class::Permanent);
    assert_eq!(cloud.sim.request_count(Op::ListZones), 3 + 2);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_shows_a_token() {
    let cloud = Cloud::start().await;
    let snapshot = stable_snapshot(&cloud.client(HOME), "web01-1").await;
    let token = cloud.tokens.token().await.unwrap().bearer;
    let client = cloud.client_with(HOME, HASTY);
    assert!(!format!("{client:?}").contains(token.reveal()));
    cloud.sim.expire_tokens();
    for (operation, call) in calls(&client, &snapshot) {
        if let Err(err) = call.await {
            let text = format!("{err} {err:?}");
            assert!(
                !text.contains(token.reveal()) && !text.contains(cloud.sim.api_key().reveal()),
                "{operation:?}: {text}"
            );
        }
    }
    cloud.sim.shutdown().await;
}
