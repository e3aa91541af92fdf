//! The converter from end to end: in process if only the image matters, through the program if its output
//! matters.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `matrix` | every codec, level and cluster size on disks of every kind and size |
//! | `devices` | real devices and file systems that fail |
//! | `faults` | sources and stores that fail on command |
//! | `cli` | refusals, reports, incomplete uploads |
//! | `memory` | the peak that the plan promises |
//! | `secrets` | no secret in output, errors or objects |
//! | `skip_free` | free space that is left out |

mod cli;
mod devices;
mod faults;
mod incremental;
mod matrix;
mod memory;
mod secrets;
mod skip_free;

use snapferry_base::units::{ByteCount, GuestOffset, to_u64, to_usize};
use snapferry_engine::convert::plan::CHUNK;
use snapferry_engine::hash::Crc64;
use snapferry_engine::manifest::Manifest;
use snapferry_qcow2::SEGMENT;
use snapferry_testkit::model::Model;

use crate::support::padded;

/// Calculates everything in the manifest again from the disk's and the image's bytes alone, and reads the
/// disk back from the image.
pub fn prove(disk: &[u8], image: &[u8], manifest: &Manifest) {
    let model = Model::read(image).expect("a sound image");
    assert!(model.disk().expect("every body decodes") == padded(disk), "the image holds another disk");
    assert_eq!(manifest.source.size, ByteCount(to_u64(disk.len())));
    assert_eq!(manifest.image.accounted, Some(manifest.source.size));
    assert_eq!(manifest.image.virtual_size.0, model.virtual_size);
    assert_eq!(manifest.image.size, ByteCount(to_u64(image.len())));
    assert_eq!(manifest.image.crc64, Crc64::of(image));
    assert_eq!(manifest.encoder.cluster_size.0, model.cluster_size);
    prove_segments(disk, image, manifest);
    prove_fold(image, manifest);
}

/// Calculates the records of head and tables again from the image's bytes. Together with the segments they
/// are all of the image.
fn prove_fold(image: &[u8], manifest: &Manifest) {
    let (head, tables) = (manifest.image.head.expect("a head"), manifest.image.tables.expect("tables"));
    assert_eq!(head.crc64, Crc64::of(&image[..to_usize(head.length)]), "the CRC of the head");
    let first = manifest.segments.first().map_or(tables.offset, |segment| segment.host);
    let cluster = manifest.encoder.cluster_size.0;
    assert!(first.0 - head.length < cluster, "the data begin behind the head");
    let stored = &image[to_usize(tables.offset.0)..];
    assert_eq!((tables.length, tables.crc64), (to_u64(stored.len()), Crc64::of(stored)), "the tables");
    assert_eq!(manifest.check_fold(), Ok(()));
    assert_eq!(manifest.encoder.layout, Some(snapferry_qcow2::layout::VERSION));
    assert_eq!(manifest.encoder.target.as_deref(), Some(std::env::consts::ARCH));
}

fn prove_segments(disk: &[u8], image: &[u8], manifest: &Manifest) {
    let cluster = manifest.encoder.cluster_size.0;
    assert_eq!((manifest.encoder.segment_size, manifest.encoder.chunk_size), (SEGMENT, CHUNK));
    let mut segments = manifest.segments.iter();
    let mut end = None;
    for (guest, bytes) in (0..).step_by(to_usize(SEGMENT.0)).zip(disk.chunks(to_usize(SEGMENT.0))) {
        if bytes.iter().all(|&byte| byte == 0) {
            continue;
        }
        let segment = segments.next().unwrap_or_else(|| panic!("the segment at {guest} is missing"));
        assert_eq!(segment.guest, GuestOffset(guest));
        let of_chunks: Vec<u8> =
            bytes.chunks(to_usize(CHUNK.0)).flat_map(|chunk| *blake3::hash(chunk).as_bytes()).collect();
        assert_eq!(segment.blake3, Some(blake3::hash(&of_chunks)), "the hash of the segment at {guest}");
        let gap = segment.host.0 - end.unwrap_or(segment.host.0);
        assert!(gap < cluster, "{gap} bytes of nothing before the segment at {guest}");
        assert!(
            gap == 0 || segment.host.0.is_multiple_of(cluster),
            "a gap that puts the segment at {guest} nowhere"
        );
        end = Some(segment.host.0 + segment.length);
        let stored = &image[to_usize(segment.host.0)..to_usize(segment.host.0 + segment.length)];
        assert_eq!(segment.crc64, Crc64::of(stored), "the CRC of the segment at {guest}");
    }
    assert_eq!(segments.next(), None, "a segment that holds nothing");
}
