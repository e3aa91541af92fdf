//! Block devices and file systems for one test: loop devices, a device with an unreadable range, a mounted
//! device, and a file system that fills up. Dropping one removes it from the machine. All need root and loop
//! devices: without them, a test gets `None` and the reason is printed.
//!
//! The unreadable range is not device-mapper's `error` target, which many small kernels lack, but a file
//! whose block map refers to blocks outside of its file system: reading those blocks, and only those, fails
//! with EIO.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use snapferry_base::units::{KIB, MIB, to_u64, to_usize};

use super::skip::{has_oracle, is_root, skip};

/// Unit of the unreadable range of a [`BadRangeDevice`]: the block size of its file system, in bytes.
pub const BAD_UNIT: u64 = 4 * KIB;
/// Number of blocks that an inode refers to directly. Later ones are found through indirect blocks (ext2's
/// `EXT2_NDIR_BLOCKS`).
const DIRECT_BLOCKS: u64 = 12;
/// Number of block numbers, of four bytes each, in one indirect block.
const PER_INDIRECT: u64 = BAD_UNIT / 4;
/// Block number, at 8 TiB, beyond every file system of a test.
const NO_SUCH_BLOCK: u32 = 0x7fff_fff0;

/// Reason for a failed setup, for [`skip`].
type Refusal = String;

/// Runs a system tool to its end and returns its stdout. On failure, returns the tool's stderr.
fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String, Refusal> {
    // The folders of these tools may be missing in a user's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|err| format!("{program} can't be run: {err}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Returns the result of a setup. If it fails, skips the test.
fn or_skip<T>(set_up: impl FnOnce() -> Result<T, Refusal>) -> Option<T> {
    if !is_root() {
        return None;
    }
    set_up().inspect_err(|reason| skip(reason)).ok()
}

/// Reports a failed cleanup on stderr, since a destructor can't return an error. Something is then left on
/// the machine.
fn report_cleanup_failure(done: Result<String, Refusal>) {
    if let Err(reason) = done {
        let _ = writeln!(io::stderr().lock(), "left behind: {reason}");
    }
}

/// A temporary folder that is removed with its content.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Refusal> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("snapferry-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(|err| format!("{}: {err}", path.display()))?;
        Ok(Self(path))
    }

    /// Makes a sparse file of `len` bytes.
    fn file(&self, name: &str, len: u64) -> Result<PathBuf, Refusal> {
        let path = self.0.join(name);
        File::create_new(&path)
            .and_then(|file| file.set_len(len))
            .map_err(|err| format!("{}: {err}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        report_cleanup_failure(
            fs::remove_dir_all(&self.0)
                .map(|()| String::new())
                .map_err(|err| format!("{}: {err}", self.0.display())),
        );
    }
}

/// Access to a device or a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Options for attaching a loop device.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    pub access: Access,
    /// Logical sector size in bytes: 512 or 4096. It is the smallest unit of reads and writes.
    pub logical_sector: u32,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { access: Access::ReadOnly, logical_sector: 512 }
    }
}

/// A loop device whose content is a file.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
}

impl LoopDevice {
    /// Attaches `backing`. Its length must be a whole number of sectors, since the kernel ignores the rest.
    #[must_use]
    pub fn attach(backing: &Path, options: LoopOptions) -> Option<Self> {
        or_skip(|| Self::try_attach(backing, options))
    }

    fn try_attach(backing: &Path, options: LoopOptions) -> Result<Self, Refusal> {
        let sector = options.logical_sector.to_string();
        let mut args: Vec<&OsStr> = ["--find", "--show", "--sector-size", &sector].map(OsStr::new).to_vec();
        if options.access == Access::ReadOnly {
            args.push(OsStr::new("--read-only"));
        }
        args.push(backing.as_os_str());
        let path = PathBuf::from(run("losetup", args)?.trim());
        Ok(Self { path, backing: backing.to_owned() })
    }

    /// Disables read-ahead. It would read pages of several blocks, and one bad block makes its whole page
    /// unreadable.
    fn without_read_ahead(self) -> Result<Self, Refusal> {
        run("blockdev", [OsStr::new("--setra"), OsStr::new("0"), self.path.as_os_str()])?;
        Ok(self)
    }

    /// Returns the path `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts the backing file to `len` bytes without notice to the device. The device keeps its size, and
    /// every read from there on fails with EIO, as if a volume had been detached.
    ///
    /// # Errors
    /// If the file can't be changed.
    pub fn truncate_backing(&self, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.backing)?.set_len(len)
    }

    /// Cuts or extends the backing file to `len` bytes, and makes the device adopt that size.
    ///
    /// # Errors
    /// If the file or the device can't be changed.
    pub fn resize(&self, len: u64) -> io::Result<()> {
        self.truncate_backing(len)?;
        run("losetup", [OsStr::new("--set-capacity"), self.path.as_os_str()])
            .map(drop)
            .map_err(io::Error::other)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        report_cleanup_failure(run("losetup", [OsStr::new("--detach"), self.path.as_os_str()]));
    }
}

