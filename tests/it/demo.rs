//! `snapferry-sim demo` as a user runs it: on a machine with a configuration of its own, and until Ctrl-C.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use snapferry_base::units::{ByteCount, MIB};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::skip::has_oracle;

use crate::signals::SIGNALS;
use crate::support::snapferry_sim;

/// The demo on a small disk in `folder`, with temporary files in `folder` too.
fn demo(folder: &Path) -> Command {
    demo_of(folder, Kind::Mixed, ByteCount(8 * MIB))
}

/// The demo on a disk of that kind and size.
fn demo_of(folder: &Path, kind: Kind, size: ByteCount) -> Command {
    let disk = folder.join("disk.raw");
    Disk { kind, size, seed: 3 }.write(&disk).unwrap();
    let temporary = folder.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = snapferry_sim();
    command.args(["demo", "--disk"]).arg(disk).env("TMPDIR", temporary).stdout(Stdio::piped());
    command
}

fn left_in(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder.join("tmp")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_machine_with_a_configuration_shows_the_same_demonstration() {
    if !has_oracle("qemu-img") {
        return;
    }
    let folder = crate::support::folder();
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "trusted_profile = \"default\"\nbucket = \"ours\"\n").unwrap();
    // Its image is large enough for the second night to copy from.
    let mut command = demo_of(folder.path(), Kind::Random, ByteCount(96 * MIB));
    command.env("SNAPFERRY_CONFIG", config);
    // Each of these variables would send a command to another endpoint or group.
    for name in [
        "SNAPFERRY_RESOURCE_GROUP",
        "SNAPFERRY_ENDPOINT",
        "SNAPFERRY_METADATA_ENDPOINT",
        "SNAPFERRY_VOLUME_PROFILE",
    ] {
        command.env(name, "nowhere");
    }
    let output = command.env("AWS_ACCESS_KEY_ID", "alone").output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        out.contains("images are identical") && out.contains("qemu-img convert -c, into a file"),
        "{out}"
    );
    // Only the first 96 MiB of the server's disk hold data: three other segments change.
    assert!(
        out.contains("A day later: on the server's disk 64 KiB are overwritten in three places."),
        "{out}"
    );
    let saved =
        out.lines().find(|line| line.contains("copied in the store")).unwrap_or_else(|| panic!("{out}"));
    assert!(saved.contains("6 of 9 segments unchanged;") && saved.ends_with(" sent"), "{saved}");
    assert!(left_in(folder.path()).is_empty());
}

#[test]
fn a_demonstration_that_is_stopped_leaves_nothing() {
    if !has_oracle("qemu-img") {
        return;
    }
    for signal in SIGNALS {
        stopped_in_the_middle(signal);
    }
}

fn stopped_in_the_middle(signal: Signal) {
    let folder = crate::support::folder();
    let mut child = demo(folder.path()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // During this step a volume is attached.
    assert!(lines.any(|line| line.starts_with("2. $ snapferry replicate")));
    assert!(!left_in(folder.path()).is_empty());
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(left_in(folder.path()).is_empty());
    let loops = Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output();
    let loops = loops.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    assert!(!loops.contains(folder.path().to_str().unwrap()), "{loops}");
}

#[test]
fn without_qemu_img_nothing_is_begun() {
    let folder = crate::support::folder();
    let output = demo(folder.path()).env("PATH", folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("qemu-utils"));
}
