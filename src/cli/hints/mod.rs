//! Hints for the user: the next step after an error.

use std::io::ErrorKind;

use snapferry_engine::convert::{ConvertError, WhyFull};
use snapferry_engine::disk::{RequiredKind, TargetError};
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::LocalImageError;
use snapferry_engine::source::SourceError;
use snapferry_engine::store::StoreError;
use snapferry_fleet::replicate::device::DeviceError;
use snapferry_fleet::replicate::gc::GcError;
use snapferry_fleet::replicate::{Fault, JournalError, Obstacle, OrphanedResource, ResourceKind};
use snapferry_qcow2::{FileError, HeaderError, ImageError};

mod cloud;

pub use cloud::{AUTHORIZE, of_cloud, of_identity, of_job, of_proxy, of_queue, of_store};

/// Returns the command that finds a resource which a job has left behind.
pub fn of_left(left: &OrphanedResource) -> String {
    match left.kind {
        ResourceKind::Name => format!(
            "`snapferry images list` shows the image before, and `snapferry images rename IMAGE {}` gives it back",
            left.name
        ),
        ResourceKind::Image => "`snapferry gc --to REGION` finds it".to_owned(),
        ResourceKind::Object => "`snapferry gc --bucket BUCKET --to REGION` finds it".to_owned(),
        ResourceKind::Snapshot | ResourceKind::Clone | ResourceKind::Volume | ResourceKind::Attachment => {
            "`snapferry gc` finds it".to_owned()
        }
    }
}

