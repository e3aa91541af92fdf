//! Requests that the API refuses, and its error codes.

use serde_json::{Value, json};
use snapferry_ibmcloud::vpc::model::{ImageState, InstanceState};
use snapferry_ibmcloud::vpc::{
    ExportPrototype, ImageOrigin, ImagePrototype, InstanceAction, RegionClient, VpcError,
};
use snapferry_sim::{RegionAction, RegionConfig, RegionOperation, RegionRule, ServerSeed};

use super::{Cloud, SOON, name, ready_volume, snapshot_of, stable_snapshot, volume_of};
use crate::support::{AWAY, HOME, SERVER};

/// Error code of a refusal.
fn code(err: &VpcError) -> &str {
    match err {
        VpcError::Refused { refusal, .. } | VpcError::Busy { refusal, .. } => refusal.code(),
        other => panic!("not refused: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_are_not_mixed() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let disk = cloud.folder.path().join("web01.raw");
    let second = ServerSeed { generation: 2, running: false, ..ServerSeed::new(HOME, "db01", &disk) };
    cloud.sim.seed_server(second).await.unwrap();
    let first = stable_snapshot(&client, "web01-1").await;
    // Servers of the second storage generation need not run.
    let server = client.server("db01").await.unwrap();
    let snapshot = client.create_snapshot(&snapshot_of(&server, "db01-1")).await.unwrap();
    let second = client.snapshot_stable(&snapshot.id, SOON).await.unwrap();
    for (snapshot, wrong, right) in [(&first, "sdp", "5iops-tier"), (&second, "general-purpose", "sdp")] {
        let mut prototype = volume_of(snapshot, &format!("{}-volume", snapshot.name));
        prototype.profile = wrong.to_owned();
        let err = client.create_volume(&prototype).await.unwrap_err();
        assert_eq!(code(&err), "volume_profile_storage_generation_mismatch", "{wrong}");
        prototype.profile = right.to_owned();
        client.create_volume(&prototype).await.unwrap();
    }
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_the_first_generation_needs_a_running_server_and_a_volume_to_itself() {
    let cloud = Cloud::start_with(|mut config| {
        config.delays.snapshot = std::time::Duration::from_millis(500);
        config
    })
    .await;
    let client = cloud.client(HOME);
    let server = client.server(SERVER).await.unwrap();
    let first = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
    // One snapshot at a time: a second request waits until the first snapshot is stable, or fails at its own
    // deadline.
    let busy = client.create_snapshot(&snapshot_of(&server, "web01-2")).await.unwrap_err();
    assert_eq!(code(&busy), "snapshots_source_volume_busy");
    assert!(busy.class().is_retryable());
    client.snapshot_stable(&first.id, SOON).await.unwrap();
    client.create_snapshot(&snapshot_of(&server, "web01-2")).await.unwrap();
    client.act(&server.id, InstanceAction::Stop).await.unwrap();
    while client.instance(&server.id).await.unwrap().unwrap().status != InstanceState::Stopped {
        tokio::task::yield_now().await;
    }
    let stopped = client.create_snapshot(&snapshot_of(&server, "web01-3")).await.unwrap_err();
    assert_eq!(code(&stopped), "snapshots_source_volume_not_attached");
    cloud.sim.shutdown().await;
}

async fn imported(
    client: &RegionClient,
    called: &str,
    href: &str,
    os: &str,
) -> Result<snapferry_ibmcloud::vpc::model::Image, VpcError> {
    let origin = ImageOrigin::File { href: href.to_owned(), operating_system: os.to_owned() };
    let image =
        client.create_image(&ImagePrototype { name: name(called), origin, resource_group: None }).await?;
    client.image_available(&image.id, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_fail_with_ibms_reasons() {
    let cloud = Cloud::start_with(|mut config: RegionConfig| {
        config.bucket_locations.insert("images".to_owned(), "us-east".to_owned());
        config
    })
    .await;
    let client = cloud.client(HOME);
    cloud.sim.store().create_bucket("images").await.unwrap();
    for (href, os, expected) in [
        ("cos://us-east/images/a.QCOW2", "debian-12-amd64", "cos_invalid_file_extension"),
        ("cos://us-east/a.qcow2", "debian-12-amd64", "bad_field"),
        ("cos://us-south/images/a.qcow2", "debian-12-amd64", "bad_field"),
        ("cos://us-east/images/a.qcow2", "plan9", "bad_field"),
        ("cos://us-east/images/a.qcow2", "red-9-amd64-sap-hana", "bad_field"),
    ] {
        let err = imported(&client, "a", href, os).await.unwrap_err();
        assert_eq!(code(&err), expected, "{href} {os}");
    }
    let absent =
        imported(&client, "absent", "cos://us-east/images/a.qcow2", "debian-12-amd64").await.unwrap_err();
    let VpcError::Ended { state, reasons, .. } = &absent else { panic!("{absent}") };
    assert_eq!(state, "failed");
    assert!(reasons[0].starts_with("image_data_corrupted"), "{reasons:?}");
    let failed = client.image_by_name("absent").await.unwrap().unwrap();
    assert_eq!(failed.status, ImageState::Failed);
    client.delete_image(&failed.id).await.unwrap();
    client.image_gone(&failed.id, SOON).await.unwrap();
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stuck_or_fails_is_told_from_what_is_slow() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let server = client.server(SERVER).await.unwrap();
    let fails = RegionAction::FailLater { code: "encryption_key_deleted".to_owned() };
    cloud.sim.faults().add(RegionRule::on(RegionOperation::CreateSnapshot), fails);
    let snapshot = client.create_snapshot(&snapshot_of(&server, "web01-1")).await.unwrap();
    let err = client.snapshot_stable(&snapshot.id, SOON).await.unwrap_err();
    assert!(matches!(&err, VpcError::Ended { state, .. } if state.starts_with("failed")), "{err}");
    cloud.sim.faults().clear();
    let snapshot = stable_snapshot(&client, "web01-2").await;
    cloud.sim.faults().add(RegionRule::on(RegionOperation::CreateVolume), RegionAction::StuckPending);
    let volume = client.create_volume(&volume_of(&snapshot, "web01-2")).await.unwrap();
    let err = client
        .volume_available(&volume.id, SOON.within(std::time::Duration::from_millis(200)))
        .await
        .unwrap_err();
    assert!(matches!(&err, VpcError::Overdue { state, .. } if state == "pending"), "{err}");
    // The volume can be deleted nevertheless.
    client.delete_volume(&volume.id).await.unwrap();
    client.volume_gone(&volume.id, SOON).await.unwrap();
    cloud.sim.shutdown().await;
}

/// Raw requests of a kind that the client never sends.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_insists_on_version_token_and_content_type() {
    let cloud = Cloud::start().await;
    let client = cloud.client(HOME);
    let snapshot = stable_snapshot(&client, "web01-1").await;
    let volume = ready_volume(&client, &snapshot, "web01-1").await;
    let token = cloud.tokens.token().await.unwrap();
    let http = reqwest::Client::new();
    let base = format!("{}/v1", cloud.sim.endpoint(HOME));
    let send = async |request: reqwest::RequestBuilder| {
        let response = request.send().await.unwrap();
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        let body: Value = serde_json::from_str(&text).unwrap_or(json!({ "not": text }));
        (status, body["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
    };
    let bearer = token.bearer.reveal();
    let get = |path: &str| http.get(format!("{base}/{path}"));
    assert_eq!(send(get("volumes?version=2026-03-24&generation=2")).await, (401, "token_invalid".to_owned()));
    assert_eq!(
        send(get("volumes?version=2026-03-24").bearer_auth(bearer)).await,
        (400, "bad_field".to_owned())
    );
    assert_eq!(send(get("volumes?generation=2").bearer_auth(bearer)).await, (400, "bad_field".to_owned()));
    let query = "version=2026-03-24&generation=2";
    assert_eq!(
        send(get(&format!("volumes?{query}&limit=0")).bearer_auth(bearer)).await,
        (400, "bad_field".to_owned())
    );
    assert_eq!(
        send(get(&format!("nothing?{query}")).bearer_auth(bearer)).await,
        (404, "invalid_route".to_owned())
    );
    let patch = |kind: &str, body: Value| {
        let request = http.patch(format!("{base}/volumes/{}?{query}", volume.id)).bearer_auth(bearer);
        request.header("content-type", kind).body(body.to_string())
    };
    assert_eq!(send(patch("application/json", json!({}))).await, (415, "invalid_content_type".to_owned()));
    let tags = json!({ "user_tags": ["a"] });
    let merge = "application/merge-patch+json";
    assert_eq!(send(patch(merge, tags.clone())).await, (400, "missing_header".to_owned()));
    assert_eq!(
        send(patch(merge, tags).header("if-match", "\"old\"")).await,
        (412, "precondition_failed".to_owned())
    );
    assert_eq!(
        send(patch(merge, json!({ "name": "Upper" }))).await,
        (400, "validation_invalid_name".to_owned())
    );
    cloud.sim.expire_tokens();
    assert_eq!(
        send(get(&format!("volumes?{query}")).bearer_auth(bearer)).await,
        (401, "token_invalid".to_owned())
    );
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold() {
    let cloud = Cloud::start_with(|config| RegionConfig { volume_quota: 2, ..config }).await;
    let client = cloud.client(HOME);
    let snapshot = stable_snapshot(&client, "web01-1").await;
    ready_volume(&client, &snapshot, "one").await;
    let err = client.create_volume(&volume_of(&snapshot, "two")).await.unwrap_err();
    assert_eq!(code(&err), "over_quota");
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_gone_can_be_made_again() {
    let cloud = Cloud::start().await;
    let (client, away) = (cloud.client(HOME), cloud.client(AWAY));
    let snapshot = stable_snapshot(&client, "web01-1").await;
    for _ in 0..2 {
        let copy = away.copy_snapshot(&name("copy"), &snapshot.crn, None, &[]).await.unwrap();
        away.snapshot_stable(&copy.id, SOON).await.unwrap();
        away.delete_snapshot(&copy.id).await.unwrap();
        away.snapshot_gone(&copy.id, SOON).await.unwrap();
    }
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_authorization_nothing_is_imported_or_exported() {
    let cloud = Cloud::start_with(|config| RegionConfig { image_service_authorized: false, ..config }).await;
    let client = cloud.client(HOME);
    let err = imported(&client, "a", "cos://us-south/images/a.qcow2", "debian-12-amd64").await.unwrap_err();
    assert_eq!(code(&err), "cos_unauthorized");
    cloud.sim.seed_images(HOME, 1);
    let image = client.image_by_name("image-0000").await.unwrap().unwrap();
    let export =
        ExportPrototype { name: name("out"), bucket: "images".to_owned(), format: Default::default() };
    let job = client.export_image(&image.id, &export).await.unwrap();
    let err = client.export_succeeded(&image.id, &job.id, SOON).await.unwrap_err();
    assert!(
        matches!(&err, VpcError::Ended { reasons, .. } if reasons[0].starts_with("cannot_access_storage_bucket")),
        "{err}"
    );
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_of_10_to_250_gb() {
    let cloud = Cloud::start_with(|config| RegionConfig { least_capacity: 10, ..config }).await;
    let client = cloud.client(HOME);
    cloud.sim.store().create_bucket("images").await.unwrap();
    for (gigabytes, expected) in
        [(1, Ok(10)), (250, Ok(250)), (251, Err("image_provisioned_size_unsupported"))]
    {
        let disk = cloud.folder.path().join("sparse.raw");
        std::fs::File::create(&disk).unwrap().set_len(gigabytes << 30).unwrap();
        let key = format!("disk-{gigabytes}.qcow2");
        super::convert(&cloud, &disk, &key).await;
        let image = imported(
            &client,
            &format!("disk-{gigabytes}"),
            &format!("cos://us-south/images/{key}"),
            "debian-12-amd64",
        )
        .await;
        match (image, expected) {
            (Ok(image), Ok(size)) => assert_eq!(image.minimum_provisioned_size, Some(size)),
            (Err(VpcError::Ended { reasons, .. }), Err(code)) => {
                assert!(reasons[0].starts_with(code), "{reasons:?}");
            }
            (image, expected) => panic!("{gigabytes} GB: {image:?}, not {expected:?}"),
        }
    }
    cloud.sim.shutdown().await;
}
