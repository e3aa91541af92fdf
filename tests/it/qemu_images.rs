//! Everything that QEMU writes is read: each image is compared with the disk that qemu-img itself reads from
//! it, and, if imago can read it, with imago's.

use std::path::Path;
use std::process::Command;

use snapferry_base::cancel::Cancel;
use snapferry_base::units::{ByteCount, KIB, MIB};
use snapferry_engine::image::LocalImage;
use snapferry_qcow2::check::check;
use snapferry_qcow2::{Codec, Header, Image, Limits};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::oracle::QemuImg;

use crate::hostile::decode;
use crate::layout::read_by_imago;

/// Options of `qemu-img create` for each image.
const SHAPES: [&str; 22] = [
    "cluster_size=512",
    "cluster_size=1k",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=256k",
    "cluster_size=2M",
    "compat=0.10",
    "compat=0.10,cluster_size=4k",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=4k",
    "compression_type=zstd,cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=4",
    "refcount_bits=8",
    "refcount_bits=32",
    "refcount_bits=64",
    "lazy_refcounts=on",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,compression_type=zstd",
    "preallocation=metadata",
    "preallocation=full,cluster_size=128k",
];

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

/// Returns the reason why imago does not read an image, or `None` if it does.
fn imago_refuses(header: &Header) -> Option<&'static str> {
    match () {
        () if header.compression == Codec::Zstd => Some("it has no zstd"),
        () if header.extended_l2 => Some("it does not know subclusters"),
        () => None,
    }
}

/// Checks that imago, which shares no code with Snapferry and QEMU, reads the same disk, or refuses the
/// features named above.
fn second_reader(name: &str, header: &Header, image: &Path, disk: &[u8]) {
    match (read_by_imago(image), imago_refuses(header)) {
        (Ok(read), None) => assert!(read == disk, "{name}: imago reads other bytes"),
        (Err(error), Some(_)) => {
            assert!(error.to_string().contains("incompatible feature"), "{name}: imago: {error}");
        }
        (Err(error), None) => panic!("{name}: imago: {error}"),
        (Ok(_), Some(reason)) => panic!("{name}: imago reads it, no longer true that {reason}"),
    }
}

/// Checks that Snapferry reads the same disk as qemu-img and imago, and that its `check` agrees with
/// qemu-img's.
fn compare(name: &str, image: &Path, raw: &Path) {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &text(image), &text(raw)]);
    let file = LocalImage::open(image).unwrap();
    let opened = Image::open(&file, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let disk = decode(&file).unwrap_or_else(|(stage, reason)| panic!("{name}: {stage:?}: {reason}"));
    let theirs = std::fs::read(raw).unwrap();
    assert_eq!(disk.len(), theirs.len(), "{name}");
    if let Some(at) = disk.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
        panic!("{name}: the first difference is at byte {at}");
    }
    second_reader(name, opened.header(), image, &theirs);
    let report = check(&file, &opened, &Cancel::new()).unwrap();
    if let Some(difference) = crate::check::difference(name, image) {
        panic!("{difference}");
    }
    assert!(report.hidden == 0, "{name}: {:?}", report.findings);
}

/// Writes of every kind, at offsets that are no multiples of any cluster size.
fn scribble(image: &Path, with_compressed: bool) {
    let mut commands: Vec<String> = Vec::new();
    let mut state = 7_u64;
    let mut next = |most: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    for number in 0..60 {
        let at = next(4 * MIB / 512) * 512;
        let len = ((next(150) + 1) * 512).min(4 * MIB - at);
        match number % 5 {
            0 | 1 => commands.push(format!("write -P {} {at} {len}", next(255))),
            2 => commands.push(format!("write -z {at} {len}")),
            3 => commands.push(format!("write -z -u {at} {len}")),
            _ => commands.push(format!("discard {at} {len}")),
        }
    }
    if with_compressed {
        // Whole clusters that were not written to yet.
        commands.push(format!("write -c -P 77 {} 2M", 4 * MIB));
    }
    let mut arguments = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(image.to_str().unwrap());
    run("qemu-io", &arguments);
}

#[test]
fn every_shape_of_image_is_read_before_and_after_it_was_written_to() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let disk = at("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(4 * MIB), 11).write(&disk).unwrap();
    for shape in SHAPES {
        let image = at("image.qcow2");
        let convert = |extra: &[&str]| {
            let fixed = ["convert", "-f", "raw", "-O", "qcow2", "-o", shape];
            let paths = [disk.to_str().unwrap(), image.to_str().unwrap()];
            run("qemu-img", &[&fixed[..], extra, &paths[..]].concat());
        };
        convert(&[]);
        compare(&format!("{shape}, uncompressed"), &image, &at("theirs.raw"));
        run("qemu-img", &["resize", "-q", "-f", "qcow2", image.to_str().unwrap(), "6M"]);
        scribble(&image, !shape.contains("preallocation"));
        compare(&format!("{shape}, written to"), &image, &at("theirs.raw"));
        let compressible = !shape.contains("preallocation")
            && !shape.contains("refcount_bits=1")
            && !shape.contains("refcount_bits=2");
        if compressible || shape.contains("refcount_bits=16") {
            convert(&["-c"]);
            compare(&format!("{shape}, compressed"), &image, &at("theirs.raw"));
            run("qemu-img", &["resize", "-q", "-f", "qcow2", image.to_str().unwrap(), "6M"]);
            scribble(&image, true);
            compare(&format!("{shape}, compressed and written to"), &image, &at("theirs.raw"));
        }
    }
}

#[test]
fn snapshots_bitmaps_and_odd_sizes_are_read() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for size in [512, 64 * KIB - 512, 64 * KIB + 512, 3 * MIB + 1536] {
        let disk = at("disk.raw");
        Disk::new(Kind::Text, ByteCount(size), 3).write(&disk).unwrap();
        for extra in [&[][..], &["-c"]] {
            let image = at("image.qcow2");
            let paths = [disk.to_str().unwrap(), image.to_str().unwrap()];
            run("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"][..], extra, &paths[..]].concat());
            compare(&format!("{size} bytes {extra:?}"), &image, &at("theirs.raw"));
        }
    }
    let image = at("image.qcow2");
    let path = image.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", path, "8M"]);
    for round in 0..3 {
        let write = format!("write -P {} {}k 700k", round + 1, round * 300);
        run("qemu-io", &["-f", "qcow2", "-c", &write, path]);
        run("qemu-img", &["snapshot", "-c", &format!("before {round}"), path]);
        run("qemu-img", &["bitmap", "--add", path, &format!("bitmap{round}")]);
    }
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 100k 100k", path]);
    compare("snapshots and bitmaps", &image, &at("theirs.raw"));
    let file = LocalImage::open(&image).unwrap();
    let opened = Image::open(&file, &Limits::default()).unwrap();
    let (snapshots, _) = snapferry_qcow2::snapshots::list(&file, opened.header()).unwrap();
    let names: Vec<_> = snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
    assert_eq!(names, ["before 0", "before 1", "before 2"]);
    assert_eq!(opened.header_info().bitmaps.map(|directory| directory.count), Some(3));
}
