//! Jobs that outlast a request: copies of disks, imports that read and hash an image, exports that write an
//! object.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use snapferry_base::units::GIB;
use snapferry_engine::image::LocalImage;
use snapferry_qcow2::{Image as Qcow2, Limits};

use super::super::timestamp::Timestamp;
use super::config::RegionConfig;
use super::disks;
use super::front::Front;
use super::images::Image;
use super::state::{CloudState, Region};
use crate::store::put_file;

/// Bytes in one read of an object.
const READ_SIZE: usize = 1 << 20;
/// Size of the largest image, in GB (IBM's documentation of custom images).
const MAX_IMAGE: u64 = 250;
/// Time between two checks whether a queued import may begin.
const QUEUE_POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
enum Kind {
    TakeSnapshot,
    FillVolume,
    Import,
    Export,
}

/// Job for one resource.
#[derive(Clone, Debug)]
pub(super) struct Job {
    kind: Kind,
    region: String,
    id: String,
}

/// Error of an import: IBM's reason code, and a message.
type ImportError = (&'static str, String);

impl Job {
    fn new(kind: Kind, region: &str, id: &str) -> Self {
        Self { kind, region: region.to_owned(), id: id.to_owned() }
    }

    pub fn take_snapshot(region: &str, id: &str) -> Self {
        Self::new(Kind::TakeSnapshot, region, id)
    }

    pub fn fill_volume(region: &str, id: &str) -> Self {
        Self::new(Kind::FillVolume, region, id)
    }

    pub fn import(region: &str, id: &str) -> Self {
        Self::new(Kind::Import, region, id)
    }

    pub fn export(region: &str, id: &str) -> Self {
        Self::new(Kind::Export, region, id)
    }

    /// Returns the jobs that a stop of the process has interrupted.
    pub fn unfinished(cloud: &mut CloudState) -> Vec<Self> {
        let mut jobs = Vec::new();
        for (name, region) in &cloud.regions {
            let snapshots = region.snapshots.values().filter(|resource| resource.life.work > 0);
            jobs.extend(snapshots.map(|resource| Self::take_snapshot(name, &resource.life.id)));
            let volumes = region.volumes.values().filter(|resource| resource.life.work > 0);
            jobs.extend(volumes.map(|resource| Self::fill_volume(name, &resource.life.id)));
            let images = region.images.values().filter(|resource| resource.life.work > 0);
            jobs.extend(images.map(|resource| Self::import(name, &resource.life.id)));
            let exports = region.exports.values().filter(|resource| resource.life.work > 0);
            jobs.extend(exports.map(|resource| Self::export(name, &resource.life.id)));
        }
        jobs
    }

    /// Starts the job on a blocking thread.
    pub fn spawn(self, front: &Arc<Front>) {
        let front = Arc::clone(front);
        tokio::task::spawn_blocking(move || self.run(&front));
    }

    fn run(&self, front: &Front) {
        let done = match self.kind {
            Kind::TakeSnapshot => self.take(front),
            Kind::FillVolume => self.fill(front),
            Kind::Import => return self.finish_import(front),
            Kind::Export => return self.finish_export(front),
        };
        front.with_cloud(|cloud| {
            let Some(life) = cloud.life(&self.id) else { return };
            life.work = 0;
            if let Err(err) = done {
                tracing::warn!(%err, id = self.id, "a simulated disk could not be copied");
                life.set_final_state("failed");
                life.reasons = vec![("internal_error".to_owned(), err.to_string())];
            }
        });
    }

    /// Reads something of the region. Returns an error if it is gone, instead of waiting for it.
    fn read_region<T>(&self, front: &Front, read: impl FnOnce(&Region) -> Option<T>) -> io::Result<T> {
        let found = front.with_cloud(|cloud| cloud.regions.get(&self.region).and_then(read));
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is gone"))
    }

    fn take(&self, front: &Front) -> io::Result<()> {
        let folder = &front.config.folder;
        let (to, capacity, source, copy_of) = self.read_region(front, |region| {
            let snapshot = region.snapshots.get(&self.id)?;
            let volume = region.volumes.get(&snapshot.source_volume).map(|volume| volume.file(folder));
            Some((snapshot.file(folder), snapshot.capacity, volume, snapshot.copy_of.clone()))
        })?;
        let from = match copy_of {
            None => source,
            Some((region, id)) => {
                front.with_cloud(|cloud| Some(cloud.regions.get(&region)?.snapshots.get(&id)?.file(folder)))
            }
        };
        let from = from.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its source is gone"))?;
        disks::copy(&from, &to, capacity * GIB)?;
        front.with_cloud(|cloud| {
            let snapshot =
                cloud.regions.get_mut(&self.region).and_then(|region| region.snapshots.get_mut(&self.id));
            if let Some(snapshot) = snapshot {
                snapshot.captured.get_or_insert(Timestamp::now());
            }
        });
        Ok(())
    }

    fn fill(&self, front: &Front) -> io::Result<()> {
        let folder = &front.config.folder;
        let (to, capacity, snapshot, image) = self.read_region(front, |region| {
            let volume = region.volumes.get(&self.id)?;
            // If the snapshot is gone, the volume must fail: filled with zeros it would look restored.
            let snapshot = match &volume.source_snapshot {
                Some(id) => Some(region.snapshots.get(id)?.file(folder)),
                None => None,
            };
            let server = region
                .attachments
                .values()
                .find(|attachment| attachment.boot && attachment.volume == self.id);
            let image =
                server.and_then(|attachment| region.instances.get(&attachment.instance)?.image.clone());
            Some((volume.file(folder), volume.capacity, snapshot, image))
        })?;
        match (snapshot, image.map(|id| Image::file_path(folder, &id))) {
            (Some(from), _) => disks::copy(&from, &to, capacity * GIB),
            (None, Some(image)) if image.exists() => disks::unpack(&image, &to, capacity * GIB),
            _ => disks::blank(&to, capacity * GIB),
        }
    }

    /// Imports an image as IBM's image service does: reads and hashes the whole object, keeps a copy, and
    /// checks the disk in it.
    fn finish_import(&self, front: &Front) {
        let imported = self.import_object(front);
        front.with_cloud(|cloud| {
            let image =
                cloud.regions.get_mut(&self.region).and_then(|region| region.images.get_mut(&self.id));
            let Some(image) = image else { return };
            image.life.work = 0;
            image.life.reasons.clear();
            match imported {
                Ok((sha256, bytes, gigabytes)) => {
                    image.sha256 = Some(sha256);
                    image.file_size = Some(bytes.div_ceil(GIB));
                    image.minimum_size = Some(gigabytes);
                }
                Err((code, message)) => {
                    image.life.set_final_state("failed");
                    image.life.reasons = vec![(code.to_owned(), message)];
                }
            }
        });
    }

    fn import_object(&self, front: &Front) -> Result<(String, u64, u64), ImportError> {
        let corrupt = |err: &dyn std::fmt::Display| ("image_data_corrupted", err.to_string());
        let source = self.read_region(front, |region| {
            Some((region.images.get(&self.id)?.source()?, region.images.get(&self.id)?.life.created))
        });
        let ((bucket, key), created) = source.map_err(|err| corrupt(&err))?;
        // The import stays queued for a while, so that a client can see that state.
        while Timestamp::now() < created.after(front.config.delays.image / 2) {
            std::thread::sleep(QUEUE_POLL);
        }
        front.with_cloud(|cloud| {
            if let Some(life) = cloud.life(&self.id) {
                life.reasons =
                    vec![("image_request_in_progress".to_owned(), "The image is being imported.".to_owned())];
            }
        });
        let opened = front.store.bucket(&bucket).and_then(|bucket| bucket.open_object(&key));
        let (_, mut object) = opened.map_err(|err| corrupt(&err))?;
        let kept = Image::file_path(&front.config.folder, &self.id);
        let (sha256, bytes) = copy_and_hash(&mut object, &kept).map_err(|err| corrupt(&err))?;
        let file = LocalImage::open(&kept).map_err(|err| corrupt(&err))?;
        let image = Qcow2::open(&file, &Limits::default()).map_err(|err| corrupt(&err))?;
        image.load(&file).map_err(|err| corrupt(&err))?;
        let gigabytes = gigabytes(image.virtual_size().0, &front.config)?;
        Ok((sha256, bytes, gigabytes))
    }

    fn finish_export(&self, front: &Front) {
        let exported = self.export_object(front);
        front.with_cloud(|cloud| {
            let job = cloud.regions.get_mut(&self.region).and_then(|region| region.exports.get_mut(&self.id));
            let Some(job) = job else { return };
            job.life.work = 0;
            if let Err(err) = exported {
                job.life.set_final_state("failed");
                job.life.reasons = vec![("cannot_access_storage_bucket".to_owned(), err.to_string())];
            }
        });
    }

    fn export_object(&self, front: &Front) -> io::Result<()> {
        let folder = &front.config.folder;
        let (image, bucket, key) = self.read_region(front, |region| {
            let job = region.exports.get(&self.id)?;
            Some((Image::file_path(folder, &job.image), job.bucket.clone(), job.key()))
        })?;
        let bucket = front.store.bucket(&bucket).map_err(io::Error::other)?;
        put_file(&bucket, &key, &image).map_err(io::Error::other)
    }
}

/// Copies an object into the image service's own file, and returns its SHA-256 and its size in bytes.
fn copy_and_hash(object: &mut std::fs::File, to: &std::path::Path) -> io::Result<(String, u64)> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let (mut file, mut sum, mut bytes) = (std::fs::File::create(to)?, Sha256::new(), 0);
    let mut buf = vec![0; READ_SIZE];
    loop {
        let read = object.read(&mut buf)?;
        if read == 0 {
            let hex = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((hex, bytes));
        }
        sum.update(&buf[..read]);
        file.write_all(&buf[..read])?;
        bytes += snapferry_base::units::to_u64(read);
    }
}

/// Returns the capacity for an image's disk in GB. A small one is raised to the least capacity, a large one
/// is an error.
fn gigabytes(virtual_size: u64, config: &RegionConfig) -> Result<u64, ImportError> {
    let gigabytes = virtual_size.div_ceil(GIB).max(config.least_capacity);
    if gigabytes > MAX_IMAGE {
        let message = format!("The image has {gigabytes} GB, and {MAX_IMAGE} are supported.");
        return Err(("image_provisioned_size_unsupported", message));
    }
    Ok(gigabytes)
}
