//! Every codec, level and cluster size, on disks of every kind and of odd sizes: QEMU finds each image clean
//! and identical to the disk, a plain model of the format and, if it supports the codec, a second reader
//! agree, and every number in the manifest is calculated again.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use snapferry_base::units::{ByteCount, ClusterBits, GuestOffset, KIB, MIB, to_u64, to_usize};
use snapferry_engine::compress::{Codec, Level};
use snapferry_engine::convert::plan::{CHUNK, Options, Plan, StoreAs};
use snapferry_engine::hash::Crc64;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::store::Location;
use snapferry_engine::store::{FolderStore, ObjectStore};
use snapferry_qcow2::SEGMENT;
use snapferry_qcow2::header::Version;
use snapferry_testkit::disks::{Disk, End, Kind};
use snapferry_testkit::oracle::QemuImg;

use super::prove;
use crate::support::{Bucket, KEY, Made, convert, convert_disk, convert_into_file, folder, key, run};

const CLUSTERS: [u64; 5] = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB];

fn options(codec: Codec, level: Level, cluster: u64) -> Options {
    let cluster = ClusterBits::from_size(ByteCount(cluster)).expect("a cluster size");
    Options { codec, level, cluster, ..Options::default() }
}

/// Checks that the image holds the disk: by the model, by QEMU and by the manifest.
fn judge(made: &Made, disk: &Disk, qemu: Option<QemuImg>) {
    prove(&disk.to_vec(), &made.image, &made.manifest);
    if let Some(qemu) = qemu {
        // QEMU reads a raw disk in whole sectors only.
        let raw = std::fs::OpenOptions::new().write(true).open(&made.raw).expect("the disk");
        raw.set_len(disk.size.0.next_multiple_of(512)).expect("padded");
        assert_eq!(qemu.check(&made.path), Ok(()), "{disk:?}");
        assert_eq!(qemu.compare(&made.raw, &made.path), Ok(()), "{disk:?}");
    }
}

fn every_level_and_cluster_size(codec: Codec) {
    let qemu = QemuImg::find();
    let kinds = [Kind::Text, Kind::Random, Kind::Zeros];
    for level in Level::ALL {
        for (cluster, kind) in CLUSTERS.into_iter().zip(kinds.into_iter().cycle()) {
            // The slow levels get smaller disks.
            let least = if level == Level::Smallest { MIB / 4 } else { 3 * MIB };
            let size = least.max(cluster) + 513;
            for (kind, seed) in [(Kind::Mixed, 1), (kind, 2)] {
                let disk = Disk::new(kind, ByteCount(size), seed);
                let made = convert_disk(&disk, &options(codec, level, cluster));
                judge(&made, &disk, qemu);
                assert_eq!(
                    (made.manifest.encoder.codec.as_str(), made.manifest.encoder.level.as_str()),
                    (codec.name(), level.name())
                );
            }
        }
    }
}

#[test]
fn every_level_and_cluster_size_of_deflate_gives_the_disk_back() {
    every_level_and_cluster_size(Codec::Deflate);
}

#[test]
fn every_level_and_cluster_size_of_zstd_gives_the_disk_back() {
    every_level_and_cluster_size(Codec::Zstd);
}

#[test]
fn disks_of_every_awkward_size_come_back() {
    let qemu = QemuImg::find();
    let cluster = ClusterBits::DEFAULT.size();
    let around = |size: u64| [size - 1, size, size + 1];
    let sizes =
        [1, 511, 512, 513].into_iter().chain(around(cluster)).chain(around(CHUNK.0)).chain(around(SEGMENT.0));
    for (seed, size) in (10..).zip(sizes) {
        // Random disks become raw clusters only, text disks compressed ones only; the large disks have both.
        let kinds: &[Kind] = if size < MIB { &[Kind::Text, Kind::Random] } else { &[Kind::Mixed] };
        for &kind in kinds {
            let disk = Disk::new(kind, ByteCount(size), seed);
            judge(&convert_disk(&disk, &Options::default()), &disk, qemu);
        }
    }
}

