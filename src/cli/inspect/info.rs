//! `snapferry info`: prints the properties of an image or a raw disk.

use std::io::Write as _;

use clap::Args as Group;
use snapferry_qcow2::{Image, bitmaps, snapshots};

use super::{Format, Inspection};
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::image::ImageArgs;
use crate::cli::printable::{self, Form};
use crate::cli::qemu;
use crate::cli::qemu::info::Info;
use crate::cli::session::Session;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry info web01.qcow2\n  snapferry info s3://images/web01.qcow2 --json"
)]
pub struct InfoArgs {
    /// Print JSON as `qemu-img info --output=json` does
    #[arg(long)]
    pub json: bool,

    // Last, because its heading in the help applies to all options that follow.
    #[command(flatten)]
    pub image: ImageArgs,
}

pub fn run(args: &InfoArgs, session: &Session) -> CommandResult<Code> {
    let inspection = Inspection::start(session)?;
    let found = inspection.find(args.image.name()?, &args.image.store)?;
    let held = found.held()?;
    let mut refused = None;
    let info = match found.format {
        Format::Raw => Info::raw(&held),
        Format::Qcow2 => {
            let image = Image::inspect(found.file())?;
            let (snapshots, _) = snapshots::list(found.file(), image.header())?;
            let bitmaps = bitmaps::list(found.file(), image.header_info())?;
            refused = image.header_info().refusal();
            Info::qcow2(&held, image.header_info(), &snapshots, &bitmaps)
        }
    };
    let mut out = printable::out_as(Form::of(args.json));
    if args.json {
        qemu::write_json(&info, &mut out)?;
    } else {
        info.write_text(&mut out)?;
        if let Some(reason) = refused {
            writeln!(out, "not read by snapferry: {reason}")?;
        }
    }
    Ok(Code::Done)
}
