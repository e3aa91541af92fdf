//! Targets of a restore: a file that has a hidden name until it is complete, or a block device that no other
//! process uses.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{
    Access, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat, access, fallocate, fstat, fsync,
    ftruncate, open, seek,
};
use rustix::io::{Errno, pread, retry_on_intr};
use snapferry_base::limits::OutOfMemory;
use snapferry_base::units::{ByteCount, GIB, GuestOffset, MIB, to_u64, to_usize};

use super::signature;
use crate::source::aligned::AlignedBuf;
use crate::store::Overwrite;
pub use crate::store::local::PageCache;
use crate::store::local::{ALIGNMENT, DirectFile};
use crate::store::new_file::{NewFile, new_id};

/// Most bytes of one request to zero a range of a device, so that a cancellation is noticed between requests.
const ZERO_AT_ONCE: u64 = GIB;
/// Bytes of one write of zeros, for devices that do not support a request to zero.
const ZERO_WRITE: u64 = MIB;

/// Error of a target that can't be used, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The target can't be opened or created.
    #[error("cannot open {path} for writing")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The target is of another kind than requested.
    #[error("{path} is not {required}")]
    Kind {
        path: String,
        /// The kind that was requested.
        required: RequiredKind,
    },
    /// The target is mounted, or another process uses it exclusively.
    #[error("{path} is in use: it is mounted, or part of something that is")]
    Busy { path: String },
    /// The path led to another file when it was opened than before.
    #[error("{path} was replaced while it was opened")]
    Replaced { path: String },
    /// The target is too small.
    #[error("{path} has {has}, and the image holds a disk of {needs}")]
    TooSmall {
        path: String,
        /// Size of the target.
        has: ByteCount,
        /// Size of the disk.
        needs: ByteCount,
    },
    /// The target holds data.
    #[error("{path} holds {content}")]
    Holds {
        path: String,
        /// Kind of the data.
        content: &'static str,
    },
    /// A file of that name exists already.
    #[error("{path} exists already")]
    Exists { path: String },
    /// The target is read-only.
    #[error("{path} is read-only")]
    ReadOnly { path: String },
    #[error("{path}: write error at offset {offset}")]
    Write {
        path: String,
        offset: GuestOffset,
        #[source]
        source: io::Error,
    },
    /// The system refused memory for a buffer.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// Another operation on the target failed.
    #[error("{path}: {operation} failed")]
    Ask {
        path: String,
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Kind of target that a path has to lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredKind {
    RegularFile,
    FileName,
    BlockDevice,
    DeviceOrFile,
}

impl fmt::Display for RequiredKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RegularFile => "a regular file",
            Self::FileName => "a file's name",
            Self::BlockDevice => "a block device",
            Self::DeviceOrFile => "a block device or a regular file",
        })
    }
}

/// Treatment of the ranges of a device where the image holds zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPolicy {
    /// Ranges are discarded if the device then promises zeros, and zeroed otherwise.
    #[default]
    Discard,
    /// Ranges are zeroed, and stay allocated.
    Write,
    /// Ranges are left as they are: for a device that is known to hold zeros.
    Skip,
}

/// Error for a name that is not one of the policies.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is none of discard, write, skip")]
pub struct UnknownPolicyError(String);

impl FromStr for ZeroPolicy {
    type Err = UnknownPolicyError;
    fn from_str(typed: &str) -> Result<Self, UnknownPolicyError> {
        match typed {
            "discard" => Ok(Self::Discard),
            "write" => Ok(Self::Write),
            "skip" => Ok(Self::Skip),
            other => Err(UnknownPolicyError(other.to_owned())),
        }
    }
}

/// Target that is open for writing.
#[derive(Debug)]
pub enum Target {
    File(FileTarget),
    Device(DeviceTarget),
}

/// Content of a target before it is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// There is no file of that name.
    Nothing,
    /// A file, which is replaced.
    File { size: ByteCount },
    /// A block device, whose bytes are written over.
    Device {
        size: ByteCount,
        /// Kind of the data on it, if it holds any.
        content: Option<&'static str>,
    },
}

/// Open file or device that takes the writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk<'a> {
    pub path: &'a str,
    file: &'a DirectFile,
}

