//! Setup of a client from its configuration: keys or a token, certificates, and without the SDK's own retries
//! and checks.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use snapferry_base::ca_file::{CaFile, allows_secrets};
use snapferry_base::client_name;
use snapferry_base::proxy::Route;
use snapferry_engine::store::StoreError;

use super::auth::Bearer;
use super::bounded_client::BoundedClient;
use super::checksums::ChecksumSupport;
use super::complete_xml::CompleteXml;
use super::copies::CopySupport;
use super::errors::ErrorContext;
use super::requirements::{Addressing, Payer, RequesterPays};
use super::{Auth, S3Config, S3Store};

/// Longest name of a bucket in bytes: 63 by today's rules, 255 by older ones.
const LONGEST_BUCKET: usize = 255;
/// Time limit for a connection to the store.
const CONNECT: Duration = Duration::from_secs(5);

impl S3Store {
    /// Sets up a client. Sends no request to the store.
    ///
    /// # Errors
    /// If the endpoint is not an address that begins with `http://` or `https://`, the bucket's name is
    /// invalid, the CA file or the proxy can't be used, the slowest rate is 0, the keys are empty, or a token
    /// would be sent without TLS.
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
        let is_bare = endpoint.query().is_none() && endpoint.fragment().is_none();
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() || !is_bare {
            return Err(setup(format!(
                "the endpoint {endpoint} is not of the form https://host, http://host:port or https://host/path"
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
        let target = address_of(&endpoint, &config.bucket, config.addressing)?;
        let route = config.proxies.route(&target).map_err(|err| setup(err.to_string()))?;
        let app_name = AppName::new(client_name::plain()).map_err(|err| setup(err.to_string()))?;

        let mut secrets = Vec::new();
        let mut builder = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(config.region.clone()))
            // The SDK appends the bucket to a path as it is.
            .endpoint_url(format!("{url}/"))
            .app_name(app_name)
            .force_path_style(config.addressing == Addressing::Path)
            .http_client(SharedHttpClient::new(BoundedClient(http_client(secure, ca.as_ref(), &route)?)))
            // The requests set checksums themselves, or have none. The SDK would compute its own again for
            // each attempt.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .retry_config(RetryConfig::disabled())
            .interceptor(CompleteXml);
        if config.requirements.payer == Payer::Requester {
            builder = builder.interceptor(RequesterPays);
        }
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
            requirements: config.requirements,
            target,
            error_context: ErrorContext {
                endpoint: url,
                region: config.region,
                bucket: config.bucket,
                route,
                secrets,
            },
            checksums: ChecksumSupport::default(),
            copies: CopySupport::default(),
        })
    }
}

/// Returns the address of the bucket's objects, without their keys.
fn address_of(endpoint: &url::Url, bucket: &str, addressing: Addressing) -> Result<url::Url, StoreError> {
    if addressing == Addressing::Path {
        return Ok(endpoint.clone());
    }
    let refused = |reason: &str| {
        StoreError::Setup(format!(
            "bucket {bucket:?} can't be a part of the host's name in {endpoint}: {reason}; use path addressing"
        ))
    };
    let Some(url::Host::Domain(host)) = endpoint.host() else {
        return Err(refused("the host is an address without a name"));
    };
    // The SDK puts other names into the path, without a notice. A certificate for *.host covers no name with
    // a dot in front of it.
    let is_label_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(is_label_char)
    };
    let labels = bucket.split('.').count();
    if !(3..=63).contains(&bucket.len()) || !bucket.split('.').all(is_label) {
        return Err(refused("it has to be of 3 to 63 lower-case letters, digits and dashes"));
    }
    if labels > 1 && endpoint.scheme() == "https" {
        return Err(refused("with a dot in it, no certificate fits"));
    }
    let mut address = endpoint.clone();
    address.set_host(Some(&format!("{bucket}.{host}"))).map_err(|err| refused(&err.to_string()))?;
    Ok(address)
}

fn http_client(secure: bool, ca: Option<&CaFile>, route: &Route) -> Result<SharedHttpClient, StoreError> {
    let setup = |err: &dyn std::error::Error, what: &str| {
        StoreError::Setup(format!("can't set up {what}: {}", snapferry_base::retry::chain(err)))
    };
    let tls_context = || {
        let mut trust_store = tls::TrustStore::default();
        if let Some(ca) = ca {
            trust_store = trust_store.with_pem_certificate(ca.pem());
        }
        tls::TlsContext::builder().with_trust_store(trust_store).build().map_err(|err| setup(&err, "TLS"))
    };
    let ring = || tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    let builder = aws_smithy_http_client::Builder::new();
    let Some(proxy) = route.proxy() else {
        return Ok(match secure {
            false => builder.build_http(),
            true => builder.tls_provider(ring()).tls_context(tls_context()?).build_https(),
        });
    };
    let config = ProxyConfig::all(proxy.url().as_str()).map_err(|err| setup(&err, "the proxy"))?;
    // A proxy that is itself reached over TLS needs it even if the store doesn't.
    let tls_context = if secure || proxy.url().scheme() == "https" { Some(tls_context()?) } else { None };
    Ok(builder.build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(config.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        match &tls_context {
            None => connector.build_http(),
            Some(context) => connector.tls_provider(ring()).tls_context(context.clone()).build(),
        }
    }))
}
