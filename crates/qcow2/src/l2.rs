//! Entries of L1 and L2 tables: encoding and decoding of their 64-bit words.
//!
//! A compressed L2 entry packs a byte offset and a sector count into one word, and the boundary between them
//! depends on the cluster size. No other part of the format does that, so entries are built and decoded only
//! here.

use snapferry_base::units::{ClusterBits, HostOffset, SECTOR};

/// "COPIED": the refcount of the cluster that the entry points to is exactly one (bit 63).
pub(super) const COPIED: u64 = 1 << 63;
/// The entry describes a compressed cluster (bit 62).
pub(super) const COMPRESSED: u64 = 1 << 62;
/// A standard entry whose cluster reads as zeros (bit 0, version 3 only).
pub(super) const READS_ZERO: u64 = 1;
/// Bits 9 to 55: the cluster-aligned host offset in a standard L2 entry, in an L1 entry, and in an entry of a
/// bitmap's table.
pub(super) const OFFSET: u64 = (1 << 56) - (1 << 9);
/// Number of bits of a host offset in an entry ("Bits 56 and up must be 0").
const OFFSET_BITS: u32 = 56;

/// Errors of an entry that the specification forbids, or that points where no data can be.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// The entry has a reserved bit set.
    #[error("entry {0:#018x} has a reserved bit set")]
    Reserved(u64),
    /// The offset in the entry is not a multiple of the cluster size.
    #[error("entry {0:#018x} points between two clusters")]
    Unaligned(u64),
    /// The entry points into the header cluster.
    #[error("entry {0:#018x} points into the header")]
    InHeader(u64),
    /// COPIED is set on an entry that can't have it: a compressed one, or one without a host cluster.
    #[error("entry {0:#018x} is marked as copied, but has no cluster of its own")]
    Copied(u64),
}

/// Decoded L2 entry: the state of its guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// No bytes are stored; without a backing file the cluster reads as zeros.
    Unallocated,
    /// The cluster reads as zeros. A host cluster may be reserved for it.
    Zero {
        /// Offset of the reserved cluster, and its ownership, if there is one.
        reserved: Option<(HostOffset, Ownership)>,
    },
    /// The cluster is stored raw.
    Raw {
        /// Offset of the first byte of the host cluster.
        host: HostOffset,
        /// Ownership of the host cluster, from the COPIED bit.
        ownership: Ownership,
    },
    /// The cluster is stored compressed.
    Compressed {
        /// Offset of the first byte of the body, which may be any byte of the file.
        host: HostOffset,
        /// Number of sectors that contain bytes of the body, the first one included. The body ends somewhere
        /// in the last one.
        sectors: u64,
    },
}

/// Number of entries that may point to the same host cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The refcount is one, and the COPIED bit is set.
    Sole,
    /// Other entries may point to the cluster as well.
    Shared,
}

impl Ownership {
    fn of(raw: u64) -> Self {
        if raw & COPIED == 0 { Self::Shared } else { Self::Sole }
    }

    fn bit(self) -> u64 {
        match self {
            Self::Sole => COPIED,
            Self::Shared => 0,
        }
    }
}

/// Returns the number of low bits of a compressed entry that hold the offset: the specification's x = 62 -
/// (cluster_bits - 8).
pub(super) fn compressed_offset_bits(cluster: ClusterBits) -> u32 {
    62 - (cluster.bits() - 8)
}

/// Returns the offset at which compressed data must end at the latest: the limit of the offset field, and
/// never past bit 55.
#[must_use]
pub fn compressed_limit(cluster: ClusterBits) -> HostOffset {
    HostOffset(1 << compressed_offset_bits(cluster).min(OFFSET_BITS))
}

/// Returns the offset at which any cluster must end at the latest.
#[must_use]
pub fn cluster_limit() -> HostOffset {
    HostOffset(1 << OFFSET_BITS)
}

/// Returns the number of sectors that contain any of the `len` bytes at `host`.
#[must_use]
pub fn sectors_touched(host: HostOffset, len: u64) -> u64 {
    (host.0 + len).div_ceil(SECTOR) - host.0 / SECTOR
}

/// Entry of an L2 table, in native byte order. Zero is an unallocated cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry(pub u64);

