//! Compression and decompression: pure functions on one guest cluster at a time.
//!
//! An [`Encoder`] belongs to one thread and is reused for every cluster, without allocating. Its output
//! depends only on the cluster's bytes, the codec and the level, not on the CPU, the thread or earlier
//! clusters. Therefore images are reproducible (`tests/it/determinism.rs`).

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use snapferry_base::limits::{OutOfMemory, try_with_capacity};
use snapferry_base::units::{ByteCount, ClusterBits, MIB, to_usize};

mod content;
mod decoder;
mod deflate;
mod zero;
mod zstd;

pub use content::Content;
pub use decoder::{DecodeError, Decoder};
pub use snapferry_base::choice::UnknownNameError;
pub use snapferry_qcow2::Codec;
pub use zero::is_zero;

/// Effort for making bodies small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Fastest setting whose output is no larger than QEMU's.
    Fast,
    /// A little slower than `Fast`, a few percent smaller.
    Balanced,
    /// About as slow as QEMU on all cores, a tenth smaller.
    Small,
    /// Smallest output of the codec, at any cost in time.
    Smallest,
}

impl Level {
    /// All levels, from fast to small.
    pub const ALL: [Self; 4] = [Self::Fast, Self::Balanced, Self::Small, Self::Smallest];

    /// Returns the name that users type and that the program prints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Balanced => "balanced",
            Self::Small => "small",
            Self::Smallest => "smallest",
        }
    }
}

impl FromStr for Level {
    type Err = UnknownNameError;
    fn from_str(typed: &str) -> Result<Self, UnknownNameError> {
        let found = Self::ALL.into_iter().find(|level| level.name() == typed);
        found.ok_or_else(|| UnknownNameError {
            typed: typed.to_owned(),
            choices: "fast, balanced, small, smallest",
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the number of cores that this process may use.
#[must_use]
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Checks that the heap has `memory` for a library that would panic without it: allocates it and frees it
/// right away.
///
/// # Errors
/// If the system refuses the memory.
fn check_heap(purpose: &'static str, memory: ByteCount) -> Result<(), OutOfMemory> {
    try_with_capacity::<u8>(purpose, to_usize(memory.0)).map(drop)
}

/// Returns whether level `fast` of deflate is ISA-L's here: if it is built in, and if the CPU has SSE4.2.
fn has_isal() -> bool {
    #[cfg(feature = "isal")]
    let found = snapferry_isal::Deflate::is_supported();
    #[cfg(not(feature = "isal"))]
    let found = false;
    found
}

#[allow(clippy::large_enum_variant, reason = "there is one for each thread, and a box may be refused")]
enum Engine {
    #[cfg(feature = "isal")]
    Isal(snapferry_isal::Deflate),
    Deflate(deflate::Deflate),
    Zstd(zstd::Zstd),
}

impl Engine {
    fn new(codec: Codec, level: Level, cluster: ClusterBits) -> Result<Self, OutOfMemory> {
        Ok(match (codec, level) {
            #[cfg(feature = "isal")]
            (Codec::Deflate, Level::Fast) if has_isal() => {
                let engine = snapferry_isal::Deflate::new();
                Self::Isal(engine.map_err(|_| OutOfMemory::of("an encoder", MIB / 2))?)
            }
            (Codec::Deflate, _) => {
                Self::Deflate(deflate::Deflate::new(level, Self::memory(codec, level, cluster))?)
            }
            (Codec::Zstd, _) => Self::Zstd(zstd::Zstd::new(level, cluster)?),
        })
    }

    fn describe(codec: Codec, level: Level) -> String {
        match (codec, level) {
            #[cfg(feature = "isal")]
            (Codec::Deflate, Level::Fast) if has_isal() => snapferry_isal::DESCRIPTION.to_owned(),
            (Codec::Deflate, _) => deflate::describe(level),
            (Codec::Zstd, _) => zstd::describe(level),
        }
    }

    fn memory(codec: Codec, level: Level, cluster: ClusterBits) -> ByteCount {
        match codec {
            // ISA-L: 128 KiB of hash table and 256 KiB of tokens. libdeflate: under 1 MiB, and 9 MiB for its
            // near-optimal parser.
            Codec::Deflate if level == Level::Smallest => ByteCount(10 * MIB),
            Codec::Deflate => ByteCount(MIB),
            Codec::Zstd => zstd::memory(level, cluster),
        }
    }

    fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            #[cfg(feature = "isal")]
            Self::Isal(engine) => engine.deflate(cluster, out),
            Self::Deflate(engine) => engine.encode(cluster, out),
            Self::Zstd(engine) => engine.encode(cluster, out),
        }
    }
}

/// What an encoder does with clusters that hardly shrink.
#[allow(clippy::large_enum_variant, reason = "there is one for each thread, and a box may be refused")]
enum Shortcut {
    /// It tries every cluster.
    None,
    /// It does not try random clusters.
    Random,
    /// It does not try random clusters, and gives dense ones to this faster engine.
    Dense(Engine),
}

impl Shortcut {
    /// Returns the level whose engine takes a level's dense clusters, if it is another one that is worth it.
    fn dense_level(codec: Codec, level: Level) -> Option<Level> {
        let faster = match codec {
            // libdeflate's own fastest level takes as long for dense clusters as the others.
            Codec::Deflate => has_isal(),
            Codec::Zstd => true,
        };
        (faster && matches!(level, Level::Balanced | Level::Small)).then_some(Level::Fast)
    }
}

/// Compressor for clusters of one size, with one codec at one level, one cluster after the other.
pub struct Encoder {
    engine: Engine,
    shortcut: Shortcut,
    cluster: ClusterBits,
}

impl Encoder {
    /// Allocates all memory that the encoder will ever need.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(codec: Codec, level: Level, cluster: ClusterBits) -> Result<Self, OutOfMemory> {
        let engine = Engine::new(codec, level, cluster)?;
        let shortcut = match Shortcut::dense_level(codec, level) {
            _ if level == Level::Smallest => Shortcut::None,
            Some(faster) => Shortcut::Dense(Engine::new(codec, faster, cluster)?),
            None => Shortcut::Random,
        };
        Ok(Self { engine, shortcut, cluster })
    }

    /// Makes an encoder that runs its level's engine on every cluster, whatever it holds. Benchmarks compare
    /// [`Encoder::new`] with it.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn without_shortcut(codec: Codec, level: Level, cluster: ClusterBits) -> Result<Self, OutOfMemory> {
        Ok(Self { engine: Engine::new(codec, level, cluster)?, shortcut: Shortcut::None, cluster })
    }

