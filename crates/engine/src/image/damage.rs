//! Collection of bodies that do not decode, for operations that must find all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};
use snapferry_base::units::{GuestOffset, HostOffset};

use crate::compress::DecodeError;

/// Most bad bodies that are kept, the first ones on the disk. The others are only counted.
const KEPT: usize = 16;

/// Body that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BadBody {
    /// Offset of the cluster in the disk.
    pub guest: GuestOffset,
    /// Offset of the body in the file.
    pub host: HostOffset,
    /// Reason why the body does not decode.
    #[serde(serialize_with = "as_text")]
    pub error: DecodeError,
}

fn as_text<S: Serializer>(error: &DecodeError, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(error)
}

/// Collection of bad bodies, filled by all decoders.
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

    /// Returns the first bad bodies on the disk in order, and the number of all of them.
    #[must_use]
    pub fn first(&self) -> (Vec<BadBody>, u64) {
        self.found().clone()
    }

    fn found(&self) -> MutexGuard<'_, (Vec<BadBody>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