/// A mounted file system, unmounted on drop.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, options: &str, source: &OsStr, at: &Path) -> Result<Self, Refusal> {
        fs::create_dir_all(at).map_err(|err| format!("{}: {err}", at.display()))?;
        run(
            "mount",
            [
                OsStr::new("-t"),
                OsStr::new(kind),
                OsStr::new("-o"),
                OsStr::new(options),
                source,
                at.as_os_str(),
            ],
        )?;
        Ok(Self(at.to_owned()))
    }
}

/// A bind mount of a file or folder, as `docker run -v` makes it.
#[derive(Debug)]
pub struct BindMount(Mount);

impl BindMount {
    /// Binds `from` at `at`, an existing file or folder.
    #[must_use]
    pub fn new(from: &Path, at: &Path, access: Access) -> Option<Self> {
        or_skip(|| {
            run("mount", [OsStr::new("--bind"), from.as_os_str(), at.as_os_str()])?;
            let mount = Mount(at.to_owned());
            if access == Access::ReadOnly {
                run("mount", [OsStr::new("-o"), OsStr::new("remount,bind,ro"), at.as_os_str()])?;
            }
            Ok(Self(mount))
        })
    }

    /// Returns the path of the mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.0
    }
}

/// A bucket mounted as a folder: a file system without links, and without a rename that fails if the target
/// exists.
#[derive(Debug)]
pub struct BucketMount(Mount);

impl BucketMount {
    /// Mounts a bucket of the store at `endpoint` with s3fs. The mount point and a file with the keys are
    /// made in `folder`.
    #[must_use]
    pub fn new(
        folder: &Path,
        bucket: &str,
        endpoint: &str,
        region: &str,
        keys: (&str, &str),
    ) -> Option<Self> {
        if !has_oracle("s3fs") {
            return None;
        }
        or_skip(|| {
            let (at, secret) = (folder.join("bucket"), folder.join("keys"));
            let failed = |err: io::Error| err.to_string();
            fs::create_dir(&at).map_err(failed)?;
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&secret)
                .and_then(|mut file| writeln!(file, "{}:{}", keys.0, keys.1))
                .map_err(failed)?;
            let options = format!(
                "url={endpoint},use_path_request_style,passwd_file={},endpoint={region},sigv4,nomixupload,nocopyapi,norenameapi",
                secret.display()
            );
            run("s3fs", [OsStr::new(bucket), at.as_os_str(), OsStr::new("-o"), OsStr::new(&options)])?;
            Ok(Self(Mount(at)))
        })
    }

    /// Returns the path of the mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // If a failed test still holds a file open, the mount is removed lazily, so that it does not stay for
        // ever.
        let at = self.0.as_os_str();
        report_cleanup_failure(run("umount", [at]).or_else(|_| run("umount", [OsStr::new("--lazy"), at])));
    }
}

/// A small file system that fills up: writes fail with ENOSPC.
#[derive(Debug)]
pub struct SmallFs {
    // Fields in the order in which they must be dropped.
    mount: Mount,
    _device: Option<LoopDevice>,
    _scratch: Scratch,
}

impl SmallFs {
    /// Makes a file system in memory of `size` bytes, a whole number of pages.
    #[must_use]
    pub fn tmpfs(size: u64) -> Option<Self> {
        or_skip(|| {
            let scratch = Scratch::new()?;
            let mount =
                Mount::new("tmpfs", &format!("size={size}"), OsStr::new("none"), &scratch.0.join("mnt"))?;
            Ok(Self { mount, _device: None, _scratch: scratch })
        })
    }

    /// Makes an ext4 of `size` bytes, including metadata, on a loop device. It supports O_DIRECT, holes and
    /// fsync as a real disk does.
    #[must_use]
    pub fn ext4(size: u64) -> Option<Self> {
        or_skip(|| {
            let (scratch, device) = ext4_device(size)?;
            let mount = Mount::new("ext4", "noatime", device.path.as_os_str(), &scratch.0.join("mnt"))?;
            Ok(Self { mount, _device: Some(device), _scratch: scratch })
        })
    }

    /// Makes an XFS of `size` bytes, at least 300 MiB, on a loop device. Its files can share blocks.
    #[must_use]
    pub fn xfs(size: u64) -> Option<Self> {
        or_skip(|| {
            let scratch = Scratch::new()?;
            let image = scratch.file("xfs", size)?;
            run(
                "mkfs.xfs",
                ["-q", "-m", "reflink=1"].map(OsStr::new).into_iter().chain([image.as_os_str()]),
            )?;
            let options = LoopOptions { access: Access::ReadWrite, ..LoopOptions::default() };
            let device = LoopDevice::try_attach(&image, options)?;
            let mount = Mount::new("xfs", "noatime", device.path.as_os_str(), &scratch.0.join("mnt"))?;
            Ok(Self { mount, _device: Some(device), _scratch: scratch })
        })
    }

    /// Returns the path of the mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount.0
    }
}

