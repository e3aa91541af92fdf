//! The image layout, compared with a plain model of the format, with QEMU and with a second reader.

use std::collections::BTreeMap;
use std::path::Path;

use imago::FormatAccess;
use proptest::collection::btree_map;
use proptest::prelude::*;
use snapferry_base::units::{ByteCount, ClusterBits, HostOffset, MIB, to_u64, to_usize};
use snapferry_qcow2::{Codec, Geometry, Header, SEGMENT};
use snapferry_testkit::disks::{Disk, End, Kind};
use snapferry_testkit::images::{Body, build, encode};
use snapferry_testkit::model::{Model, Stored};
use snapferry_testkit::oracle::QemuImg;

fn every_cluster_size() -> impl Iterator<Item = ClusterBits> {
    (ClusterBits::MIN..=ClusterBits::MAX).map(|bits| ClusterBits::new(bits).expect("in the range"))
}

/// A body of this length, raw if it is as long as a cluster. Its bytes differ from those of its neighbours
/// and are never zero.
fn body(guest: u64, len: usize, cluster: ClusterBits) -> Body {
    let bytes = (0..len)
        .map(|at| u8::try_from((to_u64(at) * 7 + guest * 13) % 255).expect("below 255") + 1)
        .collect();
    if len == cluster.len() { Body::Raw(bytes) } else { Body::Compressed(bytes) }
}

/// A geometry and bodies for some of its clusters, at most about 8 MiB of them, over a few segments and L2
/// tables.
fn any_layout() -> impl Strategy<Value = (Geometry, Codec, BTreeMap<u64, Body>)> {
    let measures = (ClusterBits::MIN..=ClusterBits::MAX, 1..=6 * SEGMENT.0);
    (measures, prop_oneof![Just(Codec::Deflate), Just(Codec::Zstd)]).prop_flat_map(
        |((bits, size), compression)| {
            let cluster = ClusterBits::new(bits).expect("in the range");
            let geometry = Geometry::new(ByteCount(size), cluster).expect("a small disk");
            let most = to_usize(((8 * MIB) >> bits).clamp(4, 400));
            let len = prop_oneof![
                3 => 1..cluster.len(),
                2 => 1..=40_usize,
                1 => Just(cluster.len() - 1),
                2 => Just(cluster.len()),
            ];
            // Half of the clusters are close together at the front, so that runs and full tables occur too.
            let clusters = geometry.guest_clusters();
            let guest = prop_oneof![0..clusters, 0..clusters.min(to_u64(most))];
            btree_map(guest, len, 0..most).prop_map(move |lens| {
                let bodies =
                    lens.into_iter().map(|(guest, len)| (guest, body(guest, len, cluster))).collect();
                (geometry, compression, bodies)
            })
        },
    )
}

