//! How a file comes to its name: it is hidden until it is whole, and renamed then; one that can't be replaced so is written where it lies.
//!
//! Which of the two it is, and whether it goes at all, is found out before the first byte: with empty files of no meaning that all is done
//! which the end will do. A folder that takes no new files, a file that is a mount of its own, a file system that knows neither
//! `RENAME_NOREPLACE` nor links: none of them shows when a hidden file is opened.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags, renameat_with, statx, unlinkat};
use rustix::io::Errno;

use super::local::{DirectFile, PageCache, sync_folder};

/// Ends hidden names: `.disk.qcow2.1234-00c0ffee00c0ffee.partial`.
const SUFFIX: &str = ".partial";
/// The longest hidden name, in bytes: what eCryptfs takes, the least of all file systems in use. Others take 255 bytes or characters.
const LONGEST_HIDDEN: usize = 143;

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfThere {
    /// It makes room; one that can't is written over.
    Replace,
    /// It stays, and the new one gets no name.
    Refuse,
}

/// Where a file is until it is whole.
#[derive(Debug)]
enum Way {
    /// Beside its place, under this name.
    Hidden { path: PathBuf, if_there: IfThere },
    /// In its place.
    InPlace,
}

/// A file that is being made. Whoever has one publishes or abandons it.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: DirectFile,
    to: PathBuf,
    way: Way,
}

impl NewFile {
    /// Makes an empty file that will be called `to`, with `id` in its name until then.
    ///
    /// # Errors
    /// Where the end could not be reached, or the system has no room for a file.
    pub fn begin(to: &Path, id: &str, if_there: IfThere, cache: PageCache) -> io::Result<Self> {
        let refused = match probe(to, if_there) {
            Ok(()) => {
                let path = hidden_beside(to, id).ok_or(io::ErrorKind::InvalidFilename)?;
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
                let file = DirectFile::at(&path, file, cache);
                return Ok(Self { file, to: to.to_owned(), way: Way::Hidden { path, if_there } });
            }
            Err(refused) => refused,
        };
        let Some(file) = in_place(to, if_there, &refused) else { return Err(refused) };
        file.set_len(0)?;
        tracing::warn!(
            "{} can't be replaced ({refused}): it is written where it lies, and will hold nothing if that fails",
            to.display()
        );
        Ok(Self { file: DirectFile::at(to, file, cache), to: to.to_owned(), way: Way::InPlace })
    }

    /// Whether [`NewFile::begin`] would go, without making anything.
    ///
    /// # Errors
    /// As that.
    pub fn check(to: &Path, if_there: IfThere) -> io::Result<()> {
        probe(to, if_there).or_else(|refused| in_place(to, if_there, &refused).map(drop).ok_or(refused))
    }

    /// What is written to.
    pub fn file(&self) -> &DirectFile {
        &self.file
    }

    /// Whether it is written where it lies: then nothing is left of what was there before.
    pub fn is_in_place(&self) -> bool {
        matches!(self.way, Way::InPlace)
    }

    /// Gives the file its name.
    pub fn publish(&self) -> io::Result<()> {
        match &self.way {
            Way::Hidden { path, if_there } => give_name(path, &self.to, *if_there),
            Way::InPlace => Ok(()),
        }
    }

    /// Makes the name survive a power cut.
    pub fn settle(&self) -> io::Result<()> {
        match self.way {
            Way::Hidden { .. } => sync_folder(self.to.parent().unwrap_or(Path::new(""))),
            Way::InPlace => Ok(()),
        }
    }

    /// Gives the file up: removes what is hidden, and empties what is in its place, so that nobody takes it for whole.
    pub fn abandon(&self) -> io::Result<()> {
        match &self.way {
            Way::Hidden { path, .. } => remove(path),
            Way::InPlace => self.file.file().set_len(0),
        }
    }
}

/// The file that is there, where it may be written over and was refused to be replaced. What the system has no room for has no room there
/// either.
fn in_place(to: &Path, if_there: IfThere, refused: &io::Error) -> Option<File> {
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
    (if_there == IfThere::Replace && is_refusal && is_file())
        .then(|| OpenOptions::new().write(true).open(to).ok())?
}

/// Does with files of no meaning what the end will do, and asks whether the file that is there lets itself be replaced.
fn probe(to: &Path, if_there: IfThere) -> io::Result<()> {
    match to.symlink_metadata() {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        Ok(_) if if_there == IfThere::Replace => replaceable(to)?,
        Ok(_) | Err(_) => {}
    }
    let name = || hidden_beside(to, &new_id()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename));
    let (one, other) = (name()?, name()?);
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path).map(drop);
    let tried = create(&one).and_then(|()| {
        if if_there == IfThere::Replace {
            create(&other)?;
        }
        give_name(&one, &other, if_there)
    });
    // In this order, and whatever became of them: either may be there.
    let removed = [&one, &other].map(|path| remove(path));
    tried?;
    removed.into_iter().collect()
}

