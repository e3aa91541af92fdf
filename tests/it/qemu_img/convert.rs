//! `convert`, for the command lines that its callers use.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};

use snapferry_testkit::oracle::QemuImg;

use super::{Pair, run_in};
use crate::support::run;

#[test]
fn every_way_to_write_a_conversion_gives_qemus_disk() {
    let Some(qemu) = QemuImg::find() else { return };
    for line in [
        "convert -f raw -O qcow2 a.raw out",
        "convert -O qcow2 a.raw out",
        "convert -c -f raw -O qcow2 a.raw out",
        "convert -cpWOqcow2 -f raw a.raw out",
        "convert a.raw -c -O qcow2 -p out",
        "convert -O qcow2 -c -o compression_type=zstd a.raw out",
        "convert -O qcow2 -o compression_type=zstd,cluster_size=128k a.raw out",
        "convert -O qcow2 -c -o cluster_size=512 b.raw out",
        "convert -O qcow2 -c -o cluster_size=2M a.raw out",
        "convert -O qcow2 -o compat=0.10 a.raw out",
        "convert -O qcow2 -c -o compat=v2 -o cluster_size=4k a.raw out",
        "convert -O qcow2 -o compat=1.1,lazy_refcounts=off,refcount_bits=16,extended_l2=off,preallocation=off a.raw out",
        "convert -O raw a.qcow2 out",
        "convert a.qcow2 out",
        "convert -p -f qcow2 a.qcow2 out",
        "convert -p -q -f qcow2 -O raw -t none -T none a.qcow2 out",
        "convert -t writeback -T writeback -m 16 -W a.qcow2 out",
        "convert --source-format qcow2 -O raw -p a.qcow2 out",
        "convert --source-form=qcow2 a.qcow2 -- out",
        "convert -S 0 a.qcow2 out",
        "convert -S 64k a.raw out",
        "convert -r 1G -U a.qcow2 out",
        "convert -r 0 --salvage a.raw out",
        "convert -f qcow2 -O qcow2 -c a.qcow2 out",
        "convert -O qcow2 b.qcow2 out",
        "convert a.raw out",
        "convert -O raw a.raw b.raw a.qcow2 out",
        "convert -O qcow2 -c b.qcow2 a.raw b.raw a.raw out",
        "convert -f raw a.qcow2 out",
        "convert -O raw file:a.qcow2 out",
    ] {
        let pair = Pair::new(qemu);
        let args: Vec<&str> = line.split(' ').collect();
        pair.expect_same_disk(&args, "out", qemu);
        // Run again over the existing file; nothing else may be left.
        pair.expect_same_disk(&args, "out", qemu);
        assert_eq!(pair.left(), ["a.qcow2", "a.raw", "b.qcow2", "b.raw", "out"], "{line}");
    }
}

#[test]
fn the_header_says_what_was_asked_for() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for (options, field, value) in [
        ("compat=0.10", "compat", "0.10"),
        ("compat=v3", "compat", "1.1"),
        ("compression_type=zstd", "compression-type", "zstd"),
        ("compression_type=zlib", "compression-type", "zlib"),
    ] {
        let made = run(run_in(
            pair.link(),
            &pair.ours(),
            &["convert", "-O", "qcow2", "-o", options, "b.raw", "out"],
        ));
        assert_eq!(made.code, Some(0), "{made:?}");
        let info = qemu.run(&["info", "--output=json"], &[&pair.ours().join("out")]).expect("an image");
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(info["format-specific"]["data"][field], value, "{info}");
    }
}

#[test]
fn zeros_are_left_out_or_stored_as_asked() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    let raw = std::fs::File::create(pair.ours().join("empty.raw")).expect("a file");
    raw.set_len(8 << 20).expect("a hole");
    let blocks = |args: &[&str]| {
        let made = run(run_in(pair.link(), &pair.ours(), args));
        assert_eq!(made.code, Some(0), "{made:?}");
        std::fs::metadata(pair.ours().join("out")).expect("a file").blocks() * 512
    };
    assert_eq!(blocks(&["convert", "empty.raw", "out"]), 0);
    assert!(blocks(&["convert", "-S", "0", "empty.raw", "out"]) >= 8 << 20);
}

#[test]
fn a_target_that_is_there_is_written_in_place_with_n() {
    let Some(qemu) = QemuImg::find() else { return };
    for (line, filled) in [("convert -n a.qcow2 out", 0xee), ("convert -n --target-is-zero a.qcow2 out", 0)] {
        let pair = Pair::new(qemu);
        for folder in [pair.theirs(), pair.ours()] {
            std::fs::write(folder.join("out"), vec![filled; 6 << 20]).expect("written");
        }
        let before = std::fs::metadata(pair.ours().join("out")).expect("a file").ino();
        let (theirs, ours) = pair.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!((theirs.code, ours.code), (Some(0), Some(0)), "{line}: {theirs:?} {ours:?}");
        let read = |folder: std::path::PathBuf| std::fs::read(folder.join("out")).expect("a file");
        assert!(read(pair.theirs()) == read(pair.ours()), "{line}");
        assert_eq!(std::fs::metadata(pair.ours().join("out")).expect("a file").ino(), before);
    }
}

