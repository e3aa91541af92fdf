//! IBM's own SDK works with the simulated cloud: its authors did not know this client.

use std::path::Path;
use std::process::Command;

use snapferry_testkit::skip::skip;

use super::Cloud;
use crate::support::{AWAY, HOME};

#[tokio::test(flavor = "multi_thread")]
async fn ibms_python_sdk_finds_its_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/ibm-sdk/bin/python");
    if !python.exists() {
        skip("IBM's Python SDK is not there: scripts/ibm-sdk.sh makes a virtual environment with it");
        return;
    }
    let cloud = Cloud::start().await;
    cloud.sim.seed_images(HOME, 120);
    cloud.sim.store().create_bucket("images").await.unwrap();
    super::convert(&cloud, &cloud.folder.path().join("web01.raw"), "web01.qcow2").await;
    let mut drive = Command::new(python);
    drive.arg(root.join("tests/python/region.py"));
    drive.env("API_KEY", cloud.sim.api_key().reveal()).env("IAM", cloud.sim.iam_endpoint());
    drive.env("HOME_API", format!("{}/v1", cloud.sim.endpoint(HOME)));
    drive.env("AWAY_API", format!("{}/v1", cloud.sim.endpoint(AWAY)));
    drive.env("OWN", cloud.sim.own_instance_id());
    let output = tokio::task::spawn_blocking(move || drive.output()).await.unwrap().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    cloud.sim.shutdown().await;
}