impl Disk<'_> {
    /// Writes all of `bytes` at offset `at`.
    pub fn write(&self, bytes: &[u8], at: GuestOffset) -> Result<(), TargetError> {
        self.file.write(bytes, at.0).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ROFS) => TargetError::ReadOnly { path: self.path.to_owned() },
            _ => TargetError::Write { path: self.path.to_owned(), offset: at, source },
        })
    }

    /// Flushes all writes, so that they survive a power cut.
    pub fn sync(&self) -> Result<(), TargetError> {
        retry_on_intr(|| fsync(self.file.file()))
            .map_err(|errno| self.operation_error("flushing what was written", errno))
    }

    fn operation_error(&self, operation: &'static str, errno: Errno) -> TargetError {
        TargetError::Ask { path: self.path.to_owned(), operation, source: errno.into() }
    }
}

/// New file that has a hidden name until it is [published](FileTarget::publish). Dropping it before that
/// abandons it.
#[derive(Debug)]
pub struct FileTarget {
    path: String,
    new: NewFile,
    published: bool,
}

impl FileTarget {
    /// Creates a sparse file of `size` bytes that will be called `to`. If `to` exists and may be replaced,
    /// but the system can't replace it, it is emptied and written in place.
    ///
    /// # Errors
    /// If the file exists and must not be replaced, or none can be created.
    pub fn create(
        to: &Path,
        size: ByteCount,
        overwrite: Overwrite,
        cache: PageCache,
    ) -> Result<Self, TargetError> {
        let path = to.display().to_string();
        Self::check(to, overwrite)?;
        let new = NewFile::begin(to, &new_id(), overwrite, cache)
            .map_err(|source| TargetError::Open { path: path.clone(), source })?;
        let target = Self { path, new, published: false };
        ftruncate(target.new.file().file(), size.0)
            .map_err(|errno| target.disk().operation_error("making a sparse file", errno))?;
        Ok(target)
    }

    /// Checks that a file may be created at `to`, or may be replaced. Returns the file that is there.
    fn check(to: &Path, overwrite: Overwrite) -> Result<Option<Metadata>, TargetError> {
        let path = to.display().to_string();
        let there = match to.symlink_metadata() {
            Ok(found) => {
                let found = to.metadata().unwrap_or(found);
                if !found.is_file() {
                    return Err(TargetError::Kind { path, required: RequiredKind::RegularFile });
                }
                if overwrite == Overwrite::Refuse {
                    return Err(TargetError::Exists { path });
                }
                Some(found)
            }
            Err(_) => None,
        };
        if to.file_name().is_none() {
            return Err(TargetError::Kind { path, required: RequiredKind::FileName });
        }
        Ok(there)
    }

    /// Looks at the place of the file as [`FileTarget::create`] does, without creating it.
    ///
    /// # Errors
    /// If the file exists and must not be replaced, or the system would refuse to write it.
    pub fn examine(to: &Path, overwrite: Overwrite) -> Result<Existing, TargetError> {
        let there = Self::check(to, overwrite)?;
        let folder = match to.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let denied = match access(folder, Access::WRITE_OK | Access::EXEC_OK) {
            // A file that can't be replaced is written in place.
            Err(_) if there.is_some() => access(to, Access::WRITE_OK),
            allowed => allowed,
        };
        denied.map_err(|errno| TargetError::Open { path: to.display().to_string(), source: errno.into() })?;
        Ok(there.map_or(Existing::Nothing, |found| Existing::File { size: ByteCount(found.len()) }))
    }

    pub(crate) fn disk(&self) -> Disk<'_> {
        Disk { path: &self.path, file: self.new.file() }
    }

    /// True if the file is written in place, so that its previous content is lost.
    pub(crate) fn is_in_place(&self) -> bool {
        self.new.is_in_place()
    }

    /// Gives the file its name, after all of it is on the disk.
    ///
    /// # Errors
    /// If another process has created a file of that name meanwhile, or the disk fails.
    pub fn publish(mut self) -> Result<(), TargetError> {
        self.disk().sync()?;
        let failed =
            |operation, source: io::Error| TargetError::Ask { path: self.path.clone(), operation, source };
        self.new.publish().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => TargetError::Exists { path: self.path.clone() },
            _ => failed("giving it its name", source),
        })?;
        let settled = self.new.settle().map_err(|source| failed("flushing its folder", source));
        self.published = true;
        settled
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        if !self.published {
            // The caller has the error that led here; this one would hide it.
            let _ = self.new.abandon();
        }
    }
}

/// Block device that this process has opened exclusively, or a file that is written in place.
#[derive(Debug)]
pub struct DeviceTarget {
    path: String,
    file: DirectFile,
    zero: ZeroPolicy,
}

