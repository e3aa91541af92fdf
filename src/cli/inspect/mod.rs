//! Commands that look at images and disks and change nothing.

use crate::cli::error::CommandResult;
use crate::cli::args::{StoreArgs};
use std::fs;
use std::sync::Arc;

use snapferry_base::units::{HostOffset, to_u64};
use snapferry_engine::image::ImageSource;
use snapferry_engine::image::plan::Origin;
use snapferry_engine::source::{InUse, RawSource, Source};
use snapferry_qcow2::header::MAGIC;
use snapferry_qcow2::{Image, ImageFile, Limits};
use tokio::runtime::Runtime;

use super::error::UsageError;
use super::image::{self, ImageName, OpenImage};
use super::qemu::info::Held;
use super::qemu::map::{self as shapes, Stretch};
use super::session::Session;
use super::signals::Left;

pub mod check;
pub mod compare;
pub mod info;
pub mod map;
pub mod measure;

/// Opens what a command was given, with the runtime that requests run on.
pub struct Inspection<'a> {
    runtime: Runtime,
    session: &'a Session,
}

/// What something that was named holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Raw,
}

/// An image or a disk.
pub struct Found {
    pub name: ImageName,
    pub origin: Origin,
    pub image: OpenImage,
    pub format: Format,
}

impl<'a> Inspection<'a> {
    pub fn start(session: &'a Session) -> CommandResult<Self> {
        Ok(Self { runtime: session.start(Left::Nothing)?, session })
    }

    /// Opens what was named. That it is qcow2 its first bytes say; everything else is raw, and nothing else is ever guessed.
    pub fn find(&self, name: ImageName, store: &StoreArgs) -> CommandResult<Found> {
        let origin = name.origin();
        let image = image::open(&name, store, origin.connections(), &self.runtime, self.session)?;
        let mut magic = [0; MAGIC.len()];
        if image.file.size().0 >= to_u64(magic.len()) {
            image.file.read_at(HostOffset(0), &mut magic)?;
        }
        let format = if magic == MAGIC { Format::Qcow2 } else { Format::Raw };
        Ok(Found { name, origin, image, format })
    }
}

impl Found {
    /// The bytes that were named, for who prints what holds them.
    pub fn held(&self) -> CommandResult<Held> {
        let len = self.file().size().0;
        Ok(match &self.name {
            ImageName::File(path) => Held::local(path, &fs::metadata(path)?, len),
            ImageName::Object { .. } => Held::object(&self.name.to_string(), len),
        })
    }

    pub fn file(&self) -> &dyn ImageFile {
        &*self.image.file
    }

    /// Where the disk's bytes lie.
    pub fn map(&self, limits: &Limits) -> CommandResult<Vec<Stretch>> {
        Ok(match self.format {
            Format::Qcow2 => shapes::of_image(&Image::open(self.file(), limits)?.load(self.file())?),
            Format::Raw => shapes::of_raw(&*self.source(limits)?)?,
        })
    }

    /// The disk, to be read.
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

/// As every command that takes a limit on disks.
pub fn limits(largest_disk: snapferry_base::units::ByteCount) -> Limits {
    Limits { largest_disk, ..Limits::default() }
}
