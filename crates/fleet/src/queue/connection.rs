//! Connection to Redis, and classes of its errors.

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
use snapferry_base::client_name;
use snapferry_base::retry::chain;
use snapferry_base::secret::Secret;
use tokio::sync::Mutex;

use super::{QueueError, Timing};

/// Longest time for one operation. Redis stalls for seconds while it saves or fails over, which the library's
/// default of half a second would count as an error.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without data after which the kernel probes a connection. It probes again after each
/// `KEEPALIVE_INTERVAL`.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time without a response to probes, or with unacknowledged bytes, after which the kernel closes the
/// connection. The kernel's default is a quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Error codes of a Redis server that may soon work again.
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
/// Error codes of a server that is not, or no longer, the right one: its host name may resolve to another
/// server by now.
const ELSEWHERE: [&str; 3] = ["READONLY", "MASTERDOWN", "NOAUTH"];

/// Address and credentials of a queue on Redis.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://host:port/db`, `rediss://...` for TLS, or `unix:///path`; without a password, which would end
    /// up in logs.
    pub url: String,
    /// Name of the Redis user. None for the default user.
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// File with the certificate of a private certificate authority.
    pub ca_file: Option<PathBuf>,
    /// Prefix of all keys, for several queues on one server. The queue encloses it in a hash tag.
    pub prefix: Option<String>,
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

/// Returns a URL without the user and password in it.
pub(super) fn address_of(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

/// Builds a client, without connecting.
pub(super) fn client(config: &RedisConfig) -> Result<Client, QueueError> {
    let address = address_of(&config.url);
    let refused = |reason: String| QueueError::Refused { address: address.clone(), reason };
    let mut info = config.url.as_str().into_connection_info().map_err(|err| refused(err.to_string()))?;
    if info.redis_settings().password().is_some() {
        return Err(refused(
            "a password in a URL ends up in logs: give it in a file or the environment".to_owned(),
        ));
    }
    // By default the library sends its name to the server. No server needs it, and the user may lack the
    // right to do it.
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(user) = &config.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &config.password {
        settings = settings.set_password(password.reveal());
    }
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    let tcp = TcpSettings::default().set_keepalive(keepalive).set_user_timeout(USER_TIMEOUT);
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

/// A connection that is opened again after it fails. The reconnecting kind of the library keeps, for ever, a
/// connection that has gone silent, one to a server that is no longer the primary, and the error of a failed
/// attempt to reconnect.
pub(super) struct Connection {
    client: Client,
    address: String,
    current: Mutex<CurrentConnection>,
}

struct CurrentConnection {
    /// None if the next caller has to open one.
    connection: Option<MultiplexedConnection>,
    /// Number of connections before this one.
    number: u64,
}

/// A connection for one request.
pub(super) struct Taken {
    pub connection: MultiplexedConnection,
    /// Number of connections before this one.
    pub number: u64,
}

impl Connection {
    /// Opens the first connection.
    pub async fn connect(config: &RedisConfig) -> Result<Self, QueueError> {
        let (client, address) = (client(config)?, address_of(&config.url));
        let connection = open(&client).await.map_err(|err| queue_error(&address, &err))?;
        let current = Mutex::new(CurrentConnection { connection: Some(connection), number: 0 });
        Ok(Self { client, address, current })
    }

    /// Returns the open connection, or opens a new one.
    pub async fn take(&self) -> Result<Taken, QueueError> {
        // Includes the wait for another task's attempt, so no caller waits longer than its own attempt may
        // take.
        let taken = tokio::time::timeout(CONNECT_TIMEOUT, self.current()).await;
        taken.unwrap_or_else(|_| {
            Err(self.unavailable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))
        })
    }

    async fn current(&self) -> Result<Taken, QueueError> {
        let mut current = self.current.lock().await;
        let connection = match &current.connection {
            Some(connection) => connection.clone(),
            // The server has accepted this client before, so any error may pass: too many clients, or data
            // that are still being loaded.
            None => open(&self.client).await.map_err(|err| self.unavailable(chain(&err)))?,
        };
        current.connection = Some(connection.clone());
        Ok(Taken { connection, number: current.number })
    }

    fn unavailable(&self, reason: String) -> QueueError {
        QueueError::Unavailable { address: self.address.clone(), reason }
    }

    /// Converts the response to a request over this connection. Drops the connection if it is of no more use.
    pub async fn take_response<T>(&self, taken: &Taken, response: RedisResult<T>) -> Result<T, QueueError> {
        let err = match response {
            Ok(response) => return Ok(response),
            Err(err) => err,
        };
        // A response from the server shows that the connection works, even if it is an error.
        if code_of(&err).is_none_or(|code| ELSEWHERE.contains(&code)) {
            let mut current = self.current.lock().await;
            // Another task may have replaced the connection already.
            if current.number == taken.number {
                *current = CurrentConnection { connection: None, number: current.number + 1 };
            }
        }
        Err(queue_error(&self.address, &err))
    }
}

async fn open(client: &Client) -> RedisResult<MultiplexedConnection> {
    let patience = AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT));
    let mut connection = client.get_multiplexed_async_connection_with_config(&patience).await?;
    // Only for the users who read CLIENT LIST. The right to it may be missing, and a connection that breaks
    // here is noticed by its first real request.
    let named: RedisResult<()> =
        redis::cmd("CLIENT").arg("SETNAME").arg(client_name()).query_async(&mut connection).await;
    if let Err(err) = named {
        tracing::debug!("the connection to Redis has no name: {err}");
    }
    Ok(connection)
}

/// Returns the name of a connection, as `CLIENT LIST` shows it: program, version, host and process.
fn client_name() -> String {
    // Redis takes no blanks and no control characters.
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = host.replace(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '_'), "-");
    format!("{}-{host}-{}", client_name::plain(), std::process::id())
}

/// Returns the code of an error that the server answered with. Before Redis 7.0, the code of an error within
/// a script is part of the message of another error, as in `ERR Error running script (call to f_...):
/// @user_script: 7: -OOM command not allowed ...`.
fn code_of(err: &RedisError) -> Option<&str> {
    let code = err.code()?;
    let message =
        err.detail().and_then(|detail| detail.strip_prefix("Error running script")).unwrap_or_default();
    let inner = message
        .split_whitespace()
        .map(|word| word.trim_start_matches('-'))
        .find(|word| PASSING.contains(word));
    Some(inner.unwrap_or(code))
}

/// Converts an error of Redis by what it means for another attempt.
pub(super) fn queue_error(address: &str, err: &RedisError) -> QueueError {
    let (address, reason) = (address.to_owned(), err.to_string());
    if err.code() == Some("FOREIGN") {
        return QueueError::Foreign { address, reason: err.detail().unwrap_or_default().to_owned() };
    }
    if err.code() == Some("NOPERM") {
        return QueueError::Rights { address, missing: reason };
    }
    // This error has no code of its own.
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
            queue_error("there", &value.extract_error().expect_err("an error")).class()
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
