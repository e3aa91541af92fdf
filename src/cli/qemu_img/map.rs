//! `qemu-img map`: prints how and where the bytes of a disk are stored.

use std::ffi::OsString;
use std::io::{BufWriter, Write as _, stdout};

use super::getopt::{Known, Takes, flag, long, value};
use super::{Ended, Report, Stop, images, one_file, read, refuse, report};
use crate::cli::qemu::map;

const USAGE: &str = "[-f FMT] [-U] [--output human|json] FILENAME";

const KNOWN: [Known; 7] = [
    value(b'f', Some("format")),
    long("image-opts", Takes::Nothing),
    long("object", Takes::Value),
    long("output", Takes::Value),
    long("start-offset", Takes::Value),
    long("max-length", Takes::Value),
    flag(b'U', Some("force-share")),
];

pub fn run(args: &[OsString]) -> Ended {
    let Some(typed) = read("map", USAGE, args, &KNOWN)? else { return Ok(0) };
    refuse(&typed, &["image-opts", "object", "start-offset", "max-length"])?;
    let output = report("map", &typed)?;
    let path = images::path_of(one_file("map", &typed)?)?;
    let format = images::format_of(&path, typed.last("format"), 1)?;
    let stretches = images::map(&path, format)?.stretches;
    let mut out = BufWriter::new(stdout().lock());
    match output {
        Report::Json => map::write_json(&stretches, &mut out)?,
        Report::Human => {
            map::write_text(&stretches, &path.display().to_string(), &mut out)?
                .map_err(|no| Stop::error(no.to_string()))?;
        }
    }
    out.flush()?;
    Ok(0)
}
