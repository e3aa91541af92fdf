//! What is in doubt is copied whole, each for its own reason.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use snapferry_freespace::{Doubt, Outcome, Verdict, probe};

use crate::lab::{FileDisk, Image, Lab, Mount, has_tools, must, run, text};
use crate::oracle;
use crate::writers::{Content, Writers};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn only(image: &Path) -> Verdict {
    let mut found = probe(&FileDisk::open(image)).expect("a readable image");
    assert_eq!(found.filesystems.len(), 1, "{found:?}");
    found.filesystems.remove(0)
}

fn doubt(image: &Path) -> Doubt {
    match only(image).outcome {
        Outcome::Whole { why } => why,
        Outcome::Skipped { .. } => panic!("{} was trusted", image.display()),
    }
}

fn change(image: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(image).expect("an image").write_all_at(bytes, at).expect("written");
}

fn read(image: &Path, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    std::fs::File::open(image).expect("an image").read_exact_at(&mut bytes, at).expect("read");
    bytes
}

/// Image of an ext4 with one file, made without root.
struct Made {
    _folder: tempfile::TempDir,
    image: PathBuf,
}

impl Made {
    fn new(mkfs: &[&str]) -> Option<Self> {
        if !has_tools(&["mkfs.ext4", "debugfs"]) {
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(64 * MIB)).expect("a file");
        let mut args = vec!["-q", "-F", "-b", "4096"];
        args.extend_from_slice(mkfs);
        args.push(text(&image));
        must("mkfs.ext4", &args);
        let content = folder.path().join("content");
        std::fs::write(&content, vec![7; 100_000]).expect("written");
        let made = Self { _folder: folder, image };
        made.debugfs(&format!("write {} content", content.display()));
        Some(made)
    }

    fn debugfs(&self, command: &str) -> String {
        must("debugfs", &["-w", "-R", command, text(&self.image)])
    }
}

#[test]
fn an_unmounted_ext4_is_trusted_and_an_inconsistent_one_is_not() {
    let Some(made) = Made::new(&[]) else { return };
    let verdict = only(&made.image);
    let free = verdict.free().expect("it is clean");
    assert_eq!(free, &oracle::free_on_disk(&made.image, 1));
    assert_eq!((verdict.kind, verdict.name.as_str()), ("ext4", "disk"));

    // A file whose first block is one of the free ones.
    let Some(made) = Made::new(&["-O", "^extent,^64bit"]) else { return };
    let verdict = only(&made.image);
    let block = verdict.free().and_then(|free| free.as_slice().last()).expect("free blocks").end / BLOCK - 1;
    made.debugfs(&format!("sif content block[0] {block}"));
    let why = doubt(&made.image);
    assert!(matches!(why, Doubt::ReferenceToFree { block: found, .. } if found == block), "{why:?}");
}

#[test]
fn each_doubt_about_a_superblock_has_its_reason() {
    type Expected = fn(&Doubt) -> bool;
    let settings: [(&str, Expected); 8] = [
        ("ssv state 3", |why| *why == Doubt::Errors),
        ("ssv error_count 1", |why| *why == Doubt::Errors),
        ("ssv journal_inum 0", |why| *why == Doubt::ExternalJournal),
        ("ssv feature_incompat 0x40000000", |why| matches!(why, Doubt::Features { kind: "incompat", .. })),
        ("ssv feature_ro_compat 0x4000", |why| {
            matches!(why, Doubt::Features { kind: "ro_compat", bits: 0x4000 })
        }),
        ("ssv blocks_count 16385", |why| *why == Doubt::TooLarge),
        ("ssv inodes_per_group 0", |why| matches!(why, Doubt::Superblock(_))),
        ("ssv rev_level 0", |why| matches!(why, Doubt::Superblock(_))),
    ];
    for (setting, expected) in settings {
        let Some(made) = Made::new(&[]) else { return };
        made.debugfs(setting);
        let why = doubt(&made.image);
        assert!(expected(&why), "{setting}: {why:?}");
    }
    let Some(made) = Made::new(&[]) else { return };
    change(&made.image, 1024 + 0x48, &[1]);
    assert_eq!(doubt(&made.image), Doubt::Superblock("its checksum"));
}

