//! The header, in the image's first cluster: how it is written, and which headers are refused when read.
//!
//! The writer uses version 3 without extensions. The parser reads images from untrusted sources, so it
//! validates every field before use, and each refusal has its own error. It never opens a file that the image
//! names.

use snapferry_base::units::{ByteCount, ClusterBits, HostOffset};

use crate::Geometry;
use crate::codec::Codec;
use crate::header_info::HeaderInfo;

/// Magic number at the start of each image: "QFI\xfb".
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Largest size of an L1 table in bytes (QEMU's `QCOW_MAX_L1_SIZE`).
pub const MAX_L1: u64 = 32 << 20;
/// Largest size of a refcount table in bytes (QEMU's `QCOW_MAX_REFTABLE_SIZE`).
pub const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Largest number of internal snapshots (QEMU's `QCOW_MAX_SNAPSHOTS`).
const MAX_SNAPSHOTS: u32 = 65_536;
/// Size of the written header in bytes: it ends with the compression type, padded to a multiple of eight.
const WRITTEN_LEN: u32 = 112;
/// Incompatible feature bits. An image with an unknown one of them can't be read.
pub(super) mod incompatible {
    /// Refcounts may be wrong; the mapping is right.
    pub(crate) const DIRTY: u64 = 1;
    /// The image is known to be damaged.
    pub(crate) const CORRUPT: u64 = 1 << 1;
    /// The data are in another file.
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    /// The compression type field is valid.
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have 16 bytes.
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
}

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Default of QEMU 0.8 to 1.6. Has no feature bits.
    V2,
    /// Supported since QEMU 1.1.
    V3,
}

/// The fields of an image's header that reading needs. Their names are the specification's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// Size of a cluster: 512 B to 2 MiB.
    pub cluster: ClusterBits,
    /// Size of the disk in bytes. Written images have whole sectors; QEMU rounds other sizes down.
    pub virtual_size: ByteCount,
    /// Number of entries in the active L1 table.
    pub l1_entries: u32,
    /// Offset of the active L1 table.
    pub l1_table: HostOffset,
    /// Offset of the refcount table.
    pub refcount_table: HostOffset,
    /// Length of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// log2 of a refcount's width in bits: 4 in written images and in every version 2 image.
    pub refcount_order: u32,
    /// Number of internal snapshots. Written images have none; those of other images are only counted.
    pub snapshots: u32,
    /// Offset of the snapshot table.
    pub snapshot_table: HostOffset,
    /// True if the last program that wrote the image did not close it: refcounts may be wrong, the mapping is
    /// right.
    pub dirty: bool,
    /// Codec of the compressed clusters.
    pub compression: Codec,
    /// True if L2 entries are 16 bytes long, with a state for each of a cluster's 32 subclusters. Written
    /// images have none of these.
    pub extended_l2: bool,
}

