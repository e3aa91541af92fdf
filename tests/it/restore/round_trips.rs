//! Every kind of image comes back as the disk that it was made from.

use snapferry_base::cancel::Cancel;
use snapferry_base::units::{ByteCount, ClusterBits, MIB};
use snapferry_engine::compress::{Codec, Level};
use snapferry_engine::convert::plan::Options;
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::verify::Sha256Wanted;
use snapferry_testkit::disks::{Disk, End, Kind};
use snapferry_testkit::loopdev::SmallFs;
use snapferry_testkit::oracle::QemuImg;

use super::{back_in, into_file, open, restore, verify};
use crate::support::{Bucket, KEY, convert_disk, folder, left_in, padded, run};

#[test]
fn our_own_images_come_back_whatever_the_disk_and_the_options() {
    let sizes = [512, 65_536, 3 * MIB + 1000, 37 * MIB + 512];
    let kinds = [Kind::Mixed, Kind::Random, Kind::Text, Kind::Zeros, Kind::Only { end: End::Last, len: 700 }];
    for (number, kind) in kinds.into_iter().enumerate() {
        for size in sizes {
            let disk = Disk::new(kind, ByteCount(size.max(1024)), 61);
            let codec = Codec::ALL[number % 2];
            let cluster = ClusterBits::new([16, 12, 21, 16, 18][number]).expect("a cluster size");
            let made =
                convert_disk(&disk, &Options { codec, cluster, level: Level::Fast, ..Options::default() });
            let (image, back) = (open(&made.path), back_in(made.folder.path()));
            let restored = restore(&image, Some(&made.manifest), &back, &Cancel::new())
                .unwrap_or_else(|error| panic!("{disk:?} {codec} {cluster}: {error}"));
            assert_eq!(restored.virtual_size, made.manifest.image.virtual_size);
            assert_eq!(restored.segments_checked, made.manifest.segments.len() as u64);
            assert!(
                std::fs::read(&back).expect("the disk") == padded(&disk.to_vec()),
                "{disk:?} {codec} {cluster}"
            );
            let source = RawSource::open(&made.raw, InUse::Refuse).expect("a source");
            let verdict =
                verify(&image, Some(&made.manifest), Sha256Wanted::Taken, Some(&source)).expect("a verdict");
            assert!(verdict.good && verdict.findings.is_empty(), "{disk:?} {codec} {cluster}: {verdict:?}");
            assert_eq!(verdict.crc64nvme, Some(made.manifest.image.crc64));
            assert_eq!(
                verdict.bytes_fetched, made.manifest.image.size.0,
                "all of the file, and nothing twice"
            );
        }
    }
}

#[test]
fn qemus_images_come_back_as_qemu_reads_them() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(21 * MIB + 512), 62).write(&raw).expect("a disk");
    let (image, back) = (folder.path().join("disk.qcow2"), back_in(folder.path()));
    for (arguments, stored) in [
        (&["-o", "cluster_size=512"][..], "sectors"),
        (&["-o", "cluster_size=64k"], "raw clusters"),
        (&["-o", "cluster_size=64k,extended_l2=on"], "subclusters"),
        (&["-o", "compat=0.10"], "version 2"),
        (&["-o", "preallocation=full"], "all of it"),
        (&["-c", "-o", "cluster_size=4k"], "small bodies"),
        (&["-c", "-W", "-o", "compression_type=zstd"], "bodies in any order"),
        (&["-c", "-o", "cluster_size=2M,compression_type=zstd"], "large bodies"),
    ] {
        qemu.run(&[&["convert", "-f", "raw", "-O", "qcow2"], arguments].concat(), &[&raw, &image])
            .expect("qemu-img converts");
        restore(&open(&image), None, &back, &Cancel::new())
            .unwrap_or_else(|error| panic!("{stored}: {error}"));
        // Compared by qemu-img first, without Snapferry's own code.
        assert_eq!(qemu.run(&["compare", "-f", "raw", "-F", "raw"], &[&raw, &back]).err(), None, "{stored}");
        assert!(
            std::fs::read(&raw).expect("the disk") == std::fs::read(&back).expect("the disk"),
            "{stored}"
        );
        let source = RawSource::open(&raw, InUse::Refuse).expect("a source");
        let verdict = verify(&open(&image), None, Sha256Wanted::No, Some(&source)).expect("a verdict");
        assert!(verdict.good, "{stored}: {verdict:?}");
        std::fs::remove_file(&back).expect("removed");
    }
}