#[test]
fn each_doubt_about_a_group_has_its_reason() {
    let Some(made) = Made::new(&[]) else { return };
    let descriptor = read(&made.image, BLOCK, 64);
    change(&made.image, BLOCK + 0x0c, &[descriptor[0x0c] ^ 1]);
    assert_eq!(doubt(&made.image), Doubt::Group { group: 0, what: "the checksum of its descriptor" });

    let Some(made) = Made::new(&[]) else { return };
    let bitmap = u64::from(u32::from_le_bytes(descriptor[..4].try_into().expect("four bytes"))) * BLOCK;
    let byte = read(&made.image, bitmap + 1000, 1)[0];
    change(&made.image, bitmap + 1000, &[byte ^ 0x10]);
    assert_eq!(doubt(&made.image), Doubt::Group { group: 0, what: "the checksum of its bitmap" });

    // Without checksums, the number of free blocks still gives it away.
    let plain = "none,has_journal,sparse_super,large_file,filetype,extent";
    let Some(made) = Made::new(&["-O", plain]) else { return };
    let bitmap = u64::from(u32::from_le_bytes(read(&made.image, BLOCK, 4).try_into().expect("four"))) * BLOCK;
    let byte = read(&made.image, bitmap + 1000, 1)[0];
    change(&made.image, bitmap + 1000, &[byte ^ 0x10]);
    let Doubt::Group { group: 0, what } = doubt(&made.image) else { panic!("{:?}", doubt(&made.image)) };
    assert_eq!(what, "its bitmap and its number of free blocks differ");
}

#[test]
fn an_ext2_is_trusted_where_it_was_unmounted() {
    let Some(made) = Made::new(&["-O", "^has_journal"]) else { return };
    assert!(only(&made.image).free().is_some());
    made.debugfs("ssv state 0");
    assert_eq!(doubt(&made.image), Doubt::NotUnmounted);
}

#[test]
fn a_journal_in_use_that_nobody_is_to_replay_is_doubted() {
    let Some(made) = Made::new(&[]) else { return };
    // A transaction in the journal sets the flag in the superblock.
    let block = made.image.with_extension("block");
    std::fs::write(&block, vec![9; 4096]).expect("written");
    let script = made.image.with_extension("script");
    std::fs::write(&script, format!("jo\njw -b 9000 {}\njc\n", block.display())).expect("written");
    must("debugfs", &["-w", "-f", text(&script), text(&made.image)]);
    let verdict = only(&made.image);
    let Outcome::Skipped { evidence, .. } = &verdict.outcome else { panic!("{verdict:?}") };
    assert!(evidence.to_string().contains("replayed"), "{evidence}");
    made.debugfs("feature -needs_recovery");
    assert_eq!(doubt(&made.image), Doubt::Journal("is in use, but the superblock demands no replay"));
}

