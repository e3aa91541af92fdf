//! Files of this machine, as images and disks are written to them: past the page cache where that goes, under a hidden name until they
//! are whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::units::{to_u64, to_usize};

/// Ends hidden names: `.disk.qcow2.1234-00c0ffee00c0ffee.partial`.
pub(super) const SUFFIX: &str = ".partial";
/// What O_DIRECT asks of an address, a length and an offset at most: the largest sector in the field, and a page.
pub(crate) const ALIGNMENT: u64 = 4096;

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
        let Some(direct) = self.direct.as_ref().filter(|_| !self.direct_refused.load(Relaxed)) else { return Ok(0) };
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

/// A hidden name beside `path`, for a file that is not whole yet; nothing where `path` does not name a file.
pub(crate) fn hidden_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    Some(path.with_file_name(hidden_name(&name, &new_id())))
}

/// The hidden name of a file that will be called `name`.
pub(super) fn hidden_name(name: &str, id: &str) -> String {
    format!(".{name}.{id}{SUFFIX}")
}

/// A name that nobody else has chosen: for people the process, for machines a random number.
pub(super) fn new_id() -> String {
    format!("{}-{:016x}", std::process::id(), rand::random::<u64>())
}

/// Whether it is one of those.
pub(super) fn is_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(pid, random)| {
        !pid.is_empty()
            && pid.bytes().all(|b| b.is_ascii_digit())
            && random.len() == 16
            && random.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfThere {
    /// It makes room.
    Replace,
    /// It stays, and the new one gets no name.
    Refuse,
}

/// Gives a file its name.
pub(crate) fn publish(from: &Path, to: &Path, if_there: IfThere) -> io::Result<()> {
    if if_there == IfThere::Replace {
        return std::fs::rename(from, to);
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can (NFS, some of FUSE). A link fails where there is a file already, just as well.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        answer => answer.map_err(io::Error::from),
    }
}

/// Makes a rename in a folder survive a power cut, and a file that was made there.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(or_here(folder))?.sync_all() {
        // File systems that have nothing to sync there say so.
        Err(err) if Errno::from_io_error(&err) == Some(Errno::INVAL) => Ok(()),
        answer => answer,
    }
}

/// The folder, and this one where its path is empty, as `Path::parent` says of a bare file name.
pub(super) fn or_here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}
