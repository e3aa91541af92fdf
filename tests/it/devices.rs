//! The test devices that the fault tests use: they fail as they promise, and leave nothing behind.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use snapferry_base::units::{MIB, to_u64, to_usize};
use snapferry_testkit::loopdev::{
    Access, BAD_UNIT, BadRangeDevice, LoopDevice, LoopOptions, MountedDevice, SmallFs,
};

/// Bytes that hold their own position, so that every unit of [`BAD_UNIT`] is different.
fn numbered(len: u64) -> Vec<u8> {
    (0..len / 8).flat_map(u64::to_le_bytes).collect()
}

fn read_at(path: &Path, at: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; to_usize(len)];
    File::open(path)?.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn open_exclusively(path: &Path) -> std::io::Result<File> {
    let flag = i32::try_from(OFlags::EXCL.bits()).expect("a small flag");
    OpenOptions::new().read(true).custom_flags(flag).open(path)
}

/// True if the kernel lists a backing file for the loop device; a detached device has none.
fn is_attached(device: &Path) -> bool {
    let name = device.file_name().expect("/dev/loopN").to_string_lossy().into_owned();
    Path::new("/sys/block").join(name).join("loop/backing_file").exists()
}

#[test]
fn a_loop_device_reads_as_its_file_and_keeps_to_its_access() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    let contents = numbered(MIB);
    fs::write(&file, &contents).expect("the file");
    let Some(device) = LoopDevice::attach(&file, LoopOptions::default()) else { return };
    assert_eq!(read_at(device.path(), 0, MIB).expect("readable"), contents);
    // Some kernels refuse to open the device for writing, others refuse the write.
    let refused =
        OpenOptions::new().write(true).open(device.path()).and_then(|file| file.write_all_at(&contents, 0));
    assert_eq!(refused.map_err(|err| err.kind()), Err(ErrorKind::PermissionDenied), "a read-only device");

    let Some(writable) =
        LoopDevice::attach(&file, LoopOptions { access: Access::ReadWrite, logical_sector: 4096 })
    else {
        return;
    };
    let name = writable.path().file_name().expect("/dev/loopN").to_owned();
    let sector = fs::read_to_string(Path::new("/sys/block").join(name).join("queue/logical_block_size"))
        .expect("sysfs");
    assert_eq!(sector.trim(), "4096");
    OpenOptions::new().write(true).open(writable.path()).expect("writable");
}

#[test]
fn a_device_that_loses_its_end_fails_there_and_a_resized_one_is_smaller() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    fs::write(&file, numbered(4 * MIB)).expect("the file");
    let Some(device) = LoopDevice::attach(&file, LoopOptions::default()) else { return };
    device.truncate_backing(MIB).expect("cut");
    assert_eq!(read_at(device.path(), 0, 4096).expect("still there"), numbered(4096));
    let lost = read_at(device.path(), 2 * MIB, 4096).map_err(|err| err.raw_os_error());
    assert_eq!(lost, Err(Some(Errno::IO.raw_os_error())), "behind the cut");
    device.resize(2 * MIB).expect("resized");
    let end = read_at(device.path(), 2 * MIB, 4096).map_err(|err| err.kind());
    assert_eq!(end, Err(ErrorKind::UnexpectedEof), "behind the new end");
}

#[test]
fn a_bad_range_fails_with_eio_and_nothing_else_does() {
    let contents = numbered(12 * MIB);
    // Across the border of two indirect blocks (at 12 + 1024 units), and single units.
    for bad in [4 * MIB..4 * MIB + 16 * BAD_UNIT, 9 * MIB..9 * MIB + BAD_UNIT, 12 * BAD_UNIT..13 * BAD_UNIT] {
        let Some(device) = BadRangeDevice::new(&contents, bad.clone()) else { return };
        let file = File::open(device.path()).expect("the device");
        let mut read = vec![0; to_usize(BAD_UNIT)];
        for at in (0..to_u64(contents.len())).step_by(to_usize(BAD_UNIT)) {
            let read = file.read_exact_at(&mut read, at).map(|()| &read).map_err(|err| err.raw_os_error());
            if bad.contains(&at) {
                assert_eq!(read, Err(Some(Errno::IO.raw_os_error())), "at {at} in {bad:?}");
            } else {
                let expected = &contents[to_usize(at)..to_usize(at + BAD_UNIT)];
                assert!(
                    read.is_ok_and(|read| read == expected),
                    "at {at}, outside of {bad:?}: {:?}",
                    read.map(|_| "other bytes")
                );
            }
        }
    }
}

#[test]
fn a_small_file_system_fills_up() {
    for small in [SmallFs::tmpfs(MIB), SmallFs::ext4(4 * MIB)] {
        let Some(small) = small else { return };
        let mut file = File::create(small.path().join("file")).expect("empty yet");
        let full =
            file.write_all(&numbered(8 * MIB)).and_then(|()| file.sync_all()).map_err(|err| err.kind());
        assert_eq!(full, Err(ErrorKind::StorageFull));
        assert!(file.metadata().expect("the file").len() > 0, "nothing at all fitted");
    }
}

#[test]
fn a_mounted_device_is_busy_for_whoever_wants_it_alone() {
    let Some(mounted) = MountedDevice::new(4 * MIB) else { return };
    let busy = open_exclusively(mounted.path()).map(drop).map_err(|err| err.raw_os_error());
    assert_eq!(busy, Err(Some(Errno::BUSY.raw_os_error())));
    fs::write(mounted.mounted_at().join("file"), "a").expect("mounted and writable");
}

#[test]
fn nothing_is_left_of_a_guard_that_is_dropped() {
    let Some(mounted) = MountedDevice::new(4 * MIB) else { return };
    let (device, folder) = (mounted.path().to_owned(), mounted.mounted_at().to_owned());
    let mounts = || fs::read_to_string("/proc/self/mounts").expect("procfs");
    let in_mounts = format!(" {} ", folder.display());
    assert!(mounts().contains(&in_mounts) && is_attached(&device));
    drop(mounted);
    assert!(!mounts().contains(&in_mounts) && !folder.exists());
    // Another process may have this device number by now; then its backing file is not in this test's folder.
    let backing = fs::read_to_string(
        Path::new("/sys/block").join(device.file_name().expect("/dev/loopN")).join("loop/backing_file"),
    );
    assert!(!backing.is_ok_and(|path| path.contains(&*folder.parent().expect("scratch").to_string_lossy())));
}
