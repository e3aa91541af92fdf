//! A resource is never made twice, whichever responses are lost, and another user's resource is never taken
//! for it.

use snapferry_ibmcloud::vpc::{
    ExportPrototype, ImageOrigin, ImagePrototype, InstanceId, SnapshotFilter, VpcError,
};
use snapferry_sim::{RegionAction, RegionOperation, RegionRule, When};

use super::{Cloud, SOON, name, ready_volume, snapshot_of, stable_snapshot, volume_of};
use crate::support::{HOME, SERVER};

/// Faults of a response after the resource was made.
fn losses() -> Vec<RegionAction> {
    vec![
        RegionAction::ApplyThenDrop,
        RegionAction::ApplyThenAnswer { status: 500, code: "internal_error".to_owned() },
        RegionAction::ApplyThenAnswer { status: 503, code: "service_unavailable".to_owned() },
        RegionAction::ApplyThenAnswer { status: 429, code: "too_many_requests".to_owned() },
        RegionAction::Garble,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_leaves_one_snapshot() {
    for (number, loss) in losses().into_iter().enumerate() {
        let cloud = Cloud::start().await;
        let client = cloud.client(HOME);
        let server = client.server(SERVER).await.unwrap();
        let create = RegionOperation::CreateSnapshot;
        cloud.sim.faults().add(RegionRule::on(create).when(When::Nth(1)), loss.clone());
        let made = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
        assert_eq!(
            client.snapshots(&SnapshotFilter::default()).await.unwrap().len(),
            1,
            "{number}: {loss:?}"
        );
        assert_eq!(client.snapshot_stable(&made.id, SOON).await.unwrap().name, "web01-1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_leaves_one_volume_one_attachment_one_image_one_job() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let snapshot = stable_snapshot(&client, "web01-1").await;
    for operation in
        [RegionOperation::CreateVolume, RegionOperation::CreateAttachment, RegionOperation::CreateExportJob]
    {
        cloud.sim.faults().add(RegionRule::on(operation).when(When::Nth(1)), RegionAction::ApplyThenDrop);
    }
    let volume = ready_volume(&client, &snapshot, "web01-1").await;
    let own = InstanceId::new(cloud.sim.own_instance_id());
    client.attach(&own, &name("web01-1"), &volume.id).await.unwrap();
    assert_eq!(client.attachments(&own).await.unwrap().len(), 1);
    assert_eq!(client.volumes(&Default::default()).await.unwrap().len(), 2, "the server's own and ours");

    cloud.sim.seed_images(HOME, 1);
    let image = client.image_by_name("image-0000").await.unwrap().unwrap();
    let export =
        ExportPrototype { name: name("out"), bucket: "images".to_owned(), format: Default::default() };
    client.export_image(&image.id, &export).await.unwrap();
    assert_eq!(client.export_jobs(&image.id).await.unwrap().len(), 1);
    assert_eq!(cloud.sim.faults().fired(), [1, 1, 1]);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_not_done_is_sent_again() {
    for action in [
        RegionAction::Drop,
        RegionAction::Reset,
        RegionAction::answer(500, "internal_error"),
        RegionAction::Answer { status: 502, code: None, retry_after_s: None },
        RegionAction::Answer {
            status: 429,
            code: Some("too_many_requests".to_owned()),
            retry_after_s: Some(0),
        },
    ] {
        let cloud = Cloud::start().await;
        let client = cloud.client(HOME);
        let server = client.server(SERVER).await.unwrap();
        cloud
            .sim
            .faults()
            .add(RegionRule::on(RegionOperation::CreateSnapshot).when(When::First(2)), action.clone());
        client
            .create_snapshot(&snapshot_of(&server, "web01-1"))
            .await
            .unwrap_or_else(|err| panic!("{action:?}: {err}"));
        assert_eq!(cloud.sim.faults().fired(), [2], "{action:?}");
        assert_eq!(cloud.sim.request_count(RegionOperation::CreateSnapshot), 3, "{action:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_lags_behind_is_waited_for() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let server = client.server(SERVER).await.unwrap();
    let create = RegionOperation::CreateSnapshot;
    // The snapshot was made, its response was lost, and lists do not show it yet: the second request is
    // refused because of the name.
    cloud
        .sim
        .faults()
        .add(RegionRule::on(create).when(When::Nth(1)), RegionAction::ListLag { milliseconds: 600 });
    let lagging = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
    assert!(client.snapshot_by_name("web01-1").await.unwrap().is_none(), "the list lags");
    client.snapshot_stable(&lagging.id, SOON).await.unwrap();
    cloud
        .sim
        .faults()
        .add(RegionRule::on(create).when(When::Nth(1)), RegionAction::answer(500, "internal_error"));
    let again = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
    assert_eq!(again.id, lagging.id);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_already_is_adopted_and_what_is_anothers_is_not() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let server = client.server(SERVER).await.unwrap();
    let first = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
    let first = client.snapshot_stable(&first.id, SOON).await.unwrap();
    let second = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
    assert_eq!(first.id, second.id);

    let volume = ready_volume(&client, &first, "web01-1").await;
    let mut other = volume_of(&first, "web01-1");
    other.zone = format!("{HOME}-2");
    let err = client.create_volume(&other).await.unwrap_err();
    let VpcError::NameTaken { id, difference, .. } = &err else { panic!("{err}") };
    assert_eq!(id, volume.id.as_str());
    assert!(difference.contains("us-south-1") && difference.contains("us-south-2"), "{difference}");

    let own = InstanceId::new(cloud.sim.own_instance_id());
    client.attach(&own, &name("disk"), &volume.id).await.unwrap();
    let boot = server.boot_volume_attachment.unwrap().volume.unwrap().id;
    let err = client.attach(&own, &name("disk"), &boot).await.unwrap_err();
    assert!(matches!(err, VpcError::NameTaken { kind: "attachment", .. }), "{err}");

    cloud.sim.seed_images(HOME, 2);
    let (a, b) = (
        client.image_by_name("image-0000").await.unwrap().unwrap(),
        client.image_by_name("image-0001").await.unwrap().unwrap(),
    );
    let err = client.rename_image(&a.id, &name("image-0001")).await.unwrap_err();
    assert!(matches!(&err, VpcError::NameTaken { id, .. } if *id == b.id.to_string()), "{err}");
    let origin = ImageOrigin::File {
        href: "cos://us-south/images/a.qcow2".to_owned(),
        operating_system: "red-9-amd64".to_owned(),
    };
    let prototype = ImagePrototype { name: name("image-0000"), origin, resource_group: None };
    let err = client.create_image(&prototype).await.unwrap_err();
    assert!(matches!(err, VpcError::NameTaken { kind: "image", .. }), "{err}");
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_whose_answer_is_lost_is_made_once() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    cloud.sim.seed_images(HOME, 1);
    let image = client.image_by_name("image-0000").await.unwrap().unwrap();
    cloud
        .sim
        .faults()
        .add(RegionRule::on(RegionOperation::UpdateImage).when(When::Nth(1)), RegionAction::ApplyThenDrop);
    assert_eq!(client.rename_image(&image.id, &name("web01-latest")).await.unwrap().name, "web01-latest");
    assert_eq!(cloud.sim.faults().fired(), [1]);
    cloud.sim.shutdown().await;
}
