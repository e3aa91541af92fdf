//! Access to the store: signatures, regions, bearer tokens, TLS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, Region, RuntimeComponents};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_types::body::SdkBody;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use snapferry_base::secret::Secret;
use snapferry_sim::{Operation, SimConfig, SimError, SimStore, TlsFiles, UnsignedPayload};

use super::{BUCKET, Fixture, bearer, by_hand, client_config, noise, refusal, refused, stream, token};

#[tokio::test]
async fn only_the_right_keys_for_the_right_region_are_let_in() {
    let f = Fixture::start().await;
    let (key, secret) = (f.store.config().access_key.as_str(), f.store.config().secret_key.reveal());
    for (key, secret, region, status, code) in [
        (key, "wrong", "us-south", 403, "SignatureDoesNotMatch"),
        ("nobody", secret, "us-south", 403, "InvalidAccessKeyId"),
        (key, secret, "eu-de", 400, "AuthorizationHeaderMalformed"),
    ] {
        let keys = Credentials::new(key, secret, None, None, "test");
        let config = client_config(&f.store).credentials_provider(keys).region(Region::new(region));
        let put = Client::from_conf(config.build())
            .put_object()
            .bucket(BUCKET)
            .key("a")
            .body(stream(&noise(10, 1)));
        let err = put.send().await.expect_err(code);
        assert_eq!(refusal(err), refused(status, code));
    }
    let (status, answer) = by_hand(&f.store, &format!("GET /{BUCKET}/a HTTP/1.1"), b"").await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer.contains("<Code>AccessDenied</Code>"), "{answer}");
    assert!(!f.has("a").await);
}

/// Replaces the body under a signature that covers it.
#[derive(Debug)]
struct Tamper;

impl Intercept for Tamper {
    fn name(&self) -> &'static str {
        "tamper"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_s3::error::BoxError> {
        *context.request_mut().body_mut() = SdkBody::from(noise(1000, 2));
        Ok(())
    }
}

#[tokio::test]
async fn a_signed_body_is_held_to_its_hash() {
    let f = Fixture::start().await;
    let put = || f.client.put_object().bucket(BUCKET).key("a").body(stream(&noise(1000, 1))).customize();
    let err = put().interceptor(Tamper).send().await.expect_err("another body");
    assert_eq!(refusal(err), refused(400, "XAmzContentSHA256Mismatch"));
    assert!(!f.has("a").await);
    put().interceptor(Tamper).disable_payload_signing().send().await.expect("an unsigned body may be any");
}

#[tokio::test]
async fn unsigned_bodies_over_http_can_be_refused() {
    let f = Fixture::start_with(|config| SimConfig {
        unsigned_payload: UnsignedPayload::RefuseOverHttp,
        ..config
    })
    .await;
    let put = || f.client.put_object().bucket(BUCKET).key("a").body(stream(&noise(10, 1)));
    let err = put().customize().disable_payload_signing().send().await.expect_err("unsigned");
    assert_eq!(refusal(err), refused(403, "AccessDenied"));
    put().send().await.expect("signed");
}

