//! Creation of files: a file has a hidden name until it is complete, and is renamed then. If the system can't
//! replace an existing file that way, it is written in place.
//!
//! Which of the two is possible is found out before the first byte is written: the operations of the end are
//! tried with empty files. A folder that takes no new files, a file that is a mount point, a file system that
//! supports neither `RENAME_NOREPLACE` nor links: opening a hidden file detects none of these.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags, renameat_with, statx, unlinkat};
use rustix::io::Errno;

use super::Overwrite;
use super::local::{DirectFile, PageCache, sync_folder};

/// Suffix of hidden names: `.disk.qcow2.1234-00c0ffee00c0ffee.partial`.
const SUFFIX: &str = ".partial";
/// Longest hidden name, in bytes: the limit of eCryptfs, the lowest of all file systems in use. Others allow
/// 255 bytes or characters.
const LONGEST_HIDDEN: usize = 143;

/// Location of a file until it is complete.
#[derive(Debug)]
enum Placement {
    /// Beside its final path, under a hidden name.
    Hidden { path: PathBuf, overwrite: Overwrite },
    /// At its final path.
    InPlace,
}

/// File that is being written. The owner must publish or abandon it.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: DirectFile,
    to: PathBuf,
    placement: Placement,
}

impl NewFile {
    /// Creates an empty file that will be called `to`, with `id` in its hidden name until then.
    ///
    /// # Errors
    /// If the file could not be published in the end, or the system has no room for a file.
    pub fn begin(to: &Path, id: &str, overwrite: Overwrite, cache: PageCache) -> io::Result<Self> {
        let refused = match probe(to, overwrite) {
            Ok(()) => {
                let path = hidden_path(to, id).ok_or(io::ErrorKind::InvalidFilename)?;
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
                let file = DirectFile::at(&path, file, cache);
                return Ok(Self {
                    file,
                    to: to.to_owned(),
                    placement: Placement::Hidden { path, overwrite },
                });
            }
            Err(refused) => refused,
        };
        let Some(file) = open_in_place(to, overwrite, &refused) else { return Err(refused) };
        file.set_len(0)?;
        tracing::warn!(
            "{} can't be replaced ({refused}): it is written where it lies, and will hold nothing if that fails",
            to.display()
        );
        Ok(Self { file: DirectFile::at(to, file, cache), to: to.to_owned(), placement: Placement::InPlace })
    }

    /// Checks that [`NewFile::begin`] would succeed, without creating anything that stays.
    ///
    /// # Errors
    /// As for [`NewFile::begin`].
    pub fn check(to: &Path, overwrite: Overwrite) -> io::Result<()> {
        probe(to, overwrite)
            .or_else(|refused| open_in_place(to, overwrite, &refused).map(drop).ok_or(refused))
    }

    /// Returns the file to write to.
    pub fn file(&self) -> &DirectFile {
        &self.file
    }

    /// True if the file is written in place, so that its previous content is lost.
    pub fn is_in_place(&self) -> bool {
        matches!(self.placement, Placement::InPlace)
    }

    /// Gives the file its final name.
    pub fn publish(&self) -> io::Result<()> {
        match &self.placement {
            Placement::Hidden { path, overwrite } => rename_file(path, &self.to, *overwrite),
            Placement::InPlace => Ok(()),
        }
    }

    /// Flushes the folder, so that the name survives a power cut.
    pub fn settle(&self) -> io::Result<()> {
        match self.placement {
            Placement::Hidden { .. } => sync_folder(self.to.parent().unwrap_or(Path::new(""))),
            Placement::InPlace => Ok(()),
        }
    }

    /// Abandons the file: removes a hidden file, and empties one that is written in place, so that no reader
    /// takes it for complete.
    pub fn abandon(&self) -> io::Result<()> {
        match &self.placement {
            Placement::Hidden { path, .. } => remove(path),
            Placement::InPlace => self.file.file().set_len(0),
        }
    }
}

