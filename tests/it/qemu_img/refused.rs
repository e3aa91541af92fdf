//! Functions of qemu-img that Snapferry does not have: the program refuses them by name, or passes the whole
//! command to qemu-img, before it changes anything.

use std::os::unix::fs::PermissionsExt as _;

use snapferry_testkit::oracle::QemuImg;

use super::{Pair, run_in};
use crate::support::{program, run};

/// Command lines, and the text by which each is refused.
const REFUSED: [(&str, &str); 32] = [
    ("resize a.raw 1G", "qemu-img resize"),
    ("snapshot -l a.qcow2", "qemu-img snapshot"),
    ("rebase -u -b b.qcow2 a.qcow2", "qemu-img rebase"),
    ("commit a.qcow2", "qemu-img commit"),
    ("dd if=a.raw of=out", "qemu-img dd"),
    ("bench a.raw", "qemu-img bench"),
    ("amend -o compat=1.1 a.qcow2", "qemu-img amend"),
    ("bitmap --add a.qcow2 b", "qemu-img bitmap"),
    ("convert -O vmdk a.raw out", "the format vmdk"),
    ("convert -f vhdx a.raw out", "the format vhdx"),
    ("convert -l snap a.qcow2 out", "--source-snapshot"),
    ("convert -O qcow2 --bitmaps a.qcow2 out", "--bitmaps"),
    ("convert -B b.qcow2 -O qcow2 a.qcow2 out", "--backing"),
    ("convert --object secret,id=s --image-opts driver=raw out", "--object"),
    ("convert --target-image-opts a.raw driver=raw", "--target-image-opts"),
    ("convert -O qcow2 -o backing_file=b.qcow2 a.qcow2 out", "-o backing_file=b.qcow2"),
    ("convert -O qcow2 -o preallocation=full a.raw out", "-o preallocation=full"),
    ("convert -O qcow2 -o extended_l2=on a.raw out", "-o extended_l2=on"),
    ("convert -O qcow2 -o encrypt.format=luks a.raw out", "-o encrypt.format=luks"),
    ("convert -O qcow2 -n a.raw b.qcow2", "-n with qcow2"),
    ("convert backed.qcow2 out", "backing files, as backed.qcow2 has one"),
    ("convert other.vmdk out", "the format vmdk"),
    ("convert nbd:localhost:1 out", "nbd: as a protocol"),
    ("convert a.raw json:{}", "json: as a protocol"),
    ("create -f qcow2 -b b.qcow2 -F qcow2 new", "--backing"),
    ("create -f qcow2 -o data_file=x new 1M", "-o data_file=x"),
    ("create -f qcow2 new 0", "images of disks of no bytes"),
    ("convert -f qcow2 -O qcow2 empty.qcow2 out", "disks of no bytes"),
    ("convert -c -f qcow2 -O qcow2 empty.qcow2 out", "disks of no bytes"),
    ("convert empty.qcow2 empty.qcow2 out", "disks of no bytes"),
    ("convert -f raw -O qcow2 empty.raw out", "disks of no bytes"),
    ("compare -f raw empty.raw a.raw", "disks of no bytes"),
];