/// Reasons for refusing to read a file as an image.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The file doesn't begin with the magic number: it is no qcow2 image.
    #[error("not a qcow2 image")]
    Magic,
    /// The file ends inside its header.
    #[error("the image ends inside its header: {len} bytes, where at least {needed} must be")]
    Truncated {
        /// Bytes that the file has.
        len: u64,
        /// Bytes that the header needs.
        needed: u64,
    },
    /// The version is neither 2 nor 3.
    #[error("qcow2 version {0} is not known: only 2 and 3 are")]
    Version(u32),
    /// `cluster_bits` is outside 9 to 21.
    #[error("cluster_bits is {0}: it must be from {min} to {max}", min = ClusterBits::MIN, max = ClusterBits::MAX)]
    ClusterBits(u32),
    /// `header_length` is not a multiple of 8, or is outside 104 to the cluster size.
    #[error("header_length is {0}: it must be a multiple of 8, from 104 to the cluster size")]
    Length(u32),
    /// `refcount_order` is more than 6.
    #[error("refcount_order is {0}: it must be at most 6")]
    RefcountOrder(u32),
    /// Incompatible feature bits that this crate doesn't know.
    #[error("the image needs features that are not known: incompatible bits {0:#x}")]
    Features(u64),
    /// The image is marked as corrupt.
    #[error("the image is marked as corrupt")]
    Corrupt,
    /// The data are in another file.
    #[error("the image keeps its data in another file, {name:?}, which is never followed")]
    DataFile {
        /// Name of the file in the image; empty if the image gives none.
        name: String,
    },
    /// The image holds only the differences to another image.
    #[error("the image holds only what differs from its backing file {name:?}, which is never followed")]
    BackingFile {
        /// Name of the backing file in the image.
        name: String,
    },
    /// The name of the backing file is too long, or isn't within the first cluster.
    #[error(
        "the backing file's name, {len} bytes at byte {at}, is longer than 1023 or outside the first cluster"
    )]
    BackingName {
        /// Offset of the name.
        at: u64,
        /// Length of the name in bytes.
        len: u32,
    },
    /// The disk in the image is encrypted.
    #[error("the image is encrypted (method {method})")]
    Encrypted {
        /// Encryption method: 1 is AES, 2 is LUKS.
        method: u32,
    },
    /// The subclusters would be smaller than a sector.
    #[error("the image has extended L2 entries, which need clusters of at least 16 KiB")]
    ExtendedL2,
    /// The compression type and its feature bit contradict each other, or the type is unknown.
    #[error("compression type {kind} is not known, or contradicts the incompatible bits {features:#x}")]
    Compression {
        /// Value of the compression type field.
        kind: u8,
        /// The feature bits. Bit 3 must be set for every type but 0, and must not be set for type 0.
        features: u64,
    },
    /// A table doesn't start at a cluster boundary, or starts in the header cluster.
    #[error("the {table} at {offset} is not at a cluster behind the header")]
    Misplaced {
        /// Name of the table, such as `L1 table`.
        table: &'static str,
        /// Offset of the table in the header.
        offset: u64,
    },
    /// A table is longer than the format's readers accept.
    #[error("the {table} is {len} long: the most is {max}")]
    TableTooLong {
        /// Name of the table.
        table: &'static str,
        /// Length of the table in bytes.
        len: ByteCount,
        /// Largest length that is accepted.
        max: ByteCount,
    },
    /// A table reaches past the end of the file.
    #[error("the {table} ends at byte {end}, the file at {file_len}")]
    PastEnd {
        /// Name of the table.
        table: &'static str,
        /// Offset after the table's last byte.
        end: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// Two tables have bytes in common.
    #[error("the {one} and the {other} overlap")]
    Overlap {
        /// Name of the table that begins first.
        one: &'static str,
        /// Name of the table that begins within the first one.
        other: &'static str,
    },
    /// The L1 table does not cover the disk.
    #[error("the L1 table has {entries} entries: a disk of {virtual_size} needs {needed}")]
    L1TooShort {
        /// Number of entries in the header.
        entries: u32,
        /// Size of the disk in bytes.
        virtual_size: ByteCount,
        /// Number of entries that a disk of this size needs.
        needed: u64,
    },
    /// The refcount table has length 0.
    #[error("the image has no refcount table")]
    NoRefcountTable,
    /// The number of snapshots is higher than QEMU's limit.
    #[error("the image claims {0} snapshots: the most is {MAX_SNAPSHOTS}")]
    Snapshots(u32),
    /// The bitmap directory holds another number of bitmaps than the header gives, or that number is outside
    /// 1 to 65,535.
    #[error("the image claims {0} bitmaps, which its directory does not hold")]
    BitmapCount(u32),
    /// A field of a bitmap's entry has an invalid value.
    #[error("bitmap {number} of the directory: {field} can't be {value}")]
    Bitmap {
        /// Number of the bitmap in the directory, from 0.
        number: u32,
        /// The specification's name of the field.
        field: &'static str,
        /// Value of the field.
        value: u64,
    },
    /// A header extension does not end within the first cluster.
    #[error("header extension {kind:#010x} at byte {at} does not end within the first cluster")]
    Extension {
        /// Type of the extension.
        kind: u32,
        /// Offset of the extension.
        at: u64,
    },
}

