//! Test for zeros, at memory speed.

/// Returns true if every byte is zero.
///
/// Reads in wide strides that the compiler turns into vector code, and stops after the first stride with a
/// set bit. Most clusters with data have one near their start, so only zero clusters cost a full pass.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // 1 KiB per stride: long enough to vectorise, short enough to leave early.
    const STRIDE: usize = 1024;
    // LLVM turns lanes of u64 into the widest registers of the target, without code for that target.
    let mut strides = bytes.chunks_exact(STRIDE);
    strides.by_ref().all(|stride| {
        let (words, rest) = stride.as_chunks::<8>();
        debug_assert!(rest.is_empty(), "a stride is a whole number of words");
        words.iter().fold(0_u64, |seen, word| seen | u64::from_ne_bytes(*word)) == 0
    }) && strides.remainder().iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_seen() {
        for len in [0, 1, 7, 512, 1023, 1024, 1025, 4096, 65_536, 70_001] {
            let mut bytes = vec![0_u8; len];
            assert!(is_zero(&bytes), "{len} zeros");
            for at in [0, 1, 1023, 1024, len / 2, len.wrapping_sub(1)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 0x80;
                    assert!(!is_zero(&bytes), "{len} bytes, one set at {at}");
                    bytes[at] = 0;
                }
            }
        }
    }
}
