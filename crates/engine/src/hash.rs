//! The two checksums of a copy: CRC64NVME over the stored bytes, BLAKE3 over the bytes that were read.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use serde::{Deserialize, Serialize};
use snapferry_base::units::{ByteCount, MIB};

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
        Self(crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, self.0, next.0, next_len))
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

/// CRC64NVME of bytes that come in pieces. For many small pieces it is cheaper than [`Crc64::then`], which
/// multiplies matrices.
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
        if len == snapferry_base::units::to_usize(CHUNK.0) {
            *self.full.get_or_init(|| compute(len))
        } else {
            compute(len)
        }
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
                Crc64::of(head).then(Crc64::of(tail), snapferry_base::units::to_u64(tail.len())),
                Crc64::of(&bytes),
                "cut at {cut}"
            );
        }
    }
}
