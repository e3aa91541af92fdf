//! The program's JSON compared with the JSON of qemu-img.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};
use snapferry_base::units::{ByteCount, MIB};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::oracle::QemuImg;
use tempfile::TempDir;

use super::{json, run, text};
use crate::support::program;

/// Images and disks of every kind that the program reads, with their names.
fn shapes(folder: &TempDir) -> Vec<(&'static str, PathBuf)> {
    let at = |name: &str| folder.path().join(name);
    let disk = at("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(5 * MIB + 1536), 5).write(&disk).unwrap();
    let odd = at("odd.raw");
    std::fs::write(&odd, [7; 700]).unwrap();
    let sparse = at("sparse.raw");
    std::fs::File::create(&sparse).unwrap().set_len(3 * MIB).unwrap();
    run("qemu-io", &["-f", "raw", "-c", "write -P 3 1M 64k", text(&sparse)]);
    let mut found = vec![("raw", disk.clone()), ("odd raw", odd), ("sparse raw", sparse)];
    for (name, args) in [
        ("uncompressed", "convert -f raw -O qcow2"),
        ("deflate", "convert -c -f raw -O qcow2"),
        ("zstd", "convert -c -f raw -O qcow2 -o compression_type=zstd,cluster_size=4k"),
        ("version 2", "convert -f raw -O qcow2 -o compat=0.10,cluster_size=512"),
        ("subclusters", "convert -f raw -O qcow2 -o extended_l2=on"),
        ("wide refcounts", "convert -f raw -O qcow2 -o refcount_bits=64,lazy_refcounts=on,cluster_size=2M"),
    ] {
        let image = at(&format!("{}.qcow2", name.replace(' ', "-")));
        let args: Vec<&str> = args.split(' ').chain([text(&disk), text(&image)]).collect();
        run("qemu-img", &args);
        found.push((name, image));
    }
    let written = at("written.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&written), "6M"]);
    let writes =
        ["write 100k 200k", "write -z 128k 64k", "write -z -u 64k 64k", "write 4M 1M", "discard 4M 128k"];
    let mut args = vec!["-f", "qcow2"];
    writes.iter().for_each(|write| args.extend(["-c", write]));
    run("qemu-io", &[&args[..], &[text(&written)]].concat());
    run("qemu-img", &["snapshot", "-c", "one", text(&written)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write 200k 64k", text(&written)]);
    found.push(("written", written));
    let ours = at("ours.qcow2");
    run(program(), &["convert", "--device", text(&disk), "--output", text(&ours), "-q"]);
    found.push(("ours", ours));
    found
}

fn qemu(arguments: &[&str]) -> Value {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// True if each of QEMU's fields is among Snapferry's, with the same value.
fn holds(ours: &Value, theirs: &Map<String, Value>) -> bool {
    theirs.iter().all(|(name, value)| ours.get(name) == Some(value))
}

fn format(path: &Path) -> &'static str {
    if path.extension().is_some_and(|extension| extension == "raw") { "raw" } else { "qcow2" }
}

#[test]
fn info_map_measure_and_check_print_what_qemu_prints() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, path) in shapes(&folder) {
        let (path, format) = (text(&path), format(&path));
        assert_eq!(
            json(&["info", path, "--json"], 0),
            qemu(&["info", "--output=json", "-f", format, path]),
            "info: {name}"
        );
        assert_eq!(
            json(&["map", path, "--json"], 0),
            qemu(&["map", "--output=json", "-f", format, path]),
            "map: {name}"
        );
        for cluster in ["512", "4k", "64k", "2M"] {
            let size = format!("cluster_size={cluster}");
            let theirs = qemu(&["measure", "--output=json", "-f", format, "-O", "qcow2", "-o", &size, path]);
            let ours = json(&["measure", path, "--json", "--cluster-size", cluster], 0);
            assert_eq!(ours, theirs, "measure {cluster}: {name}");
        }
        if format == "qcow2" {
            let theirs = qemu(&["check", "--output=json", "-f", format, path]);
            let ours = json(&["check", path, "--json", "--data"], 0);
            assert!(holds(&ours, theirs.as_object().unwrap()), "check: {name}: {ours} {theirs}");
            assert_eq!(ours["undecodable-clusters"], 0, "check: {name}");
        }
    }
    for size in ["512", "1G", "250G", "10T"] {
        let theirs = qemu(&["measure", "--output=json", "-O", "qcow2", "--size", size]);
        assert_eq!(json(&["measure", "--size", size, "--json"], 0), theirs, "measure --size {size}");
    }
}

#[test]
fn info_prints_what_qemu_prints_for_people() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, path) in shapes(&folder) {
        let ours = super::snapferry(&["info", text(&path)]);
        let theirs = Command::new("qemu-img")
            .args(["info", "-f", format(&path)])
            .arg(&path)
            .env("TZ", "UTC")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&theirs.stdout), "{name}");
    }
}

