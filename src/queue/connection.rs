//! How a Redis is reached, and what its errors mean.

use std::fmt;
use std::path::PathBuf;

use redis::{Client, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, RedisError, ServerErrorKind, TlsCertificates};

use super::{QueueError, Timing};
use crate::secret::Secret;

/// Where the queue is.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://host:port/db`, `rediss://...` for TLS, `unix:///path`; without a password, which would end up in logs.
    pub url: String,
    /// The user's name, where there are users.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A private certificate authority.
    pub ca_file: Option<PathBuf>,
    /// What all keys begin with, for several queues on one server; a hash tag is put around it.
    pub prefix: Option<String>,
    /// How leases are timed.
    pub timing: Timing,
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig").field("url", &address_of(&self.url)).field("user", &self.user).finish_non_exhaustive()
    }
}

/// A URL without what it may hold of secrets.
pub(super) fn address_of(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

/// A client that has not connected yet.
pub(super) fn client(config: &RedisConfig) -> Result<Client, QueueError> {
    let address = address_of(&config.url);
    let refused = |reason: String| QueueError::Refused { address: address.clone(), reason };
    let mut info = config.url.as_str().into_connection_info().map_err(|err| refused(err.to_string()))?;
    if info.redis_settings().password().is_some() {
        return Err(refused("a password in a URL ends up in logs: give it in a file or the environment".to_owned()));
    }
    let mut settings = info.redis_settings().clone();
    if let Some(user) = &config.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &config.password {
        settings = settings.set_password(password.reveal());
    }
    info = info.set_redis_settings(settings);
    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let made = if is_tls {
        let root_cert = match &config.ca_file {
            Some(path) => Some(std::fs::read(path).map_err(|err| refused(format!("the CA file {}: {err}", path.display())))?),
            None => None,
        };
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
    } else {
        Client::open(info)
    };
    made.map_err(|err| refused(err.to_string()))
}

/// Redis' errors by what they mean for another attempt.
pub(super) fn told(address: &str, err: &RedisError) -> QueueError {
    let (address, reason) = (address.to_owned(), err.to_string());
    if err.code() == Some("FOREIGN") {
        return QueueError::Foreign { address, reason: err.detail().unwrap_or_default().to_owned() };
    }
    let passing = matches!(
        err.code(),
        Some(
            "OOM"
                | "LOADING"
                | "BUSY"
                | "READONLY"
                | "MASTERDOWN"
                | "CLUSTERDOWN"
                | "TRYAGAIN"
                | "UNKILLABLE"
                | "MISCONF"
                | "NOREPLICAS"
        )
    ) || err.is_io_error()
        || err.is_timeout()
        || matches!(
            err.kind(),
            ErrorKind::Io
                | ErrorKind::Server(
                    ServerErrorKind::BusyLoading
                        | ServerErrorKind::TryAgain
                        | ServerErrorKind::ReadOnly
                        | ServerErrorKind::MasterDown
                )
        );
    if passing { QueueError::Unavailable { address, reason } } else { QueueError::Refused { address, reason } }
}
