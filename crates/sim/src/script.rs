//! Scripts of what goes wrong: lists of entries, each of which counts what it matches and acts when it is its turn.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SimError;

/// Which of the requests that match a rule it acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Every one.
    #[default]
    Always,
    /// Only this one, counted from 1.
    Nth(u32),
    /// The first so many.
    First(u32),
    /// The first so many of each target: of each part of each upload, of each key. A region has one target of each operation.
    FirstOfEach(u32),
    /// Some of them, by chance; the same ones for the same seed.
    Share {
        /// How many in a hundred.
        percent: u8,
        /// Which.
        seed: u64,
    },
}

impl When {
    /// Whether it is a request's turn, by its number among those that match, and by that among those of its target.
    pub(super) fn is_turn(self, number: u32, number_of_target: impl FnOnce() -> u32) -> bool {
        match self {
            Self::Always => true,
            Self::Nth(nth) => number == nth,
            Self::First(first) => number <= first,
            Self::FirstOfEach(first) => number_of_target() <= first,
            Self::Share { percent, seed } => Self::by_chance(seed, percent, number),
        }
    }

    /// Whether chance has it that a request is acted on, the so-and-so-many-th of those that match.
    fn by_chance(seed: u64, percent: u8, number: u32) -> bool {
        // SplitMix64 (Steele, Lea, Flood 2014): its outputs for successive states are as good as random.
        let mut state = seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % 100 < u64::from(percent)
    }
}

/// One entry of a script: a rule, what it does, and its counts.
pub(super) trait Entry {
    /// A request, as rules see it.
    type Target<'a>;
    /// What happens to it.
    type Action;
    /// Counts a request, and says whether this entry acts on it.
    fn is_due(&mut self, target: &Self::Target<'_>) -> bool;
    /// What it does, counted.
    fn act(&mut self) -> Self::Action;
    /// How often it has acted.
    fn fired(&self) -> u32;
}

/// A list of entries that can be changed while requests come in; clones share it.
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

    /// Puts entries in place of those that there are.
    pub(super) fn replace(&self, entries: Vec<E>) {
        *self.lock() = entries;
    }

    /// How often each entry has acted, in order.
    pub(super) fn fired(&self) -> Vec<u32> {
        self.lock().iter().map(Entry::fired).collect()
    }

    /// What to do with a request: the first entry whose turn it is decides. Every one sees it, so that counts don't depend on others.
    pub(super) fn pick(&self, target: &E::Target<'_>) -> Option<E::Action> {
        let mut action = None;
        for entry in self.lock().iter_mut() {
            if entry.is_due(target) && action.is_none() {
                action = Some(entry.act());
            }
        }
        action
    }

    /// The entries, for whoever shows them.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<E>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entries of a script file, as they are written.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, SimError> {
    let fail = |reason: String| SimError::Script { path: path.to_owned(), reason };
    let text = snapferry_base::given::read(path).map_err(|err| fail(err.to_string()))?;
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
