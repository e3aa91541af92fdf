//! Whom we believe over TLS: the system's certificate authorities, and one more that the user names.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// A CA file that can't be used. Found when it is read, since the TLS libraries below take a bad one as a reason to panic.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// It can't be read.
    #[error("can't read the CA file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no certificate, or something that is none.
    #[error("the CA file {} holds no certificates in PEM: {reason}", path.display())]
    NoCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Certificates of authorities to trust besides the system's, known to parse.
#[derive(Clone, Debug)]
pub struct CaFile {
    pem: Vec<u8>,
}

impl CaFile {
    /// Reads certificates in PEM and tries each.
    ///
    /// # Errors
    /// Where the file can't be read, holds no certificate, or one that can't be a trust anchor.
    pub fn read(path: &Path) -> Result<Self, CaFileError> {
        let pem = crate::given::read(path).map_err(|source| CaFileError::Unreadable { path: path.to_owned(), source })?;
        let bad = |reason: String| CaFileError::NoCertificates { path: path.to_owned(), reason };
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|err| bad(err.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("there is no CERTIFICATE section".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|err| bad(err.to_string()))?;
        }
        Ok(Self { pem })
    }

    /// The file's text: one or more certificates in PEM.
    #[must_use]
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }
}

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The CA file.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// The TLS library.
    #[error("can't set up TLS")]
    Tls(#[source] reqwest::Error),
}

/// A client to be built that trusts the system's authorities and those in `ca_file`.
///
/// # Errors
/// Where the CA file can't be used.
pub fn http_client(ca_file: Option<&Path>) -> Result<reqwest::ClientBuilder, HttpClientError> {
    // reqwest is built without a TLS provider of its own. That one is installed already is as good.
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    // An API key must not follow an answer to somewhere else; neither IAM nor the VPC API redirects.
    let mut http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    if let Some(path) = ca_file {
        let ca = CaFile::read(path)?;
        http = http.tls_certs_merge(reqwest::Certificate::from_pem_bundle(ca.pem()).map_err(HttpClientError::Tls)?);
    }
    Ok(http)
}

/// Whether a secret may be sent there: over TLS, or to this very machine.
#[must_use]
pub fn keeps_secrets(url: &reqwest::Url) -> bool {
    url.scheme() == "https"
        || match url.host_str() {
            Some("localhost") => true,
            Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
            None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        assert!(matches!(CaFile::read(&path), Err(CaFileError::Unreadable { .. })));
        for text in ["", "not PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).expect("written");
            let err = CaFile::read(&path).expect_err("no certificate in it");
            assert!(matches!(err, CaFileError::NoCertificates { .. }), "{err}");
            assert!(err.to_string().contains("ca.pem"), "{err}");
        }
    }

    #[test]
    fn secrets_go_over_tls_or_stay_on_the_machine() {
        for (url, keeps) in [
            ("https://iam.example", true),
            ("http://127.0.0.1:80", true),
            ("http://[::1]:80", true),
            ("http://localhost", true),
            ("http://iam.example", false),
            ("http://127.0.0.1.example", false),
        ] {
            assert_eq!(keeps_secrets(&url.parse().expect("a URL")), keeps, "{url}");
        }
    }
}
