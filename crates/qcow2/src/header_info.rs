//! All information in a header, also in that of an image that can't be read. It answers a user's question
//! about an image.

use std::ops::Range;

use snapferry_base::units::{ByteCount, ClusterBits, HostOffset, to_u64, to_usize};

use crate::codec::Codec;
use crate::header::{Header, HeaderError, MAGIC, Version, incompatible};

/// Bytes of a version 2 header, which has no length field.
const V2_LEN: u64 = 72;
/// Bytes of a version 3 header without a compression type: the smallest valid value of its length field.
const V3_LEN: u64 = 104;
/// Largest width of a refcount as log2 of the bits: 6 for 64 bits.
const MAX_REFCOUNT_ORDER: u32 = 6;
/// Smallest cluster_bits with extended L2 entries: 32 subclusters of at least a sector (specification,
/// "Extended L2 Entries").
const EXTENDED_L2_MIN_BITS: u32 = 14;
/// Largest length of a backing file's name in bytes (specification, header byte 16).
const MAX_BACKING_NAME: u32 = 1023;
/// Compatible feature bit: refcounts may be outdated while a program has the image open for writing.
const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear feature bit: the bitmaps extension is up to date.
const BITMAPS_CONSISTENT: u64 = 1;

/// Header extension types (specification, "Header extensions").
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
    pub(super) const DATA_FILE: u32 = 0x4441_5441;
    pub(super) const ENCRYPTION: u32 = 0x0537_be77;
}

/// A header, and its information that reading the disk doesn't need. No file that it names is ever opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderInfo {
    /// The fields that reading the disk needs.
    pub header: Header,
    /// Name of the backing file, if the image holds only the differences to one.
    pub backing_file: Option<String>,
    /// Format of the backing file, if the image gives it.
    pub backing_format: Option<String>,
    /// Name of the file that holds the data, if there is one. Empty if the image doesn't give the name.
    pub data_file: Option<String>,
    /// Encryption method of the data: 0 for none, 1 for AES, 2 for LUKS.
    pub encryption: u32,
    /// True if a program found the image to be damaged and marked it as corrupt.
    pub corrupt: bool,
    /// True if refcounts may be outdated while a program writes.
    pub lazy_refcounts: bool,
    /// Directory of the persistent bitmaps, if they are up to date.
    pub bitmaps: Option<BitmapDirectory>,
}

/// Location of an image's bitmap directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapDirectory {
    /// Number of bitmaps in the directory.
    pub count: u32,
    /// Offset of the directory's first byte.
    pub at: HostOffset,
    /// Length of the directory in bytes.
    pub len: u64,
}

impl HeaderInfo {
    /// Parses the header. `start` is the beginning of a file of `file_len` bytes: all of it, or its first 2
    /// MiB (the largest cluster).
    ///
    /// Checks that the tables lie within the file, but not their contents.
    ///
    /// # Errors
    /// If the header breaks a rule of the format; the error is the first rule broken.
    pub fn parse(start: &[u8], file_len: ByteCount) -> Result<Self, HeaderError> {
        let fields = Fields(start);
        if fields.bytes(0, 4)? != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = match fields.u32(4)? {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(HeaderError::Version(other)),
        };
        let cluster_bits = fields.u32(20)?;
        let cluster = ClusterBits::new(cluster_bits).map_err(|_| HeaderError::ClusterBits(cluster_bits))?;
        let features = Features::parse(&fields, version, cluster)?;
        // A backing file's name may follow the extensions without an end marker between them.
        let extensions_end = match fields.u64(8)? {
            0 => cluster.size(),
            name => name.min(cluster.size()),
        };
        let extensions = Extensions::parse(&fields, features.header_len..extensions_end)?;
        let header = Header {
            version,
            cluster,
            virtual_size: ByteCount(fields.u64(24)?),
            l1_entries: fields.u32(36)?,
            l1_table: HostOffset(fields.u64(40)?),
            refcount_table: HostOffset(fields.u64(48)?),
            refcount_table_clusters: fields.u32(56)?,
            refcount_order: features.refcount_order,
            snapshots: fields.u32(60)?,
            snapshot_table: HostOffset(fields.u64(64)?),
            dirty: features.incompatible & incompatible::DIRTY != 0,
            compression: features.compression,
            extended_l2: features.incompatible & incompatible::EXTENDED_L2 != 0,
        };
        header.check_tables(file_len)?;
        let external_data = features.incompatible & incompatible::DATA_FILE != 0;
        Ok(Self {
            header,
            backing_file: backing_name(&fields, cluster)?,
            backing_format: extensions.backing_format,
            data_file: extensions.data_file.or_else(|| external_data.then(String::new)),
            encryption: match fields.u32(32)? {
                // The header points to a key but gives no method. Only LUKS has such a pointer.
                0 if extensions.key => 2,
                method => method,
            },
            corrupt: features.incompatible & incompatible::CORRUPT != 0,
            lazy_refcounts: features.compatible & LAZY_REFCOUNTS != 0,
            bitmaps: extensions.bitmaps.filter(|_| features.autoclear & BITMAPS_CONSISTENT != 0),
        })
    }

    /// Returns the reason for which the disk in the image can't be read, or `None` if it can be read.
    #[must_use]
    pub fn refusal(&self) -> Option<HeaderError> {
        if self.corrupt {
            return Some(HeaderError::Corrupt);
        }
        if let Some(name) = &self.data_file {
            return Some(HeaderError::DataFile { name: name.clone() });
        }
        if let Some(name) = &self.backing_file {
            return Some(HeaderError::BackingFile { name: name.clone() });
        }
        (self.encryption != 0).then_some(HeaderError::Encrypted { method: self.encryption })
    }
}

