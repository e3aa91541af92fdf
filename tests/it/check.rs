//! The check of an image's tables: each figure is compared with qemu-img's.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::Value;
use snapferry_base::cancel::{Cancel, Reason};
use snapferry_base::units::{ByteCount, HostOffset, to_u64};
use snapferry_engine::image::LocalImage;
use snapferry_qcow2::MemoryFile;
use snapferry_qcow2::check::{Report, check};
use snapferry_qcow2::{Codec, CorruptPolicy, FileError, Image, ImageError, ImageFile, Limits};
use snapferry_testkit::hostile::{self, Expected, Hostile, Stage};
use snapferry_testkit::oracle::QemuImg;

use crate::support::program;

/// Returns the JSON and the exit code of `qemu-img check`, or `None` if it does not open the image.
fn qemu_check(path: &Path) -> Option<(Value, Option<i32>)> {
    let output =
        Command::new("qemu-img").args(["check", "--output=json", "-f", "qcow2"]).arg(path).output().unwrap();
    serde_json::from_slice(&output.stdout).ok().map(|json| (json, output.status.code()))
}

fn ours(path: &Path) -> Result<Report, String> {
    let limits = Limits { marked_corrupt: CorruptPolicy::Read, ..Limits::default() };
    let file = LocalImage::open(path).map_err(|error| error.to_string())?;
    let image = Image::open(&file, &limits).map_err(|error| error.to_string())?;
    check(&file, &image, &Cancel::new()).map_err(|error| error.to_string())
}

/// Figures of QEMU's JSON, which leaves them out if they are zero.
fn figures(json: &Value) -> [u64; 7] {
    [
        "corruptions",
        "leaks",
        "check-errors",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
    ]
    .map(|name| json[name].as_u64().unwrap_or(0))
}

fn our_figures(report: &Report) -> [u64; 7] {
    [
        report.corruptions,
        report.leaks,
        report.check_errors,
        report.total_clusters,
        report.allocated_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
    ]
}

/// Returns the difference between Snapferry's figures and QEMU's for one image, or `None` if they agree.
pub fn difference(name: &str, path: &Path) -> Option<String> {
    let (json, code) = qemu_check(path)?;
    let report = match ours(path) {
        Ok(report) => report,
        Err(error) => return Some(format!("{name}: refused: {error}; qemu-img said {json}")),
    };
    let same = figures(&json) == our_figures(&report)
        && json["image-end-offset"].as_u64().unwrap_or(0) == report.image_end;
    let command = Command::new(program()).args(["qemu-img", "check", "-q", "-f", "qcow2"]).arg(path).output();
    let ours = command.unwrap().status.code();
    if ours != code {
        return Some(format!("{name}: ends with {ours:?}, qemu-img with {code:?}: {json}"));
    }
    (!same).then(|| {
        format!(
            "{name}: {:?} end {}, qemu-img {json}\n   {:?}",
            our_figures(&report),
            report.image_end,
            report.findings
        )
    })
}

#[test]
fn broken_images_are_counted_as_qemu_counts_them() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for Hostile { name, bytes, stage, .. } in hostile::all() {
        // Errors that the header alone shows are refused at opening; QEMU refuses them too, with some
        // exceptions.
        if stage == Stage::Open {
            continue;
        }
        std::fs::write(&path, &bytes).unwrap();
        compared += usize::from(qemu_check(&path).is_some());
        wrong.extend(difference(&name, &path));
        if let Ok(report) = ours(&path) {
            let clean = report.is_clean();
            match stage {
                Stage::Load | Stage::Check if clean => wrong.push(format!("{name}: nothing was found")),
                Stage::Never if !clean => wrong.push(format!("{name}: {:?}", report.findings)),
                _ => {}
            }
        }
    }
    assert!(compared > 60, "only {compared} images were compared");
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_audit_stops_when_it_is_told_to() {
    let (cancel, file) = (Cancel::new(), MemoryFile::new(Expected::new(Codec::Deflate).bytes.into()));
    let image = Image::open(&file, &Limits::default()).unwrap();
    cancel.cancel(Reason::Requested);
    assert!(matches!(check(&file, &image, &cancel), Err(ImageError::Interrupted)));
}

#[test]
fn a_table_and_a_block_that_all_entries_lead_to_are_read_a_few_times() {
    struct Counted(MemoryFile, AtomicU64);
    impl ImageFile for Counted {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn size(&self) -> ByteCount {
            self.0.size()
        }
        fn read_at(&self, at: HostOffset, into: &mut [u8]) -> Result<(), FileError> {
            self.1.fetch_add(to_u64(into.len()), Relaxed);
            self.0.read_at(at, into)
        }
    }
    for Hostile { name, bytes, .. } in hostile::all() {
        if !name.contains("32 TiB under one table") && !name.contains("one block 1000 times") {
            continue;
        }
        let len = to_u64(bytes.len());
        let file = Counted(MemoryFile::new(bytes.into()), AtomicU64::new(0));
        let image = Image::open(&file, &Limits::default()).unwrap();
        let report = check(&file, &image, &Cancel::new()).unwrap();
        assert!(report.corruptions > 0, "{name}: {report:?}");
        let read = file.1.into_inner();
        assert!(read < 3 * len, "{name}: {read} bytes of {len}");
    }
}
