//! Peak memory: the process stays below the peak that its plan promises and below the product's limits, for
//! any size of the disk.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use snapferry_base::units::{ByteCount, GIB, MIB};
use snapferry_testkit::disks::{Disk, Kind};

use crate::support::{BUCKET, Ended, KEY, Running, convert_into_file, folder, run, snapferry, snapferry_sim};

/// Memory limit of a run into a file on two cores.
const FILE: u64 = 256 * MIB;
/// Memory limit of a run into a bucket on two cores.
const BUCKET_PEAK: u64 = 512 * MIB;
/// Bytes that no codec makes smaller, so that buffers are full and several parts are under way.
const NOISE: u64 = 192 * MIB;

/// Writes a sparse disk with some ranges of random bytes.
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

/// Checks that dry run and run promise the same peak, and that the run stays below it.
fn check_peak(planned: &Ended, ended: &Ended, most: u64) {
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
        // The limits are for two cores.
        let into = |more: &[&str]| {
            run(convert_into_file(
                &raw,
                &folder.path().join(KEY),
                &[&["--json", "--threads", "2"], more].concat(),
            ))
        };
        check_peak(&into(&["--dry-run"]), &into(&[]), FILE);
    }
}

#[test]
fn memory_stays_within_the_plan_into_a_bucket() {
    let home = folder();
    // In another process, so that its memory is not counted here.
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
        check_peak(&into(&["--dry-run"]), &into(&[]), BUCKET_PEAK);
    }
    // The store ends cleanly on SIGTERM.
    store.signal(rustix::process::Signal::TERM);
    assert_eq!(store.end().code, Some(0));
}
