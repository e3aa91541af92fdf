//! Snapshots of a mounted, busy btrfs at random moments, as `live` takes them of ext4. The reader that must
//! fail believes the committed extent tree alone.

use std::path::Path;

use rand::RngExt as _;
use snapferry_freespace::{Doubt, Outcome, RangeSet, probe};

use crate::fixtures;
use crate::lab::{FileDisk, Image, Lab, Mount, must, run, text};
use crate::oracle::{self, Recovered};
use crate::tree;
use crate::writers::{Content, Writers};

const MIB: u64 = 1 << 20;
const TOOLS: [&str; 2] = ["mkfs.btrfs", "btrfs"];

fn free(image: &Image) -> RangeSet {
    let found = probe(&FileDisk::open(image.path())).expect("a readable image");
    match &found.filesystems[0].outcome {
        Outcome::Skipped { free, .. } => free.clone(),
        Outcome::Whole { why } => panic!("{why}"),
    }
}

/// Recovers a copy with holes in place of `masked`, and has it checked. A mounted btrfs is known by its UUID,
/// so that the kernel is told to forget each copy.
fn recovered(lab: &Lab, snapshot: &Image, masked: Option<&RangeSet>) -> Recovered {
    let copy = lab.copy(snapshot.path(), "copy");
    if let Some(masked) = masked {
        copy.mask(masked);
    }
    let recovered = oracle::recover(lab, &copy, ("btrfs", &["check", "--readonly", "--check-data-csum"]), "");
    run("btrfs", &["device", "scan", "--forget"]);
    recovered
}

/// Returns where a logical address lies on the device, by the tools' own print of the chunk tree.
fn places(image: &Path, address: u64) -> Vec<u64> {
    let chunks = must("btrfs", &["inspect-internal", "dump-tree", "-t", "chunk", text(image)]);
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let after = |line: &str, word: &str| -> Option<u64> { number(line.split_once(word)?.1) };
    let (mut chunk, mut length, mut found) = (0, 0, Vec::new());
    for line in chunks.lines() {
        if let Some(logical) = after(line, "CHUNK_ITEM ") {
            (chunk, length) = (logical, 0);
        } else if let Some(own) = line.trim().strip_prefix("length ").and_then(number) {
            length = own;
        } else if let Some(offset) = after(line, " devid 1 offset ")
            && (chunk..chunk + length).contains(&address)
        {
            found.push(address - chunk + offset);
        }
    }
    found
}

/// Returns the places of the log's root, if there is a log and the extent tree does not have its root.
fn outside_of_extent_tree(image: &Image) -> Option<RangeSet> {
    let said = must("btrfs", &["inspect-internal", "dump-super", text(image.path())]);
    let line = said.lines().find_map(|line| line.strip_prefix("log_root\t")).expect("its log's root");
    let address: u64 = line.trim().parse().expect("an address");
    if address == 0 {
        return None;
    }
    let extents = must("btrfs", &["inspect-internal", "dump-tree", "-t", "extent", text(image.path())]);
    assert!(!extents.contains(&format!("({address} METADATA_ITEM")), "the log is in the extent tree");
    let found: Vec<_> = places(image.path(), address).into_iter().map(|at| at..at + 4096).collect();
    assert!(!found.is_empty(), "no chunk has {address}");
    Some(RangeSet::union_of(found))
}

fn prove(mkfs: &[&str]) {
    let Some(lab) = Lab::new(3072 * MIB, &TOOLS) else { return };
    let disk = lab.file("disk", 512 * MIB);
    let fixtures = std::env::var_os("SNAPFERRY_WRITE_FIXTURES");
    let room = if fixtures.is_some() { 10 * MIB } else { 100 * MIB };
    let mut args = vec!["-q", "-f"];
    args.extend_from_slice(mkfs);
    args.push(text(&disk));
    must("mkfs.btrfs", &args);
    let wanted =
        std::env::var("SNAPFERRY_LIVE_SNAPSHOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let mut snapshots = Vec::new();
    {
        let mount = Mount::new(&disk, &lab.path("live"), "commit=5").expect("the kernel mounts it");
        let writers = Writers::start(mount.path(), room, rand::random::<u32>().into(), Content::Random);
        writers.wait_for(500);
        for _ in 0..wanted {
            writers.wait_for(rand::rng().random_range(50..800));
            snapshots.push(lab.copy(&disk, "snapshot"));
        }
    }
    run("btrfs", &["device", "scan", "--forget"]);
    let mut with_log = 0;
    for snapshot in &snapshots {
        let free = free(snapshot);
        assert!(free.total() > 100 * MIB, "there is free space: {}", free.total());
        let full = recovered(&lab, snapshot, None);
        let masked = recovered(&lab, snapshot, Some(&free));
        let files = full.tree.as_ref().expect("the kernel mounts a snapshot");
        let kept = masked.tree.as_ref().expect("the kernel mounts what is left of it");
        let differences = tree::differences(files, kept);
        assert!(differences.is_empty(), "{differences:#?}");
        assert!(files.len() > 20, "there are files: {}", files.len());
        assert_eq!(full.fsck.0, 0, "the full copy: {}", full.fsck.1);
        assert_eq!(masked.fsck.0, 0, "{}", masked.fsck.1);
        if let Some(log) = outside_of_extent_tree(snapshot) {
            with_log += 1;
            if let Some(to) = &fixtures {
                fixtures::write(to.as_ref(), "btrfs", snapshot.path(), std::slice::from_ref(&free));
            }
            let damaged = recovered(&lab, snapshot, Some(&log));
            let same = damaged.tree.is_ok_and(|tree| tree::differences(files, &tree).is_empty());
            assert!(!same, "a reader of the extent tree alone lost nothing");
        }
    }
    assert!(with_log > 0, "no snapshot had a log");
}

#[test]
fn a_busy_btrfs_loses_nothing() {
    prove(&[]);
}

#[test]
fn a_busy_btrfs_without_copies_of_metadata_loses_nothing() {
    prove(&["-m", "single", "-n", "4096"]);
}

#[test]
fn a_btrfs_in_doubt_is_copied_whole() {
    let Some(lab) = Lab::new(1024 * MIB, &TOOLS) else { return };
    let disk = lab.file("disk", 256 * MIB);
    must("mkfs.btrfs", &["-q", "-f", "--csum", "xxhash", text(&disk)]);
    let doubt = |what: &Path| {
        let found = probe(&FileDisk::open(what)).expect("a readable image");
        match &found.filesystems[0].outcome {
            Outcome::Whole { why } => why.clone(),
            Outcome::Skipped { .. } => panic!("it was trusted"),
        }
    };
    assert!(matches!(doubt(&disk), Doubt::Unsupported(_)));
    must("mkfs.btrfs", &["-q", "-f", text(&disk)]);
    let sound = lab.copy(&disk, "sound");
    assert!(free(&sound).total() > 100 * MIB);
    // One byte in every node that the superblock leads to.
    let said = must("btrfs", &["inspect-internal", "dump-super", text(&disk)]);
    for name in ["root", "chunk_root"] {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{name}\t"))).expect("a root");
        let at = places(&disk, line.trim().parse().expect("an address"))[0];
        let damaged = lab.copy(&disk, "damaged");
        let file = std::fs::OpenOptions::new().write(true).open(damaged.path()).expect("an image");
        std::os::unix::fs::FileExt::write_all_at(&file, b"\xff", at + 200).expect("written");
        assert_eq!(doubt(damaged.path()), Doubt::Tree { what: "the checksum of a node" }, "{name}");
    }
}