/// Makes a loop device with an empty ext4 on it.
fn ext4_device(size: u64) -> Result<(Scratch, LoopDevice), Refusal> {
    let scratch = Scratch::new()?;
    let image = scratch.file("ext4", size)?;
    run("mkfs.ext4", ["-q", "-F", "-m", "0"].map(OsStr::new).into_iter().chain([image.as_os_str()]))?;
    let device =
        LoopDevice::try_attach(&image, LoopOptions { access: Access::ReadWrite, ..LoopOptions::default() })?;
    Ok((scratch, device))
}

/// A block device with a mounted ext4 on it: opening the device with O_EXCL fails with EBUSY.
#[derive(Debug)]
pub struct MountedDevice {
    fs: SmallFs,
}

impl MountedDevice {
    /// Makes a device of `size` bytes, and mounts it.
    #[must_use]
    pub fn new(size: u64) -> Option<Self> {
        SmallFs::ext4(size).map(|fs| Self { fs })
    }

    /// Returns the path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.fs._device.as_ref().expect("an ext4 has a device").path()
    }

    /// Returns the path of the mount point.
    #[must_use]
    pub fn mounted_at(&self) -> &Path {
        self.fs.path()
    }
}

/// A read-only block device with one unreadable range.
#[derive(Debug)]
pub struct BadRangeDevice {
    // Fields in the order in which they must be dropped.
    device: LoopDevice,
    _mount: Mount,
    _outer: LoopDevice,
    _scratch: Scratch,
}

impl BadRangeDevice {
    /// Makes a device that contains `contents`, except that reading the bytes of `bad` fails with EIO.
    ///
    /// # Panics
    /// If the lengths are not multiples of [`BAD_UNIT`], or if `bad` is empty, outside of `contents`, or
    /// begins below 48 KiB.
    #[must_use]
    pub fn new(contents: &[u8], bad: Range<u64>) -> Option<Self> {
        let len = to_u64(contents.len());
        assert!(
            [len, bad.start, bad.end].iter().all(|at| at % BAD_UNIT == 0),
            "{bad:?} of {len} is not in units of {BAD_UNIT}"
        );
        assert!(
            bad.start < bad.end && bad.end <= len && bad.start >= DIRECT_BLOCKS * BAD_UNIT,
            "{bad:?} of {len} can't be made bad"
        );
        or_skip(|| Self::try_new(contents, &bad))
    }

    fn try_new(contents: &[u8], bad: &Range<u64>) -> Result<Self, Refusal> {
        let scratch = Scratch::new()?;
        let image = scratch.file("ext4", to_u64(contents.len()) / 100 * 102 + 8 * MIB)?;
        // Block maps instead of extents, and no checksums, which would reveal the change.
        let features = "^has_journal,^extent,^64bit,^metadata_csum,^flex_bg,^resize_inode,^huge_file";
        let options = ["-q", "-F", "-b", "4096", "-m", "0", "-O", features];
        run("mkfs.ext4", options.map(OsStr::new).into_iter().chain([image.as_os_str()]))?;
        let at = scratch.0.join("mnt");
        {
            let outer = LoopDevice::try_attach(
                &image,
                LoopOptions { access: Access::ReadWrite, ..LoopOptions::default() },
            )?;
            let _mount = Mount::new("ext4", "noatime", outer.path.as_os_str(), &at)?;
            fs::write(at.join("disk"), contents).map_err(|err| format!("{}: {err}", at.display()))?;
        }
        damage(&image, bad)?;
        let outer = LoopDevice::try_attach(&image, LoopOptions::default())?.without_read_ahead()?;
        let mount = Mount::new("ext4", "ro", outer.path.as_os_str(), &at)?;
        let device =
            LoopDevice::try_attach(&at.join("disk"), LoopOptions::default())?.without_read_ahead()?;
        Ok(Self { device, _mount: mount, _outer: outer, _scratch: scratch })
    }

    /// Returns the path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.device.path()
    }
}

/// Makes the blocks of `bad` in the file `/disk` of an unmounted file system refer to a block that does not
/// exist.
fn damage(image: &Path, bad: &Range<u64>) -> Result<(), Refusal> {
    let stat = run("debugfs", [OsStr::new("-R"), OsStr::new("stat /disk"), image.as_os_str()])?;
    // An example: "(0-11):4096-4107, (IND):393, (12-1035):4108-5131, (DIND):394, (IND):395, ...". Indirect
    // blocks come in the order of the file.
    let indirect: Vec<u64> = stat
        .split("(IND):")
        .skip(1)
        .filter_map(|list| list.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
        .collect();
    let file =
        OpenOptions::new().write(true).open(image).map_err(|err| format!("{}: {err}", image.display()))?;
    for number in bad.start / BAD_UNIT..bad.end / BAD_UNIT {
        let indirect_index = number - DIRECT_BLOCKS;
        let map = indirect
            .get(to_usize(indirect_index / PER_INDIRECT))
            .ok_or_else(|| format!("no indirect blocks in: {stat}"))?;
        let entry = map * BAD_UNIT + indirect_index % PER_INDIRECT * 4;
        file.write_all_at(&NO_SUCH_BLOCK.to_le_bytes(), entry)
            .map_err(|err| format!("{}: {err}", image.display()))?;
    }
    Ok(())
}
