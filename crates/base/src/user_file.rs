//! Files that the user names in a setting: configuration, keys, passwords, certificates, lists.
//!
//! Such a path may lead to anything. Reading a FIFO or a terminal might wait for ever, and a device never
//! ends. So a path that isn't a regular file is an error at once, and so is a file that is larger than such
//! files ever are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::units::{MIB, to_u64};

/// Size of the largest file that is read. A bundle of all public certificate authorities has a quarter of a
/// MiB.
pub const LARGEST: u64 = 16 * MIB;

/// Device number of `/dev/null`, which users name to say "no file": major 1, minor 3 (Linux' devices.txt).
const NULL: u64 = 0x103;

/// Returns the content of a file. `/dev/null` is empty.
///
/// # Errors
/// If the file can't be read, is no regular file, or is larger than [`LARGEST`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO must not wait for a process that writes into it.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file: File = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let meta = file.metadata()?;
    let refused = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    if meta.file_type().is_char_device() && meta.rdev() == NULL {
        return Ok(Vec::new());
    }
    if !meta.is_file() {
        return Err(refused("it is no regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if to_u64(bytes.len()) > LARGEST {
        return Err(refused(format!("it is larger than {} MiB", LARGEST / MIB)));
    }
    Ok(bytes)
}

/// Returns the text of a file.
///
/// # Errors
/// As for [`read`], and if the file isn't valid UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text in UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_or_has_no_end_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        for (path, reason) in [
            (fifo.as_path(), "no regular file"),
            (Path::new("/dev/zero"), "no regular file"),
            (folder.path(), "no regular file"),
        ] {
            let refused = read(path).expect_err("no file").to_string();
            assert!(refused.contains(reason), "{}: {refused}", path.display());
        }
        let large = folder.path().join("large");
        File::create(&large)
            .and_then(|file| file.set_len(1 << 50))
            .or_else(|_| File::create(&large)?.set_len(1 << 40))
            .expect("made");
        assert!(read(&large).expect_err("too large").to_string().contains("larger than 16 MiB"));
        assert_eq!(read(Path::new("/dev/null")).expect("nothing"), b"");
        let latin = folder.path().join("latin");
        std::fs::write(&latin, b"s\xfcd").expect("written");
        assert!(read_text(&latin).expect_err("no text").to_string().contains("UTF-8"));
        assert_eq!(read(&latin).expect("a file"), b"s\xfcd");
    }
}
