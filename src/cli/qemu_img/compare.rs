//! `qemu-img compare`: compares the contents of two disks.

use std::ffi::OsString;
use std::io::{Write as _, stdout};

use snapferry_base::cancel::Cancel;
use snapferry_base::retry::chain;
use snapferry_base::units::SECTOR;
use snapferry_engine::disk::{Until, compare_sources};
use snapferry_engine::error::RestoreError;
use snapferry_engine::pipeline::PipelineError;
use snapferry_engine::source::{Joined, Source as _};

use super::getopt::{Known, Takes, Typed, flag, long, value};
use super::progress::{Progress, Shown};
use super::{Ended, Stop, check_cache, images, read, refuse, usage};
use crate::cli::signals;

const USAGE: &str = "[-f FMT] [-F FMT] [-s] [-p] [-q] [-T CACHE] [-U] FILENAME1 FILENAME2";

const KNOWN: [Known; 9] = [
    flag(b'q', Some("quiet")),
    flag(b'p', Some("progress")),
    value(b'f', Some("a-format")),
    value(b'F', Some("b-format")),
    long("image-opts", Takes::Nothing),
    flag(b's', Some("strict")),
    value(b'T', Some("cache")),
    flag(b'U', Some("force-share")),
    long("object", Takes::Value),
];

/// QEMU's exit code for disks that differ.
const DIFFERENT: u8 = 1;
/// QEMU's exit code for a disk that can't be opened.
const NOT_OPENED: u8 = 2;
/// QEMU's exit code for a disk that can't be read.
const NOT_READ: u8 = 4;

pub fn run(args: &[OsString]) -> Ended {
    let Some(typed) = read("compare", USAGE, args, &KNOWN)? else { return Ok(0) };
    refuse(&typed, &["image-opts", "object"])?;
    check_cache(&typed, "cache", "source ").map_err(|stop| match stop {
        Stop::Says(message, _) => Stop::Says(message, NOT_OPENED),
        other => other,
    })?;
    let [one, other] = &typed.operands[..] else {
        return Err(usage("compare", "Expecting two image file names"));
    };
    let (one, other) = (open(&typed, one, "a-format")?, open(&typed, other, "b-format")?);
    let quiet = typed.has("quiet");
    let say = |message: &str| if quiet { Ok(()) } else { writeln!(stdout(), "{message}") };
    let (size, other_size) = (one.size(), other.size());
    if typed.has("strict") && size != other_size {
        say("Strict mode: Image size mismatch!")?;
        return Ok(DIFFERENT);
    }
    if typed.has("strict") {
        // QEMU's strict mode also compares how each stretch is stored, as its drivers report it.
        return Err(Stop::NotDone("--strict with disks of the same size".into()));
    }
    let runtime = crate::cli::runtime()?;
    let cancel = Cancel::new();
    signals::listen(runtime.handle(), &cancel, signals::Unfinished::Nothing)?;
    let shown = if typed.has("progress") && !quiet { Shown::Yes } else { Shown::No };
    let progress = Progress::start(shown);
    progress.expect(size.0.max(other_size.0));
    let counted = |bytes: u64| progress.add(bytes);
    let compared = compare_sources(&one, &other, Until::FirstDifference, &cancel, &counted).map_err(
        |error| match error {
            RestoreError::Pipeline(PipelineError::Interrupted) => Stop::Interrupted(None),
            other => Stop::Says(chain(&other), NOT_READ),
        },
    )?;
    if let Some(difference) = compared.first.first() {
        // QEMU warns of the sizes before it compares what is beyond the end of the shorter disk.
        if size != other_size && difference.offset.0 >= size.0.min(other_size.0) {
            say("Warning: Image size mismatch!")?;
        }
        // QEMU compares whole sectors.
        say(&format!("Content mismatch at offset {}!", difference.offset.0 / SECTOR * SECTOR))?;
        return Ok(DIFFERENT);
    }
    progress.complete();
    if size != other_size {
        say("Warning: Image size mismatch!")?;
    }
    say("Images are identical.")?;
    Ok(0)
}

/// Opens one of the two disks, in whole sectors.
fn open(typed: &Typed, name: &std::ffi::OsStr, format: &str) -> Result<Joined, Stop> {
    let path = images::path_of(name)?;
    let format = images::format_of(&path, typed.last(format), NOT_OPENED)?;
    Ok(Joined::new(vec![images::open(&path, format, NOT_OPENED)?]))
}
