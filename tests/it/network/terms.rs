//! Addresses and headers that stores and the policies of buckets demand.

use std::process::Command;

use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::{LoggedRequest, Names, Operation, RequiredHeader, SimConfig};
use snapferry_testkit::disks::{Disk, Kind};

use crate::support::{BUCKET, Bench, Bucket, Ended, Host, HttpProxy, KEY, folder, run, snapferry};

const SSE: &str = "x-amz-server-side-encryption";
const KMS_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";
const CLASS: &str = "x-amz-storage-class";
const PAYER: &str = "x-amz-request-payer";

/// A store whose policy demands headers of the requests that make objects.
fn demanding(headers: &[(&str, &str)]) -> Bucket {
    let required = headers.iter().flat_map(|&(name, value)| {
        [Operation::CreateMultipartUpload, Operation::PutObject].map(|operation| RequiredHeader {
            operation,
            name: name.to_owned(),
            value: value.to_owned(),
        })
    });
    Bucket::start_with(None, |config| config.required_headers = required.collect())
}

/// Converts a small disk into the bucket.
fn convert(bucket: &Bucket, change: impl FnOnce(&mut Command)) -> Ended {
    let folder = folder();
    let disk = folder.path().join("disk.raw");
    Disk { kind: Kind::Mixed, size: ByteCount(MIB), seed: 3 }.write(&disk).unwrap();
    let mut command = bucket.convert(&disk, &[]);
    change(&mut command);
    run(command)
}

fn logged(bucket: &Bucket, operation: Operation) -> Vec<LoggedRequest> {
    let stats = bucket.sim.stats();
    stats.log.into_iter().filter(|logged| logged.operation == operation).collect()
}

#[track_caller]
fn expect_header(bucket: &Bucket, operation: Operation, name: &str, value: &str) {
    let requests = logged(bucket, operation);
    assert!(!requests.is_empty(), "no {operation}");
    for request in requests {
        assert_eq!(request.headers.get(name).map(String::as_str), Some(value), "{request:?}");
    }
}

#[test]
fn a_policy_that_demands_encryption_is_met() {
    let bucket = demanding(&[(SSE, "AES256")]);
    convert(&bucket, |_| {}).expect(4, &["AccessDenied", "requires x-amz-server-side-encryption: AES256"]);
    let ended = convert(&bucket, |command| {
        command.args(["--sse", "AES256"]);
    });
    assert!(!ended.clone().code(0).err.contains("does not confirm"), "{}", ended.err);
    assert!(bucket.object(&crate::support::key()).is_some());
}

#[test]
fn a_key_of_a_key_service_is_named() {
    let bucket = demanding(&[(SSE, "aws:kms"), (KMS_KEY, "crn:v1:key/7")]);
    convert(&bucket, |command| {
        command.args(["--sse", "aws:kms:crn:v1:key/7"]);
    })
    .code(0);
    expect_header(&bucket, Operation::CreateMultipartUpload, KMS_KEY, "crn:v1:key/7");
}

#[test]
fn encryption_without_a_key_names_none() {
    let bucket = demanding(&[(SSE, "aws:kms")]);
    convert(&bucket, |command| {
        command.env("SNAPFERRY_SSE", "aws:kms");
    })
    .code(0);
    assert!(logged(&bucket, Operation::PutObject).iter().all(|put| !put.headers.contains_key(KMS_KEY)));
}

#[test]
fn a_storage_class_is_asked_for_with_each_object() {
    let bucket = demanding(&[(CLASS, "STANDARD_IA")]);
    convert(&bucket, |command| {
        command.env("SNAPFERRY_STORAGE_CLASS", "STANDARD_IA");
    })
    .code(0);
    expect_header(&bucket, Operation::CreateMultipartUpload, CLASS, "STANDARD_IA");
    expect_header(&bucket, Operation::PutObject, CLASS, "STANDARD_IA");
}

#[test]
fn a_requester_confirms_with_each_request_that_it_pays() {
    let bucket = Bucket::start();
    convert(&bucket, |command| {
        command.arg("--requester-pays");
    })
    .code(0);
    for operation in [
        Operation::HeadObject,
        Operation::CreateMultipartUpload,
        Operation::UploadPart,
        Operation::CompleteMultipartUpload,
        Operation::PutObject,
    ] {
        expect_header(&bucket, operation, PAYER, "requester");
    }
}

#[test]
fn a_setting_makes_the_requester_pay() {
    let bucket = Bucket::start();
    let mut command = bucket.command(["uploads", "list"]);
    command.env("SNAPFERRY_REQUESTER_PAYS", "1");
    run(command).code(0);
    expect_header(&bucket, Operation::ListMultipartUploads, PAYER, "requester");
}

