//! `info`, `check`, `map`, `measure` and `compare`: the output compared with that of QEMU's tool.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snapferry_testkit::oracle::QemuImg;

use super::{Pair, run_in, shape};
use crate::support::{Ended, program, run};

/// The pair with more images that QEMU made, and some broken ones; the same files in both folders.
fn pair(qemu: QemuImg) -> Pair {
    let pair = Pair::new(qemu);
    let theirs = pair.theirs();
    let at = |name: &str| theirs.join(name);
    let make = |options: &[&str], name: &str| {
        let args = [&["convert", "-f", "raw", "-O", "qcow2"], options].concat();
        qemu.run(&args, &[&at("a.raw"), &at(name)]).expect("made");
    };
    make(&["-o", "compat=0.10"], "old.qcow2");
    make(&["-c", "-o", "compression_type=zstd,cluster_size=1M"], "zstd.qcow2");
    make(&["-o", "extended_l2=on,refcount_bits=1"], "sub.qcow2");
    qemu.run(
        &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on"],
        &[&at("lazy.qcow2"), Path::new("1G")],
    )
    .expect("made");
    qemu.run(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2"], &[&at("backed.qcow2")])
        .expect("made");
    qemu.run(&["snapshot", "-c", "before"], &[&at("lazy.qcow2")]).expect("made");
    make(&[], "marked.qcow2");
    for bitmap in [&["--add"][..], &["--add", "-g", "512"], &["--add", "--disable"]] {
        let name = format!("bitmap{}", bitmap.len());
        qemu.run(&[&["bitmap"], bitmap].concat(), &[&at("marked.qcow2"), Path::new(&name)]).expect("made");
    }
    qemu.run(&["create", "-q", "-f", "qcow2"], &[&at("empty.qcow2"), Path::new("0")]).expect("made");
    // A refcount that is too high, and one that is too low: those of clusters 40 and 6 of QEMU's layout.
    let image = std::fs::read(at("b.qcow2")).expect("an image");
    for (name, offset, count) in [("leaky.qcow2", 0x2_0000 + 2 * 40, 1), ("wrong.qcow2", 0x2_0000 + 2 * 6, 0)]
    {
        let mut image = image.clone();
        image[offset..offset + 2].copy_from_slice(&u16::to_be_bytes(count));
        std::fs::write(at(name), image).expect("written");
    }
    let copied = std::process::Command::new("cp")
        .arg("--sparse=always")
        .arg("-a")
        .arg(theirs.join("."))
        .arg(pair.ours())
        .status();
    assert!(copied.expect("cp runs").success());
    pair
}

const IMAGES: [&str; 13] = [
    "a.raw",
    "b.raw",
    "a.qcow2",
    "b.qcow2",
    "old.qcow2",
    "zstd.qcow2",
    "sub.qcow2",
    "lazy.qcow2",
    "marked.qcow2",
    "empty.qcow2",
    "leaky.qcow2",
    "wrong.qcow2",
    "backed.qcow2",
];

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// Asserts that both print the same, except for the size on disk, which differs for a copy.
fn expect_same_json(pair: &Pair, args: &[&str]) {
    let (theirs, ours) = pair.run(args);
    assert_eq!(ours.code, theirs.code, "{args:?}: {theirs:?} {ours:?}");
    let (mut theirs, mut ours) = (json(&theirs), json(&ours));
    for report in [&mut theirs, &mut ours] {
        let report = if report.is_array() && args[0] == "info" { &mut report[0] } else { report };
        if args[0] == "info" {
            report["actual-size"].take();
            report["children"][0]["info"]["actual-size"].take();
        }
    }
    assert_eq!(ours, theirs, "{args:?}");
}

#[test]
fn json_is_qemus() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = pair(qemu);
    for image in IMAGES {
        expect_same_json(&pair, &["info", "--output=json", image]);
        expect_same_json(
            &pair,
            &[
                "info",
                "-U",
                "-f",
                if image.ends_with("raw") { "raw" } else { "qcow2" },
                "--output",
                "json",
                image,
            ],
        );
        if image == "backed.qcow2" {
            continue;
        }
        expect_same_json(&pair, &["info", "--backing-chain", "--output=json", image]);
        expect_same_json(&pair, &["map", "--output=json", image]);
        let measures = [
            &["-O", "raw"][..],
            &["-O", "qcow2"],
            &["-O", "qcow2", "-o", "cluster_size=4k,compat=1.1"],
            &["-O", "qcow2", "-o", "compat=0.10"],
            &["-O", "qcow2", "-o", "compat=0.10,cluster_size=1M"],
        ];
        for options in measures {
            expect_same_json(&pair, &[&["measure", "--output", "json"], options, &[image]].concat());
        }
        if !image.ends_with("raw") {
            expect_same_json(&pair, &["check", "--output", "json", "-f", "qcow2", image]);
        }
    }
    for size in ["0", "1", "513", "1G", "10T"] {
        expect_same_json(&pair, &["measure", "--output=json", "-O", "qcow2", "--size", size]);
        expect_same_json(&pair, &["measure", "--output=json", "-O", "raw", "--size", size]);
    }
}

#[test]
fn what_is_printed_for_people_is_qemus() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = pair(qemu);
    let without_disk_size = |ended: &Ended| {
        let lines: Vec<&str> = ended.out.lines().filter(|line| !line.contains("disk size:")).collect();
        (ended.code, lines.join("\n"))
    };
    for image in IMAGES {
        let lines = [
            vec!["info", image],
            vec!["measure", "-O", "qcow2", image],
            vec!["measure", "-O", "qcow2", "-o", "compat=0.10", image],
            vec!["map", image],
            vec!["check", image],
            vec!["check", "-q", image],
        ];
        for args in &lines[..if image == "backed.qcow2" { 1 } else { lines.len() }] {
            // QEMU prints the date of snapshots in local time, and has messages of its own for errors on
            // stderr.
            let (theirs, ours) = pair.run(args);
            assert_eq!(
                without_disk_size(&ours),
                without_disk_size(&theirs),
                "{args:?}: {} {}",
                theirs.err,
                ours.err
            );
        }
    }
}

