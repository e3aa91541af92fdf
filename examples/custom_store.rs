//! A store of one's own: everything that implements [`ObjectStore`] can take an image. This one keeps objects
//! in a folder and prints each request that changes something.
//!
//! ```sh
//! cargo run --release --example custom_store -- disk.raw images disk.qcow2
//! ```

#![allow(clippy::print_stdout)]

use std::env;
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_engine::convert::plan::Options;
use snapferry_engine::convert::{Conversion, Target, plan_for};
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::store::{
    CopiedPart, CopySource, ETag, ExpectedObject, FolderStore, ListedObject, Location, ObjectKey, ObjectMeta,
    ObjectStore, OpenUpload, Overwrite, Part, StoreError, StoredPart, Upload, UploadPlan,
};

/// Prints what changes, and hands every request on.
struct Announced(FolderStore);

#[async_trait]
impl ObjectStore for Announced {
    fn url(&self, key: &ObjectKey) -> String {
        self.0.url(key)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, StoreError> {
        self.0.head(key).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        println!("put {key}: {} bytes", body.len());
        self.0.put(key, body).await
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        version: Option<&ETag>,
    ) -> Result<Bytes, StoreError> {
        self.0.get_range(key, range, version).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        println!("delete {key}");
        self.0.delete(key).await
    }

    async fn create_upload(&self, key: &ObjectKey, plan: &UploadPlan) -> Result<Upload, StoreError> {
        println!("begin {key}, in parts of {}", plan.part_size);
        self.0.create_upload(key, plan).await
    }

    async fn put_part(&self, upload: &Upload, part: Part) -> Result<StoredPart, StoreError> {
        println!("part {} of {}: {} bytes", part.number.0, upload.key, part.body.len());
        self.0.put_part(upload, part).await
    }

    async fn copy_part(
        &self,
        upload: &Upload,
        part: CopiedPart,
        from: &CopySource,
    ) -> Result<StoredPart, StoreError> {
        println!("part {} of {}: {} bytes of {}", part.number.0, upload.key, part.len(), from.key);
        self.0.copy_part(upload, part, from).await
    }

    fn proves(&self, stored: &StoredPart, part: &Part) -> bool {
        self.0.proves(stored, part)
    }

    async fn list_parts(&self, upload: &Upload) -> Result<Vec<StoredPart>, StoreError> {
        self.0.list_parts(upload).await
    }

    async fn complete(
        &self,
        upload: &Upload,
        parts: &[StoredPart],
        whole: &ExpectedObject,
    ) -> Result<(), StoreError> {
        println!("complete {}: {} bytes in {} parts", upload.key, whole.size, parts.len());
        self.0.complete(upload, parts, whole).await
    }

    async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        println!("abort {}", upload.key);
        self.0.abort(upload).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.0.list(prefix).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.0.list_uploads(prefix).await
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [disk, folder, key] = args.as_slice() else {
        return Err("usage: custom_store DISK FOLDER KEY".into());
    };
    let source = RawSource::open(Path::new(disk), InUse::Refuse)?;
    let plan = plan_for(&source, &Options::default(), Location::File)?;
    let target = Target {
        store: Arc::new(Announced(FolderStore::new(folder.into()))),
        key: ObjectKey::of_image(key)?,
        overwrite: Overwrite::Refuse,
    };
    let conversion = Conversion {
        source: &source,
        target,
        plan: &plan,
        host: "example".to_owned(),
        clock: &SystemClock,
        cancel: Cancel::new(),
        counters: Arc::default(),
        base: None,
        refused: None,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let converted = conversion.run(runtime.handle())?;
    println!("{} is complete", converted.url);
    Ok(())
}
