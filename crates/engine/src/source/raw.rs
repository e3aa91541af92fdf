//! Block devices and regular files, read with O_DIRECT if the kernel supports it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fcntl_getfl, fcntl_setfl, fstat, ioctl_blksszget,
    open, seek, statx,
};
use rustix::io::{Errno, pread, retry_on_intr};
use snapferry_base::units::{ByteCount, GuestOffset, to_u64, to_usize};

use super::aligned::BUFFER_ALIGNMENT;
use super::{Extent, Kind, Source, SourceError};

/// Treatment of a block device that is mounted, or claimed by another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InUse {
    /// Refuse the device: the data would be a mix of different moments.
    #[default]
    Refuse,
    /// Read the device all the same; the user knows that no process writes to it.
    Read,
}

/// A raw block device, or a regular file that holds a raw disk.
#[derive(Debug)]
pub struct RawSource {
    path: String,
    file: OwnedFd,
    size: u64,
    alignment: usize,
    kind: RawKind,
}

#[derive(Debug)]
enum RawKind {
    Device,
    /// A regular file, with its modification time when it was opened: seconds and nanoseconds.
    File {
        modified: (i64, i64),
    },
}

impl RawSource {
    /// Opens `path` read-only, with O_DIRECT; a block device also with O_EXCL, so that one that is mounted is
    /// refused.
    ///
    /// # Errors
    /// If `path` can't be opened, is not a disk, is empty, or is in use.
    pub fn open(path: &Path, in_use: InUse) -> Result<Self, SourceError> {
        let display_path = path.display().to_string();
        let open_error =
            |errno: Errno| SourceError::Open { path: display_path.clone(), source: errno.into() };
        // NONBLOCK: the open of a named pipe without a writer would block before its type could be checked.
        let base = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let probe = retry_on_intr(|| open(path, base | OFlags::PATH, Mode::empty())).map_err(open_error)?;
        let stat = fstat(&probe).map_err(open_error)?;
        let device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            other => return Err(SourceError::Kind { path: display_path, kind: kind_of(other) }),
        };
        let flags = if device && in_use == InUse::Refuse { base | OFlags::EXCL } else { base };
        let file = match retry_on_intr(|| open(path, flags | OFlags::DIRECT, Mode::empty())) {
            Err(Errno::BUSY) => return Err(SourceError::Busy { path: display_path }),
            // Some file systems have no O_DIRECT; every block device does.
            Err(Errno::INVAL) if !device => {
                retry_on_intr(|| open(path, flags, Mode::empty())).map_err(open_error)?
            }
            other => other.map_err(open_error)?,
        };
        let opened = fstat(&file).map_err(open_error)?;
        if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(SourceError::Changed {
                path: display_path,
                reason: "the path was replaced while it was opened",
            });
        }
        let ask = |question| {
            let path = display_path.clone();
            move |errno: Errno| SourceError::Ask { path, question, source: errno.into() }
        };
        // Works for block devices too: the kernel returns the capacity that BLKGETSIZE64 gives.
        let size = seek(&file, SeekFrom::End(0)).map_err(ask("asking for the size"))?;
        if size == 0 {
            return Err(SourceError::Empty { path: display_path });
        }
        let (alignment, kind) = if device {
            let sector = ioctl_blksszget(&file).map_err(ask("asking for the logical block size"))?;
            (to_usize(u64::from(sector)), RawKind::Device)
        } else {
            (
                direct_alignment(&file),
                RawKind::File {
                    modified: (opened.st_mtime, i64::try_from(opened.st_mtime_nsec).unwrap_or(0)),
                },
            )
        };
        Ok(Self { path: display_path, file, size, alignment: alignment.clamp(512, BUFFER_ALIGNMENT), kind })
    }

    /// True for a block device, false for a regular file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.kind, RawKind::Device)
    }

    /// True if `other` is the same file or device.
    #[must_use]
    pub fn is_same_as(&self, other: &Path) -> bool {
        let Ok(stat) = rustix::fs::stat(other) else { return false };
        fstat(&self.file).is_ok_and(|own| match self.kind {
            RawKind::Device => {
                FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice && own.st_rdev == stat.st_rdev
            }
            RawKind::File { .. } => (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino),
        })
    }

    /// Returns a loop device through which a regular file can be written to. Mounted filesystems on it change
    /// the file, and nothing else shows that.
    #[must_use]
    pub fn written_through(&self) -> Option<String> {
        if self.is_device() {
            return None;
        }
        std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|device| {
            let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
            let is_read_only =
                std::fs::read_to_string(device.path().join("ro")).is_ok_and(|ro| ro.trim() == "1");
            (!is_read_only && self.is_same_as(Path::new(backing.trim_end_matches('\n'))))
                .then(|| format!("/dev/{}", device.file_name().to_string_lossy()))
        })
    }

    fn read_error(&self, offset: GuestOffset, errno: Errno) -> SourceError {
        let (path, source) = (self.path.clone(), io::Error::from(errno));
        match errno {
            Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM => SourceError::Vanished { path, offset, source },
            _ => SourceError::Read { path, offset, source },
        }
    }
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::Directory => Kind::Folder,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::Fifo => Kind::Pipe,
        FileType::Socket => Kind::Socket,
        _ => Kind::Unknown,
    }
}