#[test]
fn swap_is_free_unless_a_system_sleeps_in_it() {
    if !has_tools(&["mkswap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("swap");
    std::fs::File::create(&image).and_then(|file| file.set_len(16 * MIB)).expect("a file");
    must("mkswap", &[text(&image)]);
    let verdict = only(&image);
    assert_eq!(verdict.kind, "swap");
    assert_eq!(verdict.free().expect("swap").as_slice(), std::slice::from_ref(&(4096..16 * MIB)));
    change(&image, 4086, b"S1SUSPEND\0");
    assert_eq!(doubt(&image), Doubt::Hibernated);
}

/// Snapshot of an ext4 whose journal has several transactions, and the places of their commits, in order.
fn snapshot(lab: &Lab, options: &str) -> (Image, Vec<(u32, u64)>) {
    let disk = lab.file("disk", 128 * MIB);
    must("mkfs.ext4", &["-q", "-F", "-b", "4096", "-J", "size=16", text(&disk)]);
    let mount = Mount::new(&disk, &lab.path("live"), options).expect("the kernel mounts it");
    let writers = Writers::start(mount.path(), 50 * MIB, 5, Content::Random);
    writers.wait_for(300);
    loop {
        let snapshot = lab.copy(&disk, "snapshot");
        let bytes = std::fs::read(snapshot.path()).expect("an image");
        let big = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let own = |kind| {
            (0..bytes.len()).step_by(4096).filter(move |at| (big(*at), big(at + 4)) == (0xc03b_3998, kind))
        };
        let superblock = own(4).next().expect("a journal");
        let first = big(superblock + 0x18);
        let mut commits: Vec<(u32, u64)> = own(2)
            .map(|at| (big(at + 8), u64::try_from(at).expect("small")))
            .filter(|(tid, _)| *tid >= first)
            .collect();
        commits.sort_unstable();
        if commits.len() >= 4 {
            return (snapshot, commits);
        }
        writers.wait_for(100);
    }
}

#[test]
fn a_journal_that_is_damaged_in_its_middle_is_doubted() {
    let Some(lab) = Lab::new(1024 * MIB, &["mkfs.ext4", "e2fsck", "dumpe2fs"]) else { return };
    let (snapshot, commits) = snapshot(&lab, "");
    assert!(only(snapshot.path()).free().is_some(), "it is sound");
    let (tid, at) = commits[1];
    let last = commits.last().expect("several").0;
    // Where e2fsck and the kernel disagree: a bit in the second sector of a commit.
    for offset in [0x10, 0x30, 700] {
        let damaged = lab.copy(snapshot.path(), "damaged");
        let byte = read(damaged.path(), at + offset, 1)[0];
        change(damaged.path(), at + offset, &[byte ^ 4]);
        let expected = Doubt::Transaction { tid, what: "the checksum of its commit" };
        assert_eq!(doubt(damaged.path()), expected, "at {offset}");
    }
    let damaged = lab.copy(snapshot.path(), "damaged");
    change(damaged.path(), at, &[0; 4096]);
    let Doubt::CommitBeyondEnd { end, beyond } = doubt(damaged.path()) else {
        panic!("{:?}", doubt(damaged.path()))
    };
    assert!(end == tid && (tid + 1..=last).contains(&beyond), "{end} {beyond}");
}

/// A journal with any damage: a snapshot that is still trusted loses nothing in either recovery.
#[test]
fn a_damaged_journal_is_doubted_or_loses_nothing() {
    let Some(lab) = Lab::new(1024 * MIB, &["mkfs.ext4", "e2fsck", "dumpe2fs"]) else { return };
    let (snapshot, commits) = snapshot(&lab, "");
    let trials =
        std::env::var("SNAPFERRY_LIVE_DAMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let mut rng = StdRng::seed_from_u64(11);
    let (mut doubted, mut trusted) = (0, 0);
    let ends = (commits[0].1, commits.last().expect("several").1 + BLOCK * 4);
    for trial in 0..trials {
        let damaged = lab.copy(snapshot.path(), "damaged");
        let sector = rng.random_range(ends.0.min(ends.1) / 512..ends.0.max(ends.1) / 512) * 512;
        let mut bytes = read(damaged.path(), sector, 512);
        match trial % 3 {
            0 => bytes.fill(0),
            1 => rng.fill(&mut bytes[..]),
            _ => bytes[0] ^= 1,
        }
        change(damaged.path(), sector, &bytes);
        let Outcome::Skipped { free, .. } = only(damaged.path()).outcome else {
            doubted += 1;
            continue;
        };
        trusted += 1;
        let checked = lab.copy(damaged.path(), "checked");
        run("e2fsck", &["-fy", text(checked.path())]);
        let mounted = lab.copy(damaged.path(), "mounted");
        let mut judged = vec![("e2fsck -fy", oracle::free_on_disk(checked.path(), 1))];
        if let Ok(mount) = Mount::new(mounted.path(), &lab.path("mnt"), "") {
            drop(mount);
            judged.push(("the kernel's mount", oracle::free_on_disk(mounted.path(), 1)));
        }
        for (judge, after) in judged {
            let lost = free.without(&after);
            assert!(lost.is_empty(), "trial {trial} at {sector}: lost by {judge}: {:?}", lost.as_slice());
        }
    }
    assert!(doubted > 0, "{trusted} of {trials} were trusted");
}

#[test]
fn asynchronous_commits_are_doubted() {
    let Some(lab) = Lab::new(1024 * MIB, &["mkfs.ext4"]) else { return };
    let disk = lab.file("disk", 64 * MIB);
    must("mkfs.ext4", &["-q", "-F", "-b", "4096", text(&disk)]);
    let options = "journal_checksum,journal_async_commit,data=writeback";
    let mount = Mount::new(&disk, &lab.path("live"), options).expect("the kernel mounts it");
    std::fs::write(mount.path().join("file"), vec![3; 100_000]).expect("written");
    rustix::fs::syncfs(std::fs::File::open(mount.path()).expect("a folder")).expect("synced");
    assert_eq!(doubt(lab.copy(&disk, "snapshot").path()), Doubt::AsyncCommit);
}