impl L2Entry {
    /// Decodes the entry in an image with clusters of this size.
    ///
    /// In a version 2 image bit 0 of a standard entry is reserved, so [`Mapping::Zero`] is an error there.
    /// The caller must check that, because only the caller knows the version.
    ///
    /// # Errors
    /// If the specification forbids the entry.
    pub fn decode(self, cluster: ClusterBits) -> Result<Mapping, EntryError> {
        let raw = self.0;
        if raw & COMPRESSED != 0 {
            return decode_compressed(raw, cluster);
        }
        if raw & !(COPIED | OFFSET | READS_ZERO) != 0 {
            return Err(EntryError::Reserved(raw));
        }
        let host = HostOffset(raw & OFFSET);
        if !host.0.is_multiple_of(cluster.size()) {
            return Err(EntryError::Unaligned(raw));
        }
        let ownership = Ownership::of(raw);
        match (raw & READS_ZERO != 0, host.0) {
            (_, 0) if ownership == Ownership::Sole => Err(EntryError::Copied(raw)),
            (true, 0) => Ok(Mapping::Zero { reserved: None }),
            (true, _) => Ok(Mapping::Zero { reserved: Some((host, ownership)) }),
            (false, 0) => Ok(Mapping::Unallocated),
            (false, _) => Ok(Mapping::Raw { host, ownership }),
        }
    }
}

fn decode_compressed(raw: u64, cluster: ClusterBits) -> Result<Mapping, EntryError> {
    if raw & COPIED != 0 {
        return Err(EntryError::Copied(raw));
    }
    let descriptor = raw & !COMPRESSED;
    let bits = compressed_offset_bits(cluster);
    let host = HostOffset(descriptor & ((1 << bits) - 1));
    if host >= compressed_limit(cluster) {
        return Err(EntryError::Reserved(raw));
    }
    if host.0 < cluster.size() {
        return Err(EntryError::InHeader(raw));
    }
    // The field holds the number of additional sectors: those after the first.
    Ok(Mapping::Compressed { host, sectors: (descriptor >> bits) + 1 })
}

impl Mapping {
    /// Creates the mapping of a body of `len` compressed bytes at `host`.
    ///
    /// # Panics
    /// If the body is empty or ends past [`compressed_limit`].
    #[must_use]
    pub fn compressed(host: HostOffset, len: u64, cluster: ClusterBits) -> Self {
        assert!(len > 0, "an empty body at {host}");
        assert!(
            host + len <= compressed_limit(cluster),
            "a compressed body at {host} lies where no entry can point"
        );
        Self::Compressed { host, sectors: sectors_touched(host, len) }
    }

    /// Creates the mapping of a raw body in a host cluster of its own.
    #[must_use]
    pub fn raw(host: HostOffset) -> Self {
        Self::Raw { host, ownership: Ownership::Sole }
    }

    /// Encodes the mapping as an entry.
    ///
    /// # Panics
    /// If no entry can hold it: the cluster is unaligned, or the offset or the sector count exceeds its
    /// field. The layout places bodies within these limits, and mappings from [`L2Entry::decode`] are always
    /// within them.
    #[must_use]
    pub fn encode(self, cluster: ClusterBits) -> L2Entry {
        let standard = |host: HostOffset, ownership: Ownership| {
            assert!(
                host.0 & !OFFSET == 0 && host.0.is_multiple_of(cluster.size()) && host.0 > 0,
                "no cluster can be at {host}"
            );
            host.0 | ownership.bit()
        };
        L2Entry(match self {
            Self::Unallocated => 0,
            Self::Zero { reserved: None } => READS_ZERO,
            Self::Zero { reserved: Some((host, ownership)) } => standard(host, ownership) | READS_ZERO,
            Self::Raw { host, ownership } => standard(host, ownership),
            Self::Compressed { host, sectors } => {
                let bits = compressed_offset_bits(cluster);
                assert!(
                    host < compressed_limit(cluster),
                    "a compressed body at {host} lies where no entry can point"
                );
                assert!(
                    (1..=1 << (62 - bits)).contains(&sectors),
                    "{sectors} sectors don't fit a compressed entry"
                );
                COMPRESSED | (sectors - 1) << bits | host.0
            }
        })
    }
}

