//! Access to the files and devices that the command line names.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapferry_base::limits;
use snapferry_base::retry::chain;
use snapferry_base::units::ByteCount;
use snapferry_engine::image::{ImageSource, LocalImage, LocalImageError};
use snapferry_engine::source::{InUse, RawSource, Source, SourceError};
use snapferry_qcow2::bitmaps::{self, Bitmap};
use snapferry_qcow2::header::Version;
use snapferry_qcow2::{CorruptPolicy, HeaderError, Image, ImageError, ImageFile, Limits};

use super::Stop;
use super::args::{Format, PROBED, probe, protocol};
use crate::cli::qemu::map::{Stretch, of_image, of_raw};

/// Limits for images from any source. Disks may have any size, because QEMU has no limit but the format's; no
/// memory is allocated by it.
pub const LIMITS: Limits =
    Limits { largest_disk: ByteCount(u64::MAX), marked_corrupt: CorruptPolicy::Refuse };

/// Returns the path of a file from its name as QEMU reads it. `file:` is the only protocol that is supported.
pub fn path_of(typed: &OsStr) -> Result<PathBuf, Stop> {
    let Some(name) = typed.to_str() else { return Ok(PathBuf::from(typed)) };
    match protocol(name) {
        Some("file") => Ok(PathBuf::from(name.trim_start_matches("file:"))),
        Some(other) => Err(Stop::NotDone(format!("{other}: as a protocol"))),
        None => Ok(PathBuf::from(typed)),
    }
}

/// Returns the format that the user named, or else the one that the file seems to have.
pub fn format_of(path: &Path, named: Option<&OsStr>, code: u8) -> Result<Format, Stop> {
    if let Some(named) = named {
        let unknown = || {
            Stop::Says(could_not_open(path, &format!("Unknown driver '{}'", named.to_string_lossy())), code)
        };
        return Format::parse(named)?.ok_or_else(unknown);
    }
    // A pipe without a writer would block this process; the code that opens it next reports what it is.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(|error| Stop::Says(no_such(path, &error), code))?;
    let mut start = Vec::new();
    match file.take(PROBED).read_to_end(&mut start) {
        // The code that opens the file next reports a folder or an empty pipe.
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::WouldBlock) => {}
        // If the start can't be read, the format is not taken for raw: an image would be taken for the disk
        // itself.
        Err(error) => {
            let reason = format!("Could not read image for determining its format: {}", os_message(&error));
            return Err(Stop::Says(could_not_open(path, &reason), code));
        }
    }
    probe(&start, path)
}

/// Opens a disk of that format. If it can't be opened, `code` is the exit code.
pub fn open(path: &Path, format: Format, code: u8) -> Result<Box<dyn Source>, Stop> {
    Ok(match format {
        // QEMU reads a mounted device without a warning.
        Format::Raw => {
            Box::new(RawSource::open(path, InUse::Read).map_err(|error| raw_error(path, error, code))?)
        }
        Format::Qcow2 => Box::new(
            ImageSource::open(open_file(path, code)?, &LIMITS)
                .map_err(|error| image_error(path, &error, code))?,
        ),
    })
}

/// Map of a disk: how and where its bytes are stored.
pub struct Mapped {
    pub stretches: Vec<Stretch>,
    /// Size of the disk in bytes.
    pub size: ByteCount,
    /// Bitmaps of an image of version 3. None for other disks, which can't have any.
    pub bitmaps: Option<Vec<Bitmap>>,
}

/// Returns the map of a disk of that format.
pub fn map(path: &Path, format: Format) -> Result<Mapped, Stop> {
    match format {
        Format::Raw => {
            let source = open(path, Format::Raw, 1)?;
            let stretches = of_raw(&*source).map_err(|error| Stop::error(chain(&error)))?;
            Ok(Mapped { stretches, size: source.size(), bitmaps: None })
        }
        Format::Qcow2 => {
            let file = open_file(path, 1)?;
            let refused = |error: ImageError| image_error(path, &error, 1);
            let image = Image::open(&*file, &LIMITS).map_err(refused)?;
            let mappings = image.load(&*file).map_err(refused)?;
            let listed = || bitmaps::list(&*file, image.header_info()).map_err(refused);
            let bitmaps = (image.header().version == Version::V3).then(listed).transpose()?;
            Ok(Mapped { stretches: of_image(&mappings), size: image.virtual_size(), bitmaps })
        }
    }
}

