//! Files of this machine to which images and disks are written: past the page cache if possible.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{OFlags, copy_file_range};
use rustix::io::Errno;
use snapferry_base::units::{MIB, to_u64, to_usize};

use crate::hash::Crc64;

/// Alignment in bytes of address, length and offset that is enough for O_DIRECT everywhere: the largest
/// sector in use, and a page.
pub(crate) const ALIGNMENT: u64 = 4096;

/// Bytes that a copy reads at a time if the system can't copy from file to file.
const PIECE: u64 = MIB;

/// Use of the page cache by writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// Writes go past the page cache, and take no memory from other processes.
    #[default]
    Bypass,
    /// Writes go through the page cache, and to the disk at the end. The next reader finds them in memory.
    Use,
}

/// Result of a copy from file to file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Number of bytes that were copied: fewer than requested only if the source ends before them.
    pub len: u64,
    /// Checksum of these bytes, if all of them passed through this process.
    pub crc64: Option<Crc64>,
}

/// File or device that several threads write at once, at any offset.
#[derive(Debug)]
pub(crate) struct DirectFile {
    /// The file opened through the page cache, for writes that are not aligned.
    cached: File,
    /// The same file opened past the page cache, if the file system supports that.
    direct: Option<File>,
    /// True if `direct` has refused a write. Then all later writes go through the page cache.
    direct_refused: AtomicBool,
    /// Lock for writes through the page cache: the file system allows only one at a time in a file, and a
    /// thread that waits for it inside the file system spins.
    turn: Mutex<()>,
}

impl DirectFile {
    /// Wraps a file that was opened twice, the second time with O_DIRECT if that was possible.
    pub fn new(cached: File, direct: Option<File>) -> Self {
        Self { cached, direct, direct_refused: AtomicBool::new(false), turn: Mutex::default() }
    }

    /// Opens the file at `path`, which is already open as `cached`, once more for writes past the page cache,
    /// if that is wanted and the file system supports it: not every one does (tmpfs before Linux 6.6, some of
    /// FUSE).
    pub fn at(path: &Path, cached: File, cache: PageCache) -> Self {
        let direct_flag = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let past_cache = || OpenOptions::new().write(true).custom_flags(direct_flag).open(path).ok();
        let direct = if cache == PageCache::Bypass { past_cache() } else { None };
        Self::new(cached, direct)
    }

    /// Returns the file itself, for everything but writes.
    pub fn file(&self) -> &File {
        &self.cached
    }

    /// Writes all of `bytes` at offset `at`. Pages that `bytes` fill only in part always go through the page
    /// cache, so that the two kinds of write never meet in one page.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let done = self.write_direct(bytes, at)?;
        if done == bytes.len() {
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.cached.write_all_at(&bytes[done..], at + to_u64(done))
    }

    /// Copies a range of another file to offset `at`. If both offsets lie equally in their blocks, the system
    /// copies the whole blocks: on XFS and btrfs the two files then share them, which takes neither time nor
    /// room. All other bytes are read and written.
    pub fn copy(&self, source: &File, range: &Range<u64>, at: u64) -> io::Result<Copied> {
        let front = range.start.next_multiple_of(ALIGNMENT).min(range.end);
        let back = (range.end - range.end % ALIGNMENT).max(front);
        let alike = range.start % ALIGNMENT == at % ALIGNMENT;
        let shared = if alike && back > front {
            self.share(source, front..back, at + (front - range.start))?
        } else {
            0
        };
        if shared == 0 {
            return self.copy_through_memory(source, range, at);
        }
        let before = self.copy_through_memory(source, &(range.start..front), at)?.len;
        let rest = front + shared;
        let behind = self.copy_through_memory(source, &(rest..range.end), at + (rest - range.start))?.len;
        Ok(Copied { len: before + shared + behind, crc64: None })
    }

    /// Lets the system copy whole blocks, and returns the number of bytes that it copied: 0 if it can't.
    fn share(&self, source: &File, range: Range<u64>, at: u64) -> io::Result<u64> {
        let (mut from, mut to) = (range.start, at);
        while from < range.end {
            let len = to_usize(range.end - from);
            match copy_file_range(source, Some(&mut from), &self.cached, Some(&mut to), len) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV) => break,
                Err(err) => return Err(err.into()),
            }
        }
        Ok(from - range.start)
    }

    fn copy_through_memory(&self, source: &File, range: &Range<u64>, at: u64) -> io::Result<Copied> {
        let mut buf = vec![0; to_usize(PIECE + ALIGNMENT)];
        // Whole blocks can go past the page cache only if their bytes lie in memory as they will in the file.
        let skip = buf.as_ptr().align_offset(to_usize(ALIGNMENT)).min(to_usize(ALIGNMENT));
        let (mut len, mut crc64) = (0, Crc64::default());
        while range.start + len < range.end {
            let from = range.start + len;
            let to_block = ALIGNMENT - (at + len) % ALIGNMENT;
            let piece = if to_block < ALIGNMENT { to_block } else { PIECE };
            let room = &mut buf[skip..][..to_usize(piece.min(range.end - from))];
            let read = match source.read_at(room, from) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                break;
            }
            self.write(&room[..read], at + len)?;
            crc64 = crc64.then(Crc64::of(&room[..read]), to_u64(read));
            len += to_u64(read);
        }
        Ok(Copied { len, crc64: Some(crc64) })
    }

    /// Writes as much as can go past the page cache, and returns how much that was. The rest, and everything
    /// after a refusal, goes through the page cache.
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
        // A write may be cut short anywhere. Once it stops at an unaligned offset, the rest goes through the
        // page cache.
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

/// Flushes a folder, so that a rename in it, or a file that was created in it, survives a power cut.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let opened = match File::open(or_current_dir(folder)) {
        // A process may be allowed to write to a folder but not to list it. Then its content is flushed
        // later, with all else of the system.
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        opened => opened?,
    };
    match opened.sync_all() {
        // File systems that have nothing to flush there return this error.
        Err(err) if Errno::from_io_error(&err) == Some(Errno::INVAL) => Ok(()),
        answer => answer,
    }
}

/// Returns the folder, or `.` if its path is empty, as `Path::parent` returns it for a bare file name.
pub(super) fn or_current_dir(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}
