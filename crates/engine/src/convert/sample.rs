//! Estimate of the size of a disk's compressed image, from a sample of the disk.
//!
//! The disk's data is cut into as many strata as there are chunks to sample. From each stratum one chunk is
//! drawn, read and really compressed. The stored size of a stratum is estimated as that of its chunk, times
//! the stratum's length in chunks. The differences between neighbouring strata give the variance ("successive
//! differences", Cochran, Sampling Techniques, section 8.11). The variance is not underestimated by this,
//! because neighbours on a disk are alike.

use std::num::NonZeroUsize;

use serde::Serialize;
use snapferry_base::cancel::Cancel;
use snapferry_base::limits::{OutOfMemory, zeros};
use snapferry_base::units::{ByteCount, ClusterBits, GuestOffset, SECTOR, to_u64, to_usize};
use snapferry_qcow2::Geometry;

use crate::compress::{Codec, Encoder, Level, is_zero};
use crate::convert::ConvertError;
use crate::hash::CHUNK;
use crate::pipeline::PipelineError;
use crate::source::aligned::AlignedBuf;
use crate::source::{Extent, Source};

/// Number of standard deviations around the mean that hold 95 % of a normal distribution.
const NORMAL_95: f64 = 1.96;

/// Settings of an estimate.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    pub codec: Codec,
    pub level: Level,
    /// Size of a qcow2 cluster.
    pub cluster: ClusterBits,
    /// Number of chunks of 2 MiB to read.
    pub chunks: NonZeroUsize,
    /// Seed of the draw: the same seed draws the same chunks.
    pub seed: u64,
}

/// Estimated size of the image file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Most likely size of the image.
    pub size: ByteCount,
    /// Lower bound: in 95 of 100 cases the size lies between `at_least` and `at_most`.
    pub at_least: ByteCount,
    /// Upper bound: in 95 of 100 cases the size lies between `at_least` and `at_most`.
    pub at_most: ByteCount,
    /// Number of chunks that were read.
    pub sampled: u64,
    /// Number of chunks that hold data, as far as the source reports holes.
    pub chunks: u64,
    /// Seed of the draw.
    pub seed: u64,
}

/// Reads and compresses a sample of `source`, on the calling thread.
///
/// # Errors
/// If the source can't be read, or no image can hold it; [`PipelineError::Interrupted`] if `cancel` stops the
/// work.
pub fn estimate(source: &dyn Source, sampling: &Sampling, cancel: &Cancel) -> Result<Estimate, ConvertError> {
    let geometry = Geometry::new(source.size(), sampling.cluster).map_err(ConvertError::Geometry)?;
    let chunks = data_chunks(source)?;
    let count = to_u64(chunks.len());
    let sampled = to_u64(sampling.chunks.get()).min(count);
    let mut draw = Draw(sampling.seed);
    let mut compressor = ChunkCompressor::new(sampling)?;
    // Length of each stratum in chunks, with the stored size of its chunk.
    let mut strata: Vec<(u64, Stored)> = Vec::with_capacity(to_usize(sampled));
    for number in 0..sampled {
        if cancel.is_cancelled() {
            return Err(ConvertError::Pipeline(PipelineError::Interrupted));
        }
        let (first, end) = (number * count / sampled, (number + 1) * count / sampled);
        let drawn = first + draw.below(end - first);
        strata.push((end - first, compressor.measure(source, chunks[to_usize(drawn)])?));
    }
    let total = |value: fn(&Stored) -> f64| {
        strata.iter().map(|(len, stored)| real(*len) * value(stored)).sum::<f64>()
    };
    let body_bytes = total(|stored| stored.bytes);
    let deviation = deviation(&strata, sampled, count);
    // Tables: 8 bytes of an L2 table for each cluster near one that is stored, 2 of a refcount block for each
    // host cluster.
    let head = real(geometry.head_len());
    let cluster = real(sampling.cluster.size());
    let tables = (total(|stored| stored.clusters) * 8.0 / cluster).ceil().max(if body_bytes > 0.0 {
        1.0
    } else {
        0.0
    }) * cluster;
    let counts = ((head + body_bytes + tables) / cluster * 2.0 / cluster).ceil() * cluster;
    let around =
        |body_bytes: f64| whole(head + body_bytes.max(0.0) + tables + counts).min(geometry.upper_bound());
    Ok(Estimate {
        size: around(body_bytes),
        at_least: around(body_bytes - NORMAL_95 * deviation),
        at_most: around(body_bytes + NORMAL_95 * deviation),
        sampled,
        chunks: count,
        seed: sampling.seed,
    })
}

