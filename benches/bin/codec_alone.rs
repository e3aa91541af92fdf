//! Measures the CPU time of the codecs: compresses every cluster of a device or file on one thread.
//!
//! `codec_alone PATH [CODEC LEVEL]...` prints one JSON object for each codec and level: `{"codec", "level",
//! "cpu_seconds", "in", "out", ...}`. `in` is the number of bytes in clusters that are not zero. Zero
//! clusters are skipped, as in the product. `untried_clusters` were stored raw because they looked random;
//! `lost` is the number of bytes by which the level's engine would have made them smaller. The last object is
//! `{"hash", "cpu_seconds"}`: BLAKE3 over the same clusters, as the converter hashes them.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use snapferry_base::units::{ClusterBits, GuestOffset, MIB, to_u64, to_usize};
use snapferry_engine::compress::{Codec, Content, Encoder, Level, is_zero};
use snapferry_engine::source::aligned::AlignedBuf;
use snapferry_engine::source::{InUse, RawSource, Source};

/// Bytes that are read at a time.
const BATCH: u64 = 64 * MIB;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (path, rest) = args.split_first().ok_or("usage: codec_alone PATH [CODEC LEVEL]...")?;
    let mut chosen: Vec<(Codec, Level)> = Vec::new();
    for pair in rest.chunks(2) {
        let [codec, level] = pair else { return Err("give codecs and levels in pairs".into()) };
        chosen.push((codec.parse()?, level.parse()?));
    }
    if chosen.is_empty() {
        chosen = Codec::ALL
            .into_iter()
            .flat_map(|codec| Level::ALL.map(|level| (codec, level)))
            .filter(|(_, level)| *level != Level::Smallest)
            .collect();
    }
    for (codec, level) in chosen {
        run(Path::new(path), codec, level)?;
    }
    hash(Path::new(path))
}

fn hash(path: &Path) -> Result<(), Box<dyn Error>> {
    let source = RawSource::open(path, InUse::Read)?;
    let cluster = ClusterBits::DEFAULT;
    let mut buf = AlignedBuf::zeroed(to_usize(BATCH))?;
    let mut hasher = blake3::Hasher::new();
    let mut spent = Duration::ZERO;
    let mut at = 0;
    while at < source.size().0 {
        source.read_at(GuestOffset(at), &mut buf)?;
        for bytes in buf.chunks(cluster.len()).filter(|bytes| !is_zero(bytes)) {
            let begun = Instant::now();
            hasher.update(bytes);
            spent += begun.elapsed();
        }
        at += BATCH;
    }
    // Printed, so that the compiler can't leave the hash out.
    println!(r#"{{"hash":"{}","cpu_seconds":{:.3}}}"#, hasher.finalize(), spent.as_secs_f64());
    Ok(())
}

fn run(path: &Path, codec: Codec, level: Level) -> Result<(), Box<dyn Error>> {
    let source = RawSource::open(path, InUse::Read)?;
    let cluster = ClusterBits::DEFAULT;
    let mut encoder = Encoder::new(codec, level, cluster)?;
    let mut tries_all = Encoder::without_shortcut(codec, level, cluster)?;
    let mut buf = AlignedBuf::zeroed(to_usize(BATCH))?;
    let mut out = vec![0; cluster.len()];
    let (mut spent, mut taken, mut given, mut raw) = (Duration::ZERO, 0_u64, 0_u64, 0_u64);
    let (mut untried, mut lost) = (0_u64, 0_u64);
    let mut at = 0;
    while at < source.size().0 {
        source.read_at(GuestOffset(at), &mut buf)?;
        // Only the encoder is timed. One thread never waits, so its elapsed time is its CPU time, as long as
        // nothing else runs.
        for bytes in buf.chunks(cluster.len()) {
            if is_zero(bytes) {
                continue;
            }
            taken += cluster.size();
            let begun = Instant::now();
            let body = encoder.encode(bytes, &mut out);
            spent += begun.elapsed();
            given += body.map_or(cluster.size(), to_u64);
            raw += u64::from(body.is_none());
            if body.is_none() && level != Level::Smallest && Content::of(bytes, false) == Content::Random {
                untried += 1;
                lost += tries_all.encode(bytes, &mut out).map_or(0, |len| cluster.size() - to_u64(len));
            }
        }
        at += BATCH;
    }
    let seconds = spent.as_secs_f64();
    println!(
        r#"{{"codec":"{codec}","level":"{level}","cpu_seconds":{seconds:.3},"in":{taken},"out":{given},"raw_clusters":{raw},"untried_clusters":{untried},"lost":{lost}}}"#
    );
    Ok(())
}
