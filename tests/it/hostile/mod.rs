//! Images that are broken on purpose: the library and the program refuse each with its reason, or read it
//! correctly.

mod program;

use snapferry_base::units::to_usize;
use snapferry_qcow2::MemoryFile;
use snapferry_qcow2::{Codec, Image, ImageFile, Limits, Stored};
use snapferry_testkit::hostile::{self, Expected, Hostile, Stage};
use snapferry_testkit::oracle::QemuImg;
use snapferry_testkit::simple_reader::decode_cluster;

/// The message of an error and of all its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

/// Decodes the disk in an image, one cluster after the other on one thread; an error has the stage and the
/// reason.
pub fn decode(file: &dyn ImageFile) -> Result<Vec<u8>, (Stage, String)> {
    let image = Image::open(file, &Limits::default()).map_err(|error| (Stage::Open, chain(&error)))?;
    let mappings = image.load(file).map_err(|error| (Stage::Load, chain(&error)))?;
    let cluster = mappings.cluster();
    let mut disk = vec![0; to_usize(cluster.round_up(mappings.virtual_size().0))];
    for (guest, stored) in mappings.iter() {
        assert_ne!(stored, Stored::Zero, "zero clusters are not iterated over");
        let bytes =
            decode_cluster(file, &image, &mappings, guest).map_err(|error| (Stage::Decode, chain(&error)))?;
        disk[to_usize(guest.offset(cluster).0)..][..bytes.len()].copy_from_slice(&bytes);
    }
    disk.truncate(to_usize(mappings.virtual_size().0));
    Ok(disk)
}

/// Decodes the disk of an image in memory.
fn decode_bytes(bytes: &[u8]) -> Result<Vec<u8>, (Stage, String)> {
    decode(&MemoryFile::new(bytes.into()))
}

#[test]
fn the_good_image_is_read() {
    for compression in [Codec::Deflate, Codec::Zstd] {
        let good = Expected::new(compression);
        assert!(decode_bytes(&good.bytes).unwrap() == good.disk, "{compression:?}");
    }
}

#[test]
fn every_broken_image_is_refused_where_and_why_it_must_be() {
    let mut wrong = Vec::new();
    let images = hostile::all();
    assert!(images.len() > 150, "only {} images", images.len());
    for Hostile { name, bytes, disk, stage, message } in &images {
        match (decode_bytes(bytes), stage) {
            (Ok(read), Stage::Check | Stage::Never) if disk.starts_with(&read) && !read.is_empty() => {}
            (Ok(_), Stage::Check | Stage::Never) => wrong.push(format!("{name}: other bytes")),
            (Ok(_), _) => wrong.push(format!("{name}: was read, and must be refused ({stage:?})")),
            (Err((found, why)), stage) if found == *stage && why.contains(message) => {}
            (Err((found, why)), stage) => {
                wrong.push(format!("{name}: {found:?}, not {stage:?} with {message:?}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), images.len(), wrong.join("\n"));
}

#[test]
fn what_is_odd_but_allowed_is_read_by_qemu_too() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (disk, image) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
    let mut compared = 0;
    for odd in hostile::all().into_iter().filter(|image| image.stage == Stage::Never) {
        // A size that is not a multiple of the sector size is rounded up.
        let size = decode_bytes(&odd.bytes).unwrap().len();
        std::fs::write(&disk, &odd.disk[..size]).unwrap();
        std::fs::write(&image, &odd.bytes).unwrap();
        qemu.compare(&disk, &image).unwrap_or_else(|why| panic!("{}: {why}", odd.name));
        compared += 1;
    }
    assert!(compared >= 8, "only {compared}");
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = hostile::all().into_iter().map(|image| image.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