#[test]
fn disks_with_next_to_nothing_come_back() {
    let qemu = QemuImg::find();
    for cluster in [4 * KIB, 64 * KIB, 2 * MIB] {
        let size = ByteCount(3 * SEGMENT.0 + 2 * cluster);
        let only = |end| Kind::Only { end, len: cluster };
        let one = ByteCount(cluster);
        let disks = [
            (Kind::Zeros, ByteCount(1), 0),
            (Kind::Zeros, one, 0),
            (Kind::Zeros, size, 0),
            (Kind::Text, one, 1),
            (Kind::Random, one, 1),
            (only(End::First), size, 1),
            (only(End::Last), size, 1),
        ];
        for (kind, size, segments) in disks {
            let disk = Disk::new(kind, size, 3);
            let made = convert_disk(&disk, &options(Codec::Deflate, Level::Fast, cluster));
            assert_eq!(made.manifest.segments.len(), segments, "{disk:?}");
            judge(&made, &disk, qemu);
        }
    }
}

#[test]
fn three_tebibytes_of_holes_are_small_and_right() {
    const SIZE: u64 = (3 << 40) + 512;
    let qemu = QemuImg::find();
    let text = Disk::new(Kind::Text, ByteCount(100_000), 1).to_vec();
    let noise = Disk::new(Kind::Random, ByteCount(300_000), 2).to_vec();
    let last = SIZE - 100_000;
    for cluster in [64 * KIB, 2 * MIB] {
        let folder = folder();
        let raw = folder.path().join("disk.raw");
        let file = std::fs::File::create(&raw).expect("a disk");
        file.set_len(SIZE).expect("a sparse file");
        // Around the offset from which sector numbers need more than 32 bits.
        for (at, bytes) in [(0, &text), ((2 << 40) - 150_000, &noise), (last, &text)] {
            file.write_all_at(bytes, at).expect("written");
        }
        let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::new(folder.path().to_owned()));
        let source = RawSource::open(&raw, InUse::Refuse).expect("a source");
        let options = options(Codec::Deflate, Level::Fast, cluster);
        let manifest = convert(&source, &store, Location::File, &options).expect("an image").manifest;
        let guests: Vec<GuestOffset> = manifest.segments.iter().map(|segment| segment.guest).collect();
        // The last bytes lie in the disk's last full segment, and in a segment of one sector.
        assert_eq!(
            guests,
            [0, (2 << 40) - SEGMENT.0, 2 << 40, (3 << 40) - SEGMENT.0, 3 << 40].map(GuestOffset)
        );
        let path = folder.path().join(KEY);
        let image = std::fs::read(&path).expect("the image");
        assert!(to_u64(image.len()) < 80 * MIB, "{} bytes", image.len());
        assert_eq!(manifest.image.crc64, Crc64::of(&image));
        let first = &manifest.segments[0];
        let stored = &image[to_usize(first.host.0)..to_usize(first.host.0 + first.length)];
        assert_eq!(first.crc64, Crc64::of(stored));
        if let Some(qemu) = qemu {
            assert_eq!(qemu.check(&path), Ok(()));
            assert_eq!(qemu.compare(&raw, &path), Ok(()));
        }
    }
}

#[test]
fn the_command_converts_into_a_file() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = folder();
    let (raw, image) = (folder.path().join("disk.raw"), folder.path().join("image.qcow2"));
    let disk = Disk::new(Kind::Mixed, ByteCount(9 * MIB), 5);
    disk.write(&raw).expect("a disk");
    for more in [
        &[][..],
        &["--codec", "zstd", "--level", "small", "--cluster-size", "2M"],
        &[
            "--level",
            "balanced",
            "--cluster-size",
            "4k",
            "--threads",
            "3",
            "--connections",
            "1",
            "--part-size",
            "8M",
        ],
        &["--codec", "zstd", "--no-hash", "--limit", "1G"],
    ] {
        let report = run(convert_into_file(&raw, &image, &[&["--force", "--json"], more].concat())).json();
        assert_eq!(qemu.check(&image), Ok(()), "{more:?}");
        assert_eq!(qemu.compare(&raw, &image), Ok(()), "{more:?}");
        let bytes = std::fs::read(&image).expect("the image");
        assert_eq!(report["bytes_stored"].as_u64(), Some(to_u64(bytes.len())));
        assert_eq!(report["crc64nvme"].as_str(), Some(Crc64::of(&bytes).to_base64().as_str()));
        assert_eq!(report["virtual_size"].as_u64(), Some(9 * MIB));
        assert_eq!(
            report["bytes_read"].as_u64().zip(report["bytes_hole"].as_u64()).map(|(read, hole)| read + hole),
            Some(9 * MIB)
        );
        let manifest = std::fs::read(folder.path().join("image.qcow2.manifest")).expect("the manifest");
        let manifest: Manifest = serde_json::from_slice(&manifest).expect("a manifest");
        if more.contains(&"--no-hash") {
            assert!(manifest.segments.iter().all(|segment| segment.blake3.is_none()));
        } else {
            prove(&disk.to_vec(), &bytes, &manifest);
        }
    }
}