/// Returns the hint for an error that the library keeps as a trait object, because each kind of image storage
/// has an error type of its own.
pub fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref() {
        return of_store(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_local_image(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_image(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_restore(error);
    }
    cause.downcast_ref::<FileError>().and_then(|error| of_cause(&*error.source))
}

pub fn of_conversion(error: &ConvertError) -> Option<String> {
    match error {
        ConvertError::Source(error) => of_source(error),
        ConvertError::Store(error) => of_store(error),
        ConvertError::Exists { .. } => {
            Some("give another --key or --output, or --force to replace it".into())
        }
        ConvertError::Manifest { .. } => Some("the image can be used; only its manifest is missing".into()),
        ConvertError::Unproved { url, .. } => {
            Some(format!("`snapferry verify {url}` reads all of it back; its manifest was not written"))
        }
        ConvertError::Disproved { .. } => {
            Some("don't use it: remove it, or convert again with --force".into())
        }
        ConvertError::Geometry(_)
        | ConvertError::TooLarge { .. }
        | ConvertError::Version2 { .. }
        | ConvertError::PartSize { .. }
        | ConvertError::Unaccounted { .. }
        | ConvertError::Pipeline(_) => None,
    }
}

/// Returns the hint for a base that was given up.
pub fn of_given_up(why: &WhyFull) -> Option<String> {
    match why {
        WhyFull::Refused(StoreError::CopyRefused { status: 403, .. }) => Some(
            "to copy, an identity must read and write the bucket: IBM COS' role Writer does, Object Writer does not".into(),
        ),
        WhyFull::Damaged { .. } => Some("`snapferry verify` reads all of the older image".into()),
        WhyFull::Refused(_)
        | WhyFull::EqualParts(_)
        | WhyFull::Vanished
        | WhyFull::Replaced
        | WhyFull::Unlisted(_)
        | WhyFull::Disproved(_) => None,
    }
}

pub fn of_gc(error: &GcError) -> Option<String> {
    match error {
        GcError::Cloud { source, .. } => of_cloud(source),
        GcError::Store { source, .. } => of_store(source),
        GcError::Retention(fault) => of_fault(fault),
        GcError::Names(_) => None,
    }
}

pub fn of_journal(error: &JournalError) -> Option<String> {
    match error {
        JournalError::Busy { .. } => Some("wait for it, or end that process".into()),
        JournalError::File { .. } => Some("give a folder that can be written to: --state-folder".into()),
        JournalError::Lease(error) => of_queue(error),
        JournalError::Foreign { .. } => None,
    }
}

pub fn of_fault(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Device(DeviceError::Source(SourceError::Busy { path })) | Fault::Source(SourceError::Busy { path }) => {
            Some(format!(
                "something on this server took the volume as soon as it was there: while the job runs, `lsblk {path}` shows what. LVM and RAID \
             activate the disks that they find; `devices/global_filter` in /etc/lvm/lvm.conf and `AUTO -all` in /etc/mdadm/mdadm.conf keep \
             them from it"
            ))
        }
        Fault::Cloud(error) => of_cloud(error),
        Fault::Store(error) => of_store(error),
        Fault::Convert(error) => of_conversion(error),
        Fault::Source(error) => of_source(error),
        Fault::ReadBack(error) => of_restore(error),
        Fault::Device(DeviceError::Source(error)) => of_source(error),
        Fault::Device(DeviceError::Absent { .. }) => Some(
            "see whether udev runs (`udevadm settle`) and that --device-folder is where it puts its links; while the job waits, \
             `lsblk -o NAME,SERIAL,SIZE` shows the disk"
                .into(),
        ),
        Fault::UnderWay { job, server, .. } => Some(format!(
            "let it end; if it is dead, `snapferry replicate {server} --resume {job}` goes on with it here. A job that was taken up a day ago \
             counts for dead"
        )),
        Fault::Over { .. } => Some("`snapferry images delete` and `snapferry snapshot delete` remove single things".into()),
        Fault::ServerBusy { .. } => Some("the other job's log tells what it waits for".into()),
        Fault::Journal(error) => of_journal(error),
        Fault::WrongFile { .. } => Some("somebody replaced the object, or the image service read another one: look at both".into()),
        Fault::Obstacles { obstacles } => obstacles.iter().find_map(|obstacle| match obstacle {
            Obstacle::Bucket(error) => of_store(error),
            Obstacle::Message(_) => None,
        }),
        _ => None,
    }
}

pub fn of_restore(error: &RestoreError) -> Option<String> {
    match error {
        RestoreError::Image(error) => of_image(error),
        RestoreError::Target(TargetError::Busy { path }) => {
            Some(format!("unmount it first: `findmnt -S {path}` and `lsblk {path}` tell what uses it"))
        }
        RestoreError::Target(TargetError::Holds { path, .. }) => {
            Some(format!("`lsblk -f {path}` shows more; --force writes over it"))
        }
        RestoreError::Target(TargetError::Exists { .. }) => Some("give another --output, or --force to replace it".into()),
        RestoreError::Target(TargetError::Kind { required: RequiredKind::RegularFile, .. }) => Some("a device is named by --device".into()),
        RestoreError::Target(TargetError::Open { source, .. })
            if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
        {
            Some(
                "a file is written under a hidden name in its folder: give a folder that you may write to; or make the file first, where \
                 you may write to it, and give --force: it is written where it lies then"
                    .into(),
            )
        }
        RestoreError::Unusable { .. } => Some("give the right one by --manifest PATH, or --manifest none to go without".into()),
        RestoreError::Incomplete { source, .. } => of_restore(source),
        RestoreError::File(error) => of_cause(&*error.source),
        RestoreError::Source(error) => of_source(error),
        _ => None,
    }
}

pub fn of_image(error: &ImageError) -> Option<String> {
    match error {
        ImageError::Header { name, source } => match source {
            HeaderError::BackingFile { .. } => Some(format!(
                "where you trust both, `qemu-img convert -O qcow2 {name} WHOLE.qcow2` makes one image of them"
            )),
            HeaderError::DataFile { .. } => Some(format!(
                "where you trust both, `qemu-img convert -O qcow2 {name} WHOLE.qcow2` puts the data into the image"
            )),
            HeaderError::Encrypted { .. } => Some("decrypt it with qemu-img, which asks for the key".into()),
            HeaderError::Corrupt => Some(
                "`snapferry check` tells what is wrong; `qemu-img check -r all` on a copy may mend it".into(),
            ),
            HeaderError::Magic => {
                Some("a raw disk is read by convert, not from an image: give the image's name".into())
            }
            _ => None,
        },
        ImageError::TooLarge { .. } => Some("--max-size takes larger disks".into()),
        ImageError::L1Entry { .. } | ImageError::L2Entry { .. } => {
            Some("`snapferry check` lists all that is wrong with it".into())
        }
        ImageError::File(error) => of_cause(&*error.source),
        ImageError::Memory(_) | ImageError::Interrupted => None,
    }
}

pub fn of_local_image(error: &LocalImageError) -> Option<String> {
    match error {
        LocalImageError::Open { path, source }
            if source.kind() == ErrorKind::NotFound && path.starts_with("s3:/") =>
        {
            Some("an object is named s3://BUCKET/KEY".into())
        }
        LocalImageError::Changed | LocalImageError::Shrunk { .. } => {
            Some("stop what writes to it, and start again".into())
        }
        _ => None,
    }
}

pub fn of_source(error: &SourceError) -> Option<String> {
    match error {
        SourceError::Open { path, source } if source.kind() == ErrorKind::PermissionDenied => Some(format!(
            "reading a device takes rights: run as root, or join the group that owns {path} (often \"disk\")"
        )),
        SourceError::Open { source, .. } if source.kind() == ErrorKind::NotFound => {
            Some("`lsblk` lists the devices that there are".into())
        }
        SourceError::Kind { .. } => {
            Some("give the whole disk, as in --device /dev/vdc, or a file with a raw disk in it".into())
        }
        SourceError::Busy { path } => Some(format!(
            "unmount it (`findmnt -S {path}` tells where it is mounted), or give --in-use if nothing writes to it"
        )),
        SourceError::Read { source, .. } if source.raw_os_error().is_some() => {
            Some("--salvage stores what can be read, with zeros for the rest, and lists each range".into())
        }
        // The error of an image that is read as a disk.
        SourceError::Read { source, .. } => source.get_ref().and_then(|within| of_cause(within)),
        SourceError::Changed { .. } => Some("convert a snapshot, or stop what writes to it".into()),
        _ => None,
    }
}
