//! A server's disk by snapshot, volume and attachment to a device; from the device to an object; from there
//! to an image, and to a server again.

use snapferry_base::proxy::Proxies;
use std::sync::Arc;

use snapferry_engine::image::Sha256Sum;
use snapferry_fleet::replicate::device::{DeviceError, DeviceFolder, DeviceKind};
use snapferry_ibmcloud::vpc::model::{AttachedDevice, HealthState, ImageState, StorageGeneration};
use snapferry_ibmcloud::vpc::{
    BootFrom, ExportPrototype, ImageOrigin, ImagePrototype, InstanceId, InstancePrototype, RegionClient, Tag,
    Tagging, TaggingConfig,
};
use snapferry_sim::RegionOperation;

use super::{Cloud, SOON, name, ready_volume, snapshot_of, stable_snapshot};
use crate::support::{AWAY, HOME, POLICY, SERVER, client_context};

/// The server that the program would run on.
fn own(cloud: &Cloud) -> InstanceId {
    InstanceId::new(cloud.sim.own_instance_id())
}

fn devices(cloud: &Cloud) -> DeviceFolder {
    DeviceFolder {
        folder: cloud.sim.device_folder(),
        device_kind: DeviceKind::DeviceOrFile,
        ..DeviceFolder::default()
    }
}

/// Devices of all attachments of a server.
async fn other_devices(client: &RegionClient, server: &InstanceId) -> Vec<AttachedDevice> {
    client.attachments(server).await.unwrap().into_iter().filter_map(|attachment| attachment.device).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_disk_comes_to_a_device_and_everything_goes_again() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let server = client.server(SERVER).await.unwrap();
    let mut prototype = snapshot_of(&server, "web01-1");
    prototype.tags = vec![Tag::new("Server:Web01").unwrap()];
    let snapshot = client.create_snapshot(&prototype).await.unwrap();
    let snapshot = client.snapshot_stable(&snapshot.id, SOON).await.unwrap();
    assert_eq!((snapshot.minimum_capacity, snapshot.storage_generation), (1, StorageGeneration::FIRST));
    assert_eq!(snapshot.operating_system.as_ref().unwrap().name, "debian-12-amd64");
    assert_eq!(snapshot.user_tags, ["server:web01"]);
    assert!(snapshot.captured_at.unwrap() >= snapshot.created_at);
    assert_eq!(snapshot.crn.region(), Some(HOME));

    let volume = ready_volume(&client, &snapshot, "web01-1").await;
    assert_eq!(volume.zone.name, format!("{HOME}-1"));
    let attachment = client.attach(&own(&cloud), &name("web01-1"), &volume.id).await.unwrap();
    let attachment = client.attached(&own(&cloud), &attachment.id, SOON).await.unwrap();
    let device = attachment.device.unwrap();
    let others = other_devices(&client, &own(&cloud)).await;
    let path = devices(&cloud)
        .find(&device, &others, volume.capacity, client.clock(), client.cancel())
        .await
        .unwrap();
    let read = std::fs::read(&path).unwrap();
    let disk = std::fs::read(cloud.folder.path().join("web01.raw")).unwrap();
    assert!(read.starts_with(&disk) && read[disk.len()..].iter().all(|&byte| byte == 0));
    let wrong = devices(&cloud).find(&device, &others, 2, client.clock(), client.cancel()).await.unwrap_err();
    assert!(matches!(wrong, DeviceError::Size { .. }), "{wrong}");

    // A volume can't be deleted while it is attached, and it still exists after the attachment is deleted.
    let refused = client.delete_volume(&volume.id).await.unwrap_err();
    assert!(refused.to_string().contains("volume_in_use"), "{refused}");
    client.detach(&own(&cloud), &attachment.id).await.unwrap();
    client.detached(&own(&cloud), &attachment.id, SOON).await.unwrap();
    assert!(client.volume(&volume.id).await.unwrap().is_some());
    // Each deletion may be repeated.
    client.detach(&own(&cloud), &attachment.id).await.unwrap();
    for _ in 0..2 {
        client.delete_volume(&volume.id).await.unwrap();
    }
    client.volume_gone(&volume.id, SOON).await.unwrap();
    for _ in 0..2 {
        client.delete_snapshot(&snapshot.id).await.unwrap();
    }
    client.snapshot_gone(&snapshot.id, SOON).await.unwrap();
    crate::support::wait_until("the link is gone", || {
        std::fs::read_dir(cloud.sim.device_folder()).unwrap().next().is_none()
    });

    let operations: Vec<RegionOperation> =
        cloud.sim.history().into_iter().map(|entry| entry.operation).collect();
    assert_eq!(
        operations[..3],
        [RegionOperation::CreateSnapshot, RegionOperation::CreateVolume, RegionOperation::CreateAttachment]
    );
    assert!(cloud.sim.history().iter().all(|entry| entry.request_id.starts_with("snapferry-")));
    cloud.sim.shutdown().await;
}

