//! The image of a run with a base is, byte for byte, the image of a full run.

use std::num::NonZeroUsize;

use snapferry_base::units::{ByteCount, ClusterBits, MIB, to_u64, to_usize};
use snapferry_engine::compress::{Codec, Level};
use snapferry_engine::convert::plan::{Options, StoreAs};
use snapferry_engine::store::Location;

use super::{Run, SEGMENT, disk, mib, noise, options};
use crate::support::Stores;

/// Change to a disk since the base was made, with its name.
type Night = (&'static str, fn(&mut Vec<u8>));

/// A little of everything: bytes changed, clusters and a segment zeroed, the disk grown.
const SOME: Night = ("a bit of each", |disk| {
    for at in [0, SEGMENT + 5] {
        disk[at] ^= 1;
    }
    disk[2 * SEGMENT + 70_000..2 * SEGMENT + 270_000].fill(0);
    disk[3 * SEGMENT..4 * SEGMENT].fill(0);
    disk.extend(noise(SEGMENT + 512, 4));
});

const NOTHING: Night = ("nothing", |_| {});

const NIGHTS: [Night; 8] = [
    NOTHING,
    ("a byte here and there", |disk| {
        for at in [0, SEGMENT + 5, disk.len() - 1] {
            disk[at] ^= 1;
        }
    }),
    ("a segment of zeros, and zeros in others", |disk| {
        disk[2 * SEGMENT..3 * SEGMENT].fill(0);
        disk[3 * SEGMENT + 70_000..3 * SEGMENT + 270_000].fill(0);
    }),
    ("every second segment", |disk| {
        for segment in disk.chunks_mut(2 * SEGMENT) {
            segment[9] ^= 1;
        }
    }),
    ("all of it", |disk| *disk = noise(disk.len(), 3)),
    ("nothing but zeros", |disk| disk.fill(0)),
    ("longer", |disk| disk.extend(noise(SEGMENT + 512, 4))),
    ("shorter", |disk| disk.truncate(4 * SEGMENT + 3 * 512)),
];

/// Makes the image of each night twice, in full and with a base, and compares the two.
fn same_images(stores: &Stores, options: &Options, nights: &[Night]) {
    let run = Run::new(&stores.store, stores.location, options.clone());
    let first = disk();
    run.convert(&first, "first.qcow2", None).expect("an image");
    for &(night, change) in nights {
        let mut disk = first.clone();
        change(&mut disk);
        let full = run.convert(&disk, "full.qcow2", None).expect("an image");
        let made = run.convert(&disk, "night.qcow2", Some("first.qcow2")).expect("an image");
        assert!(made.given_up.is_none(), "{night}: {:?}", made.given_up);
        let reused = made.reused.expect("a base was used");
        assert!(
            run.bytes("night.qcow2") == run.bytes("full.qcow2"),
            "{night}: the images differ: {reused:?}"
        );
        assert_eq!(made.manifest.segments, full.manifest.segments, "{night}");
        assert_eq!(made.manifest.image.crc64, full.manifest.image.crc64, "{night}");
        assert_eq!(made.manifest.check_fold(), Ok(()), "{night}");
        assert_eq!(run.uploads(), 0, "{night}");
        let segments = to_u64(full.manifest.segments.len());
        match night {
            "nothing" => assert_eq!((reused.segments, reused.unchanged), (segments, segments)),
            "all of it" | "nothing but zeros" => assert_eq!((reused.unchanged, reused.copies), (0, 0)),
            _ => assert!((1..segments).contains(&reused.unchanged), "{night}: {reused:?}"),
        }
        assert_eq!(made.manifest.base.is_some(), reused.unchanged > 0, "{night}");
    }
}

#[test]
fn whatever_changed_and_however_long_the_disk_is() {
    same_images(&Stores::memory(), &options(), &NIGHTS);
}

#[test]
fn with_each_codec_and_with_none() {
    for (codec, store_as) in [
        (Codec::Deflate, StoreAs::Compressed),
        (Codec::Zstd, StoreAs::Compressed),
        (Codec::Deflate, StoreAs::Raw),
    ] {
        same_images(&Stores::memory(), &Options { codec, store_as, ..options() }, &[NOTHING, SOME]);
    }
}

#[test]
fn at_another_level_and_with_small_parts() {
    let options = Options { level: Level::Balanced, part_size: Some(ByteCount(8 * MIB)), ..options() };
    same_images(&Stores::memory(), &options, &[NOTHING, SOME]);
}

#[test]
fn with_clusters_of_4k_and_2m() {
    for bits in [12, 21] {
        let cluster = ClusterBits::new(bits).expect("a cluster size");
        same_images(&Stores::memory(), &Options { cluster, ..options() }, &[NOTHING, SOME]);
    }
}

#[test]
fn on_one_thread_and_on_eight_with_one_read_at_a_time() {
    for threads in [1, 8] {
        let (threads, readers) = (NonZeroUsize::new(threads), NonZeroUsize::new(1));
        same_images(&Stores::memory(), &Options { threads, readers, ..options() }, &[SOME]);
    }
}

/// Returns numbers of a xorshift generator, each below the bound that it is asked for.
fn numbers(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        to_usize(state % to_u64(bound.max(1)))
    }
}

