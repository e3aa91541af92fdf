//! `qemu-img check`: checks the tables of an image, without repairs.

use std::ffi::OsString;
use std::io::{stderr, stdout};

use snapferry_base::cancel::Cancel;
use snapferry_qcow2::check::check;
use snapferry_qcow2::{CorruptPolicy, Image, ImageError, Limits};

use super::args::Format;
use super::getopt::{Known, Takes, flag, long, value};
use super::{Ended, Report, Stop, check_cache, images, one_file, read, refuse, report};
use crate::cli::qemu::check::{Checked, write_findings};
use crate::cli::qemu::write_json;

const USAGE: &str = "[-f FMT] [-T CACHE_MODE] [-q] [-U] [--output human|json] FILENAME";

const KNOWN: [Known; 8] = [
    flag(b'q', Some("quiet")),
    value(b'f', Some("format")),
    long("image-opts", Takes::Nothing),
    value(b'T', Some("cache")),
    flag(b'U', Some("force-share")),
    long("output", Takes::Value),
    value(b'r', Some("repair")),
    long("object", Takes::Value),
];

/// QEMU's exit code for a format that has no check.
const UNSUPPORTED: u8 = 63;

pub fn run(args: &[OsString]) -> Ended {
    let Some(typed) = read("check", USAGE, args, &KNOWN)? else { return Ok(0) };
    refuse(&typed, &["image-opts", "repair", "object"])?;
    check_cache(&typed, "cache", "source ")?;
    let output = report("check", &typed)?;
    let name = one_file("check", &typed)?;
    let path = images::path_of(name)?;
    if images::format_of(&path, typed.last("format"), 1)? == Format::Raw {
        images::open_file(&path, 1)?;
        return Err(Stop::Says("This image format does not support checks".into(), UNSUPPORTED));
    }
    let file = images::open_file(&path, 1)?;
    // An image that is marked as corrupt is just the one to check.
    let limits = Limits { marked_corrupt: CorruptPolicy::Read, ..images::LIMITS };
    let refused = |error: ImageError| images::image_error(&path, &error, 1);
    let image = Image::open(&*file, &limits).map_err(refused)?;
    let found = check(&*file, &image, &Cancel::new()).map_err(refused)?;
    let checked = Checked::new(&path.display().to_string(), &found);
    match output {
        Report::Json => write_json(&checked, &mut stdout().lock())?,
        Report::Human if typed.has("quiet") => {}
        Report::Human => {
            write_findings(&found, &mut stderr().lock())?;
            checked.write_text(&mut stdout().lock())?;
        }
    }
    Ok(checked.exit_code())
}
