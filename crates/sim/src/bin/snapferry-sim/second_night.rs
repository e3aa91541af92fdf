//! Changes on the disk of the demonstration's server between its two nights: files that are written, as a
//! day's work would do, or bytes where there is no file system that `debugfs` can write to.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use snapferry_base::units::{KIB, MIB, to_usize};

/// Offset of the partition on disks that `scripts/make-disk.sh` makes.
const PARTITION: u64 = MIB;
/// Offset of the superblock in a file system, and of its magic number in the superblock (Linux kernel,
/// Documentation/filesystems/ext4).
const MAGIC_AT: u64 = 1024 + 0x38;
const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();
/// Number of files that are written, and the bytes in each.
const FILES: usize = 12;
const FILE: u64 = 40 * KIB;
/// Bytes that are overwritten in each of three places, if no file can be written.
const STRETCH: u64 = 64 * KIB;

/// Changes the disk in a file, and returns a description of the change.
///
/// # Errors
/// If the disk can't be read or written.
pub fn use_disk(disk: &Path, work: &Path) -> io::Result<String> {
    for offset in [PARTITION, 0] {
        if has_ext4(disk, offset)? && write_files(disk, offset, work)? {
            return Ok(format!("{FILES} files of {} KiB each are written", FILE / KIB));
        }
    }
    let file = OpenOptions::new().write(true).open(disk)?;
    let size = file.metadata()?.len();
    let bytes = text(0, STRETCH);
    for at in [1, 2, 3].map(|quarter| size / 4 * quarter) {
        file.write_all_at(&bytes[..to_usize(STRETCH.min(size - at))], at)?;
    }
    Ok(format!("{} KiB are overwritten in three places", STRETCH / KIB))
}

fn has_ext4(disk: &Path, offset: u64) -> io::Result<bool> {
    let mut found = [0; 2];
    match File::open(disk)?.read_exact_at(&mut found, offset + MAGIC_AT) {
        Ok(()) => Ok(found == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes files into the file system at `offset`. Returns false if `debugfs` can't be run, or refuses.
fn write_files(disk: &Path, offset: u64, work: &Path) -> io::Result<bool> {
    let script = work.join("second-night");
    let mut commands = File::create(&script)?;
    for number in 0..FILES {
        let from = work.join(format!("day-{number}.log"));
        std::fs::write(&from, text(number, FILE))?;
        writeln!(commands, "write {} day-{number}.log", from.display())?;
    }
    drop(commands);
    let mut place = disk.as_os_str().to_owned();
    place.push(format!("?offset={offset}"));
    let run = |args: &[&OsStr]| {
        let mut debugfs = Command::new("debugfs");
        // Debian has it where a user's PATH may not look.
        if let Some(mut path) = std::env::var_os("PATH") {
            path.push(":/usr/sbin:/sbin");
            debugfs.env("PATH", path);
        }
        debugfs.args(args).arg(&place).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    };
    run(&["-w".as_ref(), "-f".as_ref(), script.as_os_str()]);
    // Its exit code is 0 even if it could not write a file, so the files are counted.
    let Some(found) = run(&["-R".as_ref(), "ls -p".as_ref()]) else { return Ok(false) };
    let listed = String::from_utf8_lossy(&found.stdout).into_owned();
    let is_there = |number: &usize| listed.contains(&format!("/day-{number}.log/{FILE}/"));
    Ok((0..FILES).filter(is_there).count() == FILES)
}

/// Returns lines of a log, other ones for each number.
fn text(number: usize, len: u64) -> Vec<u8> {
    let len = to_usize(len);
    let mut lines = Vec::with_capacity(len + 80);
    let mut at = 0_u64;
    while lines.len() < len {
        at += 1;
        let value = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        lines.extend_from_slice(format!("day {number} request {at} answered in {value:016x}\n").as_bytes());
    }
    lines.truncate(len);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_a_file_system_is_changed_in_three_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("disk.raw");
        std::fs::write(&disk, vec![0; to_usize(MIB)]).expect("a disk");
        let change = use_disk(&disk, folder.path()).expect("changed");
        assert!(change.contains("three places"), "{change}");
        let bytes = std::fs::read(&disk).expect("the disk");
        let changed: Vec<u64> = (0..MIB / STRETCH)
            .filter(|&at| bytes[to_usize(at * STRETCH)..][..to_usize(STRETCH)].iter().any(|&byte| byte != 0))
            .collect();
        assert_eq!(changed, [4, 8, 12]);
    }

    #[test]
    fn files_are_written_into_a_file_system() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("disk.raw");
        File::create(&disk).and_then(|file| file.set_len(8 * MIB)).expect("a disk");
        let made = Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
        if !made.is_ok_and(|status| status.success()) {
            return;
        }
        let change = use_disk(&disk, folder.path()).expect("changed");
        assert!(change.starts_with("12 files of 40"), "{change}");
        let clean = Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(&disk).output().expect("e2fsck");
        let found = String::from_utf8_lossy(&clean.stdout).into_owned();
        assert!(clean.status.success() && found.contains(": 23/"), "{found}");
    }
}
