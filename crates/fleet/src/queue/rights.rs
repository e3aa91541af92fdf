//! Rights that a Redis user needs, in one list: for setting up the user, for the check of its rights, and for
//! tests.

use super::QueueError;
use super::connection::PASSING;
use super::text::Text;

/// Commands that a queue needs, as an ACL names them.
pub const NEEDED: [&str; 19] = [
    "evalsha",
    "script|load",
    "time",
    "exists",
    "del",
    "hget",
    "hgetall",
    "hset",
    "hsetnx",
    "hdel",
    "zadd",
    "zrem",
    "zcard",
    "zrange",
    "zrevrange",
    "zrangebyscore",
    "xadd",
    "xrevrange",
    // Needed for databases other than 0.
    "select",
];

/// Commands that the queue can do without if they are refused. `INFO` shows reliably if the server has
/// restarted; without it, each new connection counts as a restart. `CLIENT SETNAME` gives a connection the
/// name by which `CLIENT LIST` shows it.
pub const OPTIONAL: [&str; 2] = ["info", "client|setname"];

/// Returns the `redis-cli` command that sets up a user with these rights and no others. Keys begin with
/// `{prefix}:`.
#[must_use]
pub fn acl_line(user: &str, prefix: &str) -> String {
    let commands: Vec<String> = NEEDED.iter().chain(&OPTIONAL).map(|command| format!("+{command}")).collect();
    format!("ACL SETUSER {user} on '>PASSWORD' resetkeys '~{{{prefix}}}:*' -@all {}", commands.join(" "))
}

/// Turns the result of the rights check into an error. `refused` alternates between commands and messages of
/// the server.
pub(super) fn judge(address: &str, refused: &[Text]) -> Result<(), QueueError> {
    let refused: Vec<(&str, &str)> =
        refused.chunks_exact(2).map(|pair| (pair[0].0.as_str(), pair[1].0.as_str())).collect();
    let Some((_, first)) = refused.first() else { return Ok(()) };
    // Not a lack of rights: the server is full, for example, or a replica.
    let code = first.split_whitespace().next().unwrap_or_default().trim_start_matches('-');
    let address = address.to_owned();
    if PASSING.contains(&code) {
        return Err(QueueError::Unavailable { address, reason: (*first).to_owned() });
    }
    let commands: Vec<&str> = refused.iter().map(|(command, _)| *command).collect();
    Err(QueueError::Rights { address, missing: format!("{} ({first})", commands.join(", ")) })
}

#[cfg(test)]
mod tests {
    use snapferry_base::retry::Class;

    use super::*;

    #[test]
    fn what_is_refused_is_named_and_what_passes_is_no_missing_right() {
        let text = |words: &[&str]| words.iter().map(|word| Text((*word).to_owned())).collect::<Vec<_>>();
        assert!(judge("there", &[]).is_ok());
        let full =
            judge("there", &text(&["HSET", "OOM command not allowed when used memory > 'maxmemory'."]))
                .expect_err("full");
        assert_eq!(full.class(), Class::Transient);
        let refused = judge("there", &text(&["XADD", "ERR no permission", "DEL", "ERR no permission"]))
            .expect_err("refused");
        assert_eq!(refused.class(), Class::Permanent);
        assert_eq!(
            refused.to_string(),
            "Redis at there: its user lacks rights: XADD, DEL (ERR no permission)"
        );
    }
}