impl Header {
    /// Creates the header of a new image.
    #[must_use]
    pub fn new(geometry: &Geometry, compression: Codec) -> Self {
        let narrow =
            |count: u64| u32::try_from(count).expect("a geometry keeps its tables within their bounds");
        Self {
            version: Version::V3,
            cluster: geometry.cluster(),
            virtual_size: geometry.virtual_size(),
            l1_entries: narrow(geometry.l1_entries()),
            l1_table: geometry.l1_table(),
            refcount_table: geometry.refcount_table(),
            refcount_table_clusters: narrow(geometry.refcount_table_clusters()),
            refcount_order: crate::refcount::ORDER,
            snapshots: 0,
            snapshot_table: HostOffset(0),
            dirty: false,
            compression,
            extended_l2: false,
        }
    }

    /// Appends the header with an empty list of extensions: 120 bytes for version 3, 72 and 8 for version 2.
    ///
    /// # Panics
    /// If the header is of version 2 and has a feature that only version 3 has.
    pub fn write(&self, into: &mut Vec<u8>) {
        into.extend(MAGIC);
        let version: u32 = match self.version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        into.extend(version.to_be_bytes());
        let no_backing_file = [0; 12];
        into.extend(no_backing_file);
        into.extend(self.cluster.bits().to_be_bytes());
        into.extend(self.virtual_size.0.to_be_bytes());
        let not_encrypted = 0_u32;
        into.extend(not_encrypted.to_be_bytes());
        into.extend(self.l1_entries.to_be_bytes());
        into.extend(self.l1_table.0.to_be_bytes());
        into.extend(self.refcount_table.0.to_be_bytes());
        into.extend(self.refcount_table_clusters.to_be_bytes());
        into.extend(self.snapshots.to_be_bytes());
        into.extend(self.snapshot_table.0.to_be_bytes());
        match self.version {
            Version::V2 => assert!(
                !self.dirty
                    && !self.extended_l2
                    && self.compression == Codec::Deflate
                    && self.refcount_order == 4,
                "version 2 has no feature bits and 16-bit refcounts"
            ),
            Version::V3 => self.write_v3(into),
        }
        let end_of_extensions = [0; 8];
        into.extend(end_of_extensions);
    }

    fn write_v3(&self, into: &mut Vec<u8>) {
        let (kind, bit) = match self.compression {
            Codec::Deflate => (0, 0),
            // "Compression type bit: must be set if the compression type is non-zero", and only then.
            Codec::Zstd => (1, incompatible::COMPRESSION),
        };
        let dirty = if self.dirty { incompatible::DIRTY } else { 0 };
        let extended = if self.extended_l2 { incompatible::EXTENDED_L2 } else { 0 };
        into.extend((bit | dirty | extended).to_be_bytes());
        let (compatible, autoclear) = (0_u64, 0_u64);
        into.extend(compatible.to_be_bytes());
        into.extend(autoclear.to_be_bytes());
        into.extend(self.refcount_order.to_be_bytes());
        into.extend(WRITTEN_LEN.to_be_bytes());
        into.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Parses the header. `start` is the beginning of a file of `file_len` bytes: all of it, or its first 2
    /// MiB (the largest cluster).
    ///
    /// Checks that the tables lie within the file, but not their contents.
    ///
    /// # Errors
    /// If the header breaks a rule; the error is the first rule broken.
    pub fn parse(start: &[u8], file_len: ByteCount) -> Result<Self, HeaderError> {
        let header_info = HeaderInfo::parse(start, file_len)?;
        match header_info.refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(header_info.header),
        }
    }

