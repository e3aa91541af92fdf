//! Images of ours, read back through qcow2-rs.
//!
//! qcow2-rs parses the header, the L1 and L2 tables and the compressed descriptors by itself, and inflates
//! with `miniz_oxide`; snapferry does all of that with its own code and other libraries. So what both read
//! alike is in the file, and not in a shared mistake.
//!
//! The program is the one that `SNAPFERRY` names, by default the one that `cargo build` leaves in
//! `target/debug`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::qcow2_default_params;
use qcow2_rs::utils::qcow2_setup_dev_tokio;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes for each read: no cluster and no segment of ours begins wherever a read does.
const READ: usize = 192 * KIB;

/// A disk of `len` bytes: runs of zeros, of bytes that don't compress, and of text, between 4 KiB and 512 KiB
/// each. The same for the same seed.
fn disk(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64 by G. Marsaglia, "Xorshift RNGs", 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let run = (4 * KIB << (next() % 8)).min(len - bytes.len());
        let end = bytes.len() + run;
        match next() % 3 {
            0 => bytes.resize(end, 0),
            1 => {
                while bytes.len() < end {
                    bytes.extend_from_slice(&next().to_le_bytes());
                }
                bytes.truncate(end);
            }
            _ => {
                while bytes.len() < end {
                    bytes.extend_from_slice(
                        format!("entry {} is of kind {}\n", next() % 10_000, next() % 7).as_bytes(),
                    );
                }
                bytes.truncate(end);
            }
        }
    }
    bytes
}

fn program() -> PathBuf {
    std::env::var_os("SNAPFERRY").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/snapferry"),
        PathBuf::from,
    )
}

/// Converts `disk` into `image`.
fn convert(disk: &Path, image: &Path, options: &[&str]) {
    let program = program();
    let mut command = Command::new(&program);
    command.args(["convert", "--quiet", "--device"]).arg(disk).arg("--output").arg(image).args(options);
    let ended = command
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; build it, or name it in SNAPFERRY", program.display()));
    assert!(ended.status.success(), "{options:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// The whole disk of `len` bytes that qcow2-rs finds in an image.
fn read_back(image: &Path, len: usize) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let params = qcow2_default_params!(true, false);
        let device = qcow2_setup_dev_tokio(image, &params).await.unwrap();
        assert_eq!(device.info.virtual_size(), len as u64, "the disk's size");
        let mut disk = Vec::with_capacity(len);
        while disk.len() < len {
            let wanted = READ.min(len - disk.len());
            let mut piece = Qcow2IoBuf::<u8>::new(wanted);
            let read = device.read_at(&mut piece, disk.len() as u64).await.unwrap();
            assert_eq!(read, wanted, "a read at {}", disk.len());
            disk.extend_from_slice(&piece);
        }
        disk
    })
}

fn same(len: usize, seed: u64, options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    let disk = disk(len, seed);
    std::fs::write(&raw, &disk).unwrap();
    convert(&raw, &image, options);
    let read = read_back(&image, len);
    if let Some(at) = disk.iter().zip(&read).position(|(ours, theirs)| ours != theirs) {
        panic!("{options:?}: {len} bytes: the first difference is at byte {at}");
    }
}

#[test]
fn ordinary_disks_of_several_sizes() {
    for (seed, len) in (1..).zip([512, 64 * KIB, 3 * MIB + 4 * KIB, 16 * MIB, 67 * MIB + 512]) {
        same(len, seed, &[]);
    }
}

#[test]
fn every_level() {
    for level in ["fast", "balanced", "small", "smallest"] {
        same(5 * MIB + 512, 11, &["--level", level]);
    }
}

#[test]
fn every_size_of_cluster() {
    for size in ["4k", "16k", "64k", "256k", "1M", "2M"] {
        same(9 * MIB + 4 * KIB, 21, &["--cluster-size", size]);
    }
}

#[test]
fn clusters_that_are_not_compressed() {
    same(9 * MIB, 31, &["--codec", "none"]);
}

#[test]
fn a_disk_without_data() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    std::fs::File::create(&raw).unwrap().set_len(40 * MIB as u64).unwrap();
    convert(&raw, &image, &[]);
    assert!(read_back(&image, 40 * MIB).iter().all(|byte| *byte == 0));
}
