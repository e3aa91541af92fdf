//! Devices: the data written to them, and devices that are refused. All tests here need root and loop
//! devices.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use snapferry_base::units::{ByteCount, MIB, to_u64};
use snapferry_engine::convert::plan::Options;
use snapferry_testkit::disks::{Disk, Kind};
use snapferry_testkit::loopdev::{Access, LoopDevice, LoopOptions, MountedDevice};

use super::into_device;
use crate::support::{Made, convert_disk, folder, run};

const SIZE: u64 = 12 * MIB;

fn made() -> (Disk, Made) {
    let disk = Disk::new(Kind::Mixed, ByteCount(SIZE - 3 * 4096), 71);
    (disk, convert_disk(&disk, &Options::default()))
}

fn writable(logical_sector: u32) -> LoopOptions {
    LoopOptions { access: Access::ReadWrite, logical_sector }
}

/// Writes a file in which every byte is 0xff, as the backing file of a device.
fn full(path: &Path, size: u64) {
    std::fs::write(path, vec![0xff_u8; usize::try_from(size).expect("small")]).expect("written");
}

fn front(path: &Path, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("small")];
    File::open(path).expect("opened").read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

#[test]
fn a_device_holds_the_disk_whatever_its_sectors_and_whatever_becomes_of_zeros() {
    let (disk, made) = made();
    let folder = folder();
    let backing = folder.path().join("backing");
    for logical_sector in [512, 4096] {
        for zero in ["discard", "write"] {
            full(&backing, SIZE);
            let Some(device) = LoopDevice::attach(&backing, writable(logical_sector)) else {
                return;
            };
            run(into_device(&made.path, device.path(), &["--zero", zero]))
                .expect(0, &["segments hold what was read"]);
            assert!(front(device.path(), disk.size.0) == disk.to_vec(), "{logical_sector} {zero}");
            let rest = front(device.path(), SIZE).split_off(disk.to_vec().len());
            assert!(rest.iter().all(|&byte| byte == 0xff), "what lies past the disk's end is not ours");
        }
    }
    // Zeros that the device is known to hold are not written.
    std::fs::write(&backing, vec![0_u8; usize::try_from(SIZE).expect("small")]).expect("written");
    let Some(device) = LoopDevice::attach(&backing, writable(512)) else { return };
    run(into_device(&made.path, device.path(), &["--zero", "skip"])).expect(0, &[]);
    assert!(front(device.path(), disk.size.0) == disk.to_vec());
}

#[test]
fn what_a_device_holds_is_not_lost_by_mistake() {
    let (_, made) = made();
    let folder = folder();
    let backing = folder.path().join("backing");
    File::create(&backing).expect("a file").set_len(SIZE).expect("sized");
    let Some(device) = LoopDevice::attach(&backing, writable(512)) else { return };
    for (maker, what) in
        [(&["mkfs.ext4", "-q", "-F"][..], "an ext file system"), (&["mkswap", "-q"], "swap space")]
    {
        let made_it = Command::new(maker[0]).args(&maker[1..]).arg(device.path()).output().expect("it runs");
        assert!(made_it.status.success(), "{made_it:?}");
        let before = front(device.path(), SIZE);
        run(into_device(&made.path, device.path(), &[])).expect(4, &["holds", what, "--force"]);
        assert!(front(device.path(), SIZE) == before, "nothing was written");
    }
    run(into_device(&made.path, device.path(), &["--force"])).expect(0, &[]);
    run(into_device(&made.path, &made.raw, &["--force"])).expect(4, &["is not a block device"]);
}

#[test]
fn a_device_that_is_too_small_or_in_use_is_refused_even_by_force() {
    let (_, made) = made();
    let folder = folder();
    let backing = folder.path().join("backing");
    full(&backing, SIZE / 2);
    let Some(device) = LoopDevice::attach(&backing, writable(512)) else { return };
    run(into_device(&made.path, device.path(), &["--force"]))
        .expect(4, &["has 6 MiB", "holds a disk of 11.98 MiB"]);
    assert!(front(device.path(), SIZE / 2).iter().all(|&byte| byte == 0xff), "nothing was written");
    drop(device);
    full(&backing, SIZE);
    let Some(device) = LoopDevice::attach(&backing, LoopOptions::default()) else { return };
    run(into_device(&made.path, device.path(), &["--force"])).expect(4, &["is read-only"]);
    run(into_device(device.path(), device.path(), &["--force"]))
        .expect(2, &["would be overwritten while it is read"]);
    let Some(mounted) = MountedDevice::new(16 * MIB) else { return };
    run(into_device(&made.path, mounted.path(), &["--force"])).expect(4, &["is in use", "findmnt"]);
}

#[test]
fn an_incomplete_device_is_called_so_and_has_no_beginning() {
    let (_, made) = made();
    // The last body of the file is damaged, so that much is written before the damage is found.
    let mut image = std::fs::read(&made.path).expect("the image");
    let last = made.manifest.segments.last().expect("segments");
    let at = usize::try_from(last.host.0 + last.length - 200).expect("small");
    image[at..at + 190].fill(0x55);
    let bad = made.folder.path().join("bad.qcow2");
    std::fs::write(&bad, image).expect("written");
    let folder = folder();
    let backing = folder.path().join("backing");
    full(&backing, SIZE);
    let Some(device) = LoopDevice::attach(&backing, writable(512)) else { return };
    let path = device.path().display().to_string();
    run(into_device(&bad, device.path(), &[]))
        .expect(7, &[&path, "is incomplete: do not use it", "is damaged", "the body at byte"]);
    let begin = front(device.path(), MIB);
    assert_eq!(to_u64(begin.len()), MIB);
    assert!(begin.iter().all(|&byte| byte == 0), "there is no partition table");
}