/// Number of sectors that `len` bytes at `at` touch, counted one by one.
fn sectors(at: u64, len: usize) -> u64 {
    let mut last = None;
    let mut count = 0;
    for byte in at..at + to_u64(len) {
        if last != Some(byte / 512) {
            last = Some(byte / 512);
            count += 1;
        }
    }
    count
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Bodies that were written are found at the offset of their entry, with the exact number of sectors;
    /// other clusters are absent; every refcount is right (the model checks them); the same bodies give the
    /// same image.
    #[test]
    fn any_mix_of_bodies_comes_back((geometry, compression, bodies) in any_layout()) {
        let image = build(geometry, compression, &bodies);
        let model = Model::read(&image)?;
        prop_assert_eq!(model.virtual_size, geometry.virtual_size().0);
        prop_assert_eq!(model.zstd, compression == Codec::Zstd);
        prop_assert!(model.stored.keys().eq(bodies.keys()), "other clusters are mapped than were placed");
        for (guest, body) in &bodies {
            match (body, model.stored[guest]) {
                (Body::Raw(put), Stored::Raw { bytes, .. }) => prop_assert!(put == bytes, "raw cluster {} differs", guest),
                (Body::Compressed(put), Stored::Compressed { at, bytes }) => {
                    prop_assert!(bytes.starts_with(put), "compressed cluster {} differs", guest);
                    prop_assert_eq!(to_u64(bytes.len()), sectors(at, put.len()) * 512 - at % 512);
                }
                (_, stored) => prop_assert!(false, "cluster {} is stored as {:?}", guest, stored),
            }
        }
        prop_assert!(build(geometry, compression, &bodies) == image, "a second build differs");
        let start = &image[..image.len().min(2 << 20)];
        prop_assert_eq!(Header::parse(start, ByteCount(to_u64(image.len()))), Ok(Header::new(&geometry, compression)));
    }

    /// A segment's bytes are the same at any offset of the image, so that it can be copied from one image to
    /// the next.
    #[test]
    fn a_segment_depends_on_nothing_before_it(bits in 12..=16_u32, lens in btree_map(0..256_u64, 1..=4096_usize, 1..60), earlier in 0..40_u64) {
        let cluster = ClusterBits::new(bits).expect("in the range");
        let geometry = Geometry::new(ByteCount(3 * SEGMENT.0), cluster).expect("a small disk");
        let segment: BTreeMap<u64, Body> =
            lens.into_iter().map(|(guest, len)| (geometry.segment_clusters() + guest, body(guest, len, cluster))).collect();
        let mut both = segment.clone();
        both.extend((0..earlier).map(|guest| (guest, body(guest, 1000, cluster))));
        let bytes_of_segment = |bodies: &BTreeMap<u64, Body>| {
            let image = build(geometry, Codec::Deflate, bodies);
            let model = Model::read(&image).expect("an image of ours");
            let ranges = segment.iter().map(|(guest, body)| match (model.stored[guest], body) {
                (Stored::Raw { at, bytes }, _) => (at, at + to_u64(bytes.len())),
                (Stored::Compressed { at, .. }, Body::Compressed(put) | Body::Raw(put)) => (at, at + to_u64(put.len())),
            });
            let (start, end) = ranges.fold((u64::MAX, 0), |(start, end), (from, to)| (start.min(from), end.max(to)));
            assert_eq!(start % cluster.size(), 0, "a segment starts a host cluster");
            image[to_usize(start)..to_usize(cluster.round_up(end))].to_vec()
        };
        prop_assert!(bytes_of_segment(&segment) == bytes_of_segment(&both));
    }
}

/// Disks of every kind and of odd sizes, for clusters of this size.
fn disks(cluster: ClusterBits) -> Vec<Disk> {
    // A few clusters and some sectors; less than 1 MiB only if clusters are smaller than that.
    let size = ByteCount((3 * cluster.size()).max(700_000) + 5 * 512);
    let odd = ByteCount(size.0 + 123);
    let one = ByteCount(cluster.size());
    let only = |end| Kind::Only { end, len: cluster.size() };
    [
        (Kind::Zeros, size),
        (Kind::Random, size),
        (Kind::Text, size),
        (Kind::Mixed, ByteCount(4 * size.0)),
        (Kind::Mixed, odd),
        (Kind::Text, one),
        (Kind::Random, one),
        (Kind::Text, ByteCount(1)),
        (only(End::First), size),
        (only(End::Last), odd),
    ]
    .into_iter()
    .zip(0..)
    .map(|((kind, size), seed)| Disk::new(kind, size, seed))
    .collect()
}

/// Calls `judge` with each disk (padded to whole sectors), its image, the codec and a description.
fn each_image(mut judge: impl FnMut(&[u8], &[u8], Codec, &str)) {
    for cluster in every_cluster_size() {
        for disk in disks(cluster) {
            for compression in [Codec::Deflate, Codec::Zstd] {
                let geometry = Geometry::new(disk.size, cluster).expect("a small disk");
                let mut bytes = disk.to_vec();
                let image = build(geometry, compression, &encode(&bytes, cluster, compression));
                bytes.resize(to_usize(geometry.virtual_size().0), 0);
                judge(
                    &bytes,
                    &image,
                    compression,
                    &format!("{disk:?}, {compression:?}, clusters of {cluster}"),
                );
            }
        }
    }
}

