//! The audit of an image's tables, figure by figure beside qemu-img's.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snapferry::qcow2::check::{Report, check};
use snapferry::qcow2::{Image, Limits, Marked};
use snapferry::restore::LocalImage;
use snapferry::testing::hostile::{self, Hostile, Stage};
use snapferry::testing::oracle::QemuImg;

/// What qemu-img says; nothing where it does not open the image.
fn qemu_check(path: &Path) -> Option<(Value, Option<i32>)> {
    let answer = Command::new("qemu-img").args(["check", "--output=json", "-f", "qcow2"]).arg(path).output().unwrap();
    serde_json::from_slice(&answer.stdout).ok().map(|said| (said, answer.status.code()))
}

fn ours(path: &Path) -> Result<Report, String> {
    let limits = Limits { marked_corrupt: Marked::Read, ..Limits::default() };
    let file = LocalImage::open(path).map_err(|error| error.to_string())?;
    let image = Image::open(&file, &limits).map_err(|error| error.to_string())?;
    check(&file, &image).map_err(|error| error.to_string())
}

/// The figures that QEMU's JSON leaves out where they are zero.
fn figures(said: &Value) -> [u64; 7] {
    ["corruptions", "leaks", "check-errors", "total-clusters", "allocated-clusters", "fragmented-clusters", "compressed-clusters"]
        .map(|name| said[name].as_u64().unwrap_or(0))
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

/// Where our figures and QEMU's differ, for one image.
pub fn difference(name: &str, path: &Path) -> Option<String> {
    let (said, _) = qemu_check(path)?;
    let report = match ours(path) {
        Ok(report) => report,
        Err(error) => return Some(format!("{name}: refused: {error}; qemu-img said {said}")),
    };
    let same = figures(&said) == our_figures(&report) && said["image-end-offset"].as_u64().unwrap_or(0) == report.image_end;
    (!same)
        .then(|| format!("{name}: {:?} end {}, qemu-img {said}\n   {:?}", our_figures(&report), report.image_end, report.findings))
}

#[test]
fn broken_images_are_counted_as_qemu_counts_them() {
    let Some(_) = QemuImg::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for Hostile { name, bytes, stage, .. } in hostile::all() {
        // What the header alone gives away is refused, by QEMU too with some exceptions.
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
