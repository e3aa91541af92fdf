//! Compares the speed of inflate implementations: decodes every deflate body of an image on one thread.
//!
//! `decoders_alone IMAGE` prints one JSON object for each decoder: `{"decoder", "seconds", "in", "out",
//! "mb_per_second"}`. The time is the best of three rounds, in which the decoders take turns. Megabytes are
//! those of the disk. Every decoder must return the same bytes.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, Instant};

use flate2::{Decompress, FlushDecompress, Status};
use snapferry_base::units::{HostOffset, to_u64, to_usize};
use snapferry_engine::image::LocalImage;
use snapferry_qcow2::{Codec, Image, ImageFile, Limits, Mappings, Stored};

/// Number of rounds over the image. The best one counts, because other load on the machine only makes a round
/// slower.
const ROUNDS: usize = 3;

/// Number of clusters decoded between two readings of the clock.
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: decoders_alone IMAGE")?;
    let file = LocalImage::open(path.as_ref())?;
    let image = Image::open(&file, &Limits::default())?;
    if image.header().compression != Codec::Deflate {
        return Err("the image's codec is not deflate".into());
    }
    let mappings = image.load(&file)?;
    let mut decoders = Inflate::all();
    let mut best: Vec<Option<Run>> = decoders.iter().map(|_| None).collect();
    for _ in 0..ROUNDS {
        for (decoder, best) in decoders.iter_mut().zip(&mut best) {
            let run = run(&file, &mappings, decoder)?;
            if best.as_ref().is_none_or(|best| run.spent < best.spent) {
                *best = Some(run);
            }
        }
    }
    let mut sums = Vec::new();
    for (decoder, best) in decoders.iter().zip(best) {
        let Some(Run { spent, taken, given, sum }) = best else { continue };
        let (name, seconds) = (decoder.name(), spent.as_secs_f64());
        let rate = Duration::from_micros(given).as_secs_f64() / seconds;
        println!(
            r#"{{"decoder":"{name}","seconds":{seconds:.3},"in":{taken},"out":{given},"mb_per_second":{rate:.0}}}"#
        );
        sums.push(sum);
    }
    if sums.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("the decoders give different bytes".into());
    }
    Ok(())
}

/// Result of one decoder for the whole image.
struct Run {
    spent: Duration,
    /// Number of bytes in bodies, each up to the end of its last sector.
    taken: u64,
    /// Number of bytes in decoded clusters.
    given: u64,
    sum: blake3::Hash,
}

fn run(file: &LocalImage, mappings: &Mappings, decoder: &mut Inflate) -> Result<Run, Box<dyn Error>> {
    let step = mappings.cluster().len();
    let bodies: Vec<(HostOffset, u64)> = mappings
        .iter()
        .filter_map(|(_, stored)| match stored {
            Stored::Compressed { at, len } => Some((at, len)),
            _ => None,
        })
        .collect();
    let mut run = Run { spent: Duration::ZERO, taken: 0, given: 0, sum: blake3::hash(&[]) };
    let mut hash = blake3::Hasher::new();
    let mut out = vec![0; step * BATCH];
    for batch in bodies.chunks(BATCH) {
        let mut read = Vec::with_capacity(BATCH);
        for &(at, len) in batch {
            let mut body = vec![0; to_usize(len)];
            file.read_at(at, &mut body)?;
            run.taken += len;
            read.push(body);
        }
        // Only the decoder is timed.
        let begun = Instant::now();
        for (body, cluster) in read.iter().zip(out.chunks_mut(step)) {
            decoder.decode(body, cluster)?;
        }
        run.spent += begun.elapsed();
        let full = &out[..step * batch.len()];
        hash.update(full);
        run.given += to_u64(full.len());
    }
    run.sum = hash.finalize();
    Ok(run)
}

enum Inflate {
    Libdeflate(libdeflater::Decompressor),
    ZlibRs(Decompress),
}

impl Inflate {
    fn all() -> Vec<Self> {
        vec![Self::Libdeflate(libdeflater::Decompressor::new()), Self::ZlibRs(Decompress::new(false))]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Libdeflate(_) => "libdeflate",
            Self::ZlibRs(_) => "zlib-rs",
        }
    }

    /// Decodes a body that must fill the cluster.
    fn decode(&mut self, body: &[u8], cluster: &mut [u8]) -> Result<(), Box<dyn Error>> {
        let len = match self {
            Self::Libdeflate(engine) => engine.deflate_decompress(body, cluster)?,
            Self::ZlibRs(engine) => {
                engine.reset(false);
                if engine.decompress(body, cluster, FlushDecompress::Finish)? != Status::StreamEnd {
                    return Err("the stream does not end".into());
                }
                to_usize(engine.total_out())
            }
        };
        if len == cluster.len() { Ok(()) } else { Err(format!("{len} bytes are not a cluster").into()) }
    }
}
