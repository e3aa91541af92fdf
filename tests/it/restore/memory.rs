//! Peak memory: the process stays below the peak that its plan promises, for any size of the disk.

use std::os::unix::fs::FileExt as _;

use snapferry_base::units::{ByteCount, GIB, MIB};
use snapferry_testkit::disks::{Disk, Kind};

use super::{back_in, into_file};
use crate::support::{BUCKET, Ended, KEY, Running, convert_into_file, folder, run, snapferry, snapferry_sim};

/// Memory limit of a restore from a file on two cores.
const FILE: u64 = 256 * MIB;
/// Memory limit of a restore from a bucket on two cores.
const BUCKET_PEAK: u64 = 512 * MIB;

fn check_peak(ended: &Ended, most: u64) {
    let report = ended.json();
    let promised = report["peak_memory"].as_u64().expect("a number");
    let reached = report["peak_rss_bytes"].as_u64().expect("Linux tells");
    assert!(promised <= most, "{} are promised", ByteCount(promised));
    assert!(reached <= promised, "{} were promised, {} taken", ByteCount(promised), ByteCount(reached));
    assert!(reached > 16 * MIB, "{} can't be right", ByteCount(reached));
}

#[test]
fn memory_stays_within_the_plan() {
    let home = folder();
    let mut command = snapferry_sim();
    command.args(["store", "--bucket", BUCKET, "--dir"]);
    let keys =
        [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-south")];
    command.arg(home.path()).envs(keys);
    let mut store = Running::start(command);
    let endpoint = store.line("export AWS_ENDPOINT_URL_S3=");
    for size in [GIB, 64 * GIB] {
        let folder = folder();
        let (raw, image) = (folder.path().join("disk.raw"), folder.path().join(KEY));
        let file = std::fs::File::create(&raw).expect("a disk");
        file.set_len(size).expect("a sparse file");
        // Bytes that no codec makes smaller: batches of the greatest length.
        let noise = Disk::new(Kind::Random, ByteCount(32 * MIB), 95).to_vec();
        for number in 0..6 {
            file.write_all_at(&noise, number * (size / 6) / (16 * MIB) * (16 * MIB)).expect("written");
        }
        run(convert_into_file(&raw, &image, &["--quiet"])).expect(0, &[]);
        check_peak(&run(into_file(&image, &back_in(folder.path()), &["--json", "--threads", "2"])), FILE);
        std::fs::remove_file(back_in(folder.path())).expect("removed");
        let mut command =
            snapferry(["convert", "--bucket", BUCKET, "--key", KEY, "--force", "--quiet", "--device"]);
        command.arg(&raw).envs(keys).env("AWS_ENDPOINT_URL_S3", &endpoint);
        run(command).expect(0, &[]);
        let mut command =
            snapferry(["restore", "s3://images/disk.qcow2", "--json", "--threads", "2", "--output"]);
        command.arg(back_in(folder.path())).envs(keys).env("AWS_ENDPOINT_URL_S3", &endpoint);
        check_peak(&run(command), BUCKET_PEAK);
    }
    store.signal(rustix::process::Signal::TERM);
    assert_eq!(store.end().code, Some(0));
}
