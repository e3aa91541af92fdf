//! Common part of commands that read all of an image: they open it and find its manifest.

use std::path::Path;
use std::sync::Arc;

use snapferry_engine::error::RestoreError;
use snapferry_engine::image::ManifestError;
use snapferry_engine::image::plan::Options;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::store::Location;
use snapferry_engine::store::{ObjectKey, StoreError};
use snapferry_qcow2::Limits;
use tokio::runtime::Runtime;

use super::image::{self, ImageArgs, ObjectRef, OpenImage};
use super::session::Session;
use super::signals::Unfinished;
use crate::cli::args::ReadingArgs;
use crate::cli::error::CommandResult;

/// Longest manifest in bytes: that of a disk of 64 TiB takes 800 MiB, one of 1 TiB 12 MiB.
const LONGEST_MANIFEST: u64 = 1 << 30;

/// Open image, with its manifest and the options for reading it.
pub struct Opened {
    /// Runtime of the store's requests, which ends with this value.
    _runtime: Runtime,
    pub image: OpenImage,
    pub location: Location,
    pub manifest: Option<Manifest>,
    pub options: Options,
    pub limits: Limits,
}

impl Opened {
    /// Opens the image that the arguments name, and its manifest.
    pub fn open(
        image: &ImageArgs,
        reading: &ReadingArgs,
        unfinished: Unfinished,
        session: &Session,
    ) -> CommandResult<Self> {
        let name = image.name()?;
        let runtime = session.start(unfinished)?;
        let location = name.location();
        let connections = reading.connections.map_or(location.connections(), std::num::NonZeroUsize::get);
        let image = image::open(&name, &image.store, connections, &runtime, session)?;
        let manifest = find_manifest(reading.manifest.as_deref(), &image, &runtime)?;
        let options =
            Options { threads: reading.threads, connections: reading.connections, ..Options::default() };
        let limits = Limits { largest_disk: reading.max_size, ..Limits::default() };
        Ok(Self { _runtime: runtime, image, location, manifest, options, limits })
    }
}

/// Returns the manifest that the user named, or the one beside the image; none if there is none, or the user
/// wants none.
fn find_manifest(
    requested: Option<&Path>,
    image: &OpenImage,
    runtime: &Runtime,
) -> CommandResult<Option<Manifest>> {
    let named;
    let object = match requested {
        Some(path) if path.as_os_str() == "none" => return Ok(None),
        Some(path) => {
            named = image::folder_of(path).ok_or_else(|| {
                super::error::UsageError(format!("--manifest {}: there is no such file", path.display()))
            })?;
            ObjectRef { store: Arc::clone(&named.store), key: named.key.clone() }
        }
        None => match &image.object {
            Some(object) => ObjectRef { store: Arc::clone(&object.store), key: object.key.manifest() },
            None => return Ok(None),
        },
    };
    let name = object.store.url(&object.key);
    let Some(json) = runtime.block_on(read_small(&object, &object.key))? else { return Ok(None) };
    let unusable = |reason: String| RestoreError::Unusable {
        name: name.clone(),
        source: ManifestError::Unreadable { reason },
    };
    let manifest = Manifest::from_json(&json).map_err(|error| unusable(error.to_string()))?;
    Ok(Some(manifest))
}

async fn read_small(object: &ObjectRef, key: &ObjectKey) -> Result<Option<bytes::Bytes>, StoreError> {
    let Some(meta) = object.store.head(key).await? else { return Ok(None) };
    let len = meta.size.min(LONGEST_MANIFEST);
    object.store.get_range(key, 0..len, Some(&meta.etag)).await.map(Some)
}