#[test]
fn real_bodies_decode_to_the_disk() {
    // Numbers of compressed and raw bodies, in deflate images and in zstd images.
    let mut counts = [[0, 0], [0, 0]];
    each_image(|disk, image, compression, what| {
        let model = Model::read(image).unwrap_or_else(|fault| panic!("{what}: {fault}"));
        assert!(
            model.disk().unwrap_or_else(|fault| panic!("{what}: {fault}")) == disk,
            "{what}: the content differs"
        );
        for stored in model.stored.values() {
            let is_raw = matches!(stored, Stored::Raw { .. });
            counts[usize::from(compression == Codec::Zstd)][usize::from(is_raw)] += 1;
        }
    });
    // The disks are made so that a large part compresses, and a large part does not.
    assert!(counts.into_iter().flatten().all(|bodies| bodies > 2000), "{counts:?} compressed and raw bodies");
}

#[test]
fn qemu_finds_every_image_clean_and_identical() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (raw, qcow2) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
    each_image(|disk, image, _, what| {
        std::fs::write(&raw, disk).expect("the temporary folder takes a disk");
        std::fs::write(&qcow2, image).expect("the temporary folder takes an image");
        qemu.check(&qcow2)
            .and_then(|()| qemu.compare(&raw, &qcow2))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    });
}

/// Reads the whole disk of an image with imago.
pub fn read_by_imago(image: &Path) -> std::io::Result<Vec<u8>> {
    let image = FormatAccess::new(imago::qcow2::Qcow2::<imago::file::File>::open_path(image, false)?);
    let mut disk = vec![0; to_usize(image.size())];
    image.read(&mut disk[..], 0)?;
    Ok(disk)
}

#[test]
fn a_second_reader_reads_every_deflate_image() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("image.qcow2");
    let mut read = 0;
    each_image(|disk, image, compression, what| {
        // imago does not support zstd.
        if compression == Codec::Deflate {
            std::fs::write(&path, image).expect("the temporary folder takes an image");
            assert!(
                read_by_imago(&path).unwrap_or_else(|reason| panic!("{what}: {reason}")) == disk,
                "{what}: the content differs"
            );
            read += 1;
        }
    });
    assert_eq!(read, 13 * 10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Random bodies do not decompress, but `check` reads only tables and refcounts, so it can check mixes of
    /// bodies that no disk gives.
    #[test]
    fn qemu_finds_any_mix_of_bodies_clean((geometry, compression, bodies) in any_layout()) {
        let Some(qemu) = QemuImg::find() else { return Ok(()) };
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), build(geometry, compression, &bodies)).expect("the temporary file takes an image");
        qemu.check(file.path()).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn three_tebibytes_of_almost_nothing_are_small_and_right() {
    const SIZE: u64 = 3 << 40;
    let cluster = ClusterBits::DEFAULT;
    let geometry = Geometry::new(ByteCount(SIZE - 512), cluster).expect("a disk that fits");
    let text = Disk::new(Kind::Text, ByteCount(cluster.size()), 1).to_vec();
    let noise = Disk::new(Kind::Random, ByteCount(cluster.size()), 2).to_vec();
    let last = geometry.guest_clusters() - 1;
    let text_body = encode(&text, cluster, Codec::Deflate).remove(&0).expect("text is not zero");
    // The disk ends one sector before the end of the last cluster: the body is zero there.
    let mut end = text.clone();
    end[cluster.len() - 512..].fill(0);
    let end_body = encode(&end, cluster, Codec::Deflate).remove(&0).expect("text is not zero");
    let bodies =
        BTreeMap::from([(0, text_body), ((2 << 40) >> 16, Body::Raw(noise.clone())), (last, end_body)]);
    let image = build(geometry, Codec::Deflate, &bodies);
    // Head: header, refcount table, 48 KiB of L1. Then three segments (1 cluster each), 3 L2 tables, 1
    // refcount block.
    assert_eq!(image.len(), (3 + 3 + 3 + 1) * cluster.len());
    let model = Model::read(&image).expect("an image of ours");
    assert!(model.cluster(last).expect("it decodes") == end);

    let Some(qemu) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (raw, qcow2) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
    std::fs::write(&qcow2, image).expect("the temporary folder takes an image");
    let disk = std::fs::File::create(&raw).expect("the temporary folder takes a disk");
    disk.set_len(SIZE - 512).expect("a sparse file");
    for (at, bytes) in
        [(0, &text[..]), (2 << 40, &noise[..]), (SIZE - cluster.size(), &end[..cluster.len() - 512])]
    {
        std::os::unix::fs::FileExt::write_all_at(&disk, bytes, at).expect("a sparse file takes a cluster");
    }
    assert_eq!(qemu.check(&qcow2), Ok(()));
    assert_eq!(qemu.compare(&raw, &qcow2), Ok(()));
}