/// Returns the backing file's name, which must lie in the first cluster.
fn backing_name(fields: &Fields<'_>, cluster: ClusterBits) -> Result<Option<String>, HeaderError> {
    let (offset, len) = (fields.u64(8)?, fields.u32(16)?);
    if (offset, len) == (0, 0) {
        return Ok(None);
    }
    let in_first_cluster = offset.checked_add(u64::from(len)).is_some_and(|end| end <= cluster.size());
    if offset == 0 || len == 0 || len > MAX_BACKING_NAME || !in_first_cluster {
        return Err(HeaderError::BackingName { at: offset, len });
    }
    Ok(Some(text(fields.bytes(offset, u64::from(len))?)))
}

/// Converts a name in the image to text for messages. Invalid UTF-8 is shown as replacement characters.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The fields that version 3 added. For version 2 they have its fixed values.
struct Features {
    header_len: u64,
    refcount_order: u32,
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    compression: Codec,
}

impl Features {
    fn parse(fields: &Fields<'_>, version: Version, cluster: ClusterBits) -> Result<Self, HeaderError> {
        if version == Version::V2 {
            return Ok(Self {
                header_len: V2_LEN,
                refcount_order: 4,
                incompatible: 0,
                compatible: 0,
                autoclear: 0,
                compression: Codec::Deflate,
            });
        }
        let length = fields.u32(100)?;
        let header_len = u64::from(length);
        if !(V3_LEN..=cluster.size()).contains(&header_len) || !header_len.is_multiple_of(8) {
            return Err(HeaderError::Length(length));
        }
        let refcount_order = fields.u32(96)?;
        if refcount_order > MAX_REFCOUNT_ORDER {
            return Err(HeaderError::RefcountOrder(refcount_order));
        }
        let bits = fields.u64(72)?;
        let known = incompatible::DIRTY
            | incompatible::CORRUPT
            | incompatible::DATA_FILE
            | incompatible::COMPRESSION
            | incompatible::EXTENDED_L2;
        if bits & !known != 0 {
            return Err(HeaderError::Features(bits & !known));
        }
        if bits & incompatible::EXTENDED_L2 != 0 && cluster.bits() < EXTENDED_L2_MIN_BITS {
            return Err(HeaderError::ExtendedL2);
        }
        // A header without the field has type 0.
        let kind = if header_len > V3_LEN { fields.bytes(104, 1)?[0] } else { 0 };
        let compression = match (kind, bits & incompatible::COMPRESSION != 0) {
            (0, false) => Codec::Deflate,
            (1, true) => Codec::Zstd,
            _ => return Err(HeaderError::Compression { kind, features: bits }),
        };
        let (compatible, autoclear) = (fields.u64(80)?, fields.u64(88)?);
        Ok(Self { header_len, refcount_order, incompatible: bits, compatible, autoclear, compression })
    }
}

/// The contents of the header extensions. Unknown types are skipped, as the specification requires.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    key: bool,
    bitmaps: Option<BitmapDirectory>,
}

impl Extensions {
    fn parse(fields: &Fields<'_>, area: Range<u64>) -> Result<Self, HeaderError> {
        let mut found = Self::default();
        let mut at = area.start;
        // Extensions that fill the area need no end marker.
        while at + 8 <= area.end {
            let kind = fields.u32(at)?;
            if kind == extension::END {
                break;
            }
            let len = u64::from(fields.u32(at + 4)?);
            let next = at + 8 + len.next_multiple_of(8);
            if at + 8 + len > area.end {
                return Err(HeaderError::Extension { kind, at });
            }
            let contents = fields.bytes(at + 8, len)?;
            match kind {
                extension::BACKING_FORMAT => found.backing_format = Some(text(contents)),
                extension::DATA_FILE => found.data_file = Some(text(contents)),
                extension::ENCRYPTION => found.key = true,
                extension::BITMAPS => {
                    let contents = Fields(contents);
                    let (count, len, at) =
                        (contents.u32(0)?, contents.u64(8)?, HostOffset(contents.u64(16)?));
                    found.bitmaps = Some(BitmapDirectory { count, at, len });
                }
                _ => {}
            }
            at = next;
        }
        Ok(found)
    }
}

/// Reads big-endian fields by their offset in the specification.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&self, at: u64, len: u64) -> Result<&'a [u8], HeaderError> {
        let range = to_usize(at)..to_usize(at + len);
        self.0.get(range).ok_or(HeaderError::Truncated { len: to_u64(self.0.len()), needed: at + len })
    }

    pub(super) fn u16(&self, at: u64) -> Result<u16, HeaderError> {
        Ok(u16::from_be_bytes(self.bytes(at, 2)?.try_into().expect("two bytes were asked for")))
    }

    pub(super) fn u32(&self, at: u64) -> Result<u32, HeaderError> {
        Ok(u32::from_be_bytes(self.bytes(at, 4)?.try_into().expect("four bytes were asked for")))
    }

    pub(super) fn u64(&self, at: u64) -> Result<u64, HeaderError> {
        Ok(u64::from_be_bytes(self.bytes(at, 8)?.try_into().expect("eight bytes were asked for")))
    }
}
