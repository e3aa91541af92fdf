//! Copies of disks that keep their holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use snapferry_base::units::{GuestOffset, MIB, SECTOR, to_usize};
use snapferry_engine::compress::is_zero;
use snapferry_engine::image::{ImageSource, LocalImage};
use snapferry_engine::source::aligned::AlignedBuf;
use snapferry_engine::source::{Extent, InUse, RawSource, Source};
use snapferry_qcow2::Limits;

/// Bytes in one read.
const STEP: u64 = 2 * MIB;

/// Returns the size of a raw disk, a device or a file, in bytes.
pub(super) fn size_of(disk: &Path) -> io::Result<u64> {
    Ok(RawSource::open(disk, InUse::Read).map_err(io::Error::other)?.size().0)
}

/// Copies a raw disk into a file of `size` bytes.
pub(super) fn copy(from: &Path, to: &Path, size: u64) -> io::Result<()> {
    write(&RawSource::open(from, InUse::Read).map_err(io::Error::other)?, to, size)
}

/// Writes an image's disk into a file of `size` bytes.
pub(super) fn unpack(image: &Path, to: &Path, size: u64) -> io::Result<()> {
    let file = LocalImage::open(image).map_err(io::Error::other)?;
    let source = ImageSource::open(Arc::new(file), &Limits::default()).map_err(io::Error::other)?;
    write(&source, to, size)
}

/// Creates a file of `size` zeros, as one hole.
pub(super) fn blank(to: &Path, size: u64) -> io::Result<()> {
    File::create(to)?.set_len(size)
}

/// Copies `source` into a file that has another name until it is complete: an interrupted copy is started
/// again.
fn write(source: &dyn Source, to: &Path, size: u64) -> io::Result<()> {
    let draft = to.with_extension("new");
    let file = File::create(&draft)?;
    file.set_len(size)?;
    let mut buf = AlignedBuf::zeroed(to_usize(STEP)).map_err(io::Error::other)?;
    let (mut at, end) = (0, source.size().0.min(size));
    let step = source.alignment().max(to_usize(SECTOR));
    while at < end {
        match source.extent_at(GuestOffset(at)).map_err(io::Error::other)? {
            // The offset stays a multiple of a whole read, so a part of the hole may be read: a few zeros do
            // no harm.
            Extent::Hole { end: hole } if hole.0 >= at + STEP => at = hole.0 / STEP * STEP,
            _ => {
                let len = to_usize(STEP.min(end - at));
                let read = len.next_multiple_of(step);
                source.read_at(GuestOffset(at), &mut buf[..read]).map_err(io::Error::other)?;
                if !is_zero(&buf[..len]) {
                    file.write_all_at(&buf[..len], at)?;
                }
                at += STEP;
            }
        }
    }
    std::fs::rename(draft, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_its_own_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let disk = File::create(&from).expect("a disk");
        disk.set_len(9 * MIB + 512).expect("its size");
        disk.write_all_at(b"first", 0)
            .and_then(|()| disk.write_all_at(b"last", 9 * MIB + 500))
            .expect("written");
        copy(&from, &to, 16 * MIB).expect("copied");
        let mut expected = std::fs::read(&from).expect("read");
        expected.resize(to_usize(16 * MIB), 0);
        assert!(std::fs::read(&to).expect("read") == expected);
    }
}