#[test]
fn nothing_is_demanded_unless_the_user_asks() {
    let bucket = Bucket::start();
    convert(&bucket, |_| {}).code(0);
    for request in bucket.sim.stats().log {
        assert!([SSE, CLASS, PAYER].iter().all(|name| !request.headers.contains_key(name)), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_keeps_what_its_bucket_demands() {
    let bench = Bench::start().await;
    bench.run(Host::Own, &["--sse", "AES256", "--storage-class", "COLD", "--requester-pays"]).await.code(0);
    let journals = std::fs::read_dir(bench.state_folder(Host::Own).join("jobs")).unwrap();
    let kept = journals.flatten().any(|entry| {
        std::fs::read_to_string(entry.path()).is_ok_and(|text| {
            text.contains(r#""encryption":"AES256","storage_class":"COLD","requester_pays":true"#)
        })
    });
    assert!(kept, "no journal has the options");
    let stats = bench.sim.store().stats();
    let created =
        stats.log.iter().find(|logged| logged.operation == Operation::CreateMultipartUpload).unwrap();
    assert_eq!((created.headers[SSE].as_str(), created.headers[CLASS].as_str()), ("AES256", "COLD"));
}

/// A store that is reached under `s3.test` alone, and accepts no bucket in the path.
fn named() -> Bucket {
    Bucket::start_with(None, |config| config.names = Names::DomainOnly("s3.test".to_owned()))
}

/// A command on a bucket under a name that only the proxy knows.
fn by_name(bucket: &Bucket, proxy: &HttpProxy, args: &[&str]) -> Command {
    let config = bucket.sim.config();
    let endpoint = bucket.sim.endpoint().replacen("127.0.0.1", "s3.test", 1);
    let mut command = snapferry(args);
    command
        .args(["--bucket", BUCKET, "--region", &config.region, "--endpoint", &endpoint])
        .env("HTTP_PROXY", proxy.url())
        .env("AWS_ACCESS_KEY_ID", &config.access_key)
        .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
    command
}

#[test]
fn a_bucket_is_part_of_the_hosts_name_if_the_user_asks() {
    let (bucket, proxy, folder) = (named(), HttpProxy::start(), folder());
    let disk = folder.path().join("disk.raw");
    Disk { kind: Kind::Mixed, size: ByteCount(MIB), seed: 3 }.write(&disk).unwrap();
    let mut command =
        by_name(&bucket, &proxy, &["convert", "--key", KEY, "--addressing", "virtual", "--verify"]);
    command.arg("--device").arg(&disk);
    run(command).code(0);
    assert_eq!(proxy.hosts(), ["images.s3.test"]);
    for request in bucket.sim.stats().log {
        assert!(request.path.starts_with("/disk.qcow2") || request.path.starts_with("/?"), "{request:?}");
    }
}

#[test]
fn a_store_that_refuses_the_path_says_so() {
    let (bucket, proxy) = (named(), HttpProxy::start());
    run(by_name(&bucket, &proxy, &["uploads", "list"]))
        .expect(4, &["the bucket belongs into the name of the host"]);
    assert_eq!(proxy.hosts(), ["s3.test"]);
}

#[test]
fn a_host_without_a_name_has_no_room_for_a_bucket() {
    let bucket = Bucket::start();
    let command = bucket.command(["uploads", "list", "--addressing", "virtual"]);
    run(command).expect(4, &["\"images\" can't be a part of the host's name", "use path addressing"]);
}

#[test]
fn a_store_under_a_path_is_reached_there() {
    let bucket = Bucket::start_with(None, |config: &mut SimConfig| config.prefix = "/stores/one".to_owned());
    let folder = folder();
    let (disk, key) = (folder.path().join("disk.raw"), folder.path().join("key"));
    Disk { kind: Kind::Mixed, size: ByteCount(MIB), seed: 3 }.write(&disk).unwrap();
    std::fs::write(&key, bucket.sim.config().api_keys[0].reveal()).unwrap();
    let endpoint = format!("{}/stores/one/", bucket.sim.endpoint());
    let mut command =
        snapferry(["convert", "--bucket", BUCKET, "--key", KEY, "--region", "us-south", "--verify"]);
    command.args(["--endpoint", &endpoint, "--iam-endpoint", &bucket.sim.iam_endpoint()]);
    command.arg("--device").arg(&disk).arg("--api-key-file").arg(&key);
    run(command).code(0);
    for request in logged(&bucket, Operation::UploadPart) {
        assert!(request.path.starts_with("/stores/one/images/disk.qcow2?"), "{request:?}");
    }
    assert!(!logged(&bucket, Operation::UploadPart).is_empty());
}

#[test]
fn a_bucket_in_the_hosts_name_leaves_the_path_of_the_store() {
    let (bucket, proxy) = (Bucket::start(), HttpProxy::start());
    let endpoint = format!("{}/stores/one", bucket.sim.endpoint().replacen("127.0.0.1", "s3.test", 1));
    let config = bucket.sim.config();
    let mut command = snapferry(["uploads", "list", "--bucket", BUCKET, "--region", &config.region]);
    command.args(["--addressing", "virtual", "--endpoint", &endpoint]).env("HTTP_PROXY", proxy.url());
    command
        .env("AWS_ACCESS_KEY_ID", &config.access_key)
        .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
    // The store has no such path: only the request counts.
    run(command).code(4);
    assert_eq!(proxy.hosts(), ["images.s3.test"]);
    let paths: Vec<String> = bucket.sim.stats().log.into_iter().map(|request| request.path).collect();
    assert!(
        paths.iter().all(|path| path.starts_with("/stores/one/?uploads")) && !paths.is_empty(),
        "{paths:?}"
    );
}

#[test]
fn values_that_no_store_knows_are_refused_with_those_that_there_are() {
    let bucket = Bucket::start();
    for (option, value, advice) in [
        ("--sse", "AES-256", "give AES256, aws:kms or aws:kms:KEY"),
        ("--storage-class", "a b", "give one such as STANDARD_IA"),
        ("--addressing", "host", "give path (https://HOST/BUCKET) or virtual"),
    ] {
        run(bucket.command(["uploads", "list", option, value])).expect(2, &[option, advice]);
    }
    let mut command = bucket.command(["uploads", "list"]);
    command.env("SNAPFERRY_REQUESTER_PAYS", "perhaps");
    run(command).expect(2, &["--requester-pays", "perhaps"]);
}