/// Returns the standard deviation of the sum over all chunks.
fn deviation(strata: &[(u64, Stored)], sampled: u64, count: u64) -> f64 {
    if sampled < 2 {
        // One chunk gives no information about the others.
        return if count > sampled { real(count) * real(CHUNK.0) / NORMAL_95 } else { 0.0 };
    }
    let differences: f64 = strata.windows(2).map(|pair| (pair[1].1.bytes - pair[0].1.bytes).powi(2)).sum();
    let variance = differences / (2.0 * real(sampled - 1));
    // The chunks that were read are known: "finite population correction".
    let unread = 1.0 - real(sampled) / real(count);
    real(count) * (variance * unread / real(sampled)).sqrt()
}

/// Returns the offsets of the chunks that hold data.
fn data_chunks(source: &dyn Source) -> Result<Vec<GuestOffset>, ConvertError> {
    let size = source.size().0;
    let (mut at, mut found) = (0, Vec::new());
    while at < size {
        match source.extent_at(GuestOffset(at)).map_err(ConvertError::Source)? {
            Extent::Hole { end } => at = end.0,
            Extent::Data { end } => {
                let first = at / CHUNK.0;
                let end_chunk = end.0.div_ceil(CHUNK.0);
                found.extend((first..end_chunk).map(|number| GuestOffset(number * CHUNK.0)));
                // The next extent may begin within the chunk that this one ended in.
                at = end_chunk * CHUNK.0;
            }
        }
    }
    found.dedup();
    Ok(found)
}

/// Stored bytes and clusters of a chunk.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    bytes: f64,
    clusters: f64,
}

/// Compresses one chunk after the other.
struct ChunkCompressor {
    encoder: Encoder,
    cluster: ClusterBits,
    buf: AlignedBuf,
    out: Vec<u8>,
}

impl ChunkCompressor {
    fn new(sampling: &Sampling) -> Result<Self, OutOfMemory> {
        let Sampling { codec, level, cluster, .. } = *sampling;
        Ok(Self {
            encoder: Encoder::new(codec, level, cluster)?,
            cluster,
            buf: AlignedBuf::zeroed(to_usize(CHUNK.0))?,
            out: zeros("a cluster", cluster.size())?,
        })
    }

    fn measure(&mut self, source: &dyn Source, at: GuestOffset) -> Result<Stored, ConvertError> {
        let len = CHUNK.0.min(source.size().0 - at.0);
        let step = source.alignment().max(to_usize(SECTOR));
        let read = to_usize(len).next_multiple_of(step);
        source.read_at(at, &mut self.buf[..read]).map_err(ConvertError::Source)?;
        self.buf[to_usize(len)..].fill(0);
        let mut stored = Stored::default();
        for bytes in self.buf[..to_usize(self.cluster.round_up(len))].chunks(self.cluster.len()) {
            if is_zero(bytes) {
                continue;
            }
            let body = self.encoder.encode(bytes, &mut self.out).unwrap_or(self.cluster.len());
            stored.bytes += real(to_u64(body));
            stored.clusters += 1.0;
        }
        Ok(stored)
    }
}

/// Pseudo-random numbers from SplitMix64 (Steele, Lea, Flood 2014). The draw needs no secrecy, but must be
/// the same on every machine.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        u64::try_from((u128::from(mixed) * u128::from(bound)) >> 64).expect("less than the bound")
    }
}

/// Converts to a float. Exact below 2^53, which no image reaches.
#[expect(
    clippy::cast_precision_loss,
    clippy::as_conversions,
    reason = "there is no other way from an integer to a float"
)]
fn real(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::as_conversions,
    reason = "not negative, and far below 2^63"
)]
fn whole(bytes: f64) -> ByteCount {
    ByteCount(bytes.round() as u64)
}

#[cfg(test)]
mod tests {
    use snapferry_base::cancel::Reason;

    use super::*;
    use crate::source::{InUse, RawSource};

    #[test]
    fn a_sample_ends_when_somebody_asks() {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(disk.path(), vec![1; 4 << 20]).expect("written");
        let source = RawSource::open(disk.path(), InUse::Refuse).expect("a disk");
        let chunks = NonZeroUsize::new(2).expect("not zero");
        let sampling = Sampling {
            codec: Codec::Deflate,
            level: Level::Fast,
            cluster: ClusterBits::DEFAULT,
            chunks,
            seed: 1,
        };
        let cancel = Cancel::new();
        assert_eq!(estimate(&source, &sampling, &cancel).expect("an estimate").sampled, 2);
        cancel.cancel(Reason::Requested);
        let refused = estimate(&source, &sampling, &cancel).expect_err("stopped");
        assert!(matches!(refused, ConvertError::Pipeline(PipelineError::Interrupted)), "{refused}");
    }
}