#[test]
fn on_random_nights_that_follow_each_other() {
    for seed in [11, 12] {
        let mut below = numbers(seed);
        let stores = Stores::memory();
        let run = Run::new(&stores.store, Location::Bucket, options());
        let mut disk = disk();
        run.convert(&disk, "0.qcow2", None).expect("an image");
        for night in 1..4 {
            for edit in 0..1 + below(6) {
                let at = below(disk.len());
                let kind = below(3);
                // Zeros stay few, so that the image stays large enough to be the next base.
                let longest = if kind == 2 { 3 * SEGMENT } else { 100_000 };
                let len = (1 + below(longest)).min(disk.len() - at);
                match kind {
                    0 => disk[at..at + len].fill(0),
                    1 => disk[at..at + len].fill(7),
                    _ => disk[at..at + len].copy_from_slice(&noise(len, seed + to_u64(edit + 10 * night))),
                }
            }
            let (from, to) = (format!("{}.qcow2", night - 1), format!("{night}.qcow2"));
            run.convert(&disk, "full.qcow2", None).expect("an image");
            let made = run.convert(&disk, &to, Some(&from)).expect("an image");
            assert!(
                run.bytes(&to) == run.bytes("full.qcow2"),
                "seed {seed}, night {night}: {:?}",
                made.reused
            );
        }
    }
}

#[test]
fn in_a_folder() {
    same_images(&Stores::folder(), &options(), &[NOTHING, SOME]);
}

#[test]
fn an_image_takes_the_place_of_its_own_base() {
    let stores = Stores::memory();
    let run = Run::new(&stores.store, Location::Bucket, options());
    let mut disk = disk();
    run.convert(&disk, "nightly.qcow2", None).expect("an image");
    for night in 0..2 {
        disk[SEGMENT + night] ^= 1;
        run.convert(&disk, "full.qcow2", None).expect("an image");
        let made = run.convert(&disk, "nightly.qcow2", Some("nightly.qcow2")).expect("an image");
        assert!(made.reused.is_some_and(|reused| reused.copies > 0), "night {night}");
        assert!(run.bytes("nightly.qcow2") == run.bytes("full.qcow2"), "night {night}");
    }
}

#[test]
fn an_unchanged_disk_sends_almost_nothing() {
    let stores = Stores::memory();
    let first = Run::new(&stores.store, Location::Bucket, options());
    let disk = disk();
    let whole = first.convert(&disk, "first.qcow2", None).expect("an image");
    let run = Run::new(&stores.store, Location::Bucket, options());
    let made = run.convert(&disk, "second.qcow2", Some("first.qcow2")).expect("an image");
    let totals = run.counters.totals();
    assert_eq!((made.sent, totals.unchanged), (totals.sent, to_u64(disk.len())));
    let reused = made.reused.expect("a base was used");
    assert_eq!(made.sent + reused.copied, whole.manifest.image.size.0);
    // The head, what is needed to make a part of it, and the tables.
    assert!(made.sent < to_u64(SEGMENT + mib(6)), "{} bytes were sent: {reused:?}", made.sent);
    assert_eq!((totals.zero, totals.raw), {
        let totals = first.counters.totals();
        (totals.zero, totals.raw)
    });
}