/// Opens the existing file for writing in place, if it may be overwritten and the system refused to replace
/// it. Other errors return `None`: if the system has no room for a new file, it has none in place either.
fn open_in_place(to: &Path, overwrite: Overwrite, refused: &io::Error) -> Option<File> {
    let is_refusal = matches!(
        Errno::from_io_error(refused),
        Some(
            Errno::ACCESS
                | Errno::PERM
                | Errno::ROFS
                | Errno::BUSY
                | Errno::XDEV
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::OPNOTSUPP
                | Errno::NAMETOOLONG
        )
    );
    let is_file = || to.metadata().is_ok_and(|found| found.is_file());
    (overwrite == Overwrite::Replace && is_refusal && is_file())
        .then(|| OpenOptions::new().write(true).open(to).ok())?
}

/// Tries the operations of the end with empty files, and checks that the existing file can be replaced.
fn probe(to: &Path, overwrite: Overwrite) -> io::Result<()> {
    match to.symlink_metadata() {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        Ok(_) if overwrite == Overwrite::Replace => replaceable(to)?,
        Ok(_) | Err(_) => {}
    }
    let name = || hidden_path(to, &new_id()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename));
    let (one, other) = (name()?, name()?);
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path).map(drop);
    let tried = create(&one).and_then(|()| {
        if overwrite == Overwrite::Replace {
            create(&other)?;
        }
        rename_file(&one, &other, overwrite)
    });
    // Both names are removed whatever the result was, because either file may exist.
    let removed = [&one, &other].map(|path| remove(path));
    tried?;
    removed.into_iter().collect()
}

/// Checks that a file can be replaced, as far as that is possible without doing it.
fn replaceable(to: &Path) -> io::Result<()> {
    let found = statx(CWD, to, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY.into());
    }
    if to.symlink_metadata()?.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    // The kernel checks the permission to remove a name (of the folder, of the sticky bit, of an immutable
    // file) before it looks at the kind of file under that name, and a request to remove a folder never
    // removes a file (Linux, fs/namei.c, may_delete).
    match unlinkat(CWD, to, AtFlags::REMOVEDIR) {
        Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::BUSY)) => Err(errno.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Gives a file its name with the first method that the file system supports.
fn rename_file(from: &Path, to: &Path, overwrite: Overwrite) -> io::Result<()> {
    if overwrite == Overwrite::Replace {
        return std::fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system supports this (NFS, FUSE).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        answer => return answer.map_err(io::Error::from),
    }
    // Creating a link also fails if there is a file already.
    match std::fs::hard_link(from, to) {
        Ok(()) => return std::fs::remove_file(from),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Err(err),
        // s3fs, rclone, vboxsf, exFAT have no links.
        Err(_) => {}
    }
    // A file that another process creates between the check and the rename is lost; such a file system offers
    // no better method.
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(err) => Err(err),
    }
}

/// Removes a file. Succeeds if there is none.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// Returns a hidden path beside `path`, or `None` if `path` does not name a file.
fn hidden_path(path: &Path, id: &str) -> Option<PathBuf> {
    Some(path.with_file_name(hidden_name(path.file_name()?, id)))
}

/// Returns the hidden name of a file that will be called `name`. It contains the name, or only the beginning
/// if that is too long.
pub(super) fn hidden_name(name: &OsStr, id: &str) -> OsString {
    let room = LONGEST_HIDDEN.saturating_sub(id.len() + SUFFIX.len() + 2);
    let mut kept = name.as_bytes();
    if kept.len() > room {
        kept = &kept[..room];
        // UTF-8 stays valid: a character that was cut is removed.
        if name.to_str().is_some() {
            kept = &kept[..str::from_utf8(kept).map_or_else(|error| error.valid_up_to(), str::len)];
        }
    }
    OsString::from_vec([b".", kept, b".", id.as_bytes(), SUFFIX.as_bytes()].concat())
}

