//! What commands that read all of an image share: opening it, and finding its manifest.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Runtime;

use super::args::ReadingArgs;
use super::image::{self, ImageArgs, OpenImage, Shelf};
use super::signals::{self, Left};
use crate::cancel::Cancel;
use crate::manifest::Manifest;
use crate::qcow2::Limits;
use crate::restore::plan::{Options, Origin};
use crate::restore::{ManifestError, RestoreError};
use crate::store::{ObjectKey, StoreError};

/// A manifest may be so long: that of a disk of 64 TiB takes 800 MiB, one of 1 TiB 12 MiB.
const LONGEST_MANIFEST: u64 = 1 << 30;

/// An image that is about to be read.
pub struct Opened {
    /// Runs the store's requests, and ends with us.
    _runtime: Runtime,
    pub cancel: Cancel,
    pub image: OpenImage,
    pub origin: Origin,
    pub manifest: Option<Manifest>,
    pub options: Options,
    pub limits: Limits,
}

impl Opened {
    /// Opens what was named, and what lies beside it.
    pub fn open(image: &ImageArgs, reading: &ReadingArgs, left: Left) -> anyhow::Result<Self> {
        let name = image.name()?;
        let runtime = super::runtime()?;
        let cancel = Cancel::new();
        signals::listen(runtime.handle(), &cancel, left)?;
        let origin = name.origin();
        let connections = reading.connections.map_or(origin.connections(), std::num::NonZeroUsize::get);
        let image = image::open(&name, &image.store, connections, &runtime, &cancel)?;
        let manifest = find_manifest(reading.manifest.as_deref(), &image, &runtime)?;
        let options = Options { threads: reading.threads, connections: reading.connections, ..Options::default() };
        let limits = Limits { largest_disk: reading.max_size, ..Limits::default() };
        Ok(Self { _runtime: runtime, cancel, image, origin, manifest, options, limits })
    }
}

/// The manifest that was named, or the one beside the image; none where there is none, or none was wanted.
fn find_manifest(asked: Option<&Path>, image: &OpenImage, runtime: &Runtime) -> anyhow::Result<Option<Manifest>> {
    let beside;
    let shelf = match asked {
        Some(path) if path.as_os_str() == "none" => return Ok(None),
        Some(path) => {
            beside = image::folder_of(path)
                .ok_or_else(|| super::exit::UsageError(format!("--manifest {}: there is no such file", path.display())))?;
            Shelf { store: Arc::clone(&beside.store), key: beside.key.clone() }
        }
        None => match &image.shelf {
            Some(shelf) => Shelf { store: Arc::clone(&shelf.store), key: shelf.key.manifest() },
            None => return Ok(None),
        },
    };
    let name = shelf.store.url(&shelf.key);
    let Some(json) = runtime.block_on(read_small(&shelf, &shelf.key))? else { return Ok(None) };
    let unusable = |reason: String| RestoreError::Unusable { name: name.clone(), source: ManifestError::Unreadable { reason } };
    let manifest = Manifest::from_json(&json).map_err(|error| unusable(error.to_string()))?;
    Ok(Some(manifest))
}

async fn read_small(shelf: &Shelf, key: &ObjectKey) -> Result<Option<bytes::Bytes>, StoreError> {
    let Some(meta) = shelf.store.head(key).await? else { return Ok(None) };
    let len = meta.size.min(LONGEST_MANIFEST);
    shelf.store.get_range(key, 0..len, Some(&meta.etag)).await.map(Some)
}
