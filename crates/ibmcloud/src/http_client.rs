//! HTTP client settings that all requests of this crate share.

use std::path::Path;

use snapferry_base::ca_file::{CaFile, CaFileError};
use snapferry_base::client_name::user_agent;
use snapferry_base::proxy::Route;

/// Reason why the HTTP client can't be built.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The CA file can't be used.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// The TLS library refused the certificates or its own setup.
    #[error("can't set up TLS")]
    Tls(#[source] reqwest::Error),
    /// The HTTP library refused the address of the proxy.
    #[error("can't set up the proxy")]
    Proxy(#[source] reqwest::Error),
}

/// Returns a client builder that trusts the system's certificate authorities and those in `ca_file`, and
/// sends all requests by `route`.
///
/// # Errors
/// If the CA file or the proxy can't be used.
pub fn http_client(ca_file: Option<&Path>, route: &Route) -> Result<reqwest::ClientBuilder, HttpClientError> {
    // reqwest is built without a TLS provider of its own. The call fails if one is installed already, which
    // is just as good.
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    // A redirect must not carry an API key to another server; neither IAM nor the VPC API redirects.
    let mut http =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).user_agent(user_agent());
    // Otherwise reqwest would read the environment by itself.
    http = http.no_proxy();
    if let Some(proxy) = route.proxy() {
        http = http.proxy(reqwest::Proxy::all(proxy.url().clone()).map_err(HttpClientError::Proxy)?);
    }
    if let Some(path) = ca_file {
        let ca = CaFile::read(path)?;
        http = http
            .tls_certs_merge(reqwest::Certificate::from_pem_bundle(ca.pem()).map_err(HttpClientError::Tls)?);
    }
    Ok(http)
}
