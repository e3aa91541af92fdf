//! Proxies that give no connection, and addresses that are none of a proxy: each error names the proxy, the
//! variable, and what to do.

use std::process::Command;
use std::sync::Arc;

use snapferry_base::identity::{IdentityError, TokenSource as _};
use snapferry_base::proxy::{Proxies, ProxyFault};
use snapferry_base::secret::Secret;
use snapferry_ibmcloud::iam::{ApiKeyConfig, ApiKeySource};
use snapferry_ibmcloud::vpc::{ClientConfig, Endpoint, RegionClient, VpcError};
use snapferry_testkit::clock::ManualClock;

use crate::support::{Bucket, HOME, HttpProxy, Manners, POLICY, client_context, run, snapferry};

/// A command on a store over TLS that does not exist: the proxy answers before it is asked for.
fn list(endpoint: &str) -> Command {
    let mut command = snapferry(["uploads", "list", "--bucket", "images", "--region", "us-south"]);
    command
        .args(["--endpoint", endpoint])
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

fn refusing(status: u16) -> HttpProxy {
    HttpProxy::start_with(Manners { status: Some(status), ..Manners::default() })
}

fn wanting_credentials() -> HttpProxy {
    let credentials = Some("Basic none that is sent".to_owned());
    HttpProxy::start_with(Manners { credentials, ..Manners::default() })
}

/// Address at which no process listens: the port was bound and released.
fn closed_port() -> String {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{address}")
}

fn proxies(url: &str) -> Proxies {
    Proxies::of(|name| (name == "HTTPS_PROXY").then(|| url.to_owned()))
}

#[test]
fn a_proxy_that_wants_credentials_is_named_with_the_way_to_give_them() {
    let proxy = wanting_credentials();
    let mut command = list("https://s3.test");
    command.env("HTTPS_PROXY", proxy.url());
    let hint = format!("HTTPS_PROXY=http://USER:PASSWORD@{}", proxy.address());
    let wants = format!("the proxy {} (HTTPS_PROXY) wants credentials", proxy.url());
    run(command).expect(4, &[&wants, &hint]);
}

#[test]
fn a_proxy_for_http_that_wants_credentials_is_named_too() {
    let (bucket, proxy) = (Bucket::start(), wanting_credentials());
    let mut command = bucket.command(["uploads", "list"]);
    command.env("http_proxy", proxy.url());
    let wants = format!("the proxy {} (http_proxy) wants credentials", proxy.url());
    run(command).expect(4, &[&wants, "http_proxy=http://USER:PASSWORD@"]);
    assert_eq!(proxy.asked(), 1, "another attempt would be answered in the same way");
}

#[test]
fn wrong_credentials_are_told_as_such_and_not_shown() {
    let proxy = wanting_credentials();
    let mut command = list("https://s3.test");
    command.env("HTTPS_PROXY", format!("http://ferry:hunter2@{}", proxy.address()));
    let ended = run(command);
    ended.expect(4, &["(HTTPS_PROXY) does not accept its credentials"]);
    assert!(!ended.err.contains("hunter2"), "{}", ended.err);
}

#[test]
fn a_proxy_that_is_gone_is_told_from_a_store_that_is_gone() {
    let proxy = closed_port();
    let mut command = list("https://s3.test");
    command.env("HTTPS_PROXY", &proxy);
    run(command)
        .expect(4, &[&format!("the proxy {proxy} (HTTPS_PROXY) can't be reached"), "check HTTPS_PROXY"]);
}

#[test]
fn a_gone_proxy_is_named_for_http_too() {
    let (bucket, proxy) = (Bucket::start(), closed_port());
    let mut command = bucket.command(["uploads", "list"]);
    command.env("HTTP_PROXY", &proxy);
    run(command).expect(4, &[&format!("the proxy {proxy} (HTTP_PROXY) can't be reached")]);
}

#[test]
fn a_proxy_that_does_not_reach_the_store_is_named_with_its_answer() {
    let proxy = refusing(502);
    let mut command = list("https://s3.test");
    command.env("HTTPS_PROXY", proxy.url());
    let answer = format!(
        "the proxy {} (HTTPS_PROXY) answered 502 instead of a connection to s3.test:443",
        proxy.url()
    );
    run(command).expect(4, &[&answer, "the proxy can't reach s3.test:443 either"]);
}

#[test]
fn a_proxy_that_forbids_an_address_is_not_asked_again() {
    let proxy = refusing(403);
    let mut command = list("https://s3.test");
    command.env("HTTPS_PROXY", proxy.url());
    run(command)
        .expect(4, &["answered 403 instead of a connection to s3.test:443", "the proxy does not allow"]);
    assert_eq!(proxy.asked(), 2, "once by the client, and once for the reason");
}

#[tokio::test]
async fn a_token_that_fails_by_the_proxy_says_so() {
    for (proxy, is_expected) in [
        (
            wanting_credentials(),
            (|fault| matches!(fault, ProxyFault::Credentials { .. })) as fn(&ProxyFault) -> bool,
        ),
        (refusing(502), |fault| matches!(fault, ProxyFault::Refused { status: 502, .. })),
    ] {
        let config = ApiKeyConfig {
            api_key: Secret::new("key"),
            endpoint: "https://iam.test".to_owned(),
            ca_file: None,
            proxies: proxies(&proxy.url()),
        };
        let err = ApiKeySource::new(config, ManualClock::hurried()).unwrap().token().await.unwrap_err();
        assert!(matches!(&err, IdentityError::Proxy { source, .. } if is_expected(source)), "{err:?}");
    }
}

/// Source of tokens that needs no request.
struct Fixed;

#[async_trait::async_trait]
impl snapferry_base::identity::TokenSource for Fixed {
    async fn token(&self) -> Result<snapferry_base::identity::Token, IdentityError> {
        let expires = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
        Ok(snapferry_base::identity::Token { bearer: Secret::new("token"), expires })
    }
}

async fn servers_through(proxy: &str) -> VpcError {
    let config = ClientConfig {
        region: HOME.to_owned(),
        endpoint: Endpoint::Public,
        ca_file: None,
        proxies: proxies(proxy),
        policy: POLICY,
    };
    RegionClient::new(config, client_context(Arc::new(Fixed))).unwrap().instances().await.unwrap_err()
}

#[tokio::test]
async fn a_request_to_the_cloud_that_fails_by_the_proxy_says_so() {
    let err = servers_through(&closed_port()).await;
    assert!(
        matches!(&err, VpcError::Proxy { source, .. } if matches!(**source, ProxyFault::Unreachable { .. })),
        "{err:?}"
    );
    let err = servers_through(&wanting_credentials().url()).await;
    assert!(
        matches!(&err, VpcError::Proxy { source, .. } if matches!(**source, ProxyFault::Credentials { .. })),
        "{err:?}"
    );
    let proxy = refusing(502);
    let err = servers_through(&proxy.url()).await;
    assert!(
        matches!(&err, VpcError::Proxy { source, .. } if matches!(**source, ProxyFault::Refused { status: 502, .. })),
        "{err:?}"
    );
    assert!(!err.is_ambiguous(), "nothing was sent to the cloud");
}

#[test]
fn an_address_that_is_no_proxys_is_refused_with_its_variable_and_without_its_password() {
    for value in
        ["http://ferry:hunter2@", "socks5h://ferry:hunter2@proxy:1080", "http://ferry:hunter2#@proxy:1"]
    {
        let mut command = list("https://s3.test");
        command.env("https_proxy", value);
        let ended = run(command);
        ended.expect(2, &["https_proxy is not the address of a proxy", "give http://HOST:PORT"]);
        assert!(!ended.err.contains("hunter2"), "{}", ended.err);
    }
}

#[test]
fn doctor_finds_a_proxy_that_gives_no_connection() {
    let proxy = wanting_credentials();
    let mut command =
        snapferry(["doctor", "--region", "us-south", "--metadata-endpoint", "http://127.0.0.1:9"]);
    command.env("HTTPS_PROXY", proxy.url()).env("IBMCLOUD_API_KEY", "key");
    let wants = format!("the proxy {} (HTTPS_PROXY) wants credentials", proxy.url());
    run(command).code(5).says(&[
        &format!("FAILURE  network          IAM: {wants}"),
        &format!("FAILURE  network          VPC: {wants}"),
        "instance metadata directly",
        "HTTPS_PROXY=http://USER:PASSWORD@",
    ]);
}