/// An image of 8 MiB with three bitmaps.
fn with_bitmaps(folder: &TempDir) -> PathBuf {
    let image = folder.path().join("bitmaps.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&image), "8M"]);
    for options in [&["first"][..], &["-g", "4k", "--disable", "second"], &["zwölf \"Stück\""]] {
        let (name, options) = options.split_last().unwrap();
        run("qemu-img", &[&["bitmap", "--add"][..], options, &[text(&image), name]].concat());
    }
    run("qemu-io", &["-f", "qcow2", "-c", "write 1M 300k", text(&image)]);
    image
}

#[test]
fn info_lists_bitmaps_as_qemu_does() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let image = with_bitmaps(&folder);
    let ours = json(&["info", text(&image), "--json"], 0);
    assert_eq!(ours, qemu(&["info", "--output=json", text(&image)]));
    assert_eq!(ours["format-specific"]["data"]["bitmaps"].as_array().map(Vec::len), Some(3));
    let ours = super::snapferry(&["info", text(&image)]);
    let theirs = Command::new("qemu-img").args(["info", text(&image)]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&theirs.stdout));
}

/// Each field of the bitmap directory and of the extension that points to it, with values on both sides of
/// its limits: QEMU accepts and refuses the same.
#[test]
fn bitmaps_are_refused_where_qemu_refuses_them() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (image, broken) = (with_bitmaps(&folder), folder.path().join("broken.qcow2"));
    let bytes = std::fs::read(&image).unwrap();
    let extension = bytes.windows(4).position(|word| word == 0x2385_2875_u32.to_be_bytes()).unwrap();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let (len, entry) = (word(extension + 16), usize::try_from(word(extension + 24)).unwrap());
    // For bytes 0 to 31 of the extension and 0 to 23 of the first entry: offset, length, value, and the
    // expected error.
    let breaks = [
        (extension + 8, 4, 0, "bitmaps"),
        (extension + 8, 4, 2, "bitmaps"),
        (extension + 8, 4, 4, "bitmaps"),
        (extension + 8, 4, 65_536, "bitmaps"),
        (extension + 16, 8, len - 8, "bitmaps"),
        (extension + 16, 8, len + 8, "bitmap directory ends"),
        (extension + 16, 8, 1024 * 65_535 + 1, "bitmap directory is"),
        (extension + 24, 8, word(extension + 24) + 512, "bitmap directory at"),
        (extension + 24, 8, 1 << 40, "bitmap directory ends"),
        (entry, 8, 0, "bitmap_table_offset"),
        (entry, 8, word(entry) + 512, "bitmap_table_offset"),
        (entry, 8, 1 << 40, ""),
        (entry + 8, 4, 0, "bitmap_table_size"),
        (entry + 8, 4, 2, "bitmap_table_size"),
        (entry + 8, 4, 8192, "bitmap_table_size"),
        (entry + 8, 4, 8193, "bitmap_table_size"),
        (entry + 12, 4, 0, ""),
        (entry + 12, 4, 1, ""),
        (entry + 12, 4, 3, ""),
        (entry + 12, 4, 4, "flags"),
        (entry + 16, 1, 0, "type"),
        (entry + 16, 1, 2, "type"),
        (entry + 17, 1, 8, "granularity_bits"),
        (entry + 17, 1, 9, ""),
        (entry + 17, 1, 31, ""),
        (entry + 17, 1, 32, "granularity_bits"),
        (entry + 18, 2, 0, "name_size"),
        (entry + 18, 2, 4, ""),
        (entry + 18, 2, 1024, "name_size"),
        (entry + 20, 4, 8, "extra_data_size"),
    ];
    for (at, size, value, refused) in breaks {
        let mut bytes = bytes.clone();
        bytes[at..at + size].copy_from_slice(&u64::to_be_bytes(value)[8 - size..]);
        std::fs::write(&broken, bytes).unwrap();
        let theirs =
            Command::new("qemu-img").args(["info", "--output=json", text(&broken)]).output().unwrap();
        let ours = super::snapferry(&["info", "--json", text(&broken)]);
        let stderr =
            [&theirs, &ours].map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).concat();
        assert_eq!(
            ours.status.code(),
            Some(if refused.is_empty() { 0 } else { 7 }),
            "{value} at {at}: {stderr}"
        );
        assert!(stderr.contains(refused), "{value} at {at}: {stderr}");
        assert_eq!(theirs.status.success(), refused.is_empty(), "{value} at {at}: {stderr}");
        if refused.is_empty() {
            let theirs: Value = serde_json::from_slice(&theirs.stdout).unwrap();
            let ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
            assert_eq!(ours["format-specific"], theirs["format-specific"], "{value} at {at}");
        }
    }
}

#[test]
fn info_tells_of_a_backing_file_without_opening_it() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (base, image) = (folder.path().join("base.raw"), folder.path().join("image.qcow2"));
    std::fs::write(&base, vec![1; 65536]).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", text(&image)]);
    let theirs = qemu(&["info", "--output=json", text(&image)]);
    std::fs::remove_file(&base).unwrap();
    assert_eq!(json(&["info", text(&image), "--json"], 0), theirs);
    let output = super::snapferry(&["info", text(&image)]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains(
            "not read by snapferry: the image holds only what differs from its backing file \"base.raw\""
        ),
        "{stdout}"
    );
    for command in ["check", "map", "verify"] {
        let output = super::snapferry(&[command, text(&image)]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{command}: {stderr}");
        assert!(stderr.contains("base.raw") && stderr.contains("qemu-img convert"), "{command}: {stderr}");
    }
}
