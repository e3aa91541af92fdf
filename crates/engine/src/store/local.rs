//! Files of this machine, as images and disks are written to them: past the page cache where that goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use snapferry_base::units::{to_u64, to_usize};

/// What O_DIRECT asks of an address, a length and an offset at most: the largest sector in the field, and a page.
pub(crate) const ALIGNMENT: u64 = 4096;

/// Whether what is written stays in memory for who reads it next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// It goes past the page cache, and takes no memory from others.
    #[default]
    Bypass,
    /// It goes through the page cache, and on to the disk at the end.
    Use,
}

/// A file or device that is written at any place, by several threads at once.
#[derive(Debug)]
pub(crate) struct DirectFile {
    /// Through the page cache: for what is not aligned.
    cached: File,
    /// The same file past the page cache, where the file system takes that.
    direct: Option<File>,
    /// It refused a write: no more of them.
    direct_refused: AtomicBool,
    /// One write through the page cache at a time: the file system lets no two into a file, and whoever waits for it there does so spinning.
    turn: Mutex<()>,
}

impl DirectFile {
    /// A file that was opened twice, the second time with O_DIRECT, if that could be.
    pub fn new(cached: File, direct: Option<File>) -> Self {
        Self { cached, direct, direct_refused: AtomicBool::new(false), turn: Mutex::default() }
    }

    /// The file at `path`, which `cached` is, opened once more for writes past the page cache, where that is wanted and the file system
    /// takes it: not every one does (tmpfs before Linux 6.6, some of FUSE).
    pub fn at(path: &Path, cached: File, cache: PageCache) -> Self {
        let direct_flag = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let past_cache = || OpenOptions::new().write(true).custom_flags(direct_flag).open(path).ok();
        let direct = if cache == PageCache::Bypass { past_cache() } else { None };
        Self::new(cached, direct)
    }

    /// The file itself, for everything but writes.
    pub fn file(&self) -> &File {
        &self.cached
    }

    /// Writes all of `bytes`. Pages that `bytes` fill only in part go through the page cache whoever writes them, so that the two ways
    /// never meet in one page.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let done = self.write_direct(bytes, at)?;
        if done == bytes.len() {
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.cached.write_all_at(&bytes[done..], at + to_u64(done))
    }

    /// Writes what can go past the page cache, and says how much that was. The rest, and everything after a refusal, goes the ordinary
    /// way.
    fn write_direct(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let Some(direct) = self.direct.as_ref().filter(|_| !self.direct_refused.load(Relaxed)) else {
            return Ok(0);
        };
        let step = to_usize(ALIGNMENT);
        if !bytes.as_ptr().addr().is_multiple_of(step) || !at.is_multiple_of(ALIGNMENT) {
            return Ok(0);
        }
        let whole = bytes.len() - bytes.len() % step;
        let mut done = 0;
        // A write may be cut short anywhere; once it stops at an odd place, the rest goes the ordinary way.
        while done < whole && done.is_multiple_of(step) {
            match direct.write_at(&bytes[done..whole], at + to_u64(done)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if Errno::from_io_error(&err) == Some(Errno::INVAL) => {
                    self.direct_refused.store(true, Relaxed);
                    break;
                }
                Err(err) => return Err(err),
            }
        }
        Ok(done)
    }
}

/// Makes a rename in a folder survive a power cut, and a file that was made there.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let opened = match File::open(or_here(folder)) {
        // A folder may be written to and not listed: what is in it gets its turn with everything else of the system's.
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        opened => opened?,
    };
    match opened.sync_all() {
        // File systems that have nothing to sync there say so.
        Err(err) if Errno::from_io_error(&err) == Some(Errno::INVAL) => Ok(()),
        answer => answer,
    }
}

/// The folder, and this one where its path is empty, as `Path::parent` says of a bare file name.
pub(super) fn or_here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}
