//! What a cluster holds, told from a sample of its bytes before an encoder runs on it.
//!
//! Archives, pictures and encrypted files hardly shrink, and an encoder takes as long to find that out as to
//! compress text, or longer. Their bytes show it: each of the 256 values comes about equally often. So the
//! sample counts the values in each window of a cluster, and compares them with equal counts by the
//! chi-square statistic, which has a mean of 255 and a standard deviation of 23 over random bytes.
//!
//! All of it is arithmetic on integers in one fixed order. So the answer depends only on the bytes.

use memchr::memchr_iter;

/// What the bytes of a cluster promise an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that no deflate or zstd encoder makes smaller by more than a few tenths of a percent.
    Random,
    /// Bytes that shrink by some percent, whichever encoder runs: compressed before, but not well.
    Dense,
    /// Bytes that are worth the effort of the level.
    Ordinary,
}

/// Bytes of a cluster that are judged together. A window of other content in random bytes shows by itself,
/// where over the whole cluster it would be lost among them.
const WINDOW: usize = 4096;

/// Bytes that are taken from each place of the sample: one line of the cache.
const LINE: usize = 64;

/// Largest chi-square of a window that counts as random: four standard deviations over the mean.
const RANDOM: u32 = 350;

/// Thousandths of a byte's chi-square that a whole sample of random bytes may have over its mean. A cluster
/// whose values come this unequally can shrink by a thousandth, if only its values count.
const RANDOM_PER_THOUSAND: u32 = 11;

/// Largest chi-square of a window that counts as dense, in addition to its mean and as a multiple of its
/// bytes: bytes as unequal as that shrink by 4 % if only their values count, and by 5 to 7 % on the disks of
/// `benches/README.md`.
const DENSE_NUMERATOR: u32 = 1;
const DENSE_DENOMINATOR: u32 = 2;

/// A dense cluster may have one ordinary window for this many of its windows: the end of a file, or a table
/// of contents.
const WINDOWS_PER_ORDINARY_ONE: usize = 4;

/// Byte values that are counted.
const VALUES: usize = 256;

impl Content {
    /// Judges a cluster. With `dense_matters` false, tells random clusters from others alone, and stops at
    /// the first window that is not random.
    #[must_use]
    pub fn of(cluster: &[u8], dense_matters: bool) -> Self {
        let windows = cluster.len().div_ceil(WINDOW);
        let mut spare = if dense_matters { windows / WINDOWS_PER_ORDINARY_ONE } else { 0 };
        let mut random = true;
        let mut total = Counts { of: [0; VALUES], bytes: 0 };
        for window in cluster.chunks(WINDOW) {
            let counts = Counts::of(window, stride(cluster.len()));
            if counts.excess() > RANDOM - MEAN {
                random = false;
                if !dense_matters {
                    return Self::Ordinary;
                }
                let limit = counts.bytes * DENSE_NUMERATOR / DENSE_DENOMINATOR;
                if counts.excess() > limit {
                    match spare.checked_sub(1) {
                        Some(rest) => spare = rest,
                        None => return Self::Ordinary,
                    }
                }
            }
            total.add(&counts);
        }
        let allowed = (RANDOM - MEAN).max(total.bytes / 1000 * RANDOM_PER_THOUSAND);
        if random && total.excess() <= allowed && !repeats(cluster) {
            return Self::Random;
        }
        if dense_matters { Self::Dense } else { Self::Ordinary }
    }
}

/// Mean of the chi-square statistic over random bytes: its degrees of freedom.
const MEAN: u32 = 255;

/// Returns the distance between two lines of the sample, in lines. Small clusters have to be sampled densely,
/// or chance alone would decide.
const fn stride(cluster_len: usize) -> usize {
    match cluster_len {
        0..4096 => 1,
        4096..16384 => 2,
        _ => 8,
    }
}

/// How often each byte value comes in a sample.
struct Counts {
    of: [u32; VALUES],
    /// Bytes in the sample: at most an eighth of the largest cluster, 2 MiB.
    bytes: u32,
}

impl Counts {
    fn of(window: &[u8], stride: usize) -> Self {
        // Two tables, taken in turn: an increment waits for the one before it if both are of the same value.
        let mut tables = [[0_u16; VALUES]; 2];
        let mut bytes = 0;
        for line in window.as_chunks::<LINE>().0.iter().step_by(stride) {
            for &word in line.as_chunks::<8>().0 {
                for (place, value) in word.into_iter().enumerate() {
                    tables[place % 2][usize::from(value)] += 1;
                }
            }
            bytes += 64;
        }
        let [even, odd] = tables;
        let mut of = [0; VALUES];
        for ((sum, even), odd) in of.iter_mut().zip(even).zip(odd) {
            *sum = u32::from(even) + u32::from(odd);
        }
        Self { of, bytes }
    }

    fn add(&mut self, other: &Self) {
        for (sum, count) in self.of.iter_mut().zip(&other.of) {
            *sum += count;
        }
        self.bytes += other.bytes;
    }

    /// Returns what the chi-square of these counts has over its mean, rounded down, or 0 if it is below:
    /// `256 / n * sum(count^2) - n - 255`.
    fn excess(&self) -> u32 {
        let squares: u64 = self.of.iter().map(|&count| u64::from(count) * u64::from(count)).sum();
        let scaled = (squares * 256).checked_div(u64::from(self.bytes)).unwrap_or(0);
        let excess = scaled.saturating_sub(u64::from(self.bytes) + u64::from(MEAN));
        u32::try_from(excess).unwrap_or(u32::MAX)
    }
}

