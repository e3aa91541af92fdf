//! Integers in metadata. A field that lies outside of its bytes reads as zero, so that no damaged length can
//! stop the program.

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(take(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(take(bytes, at))
}

/// Joins the low and the high half of a number, as ext4 stores block numbers.
pub(crate) fn halves(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Returns the UUID in `bytes` at `at`, as tools print it.
pub(crate) fn uuid(bytes: &[u8], at: usize) -> String {
    let id: [u8; 16] = take(bytes, at);
    let mut text = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_outside_of_its_bytes_is_zero() {
        assert_eq!(le16(&[1, 2, 3], 1), 0x0302);
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(be64(&[0xff; 8], 1), 0);
        assert_eq!(le32(&[0xff; 8], usize::MAX), 0);
        assert_eq!(halves(1, 2), 0x2_0000_0001);
        assert_eq!(uuid(&[0x1a; 16], 0), "1a1a1a1a-1a1a-1a1a-1a1a-1a1a1a1a1a1a");
    }
}
