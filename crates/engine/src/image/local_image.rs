//! Image in a local file or on a block device.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Advice, FileType, Mode, OFlags, SeekFrom, Stat, fadvise, fstat, open, seek};
use rustix::io::{Errno, pread, retry_on_intr};
use snapferry_base::units::{ByteCount, HostOffset, to_u64};
use snapferry_qcow2::{FileError, ImageFile};

/// Error of the file of a local image, whatever its content is.
#[derive(Debug, thiserror::Error)]
pub enum LocalImageError {
    /// The file can't be opened.
    #[error("cannot open {path}")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The file can't be read at any offset, as a pipe can't.
    #[error("{path} is no regular file and no block device: an image is read at any offset, not in order")]
    Kind { path: String },
    #[error("read error at byte {at}")]
    Read {
        at: HostOffset,
        #[source]
        source: io::Error,
    },
    /// The file ended before the size that it had when it was opened.
    #[error("it ends at byte {at}, and was {size} bytes long when it was opened")]
    Shrunk {
        /// Offset at which a read found the end.
        at: HostOffset,
        /// Size in bytes when the file was opened.
        size: u64,
    },
    /// Another process wrote to the file while it was read.
    #[error("it changed while it was read")]
    Changed,
}

/// Image in a regular file or on a block device. Reads go through the page cache, of which images fill
/// little.
#[derive(Debug)]
pub struct LocalImage {
    path: String,
    file: OwnedFd,
    size: u64,
    /// Time of the last change (seconds, nanoseconds) and size of a regular file when it was opened. `None`
    /// for a device, which has no such times.
    mark: Option<(i64, i64, u64)>,
}

impl LocalImage {
    /// Opens `path` read-only.
    ///
    /// # Errors
    /// If it can't be opened, or is neither a regular file nor a block device.
    pub fn open(path: &Path) -> Result<Self, LocalImageError> {
        let display_path = path.display().to_string();
        let failed =
            |errno: Errno| LocalImageError::Open { path: display_path.clone(), source: errno.into() };
        // NONBLOCK: without it, opening a named pipe that has no writer would block before its type can be
        // checked.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = retry_on_intr(|| open(path, flags, Mode::empty())).map_err(failed)?;
        let stat = fstat(&file).map_err(failed)?;
        let mark = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(mark_of(&stat)),
            FileType::BlockDevice => None,
            _ => return Err(LocalImageError::Kind { path: display_path }),
        };
        // This works for block devices too: the kernel returns their capacity.
        let size = seek(&file, SeekFrom::End(0)).map_err(failed)?;
        // Images are mostly read in order, and by several threads at once: with this advice the kernel reads
        // further ahead. The reads work as well if it refuses.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        Ok(Self { path: display_path, file, size, mark })
    }

    fn fill(&self, start: HostOffset, into: &mut [u8]) -> Result<(), LocalImageError> {
        let mut done = 0;
        while done < into.len() {
            let at = start + to_u64(done);
            match retry_on_intr(|| pread(&self.file, &mut into[done..], at.0)) {
                Ok(0) => return Err(LocalImageError::Shrunk { at, size: self.size }),
                Ok(count) => done += count,
                Err(errno) => return Err(LocalImageError::Read { at, source: errno.into() }),
            }
        }
        // After the read, so that a change during it is noticed too.
        if let Some(mark) = self.mark {
            let stat = fstat(&self.file)
                .map_err(|errno| LocalImageError::Read { at: start, source: errno.into() })?;
            if mark_of(&stat) != mark {
                return Err(LocalImageError::Changed);
            }
        }
        Ok(())
    }
}

fn mark_of(stat: &Stat) -> (i64, i64, u64) {
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0), u64::try_from(stat.st_size).unwrap_or(0))
}

impl ImageFile for LocalImage {
    fn name(&self) -> &str {
        &self.path
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.size)
    }

    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        self.fill(at, into).map_err(|source| FileError {
            name: self.path.clone(),
            at,
            len: to_u64(into.len()),
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn cause(error: &FileError) -> &LocalImageError {
        error.source().and_then(|source| source.downcast_ref()).expect("a local file's error")
    }

    #[test]
    fn bytes_come_from_where_they_lie_and_none_from_past_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        let bytes: Vec<u8> = (0..10_007_u32).map(|i| i.to_le_bytes()[0]).collect();
        std::fs::write(&path, &bytes).expect("written");
        let image = LocalImage::open(&path).expect("opened");
        assert_eq!(image.size(), ByteCount(10_007));
        let mut some = [0; 107];
        image.read_at(HostOffset(9_900), &mut some).expect("the last bytes");
        assert_eq!(some, bytes[9_900..]);
        let error = image.read_at(HostOffset(9_901), &mut some).expect_err("one past the end");
        assert!(
            matches!(cause(&error), LocalImageError::Shrunk { at: HostOffset(10_007), size: 10_007 }),
            "{error:?}"
        );
    }

    #[test]
    fn a_file_that_changes_fails_the_next_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        std::fs::write(&path, [1; 4096]).expect("written");
        let image = LocalImage::open(&path).expect("opened");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened again");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("another time");
        let error = image.read_at(HostOffset(0), &mut [0; 16]).expect_err("it was touched");
        assert!(matches!(cause(&error), LocalImageError::Changed), "{error:?}");
    }

    #[test]
    fn what_has_no_offsets_is_refused_by_name() {
        let refusal = |path: &Path| LocalImage::open(path).expect_err("no image").to_string();
        assert!(refusal(Path::new("/dev/zero")).contains("no regular file and no block device"));
        assert!(refusal(Path::new("/")).contains("no regular file and no block device"));
        assert!(refusal(Path::new("/nowhere/at/all")).starts_with("cannot open"));
    }
}
