//! What an image is restored to: a file under a hidden name until it is whole, or a block device that nobody else uses.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat, fallocate, fstat, fsync, ftruncate, open, seek,
};
use rustix::io::{Errno, pread, retry_on_intr};
use snapferry_base::limits::OutOfMemory;
use snapferry_base::units::{ByteCount, GIB, GuestOffset, MIB, to_u64, to_usize};

use super::signature;
use crate::source::aligned::AlignedBuf;
use crate::store::landing::{IfThere, NewFile, new_id};
pub use crate::store::local::PageCache;
use crate::store::local::{ALIGNMENT, DirectFile};

/// One request to zero a device's range, so that being told to stop is noticed in between.
const ZERO_AT_ONCE: u64 = GIB;
/// One write of zeros, where a device can't be asked.
const ZERO_WRITE: u64 = MIB;

/// Why a target is not used, or failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It can't be opened or made.
    #[error("cannot open {path} for writing")]
    Open {
        /// The target.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It is not what was asked for.
    #[error("{path} is not {wanted}")]
    Kind {
        /// The target.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// Somebody has mounted it, or uses it exclusively.
    #[error("{path} is in use: it is mounted, or part of something that is")]
    Busy {
        /// The target.
        path: String,
    },
    /// The path led to something else when it was opened than before.
    #[error("{path} was replaced while it was opened")]
    Replaced {
        /// The target.
        path: String,
    },
    /// It is too small.
    #[error("{path} has {has}, and the image holds a disk of {needs}")]
    TooSmall {
        /// The target.
        path: String,
        /// Its size.
        has: ByteCount,
        /// The disk's size.
        needs: ByteCount,
    },
    /// It holds something.
    #[error("{path} holds {what}")]
    Holds {
        /// The target.
        path: String,
        /// What.
        what: &'static str,
    },
    /// There is a file of that name.
    #[error("{path} exists already")]
    Exists {
        /// The target.
        path: String,
    },
    /// It may only be read.
    #[error("{path} is read-only")]
    ReadOnly {
        /// The target.
        path: String,
    },
    /// A write failed.
    #[error("{path}: write error at offset {offset}")]
    Write {
        /// The target.
        path: String,
        /// Where.
        offset: GuestOffset,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no memory for what is written.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// Something else that was asked of it failed.
    #[error("{path}: {what} failed")]
    Ask {
        /// The target.
        path: String,
        /// What was asked.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Whether what is there may be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// Refuse.
    #[default]
    No,
    /// Write over it.
    Yes,
}

/// What becomes of a device where the image holds zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPolicy {
    /// Discarded where the device then promises zeros, zeroed otherwise.
    #[default]
    Discard,
    /// Zeroed, and kept allocated.
    Write,
    /// Left as it is: for a device that is known to hold zeros.
    Skip,
}

/// A name that none of the policies has.
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

/// An open target.
#[derive(Debug)]
pub enum Target {
    /// A file.
    File(FileTarget),
    /// A block device.
    Device(DeviceTarget),
}

/// What is written to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk<'a> {
    pub path: &'a str,
    file: &'a DirectFile,
}

impl Disk<'_> {
    /// Writes all of `bytes`.
    pub fn write(&self, bytes: &[u8], at: GuestOffset) -> Result<(), TargetError> {
        self.file.write(bytes, at.0).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ROFS) => TargetError::ReadOnly { path: self.path.to_owned() },
            _ => TargetError::Write { path: self.path.to_owned(), offset: at, source },
        })
    }

    /// Makes what was written survive a power cut.
    pub fn sync(&self) -> Result<(), TargetError> {
        retry_on_intr(|| fsync(self.file.file()))
            .map_err(|errno| self.asked("flushing what was written", errno))
    }

    fn asked(&self, what: &'static str, errno: Errno) -> TargetError {
        TargetError::Ask { path: self.path.to_owned(), what, source: errno.into() }
    }
}

/// A file on its way to its name; given up unless it is [published](FileTarget::publish).
#[derive(Debug)]
pub struct FileTarget {
    path: String,
    new: NewFile,
    published: bool,
}

impl FileTarget {
    /// Makes a sparse file of `size` bytes that will be called `to`. One that is there and may be replaced, but can't be, is emptied and
    /// written where it lies.
    ///
    /// # Errors
    /// Where there is one already and that was not to be replaced, or none can be made.
    pub fn create(to: &Path, size: ByteCount, force: Force, cache: PageCache) -> Result<Self, TargetError> {
        let path = to.display().to_string();
        if let Ok(found) = to.symlink_metadata() {
            if !to.metadata().unwrap_or(found).is_file() {
                return Err(TargetError::Kind { path, wanted: "a regular file" });
            }
            if force == Force::No {
                return Err(TargetError::Exists { path });
            }
        }
        if to.file_name().is_none() {
            return Err(TargetError::Kind { path, wanted: "a file's name" });
        }
        let if_there = if force == Force::Yes { IfThere::Replace } else { IfThere::Refuse };
        let new = NewFile::begin(to, &new_id(), if_there, cache)
            .map_err(|source| TargetError::Open { path: path.clone(), source })?;
        let target = Self { path, new, published: false };
        ftruncate(target.new.file().file(), size.0)
            .map_err(|errno| target.disk().asked("making a sparse file", errno))?;
        Ok(target)
    }

