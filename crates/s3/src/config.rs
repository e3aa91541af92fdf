//! Configuration of the client: location of the bucket, authorization, and time limits.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snapferry_base::identity::TokenSource;
use snapferry_base::proxy::Proxies;
use snapferry_base::secret::Secret;
use snapferry_base::units::{ByteCount, MIB};

use super::requirements::{Addressing, Requirements};

/// Default time limit of all requests except the one that completes an upload. The time for the body at the
/// slowest acceptable rate is added.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Default time limit of the request that completes an upload. A store may take several minutes to assemble
/// the object (S3's documentation, "CompleteMultipartUpload").
pub const COMPLETE: Duration = Duration::from_secs(10 * 60);
/// Default of the slowest acceptable rate of one request, in bytes per second. On a slower connection fewer
/// parts are sent at once, until each is fast enough. If only one is sent, a part of 32 MiB has a minute, so
/// a connection of 5 Mbit/s is fast enough.
pub const SLOWEST: ByteCount = ByteCount(MIB);

/// Authorization of requests.
#[derive(Clone)]
pub enum Auth {
    /// Signatures with a pair of keys (SigV4).
    Hmac {
        /// Identifier of the key, which is not secret.
        access_key: String,
        /// Secret part of the key.
        secret_key: Secret,
        /// Session token, for temporary keys.
        session_token: Option<Secret>,
    },
    /// An IBM IAM token in each request.
    Bearer(Arc<dyn TokenSource>),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hmac { access_key, .. } => {
                f.debug_struct("Hmac").field("access_key", access_key).finish_non_exhaustive()
            }
            Self::Bearer(_) => f.write_str("Bearer"),
        }
    }
}

/// Location of a bucket, authorization, and time limits.
#[derive(Clone, Debug)]
pub struct S3Config {
    /// URL of the form `https://host[:port][/path]`. `http` is for stores on this machine or in a trusted
    /// network.
    pub endpoint: String,
    /// Region of the bucket, which is part of the signatures.
    pub region: String,
    pub bucket: String,
    pub auth: Auth,
    /// Certificates to trust in addition to the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Proxies that requests may go through.
    pub proxies: Proxies,
    pub addressing: Addressing,
    pub requirements: Requirements,
    /// Slowest acceptable rate of a body in bytes per second; an attempt below it is ended. See [`SLOWEST`].
    pub slowest: ByteCount,
    /// Time limit of an attempt, to which the time for its body is added. See [`DEADLINE`].
    pub deadline: Duration,
    /// Time limit of an attempt to complete an upload. See [`COMPLETE`].
    pub complete: Duration,
}

impl S3Config {
    /// Creates a configuration with the system's certificates and the default time limits.
    #[must_use]
    pub fn new(endpoint: &str, region: &str, bucket: &str, auth: Auth) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            auth,
            ca_file: None,
            proxies: Proxies::default(),
            addressing: Addressing::default(),
            requirements: Requirements::default(),
            slowest: SLOWEST,
            deadline: DEADLINE,
            complete: COMPLETE,
        }
    }
}
