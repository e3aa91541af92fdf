//! What the client is told: where the bucket is, how to get in, and how long to wait.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snapferry_base::identity::TokenSource;
use snapferry_base::secret::Secret;
use snapferry_base::units::{ByteCount, MIB};

/// For any request but the one that completes an upload, on top of the time its body takes at the slowest acceptable rate.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// For the request that completes an upload: a store may put an object together for several minutes (S3's documentation,
/// "CompleteMultipartUpload").
pub const COMPLETE: Duration = Duration::from_secs(10 * 60);
/// The slowest acceptable rate of one request, in bytes a second. On a slower line fewer parts travel at once, until each is fast
/// enough: at one at a time, a part of 32 MiB has a minute, and a line of 5 Mbit/s does.
pub const SLOWEST: ByteCount = ByteCount(MIB);

/// How requests are authorised.
#[derive(Clone)]
pub enum Auth {
    /// Signed with a pair of keys (SigV4).
    Hmac {
        /// The public half.
        access_key: String,
        /// The secret half.
        secret_key: Secret,
        /// For keys that were given out for a while.
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

/// Where the bucket is, and how to get in.
#[derive(Clone, Debug)]
pub struct S3Config {
    /// `https://host[:port]`; `http` is for stores on this machine or a trusted network.
    pub endpoint: String,
    /// The bucket's location, which signatures are made for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// How requests are authorised.
    pub auth: Auth,
    /// Certificates to trust besides the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The slowest rate at which a body may travel before the attempt is given up, per second. See [`SLOWEST`].
    pub slowest: ByteCount,
    /// What any attempt may take on top of that. See [`DEADLINE`].
    pub deadline: Duration,
    /// What an attempt to complete an upload may take. See [`COMPLETE`].
    pub complete: Duration,
}

impl S3Config {
    /// With the system's certificates and the usual patience.
    #[must_use]
    pub fn new(endpoint: &str, region: &str, bucket: &str, auth: Auth) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            auth,
            ca_file: None,
            slowest: SLOWEST,
            deadline: DEADLINE,
            complete: COMPLETE,
        }
    }
}
