//! Secrets go to the store and to IAM, and to no other place: not to stdout, stderr, the manifest, an error
//! or `Debug`.

use snapferry_base::secret::Secret;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{Action, Operation, Rule, SimConfig};
use snapferry_testkit::disks::{Disk, Kind};

use crate::support::{BUCKET, Bucket, Ended, KEY, folder, key, run, snapferry};

const SECRETS: [&str; 4] =
    ["hunter2-secret-key", "hunter2-api-key", "hunter2-session-token", "hunter2-wrong-key"];

fn start() -> Bucket {
    Bucket::start_with(None, |config: &mut SimConfig| {
        config.secret_key = Secret::new(SECRETS[0]);
        config.api_keys = vec![Secret::new(SECRETS[1])];
    })
}

/// Asserts that the command ended with this code, and that its output contains no secret and nothing that
/// looks like a request's authorisation.
#[track_caller]
fn expect_no_secret(ended: &Ended, code: i32) {
    assert_eq!(ended.code, Some(code), "{}", ended.err);
    for text in [&ended.out, &ended.err] {
        for secret in SECRETS.into_iter().chain(["hunter2", "Bearer ", "Signature="]) {
            assert!(!text.contains(secret), "{secret} is in: {text}");
        }
    }
}

#[test]
fn secrets_are_neither_said_nor_stored() {
    let home = folder();
    let raw = home.path().join("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(9 * MIB), 61).write(&raw).expect("a disk");
    let bucket = start();
    let command = |verbose: &str| {
        let mut command = bucket.keyless([
            verbose,
            "convert",
            "--key",
            KEY,
            "--force",
            "--json",
            "--iam-endpoint",
            &bucket.sim.iam_endpoint(),
        ]);
        command.arg("--device").arg(&raw);
        command
    };
    let hmac = |secret: &str| {
        let mut command = command("-v");
        command
            .env("AWS_ACCESS_KEY_ID", &bucket.sim.config().access_key)
            .env("AWS_SECRET_ACCESS_KEY", secret);
        command
    };
    let api_key = |key: &str| {
        let mut command = command("--verbose");
        command.env("IBMCLOUD_API_KEY", key);
        command
    };
    expect_no_secret(&run(hmac(SECRETS[0])), 0);
    expect_no_secret(&run(hmac(SECRETS[3])), 4);
    expect_no_secret(&run(api_key(SECRETS[1])), 0);
    expect_no_secret(&run(api_key(SECRETS[3])), 4);
    let mut temporary = hmac(SECRETS[0]);
    temporary.env("AWS_SESSION_TOKEN", SECRETS[2]);
    let temporary = run(temporary);
    expect_no_secret(&temporary, temporary.code.expect("it ended by itself"));
    let manifest = bucket.object(&key().manifest()).expect("a manifest");
    assert!(!String::from_utf8_lossy(&manifest).contains("hunter2"));

    // Errors in the middle of the upload.
    for action in [Action::answer(403, "AccessDenied"), Action::Reset, Action::CorruptChecksum] {
        bucket.sim.faults().add(Rule::on(Operation::UploadPart).when(snapferry_sim::When::First(1)), action);
        let ended = run(hmac(SECRETS[0]));
        expect_no_secret(&ended, ended.code.expect("it ended by itself"));
        bucket.sim.faults().clear();
    }
}

#[test]
fn files_that_hold_secrets_are_not_quoted() {
    let home = folder();
    let raw = home.path().join("disk.raw");
    Disk::new(Kind::Text, ByteCount(MIB), 62).write(&raw).expect("a disk");
    for (option, text) in [
        ("--credentials-file", "{\"cos_hmac_keys\": {\"secret_access_key\": \"hunter2-secret-key\""),
        ("--credentials-file", "[default]\naws_secret_access_key = hunter2-secret-key\n"),
        ("--api-key-file", "hunter2-api-key and more"),
        ("--api-key-file", "{\"apikey\": \"hunter2-api-key\nhunter2-api-key\"}"),
    ] {
        let path = home.path().join("secret");
        std::fs::write(&path, text).expect("written");
        let mut command = snapferry([
            "convert",
            "-v",
            "--bucket",
            BUCKET,
            "--endpoint",
            "http://127.0.0.1:9",
            "--key",
            KEY,
            option,
        ]);
        command.arg(&path).arg("--device").arg(&raw);
        expect_no_secret(&run(command), 2);
    }
    // A password in an endpoint's URL, which is not allowed there.
    let mut command = snapferry([
        "convert",
        "-v",
        "--bucket",
        BUCKET,
        "--endpoint",
        "http://user:hunter2@127.0.0.1:9",
        "--key",
        KEY,
    ]);
    command
        .arg("--device")
        .arg(&raw)
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", SECRETS[0]);
    let ended = run(command);
    expect_no_secret(&ended, ended.code.expect("it ended by itself"));
}

#[test]
fn debug_shows_no_secret() {
    let auth = Auth::Hmac {
        access_key: "key".to_owned(),
        secret_key: Secret::new(SECRETS[0]),
        session_token: Some(Secret::new(SECRETS[2])),
    };
    let config = S3Config::new("http://127.0.0.1:9", "us-south", BUCKET, auth);
    let text = format!("{config:?} {config:#?}");
    assert!(text.contains("127.0.0.1:9") && !text.contains("hunter2"), "{text}");
    let runtime = crate::support::runtime();
    let _inside = runtime.enter();
    let store = S3Store::connect(config).expect("a client");
    let text = format!("{store:?} {:?}", Secret::new(SECRETS[1]));
    assert!(!text.contains("hunter2"), "{text}");
}
