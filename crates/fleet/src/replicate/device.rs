//! Path of an attached volume's device, and the proof that the path leads to that volume, before any data is
//! read.
//!
//! The letters of `/dev/vdX` follow the order in which devices appear, so a device is found by its serial
//! number alone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::Clock;
use snapferry_base::retry::Class;
use snapferry_base::units::{ByteCount, GIB};
use snapferry_engine::source::{InUse, RawSource, Source as _, SourceError};
use snapferry_ibmcloud::vpc::model::AttachedDevice;

/// Folder in which udev links disks by their serial numbers.
pub const BY_ID: &str = "/dev/disk/by-id";
/// Text that udev puts before a virtio disk's serial number.
const PREFIX: &str = "virtio-";
/// Most bytes of a virtio disk's serial number (`VIRTIO_BLK_ID_BYTES` in linux/virtio_blk.h).
const SERIAL_LENGTH: usize = 20;
/// Longest time by which the link may lag behind the API's status `attached`.
pub const UDEV_LAG: Duration = Duration::from_secs(120);
/// Time between two looks at the folder.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Reason why an attached volume must not be read.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The API's id of the device gives no serial number.
    #[error(
        "the device id {id:?} is no serial number: it takes at least {SERIAL_LENGTH} letters, digits and hyphens"
    )]
    Serial { id: String },
    /// Two attachments would have the same link.
    #[error(
        "the devices {first:?} and {second:?} begin with the same {SERIAL_LENGTH} characters, so their links can't be told apart"
    )]
    SameSerial { first: String, second: String },
    /// The link did not appear before the deadline.
    #[error("{} did not turn up within {} s; there {}", link.display(), waited.as_secs(), describe_links(seen))]
    Absent {
        link: PathBuf,
        waited: Duration,
        /// Links of virtio disks in the folder at that moment. They are listed here because the volume is
        /// detached before the user can look.
        seen: Vec<String>,
    },
    /// The link leads to a file, not to a block device.
    #[error("{} leads to {}, which is no block device", link.display(), path.display())]
    NoDevice {
        link: PathBuf,
        /// Path that the link leads to.
        path: PathBuf,
    },
    /// The device holds this server's own root file system.
    #[error("{} leads to {}, which holds this system's own root", link.display(), path.display())]
    RootDisk {
        link: PathBuf,
        /// Path that the link leads to.
        path: PathBuf,
    },
    /// The device has another size than the volume.
    #[error("{} has {found}, the volume {expected}", path.display())]
    Size {
        path: PathBuf,
        /// Size of the device.
        found: ByteCount,
        /// Size of the volume by the API.
        expected: ByteCount,
    },
    /// The device can't be opened for this process alone: it is missing, mounted, or the permission is
    /// missing.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The link or the path behind it can't be examined.
    #[error("can't look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The wait for the link was cancelled.
    #[error("waiting for {}: stopped", link.display())]
    Cancelled { link: PathBuf },
}

fn describe_links(seen: &[String]) -> String {
    if seen.is_empty() {
        "were no links of virtio disks".to_owned()
    } else {
        format!("were {}", seen.join(", "))
    }
}

impl DeviceError {
    /// Returns what the error means for another attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Cancelled { .. } => Class::Cancelled,
            // The link may appear after the volume is attached again.
            Self::Absent { .. } => Class::Transient,
            _ => Class::Permanent,
        }
    }
}

/// Kind of file that a link may lead to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device, as on every real server.
    #[default]
    Device,
    /// A block device or a regular file, as in a simulated region without root.
    DeviceOrFile,
}

/// Folder in which the links of attached volumes appear.
#[derive(Clone, Debug)]
pub struct DeviceFolder {
    /// Path of the folder, usually [`BY_ID`].
    pub folder: PathBuf,
    /// Kind of file that the links may lead to.
    pub device_kind: DeviceKind,
    /// Longest wait for a link.
    pub deadline: Duration,
}

impl Default for DeviceFolder {
    fn default() -> Self {
        Self { folder: BY_ID.into(), device_kind: DeviceKind::default(), deadline: UDEV_LAG }
    }
}

/// Returns the serial number that the guest sees: the first characters of the API's id.
fn serial(device: &AttachedDevice) -> Result<&str, DeviceError> {
    let fits = device.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    // `get` and not a slice: the id may be shorter.
    device
        .id
        .get(..SERIAL_LENGTH)
        .filter(|_| fits)
        .ok_or_else(|| DeviceError::Serial { id: device.id.clone() })
}

