//! The two checksums of a copy: CRC64NVME over the stored bytes, BLAKE3 over the bytes that were read.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use serde::{Deserialize, Serialize};
use snapferry_base::units::{ByteCount, MIB, to_u64, to_usize};

/// CRC64NVME checksum: S3's full-object checksum, which can be combined from those of the parts, whatever
/// order they were computed in. Serialised as S3 writes it: the eight big-endian bytes in base64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Crc64(pub u64);

/// Error for text that is not a CRC64NVME in base64.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a CRC64NVME: eight bytes in base64")]
pub struct ParseCrcError(String);

impl Crc64 {
    /// Returns the checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes))
    }

    /// Returns the checksum of this checksum's bytes followed by `next_len` bytes whose checksum is `next`.
    #[must_use]
    pub fn then(self, next: Self, next_len: u64) -> Self {
        Self(multiply(self.0, power_of_byte(next_len)) ^ next.0)
    }

    /// Returns the checksum of `len` zeros. It takes time in proportion to `len`, which should be less than a
    /// cluster.
    #[must_use]
    pub fn of_zeros(len: u64) -> Self {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut running = RunningCrc64::default();
        let mut remaining = len;
        while remaining > 0 {
            let piece = remaining.min(to_u64(ZEROS.len()));
            running.update(&ZEROS[..to_usize(piece)]);
            remaining -= piece;
        }
        running.sum()
    }

    /// Returns the text that the `x-amz-checksum-crc64nvme` header carries.
    #[must_use]
    pub fn to_base64(self) -> String {
        BASE64.encode(self.0.to_be_bytes())
    }

    /// Parses the text that the `x-amz-checksum-crc64nvme` header carries.
    ///
    /// # Errors
    /// If the text is anything but eight bytes in base64.
    pub fn from_base64(text: &str) -> Result<Self, ParseCrcError> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        bytes.map(|bytes| Self(u64::from_be_bytes(bytes))).ok_or_else(|| ParseCrcError(text.to_owned()))
    }
}

/// Polynomial of CRC64NVME without its highest term, bits reflected: the highest bit is the term x^0
/// ("CRC-64/NVME" in the CRC RevEng catalogue: poly 0xad93d23594c93659).
const POLYNOMIAL: u64 = 0xad93_d235_94c9_3659_u64.reverse_bits();

/// The polynomial 1 in reflected form.
const ONE: u64 = 1 << 63;

/// Entry k is x^(8 * 2^k) modulo the polynomial: a factor that appends 2^k bytes of zeros.
static POWERS: [u64; 64] = {
    let mut powers = [0; 64];
    // x^8.
    let mut power = ONE >> 8;
    let mut k = 0;
    while k < 64 {
        powers[k] = power;
        power = multiply(power, power);
        k += 1;
    }
    powers
};

/// Multiplies two polynomials over GF(2), modulo the polynomial of the CRC.
const fn multiply(a: u64, b: u64) -> u64 {
    let (mut product, mut term, mut bit) = (0, b, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= term;
        }
        // Times x: a term that leaves the register comes back as the rest of the polynomial.
        term = (term >> 1) ^ if term & 1 == 1 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

/// Returns x^(8 * `bytes`) modulo the polynomial.
fn power_of_byte(bytes: u64) -> u64 {
    let set = (0_u32..).zip(&POWERS).filter(|(k, _)| bytes >> k & 1 == 1);
    set.fold(ONE, |product, (_, power)| multiply(product, *power))
}

/// CRC64NVME of bytes that come in pieces. For many small pieces it is cheaper than [`Crc64::then`].
#[derive(Clone, Debug)]
pub struct RunningCrc64(crc_fast::Digest);

impl Default for RunningCrc64 {
    fn default() -> Self {
        Self(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme))
    }
}

impl RunningCrc64 {
    /// Adds `bytes` to the checksum.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the checksum of all bytes so far.
    #[must_use]
    pub fn sum(&self) -> Crc64 {
        Crc64(self.0.finalize())
    }
}

impl fmt::Display for Crc64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl From<Crc64> for String {
    fn from(crc: Crc64) -> Self {
        crc.to_base64()
    }
}

impl TryFrom<String> for Crc64 {
    type Error = ParseCrcError;
    fn try_from(text: String) -> Result<Self, ParseCrcError> {
        Self::from_base64(&text)
    }
}

/// Size of a chunk: the guest bytes under one hash. Chunks lie end to end from the start of the disk; the
/// last one may be shorter.
pub const CHUNK: ByteCount = ByteCount(2 * MIB);

/// BLAKE3 hash of guest bytes.
pub type GuestHash = [u8; blake3::OUT_LEN];

/// Hashes of zeros, of which disks have many. The hash of a full chunk is computed once.
#[derive(Debug, Default)]
pub struct ZeroHashes {
    full: std::sync::OnceLock<GuestHash>,
}

impl ZeroHashes {
    /// Returns the hash of `len` zeros.
    #[must_use]
    pub fn of(&self, len: usize) -> GuestHash {
        let compute = |len: usize| {
            let mut hasher = blake3::Hasher::new();
            let zeros = [0; 4096];
            let mut remaining = len;
            while remaining > 0 {
                let piece = remaining.min(zeros.len());
                hasher.update(&zeros[..piece]);
                remaining -= piece;
            }
            *hasher.finalize().as_bytes()
        };
        if len == to_usize(CHUNK.0) { *self.full.get_or_init(|| compute(len)) } else { compute(len) }
    }
}

/// Returns the BLAKE3 over the segment's chunk hashes, in order.
#[must_use]
pub fn segment_hash(chunks: &[GuestHash]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for hash in chunks {
        hasher.update(hash);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_algorithm_and_its_header_form() {
        // "CRC-64/NVME" in the CRC RevEng catalogue: check 0xae8b14860a799888.
        let crc = Crc64::of(b"123456789");
        assert_eq!(crc.0, 0xae8b_1486_0a79_9888);
        assert_eq!(Crc64::from_base64(&crc.to_base64()).expect("our own form"), crc);
        assert!(Crc64::from_base64("AAAA").is_err());
    }

    #[test]
    fn sums_of_pieces_combine_to_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        for cut in [0, 1, 4096, 99_999, 100_000] {
            let (head, tail) = bytes.split_at(cut);
            let mut running = RunningCrc64::default();
            running.update(head);
            running.update(tail);
            assert_eq!(running.sum(), Crc64::of(&bytes), "cut at {cut}");
            assert_eq!(
                Crc64::of(head).then(Crc64::of(tail), to_u64(tail.len())),
                Crc64::of(&bytes),
                "cut at {cut}"
            );
        }
    }
    #[test]
    fn joined_sums_are_those_of_another_implementation() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state
        };
        for shift in 0..64 {
            let (one, other, len) = (next(), next(), next() >> shift);
            let expected = crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, one, other, len);
            assert_eq!(Crc64(one).then(Crc64(other), len), Crc64(expected), "{len} bytes");
        }
    }

    #[test]
    fn zeros_are_summed_by_their_number() {
        for len in [0, 1, 4095, 4096, 4097, 70_000] {
            assert_eq!(Crc64::of_zeros(to_u64(len)), Crc64::of(&vec![0; len]), "{len} zeros");
        }
    }
}