/// Returns the alignment that O_DIRECT needs for reads from this file. Linux 6.1 and later report it; the
/// page size is right for all others. If a file system opens with O_DIRECT but refuses the reads, this
/// switches the file back to the page cache.
fn direct_alignment(file: &OwnedFd) -> usize {
    let mask = StatxFlags::DIOALIGN;
    match statx(file, "", AtFlags::EMPTY_PATH, mask) {
        Ok(found) if found.stx_mask & mask.bits() != 0 => {
            let alignment = found.stx_dio_offset_align.max(found.stx_dio_mem_align);
            let usable = alignment != 0 && to_usize(u64::from(alignment)) <= BUFFER_ALIGNMENT;
            if !usable {
                disable_direct_io(file);
            }
            if usable { to_usize(u64::from(alignment)) } else { BUFFER_ALIGNMENT }
        }
        _ => BUFFER_ALIGNMENT,
    }
}

/// Switches the file to reads through the page cache.
fn disable_direct_io(file: &OwnedFd) {
    // A refusal leaves O_DIRECT on; the first read then reports the error.
    if let Ok(flags) = fcntl_getfl(file) {
        let _ = fcntl_setfl(file, flags - OFlags::DIRECT);
    }
}

impl Source for RawSource {
    fn name(&self) -> &str {
        &self.path
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.size)
    }

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn read_at(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), SourceError> {
        let expected = to_usize(to_u64(into.len()).min(self.size.saturating_sub(offset.0)));
        let mut done = 0;
        while done < expected {
            let at = offset + to_u64(done);
            match retry_on_intr(|| pread(self.file.as_fd(), &mut into[done..], at.0)) {
                Ok(0) => {
                    return Err(SourceError::Shrunk { path: self.path.clone(), offset: at, size: self.size });
                }
                Ok(count) => {
                    done += count;
                    // O_DIRECT continues only from an aligned offset. A short read that ends elsewhere is the
                    // end of the file, or is read again from the last aligned byte.
                    if done < expected {
                        done -= done % self.alignment;
                        if count < self.alignment {
                            return Err(SourceError::Shrunk {
                                path: self.path.clone(),
                                offset: at + to_u64(count),
                                size: self.size,
                            });
                        }
                    }
                }
                Err(errno) => return Err(self.read_error(at, errno)),
            }
        }
        into[expected..].fill(0);
        Ok(())
    }

    fn extent_at(&self, from: GuestOffset) -> Result<Extent, SourceError> {
        let all = Extent::Data { end: GuestOffset(self.size) };
        if self.is_device() {
            return Ok(all);
        }
        let ask = |errno: Errno| SourceError::Ask {
            path: self.path.clone(),
            question: "asking for holes",
            source: errno.into(),
        };
        // pread doesn't use the file's position, so moving it disturbs no reader.
        let data = match seek(&self.file, SeekFrom::Data(from.0)) {
            Ok(data) => data,
            // No data from here to the end.
            Err(Errno::NXIO) => return Ok(Extent::Hole { end: GuestOffset(self.size) }),
            // The file system does not report holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(all),
            Err(errno) => return Err(ask(errno)),
        };
        if data > from.0 {
            return Ok(Extent::Hole { end: GuestOffset(data.min(self.size)) });
        }
        let hole = seek(&self.file, SeekFrom::Hole(from.0)).map_err(ask)?;
        Ok(Extent::Data { end: GuestOffset(hole.min(self.size)) })
    }

    fn settle(&self) -> Result<(), SourceError> {
        let changed = |reason| SourceError::Changed { path: self.path.clone(), reason };
        let ask = |errno: Errno| SourceError::Ask {
            path: self.path.clone(),
            question: "asking for the size",
            source: errno.into(),
        };
        if seek(&self.file, SeekFrom::End(0)).map_err(ask)? != self.size {
            return Err(changed("its size is another now"));
        }
        if let RawKind::File { modified } = self.kind {
            let stat = fstat(&self.file).map_err(ask)?;
            if (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)) != modified {
                return Err(changed("it was written to"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::source::aligned::AlignedBuf;

    #[test]
    fn a_file_with_an_odd_tail_reads_whole_and_ends_in_zeros() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let bytes: Vec<u8> = (0..10_007_u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        file.write_all(&bytes).expect("written");
        let source = RawSource::open(file.path(), InUse::Refuse).expect("a source");
        assert_eq!(source.size(), ByteCount(10_007));
        let mut buf = AlignedBuf::zeroed(16_384).expect("a buffer");
        buf.fill(0xff);
        source.read_at(GuestOffset(0), &mut buf).expect("read");
        assert_eq!(&buf[..10_007], &bytes[..]);
        assert!(buf[10_007..].iter().all(|&byte| byte == 0));
        source.settle().expect("nothing changed");
    }

    #[test]
    fn a_file_that_shrinks_is_named_with_its_offset() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("sized");
        let source = RawSource::open(file.path(), InUse::Refuse).expect("a source");
        file.as_file().set_len(512 * 1024).expect("cut");
        let mut buf = AlignedBuf::zeroed(1 << 20).expect("a buffer");
        let error = source.read_at(GuestOffset(0), &mut buf).expect_err("half is gone");
        assert!(
            matches!(error, SourceError::Shrunk { offset: GuestOffset(524_288), size: 1_048_576, .. }),
            "{error:?}"
        );
        assert!(matches!(source.settle(), Err(SourceError::Changed { .. })));
    }

    #[test]
    fn holes_are_found_where_the_file_system_tells() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(8 << 20).expect("sized");
        file.write_all(&[1; 4096]).expect("written");
        let source = RawSource::open(file.path(), InUse::Refuse).expect("a source");
        let Extent::Data { end } = source.extent_at(GuestOffset(0)).expect("an answer") else {
            panic!("data at the front")
        };
        if end.0 < 8 << 20 {
            assert_eq!(source.extent_at(end).expect("an answer"), Extent::Hole { end: GuestOffset(8 << 20) });
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let refusal = |path: &Path| RawSource::open(path, InUse::Refuse).expect_err("no disk").to_string();
        assert!(refusal(folder.path()).contains("is a folder, not a block device"));
        assert!(refusal(Path::new("/dev/zero")).contains("is a character device"));
        assert!(refusal(&folder.path().join("none")).starts_with("cannot open"));
        let empty = folder.path().join("empty");
        std::fs::write(&empty, b"").expect("written");
        assert!(refusal(&empty).contains("is empty"));
    }
}
