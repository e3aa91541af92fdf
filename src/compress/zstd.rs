//! Zstandard: one frame a cluster, with its content size and without a checksum, as QEMU writes it.

use zstd::bulk::Compressor;

use super::Level;

pub(super) struct Zstd {
    compressor: Compressor<'static>,
}

/// zstd's own levels, picked from the measured table in `benches/README.md`.
fn lib_level(level: Level) -> i32 {
    match level {
        Level::Fast => 1,
        Level::Balanced => 3,
        Level::Small => 9,
        Level::Smallest => 19,
    }
}

pub(super) fn describe(level: Level) -> String {
    format!("zstd {} level {}", zstd::zstd_safe::version_string(), lib_level(level))
}

impl Zstd {
    pub(super) fn new(level: Level) -> Self {
        // Defaults do what the format asks: content size on, checksum and dictionary off, and a window that never exceeds
        // the source, which is one cluster.
        let compressor = Compressor::new(lib_level(level)).expect("zstd allocates a context");
        Self { compressor }
    }

    pub(super) fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        // The one way to fail with a source and a level that are right is an output that does not fit.
        self.compressor.compress_to_buffer(cluster, out).ok()
    }
}
