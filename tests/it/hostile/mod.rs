//! Images that are broken on purpose: each is refused with its reason, or read right, by the library and by the program.

mod program;

use std::sync::Arc;

use snapferry::compress::{Codec, Decoder};
use snapferry::qcow2::{Compression, FileError, Image, ImageFile, Limits, Stored};
use snapferry::testing::hostile::{self, Good, Hostile, Stage};
use snapferry::units::{ByteCount, HostOffset, to_usize};

/// A file in memory. What is asked for past its end is a mistake of the reader.
struct Memory(Arc<[u8]>);

impl ImageFile for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.0.len().try_into().unwrap())
    }

    fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
        let at = to_usize(at.0);
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }
}

/// An error and everything behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

/// The disk in an image, or where and why there is none: one cluster after the other, on one thread.
pub fn decode(file: &dyn ImageFile) -> Result<Vec<u8>, (Stage, String)> {
    let image = Image::open(file, &Limits::default()).map_err(|error| (Stage::Open, chain(&error)))?;
    let mappings = image.load(file).map_err(|error| (Stage::Load, chain(&error)))?;
    let cluster = mappings.cluster();
    let codec = match image.header().compression {
        Compression::Deflate => Codec::Deflate,
        Compression::Zstd => Codec::Zstd,
    };
    let mut decoder = Decoder::new(codec, cluster);
    let mut disk = vec![0; to_usize(cluster.round_up(mappings.virtual_size().0))];
    let read = |at: HostOffset, len: usize| {
        let there = len.min(to_usize(file.size().0 - at.0));
        let mut bytes = vec![0; there];
        file.read_at(at, &mut bytes).unwrap();
        bytes.resize(len, 0);
        bytes
    };
    for (guest, stored) in mappings.iter() {
        let at = to_usize(guest.offset(cluster).0);
        let into = &mut disk[at..at + cluster.len()];
        match stored {
            Stored::Zero => panic!("zero clusters are not iterated over"),
            Stored::Raw(host) => into.copy_from_slice(&read(host, cluster.len())),
            Stored::Subclusters(host, allocated) => {
                let bytes = read(host, cluster.len());
                let len = cluster.len() / 32;
                for (number, (to, from)) in (0..).zip(into.chunks_mut(len).zip(bytes.chunks(len))) {
                    if allocated >> number & 1 == 1 {
                        to.copy_from_slice(from);
                    }
                }
            }
            Stored::Compressed { at, len } => {
                decoder.decode(&read(at, to_usize(len)), into).map_err(|error| (Stage::Decode, chain(&error)))?;
            }
        }
    }
    disk.truncate(to_usize(mappings.virtual_size().0));
    Ok(disk)
}

/// Of a file in memory.
fn decode_bytes(bytes: &[u8]) -> Result<Vec<u8>, (Stage, String)> {
    decode(&Memory(bytes.into()))
}

#[test]
fn the_good_image_is_read() {
    for compression in [Compression::Deflate, Compression::Zstd] {
        let good = Good::new(compression);
        assert!(decode_bytes(&good.bytes).unwrap() == good.disk, "{compression:?}");
    }
}

#[test]
fn every_broken_image_is_refused_where_and_why_it_must_be() {
    let mut wrong = Vec::new();
    let images = hostile::all();
    assert!(images.len() > 150, "only {} images", images.len());
    for Hostile { name, bytes, disk, stage, says } in &images {
        match (decode_bytes(bytes), stage) {
            (Ok(read), Stage::Check | Stage::Never) if disk.starts_with(&read) && !read.is_empty() => {}
            (Ok(_), Stage::Check | Stage::Never) => wrong.push(format!("{name}: other bytes")),
            (Ok(_), _) => wrong.push(format!("{name}: was read, and must be refused ({stage:?})")),
            (Err((found, why)), stage) if found == *stage && why.contains(says) => {}
            (Err((found, why)), stage) => wrong.push(format!("{name}: {found:?}, not {stage:?} with {says:?}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), images.len(), wrong.join("\n"));
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = hostile::all().into_iter().map(|image| image.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
