//! Takes over the plain list of servers' names that scripts kept in Redis before there were jobs.

use super::job::{Enqueued, NewJob};
use super::{Queue as _, QueueError, RedisQueue};

/// Names that one call takes at the most, so that a list which a script goes on filling ends it all the same.
pub const MOST_NAMES: u64 = 100_000;

/// What importing came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Names that became jobs.
    pub added: u64,
    /// Names whose servers had an open job already.
    pub open_already: u64,
    /// What makes no job. It is kept in a list beside the other.
    pub refused: Vec<String>,
    /// Names that are still in the list: those beyond the most that one call takes, and those that came in the meantime.
    pub left: u64,
}

/// Makes a job of each name in `list`, from its head on, of `most` names at the most, and counts those that are left.
///
/// A name is moved to a list beside it first, and leaves that one only when its job is there: whatever breaks, the next call begins with
/// what was left. So no name is lost; one whose job was added, and over, before the next call is added again.
///
/// # Errors
/// Where Redis can't be reached or refuses us.
pub async fn import_legacy(
    queue: &RedisQueue,
    list: &str,
    most: u64,
    mut job: impl FnMut(&str) -> Option<NewJob>,
) -> Result<Imported, QueueError> {
    // A hash tag would not put both into one slot, since the list's name is given: this is for a server that is no cluster.
    let (beside, refused) = (format!("{list}:snapferry-import"), format!("{list}:snapferry-refused"));
    let mut imported = Imported::default();
    for _ in 0..most {
        let left: Option<String> = queue.ask(redis::cmd("LINDEX").arg(&beside).arg(0)).await?;
        let name = match left {
            Some(name) => name,
            None => {
                match queue.ask(redis::cmd("LMOVE").arg(list).arg(&beside).arg("LEFT").arg("RIGHT")).await? {
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
        let _: u64 = queue.ask(redis::cmd("LREM").arg(&beside).arg(1).arg(&name)).await?;
    }
    for key in [list, &beside] {
        imported.left += queue.ask::<u64>(redis::cmd("LLEN").arg(key)).await?;
    }
    Ok(imported)
}
