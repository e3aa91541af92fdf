//! Fault scripts: lists of entries. Each entry counts the requests that match it, and acts when it is its
//! turn.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SimError;

/// Selects the requests on which a rule acts, among those that match it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// All that match.
    #[default]
    Always,
    /// Only the one with this number, counted from 1.
    Nth(u32),
    /// As many as this number, from the first on.
    First(u32),
    /// As many as this number from the first on, for each target: for each part of each upload, for each key.
    /// A rule of a cloud has a single target, so there it is the same as `First`.
    FirstOfEach(u32),
    /// Some of them, by chance; the same ones for the same seed.
    Share {
        /// Probability in per cent.
        percent: u8,
        seed: u64,
    },
}

impl When {
    /// True if the rule acts on a request, by its number among those that match, and by its number among
    /// those of the same target.
    pub(super) fn is_turn(self, number: u32, number_of_target: impl FnOnce() -> u32) -> bool {
        match self {
            Self::Always => true,
            Self::Nth(nth) => number == nth,
            Self::First(first) => number <= first,
            Self::FirstOfEach(first) => number_of_target() <= first,
            Self::Share { percent, seed } => Self::by_chance(seed, percent, number),
        }
    }

    /// True if the rule acts by chance on the request with this number among those that match.
    fn by_chance(seed: u64, percent: u8, number: u32) -> bool {
        // SplitMix64 (Steele, Lea, Flood 2014): its outputs for successive states are as good as random.
        let mut state = seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % 100 < u64::from(percent)
    }
}

/// One entry of a script: a rule, its action, and its counts.
pub(super) trait Entry {
    /// Request in the form that rules are matched against.
    type Target<'a>;
    /// Fault that the entry injects.
    type Action;
    /// Counts a request if it matches, and returns true if it is this entry's turn to act.
    fn is_due(&mut self, target: &Self::Target<'_>) -> bool;
    /// Returns the action, and counts it.
    fn act(&mut self) -> Self::Action;
    /// Returns the number of times that the entry has acted.
    fn fired(&self) -> u32;
}

/// List of entries that can be changed while requests come in; clones share it.
#[derive(Debug)]
pub(super) struct Script<E> {
    entries: Arc<Mutex<Vec<E>>>,
}

impl<E> Clone for Script<E> {
    fn clone(&self) -> Self {
        Self { entries: Arc::clone(&self.entries) }
    }
}

impl<E> Default for Script<E> {
    fn default() -> Self {
        Self { entries: Arc::default() }
    }
}

impl<E: Entry> Script<E> {
    /// Adds entries at the end.
    pub(super) fn extend(&self, entries: impl IntoIterator<Item = E>) {
        self.lock().extend(entries);
    }

    /// Replaces all entries.
    pub(super) fn replace(&self, entries: Vec<E>) {
        *self.lock() = entries;
    }

    /// Returns the number of times that each entry has acted, in order.
    pub(super) fn fired(&self) -> Vec<u32> {
        self.lock().iter().map(Entry::fired).collect()
    }

    /// Returns the action for a request: that of the first entry whose turn it is. All entries see the
    /// request, so that the counts of one don't depend on the others.
    pub(super) fn pick(&self, target: &E::Target<'_>) -> Option<E::Action> {
        let mut action = None;
        for entry in self.lock().iter_mut() {
            if entry.is_due(target) && action.is_none() {
                action = Some(entry.act());
            }
        }
        action
    }

    /// Locks the entries, for a caller that shows them.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<E>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the entries of a script file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, SimError> {
    let fail = |reason: String| SimError::Script { path: path.to_owned(), reason };
    let text = snapferry_base::user_file::read(path).map_err(|err| fail(err.to_string()))?;
    serde_json::from_slice(&text).map_err(|err| fail(err.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_strikes_as_often_as_it_is_told() {
        let struck = |seed| (0..10_000).filter(|&number| When::by_chance(seed, 5, number)).count();
        assert!(
            (450..550).contains(&struck(1)) && (450..550).contains(&struck(2)),
            "{} {}",
            struck(1),
            struck(2)
        );
    }
}
