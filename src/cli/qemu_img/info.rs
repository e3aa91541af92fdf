//! `qemu-img info`: prints the properties of an image.

use std::ffi::OsString;
use std::fs;
use std::io::stdout;

use snapferry_qcow2::{HeaderError, Image, bitmaps, snapshots};

use super::args::Format;
use super::getopt::{Known, Takes, flag, long, value};
use super::{Ended, Report, Stop, images, one_file, read, refuse, report};
use crate::cli::qemu::info::{ImageBytes, Info};
use crate::cli::qemu::write_json;

const USAGE: &str = "[-f FMT] [-U] [--backing-chain] [--output human|json] FILENAME";

const KNOWN: [Known; 6] = [
    value(b'f', Some("format")),
    long("image-opts", Takes::Nothing),
    flag(b'b', Some("backing-chain")),
    flag(b'U', Some("force-share")),
    long("object", Takes::Value),
    long("output", Takes::Value),
];

pub fn run(args: &[OsString]) -> Ended {
    let Some(typed) = read("info", USAGE, args, &KNOWN)? else { return Ok(0) };
    refuse(&typed, &["image-opts", "object"])?;
    let output = report("info", &typed)?;
    let path = images::path_of(one_file("info", &typed)?)?;
    let format = images::format_of(&path, typed.last("format"), 1)?;
    let file = images::open_file(&path, 1)?;
    let held = ImageBytes::local(&path, &fs::metadata(&path)?, file.size().0);
    let info = match format {
        Format::Raw => Info::raw(&held),
        Format::Qcow2 => {
            let image = Image::inspect(&*file).map_err(|error| images::image_error(&path, &error, 1))?;
            let header_info = image.header_info();
            match header_info.refusal() {
                // The user asks for the whole chain, but backing files are never opened.
                Some(HeaderError::BackingFile { .. }) if typed.has("backing-chain") => {
                    return Err(Stop::NotDone(format!(
                        "--backing-chain of an image that has one, as {},",
                        path.display()
                    )));
                }
                // The number in the header is not enough to report the kind of encryption.
                Some(HeaderError::Encrypted { .. }) => {
                    return Err(Stop::NotDone(format!("encryption, as {} has it,", path.display())));
                }
                _ => {}
            }
            let refused = |error| images::image_error(&path, &error, 1);
            let (snapshots, _) = snapshots::list(&*file, image.header()).map_err(refused)?;
            let bitmaps = bitmaps::list(&*file, header_info).map_err(refused)?;
            Info::qcow2(&held, header_info, &snapshots, &bitmaps)
        }
    };
    let mut out = stdout().lock();
    match (output, typed.has("backing-chain")) {
        (Report::Human, _) => info.write_text(&mut out)?,
        // A chain is a list of images, here of one.
        (Report::Json, true) => write_json(&[info], &mut out)?,
        (Report::Json, false) => write_json(&info, &mut out)?,
    }
    Ok(0)
}