/// Scripts search the findings for the clusters with wrong refcounts.
#[test]
fn wrong_counts_are_told_in_qemus_words() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = pair(qemu);
    // One finding alone, several, and the options that callers use.
    for folder in [pair.theirs(), pair.ours()] {
        let mut image = std::fs::read(folder.join("b.qcow2")).expect("an image");
        for (cluster, count) in [(30_usize, 1_u16), (31, 7), (40, 65535), (70, 2)] {
            image[0x2_0000 + 2 * cluster..][..2].copy_from_slice(&count.to_be_bytes());
        }
        std::fs::write(folder.join("leaks.qcow2"), image).expect("written");
    }
    for image in ["leaky.qcow2", "leaks.qcow2"] {
        for options in [&[][..], &["-f", "qcow2"], &["-q"], &["--output", "json"], &["-U", "-T", "none"]] {
            let (theirs, ours) = pair.run(&[&["check"], options, &[image]].concat());
            assert_eq!(ours, theirs, "{options:?} {image}");
        }
    }
    let lines = |ended: &Ended| {
        ended.err.lines().filter(|line| line.contains(" refcount=")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (theirs, ours) = pair.run(&["check", "wrong.qcow2"]);
    assert_eq!(ours.code, theirs.code);
    let counts = |lines: Vec<String>| {
        lines.into_iter().filter(|line| line.starts_with("ERROR cluster ")).collect::<Vec<_>>()
    };
    assert_eq!(counts(lines(&ours)), counts(lines(&theirs)), "{} {}", ours.err, theirs.err);
}

#[test]
fn disks_are_compared_with_qemus_verdict() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = pair(qemu);
    for folder in [pair.theirs(), pair.ours()] {
        let mut disk = std::fs::read(folder.join("a.raw")).expect("a disk");
        disk.resize(6 << 20, 0);
        std::fs::write(folder.join("longer.raw"), &disk).expect("written");
        disk[5_999_999] ^= 1;
        std::fs::write(folder.join("tail.raw"), &disk).expect("written");
        disk[5_999_999] ^= 1;
        disk[3_000_001] ^= 1;
        disk[4_000_000] ^= 1;
        std::fs::write(folder.join("other.raw"), &disk).expect("written");
    }
    for line in [
        "compare a.raw a.qcow2",
        "compare -f raw -F qcow2 -U -T none a.raw zstd.qcow2",
        "compare -q a.raw old.qcow2",
        "compare a.raw longer.raw",
        "compare longer.raw sub.qcow2",
        "compare a.raw tail.raw",
        "compare tail.raw a.qcow2",
        "compare a.qcow2 other.raw",
        "compare -q a.qcow2 other.raw",
        "compare other.raw a.raw",
        "compare a.raw b.raw",
        "compare -s a.raw longer.raw",
        "compare a.raw",
        "compare a.raw missing",
        "compare missing a.raw",
        "compare -f qcow2 a.raw a.raw",
        "compare -f bad a.raw a.raw",
        "compare -T bad a.raw a.raw",
    ] {
        pair.expect_same_output(&line.split(' ').collect::<Vec<_>>());
    }
    let (theirs, ours) = pair.run(&["compare", "-p", "a.raw", "a.qcow2"]);
    assert_eq!((ours.code, shape(&ours.out)), (theirs.code, shape(&theirs.out)));
}

#[test]
fn a_file_whose_format_can_not_be_looked_up_is_not_taken_for_raw() {
    // No process has memory at address 0, so the read fails.
    let output = Command::new(program()).args(["qemu-img", "info", "/proc/self/mem"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("Could not read image for determining its format: Input/output error"),
        "{stderr}"
    );
}

#[test]
fn mistakes_are_told_in_qemus_words() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = pair(qemu);
    for line in [
        "info",
        "info a b",
        "info missing",
        "info --output foo a.raw",
        "info -f bad a.raw",
        "info -f qcow2 a.raw",
        "check",
        "check missing",
        "check a.raw",
        "check -f qcow2 a.raw",
        "map",
        "map missing",
        "map a.qcow2 b.qcow2",
        "measure",
        "measure missing",
        "measure --size 1G a.raw",
        "measure a b",
        "measure -O nope --size 1G",
        "measure --size x",
        "measure --output foo --size 1G",
        "measure -O qcow2 -o compat=v2 --size 1G",
        "measure -O qcow2 -o compat=v3 --size 1G",
    ] {
        pair.expect_same_output(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn what_takes_more_is_refused_by_name() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = pair(qemu);
    for (line, feature) in [
        ("info --backing-chain backed.qcow2", "--backing-chain"),
        ("map backed.qcow2", "backing files"),
        ("check -r all b.qcow2", "--repair"),
        ("compare -s a.raw a.qcow2", "--strict with disks of the same size"),
        ("measure -l before lazy.qcow2", "--snapshot"),
        ("map --start-offset 64k a.qcow2", "--start-offset"),
    ] {
        let ended = run(run_in(pair.link(), &pair.ours(), &line.split(' ').collect::<Vec<_>>()));
        assert!(
            ended.code == Some(1) && ended.err.contains(&format!("does not do {feature}")),
            "{line}: {ended:?}"
        );
    }
}