/// Test of the tests: the model and QEMU find each kind of damage that a wrong layout could cause.
#[test]
fn damage_is_found() {
    let cluster = ClusterBits::DEFAULT;
    let geometry = Geometry::new(ByteCount(MIB), cluster).expect("a small disk");
    let bodies = BTreeMap::from([
        (0, body(0, 700, cluster)),
        (1, body(1, 700, cluster)),
        (2, body(2, cluster.len(), cluster)),
    ]);
    let sound = build(geometry, Codec::Deflate, &bodies);
    assert!(Model::read(&sound).is_ok());
    // head: 3 clusters, data: 2, L2 table at 5, refcount block at 6
    assert_eq!(sound.len(), 7 * cluster.len());
    let (l1, l2, counts) = (2 * cluster.len(), 5 * cluster.len(), 6 * cluster.len());
    let damages: [(&str, usize, u8); 7] = [
        ("a count too high", counts + 1, 2),
        ("a count too low", counts + 7, 1),
        ("L1 without COPIED", l1, 0),
        ("COPIED on a compressed entry", l2, 0xc0),
        ("a raw entry without COPIED", l2 + 16, 0),
        ("a raw entry that points at the L2 table", l2 + 21, 5),
        ("a compressed entry that points past the file", l2 + 5, 9),
    ];
    let qemu = QemuImg::find();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    for (what, at, byte) in damages {
        let mut damaged = sound.clone();
        assert_ne!(damaged[at], byte, "{what}: no damage");
        damaged[at] = byte;
        assert!(Model::read(&damaged).is_err(), "{what}: the model finds nothing");
        if let Some(qemu) = qemu {
            std::fs::write(file.path(), damaged).expect("the temporary file takes an image");
            assert!(qemu.check(file.path()).is_err(), "{what}: qemu-img finds nothing");
        }
    }
    // Damage that qemu-img accepts: a count for a cluster after the end of the file, and a file that ends
    // inside its last table.
    let mut counted = sound.clone();
    counted[counts + 15] = 1;
    assert!(Model::read(&counted).is_err(), "a count behind the file");
    let mut cut = sound;
    cut.truncate(cut.len() - 512);
    assert!(Model::read(&cut).is_err(), "a cut file");
}

#[test]
fn the_upper_bound_is_reached_and_never_passed() {
    for cluster in every_cluster_size() {
        let geometry = Geometry::new(ByteCount(MIB.max(8 * cluster.size())), cluster).expect("a small disk");
        let all = |len: usize| {
            (0..geometry.guest_clusters()).map(|guest| (guest, body(guest, len, cluster))).collect()
        };
        let raw = build(geometry, Codec::Deflate, &all(cluster.len()));
        assert_eq!(to_u64(raw.len()), geometry.upper_bound().0, "{cluster}: every cluster raw");
        // The largest compressed bodies: `build` asserts the bound.
        let compressed = build(geometry, Codec::Deflate, &all(cluster.len() - 1));
        assert!(compressed.len() <= raw.len());
    }
    let at = Geometry::new(ByteCount(MIB), ClusterBits::DEFAULT).expect("a small disk");
    assert_eq!(HostOffset(at.head_len()), at.l1_table() + ClusterBits::DEFAULT.size());
}