impl DeviceTarget {
    pub(crate) fn disk(&self) -> Disk<'_> {
        Disk { path: &self.path, file: &self.file }
    }

    /// Opens the device at `path` exclusively.
    ///
    /// # Errors
    /// If it is not a block device, is in use, has less than `size` bytes, or holds data and `overwrite`
    /// refuses to lose it.
    pub fn open(
        path: &Path,
        size: ByteCount,
        overwrite: Overwrite,
        zero: ZeroPolicy,
    ) -> Result<Self, TargetError> {
        let display_path = path.display().to_string();
        let base = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let (found, cached) = open_exclusively(path, base)?;
        let direct = open(path, base | OFlags::DIRECT, Mode::empty()).ok();
        [Some(&cached), direct.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|opened| check_same_file(&display_path, &found, opened))?;
        let file = DirectFile::new(cached.into(), direct.map(File::from));
        let target = Self { path: display_path.clone(), file, zero };
        let has = target.room_for(size)?;
        if overwrite == Overwrite::Refuse
            && let Some(content) = target.detect_content(has.0)?
        {
            return Err(TargetError::Holds { path: display_path, content });
        }
        Ok(target)
    }

    /// Looks at the device as [`DeviceTarget::open`] does, without opening it for writing.
    ///
    /// # Errors
    /// As [`DeviceTarget::open`], except that a read-only device is not noticed.
    pub fn examine(path: &Path, size: ByteCount, overwrite: Overwrite) -> Result<Existing, TargetError> {
        let display_path = path.display().to_string();
        let (found, opened) = open_exclusively(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK)?;
        check_same_file(&display_path, &found, &opened)?;
        let file = DirectFile::new(opened.into(), None);
        let target = Self { path: display_path, file, zero: ZeroPolicy::Skip };
        let has = target.room_for(size)?;
        match target.detect_content(has.0)? {
            Some(content) if overwrite == Overwrite::Refuse => {
                Err(TargetError::Holds { path: target.path, content })
            }
            content => Ok(Existing::Device { size: has, content }),
        }
    }

    /// Returns the size of the device, if a disk of `size` bytes fits.
    fn room_for(&self, size: ByteCount) -> Result<ByteCount, TargetError> {
        let end = seek(self.file.file(), SeekFrom::End(0));
        let has = ByteCount(end.map_err(|errno| self.disk().operation_error("asking for the size", errno))?);
        if has < size {
            return Err(TargetError::TooSmall { path: self.path.clone(), has, needs: size });
        }
        Ok(has)
    }

    /// Opens a device, or a file that is long enough, to overwrite its content.
    ///
    /// # Errors
    /// If it is neither, is a device in use, or has less than `size` bytes.
    pub fn overwrite(path: &Path, size: ByteCount, zero: ZeroPolicy) -> Result<Self, TargetError> {
        let display_path = path.display().to_string();
        let found = rustix::fs::stat(path)
            .map_err(|errno| TargetError::Open { path: display_path.clone(), source: errno.into() })?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::BlockDevice => Self::open(path, size, Overwrite::Replace, zero),
            FileType::RegularFile => {
                let failed =
                    |errno: Errno| TargetError::Open { path: display_path.clone(), source: errno.into() };
                let base = OFlags::RDWR | OFlags::CLOEXEC;
                let cached = retry_on_intr(|| open(path, base, Mode::empty())).map_err(failed)?;
                let direct = open(path, base | OFlags::DIRECT, Mode::empty()).ok();
                [Some(&cached), direct.as_ref()]
                    .into_iter()
                    .flatten()
                    .try_for_each(|opened| check_same_file(&display_path, &found, opened))?;
                let file = DirectFile::new(cached.into(), direct.map(File::from));
                let has = ByteCount(u64::try_from(found.st_size).unwrap_or(0));
                if has < size {
                    return Err(TargetError::TooSmall { path: display_path, has, needs: size });
                }
                Ok(Self { path: display_path, file, zero })
            }
            _ => Err(TargetError::Kind { path: display_path, required: RequiredKind::DeviceOrFile }),
        }
    }

    fn detect_content(&self, size: u64) -> Result<Option<&'static str>, TargetError> {
        let mut front = vec![0; signature::FRONT.min(to_usize(size))];
        let mut back = vec![0; signature::BACK.min(to_usize(size))];
        let back_at = size - to_u64(back.len());
        for (bytes, at) in [(&mut front, 0), (&mut back, back_at)] {
            let mut done = 0;
            while done < bytes.len() {
                match retry_on_intr(|| pread(self.file.file(), &mut bytes[done..], at + to_u64(done))) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(errno) => return Err(self.disk().operation_error("looking at what it holds", errno)),
                }
            }
        }
        Ok(signature::find(&front, &back))
    }

    /// Makes a range read as zeros, as the policy says. Stops early, without an error, if `go_on` returns
    /// false.
    pub(crate) fn zero(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> Result<(), TargetError> {
        if self.zero == ZeroPolicy::Skip {
            return Ok(());
        }
        // Requests cover whole pages only, because the kernel drops whole pages from its cache; the edges are
        // written.
        let (first, last) = (range.start.next_multiple_of(ALIGNMENT), range.end / ALIGNMENT * ALIGNMENT);
        if first >= last {
            return self.write_zeros(range, go_on);
        }
        self.write_zeros(range.start..first, go_on)?;
        let mut at = first;
        while at < last && go_on() {
            let end = last.min(at + ZERO_AT_ONCE);
            self.zero_pages(at..end, go_on)?;
            at = end;
        }
        self.write_zeros(last..range.end, go_on)
    }

    fn zero_pages(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> Result<(), TargetError> {
        // For a block device, punching a hole is a discard that promises zeros, and fails if the device can't
        // promise them; zeroing a range is what `blkdiscard --zeroout` does (Linux, block/fops.c).
        let modes: &[FallocateFlags] = match self.zero {
            ZeroPolicy::Discard => &[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE],
            ZeroPolicy::Write => &[FallocateFlags::ZERO_RANGE],
            ZeroPolicy::Skip => return Ok(()),
        };
        for &mode in modes {
            let flags = mode | FallocateFlags::KEEP_SIZE;
            match retry_on_intr(|| fallocate(self.file.file(), flags, range.start, range.end - range.start)) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
                Err(errno) => {
                    let offset = GuestOffset(range.start);
                    return Err(TargetError::Write { path: self.path.clone(), offset, source: errno.into() });
                }
            }
        }
        self.write_zeros(range, go_on)
    }

    fn write_zeros(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> Result<(), TargetError> {
        if range.is_empty() {
            return Ok(());
        }
        let zeros = AlignedBuf::zeroed(to_usize(ZERO_WRITE))?;
        let mut at = range.start;
        while at < range.end && go_on() {
            let end = range.end.min((at / ZERO_WRITE + 1) * ZERO_WRITE);
            self.disk().write(&zeros[..to_usize(end - at)], GuestOffset(at))?;
            at = end;
        }
        Ok(())
    }
}

/// Opens a block device exclusively: the kernel reserves it for this process, and refuses one that is mounted
/// or part of another device. Returns what was found at the path before, too.
fn open_exclusively(path: &Path, flags: OFlags) -> Result<(Stat, OwnedFd), TargetError> {
    let display_path = path.display().to_string();
    let failed = |errno: Errno| TargetError::Open { path: display_path.clone(), source: errno.into() };
    let probe = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let found = fstat(&probe).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return Err(TargetError::Kind { path: display_path, required: RequiredKind::BlockDevice });
    }
    match retry_on_intr(|| open(path, flags | OFlags::EXCL, Mode::empty())) {
        Err(Errno::BUSY) => Err(TargetError::Busy { path: display_path }),
        opened => Ok((found, opened.map_err(failed)?)),
    }
}