/// Opens an image file. If it can't be opened, `code` is the exit code.
pub fn open_file(path: &Path, code: u8) -> Result<Arc<dyn ImageFile>, Stop> {
    match LocalImage::open(path) {
        Ok(file) => Ok(Arc::new(file)),
        Err(LocalImageError::Open { source, .. }) => Err(Stop::Says(no_such(path, &source), code)),
        Err(other) => Err(Stop::Says(could_not_open(path, &chain(&other)), code)),
    }
}

/// Returns the message for an error of an image, or the feature that it needs and that is not supported.
pub fn image_error(path: &Path, error: &ImageError, code: u8) -> Stop {
    let shown = path.display();
    match error {
        ImageError::Header { source: HeaderError::BackingFile { .. }, .. } => {
            Stop::NotDone(format!("backing files, as {shown} has one,"))
        }
        ImageError::Header { source: HeaderError::DataFile { .. }, .. } => {
            Stop::NotDone(format!("external data files, as {shown} has one,"))
        }
        ImageError::Header { source: HeaderError::Encrypted { .. }, .. } => {
            Stop::NotDone(format!("encryption, as {shown} has it,"))
        }
        ImageError::Header { source: HeaderError::Magic, .. } => {
            Stop::Says(could_not_open(path, "Image is not in qcow2 format"), code)
        }
        ImageError::Interrupted => Stop::Interrupted(None),
        other => Stop::Says(could_not_open(path, &chain(other)), code),
    }
}

fn raw_error(path: &Path, error: SourceError, code: u8) -> Stop {
    match error {
        SourceError::Open { source, .. } => Stop::Says(no_such(path, &source), code),
        SourceError::Empty { .. } => {
            Stop::NotDone(format!("disks of no bytes, as {} is one,", path.display()))
        }
        other => Stop::Says(could_not_open(path, &chain(&other)), code),
    }
}

fn could_not_open(path: &Path, reason: &str) -> String {
    format!("Could not open '{}': {reason}", path.display())
}

/// Returns QEMU's message for a file that can't be opened. It names the file twice: once for the image, once
/// for the file itself.
fn no_such(path: &Path, error: &std::io::Error) -> String {
    could_not_open(path, &could_not_open(path, &os_message(error)))
}

/// Returns the system's message for an error, without Rust's error number, but with the resource limit behind
/// it.
pub fn os_message(error: &std::io::Error) -> String {
    let message = error.to_string();
    let message = message.split(" (os error").next().unwrap_or_default();
    limits::explaining_limit(error).map_or_else(|| message.to_owned(), |limit| format!("{message}: {limit}"))
}

/// Kind of file at a path that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    Nothing,
    File,
    Device,
}

/// Returns the kind of file at a path, following links.
pub fn target_kind(path: &Path) -> Result<There, Stop> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_file() => Ok(There::File),
        Ok(found) if found.file_type().is_block_device() => Ok(There::Device),
        Ok(_) => Err(Stop::NotDone(format!(
            "output to {}, which is neither a file nor a block device,",
            path.display()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(There::Nothing),
        Err(error) => Err(Stop::error(no_such(path, &error))),
    }
}

/// Returns true if both paths exist and lead to the same file or device.
pub fn are_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        // A device may have several names, each a file of its own: its number identifies it.
        let device = found.file_type().is_block_device();
        Some(if device { (device, found.rdev(), 0) } else { (device, found.dev(), found.ino()) })
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Returns the file behind any links, so that the links stay. A path that leads nowhere is returned as it is.
pub fn resolve_links(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