/// Entry of the L1 table, in native byte order. Zero means no L2 table: the entry's whole range is
/// unallocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Creates the entry for an L2 table to which no other entry points.
    ///
    /// # Panics
    /// If no table can be at that offset: it is unaligned, in the header, or past bit 55.
    #[must_use]
    pub fn new(table: HostOffset, cluster: ClusterBits) -> Self {
        assert!(
            table.0 & !OFFSET == 0 && table.0.is_multiple_of(cluster.size()) && table.0 > 0,
            "no L2 table can be at {table}"
        );
        Self(table.0 | COPIED)
    }

    /// Returns the offset of the L2 table and its ownership, or `None` if there is no table.
    ///
    /// # Errors
    /// If the specification forbids the entry.
    pub fn decode(self, cluster: ClusterBits) -> Result<Option<(HostOffset, Ownership)>, EntryError> {
        let raw = self.0;
        if raw & !(COPIED | OFFSET) != 0 {
            return Err(EntryError::Reserved(raw));
        }
        let table = HostOffset(raw & OFFSET);
        if !table.0.is_multiple_of(cluster.size()) {
            return Err(EntryError::Unaligned(raw));
        }
        match (table.0, Ownership::of(raw)) {
            (0, Ownership::Sole) => Err(EntryError::Copied(raw)),
            (0, Ownership::Shared) => Ok(None),
            (_, ownership) => Ok(Some((table, ownership))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(bits: u32) -> ClusterBits {
        ClusterBits::new(bits).expect("a cluster size of the format")
    }

    #[test]
    fn the_split_between_offset_and_count_is_the_specifications() {
        // Columns: cluster_bits, offset bits x, largest sector count, log2 of the limit.
        for (cluster, x, sectors, limit) in [
            (9, 61, 2, 56),
            (10, 60, 4, 56),
            (12, 58, 16, 56),
            (14, 56, 64, 56),
            (16, 54, 256, 54),
            (21, 49, 8192, 49),
        ] {
            let cluster = bits(cluster);
            assert_eq!(compressed_offset_bits(cluster), x);
            assert_eq!(compressed_limit(cluster), HostOffset(1 << limit));
            let host = HostOffset((1 << limit) - 1);
            let largest = Mapping::Compressed { host, sectors };
            assert_eq!(largest.encode(cluster).0, COMPRESSED | (sectors - 1) << x | host.0);
            assert_eq!(largest.encode(cluster).decode(cluster), Ok(largest), "{cluster}");
        }
    }

    #[test]
    fn sectors_are_counted_from_the_first_one_touched() {
        for (host, len, sectors) in
            [(0, 1, 1), (0, 512, 1), (0, 513, 2), (511, 1, 1), (511, 2, 2), (1000, 24, 1), (1000, 25, 2)]
        {
            let at = HostOffset(65536 + host);
            assert_eq!(sectors_touched(at, len), sectors, "{len} bytes at {host}");
            // The specification calls the field "number of additional 512-byte sectors".
            assert_eq!(sectors - 1, (at.0 + len - 1) / SECTOR - at.0 / SECTOR);
        }
    }

    #[test]
    fn what_qemu_writes_is_read() {
        // These entries are from an image that qemu-img 10.0.2 made of one cluster of text and one of random
        // bytes.
        let cluster = ClusterBits::DEFAULT;
        assert_eq!(
            L2Entry(0x4000_0000_0005_0000).decode(cluster),
            Ok(Mapping::Compressed { host: HostOffset(0x5_0000), sectors: 1 })
        );
        assert_eq!(L2Entry(0x8000_0000_0006_0000).decode(cluster), Ok(Mapping::raw(HostOffset(0x6_0000))));
        assert_eq!(L2Entry(1).decode(cluster), Ok(Mapping::Zero { reserved: None }));
        assert_eq!(L2Entry(0).decode(cluster), Ok(Mapping::Unallocated));
    }

    #[test]
    fn forbidden_entries_are_refused_by_name() {
        let cluster = ClusterBits::DEFAULT;
        for (raw, error) in [
            (COPIED, EntryError::Copied(COPIED)),
            (COPIED | 1, EntryError::Copied(COPIED | 1)),
            (0x2_0002, EntryError::Reserved(0x2_0002)),
            (1 << 56, EntryError::Reserved(1 << 56)),
            (0x2_0200, EntryError::Unaligned(0x2_0200)),
            (COMPRESSED | COPIED | 0x2_0000, EntryError::Copied(COMPRESSED | COPIED | 0x2_0000)),
            (COMPRESSED | 0xffff, EntryError::InHeader(COMPRESSED | 0xffff)),
        ] {
            assert_eq!(L2Entry(raw).decode(cluster), Err(error));
        }
        // With 4 KiB clusters the offset field reaches past bit 55, which must be zero there.
        assert_eq!(
            L2Entry(COMPRESSED | 1 << 57).decode(bits(12)),
            Err(EntryError::Reserved(COMPRESSED | 1 << 57))
        );
    }

    #[test]
    fn l1_entries_keep_offset_and_ownership() {
        let cluster = ClusterBits::DEFAULT;
        let entry = L1Entry::new(HostOffset(0x4_0000), cluster);
        assert_eq!(entry.0, 0x8000_0000_0004_0000);
        assert_eq!(entry.decode(cluster), Ok(Some((HostOffset(0x4_0000), Ownership::Sole))));
        assert_eq!(L1Entry(0).decode(cluster), Ok(None));
        assert_eq!(L1Entry(0x4_0001).decode(cluster), Err(EntryError::Reserved(0x4_0001)));
        assert_eq!(L1Entry(0x4_0200).decode(cluster), Err(EntryError::Unaligned(0x4_0200)));
        assert_eq!(L1Entry(COPIED).decode(cluster), Err(EntryError::Copied(COPIED)));
    }

    #[test]
    #[should_panic(expected = "where no entry can point")]
    fn compressed_data_past_the_limit_is_a_bug() {
        let _ = Mapping::compressed(HostOffset((1 << 49) - 100), 101, bits(21));
    }
}
