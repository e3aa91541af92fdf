//! Bytes of one cluster, from its body in the file.

use std::ops::Range;

use snapferry_base::units::to_usize;
use snapferry_qcow2::Stored;
use snapferry_qcow2::mappings::SUBCLUSTERS;

use crate::compress::{DecodeError, Decoder};

/// Writes the bytes `part` of a cluster of `len` bytes into `into`, which has the length of `part`. `body` is
/// what the file holds from the cluster's place on; it may be shorter than a cluster that is stored as it is,
/// if the file ends where the disk does. `scratch` holds a cluster, and is used if a part of a compressed one
/// is wanted.
///
/// # Errors
/// If a compressed body does not decode.
pub(super) fn fill(
    stored: Stored,
    body: &[u8],
    (part, len): (Range<usize>, usize),
    decoder: &mut Decoder,
    scratch: &mut [u8],
    into: &mut [u8],
) -> Result<(), DecodeError> {
    match stored {
        Stored::Zero => into.fill(0),
        Stored::Raw(_) => copy(body, part, into),
        Stored::Subclusters(_, allocated) => {
            into.fill(0);
            let size = len / to_usize(u64::from(SUBCLUSTERS));
            for number in (0..SUBCLUSTERS).filter(|number| allocated >> number & 1 == 1) {
                let at = to_usize(u64::from(number)) * size;
                let both = part.start.max(at)..part.end.min(at + size);
                if !both.is_empty() {
                    let range = both.start - part.start..both.end - part.start;
                    copy(body, both, &mut into[range]);
                }
            }
        }
        Stored::Compressed { .. } if part == (0..len) => decoder.decode(body, into)?,
        Stored::Compressed { .. } => {
            decoder.decode(body, scratch)?;
            into.copy_from_slice(&scratch[part]);
        }
    }
    Ok(())
}

/// Copies `part` of a body, and fills with zeros what the file does not have.
fn copy(body: &[u8], part: Range<usize>, into: &mut [u8]) {
    let available = &body[part.start.min(body.len())..part.end.min(body.len())];
    let (stored, rest) = into.split_at_mut(available.len());
    stored.copy_from_slice(available);
    rest.fill(0);
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::{ClusterBits, HostOffset};

    use super::*;
    use crate::compress::Codec;

    #[test]
    fn every_part_of_every_kind_is_the_part_of_the_whole() {
        const LEN: usize = 4096;
        let mut decoder = Decoder::new(Codec::Deflate, ClusterBits::KIB4).expect("a decoder");
        let body: Vec<u8> = (0..LEN).map(|at| u8::try_from(at / 7 % 251).expect("small")).collect();
        let mut scratch = vec![0; LEN];
        // The file ends before the cluster does.
        let cut = &body[..3000];
        for (stored, body) in [
            (Stored::Zero, &body[..]),
            (Stored::Raw(HostOffset(0)), &body[..]),
            (Stored::Raw(HostOffset(0)), cut),
            (Stored::Subclusters(HostOffset(0), 0x8000_00F1), &body[..]),
            (Stored::Subclusters(HostOffset(0), 0xFF00_00F1), cut),
        ] {
            let mut whole = vec![1; LEN];
            fill(stored, body, (0..LEN, LEN), &mut decoder, &mut scratch, &mut whole).expect("filled");
            for part in [0..1, 0..512, 100..130, 127..129, 2990..3010, 4000..LEN] {
                let mut some = vec![1; part.len()];
                let filled = fill(stored, body, (part.clone(), LEN), &mut decoder, &mut scratch, &mut some);
                filled.expect("filled");
                assert_eq!(some, whole[part.clone()], "{stored:?} {part:?}");
            }
        }
    }
}
