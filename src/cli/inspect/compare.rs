//! `snapferry compare`: compares the contents of two disks.

use std::ffi::OsString;
use std::io::Write as _;

use clap::{Args as Group, ValueHint};
use serde::Serialize;
use snapferry_base::units::{ByteCount, SECTOR};
use snapferry_engine::disk::{Difference, Until, compare_sources};

use super::{Inspection, limits};
use crate::cli::args::StoreArgs;
use crate::cli::error::CommandResult;
use crate::cli::exit::Code;
use crate::cli::image::ImageName;
use crate::cli::printable::{self, Form};
use crate::cli::qemu;
use crate::cli::session::Session;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry compare web01.qcow2 /dev/vdc\n  snapferry compare s3://images/web01.qcow2 s3://images/web01-old.qcow2"
)]
pub struct CompareArgs {
    /// An image, a raw disk or a device: a file, or s3://BUCKET/KEY
    #[arg(value_name = "ONE", value_hint = ValueHint::AnyPath)]
    pub one: OsString,

    /// The other image, raw disk or device
    #[arg(value_name = "OTHER", value_hint = ValueHint::AnyPath)]
    pub other: OsString,

    /// Require the same size; without this option the longer one may end in zeros
    #[arg(long)]
    pub strict: bool,

    /// Refuse an image of a larger disk
    #[arg(long, value_name = "SIZE", default_value = "64T")]
    pub max_size: ByteCount,

    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub store: StoreArgs,
}

/// Output with `--json`. Offsets and lengths are in bytes of the disk.
#[derive(Debug, Serialize)]
struct CompareJson {
    identical: bool,
    sizes: [ByteCount; 2],
    differing_stretches: u64,
    first: Vec<Difference>,
}

pub fn run(args: &CompareArgs, session: &Session) -> CommandResult<Code> {
    let inspection = Inspection::start(session)?;
    let limits = limits(args.max_size);
    let [one, other] = [&args.one, &args.other].map(|typed| -> CommandResult<_> {
        let found = inspection.find(ImageName::parse(typed)?, &args.store)?;
        found.source(&limits)
    });
    let (one, other) = (one?, other?);
    // Images hold whole sectors: a raw disk and its own image count as of one size.
    let sizes = [&one, &other].map(|source| ByteCount(source.size().0.next_multiple_of(SECTOR)));
    let sizes_count = args.strict && sizes[0] != sizes[1];
    let compared = compare_sources(&*one, &*other, Until::End, &session.cancel, &|_| {})?;
    let identical = compared.is_empty() && !sizes_count;
    let mut out = printable::out_as(Form::of(args.json));
    if args.json {
        qemu::write_json(
            &CompareJson { identical, sizes, differing_stretches: compared.count, first: compared.first },
            &mut out,
        )?;
    } else if identical {
        writeln!(out, "identical")?;
    } else {
        if sizes_count {
            writeln!(out, "one has {} bytes, the other {}", sizes[0].0, sizes[1].0)?;
        }
        for Difference { offset, length } in &compared.first {
            writeln!(out, "{length} bytes differ at offset {offset}")?;
        }
        let more = compared.count.saturating_sub(snapferry_base::units::to_u64(compared.first.len()));
        if more > 0 {
            writeln!(out, "... and {more} more stretches")?;
        }
    }
    Ok(if identical { Code::Done } else { Code::Image })
}