/// Whether a file can be replaced, as far as that can be asked without doing it.
fn replaceable(to: &Path) -> io::Result<()> {
    let found = statx(CWD, to, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY.into());
    }
    if to.symlink_metadata()?.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    // The kernel asks for the right to remove a name (the folder's, and the sticky bit's and an immutable file's) before it looks at what
    // is called so, and a request to remove a folder of that name never removes a file (Linux, fs/namei.c, may_delete).
    match unlinkat(CWD, to, AtFlags::REMOVEDIR) {
        Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::BUSY)) => Err(errno.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Gives a file its name, in the first way that the file system knows.
fn give_name(from: &Path, to: &Path, if_there: IfThere) -> io::Result<()> {
    if if_there == IfThere::Replace {
        return std::fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can (NFS, FUSE).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        answer => return answer.map_err(io::Error::from),
    }
    // A link fails where there is a file already, just as well.
    match std::fs::hard_link(from, to) {
        Ok(()) => return std::fs::remove_file(from),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Err(err),
        // s3fs, rclone, vboxsf, exFAT have no links.
        Err(_) => {}
    }
    // What comes up between the two is lost; there is no better way on such a file system.
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(err) => Err(err),
    }
}

/// Removes a file. That there is none is success.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// A hidden name beside `path`; nothing where `path` does not name a file.
fn hidden_beside(path: &Path, id: &str) -> Option<PathBuf> {
    Some(path.with_file_name(hidden_name(path.file_name()?, id)))
}

/// The hidden name of a file that will be called `name`: with all of that, or the beginning of one that is too long.
pub(super) fn hidden_name(name: &OsStr, id: &str) -> OsString {
    let room = LONGEST_HIDDEN.saturating_sub(id.len() + SUFFIX.len() + 2);
    let mut kept = name.as_bytes();
    if kept.len() > room {
        kept = &kept[..room];
        // Text stays text: a character that was cut goes.
        if name.to_str().is_some() {
            kept = &kept[..str::from_utf8(kept).map_or_else(|error| error.valid_up_to(), str::len)];
        }
    }
    OsString::from_vec([b".", kept, b".", id.as_bytes(), SUFFIX.as_bytes()].concat())
}

/// The name, or its beginning, and the id in a hidden name.
pub(super) fn parse_hidden(name: &OsStr) -> Option<(&str, &str)> {
    let (name, id) = name.to_str()?.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    is_id(id).then_some((name, id))
}

/// A name that nobody else has chosen: for people the process, for machines a random number.
pub(crate) fn new_id() -> String {
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
            // Whoever knows the beginning alone finds the same file.
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
        for if_there in [IfThere::Refuse, IfThere::Replace] {
            NewFile::check(&to, if_there).expect("nothing is in the way");
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
        std::fs::write(&to, b"old").expect("written");
        NewFile::check(&to, IfThere::Replace).expect("it can make room");
        assert_eq!(std::fs::read(&to).expect("still there"), b"old");
        let inner = folder.path().join("empty");
        std::fs::create_dir(&inner).expect("a folder");
        assert!(NewFile::check(&inner, IfThere::Replace).is_err() && inner.is_dir());
        assert!(NewFile::check(&folder.path().join("none/disk"), IfThere::Refuse).is_err());
        assert_eq!(names(folder.path()), ["disk", "empty"]);
    }

    #[test]
    fn a_file_that_came_up_meanwhile_stays_where_it_was_not_to_be_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("disk");
        let new = NewFile::begin(&to, &new_id(), IfThere::Refuse, PageCache::Use).expect("begun");
        new.file().write(b"new", 0).expect("written");
        std::fs::write(&to, b"theirs").expect("written");
        assert_eq!(new.publish().map_err(|err| err.kind()), Err(io::ErrorKind::AlreadyExists));
        new.abandon().expect("removed");
        assert_eq!(
            (names(folder.path()), std::fs::read(&to).expect("there")),
            (vec!["disk".to_owned()], b"theirs".to_vec())
        );
        let new = NewFile::begin(&to, &new_id(), IfThere::Replace, PageCache::Use).expect("begun");
        assert!(!new.is_in_place());
        new.file().write(b"new", 0).expect("written");
        new.publish().and_then(|()| new.settle()).expect("named");
        assert_eq!(
            (names(folder.path()), std::fs::read(&to).expect("there")),
            (vec!["disk".to_owned()], b"new".to_vec())
        );
    }
}
