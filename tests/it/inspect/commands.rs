//! Functions that only Snapferry's commands have: differences counted, sizes estimated, objects read in few
//! requests.

use snapferry_base::units::{ByteCount, MIB};
use snapferry_sim::Operation;
use snapferry_testkit::disks::{Disk, Kind};

use super::{json, run, snapferry, text};
use crate::support::program;

#[test]
fn differences_between_images_and_disks_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (disk, image, other) = (at("disk.raw"), at("image.qcow2"), at("other.raw"));
    Disk::new(Kind::Mixed, ByteCount(9 * MIB + 1000), 2).write(&disk).unwrap();
    run(program(), &["convert", "--device", text(&disk), "--output", text(&image), "-q"]);
    let same = json(&["compare", text(&image), text(&disk), "--json", "--strict"], 0);
    assert_eq!((&same["identical"], &same["differing_stretches"]), (&true.into(), &0.into()));
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[5_000_001] ^= 1;
    bytes[77] ^= 1;
    bytes.resize(bytes.len() + 4096, 0);
    std::fs::write(&other, &bytes).unwrap();
    let differs = json(&["compare", text(&other), text(&image), "--json"], 7);
    assert_eq!(differs["differing_stretches"], 2);
    assert_eq!(differs["first"][0], serde_json::json!({ "offset": 77, "length": 1 }));
    assert_eq!(differs["first"][1]["offset"], 5_000_001);
    bytes[5_000_001] ^= 1;
    bytes[77] ^= 1;
    std::fs::write(&other, &bytes).unwrap();
    assert_eq!(snapferry(&["compare", text(&other), text(&image)]).status.code(), Some(0));
    assert_eq!(snapferry(&["compare", text(&other), text(&image), "--strict"]).status.code(), Some(7));
}

#[test]
fn the_estimate_of_a_sample_holds_what_the_conversion_gives() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (kind, seed) in [(Kind::Text, 1), (Kind::Mixed, 2), (Kind::Random, 3)] {
        let (disk, image) = (at("disk.raw"), at("image.qcow2"));
        Disk::new(kind, ByteCount(160 * MIB), seed).write(&disk).unwrap();
        for (codec, level) in [("deflate", "fast"), ("zstd", "balanced")] {
            let encoding = ["--codec", codec, "--level", level];
            let convert = ["convert", "--device", text(&disk), "--output", text(&image), "--force", "-q"];
            run(program(), &[&convert[..], &encoding].concat());
            let size = std::fs::metadata(&image).unwrap().len();
            // All chunks: the estimate is exact except for the gaps before raw clusters and the tables' last
            // clusters.
            let whole = json(
                &[&["measure", text(&disk), "--json", "--sample", "80", "--seed", "1"][..], &encoding]
                    .concat(),
                0,
            );
            let figure = |name: &str| whole["compressed"][name].as_u64().unwrap();
            assert_eq!(
                (figure("sampled"), figure("at_least")),
                (figure("chunks"), figure("at_most")),
                "{kind:?}"
            );
            assert!(
                figure("size").abs_diff(size) <= size / 50 + 4 * 65536,
                "{kind:?} {codec}: {} for {size}",
                figure("size")
            );
            // A sample: within three times the interval, for a seed that gives no outlier.
            let part = json(
                &[&["measure", text(&disk), "--json", "--sample", "30", "--seed", "7"][..], &encoding]
                    .concat(),
                0,
            );
            let figure = |name: &str| part["compressed"][name].as_u64().unwrap();
            let spread = 3 * (figure("at_most") - figure("size")) + size / 50 + 4 * 65536;
            assert!(figure("size").abs_diff(size) <= spread, "{kind:?} {codec}: {part} for {size}");
            assert!(figure("at_least") <= figure("size") && figure("size") <= figure("at_most"), "{part}");
        }
    }
    let (empty, hole) = (at("empty.raw"), 1_u64 << 40);
    std::fs::File::create(&empty).unwrap().set_len(hole).unwrap();
    let nothing = json(&["measure", text(&empty), "--json", "--sample", "100"], 0);
    assert_eq!(nothing["compressed"]["chunks"], 0, "holes are not read");
}

#[test]
fn an_object_is_told_of_in_two_requests() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let disk = at("disk.raw");
    Disk::new(Kind::Mixed, ByteCount(40 * MIB), 4).write(&disk).unwrap();
    let bucket = crate::support::Bucket::start();
    let query =
        |args: &[&str], more: &[&str]| bucket.command_without_bucket(args).args(more).output().unwrap();
    let made = bucket.convert(&disk, &["-q"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let url = format!("s3://{}/{}", crate::support::BUCKET, crate::support::KEY);
    let gets = || bucket.sim.stats().of(Operation::GetObject).requests;
    let before = gets();
    let output = query(&["info", &url], &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!((1..=2).contains(&(gets() - before)), "{} requests", gets() - before);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&info["format"], &info["virtual-size"]), (&"qcow2".into(), &(40 * MIB).into()));
    for args in [&["check", &url, "--data"][..], &["compare", &url, text(&disk)]] {
        let output = query(args, &[]);
        let combined = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&combined));
    }
}

#[test]
fn a_damaged_image_is_told_from_a_disk_that_can_not_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (disk, image) = (at("disk.raw"), at("image.qcow2"));
    Disk::new(Kind::Text, ByteCount(4 * MIB), 5).write(&disk).unwrap();
    run(program(), &["convert", "--device", text(&disk), "--output", text(&image), "-q"]);
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle - 2000..middle].fill(0xff);
    std::fs::write(&image, bytes).unwrap();
    let output = snapferry(&["compare", text(&image), text(&disk)]);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}
