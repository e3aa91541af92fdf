//! Disks in memory, stores of two kinds, and conversions between them.

use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_base::units::{ByteCount, GuestOffset, to_u64, to_usize};
use snapferry_engine::convert::plan::{Options, Plan};
use snapferry_engine::convert::{Conversion, Target, plan_for};
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{Extent, Source, SourceError};
use snapferry_engine::store::{FolderStore, Location, ObjectKey, ObjectStore, Overwrite};
use snapferry_testkit::memory::MemoryStore;
use tokio::runtime::Runtime;

/// Disk whose bytes are in memory.
pub struct Disk {
    pub bytes: Vec<u8>,
    /// Length in which the disk reports its data in one piece, without holes.
    size: u64,
}

impl Disk {
    pub fn new(bytes: Vec<u8>) -> Self {
        let size = to_u64(bytes.len());
        Self { bytes, size }
    }
}

impl Source for Disk {
    fn name(&self) -> &str {
        "memory"
    }
    fn size(&self) -> ByteCount {
        ByteCount(self.size)
    }
    fn alignment(&self) -> usize {
        512
    }
    fn read_at(&self, at: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let rest = self.bytes.get(to_usize(at.0)..).unwrap_or_default();
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        into[len..].fill(0);
        Ok(())
    }
    fn extent_at(&self, _: GuestOffset) -> Result<Extent, SourceError> {
        Ok(Extent::Data { end: GuestOffset(self.size) })
    }
    fn settle(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

/// A store, and the folder that it needs.
pub struct Stores {
    pub store: Arc<dyn ObjectStore>,
    pub location: Location,
    /// Removes the folder at the end.
    _folder: Option<tempfile::TempDir>,
}

impl Stores {
    pub fn memory() -> Self {
        Self { store: Arc::new(MemoryStore::new("images")), location: Location::Bucket, _folder: None }
    }

    pub fn folder() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Arc::new(FolderStore::new(folder.path().to_owned()));
        Self { store, location: Location::File, _folder: Some(folder) }
    }
}

pub fn key() -> ObjectKey {
    ObjectKey::of_image("disk.qcow2").expect("a key")
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

pub fn plan(disk: &Disk, location: Location, options: &Options) -> Plan {
    plan_for(disk, options, location).expect("a plan")
}

/// Converts the disk to the key [`key`], and returns the manifest.
pub fn convert(disk: &Disk, stores: &Stores, options: &Options) -> Manifest {
    let plan = plan(disk, stores.location, options);
    let runtime = runtime();
    let conversion = Conversion {
        source: disk,
        target: Target { store: Arc::clone(&stores.store), key: key(), overwrite: Overwrite::Replace },
        plan: &plan,
        host: "a-host".to_owned(),
        clock: &SystemClock,
        cancel: Cancel::new(),
        counters: Arc::default(),
        base: None,
        refused: None,
    };
    conversion.run(runtime.handle()).expect("an image").manifest
}

/// Returns bytes of three kinds in turn, 96 KiB of each: noise, text-like bytes, zeros. Images of them hold
/// raw, compressed and unallocated clusters.
pub fn mixed(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; to_usize(len)];
    for (number, piece) in (0_u64..).zip(bytes.chunks_mut(96 << 10)) {
        for word in piece.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let random = state.to_le_bytes();
            match number % 3 {
                0 => word.copy_from_slice(&random[..word.len()]),
                1 => word.fill(random[0] & 3 | 1),
                _ => {}
            }
        }
    }
    bytes
}
