//! The commands on the cloud, as a user runs them.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use snapferry_sim::{RegionConfig, RegionOperation, ServerSeed};

use super::Cloud;
use crate::support::{AWAY, Ended, HOME, SERVER, program};

impl Cloud {
    /// A command with this cloud in its environment, and no other settings.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SNAPFERRY_VPC_ENDPOINT", self.sim.endpoint_template());
        command.env("SNAPFERRY_IAM_ENDPOINT", self.sim.iam_endpoint());
        command.env("SNAPFERRY_METADATA_ENDPOINT", self.sim.metadata_endpoint());
        command.env("SNAPFERRY_TAGGING_ENDPOINT", self.sim.tagging_endpoint());
        command.env("SNAPFERRY_DEVICE_FOLDER", self.sim.device_folder());
        command.env("SNAPFERRY_ENDPOINT", self.sim.store().endpoint());
        command.env("SNAPFERRY_TRUSTED_PROFILE", "default");
        command
    }

    async fn run(&self, args: &[&str]) -> Ended {
        self.finish(self.command(args)).await
    }

    async fn finish(&self, mut command: Command) -> Ended {
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let ended = Ended::from(output);
        let key = self.sim.api_key();
        assert!(
            !ended.out.contains(key.reveal()) && !ended.err.contains(key.reveal()),
            "the API key is shown"
        );
        ended
    }

    fn changes(&self) -> usize {
        self.sim.history().len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_volume_is_shown_with_what_stands_in_its_way() {
    let cloud = Cloud::start().await;
    let disk = cloud.folder.path().join("web01.raw");
    cloud
        .sim
        .seed_server(ServerSeed { running: false, ..ServerSeed::new(HOME, "db01", &disk) })
        .await
        .unwrap();
    let mut sap = ServerSeed::new(HOME, "sap01", &disk);
    sap.operating_system = "red-9-amd64-sap-hana".to_owned();
    cloud.sim.seed_server(sap).await.unwrap();

    // The default region is that of the server on which the program runs.
    let report = cloud.run(&["boot-volume", SERVER, "--json"]).await.json();
    assert_eq!(report["region"], HOME);
    assert_eq!(report["boot_volume"], "web01-boot");
    assert_eq!((&report["capacity_gb"], &report["storage_generation"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(
        (&report["obstacles"], &report["latest_snapshot"]),
        (&Value::from(Vec::<Value>::new()), &Value::Null)
    );
    cloud.run(&["boot-volume", SERVER]).await.code(0).says(&[
        "us-south-1, VPC main",
        "debian-12-amd64",
        "generation 1",
    ]);
    cloud
        .run(&["boot-volume", "db01"])
        .await
        .code(0)
        .says(&["in the way", "needs a running server, and this one is stopped"]);
    cloud.run(&["boot-volume", "sap01"]).await.code(0).says(&["in the way", "may not be imported"]);
    cloud
        .run(&["boot-volume", "web99"])
        .await
        .code(5)
        .says(&["there is no server \"web99\" in us-south", "--region"]);
    assert_eq!(cloud.changes(), 0);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_listed_copied_and_deleted() {
    let cloud = Cloud::start().await;
    cloud
        .run(&["snapshot", "create", SERVER, "--dry-run"])
        .await
        .code(0)
        .says(&["would take snapshot web01-"]);
    assert_eq!(cloud.changes(), 0);
    let made = cloud
        .run(&["snapshot", "create", SERVER, "--name", "web01-1", "--tag", "Night", "--json"])
        .await
        .json();
    assert_eq!((&made["state"], &made["tags"][0]), (&Value::from("stable"), &Value::from("night")));
    // The same name again gives the same snapshot.
    let again = cloud.run(&["snapshot", "create", SERVER, "--name", "web01-1", "--json"]).await.json();
    assert_eq!(made["id"], again["id"]);
    cloud.run(&["snapshot", "create", SERVER, "--no-wait"]).await.code(0);
    let listed = cloud.run(&["snapshot", "list", "--server", SERVER, "--json"]).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let tagged = cloud.run(&["snapshot", "list", "--tag", "night", "--json"]).await.json();
    assert_eq!(tagged.as_array().unwrap().len(), 1);
    cloud.run(&["snapshot", "list"]).await.code(0).says(&["name", "web01-1", "stable", "1 GB"]);

    let before = cloud.changes();
    cloud
        .run(&["snapshot", "copy", "web01-1", "--to", AWAY, "--dry-run"])
        .await
        .code(0)
        .says(&["would copy"]);
    cloud.run(&["snapshot", "copy", "web01-1", "--to", HOME]).await.code(2).says(&["own region"]);
    assert_eq!(cloud.changes(), before);
    let copy = cloud.run(&["snapshot", "copy", "web01-1", "--to", AWAY, "--json"]).await.json();
    assert!(copy["crn"].as_str().unwrap().contains(AWAY), "{copy}");
    let away = cloud.run(&["snapshot", "list", "--region", AWAY, "--json"]).await.json();
    assert_eq!(away[0]["name"], "web01-1");

    let before = cloud.changes();
    cloud.run(&["snapshot", "delete", "web01-1", "--dry-run"]).await.code(0).says(&["would delete"]);
    // If one name is mistyped, none of the others is deleted.
    cloud
        .run(&["snapshot", "delete", "web01-1", "web01-2"])
        .await
        .code(5)
        .says(&["there is no snapshot \"web01-2\""]);
    assert_eq!(cloud.changes(), before);
    cloud
        .run(&["snapshot", "delete", made["id"].as_str().unwrap()])
        .await
        .code(0)
        .says(&["deleted snapshot web01-1"]);
    assert!(cloud.sim.history().iter().all(|entry| entry.operation != RegionOperation::DeleteSnapshots));
    cloud
        .run(&["snapshot", "create", SERVER, "--name", "Web_01"])
        .await
        .code(2)
        .says(&["Web_01", "lower-case"]);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_renamed_exported_and_deleted_and_servers_made() {
    let cloud = Cloud::start().await;
    cloud.sim.store().create_bucket("images").await.unwrap();
    cloud.sim.seed_images(AWAY, 2);
    let image = |args: &[&'static str]| [&["images"], args, &["--region", AWAY]].concat();
    cloud.run(&image(&["list"])).await.code(0).says(&["image-0000", "available", "10 GB", "debian-12-amd64"]);
    assert_eq!(
        cloud.run(&image(&["list", "--status", "failed", "--json"])).await.json(),
        Value::from(Vec::<Value>::new())
    );
    cloud
        .run(&image(&["rename", "image-0000", "web01-latest", "--dry-run"]))
        .await
        .code(0)
        .says(&["would rename"]);
    cloud
        .run(&image(&["rename", "image-0000", "image-0001"]))
        .await
        .code(5)
        .says(&["\"image-0001\" is taken"]);
    cloud
        .run(&image(&["rename", "image-0000", "web01-latest"]))
        .await
        .code(0)
        .says(&["web01-latest", "was image-0000"]);
    cloud
        .run(&image(&["tag", "web01-latest", "Nightly", "--dry-run"]))
        .await
        .code(0)
        .says(&["would add nightly"]);
    cloud.run(&image(&["tag", "web01-latest"])).await.code(0).says(&["no tags"]);
    cloud.run(&image(&["tag", "web01-latest", "Nightly", "kept"])).await.code(0).says(&["nightly", "kept"]);
    let tagged = cloud.run(&image(&["tag", "web01-latest", "kept", "--remove", "--json"])).await.json();
    assert_eq!(tagged["tags"], serde_json::json!(["nightly"]));
    // A seeded image has no file to export: the job fails, and the command reports it.
    let failed = cloud.run(&image(&["export", "web01-latest", "--bucket", "images"])).await.code(5);
    failed.says(&["is failed", "cannot_access_storage_bucket"]);

    let server = [
        "provision",
        "web02",
        "--image",
        "web01-latest",
        "--subnet",
        "main-1",
        "--key",
        "admin",
        "--region",
        AWAY,
    ];
    let server = [&server[..], &["--profile", "bx2-2x8"]].concat();
    let before = cloud.changes();
    let body = cloud.run(&[&server[..], &["--dry-run", "--json"]].concat()).await.json();
    assert!(body["image"]["id"].is_string() && body["keys"][0]["id"].is_string(), "{body}");
    assert_eq!(cloud.changes(), before);
    let made = cloud.run(&[&server[..], &["--json"]].concat()).await.json();
    assert_eq!((&made["name"], &made["status"]), (&Value::from("web02"), &Value::from("running")));
    cloud
        .run(&[
            "provision",
            "a",
            "--image",
            "web01-latest",
            "--subnet",
            "none",
            "--key",
            "admin",
            "--profile",
            "x",
        ])
        .await
        .code(5)
        .says(&["there is no subnet \"none\""]);

    cloud.run(&image(&["delete", "image-0001", "--dry-run"])).await.code(0).says(&["would delete image"]);
    cloud
        .run(&image(&["delete", "image-0001", "web01-latest"]))
        .await
        .code(0)
        .says(&["deleted image web01-latest"]);
    assert_eq!(cloud.run(&image(&["list", "--json"])).await.json(), Value::from(Vec::<Value>::new()));
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_from_a_snapshot_gets_a_profile_of_its_generation() {
    let cloud = Cloud::start().await;
    let disk = cloud.folder.path().join("web01.raw");
    cloud
        .sim
        .seed_server(ServerSeed { generation: 2, ..ServerSeed::new(HOME, "db01", &disk) })
        .await
        .unwrap();
    for (server, profile) in [(SERVER, "general-purpose"), ("db01", "sdp")] {
        let name = format!("{server}-1");
        cloud.run(&["snapshot", "create", server, "--name", &name]).await.code(0);
        let new = format!("{server}-new");
        let args = [
            "provision",
            &new,
            "--snapshot",
            &name,
            "--subnet",
            "main-1",
            "--key",
            "admin",
            "--profile",
            "bx2-2x8",
        ];
        cloud.run(&args).await.code(0).says(&["running"]);
        let report = cloud.run(&["boot-volume", &new, "--json"]).await.json();
        assert_eq!(report["volume_profile"], profile);
    }
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_well_and_what_is_not() {
    let cloud = Cloud::start().await;
    cloud.sim.store().create_bucket("images").await.unwrap();
    let args = ["doctor", "--bucket", "images", "--to", AWAY];
    let findings = cloud.run(&[&args[..], &["--json"]].concat()).await.json();
    let of = |what: &str| {
        findings.as_array().unwrap().iter().find(|finding| finding["what"] == what).unwrap()["verdict"]
            .clone()
    };
    for what in [
        "token",
        "own server",
        "region",
        "clock",
        "servers",
        "snapshots",
        "images",
        "bucket",
        "device folder",
    ] {
        assert_eq!(of(what), "ok", "{what}: {findings}");
    }
    assert_eq!(of("image service"), "warning");
    let objects = std::fs::read_dir(cloud.sim.folder().join("store/images")).unwrap();
    let left: Vec<_> = objects
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().contains("doctor"))
        .collect();
    assert!(left.is_empty(), "the probe is left: {left:?}");
    assert_eq!(cloud.changes(), 0, "it changes nothing in the cloud");

    cloud.run(&["doctor", "--bucket", "nosuch"]).await.code(4).says(&[
        "FAILURE  bucket",
        "does not exist",
        "-> ",
    ]);
    let mut wrong = cloud.command(&["doctor", "--region", HOME]);
    wrong.env_remove("SNAPFERRY_TRUSTED_PROFILE").env("IBMCLOUD_API_KEY", "wrong");
    cloud.finish(wrong).await.code(5).says(&["FAILURE  token", "BXNIM0415E", "check the API key"]);
    let mut without_credentials = cloud.command(&["doctor", "--region", HOME]);
    without_credentials.env_remove("SNAPFERRY_TRUSTED_PROFILE");
    cloud.finish(without_credentials).await.code(5).says(&["FAILURE  token", "no credentials for IBM Cloud"]);
    let mut folder = cloud.command(&["doctor", "--device-folder", "/nowhere/by-id"]);
    folder.env_remove("SNAPFERRY_DEVICE_FOLDER");
    cloud.finish(folder).await.code(3).says(&["FAILURE  device folder", "/nowhere/by-id"]);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_come_from_flags_environment_and_file_in_that_order() {
    let cloud = Cloud::start().await;
    let file = cloud.folder.path().join("config.toml");
    std::fs::write(&file, format!("# ours\nvpc_region = \"{AWAY}\"\nlevel = \"small\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let show = ["config", "show", "--json", "--config", file];
    let mut command = cloud.command(&show);
    command.env("SNAPFERRY_LEVEL", "balanced").env("IBMCLOUD_API_KEY", cloud.sim.api_key().reveal());
    let report = cloud.finish(command).await.json();
    let of =
        |name: &str| report.as_array().unwrap().iter().find(|line| line["name"] == name).unwrap().clone();
    assert_eq!(
        (&of("vpc_region")["value"], &of("vpc_region")["origin"]),
        (&Value::from(AWAY), &Value::from(format!("{file}:2")))
    );
    assert_eq!(
        (&of("level")["value"], &of("level")["origin"]),
        (&Value::from("balanced"), &Value::from("environment SNAPFERRY_LEVEL"))
    );
    assert_eq!(of("IBMCLOUD_API_KEY")["value"], "***");
    // The region in the file has no such server; the region in the flag has.
    cloud.run(&["boot-volume", SERVER, "--config", file]).await.code(5).says(&["in us-east"]);
    cloud.run(&["boot-volume", SERVER, "--config", file, "--region", HOME]).await.code(0);
    cloud.run(&["config", "show", "--config", "/nowhere.toml"]).await.code(2).says(&["/nowhere.toml"]);
    std::fs::write(file, "api_key = \"hunter2\"\n").unwrap();
    let refused = cloud
        .run(&["config", "show", "--config", file])
        .await
        .code(2)
        .says(&["config.toml:1: api_key", "api_key_file"]);
    assert!(!refused.err.contains("hunter2"));
    // Commands that need no settings work even if the settings are invalid.
    for args in [
        &["--help"][..],
        &["replicate", "--help"],
        &["help", "convert"],
        &["--version"],
        &["completions", "bash"],
        &["man"],
    ] {
        let mut command = cloud.command(args);
        command.env("SNAPFERRY_CONFIG", file);
        cloud.finish(command).await.code(0).says(&["snapferry"]);
    }
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_region_somebody_has_to_name_one() {
    let cloud = Cloud::start_with(|config| RegionConfig { metadata_service: false, ..config }).await;
    let mut command = cloud.command(&["images", "list"]);
    command.env_remove("SNAPFERRY_TRUSTED_PROFILE").env("IBMCLOUD_API_KEY", cloud.sim.api_key().reveal());
    cloud.finish(command).await.code(2).says(&["which region? Give --region"]);
    let mut profile = cloud.command(&["images", "list", "--region", HOME]);
    profile.env("SNAPFERRY_TRUSTED_PROFILE", "default");
    cloud
        .finish(profile)
        .await
        .code(5)
        .says(&["metadata service does not answer", "switch the instance metadata service on"]);
    cloud.sim.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profiles_token_that_expires_in_the_middle_of_an_upload_is_fetched_anew() {
    // A token that lives 30 s counts as expired at once, so each request fetches another one.
    let cloud =
        Cloud::start_with(|config| RegionConfig { token_life: Duration::from_secs(30), ..config }).await;
    cloud.sim.store().create_bucket("images").await.unwrap();
    let disk = cloud.folder.path().join("random.raw");
    snapferry_testkit::disks::Disk {
        kind: snapferry_testkit::disks::Kind::Random,
        size: snapferry_base::units::ByteCount(25 << 20),
        seed: 7,
    }
    .write(&disk)
    .unwrap();
    let args = [
        "convert",
        "--bucket",
        "images",
        "--key",
        "a.qcow2",
        "--region",
        HOME,
        "--part-size",
        "8M",
        "--connections",
        "1",
    ];
    let mut command = cloud.command(&args);
    command.args(["--verify", "--quiet", "--device"]).arg(&disk);
    cloud.finish(command).await.code(0);
    let requests = cloud.sim.request_count(RegionOperation::CreateIamToken);
    assert!(requests >= 5, "asked for {requests} tokens");
    cloud.sim.shutdown().await;
}
