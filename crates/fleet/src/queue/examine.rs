//! Checks that a Redis server is fit to keep jobs, for `doctor`.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::connection::{RedisConfig, address_of, client, queue_error};
use super::{Queue as _, QueueError, RedisQueue, Timing, rights};

/// Oldest version of Redis with all that the scripts and streams of the queue need.
const MIN_VERSION: (u32, u32) = (6, 2);
/// Largest tolerated difference of clocks. A larger one makes times in lists and logs misleading. Leases
/// don't depend on it.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(10);
/// Share of its memory, in percent, from which on a server is close to refusing new jobs.
const MAX_MEMORY_PERCENT: u64 = 80;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong.
    Ok,
    /// The work is safe, but a setting should be improved.
    Warning,
    /// The work can't be done, or may be lost.
    Failure,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Subject of the check.
    pub what: &'static str,
    pub severity: Severity,
    /// Description of the state that the check found.
    pub details: String,
    /// Advice to the user. None if nothing is wrong.
    pub fix: Option<String>,
}

/// Information about a Redis server, for `judge`.
#[derive(Clone, Debug, Default)]
pub struct ServerInfo {
    /// Fields of `INFO`, by name.
    pub info: HashMap<String, String>,
    /// Settings from `CONFIG GET`, as far as the user may read them.
    pub settings: HashMap<String, String>,
    /// Time of the server's clock.
    pub time: Option<SystemTime>,
    /// True if the user may not run `INFO`.
    pub info_refused: bool,
    /// Missing rights, and the command that grants them. None if no right is missing.
    pub rights: Option<(String, String)>,
}