impl DeviceFolder {
    /// Returns the path of a device's link.
    ///
    /// # Errors
    /// [`DeviceError::Serial`] if the id of the device gives no serial number.
    pub fn link(&self, device: &AttachedDevice) -> Result<PathBuf, DeviceError> {
        Ok(self.folder.join(format!("{PREFIX}{}", serial(device)?)))
    }

    /// Waits for the link of `device`, proves that it leads to the volume, and returns the path of the
    /// device. The path must be a block device of `capacity` GB, which no other process uses and which is not
    /// this server's root disk. `others` are the server's other devices.
    ///
    /// # Errors
    /// If the link does not appear in time, or one of these checks fails: one variant of [`DeviceError`] for
    /// each.
    pub async fn find(
        &self,
        device: &AttachedDevice,
        others: &[AttachedDevice],
        capacity: u64,
        clock: &dyn Clock,
        cancel: &Cancel,
    ) -> Result<PathBuf, DeviceError> {
        let own = serial(device)?;
        if let Some(other) = others
            .iter()
            .find(|other| other.id != device.id && serial(other).is_ok_and(|serial| serial == own))
        {
            return Err(DeviceError::SameSerial { first: device.id.clone(), second: other.id.clone() });
        }
        let link = self.link(device)?;
        let begun = clock.instant();
        loop {
            match self.prove(&link, capacity) {
                // The link appears before the node, or the node before it has its size.
                Err(DeviceError::Look { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(DeviceError::Source(SourceError::Open { source, .. }))
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(DeviceError::Source(SourceError::Empty { .. })) => {}
                proved => return proved,
            }
            self.pause(&link, begun, clock, cancel).await?;
        }
    }

    async fn pause(
        &self,
        link: &Path,
        begun: Instant,
        clock: &dyn Clock,
        cancel: &Cancel,
    ) -> Result<(), DeviceError> {
        let waited = clock.instant().duration_since(begun);
        if waited >= self.deadline {
            return Err(DeviceError::Absent { link: link.to_owned(), waited, seen: self.links() });
        }
        tokio::select! {
            biased;
            _reason = cancel.cancelled() => Err(DeviceError::Cancelled { link: link.to_owned() }),
            () = clock.sleep(POLL_INTERVAL) => Ok(()),
        }
    }

    /// Returns the names of all links of virtio disks, sorted.
    fn links(&self) -> Vec<String> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut links: Vec<String> = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with(PREFIX))
            .collect();
        links.sort_unstable();
        links
    }

    fn prove(&self, link: &Path, capacity: u64) -> Result<PathBuf, DeviceError> {
        let look = |source| DeviceError::Look { path: link.to_owned(), source };
        let path = fs::canonicalize(link).map_err(look)?;
        let stat = fs::metadata(&path).map_err(look)?;
        if is_root_disk(stat.rdev()) {
            return Err(DeviceError::RootDisk { link: link.to_owned(), path });
        }
        // Exclusive: the kernel refuses a device that is mounted or claimed.
        let source = RawSource::open(&path, InUse::Refuse)?;
        if !source.is_device() && self.device_kind == DeviceKind::Device {
            return Err(DeviceError::NoDevice { link: link.to_owned(), path });
        }
        // The API's GB are GiB.
        let expected = ByteCount(capacity.saturating_mul(GIB));
        match source.size() {
            found if found == expected => Ok(path),
            found => Err(DeviceError::Size { path, found, expected }),
        }
    }
}

/// True if the file system at `/` lies on the device, or on a disk that the device is a part of.
fn is_root_disk(device: u64) -> bool {
    let Ok(root) = fs::metadata("/") else { return false };
    device != 0 && disks_of(root.dev()).into_iter().any(|disk| disks_of(device).contains(&disk))
}

