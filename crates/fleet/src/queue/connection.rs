//! How a Redis is reached, and what its errors mean.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, RedisError,
    RedisResult, ServerErrorKind, TlsCertificates,
};
use snapferry_base::ca_file::CaFile;
use snapferry_base::retry::chain;
use snapferry_base::secret::Secret;
use tokio::sync::Mutex;

use super::{QueueError, Timing};

/// How long one operation may take. A Redis that is saving or failing over stalls for seconds, and the library's half second would call that lost.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection over which nothing came for so long is asked for a sign of life, and again after each `PROBE`.
const QUIET: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(5);
/// After so long without that, or with bytes that nobody acknowledges, the kernel closes it. Its own limit is a quarter of an hour.
const DEAD: Duration = Duration::from_secs(15);
/// Errors of a Redis that may soon be well.
pub(super) const PASSING: [&str; 10] = [
    "OOM",
    "LOADING",
    "BUSY",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNKILLABLE",
    "MISCONF",
    "NOREPLICAS",
];
/// Errors of a Redis that is not, or no more, the one to ask: its name may lead to another one by now.
const ELSEWHERE: [&str; 3] = ["READONLY", "MASTERDOWN", "NOAUTH"];

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
        f.debug_struct("RedisConfig")
            .field("url", &address_of(&self.url))
            .field("user", &self.user)
            .finish_non_exhaustive()
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
        return Err(refused(
            "a password in a URL ends up in logs: give it in a file or the environment".to_owned(),
        ));
    }
    // A word about the library that no server needs, and for which a user may have no right.
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(user) = &config.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &config.password {
        settings = settings.set_password(password.reveal());
    }
    let keepalive = TcpKeepalive::new().with_time(QUIET).with_interval(PROBE);
    let tcp = TcpSettings::default().set_keepalive(keepalive).set_user_timeout(DEAD);
    info = info.set_redis_settings(settings).set_tcp_settings(tcp);
    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let made = if is_tls {
        let root_cert = match &config.ca_file {
            Some(path) => Some(CaFile::read(path).map_err(|err| refused(chain(&err)))?.pem().to_vec()),
            None => None,
        };
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
    } else {
        Client::open(info)
    };
    made.map_err(|err| refused(err.to_string()))
}

/// A connection that is made anew whenever it is of no more use. The library's own kind of that keeps one that has gone silent, one to a server
/// that is a primary no more, and the refusal of an attempt at a new one, for ever.
pub(super) struct Line {
    client: Client,
    address: String,
    standing: Mutex<Standing>,
}

struct Standing {
    /// None where the next one who asks has to make one.
    connection: Option<MultiplexedConnection>,
    /// How many there were before it.
    number: u64,
}

/// A connection to ask over.
pub(super) struct Taken {
    pub connection: MultiplexedConnection,
    /// How many there were before it.
    pub number: u64,
}

impl Line {
    /// Connects.
    pub async fn connect(config: &RedisConfig) -> Result<Self, QueueError> {
        let (client, address) = (client(config)?, address_of(&config.url));
        let connection = open(&client).await.map_err(|err| told(&address, &err))?;
        let standing = Mutex::new(Standing { connection: Some(connection), number: 0 });
        Ok(Self { client, address, standing })
    }

    /// The connection that stands, or a new one.
    pub async fn take(&self) -> Result<Taken, QueueError> {
        // Whoever waits for somebody else's attempt waits no longer than for its own.
        let taken = tokio::time::timeout(CONNECT, self.standing()).await;
        taken.unwrap_or_else(|_| {
            Err(self.unavailable(format!("no connection within {} s", CONNECT.as_secs())))
        })
    }

    async fn standing(&self) -> Result<Taken, QueueError> {
        let mut standing = self.standing.lock().await;
        let connection = match &standing.connection {
            Some(connection) => connection.clone(),
            // It has let us in before, so whatever it says now may pass: too many clients, data that are still being read.
            None => open(&self.client).await.map_err(|err| self.unavailable(chain(&err)))?,
        };
        standing.connection = Some(connection.clone());
        Ok(Taken { connection, number: standing.number })
    }

    fn unavailable(&self, reason: String) -> QueueError {
        QueueError::Unavailable { address: self.address.clone(), reason }
    }

    /// What was answered over a connection; one that is of no more use is given up.
    pub async fn heard<T>(&self, taken: &Taken, answer: RedisResult<T>) -> Result<T, QueueError> {
        let err = match answer {
            Ok(answer) => return Ok(answer),
            Err(err) => err,
        };
        // An answer of the server is a sign of life, whatever it says.
        if code_of(&err).is_none_or(|code| ELSEWHERE.contains(&code)) {
            let mut standing = self.standing.lock().await;
            // Somebody else may have seen to that.
            if standing.number == taken.number {
                *standing = Standing { connection: None, number: standing.number + 1 };
            }
        }
        Err(told(&self.address, &err))
    }
}

async fn open(client: &Client) -> RedisResult<MultiplexedConnection> {
    let patience =
        AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER)).set_connection_timeout(Some(CONNECT));
    client.get_multiplexed_async_connection_with_config(&patience).await
}

/// The code of an error that the server has answered with. Before Redis 7.0 that of a script's error is among the words of another one,
/// as in `ERR Error running script (call to f_...): @user_script: 7: -OOM command not allowed ...`.
fn code_of(err: &RedisError) -> Option<&str> {
    let code = err.code()?;
    let words =
        err.detail().and_then(|detail| detail.strip_prefix("Error running script")).unwrap_or_default();
    let inner =
        words.split_whitespace().map(|word| word.trim_start_matches('-')).find(|word| PASSING.contains(word));
    Some(inner.unwrap_or(code))
}

/// Redis' errors by what they mean for another attempt.
pub(super) fn told(address: &str, err: &RedisError) -> QueueError {
    let (address, reason) = (address.to_owned(), err.to_string());
    if err.code() == Some("FOREIGN") {
        return QueueError::Foreign { address, reason: err.detail().unwrap_or_default().to_owned() };
    }
    if err.code() == Some("NOPERM") {
        return QueueError::Rights { address, missing: reason };
    }
    // That one has no code of its own.
    let is_full = err.detail().is_some_and(|detail| detail.contains("max number of clients reached"));
    let passing = code_of(err).is_some_and(|code| PASSING.contains(&code))
        || is_full
        || err.is_io_error()
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
    if passing {
        QueueError::Unavailable { address, reason }
    } else {
        QueueError::Refused { address, reason }
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::retry::Class;

    use super::*;

    #[test]
    fn what_may_pass_is_known_in_the_words_of_any_version() {
        let class = |answer: &str| {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).expect("an answer");
            told("there", &value.extract_error().expect_err("an error")).class()
        };
        for passing in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "ERR Error running script (call to f_3c2b): @user_script:12: @user_script: 12: -OOM command not allowed when used memory > 'maxmemory'.",
            "ERR Error running script (call to f_3c2b): @user_script:12: @user_script: 12: -READONLY You can't write against a read only replica.",
            "ERR max number of clients reached",
            "LOADING Redis is loading the dataset in memory",
        ] {
            assert_eq!(class(passing), Class::Transient, "{passing}");
        }
        for refusal in [
            "ERR Error running script (call to f_3c2b): @user_script:12: attempt to index a nil value",
            "ERR unknown command 'EVALSHA'",
            "NOPERM this user has no permissions to run the 'evalsha' command",
        ] {
            assert_eq!(class(refusal), Class::Permanent, "{refusal}");
        }
    }
}
