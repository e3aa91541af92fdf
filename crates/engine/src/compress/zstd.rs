//! Zstandard: one frame per cluster, with its content size and without a checksum, as QEMU writes it.

use snapferry_base::limits::{OutOfMemory, zeros};
use snapferry_base::units::{ByteCount, ClusterBits, KIB, MIB};
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

/// Largest cluster, in bytes, for which `balanced` has tables of its own: the bodies of larger ones would be
/// larger.
const SMALL_TABLES_UP_TO: u64 = 64 * KIB;

/// Returns the parameters that are not the level's own, from the measured table in `benches/README.md`.
///
/// `fast`: with matches from 5 bytes on instead of 6, the bodies are 1 % smaller, in nearly the same time.
/// `balanced`: zstd's own tables for a cluster of 64 KiB take 384 KiB. With 128 KiB each they stay in more of
/// the caches, and the bodies have the same size.
fn parameters(level: Level, cluster: ClusterBits) -> &'static [CParameter] {
    match level {
        Level::Fast => &[CParameter::MinMatch(5)],
        Level::Balanced if cluster.size() <= SMALL_TABLES_UP_TO => {
            &[CParameter::HashLog(15), CParameter::ChainLog(15)]
        }
        Level::Balanced | Level::Small | Level::Smallest => &[],
    }
}

pub(super) fn describe(level: Level) -> String {
    let own = match level {
        Level::Fast => " minMatch 5",
        Level::Balanced => " hashLog 15 chainLog 15 up to 64 KiB",
        Level::Small | Level::Smallest => "",
    };
    format!("zstd {} level {}{own}", zstd::zstd_safe::version_string(), lib_level(level))
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
        for &parameter in parameters(level, cluster) {
            compressor.set_parameter(parameter).expect("a value that zstd accepts");
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
    fn parameters_differ_from_those_of_the_level_where_that_was_measured() {
        // Words of 5 to 12 bytes among noise, so that the shortest match decides about the size.
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()
        };
        let mut bytes = Vec::new();
        while bytes.len() < ClusterBits::DEFAULT.len() {
            let [word, noise @ ..] = next();
            bytes.extend((0..5 + word % 8).map(|at| (word % 64).wrapping_mul(31).wrapping_add(at * at)));
            bytes.extend(noise);
        }
        bytes.truncate(ClusterBits::DEFAULT.len());
        let made = |level| {
            let mut own = Zstd::new(level, ClusterBits::DEFAULT).expect("an encoder");
            let mut plain = Compressor::new(lib_level(level)).expect("an encoder");
            let mut out = vec![0; bytes.len()];
            let len = own.encode(&bytes, &mut out).expect("a body");
            let plain_len = plain.context_mut().compress2(&mut out[..], &bytes).expect("a body");
            (len, own.compressor.context_mut().sizeof(), plain_len, plain.context_mut().sizeof())
        };
        let (len, _, plain_len, _) = made(Level::Fast);
        assert!(len < plain_len, "{len} bytes instead of {plain_len}");
        let (_, taken, _, plain_taken) = made(Level::Balanced);
        // The level's own table has 65,536 entries of 4 bytes, and this one half of that.
        assert!(taken + 128 * 1024 <= plain_taken, "{taken} bytes of memory instead of {plain_taken}");
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