    /// Returns the library and its level for the manifest, and what becomes of clusters that hardly shrink:
    /// the same description and options give the same bytes.
    #[must_use]
    pub fn describe(codec: Codec, level: Level) -> String {
        let mut description = Engine::describe(codec, level);
        if let Some(faster) = Shortcut::dense_level(codec, level) {
            description += &format!("; dense clusters {}", Engine::describe(codec, faster));
        }
        if level != Level::Smallest {
            description += "; random clusters raw";
        }
        description
    }

    /// Returns the most memory that one encoder takes.
    #[must_use]
    pub fn memory(codec: Codec, level: Level, cluster: ClusterBits) -> ByteCount {
        let dense =
            Shortcut::dense_level(codec, level).map_or(0, |faster| Engine::memory(codec, faster, cluster).0);
        ByteCount(Engine::memory(codec, level, cluster).0 + dense)
    }

    /// Compresses one whole cluster into the front of `out`. Returns the body's length, or `None` if the body
    /// would not be smaller than the cluster, or hardly; the caller then stores the cluster raw.
    ///
    /// # Panics
    /// If `cluster` is not exactly one cluster long, or `out` is shorter than that.
    pub fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        let len = self.cluster.len();
        assert_eq!(cluster.len(), len, "bodies are made of whole clusters");
        // A body of a full cluster's length or more is never worth it: QEMU stores such a cluster raw as
        // well.
        let out = &mut out[..len - 1];
        let content = match &self.shortcut {
            Shortcut::None => Content::Ordinary,
            Shortcut::Random => Content::of(cluster, false),
            Shortcut::Dense(_) => Content::of(cluster, true),
        };
        match (content, &mut self.shortcut) {
            (Content::Random, _) => None,
            (Content::Dense, Shortcut::Dense(faster)) => faster.encode(cluster, out),
            (Content::Dense | Content::Ordinary, _) => self.engine.encode(cluster, out),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text-like bytes: words drawn by a small generator, so that every codec finds matches near and far.
    fn text(len: usize) -> Vec<u8> {
        let words = ["volume ", "snapshot ", "region ", "the ", "image ", "of ", "cluster ", "bucket\n"];
        let mut state = 1_u32;
        let mut bytes = Vec::with_capacity(len + 16);
        while bytes.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.extend_from_slice(words[usize::from(state.to_be_bytes()[0] >> 5)].as_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .take(len)
        .collect()
    }

    fn decode(codec: Codec, body: &[u8], cluster: ClusterBits) -> Vec<u8> {
        let mut bytes = vec![0; cluster.len()];
        let len = match codec {
            Codec::Deflate => libdeflater::Decompressor::new()
                .deflate_decompress(body, &mut bytes)
                .expect("a deflate stream"),
            Codec::Zstd => {
                ::zstd::bulk::decompress_to_buffer(body, bytes.as_mut_slice()).expect("a zstd frame")
            }
        };
        assert_eq!(len, cluster.len());
        bytes
    }

    #[test]
    fn every_codec_level_and_cluster_size_comes_back_and_reuse_changes_nothing() {
        for bits in [12, 16, 21] {
            let cluster = ClusterBits::new(bits).expect("a cluster size");
            let mut out = vec![0; cluster.len()];
            for codec in Codec::ALL {
                for level in Level::ALL {
                    let mut encoder = Encoder::new(codec, level, cluster).expect("an encoder");
                    let mut bodies = Vec::new();
                    // Noise between the texts would show in the next body if the encoder kept state.
                    for bytes in [
                        text(cluster.len()),
                        noise(cluster.len()),
                        vec![0; cluster.len()],
                        text(cluster.len()),
                    ] {
                        let body = encoder.encode(&bytes, &mut out).map(|len| out[..len].to_vec());
                        if let Some(body) = &body {
                            assert!(body.len() < cluster.len());
                            assert_eq!(decode(codec, body, cluster), bytes, "{codec} {level} {cluster}");
                        }
                        bodies.push(body);
                    }
                    assert!(
                        bodies[0].as_ref().is_some_and(|body| body.len() < cluster.len() / 2),
                        "{codec} {level} {cluster}"
                    );
                    assert_eq!(bodies[1], None, "noise is stored raw: {codec} {level} {cluster}");
                    assert_eq!(bodies[0], bodies[3], "{codec} {level} {cluster}");
                }
            }
        }
    }

    #[test]
    fn every_description_names_library_version_and_level() {
        for codec in Codec::ALL {
            for level in Level::ALL {
                let description = Encoder::describe(codec, level);
                let engine = description.split("; ").next().expect("the level's own engine");
                let is_number =
                    |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
                // Our own encoder has no level, but a version for each change of its bytes.
                if let Some(own) = engine.strip_prefix("snapferry-isal ") {
                    assert!(own.split(' ').next().is_some_and(is_number), "{description}");
                    assert!(own.contains("(isa-l 2."), "{description}");
                    continue;
                }
                let mut words = engine.split(' ');
                assert!(matches!(words.next(), Some("libdeflate" | "zstd")), "{description}");
                let version = words.next().expect("a version");
                let parts: Vec<&str> = version.split('.').collect();
                assert!(parts.len() >= 2 && parts.iter().all(|part| is_number(part)), "{description}");
                assert_eq!(words.next(), Some("level"), "{description}");
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for codec in Codec::ALL {
            assert_eq!(codec.name().parse(), Ok(codec));
        }
        for level in Level::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert!("gzip".parse::<Codec>().is_err() && "Fast".parse::<Level>().is_err());
    }
}