    /// Returns the length of an L2 entry in bytes.
    #[must_use]
    pub fn l2_entry_len(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Checks the length and offset of each table before any code allocates memory for it or reads it.
    pub(super) fn check_tables(&self, file_len: ByteCount) -> Result<(), HeaderError> {
        let coverage = self.cluster.size() / self.l2_entry_len() * self.cluster.size();
        let needed = self.virtual_size.0.div_ceil(coverage);
        if u64::from(self.l1_entries) < needed {
            return Err(HeaderError::L1TooShort {
                entries: self.l1_entries,
                virtual_size: self.virtual_size,
                needed,
            });
        }
        let file_len = file_len.0;
        self.check_table("L1 table", self.l1_table, u64::from(self.l1_entries) * 8, MAX_L1, file_len)?;
        if self.refcount_table_clusters == 0 {
            return Err(HeaderError::NoRefcountTable);
        }
        let refcount_table_len = u64::from(self.refcount_table_clusters) * self.cluster.size();
        self.check_table(
            "refcount table",
            self.refcount_table,
            refcount_table_len,
            MAX_REFCOUNT_TABLE,
            file_len,
        )?;
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(HeaderError::Snapshots(self.snapshots));
        }
        // Entries of the snapshot table vary in length; 40 bytes is the smallest.
        let snapshots_len = u64::from(self.snapshots) * 40;
        self.check_table("snapshot table", self.snapshot_table, snapshots_len, u64::MAX, file_len)?;
        let mut tables = vec![
            (self.l1_table.0, u64::from(self.l1_entries) * 8, "L1 table"),
            (self.refcount_table.0, refcount_table_len, "refcount table"),
            (self.snapshot_table.0, snapshots_len, "snapshot table"),
        ];
        // An empty table has no offset, and must not be sorted between two tables that overlap.
        tables.retain(|(_, len, _)| *len > 0);
        tables.sort_unstable();
        for pair in tables.windows(2) {
            let [(at, len, one), (next, _, other)] = [pair[0], pair[1]];
            if at + len > next {
                return Err(HeaderError::Overlap { one, other });
            }
        }
        Ok(())
    }

