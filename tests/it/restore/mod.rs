//! Images read back, from end to end: in process if only the bytes matter, through the program if its output
//! matters.
//!
//! | file | requirement that it checks |
//! |---|---|
//! | `round_trips` | every kind of image comes back as its disk, Snapferry's and QEMU's |
//! | `devices` | data written to devices, and devices that are refused |
//! | `verdicts` | damage of every kind is found and named |
//! | `faults` | files and stores that fail on command |
//! | `memory` | the peak that the plan promises |

mod devices;
mod faults;
mod memory;
mod round_trips;
mod verdicts;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use snapferry_base::cancel::Cancel;
use snapferry_base::clock::SystemClock;
use snapferry_engine::disk::PageCache;
use snapferry_engine::error::RestoreError;
use snapferry_engine::image::LocalImage;
use snapferry_engine::image::plan::Options;
use snapferry_engine::manifest::Manifest;
use snapferry_engine::restore::{Destination, Restoration, Restored};
use snapferry_engine::source::Source;
use snapferry_engine::store::Location;
use snapferry_engine::store::Overwrite;
use snapferry_engine::verify::{Sha256Wanted, Verdict, Verification};
use snapferry_qcow2::{ImageFile, Limits};

use crate::support::snapferry;

/// The command `snapferry restore IMAGE --output FILE`, with `more` arguments.
pub fn into_file(image: &Path, raw: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["restore"]);
    command.arg(image).arg("--output").arg(raw).args(more);
    command
}

/// The command `snapferry restore IMAGE --device DEVICE`, with `more` arguments.
pub fn into_device(image: &Path, device: &Path, more: &[&str]) -> Command {
    let mut command = snapferry(["restore"]);
    command.arg(image).arg("--device").arg(device).args(more);
    command
}

/// The command `snapferry verify IMAGE`, with `more` arguments.
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
    let destination =
        Destination::File { path: to.to_owned(), overwrite: Overwrite::Refuse, cache: PageCache::Bypass };
    let restoration = Restoration {
        file,
        location: Location::Bucket,
        destination: &destination,
        manifest,
        limits: Limits::default(),
        options: Options::default(),
        clock: &SystemClock,
        cancel: cancel.clone(),
        counters: Arc::default(),
    };
    let prepared = restoration.prepare()?;
    restoration.run(prepared, &|_| {})
}

/// Verifies an image in this process.
pub fn verify(
    file: &dyn ImageFile,
    manifest: Option<&Manifest>,
    sha256: Sha256Wanted,
    against: Option<&dyn Source>,
) -> Result<Verdict, RestoreError> {
    Verification {
        file,
        location: Location::File,
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

pub fn open(path: &Path) -> LocalImage {
    LocalImage::open(path).expect("an image")
}

/// Path of the restored disk.
pub fn back_in(folder: &Path) -> PathBuf {
    folder.join("back.raw")
}
