//! Checksums over the stored file, computed while its bytes pass.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use snapferry_base::units::to_u64;

use super::read::Slot;
use crate::hash::{Crc64, RunningCrc64};

/// Checksums to compute. Each of them needs all bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestedSums {
    #[default]
    None,
    Crc64,
    Both,
}

/// SHA-256 sum. Reads and prints as image libraries publish it: 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256Sum(pub [u8; 32]);

/// Error for text that is not a SHA-256 in hex.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{typed:?} is not a SHA-256: give its 64 hex digits")]
pub struct ParseSha256Error {
    typed: String,
}

impl FromStr for Sha256Sum {
    type Err = ParseSha256Error;

    fn from_str(typed: &str) -> Result<Self, Self::Err> {
        let err = || ParseSha256Error { typed: typed.to_owned() };
        let digits = typed.trim().as_bytes();
        if digits.len() != 64 {
            return Err(err());
        }
        let mut sum = [0; 32];
        for (byte, pair) in sum.iter_mut().zip(digits.as_chunks::<2>().0) {
            let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *byte = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(err)?;
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256Sum({self})")
    }
}

impl Serialize for Sha256Sum {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Checksums over the whole file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// CRC64NVME, if it was requested.
    pub crc64: Option<Crc64>,
    /// SHA-256, if it was requested.
    pub sha256: Option<Sha256Sum>,
}

/// Computes the requested checksums while batches pass, in the order of the file. Returns them with the
/// number of bytes that passed, or `None` if a batch never came.
pub(super) fn run(slots: &Receiver<Slot>, requested: RequestedSums) -> Option<(Sums, u64)> {
    let mut crc64 = (requested != RequestedSums::None).then(RunningCrc64::default);
    let mut sha256 = (requested == RequestedSums::Both).then(Sha256::new);
    let mut passed = 0;
    for slot in slots {
        let fetched: Arc<_> = slot.recv().ok()?;
        let own = fetched.own();
        if let Some(crc64) = &mut crc64 {
            crc64.update(own);
        }
        if let Some(sha256) = &mut sha256 {
            sha256.update(own);
        }
        passed += to_u64(own.len());
    }
    let sums = Sums {
        crc64: crc64.map(|sum| sum.sum()),
        sha256: sha256.map(|sum| Sha256Sum(sum.finalize().into())),
    };
    Some((sums, passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_as_they_are_printed() {
        // FIPS 180-2, appendix B.1: "abc".
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let sum = Sha256Sum(Sha256::digest(b"abc").into());
        assert_eq!(sum.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(sum));
        for typed in ["", "ba78", &"g".repeat(64), &"é".repeat(32)] {
            assert!(typed.parse::<Sha256Sum>().is_err(), "{typed:?}");
        }
    }
}
