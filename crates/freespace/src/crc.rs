//! Checksums as filesystems compute them: CRC-32C with a seed and without a final inversion, CRC-16 and the
//! CRC-32 of GPT.

use crc_fast::{CrcAlgorithm, Digest};

/// Extends the CRC-32C `seed` by `bytes`, as the kernel's `crc32c` does: neither the seed nor the result is
/// inverted.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(seed));
    digest.update(bytes);
    !low_half(digest.finalize())
}

/// Returns the CRC-32 of `bytes` as GPT, zlib and LVM's tools know it.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    low_half(crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, bytes))
}

/// True if a checksum is the one that is stored. For the fuzzer each is, since it would never guess one, and
/// would see nothing of what lies behind.
pub(crate) fn agrees(computed: u32, stored: u32) -> bool {
    computed == stored || cfg!(fuzzing)
}

fn low_half(sum: u64) -> u32 {
    u32::try_from(sum & 0xffff_ffff).unwrap_or_default()
}

/// Extends the CRC-16 `seed` by `bytes`: the polynomial 0x8005, reflected, which group descriptors have where
/// ext4 has no `metadata_csum`.
pub(crate) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of parametrised CRC algorithms, for the text "123456789".
    #[test]
    fn the_check_values_are_the_catalogues() {
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xe306_9283);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn a_sum_goes_on_from_its_seed() {
        let whole = crc32c(7, b"one and another, of more than one word each, to be long enough");
        assert_eq!(
            crc32c(crc32c(7, b"one and another, of "), b"more than one word each, to be long enough"),
            whole
        );
    }
}