#[test]
fn holes_stay_holes_and_a_file_is_replaced_only_by_force() {
    use std::os::unix::fs::MetadataExt as _;
    let disk = Disk::new(Kind::Only { end: End::First, len: 100_000 }, ByteCount(64 * MIB), 63);
    let made = convert_disk(&disk, &Options::default());
    let back = back_in(made.folder.path());
    let report = run(into_file(&made.path, &back, &["--json"])).json();
    assert_eq!(report["virtual_size"].as_u64(), Some(disk.size.0));
    assert_eq!(report["segments_checked"].as_u64(), Some(1));
    let stored = std::fs::metadata(&back).expect("a file").blocks() * 512;
    assert!(stored < 2 * MIB, "{stored} bytes are stored for 100,000");
    run(into_file(&made.path, &back, &[])).expect(4, &["exists already", "--force"]);
    run(into_file(&made.path, &back, &["--force", "--quiet"])).expect(0, &[]);
    assert_eq!(left_in(made.folder.path()), ["back.raw", KEY, "disk.qcow2.manifest", "disk.raw"]);
}

#[test]
fn a_file_system_without_direct_writes_does_as_well() {
    let Some(memory) = SmallFs::tmpfs(24 * MIB) else { return };
    let disk = Disk::new(Kind::Mixed, ByteCount(9 * MIB + 512), 64);
    let made = convert_disk(&disk, &Options::default());
    let back = back_in(memory.path());
    run(into_file(&made.path, &back, &[])).expect(0, &["segments hold what was read"]);
    assert!(std::fs::read(&back).expect("the disk") == disk.to_vec());
    // A full disk is reported, and leaves nothing.
    std::fs::remove_file(&back).expect("removed");
    let large = convert_disk(&Disk::new(Kind::Random, ByteCount(40 * MIB), 65), &Options::default());
    run(into_file(&large.path, &back, &[])).expect(4, &["write error at offset", "No space left"]);
    assert_eq!(left_in(memory.path()), Vec::<String>::new());
}

#[test]
fn a_bucket_gives_back_what_was_sent_by_every_way_of_naming_it() {
    let bucket = Bucket::start();
    let home = folder();
    let raw = home.path().join("disk.raw");
    let disk = Disk::new(Kind::Mixed, ByteCount(40 * MIB + 1536), 66);
    disk.write(&raw).expect("a disk");
    let report = run(bucket.convert(&raw, &["--json", "--verify", "--part-size", "8M"])).json();
    let manifest = bucket.manifest();
    let image = bucket.object(&crate::support::key()).expect("the image");
    assert_eq!(report["sha256"].as_str(), manifest.image.sha256.as_deref());
    assert!(manifest.image.verified_at.is_some());
    let file = home.path().join("copy.qcow2");
    std::fs::write(&file, &image).expect("written");
    let sum = std::process::Command::new("sha256sum").arg(&file).output().expect("coreutils").stdout;
    assert!(String::from_utf8_lossy(&sum).starts_with(manifest.image.sha256.as_deref().expect("a sum")));

    let back = back_in(home.path());
    let ended = run(bucket.command_without_bucket(&[
        "restore",
        "s3://images/disk.qcow2",
        "--output",
        back.to_str().expect("UTF-8"),
        "--json",
    ]));
    assert_eq!(ended.json()["segments_checked"].as_u64(), Some(manifest.segments.len() as u64));
    assert!(std::fs::read(&back).expect("the disk") == padded(&disk.to_vec()));
    let mut command = bucket.command(["verify", "--key", KEY, "--json"]);
    command.arg("--against").arg(&raw);
    let verdict = run(command).json();
    assert_eq!(
        verdict["sha256"].as_str(),
        manifest.image.sha256.as_deref(),
        "taken since the manifest has one"
    );
    assert_eq!(verdict["bytes_fetched"].as_u64(), Some(manifest.image.size.0), "each byte once");
    run(bucket.command_without_bucket(&["verify", "s3://images/none.qcow2"])).expect(4, &["no such object"]);
    run(bucket.command_without_bucket(&["verify", "s3://images"])).expect(2, &["s3://BUCKET/KEY"]);
}
