//! Commands that look at images and disks and change nothing.

use std::fs;
use std::sync::Arc;

use snapferry_base::units::{HostOffset, to_u64};
use snapferry_engine::image::ImageSource;
use snapferry_engine::source::{InUse, RawSource, Source};
use snapferry_engine::store::Location;
use snapferry_qcow2::header::MAGIC;
use snapferry_qcow2::{Image, ImageFile, Limits};
use tokio::runtime::Runtime;

use super::error::UsageError;
use super::image::{self, ImageName, OpenImage};
use super::qemu::info::ImageBytes;
use super::qemu::map::{self as shapes, Stretch};
use super::session::Session;
use super::signals::Unfinished;
use crate::cli::args::StoreArgs;
use crate::cli::error::CommandResult;

pub mod check;
pub mod compare;
pub mod info;
pub mod map;
pub mod measure;

/// Opens the images and disks that a command names, and holds the runtime that requests run on.
pub struct Inspection<'a> {
    runtime: Runtime,
    session: &'a Session,
}

/// Format of a file, device or object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Raw,
}

/// Image or raw disk that is open.
pub struct OpenDisk {
    pub name: ImageName,
    pub location: Location,
    pub image: OpenImage,
    pub format: Format,
}

impl<'a> Inspection<'a> {
    pub fn start(session: &'a Session) -> CommandResult<Self> {
        Ok(Self { runtime: session.start(Unfinished::Nothing)?, session })
    }

    /// Opens a file, device or object. It is qcow2 if it begins with the magic number; everything else is
    /// raw, and no other format is ever guessed.
    pub fn find(&self, name: ImageName, store: &StoreArgs) -> CommandResult<OpenDisk> {
        let location = name.location();
        let image = image::open(&name, store, location.connections(), &self.runtime, self.session)?;
        let mut magic = [0; MAGIC.len()];
        if image.file.size().0 >= to_u64(magic.len()) {
            image.file.read_at(HostOffset(0), &mut magic)?;
        }
        let format = if magic == MAGIC { Format::Qcow2 } else { Format::Raw };
        Ok(OpenDisk { name, location, image, format })
    }
}

impl OpenDisk {
    /// Returns the properties of the file or object itself, for output.
    pub fn held(&self) -> CommandResult<ImageBytes> {
        let len = self.file().size().0;
        Ok(match &self.name {
            ImageName::File(path) => ImageBytes::local(path, &fs::metadata(path)?, len),
            ImageName::Object { .. } => ImageBytes::object(&self.name.to_string(), len),
        })
    }

    pub fn file(&self) -> &dyn ImageFile {
        &*self.image.file
    }

    /// Returns the map of the disk: how and where its bytes are stored.
    pub fn map(&self, limits: &Limits) -> CommandResult<Vec<Stretch>> {
        Ok(match self.format {
            Format::Qcow2 => shapes::of_image(&Image::open(self.file(), limits)?.load(self.file())?),
            Format::Raw => shapes::of_raw(&*self.source(limits)?)?,
        })
    }

    /// Opens the disk for reading.
    pub fn source(&self, limits: &Limits) -> CommandResult<Box<dyn Source>> {
        match (self.format, &self.name) {
            (Format::Qcow2, _) => Ok(Box::new(ImageSource::open(Arc::clone(&self.image.file), limits)?)),
            (Format::Raw, ImageName::File(path)) => Ok(Box::new(RawSource::open(path, InUse::Read)?)),
            (Format::Raw, ImageName::Object { .. }) => Err(UsageError(format!(
                "{} is no qcow2 image, and raw disks are not read from buckets",
                self.name
            ))
            .into()),
        }
    }
}

/// Returns the limits for a command that takes a limit on disks.
pub fn limits(largest_disk: snapferry_base::units::ByteCount) -> Limits {
    Limits { largest_disk, ..Limits::default() }
}
