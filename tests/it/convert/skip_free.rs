//! Free space that is left out: the image is the disk with zeros in it, and everything that reads the image
//! knows.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use snapferry_base::units::{GIB, MIB, to_u64, to_usize};
use snapferry_engine::manifest::Manifest;
use snapferry_testkit::loopdev::{Access, LoopDevice, LoopOptions};
use snapferry_testkit::skip::has_oracle;
use tempfile::TempDir;

use super::prove;
use crate::support::{Ended, KEY, convert_into_file, folder, key, left_in, run, snapferry};

/// Bytes that deleted files have left everywhere.
const LEFT: u8 = 0xd5;
const EXT4: std::ops::Range<u64> = MIB..65 * MIB;
const SWAP: std::ops::Range<u64> = 66 * MIB..82 * MIB;

/// A disk with a GPT, an ext4 and swap space, on which every unused byte was used before.
struct Bench {
    folder: TempDir,
}

fn tool(program: &str, args: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output().expect("the tool runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

impl Bench {
    fn new() -> Option<Self> {
        if !has_oracle("sgdisk") {
            return None;
        }
        let bench = Self { folder: folder() };
        let files = bench.path("files");
        std::fs::create_dir_all(files.join("etc")).expect("folders");
        for (name, length) in [("etc/hosts", 300), ("small", 5000), ("large", 3_000_000)] {
            std::fs::write(files.join(name), vec![b'x'; length]).expect("written");
        }
        let used = |range: &std::ops::Range<u64>| vec![LEFT; to_usize(range.end - range.start)];
        let (ext4, swap, disk) = (bench.path("ext4"), bench.path("swap"), bench.disk());
        std::fs::write(&ext4, used(&EXT4)).expect("written");
        let features = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        let root = files.to_str().expect("UTF-8");
        let own = ext4.to_str().expect("UTF-8");
        tool("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", features, "-d", root, own]);
        std::fs::write(&swap, used(&SWAP)).expect("written");
        tool("mkswap", &[swap.to_str().expect("UTF-8")]);
        std::fs::write(&disk, used(&(0..96 * MIB))).expect("written");
        let path = disk.to_str().expect("UTF-8");
        tool("sgdisk", &["--clear", "--new=1:1M:+64M", "--new=2:66M:+16M", path]);
        bench.put(&ext4, EXT4.start);
        bench.put(&swap, SWAP.start);
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("disk.raw")
    }

    fn put(&self, part: &Path, at: u64) {
        let bytes = std::fs::read(part).expect("a part");
        std::fs::OpenOptions::new()
            .write(true)
            .open(self.disk())
            .expect("a disk")
            .write_all_at(&bytes, at)
            .expect("written");
    }

    fn image(&self) -> PathBuf {
        self.path(KEY)
    }

    fn convert(&self, args: &[&str]) -> Ended {
        run(convert_into_file(&self.disk(), &self.image(), args))
    }

    fn manifest(&self) -> Manifest {
        let manifest = std::fs::read(self.path(key().manifest().as_str())).expect("a manifest");
        serde_json::from_slice(&manifest).expect("a manifest")
    }

    /// The disk with zeros in the ranges of a free map.
    fn masked(&self, map: &Value) -> Vec<u8> {
        let mut disk = std::fs::read(self.disk()).expect("a disk");
        for range in map["free"].as_array().expect("ranges") {
            let number = |index: usize| to_usize(range[index].as_u64().expect("a number"));
            disk[number(0)..number(0) + number(1)].fill(0);
        }
        disk
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn the_image_is_the_disk_with_zeros_in_its_free_blocks() {
    let Some(bench) = Bench::new() else { return };
    let map_file = bench.path("map.json");
    let args =
        ["--skip-free", "require", "--free-map-out", map_file.to_str().expect("UTF-8"), "--json", "--verify"];
    let ended = bench.convert(&args);
    ended.expect(0, &["p1 ext4", "free and not read", "p2 swap"]);
    let report = ended.report();
    let map = json(&map_file);
    let expected = bench.masked(&map);
    let manifest = bench.manifest();
    prove(&expected, &std::fs::read(bench.image()).expect("an image"), &manifest);

    let free: u64 = manifest.free.iter().map(|record| record.bytes.0).sum();
    assert_eq!(report["bytes_free"], free);
    assert!(free > 64 * MIB, "most of the disk is free: {free}");
    let kinds: Vec<_> = manifest.free.iter().map(|record| (record.offset.0, record.kind.as_str())).collect();
    assert_eq!(kinds, [(EXT4.start, "ext4"), (SWAP.start, "swap")]);
    assert_eq!(manifest.free[0].evidence.groups, Some(1));
    // Of what deleted files have left, nothing is in the partitions but the ends of blocks; all that lies
    // outside of them is as it was.
    let left = |range: std::ops::Range<u64>| {
        expected[to_usize(range.start)..to_usize(range.end)].iter().filter(|byte| **byte == LEFT).count()
    };
    assert!(left(EXT4) < 100_000 && left(SWAP) < 4096, "{} {}", left(EXT4), left(SWAP));
    assert_eq!(to_u64(left(83 * MIB..95 * MIB)), 12 * MIB);

    // What is restored is a sound filesystem with the same files.
    let back = bench.path("back.raw");
    let mut restore = snapferry(["restore"]);
    restore.arg(bench.image()).arg("--output").arg(&back);
    run(restore).expect(0, &["are zeros: the image was made without them"]);
    let bytes = std::fs::read(&back).expect("a disk");
    assert!(bytes == expected, "the restored disk is another one");
    let ext4 = bench.path("back.ext4");
    std::fs::write(&ext4, &bytes[to_usize(EXT4.start)..to_usize(EXT4.end)]).expect("written");
    let path = ext4.to_str().expect("UTF-8");
    tool("e2fsck", &["-fn", path]);
    assert!(tool("debugfs", &["-R", "cat /large", path]).len() == 3_000_000);
}

#[test]
fn an_image_is_compared_with_a_disk_of_the_same_free_space_alone() {
    let Some(bench) = Bench::new() else { return };
    bench.convert(&["--skip-free", "auto"]).expect(0, &["free and not read"]);
    let against = || {
        let mut command = snapferry(["verify"]);
        command.arg(bench.image()).arg("--against").arg(bench.disk());
        run(command)
    };
    against().expect(0, &["good", "every byte"]);
    // Other bytes in a free block change nothing; one more file does.
    let ext4 = bench.path("ext4");
    let note = bench.path("note");
    std::fs::write(&note, "more").expect("written");
    let command = format!("write {} note", note.display());
    tool("debugfs", &["-w", "-R", &command, ext4.to_str().expect("UTF-8")]);
    bench.put(&ext4, EXT4.start);
    against().expect(7, &["the free space of", "can't be compared"]);
}

#[test]
fn nothing_is_left_out_unless_the_user_asks_for_it() {
    let Some(bench) = Bench::new() else { return };
    let map_file = bench.path("map.json");
    let ended = bench.convert(&["--free-map-out", map_file.to_str().expect("UTF-8"), "--json"]);
    ended.expect(0, &["free, and copied"]);
    assert_eq!(ended.report()["bytes_free"], 0);
    assert!(json(&map_file)["free"].as_array().is_some_and(|ranges| !ranges.is_empty()));
    let manifest = bench.manifest();
    assert_eq!(manifest.free, []);
    let disk = std::fs::read(bench.disk()).expect("a disk");
    prove(&disk, &std::fs::read(bench.image()).expect("an image"), &manifest);
    let dry = bench.convert(&["--skip-free", "auto", "--dry-run", "--json"]).json();
    assert_eq!(dry["filesystems"][0]["kind"], "ext4");
    assert_eq!(dry["filesystems"][1]["whole"], Value::Null);
}

#[test]
fn a_large_disk_in_doubt_is_refused_where_free_space_is_required() {
    let folder = folder();
    let disk = folder.path().join("disk.raw");
    std::fs::File::create(&disk).and_then(|file| file.set_len(2 * GIB)).expect("a sparse file");
    let before = left_in(folder.path());
    let convert = |args: &[&str]| run(convert_into_file(&disk, &folder.path().join(KEY), args));
    let ended = convert(&["--skip-free", "require", "--json"]);
    ended.expect(3, &["disk, unknown of 2 GiB, would be copied whole", "nothing was written"]);
    ended.prints_only_an_error();
    assert_eq!(left_in(folder.path()), before);
    convert(&["--skip-free", "auto"]).expect(0, &["disk unknown: copied whole"]);
    convert(&["--skip-free", "auto", "--in-use", "--force"]).expect(2, &["--in-use", "--skip-free"]);
}

#[test]
fn a_file_that_a_loop_device_writes_to_is_refused() {
    let folder = folder();
    let disk = folder.path().join("disk.raw");
    std::fs::write(&disk, vec![1; to_usize(MIB)]).expect("a disk");
    let options = LoopOptions { access: Access::ReadWrite, ..LoopOptions::default() };
    let Some(device) = LoopDevice::attach(&disk, options) else { return };
    let convert = |args: &[&str]| run(convert_into_file(&disk, &folder.path().join(KEY), args));
    let name = device.path().to_str().expect("UTF-8");
    convert(&["--skip-free", "auto"]).expect(3, &["is in use through", name, "snapshot"]);
    drop(device);
    convert(&["--skip-free", "auto"]).expect(0, &["copied whole"]);
}