/// Collects all that `judge` needs from a server.
///
/// # Errors
/// If the server can't be reached or refuses a request.
pub async fn ask(config: &RedisConfig) -> Result<ServerInfo, QueueError> {
    let address = address_of(&config.url);
    let failed = |err: redis::RedisError| queue_error(&address, &err);
    let mut connection = client(config)?.get_multiplexed_async_connection().await.map_err(failed)?;
    // Without the right to run INFO the settings are unknown, and the finding reports that.
    let response: Result<String, QueueError> =
        redis::cmd("INFO").query_async(&mut connection).await.map_err(failed);
    let (info, info_refused) = match response {
        Ok(info) => (info, false),
        Err(QueueError::Rights { .. }) => (String::new(), true),
        Err(error) => return Err(error),
    };
    let time: (u64, u32) = redis::cmd("TIME").query_async(&mut connection).await.map_err(failed)?;
    let rights = match RedisQueue::connect(config).await?.rights().await {
        Ok(()) => None,
        Err(error @ QueueError::Rights { .. }) => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    let user = config.user.as_deref().unwrap_or("snapferry");
    let fix = rights::acl_line(user, config.prefix.as_deref().unwrap_or("snapferry"));
    let mut settings = HashMap::new();
    for name in ["appendonly", "maxmemory-policy"] {
        // If a provider forbids CONFIG, the values in INFO are used.
        if let Ok(pairs) = redis::cmd("CONFIG")
            .arg("GET")
            .arg(name)
            .query_async::<HashMap<String, String>>(&mut connection)
            .await
        {
            settings.extend(pairs);
        }
    }
    let info = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    let time = SystemTime::UNIX_EPOCH + Duration::new(time.0, time.1.saturating_mul(1000));
    Ok(ServerInfo {
        info: info.collect(),
        settings,
        time: Some(time),
        info_refused,
        rights: rights.map(|missing| (missing, fix)),
    })
}

fn finding(what: &'static str, severity: Severity, details: String, fix: &str) -> Finding {
    Finding { what, severity, details, fix: (severity != Severity::Ok).then(|| fix.to_owned()) }
}

/// Judges each part of the information by what it means for jobs.
#[must_use]
pub fn judge(server: &ServerInfo, tls: bool, timing: &Timing, now: SystemTime) -> Vec<Finding> {
    let info = |name: &str| server.info.get(name).map_or("", String::as_str);
    let grade = |is_ok, otherwise| if is_ok { Severity::Ok } else { otherwise };
    let mut findings = Vec::new();

    findings.push(match &server.rights {
        None => finding("rights", Severity::Ok, "all that the queue needs".to_owned(), ""),
        Some((missing, fix)) => finding("rights", Severity::Failure, missing.clone(), fix),
    });
    if server.info_refused {
        let details = "INFO is refused: whether jobs outlast a crash of the server is not known".to_owned();
        let fix = "allow +info, or see for yourself that `appendonly yes` and `maxmemory-policy noeviction` are set";
        findings.push(finding("settings", Severity::Warning, details, fix));
        findings.extend(connection_findings(server, tls, timing, now));
        return findings;
    }

    let version = info("redis_version");
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let supported = (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= MIN_VERSION;
    let name = if info("server_name").is_empty() { "redis" } else { info("server_name") };
    findings.push(finding(
        "version",
        grade(supported, Severity::Failure),
        format!("{name} {version}"),
        "use Redis 6.2 or later",
    ));

    let aof =
        info("aof_enabled") == "1" || server.settings.get("appendonly").is_some_and(|value| value == "yes");
    let details = if aof {
        "every change is written to a file"
    } else {
        "a crash of the server loses every job since the last dump"
    };
    findings.push(finding(
        "append-only file",
        grade(aof, Severity::Failure),
        details.to_owned(),
        "set `appendonly yes`",
    ));

    let policy = server.settings.get("maxmemory-policy").map_or(info("maxmemory_policy"), String::as_str);
    let (keeps_jobs, details) = match policy {
        "" => (false, "the eviction policy is not told".to_owned()),
        policy => (policy == "noeviction", format!("eviction policy {policy}")),
    };
    let severity = grade(keeps_jobs, if policy.is_empty() { Severity::Warning } else { Severity::Failure });
    findings.push(finding(
        "eviction",
        severity,
        details,
        "set `maxmemory-policy noeviction`: any other one drops jobs when memory is short",
    ));

    let bytes = |name: &str| info(name).parse::<u64>().unwrap_or(0);
    let (used, limit) = (bytes("used_memory"), bytes("maxmemory"));
    let full = limit > 0 && used.saturating_mul(100) >= limit.saturating_mul(MAX_MEMORY_PERCENT);
    let details = match limit {
        0 => format!("{used} bytes used, without a limit"),
        limit => format!("{used} of {limit} bytes used"),
    };
    findings.push(finding(
        "memory",
        grade(!full, Severity::Warning),
        details,
        "raise `maxmemory`, or purge jobs that are over: a full server takes no new ones",
    ));

    let role = info("role");
    findings.push(finding(
        "role",
        grade(role == "master", Severity::Failure),
        role.to_owned(),
        "give the primary's address: a replica takes no jobs",
    ));

    findings.extend(connection_findings(server, tls, timing, now));
    findings
}

/// Checks the connection to the server, and its clock.
fn connection_findings(server: &ServerInfo, tls: bool, timing: &Timing, now: SystemTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    let grade = |is_ok, otherwise| if is_ok { Severity::Ok } else { otherwise };
    let details = if tls { "the connection is encrypted" } else { "passwords and jobs travel in the clear" };
    findings.push(finding(
        "TLS",
        grade(tls, Severity::Warning),
        details.to_owned(),
        "use rediss:// with --redis-ca-file, unless this is your own network",
    ));

    if let Some(server_time) = server.time {
        let skew =
            now.duration_since(server_time).or_else(|_| server_time.duration_since(now)).unwrap_or_default();
        let details = format!(
            "{} s from this machine's; leases of {} s go by Redis' own",
            skew.as_secs(),
            timing.lease.as_secs()
        );
        findings.push(finding(
            "clock",
            grade(skew <= MAX_CLOCK_SKEW, Severity::Warning),
            details,
            "set both by NTP",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_info(pairs: &[(&str, &str)]) -> ServerInfo {
        let info = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ServerInfo {
            info,
            settings: HashMap::new(),
            time: Some(SystemTime::UNIX_EPOCH),
            info_refused: false,
            rights: None,
        }
    }

    #[test]
    fn what_loses_jobs_is_a_failure() {
        let judged = |pairs: &[(&str, &str)], tls| {
            let findings = judge(&server_info(pairs), tls, &Timing::default(), SystemTime::UNIX_EPOCH);
            findings.into_iter().map(|finding| (finding.what, finding.severity)).collect::<Vec<_>>()
        };
        let healthy = [
            ("redis_version", "7.0.15"),
            ("aof_enabled", "1"),
            ("maxmemory_policy", "noeviction"),
            ("role", "master"),
        ];
        assert!(judged(&healthy, true).iter().all(|(_, severity)| *severity == Severity::Ok));
        let unhealthy = [
            ("redis_version", "5.0.7"),
            ("aof_enabled", "0"),
            ("maxmemory_policy", "allkeys-lru"),
            ("role", "slave"),
        ];
        let failures: Vec<&str> = judged(&unhealthy, false)
            .iter()
            .filter(|(_, severity)| *severity == Severity::Failure)
            .map(|(what, _)| *what)
            .collect();
        assert_eq!(failures, ["version", "append-only file", "eviction", "role"]);
        assert_eq!(
            judged(&healthy, false).iter().find(|(what, _)| *what == "TLS").map(|(_, severity)| *severity),
            Some(Severity::Warning)
        );
        for (used, severity) in [("79", Severity::Ok), ("80", Severity::Warning)] {
            let memory = [("maxmemory", "100"), ("used_memory", used)];
            assert!(judged(&memory, true).contains(&("memory", severity)), "{used} of 100");
        }
    }
}
