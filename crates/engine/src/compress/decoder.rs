//! Decompression of bodies into clusters.

use std::fmt;

use snapferry_base::limits::OutOfMemory;
use snapferry_base::units::{ByteCount, ClusterBits, MIB, to_u64, to_usize};

use super::{Codec, check_heap};

/// Reason why a body does not decode to its cluster.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The body breaks the codec's own rules.
    #[error("the body is no {0} stream")]
    Garbage(Codec),
    /// The body decodes to less than a cluster.
    #[error("the body decodes to {len} bytes, the cluster has {cluster}")]
    Short {
        /// Bytes that the body decodes to.
        len: u64,
        /// Size of a cluster in bytes.
        cluster: u64,
    },
    /// The body decodes to more than a cluster.
    #[error("the body decodes to more than the cluster's {cluster} bytes")]
    Long {
        /// Size of a cluster in bytes.
        cluster: u64,
    },
}

enum Engine {
    Deflate(libdeflater::Decompressor),
    Zstd(::zstd::bulk::Decompressor<'static>),
}

/// Decompressor for bodies of clusters of one size, one body after the other.
pub struct Decoder {
    engine: Engine,
    cluster: ClusterBits,
}

impl Decoder {
    /// Most memory that one decoder takes: libdeflate's has 12 KiB, zstd's 160 KiB.
    const MEMORY: ByteCount = ByteCount(MIB);

    /// Allocates all memory that the decoder will ever need.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(codec: Codec, cluster: ClusterBits) -> Result<Self, OutOfMemory> {
        check_heap("a decoder", Self::MEMORY)?;
        let refused = |_| OutOfMemory::of("a decoder", Self::MEMORY.0);
        let engine = match codec {
            Codec::Deflate => Engine::Deflate(libdeflater::Decompressor::new()),
            Codec::Zstd => Engine::Zstd(::zstd::bulk::Decompressor::new().map_err(refused)?),
        };
        Ok(Self { engine, cluster })
    }

    /// Decodes a body into exactly one cluster. Bytes that follow the body in `body`, up to the end of its
    /// last sector, are ignored.
    ///
    /// # Errors
    /// If the body does not decode to exactly one cluster.
    ///
    /// # Panics
    /// If `into` is not exactly one cluster long.
    pub fn decode(&mut self, body: &[u8], into: &mut [u8]) -> Result<(), DecodeError> {
        let cluster = self.cluster.size();
        assert_eq!(into.len(), to_usize(cluster), "bodies are of whole clusters");
        let len = match &mut self.engine {
            Engine::Deflate(engine) => match engine.deflate_decompress(body, into) {
                Ok(len) => len,
                Err(libdeflater::DecompressionError::BadData) => {
                    return Err(DecodeError::Garbage(Codec::Deflate));
                }
                Err(libdeflater::DecompressionError::InsufficientSpace) => {
                    return Err(DecodeError::Long { cluster });
                }
            },
            Engine::Zstd(engine) => frames(engine, body, into)?,
        };
        if to_u64(len) == cluster { Ok(()) } else { Err(DecodeError::Short { len: to_u64(len), cluster }) }
    }
}

/// Largest window that libzstd's decoder, and so QEMU, accepts by default, as a power of two: 128 MiB
/// (`ZSTD_WINDOWLOG_LIMIT_DEFAULT` in zstd.h).
const MAX_WINDOW_LOG: u8 = 27;

/// Returns the window size that a frame asks for, as a power of two, or `None` if the window is the content
/// (RFC 8878, section 3.1.1.1).
fn window_log(frame: &[u8]) -> Option<u8> {
    const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
    const SINGLE_SEGMENT: u8 = 1 << 5;
    match frame.strip_prefix(&MAGIC)? {
        [descriptor, window, ..] if descriptor & SINGLE_SEGMENT == 0 => Some(10 + (window >> 3)),
        _ => None,
    }
}

