//! Opening what is named on the command line.

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
use snapferry_qcow2::{HeaderError, Image, ImageError, ImageFile, Limits, Marked};

use super::Stop;
use super::words::{Format, PROBED, probe, protocol};
use crate::cli::qemu::map::{Stretch, of_image, of_raw};

/// The largest disk that is taken, whoever made the image: QEMU has no limit but the format's. Nothing is allocated by it.
pub const LIMITS: Limits = Limits { largest_disk: ByteCount(u64::MAX), marked_corrupt: Marked::Refuse };

/// A file's name as QEMU reads it: `file:` is the only protocol that we do.
pub fn path_of(typed: &OsStr) -> Result<PathBuf, Stop> {
    let Some(name) = typed.to_str() else { return Ok(PathBuf::from(typed)) };
    match protocol(name) {
        Some("file") => Ok(PathBuf::from(name.trim_start_matches("file:"))),
        Some(other) => Err(Stop::NotDone(format!("{other}: as a protocol"))),
        None => Ok(PathBuf::from(typed)),
    }
}

/// The format that was named, or that the file seems to have.
pub fn format_of(path: &Path, named: Option<&OsStr>, code: u8) -> Result<Format, Stop> {
    if let Some(named) = named {
        let unknown = || {
            Stop::Says(could_not_open(path, &format!("Unknown driver '{}'", named.to_string_lossy())), code)
        };
        return Format::parse(named)?.ok_or_else(unknown);
    }
    // A pipe without a writer would keep us waiting; what it is, is told by whoever opens it next.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(|error| Stop::Says(no_such(path, &error), code))?;
    let mut start = Vec::new();
    match file.take(PROBED).read_to_end(&mut start) {
        // What a folder or an empty pipe is, is told by who opens it next.
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::WouldBlock) => {}
        // A format that could not be looked up is not raw: an image of a disk would be taken for the disk.
        Err(error) => {
            let why = format!("Could not read image for determining its format: {}", os_words(&error));
            return Err(Stop::Says(could_not_open(path, &why), code));
        }
    }
    probe(&start, path)
}

/// Opens a disk of that format, with `code` as the exit code where it can't be.
pub fn open(path: &Path, format: Format, code: u8) -> Result<Box<dyn Source>, Stop> {
    Ok(match format {
        // QEMU reads what is mounted without a word.
        Format::Raw => {
            Box::new(RawSource::open(path, InUse::Read).map_err(|error| raw_error(path, error, code))?)
        }
        Format::Qcow2 => Box::new(
            ImageSource::open(open_file(path, code)?, &LIMITS)
                .map_err(|error| image_error(path, &error, code))?,
        ),
    })
}

/// Where a disk's bytes lie.
pub struct Mapped {
    pub stretches: Vec<Stretch>,
    /// Bytes of the disk.
    pub size: ByteCount,
    /// Of an image of version 3, which can have some.
    pub bitmaps: Option<Vec<Bitmap>>,
}

/// Maps a disk of that format.
pub fn map(path: &Path, format: Format) -> Result<Mapped, Stop> {
    match format {
        Format::Raw => {
            let source = open(path, Format::Raw, 1)?;
            let stretches = of_raw(&*source).map_err(|error| Stop::says(chain(&error)))?;
            Ok(Mapped { stretches, size: source.size(), bitmaps: None })
        }
        Format::Qcow2 => {
            let file = open_file(path, 1)?;
            let refused = |error: ImageError| image_error(path, &error, 1);
            let image = Image::open(&*file, &LIMITS).map_err(refused)?;
            let mappings = image.load(&*file).map_err(refused)?;
            let listed = || bitmaps::list(&*file, image.facts()).map_err(refused);
            let bitmaps = (image.header().version == Version::V3).then(listed).transpose()?;
            Ok(Mapped { stretches: of_image(&mappings), size: image.virtual_size(), bitmaps })
        }
    }
}

/// The bytes of an image file.
pub fn open_file(path: &Path, code: u8) -> Result<Arc<dyn ImageFile>, Stop> {
    match LocalImage::open(path) {
        Ok(file) => Ok(Arc::new(file)),
        Err(LocalImageError::Open { source, .. }) => Err(Stop::Says(no_such(path, &source), code)),
        Err(other) => Err(Stop::Says(could_not_open(path, &chain(&other)), code)),
    }
}

/// What is wrong with an image, or what it takes that we don't do.
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

fn could_not_open(path: &Path, why: &str) -> String {
    format!("Could not open '{}': {why}", path.display())
}

/// As QEMU says it: once for the image, once for the file.
fn no_such(path: &Path, error: &std::io::Error) -> String {
    could_not_open(path, &could_not_open(path, &os_words(error)))
}

/// The system's words without Rust's number, and the limit behind them.
pub fn os_words(error: &std::io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    limits::behind(error).map_or_else(|| words.to_owned(), |limit| format!("{words}: {limit}"))
}

/// What is at a path that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    Nothing,
    File,
    Device,
}

/// Looks, following links.
pub fn what_is_at(path: &Path) -> Result<There, Stop> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_file() => Ok(There::File),
        Ok(found) if found.file_type().is_block_device() => Ok(There::Device),
        Ok(_) => Err(Stop::NotDone(format!(
            "output to {}, which is neither a file nor a block device,",
            path.display()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(There::Nothing),
        Err(error) => Err(Stop::says(no_such(path, &error))),
    }
}

/// Whether two names, both of which lead somewhere, lead to the same file or device.
pub fn are_same(one: &Path, other: &Path) -> bool {
    let mark = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        // A device has as many files as it has names.
        let device = found.file_type().is_block_device();
        Some(if device { (device, found.rdev(), 0) } else { (device, found.dev(), found.ino()) })
    };
    mark(one).is_some_and(|one| mark(other) == Some(one))
}

/// The file behind any links, so that they stay; a name that leads nowhere is kept.
pub fn behind_links(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
