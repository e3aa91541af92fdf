//! Requests of the program through a proxy. The names of the servers exist nowhere but in the proxy.

use std::process::Command;

use snapferry_sim::{RegionConfig, SimConfig, TlsFiles};
use tempfile::TempDir;

use crate::support::{AWAY, BUCKET, Bench, Bucket, Host, HttpProxy, Manners, folder, run, snapferry};

const IAM: &str = "iam.test";
const VPC: &str = "vpc.test";
const TAGS: &str = "tags.test";
const STORE: &str = "s3.test";

/// Writes a certificate for all names, and for the metadata service, which is reached by its address.
fn certificate(folder: &TempDir) -> TlsFiles {
    let names = [IAM, VPC, TAGS, STORE, "127.0.0.1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    TlsFiles { certificate, key }
}

/// A cloud over TLS, and a proxy that alone knows the way to it.
struct ProxiedCloud {
    bench: Bench,
    proxy: HttpProxy,
    tls: TlsFiles,
    _folder: TempDir,
}

impl ProxiedCloud {
    async fn start(manners: Manners) -> Self {
        let folder = folder();
        let tls = certificate(&folder);
        let for_cloud = tls.clone();
        let bench = Bench::start_with(|config| RegionConfig { tls: Some(for_cloud), ..config }).await;
        Self { bench, proxy: HttpProxy::start_with(manners), tls, _folder: folder }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.bench.command(Host::Own, args);
        let sim = &self.bench.sim;
        let named = |url: String, name: &str| url.replacen("127.0.0.1", name, 1);
        command
            .env("SNAPFERRY_CA_FILE", &self.tls.certificate)
            .env("SNAPFERRY_IAM_ENDPOINT", named(sim.iam_endpoint(), IAM))
            .env("SNAPFERRY_VPC_ENDPOINT", named(sim.endpoint_template(), VPC))
            .env("SNAPFERRY_TAGGING_ENDPOINT", named(sim.tagging_endpoint(), TAGS))
            .env("SNAPFERRY_ENDPOINT", named(sim.store().endpoint(), STORE))
            .env("HTTPS_PROXY", self.proxy.url());
        command
    }

    #[track_caller]
    fn expect_hosts(&self, hosts: &[&str]) {
        assert_eq!(self.proxy.hosts(), hosts, "and no metadata service among them");
        assert!(hosts.iter().all(|host| self.proxy.connected(host) > 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_reaches_every_server_but_its_metadata_service_through_the_proxy() {
    let behind = ProxiedCloud::start(Manners::default()).await;
    behind.bench.finish(behind.command(&["replicate", "web01"])).await.code(0);
    behind.expect_hosts(&[IAM, STORE, TAGS, VPC]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_the_proxy_of_each_address_and_uses_it() {
    let behind = ProxiedCloud::start(Manners::default()).await;
    let findings = behind.bench.finish(behind.command(&["doctor", "--json"])).await.report();
    behind.expect_hosts(&[IAM, STORE, TAGS, VPC]);
    let network: Vec<String> = findings
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["what"] == "network")
        .map(|finding| {
            format!("{} {}", finding["verdict"].as_str().unwrap(), finding["details"].as_str().unwrap())
        })
        .collect();
    let through =
        |service: &str| format!("ok {service} through the proxy {} (HTTPS_PROXY)", behind.proxy.url());
    let own = "ok instance metadata directly: always, for it is this server's own".to_owned();
    assert_eq!(network, [through("IAM"), through("VPC"), through("tagging"), through("bucket"), own]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_in_the_address_are_sent_and_never_shown() {
    // base64 of "ferry:hunter2@:/"
    let credentials = Some("Basic ZmVycnk6aHVudGVyMkA6Lw==".to_owned());
    let behind = ProxiedCloud::start(Manners { credentials, ..Manners::default() }).await;
    let proxy = format!("http://ferry:hunter2%40%3A%2F@{}", behind.proxy.address());
    for args in [&["doctor", "-v"][..], &["images", "list", "-v", "--region", AWAY], &["config", "show"]] {
        let mut command = behind.command(args);
        command.env("HTTPS_PROXY", &proxy).env("SNAPFERRY_LOG", "trace");
        let ended = behind.bench.finish(command).await;
        for secret in ["hunter2", "ZmVycnk6"] {
            assert!(!ended.out.contains(secret) && !ended.err.contains(secret), "{args:?}");
        }
    }
    behind.expect_hosts(&[IAM, STORE, TAGS, VPC]);
}

/// The command `uploads list` on a store without TLS, under a name that only a proxy knows.
fn list(bucket: &Bucket) -> Command {
    let config = bucket.sim.config();
    let endpoint = bucket.sim.endpoint().replacen("127.0.0.1", STORE, 1);
    let mut command = snapferry(["uploads", "list", "--bucket", BUCKET, "--region", &config.region]);
    command
        .args(["--endpoint", &endpoint])
        .env("AWS_ACCESS_KEY_ID", &config.access_key)
        .env("AWS_SECRET_ACCESS_KEY", config.secret_key.reveal());
    command
}

#[test]
fn requests_without_tls_go_through_the_proxy_for_http() {
    let (bucket, proxy) = (Bucket::start(), HttpProxy::start());
    let mut command = list(&bucket);
    command.env("HTTP_PROXY", proxy.url());
    run(command).code(0);
    assert_eq!((proxy.connected(STORE), proxy.asked()), (1, 1));
}

#[test]
fn the_proxy_for_http_gets_its_credentials() {
    // base64 of "ferry:x"
    let credentials = Some("Basic ZmVycnk6eA==".to_owned());
    let (bucket, proxy) =
        (Bucket::start(), HttpProxy::start_with(Manners { credentials, ..Manners::default() }));
    let mut command = list(&bucket);
    command.env("http_proxy", format!("ferry:x@{}", proxy.address()));
    run(command).code(0);
    assert_eq!(proxy.connected(STORE), 1);
}

#[test]
fn a_proxy_for_everything_is_one_for_http() {
    let (bucket, proxy) = (Bucket::start(), HttpProxy::start());
    let mut command = list(&bucket);
    command.env("all_proxy", proxy.url());
    run(command).code(0);
    assert_eq!(proxy.connected(STORE), 1);
}

#[test]
fn a_proxy_for_https_is_none_for_http() {
    let (bucket, proxy) = (Bucket::start(), HttpProxy::start());
    let mut command = bucket.command(["uploads", "list"]);
    command.env("HTTPS_PROXY", proxy.url());
    run(command).code(0);
    assert_eq!(proxy.asked(), 0);
}

#[test]
fn an_address_in_no_proxy_is_reached_directly() {
    let (bucket, proxy) = (Bucket::start(), HttpProxy::start());
    for exceptions in ["127.0.0.1", "10.0.0.0/8, 127.0.0.0/8", "*"] {
        let mut command = bucket.command(["uploads", "list"]);
        command.env("HTTP_PROXY", proxy.url()).env("NO_PROXY", exceptions);
        run(command).code(0);
    }
    assert_eq!(proxy.asked(), 0);
}

#[test]
fn an_address_that_no_proxy_does_not_list_goes_through_the_proxy() {
    let (bucket, proxy) = (Bucket::start(), HttpProxy::start());
    let mut command = list(&bucket);
    command.env("HTTP_PROXY", proxy.url()).env("NO_PROXY", "127.0.0.1,test.example");
    run(command).code(0);
    assert_eq!(proxy.connected(STORE), 1);
}

#[test]
fn a_store_over_tls_is_reached_by_a_tunnel_and_its_certificate_is_checked() {
    let folder = folder();
    let tls = certificate(&folder);
    let for_store = tls.clone();
    let bucket = Bucket::start_with(Some(tls.certificate.clone()), |config: &mut SimConfig| {
        config.tls = Some(for_store);
    });
    let proxy = HttpProxy::start();
    let with = |ca: bool| {
        let mut command = list(&bucket);
        command.env("HTTPS_PROXY", proxy.url());
        if ca {
            command.arg("--ca-file").arg(&tls.certificate);
        }
        run(command)
    };
    with(true).code(0);
    assert_eq!(proxy.connected(STORE), 1);
    with(false).expect(4, &["the store's TLS certificate is not trusted"]);
}