/// Checks that the opened file is the one that was found at the path: a name under /dev can pass to another
/// device in between.
fn check_same_file(path: &str, found: &Stat, opened: &OwnedFd) -> Result<(), TargetError> {
    let mark = |stat: &Stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // A device may have several device files, so their inodes are not compared.
        if kind == FileType::BlockDevice { (kind, stat.st_rdev, 0) } else { (kind, stat.st_dev, stat.st_ino) }
    };
    let opened =
        fstat(opened).map_err(|errno| TargetError::Open { path: path.to_owned(), source: errno.into() })?;
    if mark(found) == mark(&opened) { Ok(()) } else { Err(TargetError::Replaced { path: path.to_owned() }) }
}

impl Target {
    pub(crate) fn disk(&self) -> Disk<'_> {
        match self {
            Self::File(file) => file.disk(),
            Self::Device(device) => device.disk(),
        }
    }

    /// True if the first write destroys the previous content.
    pub(crate) fn is_in_place(&self) -> bool {
        match self {
            Self::File(file) => file.is_in_place(),
            Self::Device(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_elsewhere_when_it_is_opened_again_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (folder.path().join("disk"), folder.path().join("other"));
        std::fs::write(&path, b"one").expect("written");
        std::fs::write(&other, b"other").expect("written");
        let found = rustix::fs::stat(&path).expect("it is there");
        let again = || OwnedFd::from(File::open(&path).expect("opened"));
        assert!(check_same_file("disk", &found, &again()).is_ok());
        std::fs::rename(&other, &path).expect("replaced");
        assert!(matches!(check_same_file("disk", &found, &again()), Err(TargetError::Replaced { .. })));
    }
}
