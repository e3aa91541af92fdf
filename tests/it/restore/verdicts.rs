//! Damage of every kind is found, named, and reported by exit code 7.

use std::path::PathBuf;

use snapferry_base::units::{ByteCount, GuestOffset, MIB, to_usize};
use snapferry_engine::convert::plan::Options;
use snapferry_engine::hash::Crc64;
use snapferry_engine::image::HashFinding;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::source::{InUse, RawSource};
use snapferry_engine::verify::{Finding, Sha256Wanted};
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::model::Model;

use super::{back_in, into_file, open, verify, verify_command};
use crate::support::{Made, convert_disk, left_in, run};

fn made() -> Made {
    convert_disk(&Disk::new(Kind::Mixed, ByteCount(36 * MIB), 81), &Options::default())
}

/// Writes the image with changed bytes beside the right one; returns its path and a manifest with the changed
/// image's CRC, but otherwise of the right image.
fn changed(made: &Made, change: impl FnOnce(&mut Vec<u8>)) -> (PathBuf, Manifest) {
    let mut image = made.image.clone();
    change(&mut image);
    let path = made.folder.path().join("changed.qcow2");
    std::fs::write(&path, &image).expect("written");
    let mut manifest = made.manifest.clone();
    manifest.image.crc64 = Crc64::of(&image);
    (path, manifest)
}

#[test]
fn a_body_that_does_not_decode_is_named_by_both_its_places() {
    let made = made();
    let model = Model::read(&made.image).expect("a sound image");
    let at = to_usize(made.manifest.segments[1].host.0 + made.manifest.segments[1].length - 3000);
    let (path, manifest) = changed(&made, |image| image[at..at + 2000].fill(0xaa));
    assert!(
        model.disk().is_ok()
            && Model::read(&std::fs::read(&path).expect("read")).is_ok_and(|model| model.disk().is_err())
    );
    let verdict = verify(&open(&path), Some(&manifest), Sha256Wanted::No, None).expect("a verdict");
    let Some(Finding::Body(body)) = verdict.findings.first() else { panic!("{verdict:?}") };
    assert!(!verdict.good && body.guest.0 >= 16 * MIB && body.guest.0 < 32 * MIB, "{body:?}");
    assert!((at - 65_536..at + 2000).contains(&to_usize(body.host.0)), "{body:?}");
    let message = format!(
        "the body at byte {}, which holds the disk's bytes from {}, is damaged",
        body.host, body.guest
    );
    run(verify_command(&path, &[])).expect(7, &["NOT GOOD", &message]);
    let back = back_in(made.folder.path());
    run(into_file(&path, &back, &[])).expect(7, &["is damaged"]);
    assert_eq!(
        left_in(made.folder.path()),
        ["changed.qcow2", "disk.qcow2", "disk.qcow2.manifest", "disk.raw"]
    );
}

#[test]
fn other_contents_that_decode_are_found_by_the_hash_of_their_segment() {
    // A raw cluster can hold any bytes.
    let raw = convert_disk(&Disk::new(Kind::Random, ByteCount(20 * MIB), 82), &Options::default());
    let at = to_usize(raw.manifest.segments[1].host.0 + 70_000);
    let (path, manifest) = changed(&raw, |image| image[at] ^= 1);
    let verdict = verify(&open(&path), Some(&manifest), Sha256Wanted::No, None).expect("a verdict");
    let segment = HashFinding::Segment { guest: GuestOffset(16 * MIB), len: 4 * MIB };
    assert_eq!(verdict.findings, [Finding::Hash(segment)], "and nothing else");
    // With the manifest on disk, the image's CRC differs too, and a restore is refused.
    std::fs::write(path.with_file_name("changed.qcow2.manifest"), raw.manifest.to_json()).expect("written");
    run(verify_command(&path, &[])).expect(7, &["CRC64NVME", "from 16777216 are not those that were read"]);
    let back = back_in(raw.folder.path());
    run(into_file(&path, &back, &[])).expect(7, &["from 16777216 are not those that were read"]);
    assert!(!back.exists());
    run(into_file(&path, &back, &["--manifest", "none"]))
        .expect(0, &["none: that it decodes is all that is known"]);
}

