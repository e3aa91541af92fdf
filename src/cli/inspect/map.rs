//! `snapferry map`: prints how and where the bytes of a disk are stored.

use std::io::{BufWriter, Write as _};

use clap::Args as Group;
use snapferry_base::units::ByteCount;

use super::{Inspection, limits};
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::image::ImageArgs;
use crate::cli::printable::{self, Form};
use crate::cli::qemu::map;
use crate::cli::session::Session;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry map web01.qcow2\n  snapferry map s3://images/web01.qcow2 --json"
)]
pub struct MapArgs {
    /// Refuse an image of a larger disk
    #[arg(long, value_name = "SIZE", default_value = "64T")]
    pub max_size: ByteCount,

    /// Print JSON as `qemu-img map --output=json` does
    #[arg(long)]
    pub json: bool,

    // Last, because its heading in the help applies to all options that follow.
    #[command(flatten)]
    pub image: ImageArgs,
}

pub fn run(args: &MapArgs, session: &Session) -> CommandResult<Code> {
    let inspection = Inspection::start(session)?;
    let found = inspection.find(args.image.name()?, &args.image.store)?;
    let limits = limits(args.max_size);
    let stretches = found.map(&limits)?;
    let mut out = BufWriter::new(printable::out_as(Form::of(args.json)));
    if args.json {
        map::write_json(&stretches, &mut out)?;
    } else {
        for stretch in &stretches {
            writeln!(out, "{stretch}")?;
        }
    }
    out.flush()?;
    Ok(Code::Done)
}