/// Converts the server's disk into an object with the program; returns its SHA-256.
async fn object(cloud: &Cloud) -> Sha256Sum {
    cloud.sim.store().create_bucket("images").await.unwrap();
    let report = super::convert(cloud, &cloud.folder.path().join("web01.raw"), "web01.qcow2").await;
    report["sha256"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_becomes_an_image_with_its_sum_and_the_image_an_object() {
    let cloud = Cloud::start().await;
    let client = cloud.client(AWAY);
    let sum = object(&cloud).await;
    let prototype = ImagePrototype {
        name: name("web01-1"),
        origin: ImageOrigin::File {
            href: format!("cos://{AWAY}/images/web01.qcow2"),
            operating_system: "debian-12-amd64".to_owned(),
        },
        resource_group: None,
    };
    let image = client.create_image(&prototype).await.unwrap();
    assert_eq!((&image.status, image.sha256()), (&ImageState::Pending, None));
    let image = client.image_available(&image.id, SOON).await.unwrap();
    assert_eq!(image.sha256().unwrap(), sum.to_string());
    assert_eq!(image.minimum_provisioned_size, Some(1));

    let renamed = client.rename_image(&image.id, &name("web01-latest")).await.unwrap();
    assert_eq!(renamed.name, "web01-latest");
    let tagging = TaggingConfig {
        endpoint: cloud.sim.tagging_endpoint(),
        ca_file: None,
        proxies: Proxies::default(),
        policy: POLICY,
    };
    let tagging = Tagging::new(&tagging, client_context(Arc::clone(&cloud.tokens))).unwrap();
    let tag = Tag::new("snapferry").unwrap();
    tagging.attach(&image.crn, std::slice::from_ref(&tag)).await.unwrap();
    assert_eq!(tagging.tags(&image.crn).await.unwrap(), ["snapferry"]);
    tagging.detach(&image.crn, &[tag]).await.unwrap();
    assert!(tagging.tags(&image.crn).await.unwrap().is_empty());

    let export = ExportPrototype {
        name: name("web01-export"),
        bucket: "images".to_owned(),
        format: Default::default(),
    };
    let job = client.export_image(&image.id, &export).await.unwrap();
    let job = client.export_succeeded(&image.id, &job.id, SOON).await.unwrap();
    assert_eq!(job.storage_object.unwrap().name, "web01-export.qcow2");
    client.delete_export_job(&image.id, &job.id).await.unwrap();

    // A server made from the image has the same disk.
    let subnet = client.subnet("main-1", None).await.unwrap();
    let restored = InstancePrototype {
        name: name("web01"),
        vpc: subnet.vpc.id.clone(),
        zone: subnet.zone.name.clone(),
        profile: "bx2-2x8".to_owned(),
        boot: BootFrom::Image(image.id.clone()),
        boot_profile: None,
        boot_volume_name: None,
        subnet: subnet.id.clone(),
        address: Some("10.240.64.9".to_owned()),
        security_groups: Vec::new(),
        keys: vec![client.key("admin").await.unwrap().id],
        resource_group: None,
        tags: Vec::new(),
        user_data: None,
    };
    let server = client.create_instance(&restored).await.unwrap();
    let server = client.instance_running(&server.id, SOON).await.unwrap();
    let boot = server.boot_volume_attachment.unwrap().volume.unwrap();
    let boot = client.volume_available(&boot.id, SOON).await.unwrap();
    let restored =
        std::fs::read(cloud.sim.folder().join("volumes").join(format!("{}.raw", boot.id))).unwrap();
    let disk = std::fs::read(cloud.folder.path().join("web01.raw")).unwrap();
    assert!(restored.starts_with(&disk), "the restored server has another disk");

    client.deprecate_image(&image.id).await.unwrap();
    client.obsolete_image(&image.id).await.unwrap();
    // A repeated request has no further effect.
    client.obsolete_image(&image.id).await.unwrap();
    client.delete_image(&image.id).await.unwrap();
    client.image_gone(&image.id, SOON).await.unwrap();
    let kept = cloud.sim.folder().join("images").join(format!("{}.qcow2", image.id));
    assert!(!kept.exists(), "the service keeps its copy of an image that is gone");
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_restore_at_once_and_copies_go_to_the_other_region() {
    let cloud = Cloud::start_with(|mut config| {
        config.delays.hydration = std::time::Duration::from_secs(3600);
        config
    })
    .await;
    let (client, away) = (cloud.client(HOME), cloud.client(AWAY));
    let snapshot = stable_snapshot(&client, "web01-1").await;
    let slow = ready_volume(&client, &snapshot, "slow").await;
    assert_eq!(slow.health_state, Some(HealthState::Degraded));
    assert_eq!(slow.health_reasons[0].code, "initializing_from_snapshot");
    let zone = format!("{HOME}-1");
    client.create_clone(&snapshot.id, &zone).await.unwrap();
    client.create_clone(&snapshot.id, &zone).await.unwrap();
    client.clone_available(&snapshot.id, &zone, SOON).await.unwrap();
    assert_eq!(client.clones(&snapshot.id).await.unwrap().len(), 1);
    let fast = ready_volume(&client, &snapshot, "fast").await;
    assert_eq!(fast.health_state, Some(HealthState::Ok));
    client.delete_clone(&snapshot.id, &zone).await.unwrap();
    client.delete_clone(&snapshot.id, &zone).await.unwrap();

    let copy = away.copy_snapshot(&name("web01-1"), &snapshot.crn, None, &[]).await.unwrap();
    let copy = away.snapshot_stable(&copy.id, SOON).await.unwrap();
    assert_eq!((copy.crn.region(), copy.minimum_capacity), (Some(AWAY), 1));
    let source = client.snapshot(&snapshot.id).await.unwrap().unwrap();
    assert_eq!(source.copies[0].crn.region(), Some(AWAY));

    // A snapshot stays while a volume is filled from it; it goes once the volume is deleted.
    client.delete_snapshot(&snapshot.id).await.unwrap();
    let short = SOON.within(std::time::Duration::from_millis(300));
    let stays = client.snapshot_gone(&snapshot.id, short).await.unwrap_err();
    assert!(stays.to_string().contains("is still deleting after"), "{stays}");
    client.delete_volume(&slow.id).await.unwrap();
    client.snapshot_gone(&snapshot.id, SOON).await.unwrap();
    cloud.sim.shutdown().await;
}