#[test]
fn a_manifest_of_another_image_is_refused_before_anything_is_written() {
    let made = made();
    let mut other = made.manifest.clone();
    other.image.size = ByteCount(other.image.size.0 + 65_536);
    let path = made.folder.path().join("other.manifest");
    std::fs::write(&path, other.to_json()).expect("written");
    let back = back_in(made.folder.path());
    let named = ["--manifest", path.to_str().expect("UTF-8")];
    run(into_file(&made.path, &back, &named)).expect(7, &["is of no use", "--manifest none"]);
    assert!(!back.exists());
    run(verify_command(&made.path, &named)).expect(7, &["the file has", "had"]);
    std::fs::write(&path, b"{}").expect("written");
    run(verify_command(&made.path, &named)).expect(7, &["is of no use", "it is no manifest"]);
    let mut later = made.manifest.clone();
    later.version = 2;
    std::fs::write(&path, later.to_json()).expect("written");
    run(verify_command(&made.path, &named)).expect(7, &["version 2"]);
}

#[test]
fn a_wrong_sha256_is_told_with_the_right_one() {
    let made = made();
    let wrong = "0".repeat(64);
    let ended = run(verify_command(&made.path, &["--json", "--sha256", &wrong]));
    ended.expect(7, &["SHA-256 is"]);
    let right = ended.report()["sha256"].as_str().expect("a sum").to_owned();
    run(verify_command(&made.path, &["--sha256", &right])).expect(0, &[": good", &right]);
    run(verify_command(&made.path, &["--sha256", "abc"])).expect(2, &["is not a SHA-256"]);
}

#[test]
fn a_disk_that_differs_is_told_by_its_first_differing_bytes() {
    let made = made();
    let disk = std::fs::read(&made.raw).expect("the disk");
    let model = Model::read(&made.image).expect("a sound image").disk().expect("every body decodes");
    assert!(disk == model);
    // One byte in a stored cluster, one in a zero cluster, and the last byte of the disk.
    let zero = disk.chunks(65_536).position(|cluster| cluster.iter().all(|&byte| byte == 0)).expect("zeros")
        * 65_536
        + 7;
    let stored =
        disk.chunks(65_536).position(|cluster| cluster[..4096].iter().any(|&byte| byte != 0)).expect("bytes")
            * 65_536
            + 99;
    let last = disk.len() - 1;
    let mut other = disk.clone();
    for at in [zero, stored, last] {
        other[at] ^= 0x80;
    }
    let path = made.folder.path().join("other.raw");
    std::fs::write(&path, &other).expect("written");
    let source = RawSource::open(&path, InUse::Refuse).expect("a source");
    let verdict = verify(&open(&made.path), None, Sha256Wanted::No, Some(&source)).expect("a verdict");
    let mut expected = [zero, stored, last];
    expected.sort_unstable();
    let found: Vec<usize> = verdict
        .findings
        .iter()
        .map(|finding| match finding {
            Finding::Differs(difference) => to_usize(difference.offset.0),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, expected);
    run(verify_command(&made.path, &["--against", path.to_str().expect("UTF-8")]))
        .expect(7, &["the disk differs at offset"]);
    // A disk of another size is no copy, even if the rest is zeros.
    std::fs::write(&path, [disk, vec![0; 4096]].concat()).expect("written");
    run(verify_command(&made.path, &["--against", path.to_str().expect("UTF-8")]))
        .expect(7, &["the disk in it has 37748736 bytes, not 37752832"]);
}

#[test]
fn what_is_no_image_or_too_large_is_refused() {
    let made = made();
    run(verify_command(&made.path, &["--max-size", "16M"])).expect(7, &["at most 16 MiB are taken"]);
    run(into_file(&made.path, &back_in(made.folder.path()), &["--max-size", "16M"]))
        .expect(7, &["at most 16 MiB are taken"]);
    run(verify_command(&made.raw, &[])).expect(7, &["disk.raw"]);
    run(verify_command(&made.folder.path().join("none"), &[])).expect(3, &["cannot open"]);
    assert!(!back_in(made.folder.path()).exists());
}

#[test]
fn a_manifest_that_accounts_for_a_part_of_the_disk_is_told_by_whoever_reads_it() {
    let made = made();
    let manifest_path = made.folder.path().join("disk.qcow2.manifest");
    assert_eq!(made.manifest.image.accounted, Some(made.manifest.source.size));
    let back = back_in(made.folder.path());
    let mut older = made.manifest.clone();
    older.image.accounted = None;
    std::fs::write(&manifest_path, older.to_json()).expect("written");
    run(verify_command(&made.path, &[])).expect(0, &["good"]);
    let mut short = made.manifest.clone();
    short.image.accounted = Some(ByteCount(0));
    std::fs::write(&manifest_path, short.to_json()).expect("written");
    run(verify_command(&made.path, &[])).expect(7, &["accounts for 0 of the", "not whole"]);
    run(into_file(&made.path, &back, &[])).expect(7, &["accounts for 0 of the", "not whole"]);
    assert!(!back.exists());
}
