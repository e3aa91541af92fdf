//! Setup of a client from its configuration: keys or a token, certificates, and without the SDK's own retries
//! and checks.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls;
use snapferry_base::ca_file::{CaFile, allows_secrets};
use snapferry_engine::store::StoreError;

use super::auth::Bearer;
use super::bounded_client::BoundedClient;
use super::checksums::ChecksumSupport;
use super::complete_xml::CompleteXml;
use super::errors::ErrorContext;
use super::{Auth, S3Config, S3Store};

/// Longest name of a bucket in bytes: 63 by today's rules, 255 by older ones.
const LONGEST_BUCKET: usize = 255;
/// Time limit for a connection to the store.
const CONNECT: Duration = Duration::from_secs(5);

impl S3Store {
    /// Sets up a client. Sends no request to the store.
    ///
    /// # Errors
    /// If the endpoint is not `http://host` or `https://host`, the bucket's name is invalid, the CA file
    /// can't be used, the slowest rate is 0, the keys are empty, or a token would be sent without TLS.
    pub fn connect(config: S3Config) -> Result<Self, StoreError> {
        let setup = |reason: String| StoreError::Setup(reason);
        let endpoint: url::Url = config.endpoint.parse().map_err(|err| {
            setup(format!(
                "the endpoint {:?} is not a URL such as https://s3.example.com: {err}",
                config.endpoint
            ))
        })?;
        // The endpoint must not be shown before this check, because it may contain a password.
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return Err(setup(
                "the endpoint holds a user name or password; keys are given apart from it".to_owned(),
            ));
        }
        let is_bare = endpoint.path() == "/" && endpoint.query().is_none() && endpoint.fragment().is_none();
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() || !is_bare {
            return Err(setup(format!(
                "the endpoint {endpoint} is not of the form https://host or http://host:port"
            )));
        }
        if config.bucket.is_empty()
            || config.bucket.len() > LONGEST_BUCKET
            || config.bucket.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace())
        {
            return Err(setup(format!("{:?} can't be a bucket's name", config.bucket)));
        }
        if config.slowest.0 == 0 {
            return Err(setup(
                "the slowest acceptable rate is 0: no request would ever be given up".to_owned(),
            ));
        }
        let secure = endpoint.scheme() == "https";
        let ca = config
            .ca_file
            .as_deref()
            .map(CaFile::read)
            .transpose()
            .map_err(|err| setup(snapferry_base::retry::chain(&err)))?;
        let url = endpoint.as_str().trim_end_matches('/').to_owned();

        let mut secrets = Vec::new();
        let mut builder = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(config.region.clone()))
            .endpoint_url(&url)
            .force_path_style(true)
            .http_client(SharedHttpClient::new(BoundedClient(http_client(secure, ca.as_ref())?)))
            // The requests set checksums themselves, or have none. The SDK would compute its own again for
            // each attempt.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .retry_config(RetryConfig::disabled())
            .interceptor(CompleteXml);
        let mut bearer = None;
        match config.auth {
            Auth::Hmac { access_key, secret_key, session_token } => {
                if access_key.is_empty() || secret_key.is_empty() {
                    return Err(setup("the access key or the secret key is empty".to_owned()));
                }
                let token = session_token.as_ref().map(|token| token.reveal().to_owned());
                builder = builder.credentials_provider(Credentials::new(
                    access_key,
                    secret_key.reveal(),
                    token,
                    None,
                    "hmac",
                ));
                secrets.push(secret_key);
                secrets.extend(session_token);
            }
            Auth::Bearer(source) => {
                if !allows_secrets(&endpoint) {
                    return Err(setup(format!(
                        "the endpoint {url} is not https: the token would travel in the clear"
                    )));
                }
                let interceptor = Bearer::new(source);
                builder = builder.allow_no_auth().interceptor(interceptor.clone());
                bearer = Some(interceptor);
            }
        }
        Ok(Self {
            client: Client::from_conf(builder.build()),
            bearer,
            bucket: config.bucket.clone(),
            sign_payload: !secure,
            slowest: config.slowest,
            deadline: config.deadline,
            complete: config.complete,
            error_context: ErrorContext {
                endpoint: url,
                region: config.region,
                bucket: config.bucket,
                secrets,
            },
            checksums: ChecksumSupport::default(),
        })
    }
}

fn http_client(secure: bool, ca: Option<&CaFile>) -> Result<SharedHttpClient, StoreError> {
    let builder = aws_smithy_http_client::Builder::new();
    if !secure {
        return Ok(builder.build_http());
    }
    let mut trust_store = tls::TrustStore::default();
    if let Some(ca) = ca {
        trust_store = trust_store.with_pem_certificate(ca.pem());
    }
    let context = tls::TlsContext::builder().with_trust_store(trust_store).build().map_err(|err| {
        StoreError::Setup(format!("can't set up TLS: {}", snapferry_base::retry::chain(&err)))
    })?;
    Ok(builder
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}