/// The steps of the progress line depend on the data, not on the time.
#[test]
fn progress_goes_in_qemus_steps() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for folder in [pair.theirs(), pair.ours()] {
        let raw = std::fs::File::create(folder.join("steps.raw")).expect("a file");
        raw.set_len(128 << 20).expect("mostly a hole");
        for at in [0, 2, 4, 32] {
            raw.write_all_at(&[7; 1 << 20], at << 20).expect("written");
        }
        let made = ["convert", "-f", "raw", "-O", "qcow2"];
        qemu.run(&made, &[&folder.join("steps.raw"), &folder.join("steps.qcow2")]).expect("an image");
    }
    for line in [
        "convert -p -O qcow2 -f qcow2 steps.qcow2 out",
        "convert -p -O raw -f raw steps.raw out",
        "convert -p -c -O qcow2 -f raw steps.raw out",
        "convert -p -O raw -f qcow2 steps.qcow2 steps.qcow2 out",
    ] {
        pair.expect_same_output(&line.split(' ').collect::<Vec<_>>());
    }
    let (_, ours) = pair.run(&["convert", "-p", "-O", "qcow2", "-f", "qcow2", "steps.qcow2", "out"]);
    let steps = ["0.00", "25.00", "50.00", "75.00", "100.00", "100.00"]
        .map(|step| format!("    ({step}/100%)\r"))
        .concat();
    assert_eq!(ours.out, steps + "\n");
}

#[test]
fn links_stay_links() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for (format, target) in [("qcow2", "there.qcow2"), ("raw", "there.raw")] {
        for folder in [pair.theirs(), pair.ours()] {
            std::fs::write(folder.join(target), "old").expect("written");
            symlink(target, folder.join(format)).expect("a link");
        }
        pair.expect_same_disk(&["convert", "-f", "raw", "-O", format, "a.raw", format], target, qemu);
        assert!(pair.ours().join(format).symlink_metadata().expect("it is there").is_symlink());
    }
}

#[test]
fn mistakes_are_told_in_qemus_words() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for line in [
        "",
        "frob",
        "convert",
        "convert a.raw",
        "convert -O qcow2 a.raw",
        "convert -O nope a.raw out",
        "convert -Z a.raw out",
        "convert --frob a.raw out",
        "convert -m 0 a.raw out",
        "convert -m 17 a.raw out",
        "convert -t bad a.raw out",
        "convert -S 3 a.raw out",
        "convert -S 17M a.raw out",
        "convert -f bad a.raw out",
        "convert -o foo=1 -O qcow2 a.raw out",
        "convert -o cluster_size=64k -O raw a.raw out",
        "convert -o cluster_size=foo -O qcow2 a.raw out",
        "convert -o cluster_size=3k -O qcow2 a.raw out",
        "convert -o compat=2 -O qcow2 a.raw out",
        "convert -o compat=0.10,compression_type=zstd -O qcow2 a.raw out",
        "convert -o compression_type=gzip -O qcow2 a.raw out",
        "convert -o lazy_refcounts=maybe -O qcow2 a.raw out",
        "convert -c -O raw a.raw out",
        "convert -W -C -c a.raw out",
        "convert -r x a.raw out",
        "convert --target-is-zero a.raw out",
        "convert missing out",
        "convert -f raw missing out",
        "convert -f qcow2 a.raw out",
        "convert a.raw /nonexistent/out",
        "convert -O qcow2 a.raw /nonexistent/out",
        "convert -n a.raw out",
        "convert -n a.raw b.raw",
        "convert -O qcow2 a.raw a.raw",
    ] {
        pair.expect_same_output(&line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>());
        assert_eq!(pair.left(), ["a.qcow2", "a.raw", "b.qcow2", "b.raw"], "{line}");
    }
}

#[test]
fn a_disk_is_not_copied_onto_itself_under_another_name() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    std::fs::hard_link(pair.ours().join("a.raw"), pair.ours().join("hard")).expect("a link");
    symlink("a.raw", pair.ours().join("soft")).expect("a link");
    let before = std::fs::read(pair.ours().join("a.raw")).expect("the disk");
    for line in [
        "convert -n a.raw hard",
        "convert a.raw soft",
        "convert -O qcow2 b.raw hard a.raw",
        "convert file:soft hard",
    ] {
        let ended = run(run_in(pair.link(), &pair.ours(), &line.split(' ').collect::<Vec<_>>()));
        assert!(
            ended.code == Some(1) && ended.err.contains("Failed to get \"write\" lock"),
            "{line}: {ended:?}"
        );
        assert!(std::fs::read(pair.ours().join("a.raw")).expect("the disk") == before);
    }
}

#[test]
fn a_failure_leaves_what_was_there() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    // The last body of the image can't be decoded.
    let image = pair.ours().join("a.qcow2");
    let mut bytes = std::fs::read(&image).expect("an image");
    let len = bytes.len();
    for at in (0x50_000..len.saturating_sub(0x10_000)).step_by(512) {
        bytes[at] ^= 0xff;
    }
    std::fs::write(&image, bytes).expect("written");
    std::fs::write(pair.ours().join("out"), "precious").expect("written");
    for format in ["raw", "qcow2"] {
        let ended = run(run_in(pair.link(), &pair.ours(), &["convert", "-O", format, "a.qcow2", "out"]));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.starts_with("qemu-img: ") && ended.err.contains("a.qcow2"), "{ended:?}");
        assert_eq!(std::fs::read(pair.ours().join("out")).expect("still there"), b"precious");
        assert_eq!(pair.left(), ["a.qcow2", "a.raw", "b.qcow2", "b.raw", "out"]);
    }
}
