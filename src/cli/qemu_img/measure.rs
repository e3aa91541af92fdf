//! `qemu-img measure`: computes the size of an image of a disk.

use std::ffi::OsString;
use std::io::stdout;

use snapferry_base::units::ClusterBits;
use snapferry_qcow2::header::Version;

use super::args::{Format, size};
use super::getopt::{Known, Takes, flag, long, value};
use super::output::Output;
use super::{Ended, Report, Stop, images, read, refuse, report};
use crate::cli::qemu::measure::{self, From};
use crate::cli::qemu::write_json;

const USAGE: &str =
    "[-f FMT] [-O OUTPUT_FMT] [-o OPTIONS] [-U] [--output human|json] (--size SIZE | FILENAME)";

const KNOWN: [Known; 9] = [
    value(b'O', Some("target-format")),
    value(b's', Some("size")),
    value(b'f', Some("format")),
    long("image-opts", Takes::Nothing),
    value(b'l', Some("snapshot")),
    value(b'o', Some("options")),
    long("output", Takes::Value),
    long("object", Takes::Value),
    flag(b'U', Some("force-share")),
];

pub fn run(args: &[OsString]) -> Ended {
    let Some(typed) = read("measure", USAGE, args, &KNOWN)? else { return Ok(0) };
    refuse(&typed, &["image-opts", "snapshot", "object"])?;
    let to = match typed.last("target-format") {
        None => Format::Raw,
        Some(named) => Format::parse(named)?
            .ok_or_else(|| Stop::error(format!("Unknown file format '{}'", named.to_string_lossy())))?,
    };
    let output = Output::parse(to, typed.all("options"), &|message| message)?;
    // Unlike QEMU's other commands this one knows a version by its number alone.
    if let Some(compat) = output.compat.as_deref().filter(|compat| compat.starts_with('v')) {
        return Err(Stop::error(format!("Invalid compatibility level: '{compat}'")));
    }
    let cluster = output.cluster_bits().unwrap_or(ClusterBits::DEFAULT);
    let report = report("measure", &typed)?;
    let measured = match (typed.last("size"), &typed.operands[..]) {
        (Some(_), [_, ..]) => return Err(Stop::error("--size N cannot be used together with a filename.")),
        (None, []) => return Err(Stop::error("Either --size N or one filename must be specified.")),
        (_, [_, _, ..]) => return Err(Stop::error("At most one filename argument is allowed.")),
        (Some(bytes), []) => {
            let typed = bytes.to_string_lossy();
            let bytes = size(&typed)
                .ok_or_else(|| Stop::error(format!("Invalid image size specified: '{typed}'.")))?;
            match to {
                Format::Raw => measure::raw(bytes),
                Format::Qcow2 => measure::qcow2(bytes, 0, From::Raw, cluster),
            }
        }
        (None, [name]) => {
            let path = images::path_of(name)?;
            let format = images::format_of(&path, typed.last("format"), 1)?;
            match to {
                Format::Raw => measure::raw(images::open(&path, format, 1)?.size().0),
                Format::Qcow2 => {
                    let mapped = images::map(&path, format)?;
                    // Version 2 can't have bitmaps.
                    let bitmaps = mapped.bitmaps.as_deref().filter(|_| output.version == Version::V3);
                    let from = bitmaps.map_or(From::Raw, From::Image);
                    measure::qcow2(mapped.size.0, measure::stored(&mapped.stretches, cluster), from, cluster)
                }
            }
        }
    };
    let mut out = stdout().lock();
    match report {
        Report::Json => write_json(&measured, &mut out)?,
        Report::Human => measured.write_text(&mut out)?,
    }
    Ok(0)
}