#[test]
fn the_command_converts_into_a_bucket_in_several_parts() {
    let bucket = Bucket::start();
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    let disk = Disk::new(Kind::Random, ByteCount(21 * MIB + 1), 6);
    disk.write(&raw).expect("a disk");
    let report = run(bucket.convert(&raw, &["--part-size", "8M", "--json"])).json();
    assert_eq!(report["image"].as_str(), Some("s3://images/disk.qcow2"));
    assert_eq!(report["plan"]["part_size"].as_u64(), Some(8 * MIB));
    let image = bucket.object(&key()).expect("the image");
    prove(&disk.to_vec(), &image, &bucket.manifest());
    assert_eq!(bucket.open_uploads(), 0);
    if let Some(qemu) = QemuImg::find() {
        let path = folder.path().join("back.qcow2");
        std::fs::write(&path, image).expect("written");
        assert_eq!(qemu.check(&path), Ok(()));
        std::fs::OpenOptions::new()
            .write(true)
            .open(&raw)
            .and_then(|raw| raw.set_len(21 * MIB + 512))
            .expect("padded");
        assert_eq!(qemu.compare(&raw, &path), Ok(()));
    }
}

/// Compares with imago, which reads deflate but not zstd.
#[test]
fn a_second_reader_reads_what_the_converter_makes() {
    for cluster in [4 * KIB, 64 * KIB, 2 * MIB] {
        let disk = Disk::new(Kind::Mixed, ByteCount(6 * MIB + 100), 8);
        let made = convert_disk(&disk, &options(Codec::Deflate, Level::Fast, cluster));
        let read = crate::layout::read_by_imago(&made.path).expect("it reads");
        assert!(read == crate::support::padded(&disk.to_vec()), "clusters of {cluster}");
    }
}

#[test]
fn what_is_not_compressed_comes_back_in_either_version() {
    let qemu = QemuImg::find();
    for version in [Version::V2, Version::V3] {
        for (seed, cluster) in (20..).zip(CLUSTERS) {
            let disk = Disk::new(Kind::Mixed, ByteCount(5 * MIB + 512), seed);
            let options =
                Options { version, store_as: StoreAs::Raw, ..options(Codec::Deflate, Level::Fast, cluster) };
            let made = convert_disk(&disk, &options);
            match version {
                Version::V3 => judge(&made, &disk, qemu),
                // The plain model reads version 3 only.
                Version::V2 => {
                    let Some(qemu) = qemu else { continue };
                    assert_eq!(qemu.check(&made.path), Ok(()), "{disk:?}");
                    assert_eq!(qemu.compare(&made.raw, &made.path), Ok(()), "{disk:?}");
                }
            }
            assert_eq!(made.image[4..8], if version == Version::V2 { [0, 0, 0, 2] } else { [0, 0, 0, 3] });
            assert_eq!(
                (made.manifest.encoder.codec.as_str(), made.manifest.encoder.library.as_str()),
                ("none", "none")
            );
            let again = convert_disk(&disk, &options);
            assert!(again.image == made.image, "the same disk and options give the same image");
        }
    }
}

#[test]
fn version_2_has_no_zstd() {
    let disk = Disk::new(Kind::Text, ByteCount(MIB), 1);
    let options = Options { version: Version::V2, codec: Codec::Zstd, ..Options::default() };
    let error =
        Plan::new(disk.size, &options, Location::File, std::num::NonZeroUsize::MIN).expect_err("refused");
    assert!(error.to_string().contains("deflate alone, not zstd"), "{error}");
}