/// Decodes the frames at the beginning of a body until the cluster is full, and returns the number of bytes
/// filled. As a rule there is one frame, but QEMU reads on if a frame ends early, and past frames that hold
/// nothing.
///
/// A frame is decoded straight into the cluster, so its window takes no memory. A window that QEMU would
/// refuse is refused all the same.
fn frames(
    engine: &mut ::zstd::bulk::Decompressor<'_>,
    body: &[u8],
    into: &mut [u8],
) -> Result<usize, DecodeError> {
    let garbage = DecodeError::Garbage(Codec::Zstd);
    let (mut from, mut filled) = (0, 0);
    while filled < into.len() {
        let rest = &body[from..];
        let frame = match ::zstd::zstd_safe::find_frame_compressed_size(rest) {
            Ok(len) => rest.get(..len).ok_or(garbage)?,
            // Only the rest of the last sector follows the last frame.
            Err(_) if from > 0 => break,
            Err(_) => return Err(garbage),
        };
        if window_log(frame).is_some_and(|log| log > MAX_WINDOW_LOG) {
            return Err(garbage);
        }
        filled += engine.decompress_to_buffer(frame, &mut into[filled..]).map_err(|_| garbage)?;
        from += frame.len();
    }
    Ok(filled)
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterBits = ClusterBits::KIB4;

    fn zstd(body: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut into = vec![0xee; to_usize(CLUSTER.size())];
        Decoder::new(Codec::Zstd, CLUSTER).expect("a decoder").decode(body, &mut into).map(|()| into)
    }

    fn frame(bytes: &[u8]) -> Vec<u8> {
        ::zstd::bulk::compress(bytes, 1).expect("compressed")
    }

    /// Returns a skippable frame with `len` bytes of content (RFC 8878, section 3.1.2).
    fn skippable(len: u32) -> Vec<u8> {
        [
            &0x184d_2a50_u32.to_le_bytes()[..],
            &len.to_le_bytes(),
            &vec![7; usize::try_from(len).expect("small")],
        ]
        .concat()
    }

    #[test]
    fn frames_are_read_until_the_cluster_is_full() {
        let cluster: Vec<u8> = (0..4096_u32).map(|i| u8::try_from(i / 16).expect("a byte")).collect();
        let (first, second) = cluster.split_at(1000);
        for body in [
            frame(&cluster),
            [frame(first), frame(second)].concat(),
            [skippable(9), frame(&[]), frame(first), skippable(0), frame(second)].concat(),
            [frame(&cluster), vec![0x55; 300]].concat(),
            [frame(&cluster), frame(&cluster)].concat(),
        ] {
            assert_eq!(zstd(&body).expect("as QEMU reads it"), cluster);
        }
    }

    /// Returns a frame of one raw block with a window of 2^`window_log` bytes (RFC 8878, sections 3.1.1.1 and
    /// 3.1.1.2).
    fn framed(window_log: u8, bytes: &[u8]) -> Vec<u8> {
        let block = u32::try_from(bytes.len()).expect("small") << 3 | 1;
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
        [&head[..], &block.to_le_bytes()[..3], bytes].concat()
    }

    #[test]
    fn a_window_as_large_as_qemu_takes_is_taken() {
        assert_eq!(zstd(&framed(27, &[9; 4096])).expect("no memory is needed for it"), vec![9; 4096]);
    }

    #[test]
    fn a_body_of_another_length_is_refused() {
        let cluster = vec![3; 4096];
        let short = DecodeError::Short { len: 4095, cluster: 4096 };
        for (body, error) in [
            (frame(&cluster[1..]), short),
            ([frame(&cluster[1..]), vec![0; 400]].concat(), short),
            ([skippable(4), frame(&[])].concat(), DecodeError::Short { len: 0, cluster: 4096 }),
            (frame(&[3; 4097]), DecodeError::Garbage(Codec::Zstd)),
            ([frame(&cluster[1..]), frame(&[3; 2])].concat(), DecodeError::Garbage(Codec::Zstd)),
            (vec![0; 512], DecodeError::Garbage(Codec::Zstd)),
            (framed(28, &cluster), DecodeError::Garbage(Codec::Zstd)),
            (skippable(5000)[..4000].to_vec(), DecodeError::Garbage(Codec::Zstd)),
        ] {
            assert_eq!(zstd(&body), Err(error), "{} bytes", body.len());
        }
    }
}
