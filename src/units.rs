//! Address spaces and sizes. Guest and host addresses are different types, so that they can't be swapped.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The unit of qcow2's sector counts and of virtual sizes, in bytes (qcow2 specification, "Compressed Clusters Descriptor").
pub const SECTOR: u64 = 512;
/// 2^10 bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// A length that is held in memory, so that it fits both `usize` and `u64` on the 64-bit targets we build for.
#[must_use]
pub fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize is at most 64 bits wide")
}

/// The other direction, for lengths of things that are in memory, or about to be.
///
/// # Panics
/// On a 32-bit machine, with a length that no buffer there can have.
#[must_use]
pub fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a buffer's length fits the address space")
}

/// A count of bytes. Reads `4096`, `64k`, `32M`, `1.5G`, `2TiB` (powers of 1024) and prints exactly where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

/// A size that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{typed:?} is not a size: give a number with an optional k, M, G or T, as in 64k or 32M")]
pub struct ParseByteCountError {
    typed: String,
}

impl FromStr for ByteCount {
    type Err = ParseByteCountError;

    fn from_str(typed: &str) -> Result<Self, Self::Err> {
        let err = || ParseByteCountError { typed: typed.to_owned() };
        let text = typed.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let shift = match suffix.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(err()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let unit = 1_u64 << shift;
        let whole: u64 = whole.parse().map_err(|_| err())?;
        let mut bytes = whole.checked_mul(unit).ok_or_else(err)?;
        if !fraction.is_empty() {
            let digits = u32::try_from(fraction.len()).map_err(|_| err())?;
            let scale = 10_u64.checked_pow(digits).ok_or_else(err)?;
            let part: u64 = fraction.parse().map_err(|_| err())?;
            let extra = u128::from(part) * u128::from(unit) / u128::from(scale);
            bytes = bytes.checked_add(u64::try_from(extra).map_err(|_| err())?).ok_or_else(err)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteCount {
    /// `64 KiB` when the count is a whole number of a unit, `5.73 GiB` when it isn't, `700 B` below 1 KiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", GIB << 10), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];
        for (name, unit) in UNITS {
            if self.0 >= unit {
                if self.0.is_multiple_of(unit) {
                    return write!(f, "{} {name}", self.0 / unit);
                }
                // Hundredths, in integers: good to the last digit printed at every magnitude.
                let hundredths = u128::from(self.0) * 100 / u128::from(unit);
                return write!(f, "{}.{:02} {name}", hundredths / 100, hundredths % 100);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// The size of a qcow2 cluster as its power of two: 9 (512 B) to 21 (2 MiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterBits(u32);

/// A cluster size that the format doesn't have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cluster size {size} is not a power of two from {} to {}", ByteCount(1 << ClusterBits::MIN), ByteCount(1 << ClusterBits::MAX))]
pub struct ClusterSizeError {
    size: ByteCount,
}

impl ClusterBits {
    /// Least `cluster_bits` (qcow2 specification, header byte 20).
    pub const MIN: u32 = 9;
    /// Largest `cluster_bits` that QEMU opens.
    pub const MAX: u32 = 21;
    /// 4 KiB, a page: the least that makes sense for whole disks.
    pub const KIB4: Self = Self(12);
    /// 64 KiB, QEMU's default and what every importer reads.
    pub const DEFAULT: Self = Self(16);

    /// From the exponent.
    ///
    /// # Errors
    /// Where it is outside 9..=21.
    pub fn new(bits: u32) -> Result<Self, ClusterSizeError> {
        if (Self::MIN..=Self::MAX).contains(&bits) {
            Ok(Self(bits))
        } else {
            Err(ClusterSizeError { size: ByteCount(1_u64.checked_shl(bits).unwrap_or(u64::MAX)) })
        }
    }

    /// From the size in bytes.
    ///
    /// # Errors
    /// Where it is no power of two, or outside 512 B to 2 MiB.
    pub fn from_size(size: ByteCount) -> Result<Self, ClusterSizeError> {
        if size.0.is_power_of_two() {
            Self::new(size.0.trailing_zeros()).map_err(|_| ClusterSizeError { size })
        } else {
            Err(ClusterSizeError { size })
        }
    }

    /// The exponent, 9 to 21.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Bytes in a cluster.
    #[must_use]
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Bytes in a cluster, for buffers.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no cluster is empty")]
    pub fn len(self) -> usize {
        1 << self.0
    }

    /// How many clusters cover `bytes`, the last one perhaps partly.
    #[must_use]
    pub fn clusters_in(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.size())
    }

    /// `bytes` rounded up to whole clusters.
    #[must_use]
    pub fn round_up(self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.size())
    }
}

impl fmt::Display for ClusterBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ByteCount(self.size()).fmt(f)
    }
}

macro_rules! offset {
    ($(#[$doc:meta])* $offset:ident, $(#[$cdoc:meta])* $cluster:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $offset(pub u64);

        $(#[$cdoc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $cluster(pub u64);

        impl $offset {
            /// The cluster that this byte lies in.
            #[must_use]
            pub fn cluster(self, bits: ClusterBits) -> $cluster {
                $cluster(self.0 >> bits.bits())
            }
        }

        impl $cluster {
            /// The first byte of the cluster.
            #[must_use]
            pub fn offset(self, bits: ClusterBits) -> $offset {
                $offset(self.0 << bits.bits())
            }
        }

        impl std::ops::Add<u64> for $offset {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl std::ops::Add<u64> for $cluster {
            type Output = Self;
            fn add(self, clusters: u64) -> Self {
                Self(self.0 + clusters)
            }
        }

        impl fmt::Display for $offset {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

offset!(
    /// A byte position in the disk as the guest sees it, from 0.
    GuestOffset,
    /// A cluster's number in the disk as the guest sees it, from 0.
    GuestCluster
);
offset!(
    /// A byte position in the image file, from 0.
    HostOffset,
    /// A cluster's number in the image file, from 0.
    HostCluster
);

/// A stretch that could not be read and holds zeros in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadRange {
    /// First byte.
    pub offset: GuestOffset,
    /// Bytes.
    pub length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_type_them() {
        for (typed, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 64 * KIB),
            ("64K", 64 * KIB),
            ("32M", 32 * MIB),
            ("32 MiB", 32 * MIB),
            ("1.5G", 3 * GIB / 2),
            ("2T", 2 << 40),
        ] {
            assert_eq!(typed.parse(), Ok(ByteCount(bytes)), "{typed}");
        }
        for typed in ["", "k", "-1", "64q", "1.2.3M", "99999999999T", "1e6", "0x10"] {
            assert!(typed.parse::<ByteCount>().is_err(), "{typed:?} was taken for a size");
        }
    }

    #[test]
    fn sizes_print_exactly_or_to_two_digits() {
        for (bytes, text) in
            [(0, "0 B"), (700, "700 B"), (KIB, "1 KiB"), (3 * GIB / 2, "1.50 GiB"), (10 * GIB, "10 GiB"), (MIB + 1, "1.00 MiB")]
        {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
    }

    #[test]
    fn cluster_sizes_are_powers_of_two_that_qemu_opens() {
        assert_eq!(ClusterBits::from_size(ByteCount(65536)), Ok(ClusterBits::DEFAULT));
        for bytes in [0, 1, 256, 65535, 4 * MIB] {
            assert_eq!(ClusterBits::from_size(ByteCount(bytes)), Err(ClusterSizeError { size: ByteCount(bytes) }));
        }
        let bits = ClusterBits::DEFAULT;
        assert_eq!((bits.clusters_in(0), bits.clusters_in(1), bits.clusters_in(65536), bits.clusters_in(65537)), (0, 1, 1, 2));
    }
}
