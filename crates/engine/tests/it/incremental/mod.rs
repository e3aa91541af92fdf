//! Conversions that take from an older image what did not change: the image is the one of a full run, and
//! whatever goes wrong ends in a full run or in an error.

mod faults;
mod identity;
mod liar;

use std::num::NonZeroUsize;
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::{Clock as _, SystemClock};
use snapferry_base::units::{MIB, to_usize};
use snapferry_engine::convert::counters::Counters;
use snapferry_engine::convert::plan::{Options, Plan, Reuse};
use snapferry_engine::convert::{Conversion, Converted, Failure, Target};
use snapferry_engine::image::base::{Base, BaseRequirements, RequiredProof};
use snapferry_engine::store::{Location, ObjectKey, ObjectStore, Overwrite};
use tokio::runtime::Runtime;

use crate::support::{Disk, plan, runtime};

/// Bytes of a segment.
const SEGMENT: usize = 16 << 20;

fn key(name: &str) -> ObjectKey {
    ObjectKey::of_image(name).expect("a key")
}

/// Returns options for a run that may use an older image, or make one.
fn options() -> Options {
    Options { reuse: Reuse::Unchanged, threads: NonZeroUsize::new(2), ..Options::default() }
}

/// Disk of six segments: noise, repeated bytes and zeros in turn, four segments with noise alone, and a short
/// last segment of the first kind. Its image is large enough to be a base.
fn disk() -> Vec<u8> {
    let mut bytes = crate::support::mixed(5 * 16 * MIB + 3 * MIB + 1024, 7);
    let noise = noise(4 * SEGMENT - mib(1), 1);
    bytes[SEGMENT..SEGMENT + noise.len()].copy_from_slice(&noise);
    bytes
}

/// Returns bytes that no codec makes shorter.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; len];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes
}

/// A conversion into a store.
struct Run<'a> {
    store: &'a Arc<dyn ObjectStore>,
    location: Location,
    options: Options,
    counters: Arc<Counters>,
    cancel: Cancel,
    runtime: Runtime,
}

impl<'a> Run<'a> {
    fn new(store: &'a Arc<dyn ObjectStore>, location: Location, options: Options) -> Self {
        let (counters, cancel) = (Arc::default(), Cancel::new());
        Self { store, location, options, counters, cancel, runtime: runtime() }
    }

    fn plan(&self, disk: &Disk) -> Plan {
        plan(disk, self.location, &self.options)
    }

    /// Converts the disk to `to`, with the image `from` as its base.
    fn convert(&self, disk: &[u8], to: &str, from: Option<&str>) -> Result<Converted, Failure> {
        let disk = Disk::new(disk.to_vec());
        let plan = self.plan(&disk);
        let base = from.map(|from| self.base(from, &plan));
        self.convert_with(&disk, &plan, to, base)
    }

    fn convert_with(
        &self,
        disk: &Disk,
        plan: &Plan,
        to: &str,
        base: Option<Arc<Base>>,
    ) -> Result<Converted, Failure> {
        let conversion = Conversion {
            source: disk,
            target: Target { store: Arc::clone(self.store), key: key(to), overwrite: Overwrite::Replace },
            plan,
            host: "a-host".to_owned(),
            clock: &SystemClock,
            cancel: self.cancel.clone(),
            counters: Arc::clone(&self.counters),
            base,
            refused: None,
        };
        conversion.run(self.runtime.handle())
    }

    fn base(&self, from: &str, plan: &Plan) -> Arc<Base> {
        let requirements = BaseRequirements {
            encoder: plan.encoder_record(),
            proof: RequiredProof::Made,
            now: SystemClock.now(),
        };
        let from = key(from);
        let loaded = self.runtime.block_on(Base::load(&**self.store, &from, &requirements));
        Arc::new(loaded.expect("a base"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let size = self.head(name).expect("an object");
        self.runtime.block_on(self.store.get_range(&key(name), 0..size, None)).expect("read").to_vec()
    }

    /// Returns the size of an object.
    fn head(&self, name: &str) -> Option<u64> {
        self.runtime.block_on(self.store.head(&key(name))).expect("asked").map(|meta| meta.size)
    }

    /// Number of uploads that are open.
    fn uploads(&self) -> usize {
        self.runtime.block_on(self.store.list_uploads("")).expect("listed").len()
    }
}

fn mib(count: u64) -> usize {
    to_usize(count * MIB)
}