    pub(crate) fn disk(&self) -> Disk<'_> {
        Disk { path: &self.path, file: self.new.file() }
    }

    /// Whether it is written where it lies, so that nothing is left of what was there before.
    pub(crate) fn is_in_place(&self) -> bool {
        self.new.is_in_place()
    }

    /// Gives the file its name, once all of it is on the disk.
    ///
    /// # Errors
    /// Where a file of that name has come up meanwhile, or the disk fails.
    pub fn publish(mut self) -> Result<(), TargetError> {
        self.disk().sync()?;
        let failed = |what, source: io::Error| TargetError::Ask { path: self.path.clone(), what, source };
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
            // The error that led here counts.
            let _ = self.new.abandon();
        }
    }
}

/// A block device, claimed for us alone; or a file that is written where it lies.
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

    /// Claims the device at `path`.
    ///
    /// # Errors
    /// Where it is no block device, is in use, has less than `size` bytes, or holds something that was not to be lost.
    pub fn open(path: &Path, size: ByteCount, force: Force, zero: ZeroPolicy) -> Result<Self, TargetError> {
        let shown = path.display().to_string();
        let failed = |errno: Errno| TargetError::Open { path: shown.clone(), source: errno.into() };
        let base = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let probe = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let found = fstat(&probe).map_err(failed)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
            return Err(TargetError::Kind { path: shown, wanted: "a block device" });
        }
        // The kernel keeps it for us, and refuses one that is mounted or part of something.
        let cached = match retry_on_intr(|| open(path, base | OFlags::EXCL, Mode::empty())) {
            Err(Errno::BUSY) => return Err(TargetError::Busy { path: shown }),
            opened => opened.map_err(failed)?,
        };
        let direct = open(path, base | OFlags::DIRECT, Mode::empty()).ok();
        [Some(&cached), direct.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|opened| is_still(&shown, &found, opened))?;
        let file = DirectFile::new(cached.into(), direct.map(File::from));
        let target = Self { path: shown.clone(), file, zero };
        let end = seek(target.file.file(), SeekFrom::End(0));
        let has = ByteCount(end.map_err(|errno| target.disk().asked("asking for the size", errno))?);
        if has < size {
            return Err(TargetError::TooSmall { path: shown, has, needs: size });
        }
        if force == Force::No
            && let Some(what) = target.holds(has.0)?
        {
            return Err(TargetError::Holds { path: shown, what });
        }
        Ok(target)
    }

    /// Opens a device, or a file that is long enough, to be written over whatever it holds.
    ///
    /// # Errors
    /// Where it is neither, is a device in use, or has less than `size` bytes.
    pub fn overwrite(path: &Path, size: ByteCount, zero: ZeroPolicy) -> Result<Self, TargetError> {
        let shown = path.display().to_string();
        let found = rustix::fs::stat(path)
            .map_err(|errno| TargetError::Open { path: shown.clone(), source: errno.into() })?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::BlockDevice => Self::open(path, size, Force::Yes, zero),
            FileType::RegularFile => {
                let failed = |errno: Errno| TargetError::Open { path: shown.clone(), source: errno.into() };
                let base = OFlags::RDWR | OFlags::CLOEXEC;
                let cached = retry_on_intr(|| open(path, base, Mode::empty())).map_err(failed)?;
                let direct = open(path, base | OFlags::DIRECT, Mode::empty()).ok();
                [Some(&cached), direct.as_ref()]
                    .into_iter()
                    .flatten()
                    .try_for_each(|opened| is_still(&shown, &found, opened))?;
                let file = DirectFile::new(cached.into(), direct.map(File::from));
                let has = ByteCount(u64::try_from(found.st_size).unwrap_or(0));
                if has < size {
                    return Err(TargetError::TooSmall { path: shown, has, needs: size });
                }
                Ok(Self { path: shown, file, zero })
            }
            _ => Err(TargetError::Kind { path: shown, wanted: "a block device or a regular file" }),
        }
    }

    fn holds(&self, size: u64) -> Result<Option<&'static str>, TargetError> {
        let mut front = vec![0; signature::FRONT.min(to_usize(size))];
        let mut back = vec![0; signature::BACK.min(to_usize(size))];
        let back_at = size - to_u64(back.len());
        for (bytes, at) in [(&mut front, 0), (&mut back, back_at)] {
            let mut done = 0;
            while done < bytes.len() {
                match retry_on_intr(|| pread(self.file.file(), &mut bytes[done..], at + to_u64(done))) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(errno) => return Err(self.disk().asked("looking at what it holds", errno)),
                }
            }
        }
        Ok(signature::find(&front, &back))
    }

    /// Sees to it that a range reads as zeros, as the policy says. Stops early, with success, when `go_on` says no.
    pub(crate) fn zero(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> Result<(), TargetError> {
        if self.zero == ZeroPolicy::Skip {
            return Ok(());
        }
        // Whole pages only, for the kernel drops those from its cache; what is left at the edges is written.
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
        // For a block device, punching a hole is a discard that promises zeros, and is refused where the device can't promise;
        // zeroing a range is what `blkdiscard --zeroout` does (Linux, block/fops.c).
        let ways: &[FallocateFlags] = match self.zero {
            ZeroPolicy::Discard => &[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE],
            ZeroPolicy::Write => &[FallocateFlags::ZERO_RANGE],
            ZeroPolicy::Skip => return Ok(()),
        };
        for &way in ways {
            let flags = way | FallocateFlags::KEEP_SIZE;
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

/// Whether what was opened is what was found at the path: a name under /dev can pass to another device in between.
fn is_still(path: &str, found: &Stat, opened: &OwnedFd) -> Result<(), TargetError> {
    let mark = |stat: &Stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // A device has as many files as it has names.
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

    /// Whether what was there before is lost with the first write.
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
        assert!(is_still("disk", &found, &again()).is_ok());
        std::fs::rename(&other, &path).expect("replaced");
        assert!(matches!(is_still("disk", &found, &again()), Err(TargetError::Replaced { .. })));
    }
}