fn pair() -> Option<Pair> {
    let qemu = QemuImg::find()?;
    let pair = Pair::new(qemu);
    let at = |name: &str| pair.ours().join(name);
    qemu.run(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"], &[&at("b.qcow2"), &at("backed.qcow2")])
        .expect("made");
    qemu.run(&["create", "-q", "-f", "qcow2"], &[&at("empty.qcow2"), std::path::Path::new("0")])
        .expect("made");
    std::fs::write(at("empty.raw"), b"").expect("written");
    qemu.run(&["convert", "-O", "vmdk"], &[&at("b.raw"), &at("other.vmdk")]).expect("made");
    Some(pair)
}

const THERE: [&str; 8] =
    ["a.qcow2", "a.raw", "b.qcow2", "b.raw", "backed.qcow2", "empty.qcow2", "empty.raw", "other.vmdk"];

#[test]
fn what_is_not_done_is_refused_by_name() {
    let Some(pair) = pair() else { return };
    for (line, feature) in REFUSED {
        let ended = run(run_in(pair.link(), &pair.ours(), &line.split(' ').collect::<Vec<_>>()));
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{line}: {ended:?}");
        assert!(
            ended.err.starts_with(&format!("qemu-img: snapferry does not do {feature}")),
            "{line}: {ended:?}"
        );
        assert!(ended.err.contains("SNAPFERRY_QEMU_IMG"), "{line}: {ended:?}");
        assert_eq!(pair.left(), THERE, "{line}");
    }
}

#[test]
fn what_is_not_done_is_handed_over_as_it_was_typed() {
    let Some(pair) = pair() else { return };
    let real = pair.home.path().join("real");
    let script = "#!/bin/sh\nprintf '%s|' \"$@\"\necho \"${SNAPFERRY_QEMU_IMG-unset}\" >&2\nexit 63\n";
    std::fs::write(&real, script).expect("a script");
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o755)).expect("it can be run");
    for (line, _) in REFUSED {
        let args: Vec<&str> = line.split(' ').collect();
        let mut command = run_in(pair.link(), &pair.ours(), &args);
        command.env("SNAPFERRY_QEMU_IMG", &real);
        let ended = run(command);
        let typed: String = args.iter().map(|arg| format!("{arg}|")).collect();
        assert_eq!((ended.code, ended.out, ended.err.as_str()), (Some(63), typed, "unset\n"), "{line}");
        assert_eq!(pair.left(), THERE, "{line}");
    }
    // Commands that Snapferry has are not passed on, and a missing program is reported.
    let mut ours = run_in(pair.link(), &pair.ours(), &["convert", "a.raw", "out"]);
    ours.env("SNAPFERRY_QEMU_IMG", &real);
    assert_eq!(run(ours).code, Some(0));
    let mut nowhere = run_in(pair.link(), &pair.ours(), &["resize", "out", "1G"]);
    nowhere.env("SNAPFERRY_QEMU_IMG", "/nonexistent/qemu-img");
    let ended = run(nowhere);
    assert!(
        ended.code == Some(1) && ended.err.contains("SNAPFERRY_QEMU_IMG names: No such file"),
        "{ended:?}"
    );
}

#[test]
fn it_answers_to_both_names() {
    let Some(pair) = pair() else { return };
    let version = run(run_in(pair.link(), &pair.ours(), &["--version"]));
    let line = version.out.lines().next().unwrap_or_default();
    assert!(line.starts_with("qemu-img version 10.0.2 (snapferry "), "{version:?}");
    let ours = program();
    assert_eq!(run(run_in(ours, &pair.ours(), &["qemu-img", "--version"])), version);
    assert_eq!(run(run_in(ours, &pair.ours(), &["--quiet", "qemu-img", "--version"])), version);
    let made = run(run_in(ours, &pair.ours(), &["qemu-img", "convert", "-O", "qcow2", "a.raw", "out"]));
    assert_eq!((made.code, made.out.as_str(), made.err.as_str()), (Some(0), "", ""));
    for args in [&["--help"][..], &["-h"], &["convert", "--help"], &["create", "-h"]] {
        let help = run(run_in(pair.link(), &pair.ours(), args));
        assert!(help.code == Some(0) && help.out.contains("Usage:") && help.err.is_empty(), "{help:?}");
    }
}

#[test]
fn images_of_every_other_format_are_refused_whatever_they_are_called() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    for (format, options) in [
        ("parallels", ""),
        ("qcow", ""),
        ("qed", ""),
        ("vdi", ""),
        ("vhdx", ""),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vpc", "subformat=dynamic"),
    ] {
        let other = pair.ours().join("other");
        let mut arguments = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([other.to_str().expect("UTF-8"), "16M"]);
        qemu.run(&arguments, &[]).expect("an image");
        let theirs = qemu.run(&["info"], &[&other]).expect("QEMU knows it");
        assert!(theirs.contains(&format!("file format: {format}")), "{theirs}");
        for line in [
            "convert -O raw other out",
            "info other",
            "compare other a.raw",
            "map other",
            "measure -O qcow2 other",
        ] {
            let ended = run(run_in(pair.link(), &pair.ours(), &line.split(' ').collect::<Vec<_>>()));
            assert_eq!(
                (ended.code, ended.out.as_str()),
                (Some(1), ""),
                "{format} {options}: {line}: {ended:?}"
            );
            assert!(
                ended.err.contains(&format!("does not do the format {format}")),
                "{format} {options}: {ended:?}"
            );
        }
    }
}
