//! Bodies that do not decode, where finding all of them is the point.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};
use snapferry_base::units::{GuestOffset, HostOffset};

use crate::compress::DecodeError;

/// Bad bodies that are kept at most, those that come first on the disk; the others are counted.
const KEPT: usize = 16;

/// A body that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BadBody {
    /// Where its cluster lies in the disk.
    pub guest: GuestOffset,
    /// Where it lies in the file.
    pub host: HostOffset,
    /// What is wrong with it.
    #[serde(serialize_with = "words")]
    pub error: DecodeError,
}

fn words<S: Serializer>(error: &DecodeError, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(error)
}

/// Collects them from all decoders.
#[derive(Debug, Default)]
pub struct BadBodies(Mutex<(Vec<BadBody>, u64)>);

impl BadBodies {
    pub(super) fn add(&self, body: BadBody) {
        let mut found = self.found();
        let (kept, count) = &mut *found;
        *count += 1;
        let at = kept.partition_point(|other| other.guest < body.guest);
        if at < KEPT {
            kept.insert(at, body);
            kept.truncate(KEPT);
        }
    }

    /// The first ones on the disk, in order, and how many there are in all.
    #[must_use]
    pub fn first(&self) -> (Vec<BadBody>, u64) {
        self.found().clone()
    }

    fn found(&self) -> MutexGuard<'_, (Vec<BadBody>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
