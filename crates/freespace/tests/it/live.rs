//! The proof: snapshots of a mounted, busy ext4 at random moments. Without the blocks that count as free,
//! every file must be there byte for byte after the kernel's recovery; and a reader that believes the bitmaps
//! on the disk must fail the same test, which shows that it can fail.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use snapferry_freespace::{Doubt, Evidence, Outcome, RangeSet, probe};

use crate::fixtures;
use crate::lab::{FileDisk, Image, Lab, Mount, must, text};
use crate::oracle;
use crate::tree;
use crate::writers::{Content, Writers};

const MIB: u64 = 1 << 20;

/// Kind of ext4.
struct Variant {
    name: &'static str,
    mkfs: &'static [&'static str],
    mount: &'static str,
    /// Blocks in a cluster.
    cluster: u64,
}

const PLAIN: &str = "-Onone,has_journal,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr";

const VARIANTS: [Variant; 12] = [
    Variant { name: "default", mkfs: &[], mount: "", cluster: 1 },
    Variant {
        name: "without-orphan-file",
        mkfs: &["-O", "^orphan_file,metadata_csum,64bit"],
        mount: "",
        cluster: 1,
    },
    Variant { name: "orphan-file", mkfs: &["-O", "orphan_file"], mount: "", cluster: 1 },
    Variant { name: "bigalloc", mkfs: &["-O", "bigalloc", "-C", "65536"], mount: "", cluster: 16 },
    Variant { name: "meta-bg", mkfs: &["-O", "meta_bg,^resize_inode", "-b", "1024"], mount: "", cluster: 1 },
    Variant { name: "blocks-of-1k", mkfs: &["-b", "1024", "-O", "^flex_bg"], mount: "", cluster: 1 },
    Variant {
        name: "uninit-bg",
        mkfs: &["-O", "^metadata_csum,^64bit,^metadata_csum_seed,^orphan_file,uninit_bg"],
        mount: "",
        cluster: 1,
    },
    Variant { name: "no-checksums", mkfs: &[PLAIN], mount: "", cluster: 1 },
    Variant { name: "data-journal", mkfs: &[], mount: "data=journal", cluster: 1 },
    Variant { name: "data-writeback", mkfs: &[], mount: "data=writeback", cluster: 1 },
    Variant {
        name: "inline-data",
        mkfs: &["-O", "inline_data,ea_inode", "-I", "512"],
        mount: "",
        cluster: 1,
    },
    Variant { name: "small-journal", mkfs: &["-J", "size=4"], mount: "", cluster: 1 },
];

/// Results of the snapshots of one variant.
#[derive(Default, Debug)]
struct Tally {
    snapshots: u64,
    replayed: u64,
    skipped_bytes: u64,
    naive_lost: u64,
    naive_lost_bytes: u64,
    naive_damaged: u64,
    naive_fsck_clean: u64,
    debugfs_judged: u64,
}