/// Returns the whole disks below a block device: the device itself, the disk that it is a partition of, or
/// the disks that a mapped device consists of. Empty if sysfs does not have the device, as for a file system
/// without one.
fn disks_of(device: u64) -> Vec<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(node) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else { return Vec::new() };
    let slaves = fs::read_dir(node.join("slaves"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let slaves: Vec<PathBuf> = slaves.unwrap_or_default();
    if slaves.is_empty() {
        return vec![disk_of(node)];
    }
    // One level is enough: deeper devices are claimed by the level above, so opening one of them exclusively
    // fails.
    slaves.into_iter().filter_map(|slave| fs::canonicalize(slave).ok()).map(disk_of).collect()
}

/// Returns the disk of a partition, or the disk itself.
fn disk_of(node: PathBuf) -> PathBuf {
    match node.parent() {
        Some(disk) if node.join("partition").exists() => disk.to_owned(),
        _ => node,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use snapferry_testkit::clock::ManualClock;

    use super::*;

    const ID: &str = "0717-35db69bb-d09b-4a9e-9a53-5c1c8e0a7f6d-x1y2z";

    fn device(id: &str) -> AttachedDevice {
        AttachedDevice { id: id.to_owned() }
    }

    fn folder(path: &Path, device_kind: DeviceKind) -> DeviceFolder {
        DeviceFolder { folder: path.to_owned(), device_kind, deadline: Duration::from_secs(5) }
    }

    #[tokio::test]
    async fn a_link_that_lags_is_waited_for_and_what_it_leads_to_is_proved() {
        let temp = tempfile::tempdir().expect("a folder");
        let disk = temp.path().join("disk");
        fs::File::create(&disk).and_then(|file| file.set_len(GIB)).expect("a disk");
        let (clock, cancel) = (ManualClock::hurried(), Cancel::new());
        let found = folder(temp.path(), DeviceKind::DeviceOrFile);
        let absent = found.find(&device(ID), &[], 1, &*clock, &cancel).await.expect_err("no link");
        assert!(matches!(absent, DeviceError::Absent { .. }), "{absent}");
        let message = absent.to_string();
        assert!(
            message.contains("virtio-0717-35db69bb-d09b-4 did not turn up within 5 s; there were no links"),
            "{message}"
        );
        fs::write(temp.path().join("virtio-0717-other"), "").expect("another disk");
        let absent = found.find(&device(ID), &[], 1, &*clock, &cancel).await.expect_err("no link");
        assert!(absent.to_string().ends_with("there were virtio-0717-other"), "{absent}");

        symlink(&disk, temp.path().join("virtio-0717-35db69bb-d09b-4")).expect("a link");
        assert_eq!(found.find(&device(ID), &[], 1, &*clock, &cancel).await.expect("it is there"), disk);
        let size = found.find(&device(ID), &[], 2, &*clock, &cancel).await.expect_err("half of it");
        assert!(matches!(size, DeviceError::Size { .. }), "{size}");
        let strict = folder(temp.path(), DeviceKind::Device);
        let file = strict.find(&device(ID), &[], 1, &*clock, &cancel).await.expect_err("a file");
        assert!(matches!(file, DeviceError::NoDevice { .. }), "{file}");
    }

    #[tokio::test]
    async fn ids_that_make_no_link_of_their_own_are_refused() {
        let temp = tempfile::tempdir().expect("a folder");
        let (clock, cancel) = (ManualClock::hurried(), Cancel::new());
        let found = folder(temp.path(), DeviceKind::DeviceOrFile);
        for id in ["", "0717-short", "../../../../../etc/passwd", "0717-ümlaut-0123456789"] {
            let err = found.find(&device(id), &[], 1, &*clock, &cancel).await.expect_err("no serial number");
            assert!(matches!(err, DeviceError::Serial { .. }), "{err}");
        }
        let twin = format!("{}other", &ID[..SERIAL_LENGTH]);
        let err = found
            .find(&device(ID), &[device("0717-short"), device(&twin)], 1, &*clock, &cancel)
            .await
            .expect_err("twins");
        assert!(matches!(err, DeviceError::SameSerial { .. }), "{err}");
    }

    #[tokio::test]
    async fn the_disk_that_we_run_on_is_never_the_one() {
        let root = fs::metadata("/").expect("a root").dev();
        let Some(disk) = disks_of(root).into_iter().next() else {
            snapferry_testkit::skip::skip("the root file system has no disk of its own");
            return;
        };
        let node = Path::new("/dev").join(disk.file_name().expect("a name"));
        let temp = tempfile::tempdir().expect("a folder");
        symlink(&node, temp.path().join("virtio-0717-35db69bb-d09b-4")).expect("a link");
        let found = folder(temp.path(), DeviceKind::Device);
        let err = found
            .find(&device(ID), &[], 1, &*ManualClock::hurried(), &Cancel::new())
            .await
            .expect_err("our own disk");
        assert!(matches!(err, DeviceError::RootDisk { .. }), "{err}");
    }

    #[tokio::test]
    async fn told_to_stop_it_stops_waiting() {
        let temp = tempfile::tempdir().expect("a folder");
        let cancel = Cancel::new();
        cancel.cancel(snapferry_base::cancel::Reason::Requested);
        let err = folder(temp.path(), DeviceKind::Device)
            .find(&device(ID), &[], 1, &*ManualClock::hurried(), &cancel)
            .await;
        assert!(matches!(err, Err(DeviceError::Cancelled { .. })), "{err:?}");
    }
}
