//! Images read back, from end to end: in process where only the bytes matter, through the command where what a user sees does.
//!
//! | file | what it holds the read side to |
//! |---|---|
//! | `trips` | every kind of image comes back as its disk, ours and QEMU's |
//! | `devices` | what is written to devices, and which are refused |
//! | `verdicts` | damage of every kind is found, and named |
//! | `faults` | files and stores that fail on command |
//! | `memory` | the peak that the plan promises |

mod devices;
mod faults;
mod memory;
mod trips;
mod verdicts;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_engine::disk::{Force, PageCache};
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::LocalImage;
use snapferry_engine::image::plan::{Options, Origin};
use snapferry_engine::manifest::Manifest;
use snapferry_engine::restore::{Destination, Restoration, Restored};
use snapferry_engine::source::Source;
use snapferry_engine::verify::{Sha256Wanted, Verdict, Verification};
use snapferry_qcow2::{ImageFile, Limits};

use crate::convert::snapferry;

/// `snapferry restore IMAGE --output FILE`, and more.
pub fn into_file(image: &Path, raw: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["restore"]);
    command.arg(image).arg("--output").arg(raw).args(more);
    command
}

/// `snapferry restore IMAGE --device DEVICE`, and more.
pub fn into_device(image: &Path, device: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["restore"]);
    command.arg(image).arg("--device").arg(device).args(more);
    command
}

/// `snapferry verify IMAGE`, and more.
pub fn verify_command(image: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["verify"]);
    command.arg(image).args(more);
    command
}

/// Restores in this process into a file.
pub fn restore(
    file: &dyn ImageFile,
    manifest: Option<&Manifest>,
    to: &Path,
    cancel: &Cancel,
) -> Result<Restored, RestoreError> {
    let destination = Destination::File { path: to.to_owned(), force: Force::No, cache: PageCache::Bypass };
    Restoration {
        file,
        origin: Origin::Bucket,
        destination: &destination,
        manifest,
        limits: Limits::default(),
        options: Options::default(),
        clock: &SystemClock,
        cancel: cancel.clone(),
        counters: Arc::default(),
    }
    .run(&|_| {})
}

/// Verifies in this process.
pub fn verify(
    file: &dyn ImageFile,
    manifest: Option<&Manifest>,
    sha256: Sha256Wanted,
    against: Option<&dyn Source>,
) -> Result<Verdict, RestoreError> {
    Verification {
        file,
        origin: Origin::File,
        manifest,
        sha256,
        against,
        limits: Limits::default(),
        options: Options::default(),
        clock: &SystemClock,
        cancel: Cancel::new(),
        counters: Arc::default(),
    }
    .run(&|_| {})
}

/// Opens a local image.
pub fn open(path: &Path) -> LocalImage {
    LocalImage::open(path).expect("an image")
}

/// Where a restored disk goes.
pub fn back_in(folder: &Path) -> PathBuf {
    folder.join("back.raw")
}
