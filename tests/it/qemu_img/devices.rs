//! Raw disks written to block devices that hold data already.

use std::path::Path;

use snapferry_testkit::loopdev::{Access, LoopDevice, LoopOptions};
use snapferry_testkit::oracle::QemuImg;

use super::{Pair, run_in};
use crate::support::run;

const SIZE: usize = 6 << 20;

/// A device filled with the byte 0xee.
fn device(folder: &Path) -> Option<LoopDevice> {
    let backing = folder.join("backing");
    std::fs::write(&backing, vec![0xee; SIZE]).expect("written");
    LoopDevice::attach(&backing, LoopOptions { access: Access::ReadWrite, ..LoopOptions::default() })
}

#[test]
fn a_device_is_a_target_and_a_source() {
    let Some(qemu) = QemuImg::find() else { return };
    for options in [&["-n"][..], &[], &["-n", "-S", "0"], &["-t", "none", "-f", "qcow2"]] {
        let pair = Pair::new(qemu);
        let Some(device) = device(pair.home.path()) else { return };
        let path = device.path().to_str().expect("UTF-8");
        let args = [&["convert", "-O", "raw"], options, &["a.qcow2", path]].concat();
        let ended = run(run_in(pair.link(), &pair.ours(), &args));
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        let disk = std::fs::read(pair.ours().join("a.raw")).expect("the disk");
        let written = std::fs::read(device.path()).expect("the device");
        assert!(written[..disk.len()] == disk, "{args:?}");
        assert!(
            written[disk.len().next_multiple_of(512)..].iter().all(|&byte| byte == 0xee),
            "nothing past the disk is touched"
        );

        let back = run(run_in(
            pair.link(),
            &pair.ours(),
            &["convert", "-f", "raw", "-O", "qcow2", "-c", path, "back"],
        ));
        assert_eq!(back.code, Some(0), "{back:?}");
        let compared =
            qemu.run(&["compare", "-f", "raw", "-F", "qcow2"], &[device.path(), &pair.ours().join("back")]);
        assert!(compared.is_ok(), "{compared:?}");
    }
}

#[test]
fn a_device_that_is_known_to_be_zero_is_not_written_with_zeros() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    let Some(device) = device(pair.home.path()) else { return };
    let path = device.path().to_str().expect("UTF-8");
    std::fs::File::create(pair.ours().join("hole.raw"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("a hole");
    let ended = run(run_in(
        pair.link(),
        &pair.ours(),
        &["convert", "-n", "--target-is-zero", "-O", "raw", "hole.raw", path],
    ));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(std::fs::read(device.path()).expect("the device").iter().all(|&byte| byte == 0xee));
}

#[test]
fn a_device_that_is_too_small_is_left_alone() {
    let Some(qemu) = QemuImg::find() else { return };
    let pair = Pair::new(qemu);
    let Some(device) = device(pair.home.path()) else { return };
    let path = device.path().to_str().expect("UTF-8");
    for options in [&["-n"][..], &[]] {
        let args = [&["convert", "-O", "raw"], options, &["a.raw", "a.raw", path]].concat();
        let (theirs, ours) =
            (run(run_in("qemu-img", &pair.theirs(), &args)), run(run_in(pair.link(), &pair.ours(), &args)));
        assert_eq!((theirs.code, ours.code), (Some(1), Some(1)), "{theirs:?} {ours:?}");
        assert!(std::fs::read(device.path()).expect("the device").iter().all(|&byte| byte == 0xee));
    }
}