/// Snapshots of each variant: `SNAPFERRY_LIVE_SNAPSHOTS`, or few.
fn wanted() -> u64 {
    std::env::var("SNAPFERRY_LIVE_SNAPSHOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn seed() -> u64 {
    std::env::var("SNAPFERRY_LIVE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random::<u32>)
        .into()
}

fn prove(name: &str) {
    let variant = VARIANTS.iter().find(|variant| variant.name == name).expect("a variant");
    let Some(lab) = Lab::new(2048 * MIB, &["mkfs.ext4", "e2fsck", "dumpe2fs", "debugfs"]) else { return };
    // Fixtures are small disks of plain files.
    let fixtures = std::env::var_os("SNAPFERRY_WRITE_FIXTURES");
    let (size, journal, content) = match fixtures {
        Some(_) => (48 * MIB, "size=4", Content::Plain),
        None => (192 * MIB, "size=16", Content::Random),
    };
    let (disk, seed) = (lab.file("disk", size), seed());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut args = vec!["-q", "-F", "-b", "4096", "-m", "0", "-J", journal];
    args.extend_from_slice(variant.mkfs);
    args.push(text(&disk));
    must("mkfs.ext4", &args);
    let mut tally = Tally::default();
    {
        let options =
            if variant.mount.is_empty() { "commit=1".into() } else { format!("commit=1,{}", variant.mount) };
        let mount = Mount::new(&disk, &lab.path("live"), &options).expect("the kernel mounts it");
        let writers = Writers::start(mount.path(), size / 2, seed, content);
        writers.wait_for(400);
        for _ in 0..wanted() {
            writers.wait_for(rng.random_range(20..600));
            let snapshot = lab.copy(&disk, "snapshot");
            let what = format!("{name}, seed {seed}");
            let free_after = judge(&lab, variant, &snapshot, &mut tally, &what);
            if let Some(to) = &fixtures {
                fixtures::write(to.as_ref(), name, snapshot.path(), &free_after);
            }
        }
    }
    let report = format!("{name}: {tally:?} ({})\n", oracle::versions());
    if let Some(path) = std::env::var_os("SNAPFERRY_LIVE_REPORT") {
        use std::io::Write as _;
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(report.as_bytes())).expect("a report");
    }
    assert!(
        tally.naive_lost > 0,
        "{name}, seed {seed}: a reader of the bitmaps on the disk lost nothing: {report}"
    );
    assert!(tally.replayed > 0, "{name}, seed {seed}: nothing was ever replayed: {report}");
}

/// Holds one snapshot against all judges, and returns what each called free.
fn judge(lab: &Lab, variant: &Variant, snapshot: &Image, tally: &mut Tally, what: &str) -> Vec<RangeSet> {
    let found = probe(&FileDisk::open(snapshot.path())).expect("a readable image");
    let [verdict] = &found.filesystems[..] else { panic!("{what}: {found:?}") };
    let Outcome::Skipped { free, evidence, .. } = &verdict.outcome else {
        let kept = std::env::temp_dir().join(format!("snapferry-doubted-{}", variant.name));
        let _ = std::fs::copy(snapshot.path(), &kept);
        panic!("{what}: {:?}; kept in {}", verdict.outcome, kept.display())
    };
    let Evidence::Ext4 { replayed, .. } = evidence else { panic!("{evidence:?}") };
    tally.snapshots += 1;
    tally.replayed += u64::from(replayed.is_some());
    tally.skipped_bytes += free.total();
    assert!(free.total() > MIB, "{what}: there is free space");

    let naive = oracle::free_on_disk(snapshot.path(), variant.cluster);
    let mut naive_lost = 0;
    let mut free_after = Vec::new();
    for (judge, after) in oracle::free_after_recovery(lab, snapshot.path(), variant.cluster) {
        let lost = free.without(&after);
        assert!(lost.is_empty(), "{what}: lost by {judge}: {:?}", lost.as_slice());
        naive_lost = naive_lost.max(naive.without(&after).total());
        free_after.push(after);
    }
    if let Some(after) = oracle::free_after_debugfs(lab, snapshot.path(), variant.cluster) {
        let lost = free.without(&after);
        assert!(lost.is_empty(), "{what}: lost by debugfs: {:?}", lost.as_slice());
        tally.debugfs_judged += 1;
    }
    let full = recovered(lab, snapshot, None);
    let masked = recovered(lab, snapshot, Some(free));
    let files = full.tree.as_ref().expect("the kernel mounts a snapshot");
    let kept = masked.tree.as_ref().expect("the kernel mounts what is left of it");
    let differences = tree::differences(files, kept);
    assert!(differences.is_empty(), "{what}: {differences:#?}");
    assert!(files.len() > 20, "{what}: there are files: {}", files.len());
    assert_eq!(full.fsck.0, 0, "{what}: the full copy: {}", full.fsck.1);
    assert_eq!(masked.fsck.0, 0, "{what}: {}", masked.fsck.1);
    if naive_lost > 0 {
        tally.naive_lost += 1;
        tally.naive_lost_bytes += naive_lost;
        let damaged = recovered(lab, snapshot, Some(&naive));
        let same = damaged.tree.as_ref().is_ok_and(|tree| tree::differences(files, tree).is_empty());
        tally.naive_damaged += u64::from(!same);
        tally.naive_fsck_clean += u64::from(!same && damaged.fsck.0 == 0);
    }
    free_after
}

fn recovered(lab: &Lab, snapshot: &Image, free: Option<&RangeSet>) -> oracle::Recovered {
    let copy = lab.copy(snapshot.path(), "copy");
    if let Some(free) = free {
        copy.mask(free);
    }
    oracle::recover(lab, &copy, ("e2fsck", &["-fn"]), "")
}

macro_rules! variants {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                prove($name);
            }
        )*
    };
}

variants! {
    a_busy_default_loses_nothing: "default",
    without_an_orphan_file_nothing_is_lost: "without-orphan-file",
    with_an_orphan_file_nothing_is_lost: "orphan-file",
    with_clusters_nothing_is_lost: "bigalloc",
    with_meta_groups_nothing_is_lost: "meta-bg",
    with_blocks_of_1k_nothing_is_lost: "blocks-of-1k",
    with_checksums_of_descriptors_alone_nothing_is_lost: "uninit-bg",
    without_checksums_and_extents_nothing_is_lost: "no-checksums",
    with_journalled_data_nothing_is_lost: "data-journal",
    with_writeback_nothing_is_lost: "data-writeback",
    with_data_in_inodes_nothing_is_lost: "inline-data",
    with_a_journal_that_goes_round_nothing_is_lost: "small-journal",
}

/// Fast commits are records of another kind, which this crate does not replay: a snapshot that has some is
/// copied whole, and one that has none is as safe as any.
#[test]
fn fast_commits_are_never_passed_over() {
    let Some(lab) = Lab::new(2048 * MIB, &["mkfs.ext4", "e2fsck", "dumpe2fs", "debugfs"]) else { return };
    let (disk, seed) = (lab.file("disk", 192 * MIB), seed());
    must("mkfs.ext4", &["-q", "-F", "-b", "4096", "-O", "fast_commit", "-J", "size=16", text(&disk)]);
    let variant = Variant { name: "fast-commit", mkfs: &[], mount: "", cluster: 1 };
    let mount = Mount::new(&disk, &lab.path("live"), "commit=30").expect("the kernel mounts it");
    let mut refused = 0;
    let mut tally = Tally::default();
    let path = mount.path().join("synced");
    for round in 0..wanted().max(4) {
        // A full commit, and then a file that grows by fast commits alone.
        let folder = std::fs::File::open(mount.path()).expect("a folder");
        rustix::fs::syncfs(&folder).expect("synced");
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).expect("a file");
        for _ in 0..10 {
            std::io::Write::write_all(&mut file, &vec![7; 300_000]).expect("written");
            file.sync_data().expect("synced");
        }
        let snapshot = lab.copy(&disk, "snapshot");
        let found = probe(&FileDisk::open(snapshot.path())).expect("a readable image");
        match &found.filesystems[0].outcome {
            Outcome::Whole { why } => {
                assert_eq!(*why, Doubt::FastCommit, "round {round}");
                refused += 1;
            }
            Outcome::Skipped { .. } => {
                judge(&lab, &variant, &snapshot, &mut tally, &format!("seed {seed}"));
            }
        }
    }
    assert!(refused > 0, "no snapshot had fast commits: {tally:?}");
}
