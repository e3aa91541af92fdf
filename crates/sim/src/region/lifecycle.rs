//! Lifecycle of a resource: its state changes with time. A request sets the next state and its time; both are
//! saved with the resource, so that they survive a restart.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::timestamp::Timestamp;

/// Next step in a resource's lifecycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Turn {
    /// Change into this state.
    Into(String),
    /// Removal of the resource.
    Gone,
}

/// Properties that every resource has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lifecycle {
    pub id: String,
    pub name: String,
    pub created: Timestamp,
    pub state: String,
    /// Time of the next state, and the state.
    pub next: Option<(Timestamp, Turn)>,
    /// Number of jobs that must end before the next state: a copy of a disk, the reading of an object.
    pub work: u32,
    /// Reasons for the state: codes and messages.
    pub reasons: Vec<(String, String)>,
    /// Time from which lists show it.
    pub listed_from: Timestamp,
    /// Number of changes, for ETags.
    pub version: u64,
    /// True if a fault script keeps it in its first state.
    pub stuck: bool,
    /// Reason code with which a fault script makes it fail.
    pub doomed: Option<String>,
}

impl Lifecycle {
    pub(super) fn new(id: String, name: String, state: &str, now: Timestamp) -> Self {
        Self {
            id,
            name,
            created: now,
            state: state.to_owned(),
            next: None,
            work: 0,
            reasons: Vec::new(),
            listed_from: now,
            version: 1,
            stuck: false,
            doomed: None,
        }
    }

    pub(super) fn then(mut self, into: &str, at: Timestamp) -> Self {
        self.next = Some((at, Turn::Into(into.to_owned())));
        self
    }

    /// Changes into `state` now, and schedules `turn`.
    pub(super) fn enter(&mut self, state: &str, at: Timestamp, turn: Turn) {
        state.clone_into(&mut self.state);
        self.next = Some((at, turn));
        self.version += 1;
    }

    /// Changes into a state that has no next one.
    pub(super) fn set_final_state(&mut self, state: &str) {
        state.clone_into(&mut self.state);
        self.next = None;
        self.version += 1;
    }

    /// Applies the next step if it is due, and returns it.
    pub(super) fn apply_due(&mut self, now: Timestamp) -> Option<Turn> {
        let gone = matches!(self.next, Some((_, Turn::Gone)));
        if self.work > 0 || (self.stuck && !gone) || self.next.as_ref().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (_, turn) = self.next.take()?;
        self.version += 1;
        if let (Turn::Into(_), Some(reason)) = (&turn, self.doomed.take()) {
            "failed".clone_into(&mut self.state);
            self.reasons = vec![(reason, "scripted failure".to_owned())];
            return Some(Turn::Into("failed".to_owned()));
        }
        if let Turn::Into(state) = &turn {
            state.clone_into(&mut self.state);
        }
        Some(turn)
    }

    pub(super) fn etag(&self) -> String {
        format!("W/\"{}-{}\"", self.id, self.version)
    }

    pub(super) fn reasons(&self) -> Value {
        self.reasons
            .iter()
            .map(|(code, message)| json!({ "code": code, "message": message, "more_info": "https://cloud.ibm.com/docs/vpc" }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_once_and_not_before_its_work_is_done() {
        let now = Timestamp::now();
        let mut life = Lifecycle::new("1".into(), "a".into(), "pending", now)
            .then("stable", now.after(Duration::from_secs(1)));
        assert_eq!(life.apply_due(now), None);
        let later = now.after(Duration::from_secs(2));
        life.work = 1;
        assert_eq!(life.apply_due(later), None);
        life.work = 0;
        assert_eq!(life.apply_due(later), Some(Turn::Into("stable".to_owned())));
        assert_eq!((life.apply_due(later), life.state.as_str()), (None, "stable"));
    }

    #[test]
    fn what_is_stuck_can_still_be_deleted() {
        let now = Timestamp::now();
        let mut life = Lifecycle::new("1".into(), "a".into(), "pending", now).then("stable", now);
        life.stuck = true;
        assert_eq!(life.apply_due(now), None);
        life.enter("deleting", now, Turn::Gone);
        assert_eq!(life.apply_due(now), Some(Turn::Gone));
    }
}
