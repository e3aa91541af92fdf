//! Deflate by libdeflate: for every level but `fast`, and for `fast` as well if ISA-L is not built in or the
//! CPU lacks SSE4.2.

use libdeflater::{CompressionLvl, Compressor};
use snapferry_base::limits::OutOfMemory;
use snapferry_base::units::ByteCount;

use super::{Level, check_heap};

pub(super) struct Deflate {
    compressor: Compressor,
}

/// Returns libdeflate's own level, picked from the measured table in `benches/README.md`: 1 and 6 lie on the
/// front of speed against size, 12 is its end. Level 1 is the lowest that finds matches at all.
fn lib_level(level: Level) -> i32 {
    match level {
        Level::Fast | Level::Balanced => 1,
        Level::Small => 6,
        Level::Smallest => 12,
    }
}

/// Version of libdeflate that is built in, by its own header (`build.rs`).
const VERSION: &str = env!("SNAPFERRY_LIBDEFLATE_VERSION");

pub(super) fn describe(level: Level) -> String {
    format!("libdeflate {VERSION} level {}, 32 KiB window", lib_level(level))
}

impl Deflate {
    /// Allocates the compressor, which takes at most `memory`.
    pub(super) fn new(level: Level, memory: ByteCount) -> Result<Self, OutOfMemory> {
        let level = CompressionLvl::new(lib_level(level)).expect("libdeflate has levels 0 to 12");
        check_heap("an encoder", memory)?;
        Ok(Self { compressor: Compressor::new(level) })
    }

    pub(super) fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        self.compressor.deflate_compress(cluster, out).ok()
    }
}
