//! Bodies back to clusters.

use std::fmt;

use super::Codec;
use crate::units::{ClusterBits, to_u64, to_usize};

/// Why a body is not a cluster.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// It breaks the codec's own rules.
    #[error("the body is no {0} stream")]
    Garbage(Codec),
    /// It ends early.
    #[error("the body decodes to {len} bytes, the cluster has {cluster}")]
    Short {
        /// Bytes that it decodes to.
        len: u64,
        /// A cluster.
        cluster: u64,
    },
    /// It goes on.
    #[error("the body decodes to more than the cluster's {cluster} bytes")]
    Long {
        /// A cluster.
        cluster: u64,
    },
}

enum Engine {
    Deflate(libdeflater::Decompressor),
    Zstd(::zstd::bulk::Decompressor<'static>),
}

/// Decodes bodies of clusters of one size, one after the other.
pub struct Decoder {
    engine: Engine,
    cluster: ClusterBits,
}

impl Decoder {
    /// Allocates all that the decoder will ever need.
    ///
    /// # Panics
    /// Where there is no memory for it.
    #[must_use]
    pub fn new(codec: Codec, cluster: ClusterBits) -> Self {
        let engine = match codec {
            Codec::Deflate => Engine::Deflate(libdeflater::Decompressor::new()),
            Codec::Zstd => Engine::Zstd(::zstd::bulk::Decompressor::new().expect("zstd allocates a context")),
        };
        Self { engine, cluster }
    }

    /// Decodes a body into exactly one cluster. What follows the body in `body`, up to the end of its last sector, is not looked at.
    ///
    /// # Errors
    /// Where it does not decode to exactly one cluster.
    ///
    /// # Panics
    /// If `into` is not exactly one cluster long.
    pub fn decode(&mut self, body: &[u8], into: &mut [u8]) -> Result<(), DecodeError> {
        let cluster = self.cluster.size();
        assert_eq!(into.len(), to_usize(cluster), "bodies are of whole clusters");
        let len = match &mut self.engine {
            Engine::Deflate(engine) => match engine.deflate_decompress(body, into) {
                Ok(len) => len,
                Err(libdeflater::DecompressionError::BadData) => return Err(DecodeError::Garbage(Codec::Deflate)),
                Err(libdeflater::DecompressionError::InsufficientSpace) => return Err(DecodeError::Long { cluster }),
            },
            Engine::Zstd(engine) => {
                let body = frame(body)?;
                engine.decompress_to_buffer(body, into).map_err(|_| DecodeError::Garbage(Codec::Zstd))?
            }
        };
        if to_u64(len) == cluster { Ok(()) } else { Err(DecodeError::Short { len: to_u64(len), cluster }) }
    }
}

/// The first frame of a body that is followed by other bytes.
fn frame(body: &[u8]) -> Result<&[u8], DecodeError> {
    let garbage = DecodeError::Garbage(Codec::Zstd);
    let len = ::zstd::zstd_safe::find_frame_compressed_size(body).map_err(|_| garbage)?;
    body.get(..len).ok_or(garbage)
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}
