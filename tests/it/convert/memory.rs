//! The process stays within the peak that its plan promises, and within the product's bounds, whatever the disk's size.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use snapferry_base::units::{ByteCount, GIB, MIB};
use snapferry_testkit::disks::{Disk, Kind};

use super::{BUCKET, Ended, KEY, Running, folder, into_file, run, snapferry};
use crate::support::sim::snapferry_sim;

/// What a run into a file may take on two cores.
const FILE: u64 = 256 * MIB;
/// What a run into a bucket may take on two cores.
const BUCKET_PEAK: u64 = 512 * MIB;
/// Bytes that no codec makes smaller, so that buffers fill and parts fly.
const NOISE: u64 = 192 * MIB;

/// A sparse disk with noise here and there.
fn disk(folder: &Path, size: u64) -> PathBuf {
    let raw = folder.join("disk.raw");
    let file = std::fs::File::create(&raw).expect("a disk");
    file.set_len(size).expect("a sparse file");
    let piece = 24 * MIB;
    let noise = Disk::new(Kind::Random, ByteCount(piece), 51).to_vec();
    for number in 0..NOISE / piece {
        file.write_all_at(&noise, number * (size / (NOISE / piece))).expect("written");
    }
    raw
}

/// The peak that was promised, both ways of asking, and the one that was reached.
fn held(planned: &Ended, ended: &Ended, most: u64) {
    let report = ended.json();
    let promised = planned.json()["peak_memory"].as_u64().expect("a number");
    assert_eq!(report["plan"]["peak_memory"].as_u64(), Some(promised), "the dry run promised the same");
    let reached = report["peak_rss_bytes"].as_u64().expect("Linux tells");
    assert!(promised <= most, "{} are promised", ByteCount(promised));
    assert!(reached <= promised, "{} were promised, {} taken", ByteCount(promised), ByteCount(reached));
    assert!(reached > 16 * MIB, "{} can't be right", ByteCount(reached));
}

#[test]
fn memory_stays_within_the_plan_into_a_file() {
    for size in [GIB, 64 * GIB] {
        let folder = folder();
        let raw = disk(folder.path(), size);
        // The bounds are for two cores.
        let into = |more: &[&str]| {
            run(into_file(&raw, &folder.path().join(KEY), &[&["--json", "--threads", "2"], more].concat()))
        };
        held(&into(&["--dry-run"]), &into(&[]), FILE);
    }
}

#[test]
fn memory_stays_within_the_plan_into_a_bucket() {
    let home = folder();
    // In another process, so that what it takes is its own.
    let mut command = snapferry_sim();
    command.args(["store", "--bucket", BUCKET, "--dir"]);
    let keys =
        [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-south")];
    command.arg(home.path()).envs(keys);
    let mut store = Running::start(command);
    let endpoint = store.line("export AWS_ENDPOINT_URL_S3=");
    for size in [GIB, 64 * GIB] {
        let folder = folder();
        let raw = disk(folder.path(), size);
        let into = |more: &[&str]| {
            let mut command = snapferry([
                "convert",
                "--bucket",
                BUCKET,
                "--key",
                KEY,
                "--force",
                "--json",
                "--threads",
                "2",
                "--device",
            ]);
            command.arg(&raw).args(more).envs(keys).env("AWS_ENDPOINT_URL_S3", &endpoint);
            run(command)
        };
        held(&into(&["--dry-run"]), &into(&[]), BUCKET_PEAK);
    }
    // It ends in order when asked to.
    store.signal(rustix::process::Signal::TERM);
    assert_eq!(store.end().code, Some(0));
}
