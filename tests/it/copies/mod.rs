//! Parts that are copied inside a store: every refusal and every lie of a store, files that share their
//! blocks, and what `snapferry doctor --copies` finds.

mod doctor;
mod files;
mod lies;
mod refusals;

use std::time::Duration;

use bytes::Bytes;
use snapferry_base::units::{ByteCount, to_u64, to_usize};
use snapferry_engine::hash::Crc64;
use snapferry_engine::store::{
    CopiedPart, CopySource, ObjectKey, ObjectStore, Overwrite, Part, PartNumber, Upload, UploadPlan,
};
use snapferry_s3::{Auth, S3Config, S3Store};
use snapferry_sim::{Action, Operation, Rule, SimConfig, SimStore, When};
use snapferry_testkit::store_suite::{REAL_PART, copy_source};
use tempfile::TempDir;

/// Embedded store with a base of two parts' length, and an open upload that wants to copy from it.
struct Scene {
    _folder: TempDir,
    sim: SimStore,
    bytes: Bytes,
    from: CopySource,
    upload: Upload,
}

fn plan() -> UploadPlan {
    UploadPlan { part_size: REAL_PART, overwrite: Overwrite::Replace }
}

fn noise(len: u64) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64: Marsaglia, "Xorshift RNGs".
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

impl Scene {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts a store whose script has the rules that `script` adds.
    async fn with(script: impl FnOnce(&SimStore)) -> Self {
        let folder = crate::support::folder();
        let sim = SimStore::start(SimConfig::new(folder.path())).await.unwrap();
        sim.create_bucket("images").await.unwrap();
        script(&sim);
        let (bytes, base) = (noise(2 * REAL_PART.0), ObjectKey::new("base.qcow2").unwrap());
        let store = S3Store::connect(config(&sim)).unwrap();
        store.put(&base, bytes.clone()).await.unwrap();
        let from = copy_source(&store, &base).await;
        let upload = store.create_upload(&ObjectKey::new("new.qcow2").unwrap(), &plan()).await.unwrap();
        Self { _folder: folder, sim, bytes, from, upload }
    }

    fn client(&self) -> S3Store {
        S3Store::connect(config(&self.sim)).unwrap()
    }

    /// A client that gives a copy of [`REAL_PART`] `deadline`, and one more second for each `slowest` bytes.
    fn impatient(&self, deadline: Duration, slowest: u64) -> S3Store {
        S3Store::connect(S3Config { deadline, slowest: ByteCount(slowest), ..config(&self.sim) }).unwrap()
    }

    fn fault(&self, operation: Operation, when: When, action: Action) {
        self.sim.faults().add(Rule::on(operation).when(when), action);
    }

    fn requests(&self, operation: Operation) -> u64 {
        self.sim.stats().of(operation).requests
    }

    /// Part of the least size from an odd offset of the base.
    fn wanted(&self) -> CopiedPart {
        self.part(1, 0, 777, 777 + REAL_PART.0)
    }

    fn part(&self, number: u32, at: u64, start: u64, end: u64) -> CopiedPart {
        let crc64 = Crc64::of(&self.bytes[to_usize(start)..to_usize(end)]);
        CopiedPart { number: PartNumber(number), at, range: start..end, crc64 }
    }
}

fn config(sim: &SimStore) -> S3Config {
    let auth = Auth::Hmac {
        access_key: sim.config().access_key.clone(),
        secret_key: sim.config().secret_key.clone(),
        session_token: None,
    };
    S3Config::new(&sim.endpoint(), "us-south", "images", auth)
}

fn sent(number: u32, at: u64, body: Bytes) -> Part {
    Part { number: PartNumber(number), at, crc64: Crc64::of(&body), body }
}

/// Replaces the base by other bytes of the same length.
async fn replace(store: &dyn ObjectStore, scene: &Scene) {
    let other = Bytes::from(vec![7; scene.bytes.len()]);
    assert_eq!(to_u64(other.len()), scene.from.size);
    store.put(&scene.from.key, other).await.unwrap();
}
