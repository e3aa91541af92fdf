//! Sizes, and byte and cluster positions. Guest and host positions are different types, so that they can't be
//! swapped.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in a sector, the unit of qcow2's sector counts and of virtual sizes (qcow2 specification,
/// "Compressed Clusters Descriptor").
pub const SECTOR: u64 = 512;
/// 2^10 bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// Converts a length in memory to `u64`. It always fits, because the project is built for 64-bit targets
/// only.
#[must_use]
pub fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize is at most 64 bits wide")
}

/// Converts the length of an object that is in memory, or that is about to be, to `usize`.
///
/// # Panics
/// On a 32-bit machine, if the length is larger than any buffer there.
#[must_use]
pub fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a buffer's length fits the address space")
}

/// A number of bytes. Parses `4096`, `64k`, `32M`, `1.5G` and `2TiB` (powers of 1024). Prints the exact value
/// if it is a whole number of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

/// Error of a text that is no size.
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
    /// Prints `64 KiB` if the count is a whole number of a unit, `5.73 GiB` if it isn't, and `700 B` below 1
    /// KiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", GIB << 10), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];
        for (name, unit) in UNITS {
            if self.0 >= unit {
                if self.0.is_multiple_of(unit) {
                    return write!(f, "{} {name}", self.0 / unit);
                }
                // Hundredths of the unit in integer arithmetic, which is exact to the last printed digit at
                // every magnitude.
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

/// Error of a cluster size that the format doesn't allow.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cluster size {size} is not a power of two from {} to {}", ByteCount(1 << ClusterBits::MIN), ByteCount(1 << ClusterBits::MAX))]
pub struct ClusterSizeError {
    size: ByteCount,
}

impl ClusterBits {
    /// Smallest `cluster_bits` (qcow2 specification, header byte 20).
    pub const MIN: u32 = 9;
    /// Largest `cluster_bits` that QEMU opens.
    pub const MAX: u32 = 21;
    /// 4 KiB, the size of a page: the smallest cluster size that makes sense for whole disks.
    pub const KIB4: Self = Self(12);
    /// 64 KiB: QEMU's default, and a size that every importer can read.
    pub const DEFAULT: Self = Self(16);

    /// Returns the cluster size with this exponent.
    ///
    /// # Errors
    /// If the exponent is outside 9..=21.
    pub fn new(bits: u32) -> Result<Self, ClusterSizeError> {
        if (Self::MIN..=Self::MAX).contains(&bits) {
            Ok(Self(bits))
        } else {
            Err(ClusterSizeError { size: ByteCount(1_u64.checked_shl(bits).unwrap_or(u64::MAX)) })
        }
    }

    /// Returns the cluster size of `size` bytes.
    ///
    /// # Errors
    /// If `size` is no power of two, or is outside 512 B to 2 MiB.
    pub fn from_size(size: ByteCount) -> Result<Self, ClusterSizeError> {
        if size.0.is_power_of_two() {
            Self::new(size.0.trailing_zeros()).map_err(|_| ClusterSizeError { size })
        } else {
            Err(ClusterSizeError { size })
        }
    }

    /// Returns the exponent, 9 to 21.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Returns the number of bytes in a cluster.
    #[must_use]
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Returns the number of bytes in a cluster as `usize`, for buffers.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no cluster is empty")]
    pub fn len(self) -> usize {
        1 << self.0
    }

    /// Returns the number of clusters that cover `bytes`. The last one may be covered in part.
    #[must_use]
    pub fn clusters_in(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.size())
    }

    /// Rounds `bytes` up to whole clusters.
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
            /// Returns the cluster that contains this byte.
            #[must_use]
            pub fn cluster(self, bits: ClusterBits) -> $cluster {
                $cluster(self.0 >> bits.bits())
            }
        }

        impl $cluster {
            /// Returns the position of the first byte of the cluster.
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
    /// Byte position in the disk as the guest sees it, from 0.
    GuestOffset,
    /// Cluster number in the disk as the guest sees it, from 0.
    GuestCluster
);
offset!(
    /// Byte position in the image file, from 0.
    HostOffset,
    /// Cluster number in the image file, from 0.
    HostCluster
);

/// A range of the disk that could not be read. The image holds zeros in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadRange {
    pub offset: GuestOffset,
    /// Length in bytes.
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
        for (bytes, text) in [
            (0, "0 B"),
            (700, "700 B"),
            (KIB, "1 KiB"),
            (3 * GIB / 2, "1.50 GiB"),
            (10 * GIB, "10 GiB"),
            (MIB + 1, "1.00 MiB"),
        ] {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
    }

    #[test]
    fn cluster_sizes_are_powers_of_two_that_qemu_opens() {
        assert_eq!(ClusterBits::from_size(ByteCount(65536)), Ok(ClusterBits::DEFAULT));
        for bytes in [0, 1, 256, 65535, 4 * MIB] {
            assert_eq!(
                ClusterBits::from_size(ByteCount(bytes)),
                Err(ClusterSizeError { size: ByteCount(bytes) })
            );
        }
        let bits = ClusterBits::DEFAULT;
        assert_eq!(
            (bits.clusters_in(0), bits.clusters_in(1), bits.clusters_in(65536), bits.clusters_in(65537)),
            (0, 1, 1, 2)
        );
    }
}
