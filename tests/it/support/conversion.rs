//! Conversions in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_engine::convert::plan::Options;
use snapferry_engine::convert::{Conversion, Converted, Failure, Target, plan_for};
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{InUse, RawSource, Source};
use snapferry_engine::store::{FolderStore, Location, ObjectStore, Overwrite};
use snapferry_testkit::disks::Disk;
use tempfile::TempDir;

use super::{KEY, folder, key, left_in, runtime};

/// Converts in this process, to the key [`KEY`].
pub fn convert(
    source: &dyn Source,
    store: &Arc<dyn ObjectStore>,
    kind: Location,
    options: &Options,
) -> Result<Converted, Failure> {
    let plan = plan_for(source, options, kind)?;
    let runtime = runtime();
    Conversion {
        source,
        target: Target { store: Arc::clone(store), key: key(), overwrite: Overwrite::Refuse },
        plan: &plan,
        host: "a-host".to_owned(),
        clock: &SystemClock,
        cancel: Cancel::new(),
        counters: Arc::default(),
        base: None,
        refused: None,
    }
    .run(runtime.handle())
}

/// A raw disk in a file, and the image and manifest made of it.
pub struct Made {
    pub folder: TempDir,
    pub raw: PathBuf,
    pub path: PathBuf,
    pub image: Vec<u8>,
    pub manifest: Manifest,
}

/// Converts a file in this process into a file.
pub fn convert_file(raw: &Path, options: &Options) -> Made {
    let folder = folder();
    let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::new(folder.path().to_owned()));
    let source = RawSource::open(raw, InUse::Refuse).expect("a source");
    let converted = convert(&source, &store, Location::File, options)
        .unwrap_or_else(|failure| panic!("{}, {options:?}: {failure}", raw.display()));
    let path = folder.path().join(KEY);
    let image = std::fs::read(&path).expect("the image");
    let stored = std::fs::read(folder.path().join(key().manifest().as_str())).expect("the manifest");
    let manifest: Manifest = serde_json::from_slice(&stored).expect("a manifest");
    assert_eq!(manifest, converted.manifest, "the manifest that was stored and the one that was handed back");
    assert_eq!(left_in(folder.path()), [KEY, key().manifest().as_str()]);
    Made { raw: raw.to_owned(), path, image, manifest, folder }
}

/// Writes the disk into a file, and converts that file.
pub fn convert_disk(disk: &Disk, options: &Options) -> Made {
    let home = folder();
    let raw = home.path().join("disk.raw");
    disk.write(&raw).expect("a disk");
    let made = convert_file(&raw, options);
    std::fs::rename(&raw, made.folder.path().join("disk.raw")).expect("moved");
    Made { raw: made.folder.path().join("disk.raw"), ..made }
}

/// Pads the disk with zeros to whole sectors, as the guest sees it.
pub fn padded(disk: &[u8]) -> Vec<u8> {
    let mut padded = disk.to_vec();
    padded.resize(disk.len().next_multiple_of(512), 0);
    padded
}
