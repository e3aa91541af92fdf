//! An image read as a source: every kind that QEMU writes, in reads of every offset and length, and from
//! several threads.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use snapferry_base::units::{ByteCount, GuestOffset, MIB, to_u64, to_usize};
use snapferry_engine::image::{ImageSource, LocalImage};
use snapferry_engine::source::{Extent, Source};
use snapferry_qcow2::Limits;
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::oracle::QemuImg;
use snapferry_testkit::skip::has_oracle;

fn open(path: &Path) -> ImageSource {
    ImageSource::open(Arc::new(LocalImage::open(path).expect("a file")), &Limits::default())
        .expect("an image")
}

/// Writes a disk into a folder, and QEMU's image of it with these options; returns the disk's bytes and the
/// image's path.
fn imaged(folder: &Path, size: u64, options: &[&str], qemu: QemuImg) -> (Vec<u8>, PathBuf) {
    let (raw, image) = (folder.join("disk.raw"), folder.join("disk.qcow2"));
    let disk = Disk::new(Kind::Mixed, ByteCount(size), 3);
    disk.write(&raw).expect("a disk");
    let convert = [&["convert", "-f", "raw", "-O", "qcow2"], options].concat();
    qemu.run(&convert, &[&raw, &image]).expect("converted");
    (disk.to_vec(), image)
}

/// Reads the whole disk in pieces of `len` bytes.
fn read(source: &ImageSource, len: usize) -> Vec<u8> {
    let size = to_usize(source.size().0);
    let mut disk = vec![0xee; size.next_multiple_of(len)];
    for (at, piece) in (0..).step_by(len).zip(disk.chunks_mut(len)) {
        source.read_at(GuestOffset(at), piece).expect("read");
    }
    assert!(disk[size..].iter().all(|&byte| byte == 0), "there are zeros past the end");
    disk.truncate(size);
    disk
}

#[test]
fn every_kind_of_image_gives_its_disk_in_reads_of_any_length() {
    let Some(qemu) = QemuImg::find() else { return };
    for options in [
        &["-c"][..],
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "cluster_size=2M"],
        &["-c", "-o", "cluster_size=512"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=4k"],
        &["-o", "extended_l2=on,cluster_size=128k"],
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (disk, path) = imaged(folder.path(), 5 * MIB + 1536, options, qemu);
        let source = open(&path);
        assert_eq!(source.size(), ByteCount(to_u64(disk.len())));
        // A body is decoded once for each read that touches it, so short reads of the largest clusters take
        // long.
        let lengths = [512, 4096, 196_608, 2 << 20];
        for &len in if source.mappings().cluster().bits() > 17 { &lengths[2..] } else { &lengths[..] } {
            assert!(read(&source, len) == disk, "{options:?} in reads of {len} bytes");
        }
    }
}

#[test]
fn subclusters_that_hold_nothing_read_as_zeros() {
    let Some(qemu) = QemuImg::find().filter(|_| has_oracle("qemu-io")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.qcow2");
    qemu.run(&["create", "-q", "-f", "qcow2", "-o", "extended_l2=on"], &[&path, Path::new("1M")])
        .expect("made");
    let written = Command::new("qemu-io")
        .args(["-c", "write -P 7 6k 4k", "-c", "write -P 9 600k 2k"])
        .arg(&path)
        .output();
    let written = written.expect("qemu-io runs");
    assert!(written.status.success(), "{written:?}");
    let mut disk = vec![0; to_usize(MIB)];
    disk[6 << 10..10 << 10].fill(7);
    disk[600 << 10..602 << 10].fill(9);
    for len in [512, 3072, 65_536, 1 << 20] {
        assert!(read(&open(&path), len) == disk, "in reads of {len} bytes");
    }
}

#[test]
fn holes_are_what_is_not_stored() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    let mut disk = vec![0; to_usize(4 * MIB) + 512];
    disk[70_000] = 1;
    disk[3 << 20] = 1;
    std::fs::write(&raw, &disk).expect("written");
    qemu.run(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &path]).expect("converted");
    let source = open(&path);
    let mut extents = Vec::new();
    let mut at = 0;
    while at < source.size().0 {
        let extent = source.extent_at(GuestOffset(at)).expect("an answer");
        let (Extent::Data { end } | Extent::Hole { end }) = extent;
        assert!(end.0 > at);
        at = end.0;
        extents.push(extent);
    }
    let (data, hole) =
        (|end| Extent::Data { end: GuestOffset(end) }, |end| Extent::Hole { end: GuestOffset(end) });
    assert_eq!(
        extents,
        [hole(65_536), data(131_072), hole(3 << 20), data((3 << 20) + 65_536), hole((4 << 20) + 512)]
    );
    source.settle().expect("nobody touched it");
    std::fs::OpenOptions::new().append(true).open(&path).expect("opened").set_len(1).expect("cut");
    source.settle().expect_err("somebody did");
}

/// An extent ends after 64 MiB at most: otherwise a caller that asks for every chunk would walk all of the
/// tables each time.
#[test]
fn a_full_disk_is_told_piece_by_piece() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.qcow2");
    qemu.run(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"], &[&path, Path::new("200M")])
        .expect("made");
    let source = open(&path);
    let ends = [64, 128, 192, 200].map(|end| Extent::Data { end: GuestOffset(end * MIB) });
    let extents =
        [0, 64, 128, 192].map(|start| source.extent_at(GuestOffset(start * MIB)).expect("an answer"));
    assert_eq!(extents, ends);
}

#[test]
fn a_body_that_does_not_decode_is_an_error_at_its_cluster() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    Disk::new(Kind::Text, ByteCount(MIB), 1).write(&raw).expect("a disk");
    qemu.run(&["convert", "-c", "-f", "raw", "-O", "qcow2"], &[&raw, &path]).expect("converted");
    let source = open(&path);
    let whole = |source: &ImageSource| source.read_at(GuestOffset(0), &mut vec![0; to_usize(MIB)]);
    whole(&source).expect("it is good so far");
    let mut image = std::fs::read(&path).expect("the image");
    // QEMU puts the first body at 0x50000. These bytes begin a block of a type that deflate does not have.
    image[0x50000..0x50100].fill(0xff);
    std::fs::write(&path, image).expect("written");
    let error = whole(&open(&path)).expect_err("damaged");
    let message = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(
        message.contains("offset 0") && message.contains("byte 327680") && message.contains("damaged"),
        "{message}"
    );
}