#[tokio::test]
async fn iam_turns_an_api_key_into_a_token() {
    let life = Duration::from_secs(1800);
    let f = Fixture::start_with(|config| SimConfig {
        token_life: life,
        api_keys: vec![Secret::new("the-key")],
        ..config
    })
    .await;
    let (status, answer) = token(&f.store, "the-key").await;
    assert_eq!((status, &answer["token_type"], &answer["expires_in"]), (200, &"Bearer".into(), &1800.into()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let expiration = answer["expiration"].as_u64().expect("a date");
    assert!((now.as_secs() + 1700..=now.as_secs() + 1800).contains(&expiration), "{expiration}");

    let (status, answer) = token(&f.store, "another-key").await;
    assert_eq!((status, &answer["errorCode"]), (400, &"BXNIM0415E".into()));
    assert!(answer["errorMessage"].is_string() && answer["context"]["requestId"].is_string(), "{answer}");
    assert_eq!(f.store.stats().of(Operation::IdentityToken).requests, 2);
}

#[tokio::test]
async fn a_token_opens_the_store_until_it_expires() {
    let f = Fixture::start().await;
    f.put("a", &noise(10, 1)).await;
    let bearer = bearer(&f.store).await;
    let read = |token: &str| format!("HEAD /{BUCKET}/a HTTP/1.1\r\nAuthorization: Bearer {token}");
    assert_eq!(by_hand(&f.store, &read(&bearer), b"").await.0, 200);
    assert_eq!(by_hand(&f.store, &read("made-up"), b"").await.0, 403);
    let put = format!("PUT /{BUCKET}/b HTTP/1.1\r\nAuthorization: Bearer {bearer}\r\nContent-Length: 3");
    assert_eq!(by_hand(&f.store, &put, b"abc").await.0, 200);
    f.store.expire_tokens();
    let (status, answer) = by_hand(&f.store, &read(&bearer).replace("HEAD", "GET"), b"").await;
    assert_eq!(status, 403);
    assert!(answer.contains("<Code>AccessDenied</Code>"), "{answer}");
    assert_eq!(f.get("b").await, "abc");
}

/// Creates a certificate for loopback with its key, as files, and returns the authority that signed it.
fn certificate(folder: &std::path::Path) -> (TlsFiles, Vec<u8>) {
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("an authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).expect("signed").pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("a name")
        .signed_by(&key, &issuer)
        .expect("signed");
    let files = TlsFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    std::fs::write(&files.certificate, certificate.pem()).expect("a file");
    std::fs::write(&files.key, key.serialize_pem()).expect("a file");
    (files, authority_pem.into_bytes())
}

#[tokio::test]
async fn https_is_served_to_those_who_trust_the_authority() {
    let files = tempfile::tempdir().expect("a folder");
    let (tls, authority) = certificate(files.path());
    let f = Fixture::start_with(|config| SimConfig {
        tls: Some(tls),
        unsigned_payload: UnsignedPayload::RefuseOverHttp,
        ..config
    })
    .await;
    assert!(f.store.endpoint().starts_with("https://127.0.0.1:"));
    let client = |trust: TrustStore| {
        let context = TlsContext::builder().with_trust_store(trust).build().expect("a context");
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        Client::from_conf(
            client_config(&f.store).http_client(http.tls_context(context).build_https()).build(),
        )
    };
    let body = noise(1 << 20, 1);
    let trusting = client(TrustStore::empty().with_pem_certificate(authority));
    let put = trusting.put_object().bucket(BUCKET).key("a").body(stream(&body)).customize();
    put.disable_payload_signing().send().await.expect("an unsigned body over https");
    let read = trusting.get_object().bucket(BUCKET).key("a").send().await.expect("found");
    assert!(read.body.collect().await.expect("all of it").into_bytes() == body);

    let stranger = client(TrustStore::empty().with_native_roots(true));
    let err = stranger.get_object().bucket(BUCKET).key("a").send().await.expect_err("not trusted");
    assert!(err.raw_response().is_none() && format!("{err:?}").contains("UnknownIssuer"), "{err:?}");
}

#[tokio::test]
async fn a_store_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = SimStore::start(SimConfig::new(folder.path())).await.expect("a store");
    let address = running.endpoint().trim_start_matches("http://").parse().expect("an address");
    let taken = SimStore::start(SimConfig { bind: address, ..SimConfig::new(folder.path()) })
        .await
        .expect_err("the port is taken");
    assert!(matches!(taken, SimError::Bind { .. }), "{taken:?}");

    let file = folder.path().join("file");
    std::fs::write(&file, "no PEM").expect("a file");
    let err = SimStore::start(SimConfig::new(&file)).await.expect_err("not a folder");
    assert!(matches!(err, SimError::Folder { .. }), "{err:?}");
    let tls = Some(TlsFiles { certificate: file.clone(), key: file.clone() });
    let err = SimStore::start(SimConfig { tls, ..SimConfig::new(folder.path()) })
        .await
        .expect_err("no certificate");
    assert!(matches!(err, SimError::Tls { .. }), "{err:?}");
    let err = running.create_bucket("No Bucket").await.expect_err("no name");
    assert!(matches!(err, SimError::Bucket { .. }), "{err:?}");
}

#[tokio::test]
async fn nobody_answers_after_the_end() {
    let f = Fixture::start().await;
    f.put("a", &noise(10, 1)).await;
    let Fixture { store, client, .. } = f;
    let stats = store.shutdown().await;
    assert_eq!(stats.of(Operation::PutObject).succeeded, 1);
    let err = client.get_object().bucket(BUCKET).key("a").send().await.expect_err("gone");
    assert!(err.raw_response().is_none(), "{err:?}");
}