/// Returns the name, or its beginning, and the id in a hidden name.
pub(super) fn parse_hidden(name: &OsStr) -> Option<(&str, &str)> {
    let (name, id) = name.to_str()?.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    is_id(id).then_some((name, id))
}

/// Returns a unique id: the process id, for people who read it, and a random number.
pub(crate) fn new_id() -> String {
    format!("{}-{:016x}", std::process::id(), rand::random::<u64>())
}

/// True if `text` has the form of an id from [`new_id`].
pub(super) fn is_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(pid, random)| {
        !pid.is_empty()
            && pid.bytes().all(|b| b.is_ascii_digit())
            && random.len() == 16
            && random.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = folder
            .read_dir()
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_hidden_name_fits_whatever_the_name_is() {
        let id = "1234567-00c0ffee00c0ffee";
        assert_eq!(
            hidden_name(OsStr::new("disk.qcow2"), id),
            OsStr::new(".disk.qcow2.1234567-00c0ffee00c0ffee.partial")
        );
        assert_eq!(parse_hidden(&hidden_name(OsStr::new("a.b"), id)), Some(("a.b", id)));
        for name in ["x".repeat(255), "ü".repeat(127), format!("a{}", "€".repeat(84))] {
            let hidden = hidden_name(OsStr::new(&name), id);
            assert!(hidden.len() <= LONGEST_HIDDEN && hidden.len() > LONGEST_HIDDEN - 4, "{}", hidden.len());
            let (kept, _) = parse_hidden(&hidden).expect("a hidden name");
            // The beginning of the name alone leads to the same file.
            assert!(name.starts_with(kept) && hidden_name(OsStr::new(kept), id) == hidden);
        }
        let bytes = OsString::from_vec(vec![0xff; 255]);
        assert!(
            hidden_name(&bytes, id).len() == LONGEST_HIDDEN
                && parse_hidden(&hidden_name(&bytes, id)).is_none()
        );
    }

    #[test]
    fn a_probe_leaves_nothing_and_takes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("disk");
        for overwrite in [Overwrite::Refuse, Overwrite::Replace] {
            NewFile::check(&to, overwrite).expect("nothing is in the way");
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
        std::fs::write(&to, b"old").expect("written");
        NewFile::check(&to, Overwrite::Replace).expect("it can make room");
        assert_eq!(std::fs::read(&to).expect("still there"), b"old");
        let inner = folder.path().join("empty");
        std::fs::create_dir(&inner).expect("a folder");
        assert!(NewFile::check(&inner, Overwrite::Replace).is_err() && inner.is_dir());
        assert!(NewFile::check(&folder.path().join("none/disk"), Overwrite::Refuse).is_err());
        assert_eq!(names(folder.path()), ["disk", "empty"]);
    }

    #[test]
    fn a_file_that_came_up_meanwhile_stays_where_it_was_not_to_be_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("disk");
        let new = NewFile::begin(&to, &new_id(), Overwrite::Refuse, PageCache::Use).expect("begun");
        new.file().write(b"new", 0).expect("written");
        std::fs::write(&to, b"theirs").expect("written");
        assert_eq!(new.publish().map_err(|err| err.kind()), Err(io::ErrorKind::AlreadyExists));
        new.abandon().expect("removed");
        assert_eq!(
            (names(folder.path()), std::fs::read(&to).expect("there")),
            (vec!["disk".to_owned()], b"theirs".to_vec())
        );
        let new = NewFile::begin(&to, &new_id(), Overwrite::Replace, PageCache::Use).expect("begun");
        assert!(!new.is_in_place());
        new.file().write(b"new", 0).expect("written");
        new.publish().and_then(|()| new.settle()).expect("named");
        assert_eq!(
            (names(folder.path()), std::fs::read(&to).expect("there")),
            (vec!["disk".to_owned()], b"new".to_vec())
        );
    }
}
