//! Lists: pages, filters, names.

use snapferry_ibmcloud::vpc::model::ImageState;
use snapferry_ibmcloud::vpc::{ImageFilter, SnapshotFilter, SnapshotOrder, Tag, VolumeFilter, VpcError};
use snapferry_sim::{RegionAction, RegionOperation, RegionRule, When};

use super::{Cloud, SOON, ready_volume, snapshot_of, stable_snapshot};
use crate::support::{AWAY, HOME, SERVER};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_images_are_paged_through() {
    let cloud = Cloud::start().await;
    cloud.sim.seed_images(HOME, 1000);
    let client = cloud.client(HOME);
    // One page in the middle is throttled once.
    cloud.sim.faults().add(
        RegionRule::on(RegionOperation::ListImages).when(When::Nth(5)),
        RegionAction::answer(429, "throttled"),
    );
    let mut names: Vec<String> =
        client.images(&ImageFilter::default()).await.unwrap().into_iter().map(|i| i.name).collect();
    names.sort();
    let expected: Vec<String> = (0..1000).map(|number| format!("image-{number:04}")).collect();
    assert_eq!(names, expected);
    assert_eq!(cloud.sim.request_count(RegionOperation::ListImages), 11);
    assert_eq!(client.image_by_name("image-0500").await.unwrap().unwrap().name, "image-0500");
    assert_eq!(
        cloud.sim.request_count(RegionOperation::ListImages),
        12,
        "one by its name is asked for by its name"
    );
    let failed = ImageFilter { status: vec![ImageState::Failed] };
    assert!(client.images(&failed).await.unwrap().is_empty());
    assert!(
        cloud.client(AWAY).images(&ImageFilter::default()).await.unwrap().is_empty(),
        "regions are apart"
    );
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_reach_the_api() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let server = client.server(SERVER).await.unwrap();
    let mut tagged = snapshot_of(&server, "tagged");
    tagged.tags = vec![Tag::new("snapferry").unwrap()];
    let made = client.create_snapshot(&tagged).await.unwrap();
    let tagged = client.snapshot_stable(&made.id, SOON).await.unwrap();
    let plain = stable_snapshot(&client, "plain").await;
    let filter = SnapshotFilter { tag: Some(Tag::new("Snapferry").unwrap()), ..SnapshotFilter::default() };
    let found: Vec<String> = client.snapshots(&filter).await.unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(found, ["tagged"]);
    let source = Some(plain.source_volume.id.clone());
    let newest = SnapshotFilter {
        source_volume: source,
        order: SnapshotOrder::NewestFirst,
        ..SnapshotFilter::default()
    };
    let found: Vec<String> = client.snapshots(&newest).await.unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(found, ["plain", "tagged"]);

    let volume = ready_volume(&client, &tagged, "web01-1").await;
    client.tag_volume(&volume.id, &[Tag::new("Job:1").unwrap()]).await.unwrap();
    client.tag_volume(&volume.id, &[Tag::new("job:1").unwrap(), Tag::new("job:2").unwrap()]).await.unwrap();
    let filter = VolumeFilter { tag: Some(Tag::new("job:1").unwrap()), ..VolumeFilter::default() };
    assert_eq!(client.volumes(&filter).await.unwrap()[0].user_tags, ["job:1", "job:2"]);
    let loose = VolumeFilter { attachment_state: Some("unattached".to_owned()), ..VolumeFilter::default() };
    assert_eq!(client.volumes(&loose).await.unwrap().len(), 1);
    client.tag_snapshot(&plain.id, &[Tag::new("kept").unwrap()]).await.unwrap();
    assert_eq!(client.snapshot(&plain.id).await.unwrap().unwrap().user_tags, ["kept"]);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_region_has_to_offer_is_found_by_name() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    assert_eq!(client.regions().await.unwrap().len(), 2);
    let zones: Vec<String> = client.zones().await.unwrap().into_iter().map(|zone| zone.name).collect();
    assert_eq!(zones, ["us-south-1", "us-south-2", "us-south-3"]);
    let vpc = client.vpc("main").await.unwrap();
    assert_eq!(client.subnet("main-2", Some(&vpc.id)).await.unwrap().zone.name, "us-south-2");
    assert_eq!(client.security_group("main-default", &vpc.id).await.unwrap().name, "main-default");
    assert!(client.volume_profiles().await.unwrap().iter().any(|profile| profile.name == "sdp"));
    assert!(client.instance_profiles().await.unwrap().iter().any(|profile| profile.name == "bx2-2x8"));
    assert!(client.operating_systems().await.unwrap().len() > 5);
    assert!(
        !client.operating_system("red-9-amd64-sap-hana").await.unwrap().unwrap().allow_user_image_creation
    );
    assert_eq!(client.operating_system("plan9").await.unwrap(), None);
    let missing = client.key("nobodys").await.unwrap_err();
    assert!(matches!(&missing, VpcError::Missing { kind: "SSH key", .. }), "{missing}");
    assert_eq!(missing.to_string(), "there is no SSH key \"nobodys\" in us-south");
    let missing = client.server("web99").await.unwrap_err();
    assert_eq!(missing.to_string(), "there is no server \"web99\" in us-south");
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_first_image_is_deleted_begins_with_the_next() {
    let cloud = Cloud::start().await;
    cloud.sim.seed_images(HOME, 101);
    let client = cloud.client(HOME);
    let all = client.images(&ImageFilter::default()).await.unwrap();
    // The second page begins with the last image, which is deleted between the requests for both pages.
    cloud.sim.faults().add(
        RegionRule::on(RegionOperation::ListImages).when(When::Nth(2)),
        RegionAction::Delay { milliseconds: 300 },
    );
    let filter = ImageFilter::default();
    let (listed, ()) = tokio::join!(client.images(&filter), async {
        while cloud.sim.request_count(RegionOperation::ListImages) < 4 {
            tokio::task::yield_now().await;
        }
        client.delete_image(&all[100].id).await.unwrap();
        client.image_gone(&all[100].id, SOON).await.unwrap();
    });
    assert_eq!(listed.unwrap().len(), 100);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_ends_early_is_asked_for_again_and_never_believed() {
    let cloud = Cloud::start().await;
    cloud.sim.seed_images(HOME, 150);
    let client = cloud.client(HOME);
    let early = RegionRule::on(RegionOperation::ListImages);
    cloud.sim.faults().add(early.clone().when(When::First(1)), RegionAction::EndEarly);
    assert_eq!(client.images(&ImageFilter::default()).await.unwrap().len(), 150);
    cloud.sim.faults().add(early, RegionAction::EndEarly);
    let err = client.images(&ImageFilter::default()).await.unwrap_err();
    assert!(
        matches!(&err, VpcError::Malformed { .. })
            && err.to_string().contains("150 entries by its own count"),
        "{err}"
    );
    cloud.sim.shutdown().await;
}
