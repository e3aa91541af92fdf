//! Import of the plain list of server names that scripts kept in Redis before there were jobs.

use snapferry_base::units::to_u64;

use super::job::{Enqueued, NewJob};
use super::{Queue as _, QueueError, RedisQueue};

/// Largest number of names for one call, so that it ends even if a script goes on filling the list.
pub const MAX_NAMES: u64 = 100_000;

/// Result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Number of names that became jobs.
    pub added: u64,
    /// Number of names whose servers had an open job already.
    pub open_already: u64,
    /// Names that make no job. They are kept in a separate list.
    pub refused: Vec<String>,
    /// Number of names still in the list: those beyond the limit of one call, and those added in the
    /// meantime.
    pub left: u64,
}

/// Returns the first `limit` names that [`import_legacy`] would make jobs from, and changes nothing.
///
/// # Errors
/// If Redis can't be reached or refuses a request.
pub async fn legacy_names(queue: &RedisQueue, list: &str, limit: u64) -> Result<Vec<String>, QueueError> {
    let mut names = Vec::new();
    for key in [&pending_of(list), list] {
        let room = limit.saturating_sub(to_u64(names.len()));
        if room > 0 {
            let found: Vec<String> = queue.ask(redis::cmd("LRANGE").arg(key).arg(0).arg(room - 1)).await?;
            names.extend(found);
        }
    }
    Ok(names)
}

/// Returns the name of the list that holds the names that are being imported.
fn pending_of(list: &str) -> String {
    format!("{list}:snapferry-import")
}

/// Makes jobs from the first `limit` names in `list`, and counts the names that are left.
///
/// A name is first moved to a second list, and is removed from there only after its job has been added. After
/// an interruption, the next call begins with that second list. So no name is lost. If a job was added, and
/// is over before the next call, it is added again.
///
/// # Errors
/// If Redis can't be reached or refuses a request.
pub async fn import_legacy(
    queue: &RedisQueue,
    list: &str,
    limit: u64,
    mut job: impl FnMut(&str) -> Option<NewJob>,
) -> Result<Imported, QueueError> {
    // A hash tag can't put both lists into one slot, because the name of the first is given. So the import
    // works only on a server that is not a cluster.
    let (pending, refused) = (pending_of(list), format!("{list}:snapferry-refused"));
    let mut imported = Imported::default();
    for _ in 0..limit {
        let interrupted: Option<String> = queue.ask(redis::cmd("LINDEX").arg(&pending).arg(0)).await?;
        let name = match interrupted {
            Some(name) => name,
            None => {
                match queue.ask(redis::cmd("LMOVE").arg(list).arg(&pending).arg("LEFT").arg("RIGHT")).await? {
                    Some(name) => name,
                    None => break,
                }
            }
        };
        match job(&name) {
            Some(job) => match queue.enqueue(&job).await? {
                Enqueued::Added => imported.added += 1,
                Enqueued::OpenAlready(_) => imported.open_already += 1,
            },
            None => {
                let _: u64 = queue.ask(redis::cmd("RPUSH").arg(&refused).arg(&name)).await?;
                imported.refused.push(name.clone());
            }
        }
        let _: u64 = queue.ask(redis::cmd("LREM").arg(&pending).arg(1).arg(&name)).await?;
    }
    for key in [list, &pending] {
        imported.left += queue.ask::<u64>(redis::cmd("LLEN").arg(key)).await?;
    }
    Ok(imported)
}
