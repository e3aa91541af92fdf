//! `snapferry measure`: computes the size of an image of a disk, and estimates the compressed size.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use clap::{Args as Group, ValueHint};
use serde::Serialize;
use snapferry_base::units::{ByteCount, ClusterBits};
use snapferry_engine::compress::{Codec, Encoder, Level};
use snapferry_engine::convert::sample::{Estimate, Sampling, estimate};
use snapferry_qcow2::bitmaps::{self, Bitmap};
use snapferry_qcow2::header::Version;
use snapferry_qcow2::{Image, ImageFile};

use super::{Format, Inspection, limits};
use crate::cli::args::StoreArgs;
use crate::cli::error::CommandResult;
use crate::cli::error::UsageError;
use crate::cli::exit::Code;
use crate::cli::image::ImageName;
use crate::cli::printable::{self, Form};
use crate::cli::qemu;
use crate::cli::qemu::measure::{self, From, Measured};
use crate::cli::session::Session;
use crate::cli::values;

#[derive(Debug, Group)]
#[command(
    after_help = "Examples:\n  snapferry measure /dev/vdc --sample 200 --codec zstd\n  snapferry measure web01.qcow2 --json\n  snapferry measure --size 100G"
)]
pub struct MeasureArgs {
    /// The disk: a device, a file, or an image, also s3://BUCKET/KEY
    #[arg(value_name = "DISK", required_unless_present = "size", conflicts_with = "size",
        value_hint = ValueHint::AnyPath)]
    pub disk: Option<std::ffi::OsString>,

    /// A disk of so many bytes that holds nothing yet
    #[arg(long, value_name = "SIZE", conflicts_with = "sample")]
    pub size: Option<ByteCount>,

    /// Compress so many chunks of 2 MiB, drawn at random, and estimate what all of them come to
    #[arg(long, value_name = "N")]
    pub sample: Option<NonZeroUsize>,

    /// Seed of the random choice: the same seed draws the same chunks [default: another each time]
    #[arg(long, value_name = "NUMBER", requires = "sample")]
    pub seed: Option<u64>,

    /// Compression of the clusters
    #[arg(long, default_value = "deflate", value_name = "CODEC", requires = "sample",
        value_parser = values::codecs())]
    pub codec: Codec,

    /// Speed of the compression against its size
    #[arg(long, default_value = "fast", value_name = "LEVEL", requires = "sample",
        value_parser = values::levels())]
    pub level: Level,

    /// Cluster size of qcow2
    #[arg(long, default_value = "64k", value_name = "SIZE")]
    pub cluster_size: ByteCount,

    /// Refuse an image of a larger disk
    #[arg(long, value_name = "SIZE", default_value = "64T")]
    pub max_size: ByteCount,

    /// Print JSON: the fields of `qemu-img measure --output=json`, and the estimate
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub store: StoreArgs,
}

/// Output with `--json`: QEMU's own fields, and the estimate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MeasureJson {
    #[serde(flatten)]
    measured: Measured,
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed: Option<Estimate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoder: Option<String>,
}

pub fn run(args: &MeasureArgs, session: &Session) -> CommandResult<Code> {
    let cluster = ClusterBits::from_size(args.cluster_size).map_err(|error| UsageError(error.to_string()))?;
    let output = match (&args.disk, args.size) {
        (Some(disk), _) => of_disk(args, disk, cluster, session)?,
        (None, Some(size)) => MeasureJson {
            measured: measure::qcow2(size.0, 0, From::Raw, cluster),
            compressed: None,
            encoder: None,
        },
        (None, None) => {
            return Err(UsageError("which disk? Give a device, a file, an image, or --size".into()).into());
        }
    };
    let mut out = printable::out_as(Form::of(args.json));
    if args.json {
        qemu::write_json(&output, &mut out)?;
    } else {
        write_for_people(&output, &mut out)?;
    }
    Ok(Code::Done)
}

fn of_disk(
    args: &MeasureArgs,
    disk: &std::ffi::OsStr,
    cluster: ClusterBits,
    session: &Session,
) -> CommandResult<MeasureJson> {
    let inspection = Inspection::start(session)?;
    let found = inspection.find(ImageName::parse(disk)?, &args.store)?;
    let source = found.source(&limits(args.max_size))?;
    let bitmaps = match found.format {
        Format::Qcow2 => bitmaps_of(found.file())?,
        Format::Raw => None,
    };
    let from = bitmaps.as_deref().map_or(From::Raw, From::Image);
    let measured = measure::qcow2(
        source.size().0,
        measure::stored(&found.map(&limits(args.max_size))?, cluster),
        from,
        cluster,
    );
    let Some(chunks) = args.sample else {
        return Ok(MeasureJson { measured, compressed: None, encoder: None });
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    let sampling = Sampling { codec: args.codec, level: args.level, cluster, chunks, seed };
    let compressed = Some(estimate(&*source, &sampling, &session.cancel)?);
    Ok(MeasureJson { measured, compressed, encoder: Some(Encoder::describe(args.codec, args.level)) })
}

/// Returns the bitmaps of an image of version 3. None for other versions, which can't have bitmaps.
fn bitmaps_of(file: &dyn ImageFile) -> CommandResult<Option<Vec<Bitmap>>> {
    let image = Image::inspect(file)?;
    let listed = || bitmaps::list(file, image.header_info());
    Ok((image.header().version == Version::V3).then(listed).transpose()?)
}

fn write_for_people(output: &MeasureJson, to: &mut impl Write) -> io::Result<()> {
    output.measured.write_text(to)?;
    if let (Some(Estimate { size, at_least, at_most, sampled, chunks, seed }), Some(encoder)) =
        (output.compressed, &output.encoder)
    {
        writeln!(
            to,
            "compressed size: {} (about {size}; 95 of 100 times from {at_least} to {at_most})",
            size.0
        )?;
        writeln!(to, "  by {encoder}, from {sampled} of {chunks} chunks; --seed {seed} draws the same")?;
    }
    Ok(())
}
