//! Judges that share no code with this crate: e2fsprogs and the kernel.

use std::path::Path;

use snapferry_freespace::RangeSet;

use crate::lab::{Image, Lab, Mount, must, run, text};
use crate::tree::{self, Tree};

/// Returns the bytes that an ext4's bitmaps call free as they lie in the image, by dumpe2fs. `cluster` is the
/// size of a cluster in blocks.
pub(crate) fn free_on_disk(image: &Path, cluster: u64) -> RangeSet {
    let (_, said) = run("dumpe2fs", &[text(image)]);
    let number = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
    let size = said.lines().find(|line| line.starts_with("Block size:")).and_then(number);
    let size = size.unwrap_or_else(|| panic!("dumpe2fs: {said}"));
    let mut ranges = Vec::new();
    for list in said.lines().filter_map(|line| line.strip_prefix("  Free blocks: ")) {
        for range in list.split(", ").filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let parse =
                |word: &str| word.trim().parse::<u64>().unwrap_or_else(|_| panic!("dumpe2fs: {list}"));
            ranges.push(parse(first) * size..(parse(last) + cluster) * size);
        }
    }
    assert!(!ranges.is_empty(), "an ext4 without any free block: {said}");
    RangeSet::union_of(ranges)
}

/// Returns what is free after each recovery: e2fsck's replay, e2fsck's full check, and the kernel's mount.
pub(crate) fn free_after_recovery(lab: &Lab, snapshot: &Path, cluster: u64) -> Vec<(&'static str, RangeSet)> {
    let mut found = Vec::new();
    let replayed = lab.copy(snapshot, "journal-only");
    let (code, said) = run("e2fsck", &["-y", "-E", "journal_only", text(replayed.path())]);
    assert!(code <= 1, "e2fsck -E journal_only ended with {code}: {said}");
    found.push(("e2fsck's replay", free_on_disk(replayed.path(), cluster)));
    let checked = lab.copy(snapshot, "checked");
    let (code, said) = run("e2fsck", &["-fy", text(checked.path())]);
    assert!(code <= 1, "e2fsck -fy ended with {code}: {said}");
    found.push(("e2fsck -fy", free_on_disk(checked.path(), cluster)));
    let mounted = lab.copy(snapshot, "mounted");
    drop(Mount::new(mounted.path(), &lab.path("mnt"), "").expect("the kernel mounts a snapshot"));
    found.push(("the kernel's mount", free_on_disk(mounted.path(), cluster)));
    found
}

/// Returns what is free once debugfs has replayed the journal; `None` if it can't open the image.
pub(crate) fn free_after_debugfs(lab: &Lab, snapshot: &Path, cluster: u64) -> Option<RangeSet> {
    let replayed = lab.copy(snapshot, "debugfs");
    let (_, said) = run("debugfs", &["-w", "-R", "jr", text(replayed.path())]);
    let failed = ["not match", "orrupt", "rror"].iter().any(|word| said.contains(word));
    (!failed).then(|| free_on_disk(replayed.path(), cluster))
}

/// State of a disk after the kernel's recovery.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// All files, or why the kernel does not mount it.
    pub(crate) tree: Result<Tree, String>,
    /// Exit code of `e2fsck -fn`, and what it printed.
    pub(crate) fsck: (i32, String),
}

/// Mounts a copy of the image for writing, reads everything, unmounts it, and has it checked.
pub(crate) fn recover(lab: &Lab, image: &Image, fsck: (&str, &[&str]), options: &str) -> Recovered {
    let tree = Mount::new(image.path(), &lab.path("mnt"), options).map(|mount| tree::read(mount.path()));
    let mut args = fsck.1.to_vec();
    args.push(text(image.path()));
    Recovered { tree, fsck: run(fsck.0, &args) }
}

/// Version of e2fsprogs, for the protocol of a run.
pub(crate) fn versions() -> String {
    let (_, e2fsck) = run("e2fsck", &["-V"]);
    format!("kernel {}, {}", must("uname", &["-r"]).trim(), e2fsck.lines().next().unwrap_or_default())
}
