//! Jobs that outlast a request: copies of disks, imports that read and hash an image, exports that write an
//! object.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use snapferry_base::units::GIB;
use snapferry_engine::image::LocalImage;
use snapferry_qcow2::{Image as Qcow2, Limits};

use super::super::moment::Moment;
use super::config::RegionConfig;
use super::disks;
use super::front::Front;
use super::images::Image;
use super::world::{Region, RegionState};
use crate::store::put_file;

/// Bytes in one read of an object.
const PIECE: usize = 1 << 20;
/// Size of the largest image, in GB (IBM's documentation of custom images).
const MOST_IMAGE: u64 = 250;
/// Time between two checks whether a queued import may begin.
const AGAIN: Duration = Duration::from_millis(20);

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
type Spoiled = (&'static str, String);

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
    pub fn unfinished(world: &mut RegionState) -> Vec<Self> {
        let mut jobs = Vec::new();
        for (name, region) in &world.regions {
            let snapshots = region.snapshots.values().filter(|thing| thing.life.work > 0);
            jobs.extend(snapshots.map(|thing| Self::take_snapshot(name, &thing.life.id)));
            let volumes = region.volumes.values().filter(|thing| thing.life.work > 0);
            jobs.extend(volumes.map(|thing| Self::fill_volume(name, &thing.life.id)));
            let images = region.images.values().filter(|thing| thing.life.work > 0);
            jobs.extend(images.map(|thing| Self::import(name, &thing.life.id)));
            let exports = region.exports.values().filter(|thing| thing.life.work > 0);
            jobs.extend(exports.map(|thing| Self::export(name, &thing.life.id)));
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
        front.with_world(|world| {
            let Some(life) = world.life(&self.id) else { return };
            life.work = 0;
            if let Err(err) = done {
                tracing::warn!(%err, id = self.id, "a simulated disk could not be copied");
                life.settle_in("failed");
                life.reasons = vec![("internal_error".to_owned(), err.to_string())];
            }
        });
    }

    /// Reads something of the region. Returns an error if it is gone, instead of waiting for it.
    fn look<T>(&self, front: &Front, look: impl FnOnce(&Region) -> Option<T>) -> io::Result<T> {
        let found = front.with_world(|world| world.regions.get(&self.region).and_then(look));
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is gone"))
    }

    fn take(&self, front: &Front) -> io::Result<()> {
        let folder = &front.config.folder;
        let (to, capacity, source, copy_of) = self.look(front, |region| {
            let snapshot = region.snapshots.get(&self.id)?;
            let volume = region.volumes.get(&snapshot.source_volume).map(|volume| volume.file(folder));
            Some((snapshot.file(folder), snapshot.capacity, volume, snapshot.copy_of.clone()))
        })?;
        let from = match copy_of {
            None => source,
            Some((region, id)) => {
                front.with_world(|world| Some(world.regions.get(&region)?.snapshots.get(&id)?.file(folder)))
            }
        };
        let from = from.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its source is gone"))?;
        disks::copy(&from, &to, capacity * GIB)?;
        front.with_world(|world| {
            let snapshot =
                world.regions.get_mut(&self.region).and_then(|region| region.snapshots.get_mut(&self.id));
            if let Some(snapshot) = snapshot {
                snapshot.captured.get_or_insert(Moment::now());
            }
        });
        Ok(())
    }

    fn fill(&self, front: &Front) -> io::Result<()> {
        let folder = &front.config.folder;
        let (to, capacity, snapshot, image) = self.look(front, |region| {
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
        match (snapshot, image.map(|id| Image::kept(folder, &id))) {
            (Some(from), _) => disks::copy(&from, &to, capacity * GIB),
            (None, Some(image)) if image.exists() => disks::unpack(&image, &to, capacity * GIB),
            _ => disks::blank(&to, capacity * GIB),
        }
    }

    /// Imports an image as IBM's image service does: reads and hashes the whole object, keeps a copy, and
    /// checks the disk in it.
    fn finish_import(&self, front: &Front) {
        let imported = self.import_object(front);
        front.with_world(|world| {
            let image =
                world.regions.get_mut(&self.region).and_then(|region| region.images.get_mut(&self.id));
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
                    image.life.settle_in("failed");
                    image.life.reasons = vec![(code.to_owned(), message)];
                }
            }
        });
    }

    fn import_object(&self, front: &Front) -> Result<(String, u64, u64), Spoiled> {
        let corrupt = |err: &dyn std::fmt::Display| ("image_data_corrupted", err.to_string());
        let looked = self.look(front, |region| {
            Some((region.images.get(&self.id)?.source()?, region.images.get(&self.id)?.life.created))
        });
        let ((bucket, key), created) = looked.map_err(|err| corrupt(&err))?;
        // The import stays queued for a while, so that a client can see that state.
        while Moment::now() < created.after(front.config.delays.image / 2) {
            std::thread::sleep(AGAIN);
        }
        front.with_world(|world| {
            if let Some(life) = world.life(&self.id) {
                life.reasons =
                    vec![("image_request_in_progress".to_owned(), "The image is being imported.".to_owned())];
            }
        });
        let opened = front.store.bucket(&bucket).and_then(|bucket| bucket.open_object(&key));
        let (_, mut object) = opened.map_err(|err| corrupt(&err))?;
        let kept = Image::kept(&front.config.folder, &self.id);
        let (sha256, bytes) = keep(&mut object, &kept).map_err(|err| corrupt(&err))?;
        let file = LocalImage::open(&kept).map_err(|err| corrupt(&err))?;
        let image = Qcow2::open(&file, &Limits::default()).map_err(|err| corrupt(&err))?;
        image.load(&file).map_err(|err| corrupt(&err))?;
        let gigabytes = gigabytes(image.virtual_size().0, &front.config)?;
        Ok((sha256, bytes, gigabytes))
    }

    fn finish_export(&self, front: &Front) {
        let exported = self.export_object(front);
        front.with_world(|world| {
            let job = world.regions.get_mut(&self.region).and_then(|region| region.exports.get_mut(&self.id));
            let Some(job) = job else { return };
            job.life.work = 0;
            if let Err(err) = exported {
                job.life.settle_in("failed");
                job.life.reasons = vec![("cannot_access_storage_bucket".to_owned(), err.to_string())];
            }
        });
    }

    fn export_object(&self, front: &Front) -> io::Result<()> {
        let folder = &front.config.folder;
        let (image, bucket, key) = self.look(front, |region| {
            let job = region.exports.get(&self.id)?;
            Some((Image::kept(folder, &job.image), job.bucket.clone(), job.key()))
        })?;
        let bucket = front.store.bucket(&bucket).map_err(io::Error::other)?;
        put_file(&bucket, &key, &image).map_err(io::Error::other)
    }
}

/// Copies an object into the image service's own file, and returns its SHA-256 and its size in bytes.
fn keep(object: &mut std::fs::File, to: &std::path::Path) -> io::Result<(String, u64)> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let (mut file, mut sum, mut bytes) = (std::fs::File::create(to)?, Sha256::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        let read = object.read(&mut piece)?;
        if read == 0 {
            let hex = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((hex, bytes));
        }
        sum.update(&piece[..read]);
        file.write_all(&piece[..read])?;
        bytes += snapferry_base::units::to_u64(read);
    }
}

/// Returns the capacity for an image's disk in GB. A small one is raised to the least capacity, a large one
/// is an error.
fn gigabytes(virtual_size: u64, config: &RegionConfig) -> Result<u64, Spoiled> {
    let gigabytes = virtual_size.div_ceil(GIB).max(config.least_capacity);
    if gigabytes > MOST_IMAGE {
        let message = format!("The image has {gigabytes} GB, and {MOST_IMAGE} are supported.");
        return Err(("image_provisioned_size_unsupported", message));
    }
    Ok(gigabytes)
}