/// Looks for a group of eight bytes that comes twice. Random bytes have none; two copies of a random file
/// do, and deflate and zstd store the second as a reference.
///
/// One value begins every group that is compared. So both copies give the same groups, wherever they lie,
/// one in 256 bytes.
fn repeats(cluster: &[u8]) -> bool {
    /// Any value would do.
    const FIRST: u8 = 0x5a;
    /// 2^64 divided by the golden ratio: it spreads what differs over the product's high bits.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    const SLOT_BITS: u32 = 9;
    // A group's first byte is never zero, so an empty slot equals none.
    let mut last_seen = [0_u64; 1 << SLOT_BITS];
    for at in memchr_iter(FIRST, cluster) {
        let Some(group) = cluster[at..].first_chunk() else { break };
        let group = u64::from_le_bytes(*group);
        let slot = &mut last_seen
            [snapferry_base::units::to_usize(group.wrapping_mul(SPREAD) >> (u64::BITS - SLOT_BITS))];
        if *slot == group {
            return true;
        }
        *slot = group;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 7] = [512, 1024, 4096, 16 << 10, 64 << 10, 256 << 10, 2 << 20];

    /// Random bytes of a small generator, xorshift64*.
    fn random(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()
        });
        words.flatten().take(len).collect()
    }

    /// Bytes of which one in `one_in` is a zero, the others random.
    fn skewed(len: usize, one_in: usize, seed: u64) -> Vec<u8> {
        let mut bytes = random(len, seed);
        let chosen = random(len * 2, seed + 1);
        for (byte, choice) in bytes.iter_mut().zip(chosen.as_chunks::<2>().0) {
            if usize::from(u16::from_le_bytes(*choice)) % one_in == 0 {
                *byte = 0;
            }
        }
        bytes
    }

    #[test]
    fn nearly_all_random_clusters_of_every_size_are_random() {
        for size in SIZES {
            let clusters = (64 << 20 >> 3) / size.max(64 << 10);
            let found = (0..clusters)
                .filter(|&seed| Content::of(&random(size, seed as u64), false) == Content::Random)
                .count();
            assert!(found * 100 >= clusters * 97, "{found} of {clusters} clusters of {size} bytes");
        }
    }

    #[test]
    fn both_questions_agree_on_what_is_random() {
        for size in SIZES {
            for seed in 0..20 {
                for bytes in [random(size, seed), skewed(size, 40, seed), skewed(size, 200, seed)] {
                    let (alone, with_dense) = (Content::of(&bytes, false), Content::of(&bytes, true));
                    assert_eq!(alone == Content::Random, with_dense == Content::Random, "{size} {seed}");
                    assert_ne!(alone, Content::Dense);
                }
            }
        }
    }

    #[test]
    fn a_window_of_something_else_is_not_lost_among_random_bytes() {
        let text = b"Each of the 256 values comes about equally often. ".repeat(100);
        for size in [16 << 10, 64 << 10, 2 << 20] {
            for (other, len) in [(vec![0; 2048], 2048), (text.clone(), 2048)] {
                for at in [0, 5000, size / 2, size - len] {
                    let mut bytes = random(size, 7);
                    bytes[at..at + len].copy_from_slice(&other[..len]);
                    assert_eq!(Content::of(&bytes, false), Content::Ordinary, "{len} at {at} of {size}");
                    assert_eq!(Content::of(&bytes, true), Content::Dense, "{len} at {at} of {size}");
                }
            }
        }
    }

    #[test]
    fn copies_of_random_bytes_are_found_wherever_they_lie() {
        for distance in [4096, 5001, 20_003] {
            let mut bytes = random(64 << 10, 3);
            bytes.copy_within(100..4196, 100 + distance);
            assert_ne!(Content::of(&bytes, true), Content::Random, "{distance}");
        }
    }

    #[test]
    fn what_shrinks_by_some_percent_is_dense_and_more_is_ordinary() {
        let size = 64 << 10;
        for seed in 0..20 {
            assert_eq!(Content::of(&skewed(size, 50, seed), true), Content::Dense, "{seed}");
            assert_eq!(Content::of(&skewed(size, 5, seed), true), Content::Ordinary, "{seed}");
        }
        let text = b"volume snapshot region the image of cluster bucket\n".repeat(2000);
        assert_eq!(Content::of(&text[..size], true), Content::Ordinary);
        assert_eq!(Content::of(&vec![0; size], true), Content::Ordinary);
    }

    #[test]
    fn the_statistic_is_the_textbooks() {
        // Every value twice: as equal as can be.
        let equal = Counts { of: [2; VALUES], bytes: 512 };
        assert_eq!(equal.excess(), 0);
        // One value alone, 512 times: 256 / 512 * 512^2 - 512 - 255.
        let mut one = Counts { of: [0; VALUES], bytes: 512 };
        one.of[7] = 512;
        assert_eq!(one.excess(), 256 * 512 - 512 - 255);
        let counted = Counts::of(&[7; WINDOW], 8);
        assert_eq!((counted.of[7], counted.bytes), (512, 512));
    }
}
