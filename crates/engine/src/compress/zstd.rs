//! Zstandard: one frame per cluster, with its content size and without a checksum, as QEMU writes it.

use snapferry_base::limits::{OutOfMemory, zeros};
use snapferry_base::units::{ByteCount, ClusterBits, MIB};
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, SafeResult, get_error_name};

use super::{Level, check_heap};

pub(super) struct Zstd {
    compressor: Compressor<'static>,
}

/// Returns zstd's own level, picked from the measured table in `benches/README.md`.
fn lib_level(level: Level) -> i32 {
    match level {
        Level::Fast => 1,
        Level::Balanced => 3,
        Level::Small => 9,
        Level::Smallest => 19,
    }
}

/// Returns log2 of the number of entries in the match finder's hash table, if it is not the level's own.
/// Level 1 takes 13 for clusters of 64 KiB; with 14 the bodies of a boot disk are 0.5 % smaller, in the same
/// time.
fn hash_log(level: Level) -> Option<u32> {
    (level == Level::Fast).then_some(14)
}

pub(super) fn describe(level: Level) -> String {
    let tables = hash_log(level).map_or_else(String::new, |log| format!(" hashLog {log}"));
    format!("zstd {} level {}{tables}", zstd::zstd_safe::version_string(), lib_level(level))
}

/// Returns the most memory that an encoder takes. zstd's tables follow its level and the size of the source,
/// which is a cluster. The tests compare this figure with zstd's own.
pub(super) fn memory(level: Level, cluster: ClusterBits) -> ByteCount {
    let tables = match level {
        Level::Fast | Level::Balanced => 3,
        Level::Small => 8,
        Level::Smallest => 24,
    };
    ByteCount(MIB + tables * cluster.size())
}

impl Zstd {
    pub(super) fn new(level: Level, cluster: ClusterBits) -> Result<Self, OutOfMemory> {
        let peak = memory(level, cluster);
        check_heap("an encoder", peak)?;
        // The defaults do what the format asks: content size on, checksum and dictionary off, and a window
        // that never exceeds the source, which is one cluster.
        let mut compressor =
            Compressor::new(lib_level(level)).map_err(|_| OutOfMemory::of("an encoder", peak.0))?;
        if let Some(log) = hash_log(level) {
            compressor.set_parameter(CParameter::HashLog(log)).expect("a table of a size that zstd knows");
        }
        // zstd allocates its tables at the first compression. This one comes now, while a refusal is only an
        // error.
        let zeros = zeros::<u8>("an encoder", cluster.size())?;
        match compressor.context_mut().compress2(&mut [0; 256][..], &zeros) {
            Err(NO_MEMORY) => Err(OutOfMemory::of("an encoder", peak.0)),
            Ok(_) | Err(_) => Ok(Self { compressor }),
        }
    }

    pub(super) fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        fitting(self.compressor.context_mut().compress2(out, cluster))
    }
}

/// zstd's `ZSTD_error_dstSize_tooSmall`, as its functions return it: errors are sizes counted down from zero.
const NO_ROOM: usize = 0_usize.wrapping_sub(70);

/// zstd's `ZSTD_error_memory_allocation`, as its functions return it.
const NO_MEMORY: usize = 0_usize.wrapping_sub(64);

/// Returns the body's length, or `None` if it is no smaller than the cluster. Any other error is a bug and
/// panics: otherwise every cluster would be stored as it is, and no user would notice.
fn fitting(outcome: SafeResult) -> Option<usize> {
    match outcome {
        Ok(len) => Some(len),
        Err(NO_ROOM) => None,
        Err(code) => panic!("zstd can't compress: {}", get_error_name(code)),
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::to_u64;

    use super::*;

    #[test]
    fn contexts_stay_within_their_account() {
        for bits in [12, 16, 21] {
            let cluster = ClusterBits::new(bits).expect("a cluster size");
            let bytes: Vec<u8> = (0..cluster.len()).map(|i| (i * i).to_le_bytes()[1]).collect();
            let mut out = vec![0; cluster.len()];
            for level in Level::ALL {
                let mut encoder = Zstd::new(level, cluster).expect("an encoder");
                encoder.encode(&bytes, &mut out);
                let taken = to_u64(encoder.compressor.context_mut().sizeof());
                assert!(taken <= memory(level, cluster).0, "{level} {cluster}: {taken} bytes");
            }
        }
    }

    #[test]
    fn a_body_that_does_not_fit_is_no_body() {
        assert_eq!(
            Zstd::new(Level::Fast, ClusterBits::DEFAULT).expect("an encoder").encode(b"four", &mut [0; 4]),
            None
        );
        assert_eq!(fitting(Ok(7)), Some(7));
    }

    #[test]
    #[should_panic(expected = "zstd can't compress: Parameter is out of bound")]
    fn any_other_failure_is_a_bug() {
        // ZSTD_error_parameter_outOfBound.
        fitting(Err(0_usize.wrapping_sub(42)));
    }
}
