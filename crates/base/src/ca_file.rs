//! Trust in TLS servers: the system's certificate authorities, and additional ones from a file that the user
//! names.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use url::Host;

/// Error of a CA file that can't be used. The file is checked when it is read, because the TLS libraries may
/// panic on a bad one.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// The file can't be read.
    #[error("can't read the CA file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file contains no certificate, or one that is invalid.
    #[error("the CA file {} holds no certificates in PEM: {reason}", path.display())]
    NoCertificates {
        path: PathBuf,
        /// Description of the defect.
        reason: String,
    },
}

/// Certificates of authorities to trust in addition to the system's. Each one is known to parse.
#[derive(Clone, Debug)]
pub struct CaFile {
    pem: Vec<u8>,
}

impl CaFile {
    /// Reads certificates in PEM and checks that each can be a trust anchor.
    ///
    /// # Errors
    /// If the file can't be read, contains no certificate, or contains one that can't be a trust anchor.
    pub fn read(path: &Path) -> Result<Self, CaFileError> {
        let pem = crate::user_file::read(path)
            .map_err(|source| CaFileError::Unreadable { path: path.to_owned(), source })?;
        let bad = |reason: String| CaFileError::NoCertificates { path: path.to_owned(), reason };
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|err| bad(err.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("there is no CERTIFICATE section".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|err| bad(err.to_string()))?;
        }
        Ok(Self { pem })
    }

    /// Returns the content of the file: one or more certificates in PEM.
    #[must_use]
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }
}

/// True if a secret may be sent to `url`: over TLS, or to this machine itself.
#[must_use]
pub fn allows_secrets(url: &url::Url) -> bool {
    url.scheme() == "https" || is_this_machine(url)
}

/// True if `url` is an address of this machine that other machines can't reach.
pub(crate) fn is_this_machine(url: &url::Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
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
        for (url, allowed) in [
            ("https://iam.example", true),
            ("http://127.0.0.1:80", true),
            ("http://[::1]:80", true),
            ("http://localhost", true),
            ("http://iam.example", false),
            ("http://127.0.0.1.example", false),
        ] {
            assert_eq!(allows_secrets(&url.parse().expect("a URL")), allowed, "{url}");
        }
    }
}