    fn check_table(
        &self,
        table: &'static str,
        at: HostOffset,
        len: u64,
        max: u64,
        file_len: u64,
    ) -> Result<(), HeaderError> {
        if len == 0 {
            return Ok(());
        }
        if len > max {
            return Err(HeaderError::TableTooLong { table, len: ByteCount(len), max: ByteCount(max) });
        }
        if at.0 == 0 || !at.0.is_multiple_of(self.cluster.size()) {
            return Err(HeaderError::Misplaced { table, offset: at.0 });
        }
        match at.0.checked_add(len) {
            Some(end) if end <= file_len => Ok(()),
            end => Err(HeaderError::PastEnd { table, end: end.unwrap_or(u64::MAX), file_len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use snapferry_base::units::to_u64;

    use super::*;

    /// Length of the image that `header_of_qemu` is from.
    const QEMU_FILE: ByteCount = ByteCount(458_752);

    /// The first cluster of an image that qemu-img 10.0.2 made of a disk of 128 KiB, up to its first
    /// extension, whose content is removed.
    fn header_of_qemu() -> Vec<u8> {
        let words = [
            0x5146_49fb,
            3,
            0,
            0,
            0,
            16,
            0,
            0x2_0000,
            0,
            1,
            0,
            0x3_0000,
            0,
            0x1_0000,
            1,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            4,
            112,
            0,
            0,
            0x6803_f857,
            0,
            0,
            0,
        ];
        words.into_iter().flat_map(u32::to_be_bytes).collect()
    }

    fn patched(at: usize, bytes: &[u8]) -> Result<Header, HeaderError> {
        let mut image = header_of_qemu();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        Header::parse(&image, QEMU_FILE)
    }

    #[test]
    fn what_qemu_writes_is_read() {
        let header = Header::parse(&header_of_qemu(), QEMU_FILE).expect("QEMU's own header");
        assert_eq!(
            (header.version, header.cluster, header.virtual_size),
            (Version::V3, ClusterBits::DEFAULT, ByteCount(131_072))
        );
        assert_eq!(
            (header.l1_entries, header.l1_table, header.compression),
            (1, HostOffset(0x3_0000), Codec::Deflate)
        );
        assert_eq!(
            (header.refcount_table, header.refcount_table_clusters, header.refcount_order),
            (HostOffset(0x1_0000), 1, 4)
        );
    }

    #[test]
    fn what_we_write_is_read_and_stands_where_the_specification_says() {
        let geometry = Geometry::new(ByteCount(100 << 30), ClusterBits::DEFAULT).expect("an ordinary disk");
        for (compression, features, kind) in [(Codec::Deflate, 0, 0), (Codec::Zstd, 8, 1)] {
            let header = Header::new(&geometry, compression);
            let mut written = Vec::new();
            header.write(&mut written);
            assert_eq!(written.len(), 120);
            assert_eq!(
                (written[79], written[104], &written[100..104]),
                (features, kind, &[0, 0, 0, 112][..])
            );
            assert_eq!(written[36..40], 200_u32.to_be_bytes());
            assert_eq!(written[40..48], 0x2_0000_u64.to_be_bytes());
            assert_eq!(Header::parse(&written, geometry.upper_bound()), Ok(header));
        }
    }

    #[test]
    fn version_2_is_read_with_its_fixed_values() {
        let mut header = Header::parse(&header_of_qemu(), QEMU_FILE).expect("QEMU's own header");
        header.version = Version::V2;
        let mut written = Vec::new();
        header.write(&mut written);
        assert_eq!((written.len(), Header::parse(&written, QEMU_FILE)), (80, Ok(header)));
    }

    #[test]
    fn each_broken_rule_has_its_own_error() {
        type Refusal = fn(&HeaderError) -> bool;
        let cases: [(usize, &[u8], Refusal); 30] = [
            (0, b"QFI\xfa", |e| *e == HeaderError::Magic),
            (4, &[0, 0, 0, 1], |e| *e == HeaderError::Version(1)),
            (4, &[0, 0, 0, 4], |e| *e == HeaderError::Version(4)),
            (20, &[0, 0, 0, 8], |e| *e == HeaderError::ClusterBits(8)),
            (20, &[0, 0, 0, 22], |e| *e == HeaderError::ClusterBits(22)),
            (20, &[0, 0, 0, 63], |e| *e == HeaderError::ClusterBits(63)),
            (20, &[0xff; 4], |e| *e == HeaderError::ClusterBits(u32::MAX)),
            (100, &[0, 0, 0, 96], |e| *e == HeaderError::Length(96)),
            (100, &[0, 0, 0, 108], |e| *e == HeaderError::Length(108)),
            (100, &[0, 1, 0, 8], |e| *e == HeaderError::Length(65_544)),
            (96, &[0, 0, 0, 7], |e| *e == HeaderError::RefcountOrder(7)),
            (24, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], |e| {
                matches!(e, HeaderError::L1TooShort { .. })
            }),
            (24, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0], |e| {
                matches!(e, HeaderError::L1TooShort { .. })
            }),
            (36, &[0, 0, 0, 0], |e| matches!(e, HeaderError::L1TooShort { entries: 0, needed: 1, .. })),
            (36, &[0xff; 4], |e| matches!(e, HeaderError::TableTooLong { table: "L1 table", .. })),
            (40, &[0; 8], |e| matches!(e, HeaderError::Misplaced { table: "L1 table", offset: 0 })),
            (46, &[2, 0], |e| matches!(e, HeaderError::Misplaced { table: "L1 table", .. })),
            (40, &[0, 0, 0, 1], |e| matches!(e, HeaderError::PastEnd { table: "L1 table", .. })),
            (40, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], |e| {
                matches!(e, HeaderError::PastEnd { table: "L1 table", .. })
            }),
            (56, &[0; 4], |e| *e == HeaderError::NoRefcountTable),
            (56, &[0, 0, 0, 129], |e| matches!(e, HeaderError::TableTooLong { table: "refcount table", .. })),
            (54, &[2, 0], |e| matches!(e, HeaderError::Misplaced { table: "refcount table", .. })),
            (50, &[1, 0], |e| matches!(e, HeaderError::PastEnd { table: "refcount table", .. })),
            (60, &[0, 1, 0, 1], |e| *e == HeaderError::Snapshots(65_537)),
            (60, &[0, 0, 0, 1], |e| {
                matches!(e, HeaderError::Misplaced { table: "snapshot table", offset: 0 })
            }),
            (79, &[32], |e| *e == HeaderError::Features(32)),
            (79, &[2], |e| *e == HeaderError::Corrupt),
            (79, &[4], |e| matches!(e, HeaderError::DataFile { .. })),
            (79, &[8], |e| *e == HeaderError::Compression { kind: 0, features: 8 }),
            (104, &[1], |e| *e == HeaderError::Compression { kind: 1, features: 0 }),
        ];
        for (at, bytes, is_right) in cases {
            let error = patched(at, bytes).expect_err("a broken rule");
            assert!(is_right(&error), "{bytes:x?} at {at}: {error}");
        }
        let named = patched(8, &[0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 4]);
        assert_eq!(named, Err(HeaderError::BackingFile { name: "\0".repeat(4) }));
        assert_eq!(
            patched(8, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 11]),
            Err(HeaderError::BackingName { at: 65536, len: 11 })
        );
        assert_eq!(patched(32, &[0, 0, 0, 2]), Err(HeaderError::Encrypted { method: 2 }));
        assert_eq!(
            patched(112, &[0x44, 0x41, 0x54, 0x41]),
            Err(HeaderError::DataFile { name: String::new() })
        );
        assert_eq!(patched(112, &[0x05, 0x37, 0xbe, 0x77]), Err(HeaderError::Encrypted { method: 2 }));
        assert_eq!(
            patched(116, &[0, 0, 0xff, 0x89]),
            Err(HeaderError::Extension { kind: 0x6803_f857, at: 112 })
        );
        assert_eq!(patched(116, &[0xff; 4]), Err(HeaderError::Extension { kind: 0x6803_f857, at: 112 }));
    }

    #[test]
    fn a_backing_files_name_is_no_extension() {
        // Version 2, with the name right behind the header and without an end marker, as older tools write
        // it.
        let mut image = header_of_qemu();
        image[7] = 2;
        let name = b"/images/base.qcow2, of some length";
        image.resize(72, 0);
        image.extend_from_slice(name);
        image[8..16].copy_from_slice(&72_u64.to_be_bytes());
        image[16..20].copy_from_slice(&34_u32.to_be_bytes());
        let named = String::from_utf8_lossy(name).into_owned();
        assert_eq!(Header::parse(&image, QEMU_FILE), Err(HeaderError::BackingFile { name: named }));
    }

    #[test]
    fn a_dirty_image_is_read_and_says_so() {
        assert!(patched(79, &[1]).expect("its mapping is right").dirty);
    }

    #[test]
    fn every_cut_is_refused() {
        let image = header_of_qemu();
        for len in 4..image.len() - 4 {
            let len_read = to_u64(len);
            assert!(
                matches!(Header::parse(&image[..len], QEMU_FILE), Err(HeaderError::Truncated { len, needed }) if len == len_read && needed > len),
                "the first {len} bytes were taken for a header"
            );
        }
    }
}
