//! Persistent bitmaps. They are listed, and their clusters are counted. Their content is used only by the
//! program that created them.

use snapferry_base::limits::zeros;
use snapferry_base::units::{ByteCount, ClusterBits, HostOffset, MIB, to_u64, to_usize};

use crate::header::HeaderError;
use crate::header_info::{BitmapDirectory, Fields, HeaderInfo};
use crate::image::{ImageError, ImageFile};
use crate::l2::OFFSET;

/// Largest number of bitmaps in an image (QEMU's `QCOW2_MAX_BITMAPS`).
const MAX_BITMAPS: u32 = 65_535;
/// Largest size of the bitmap directory (QEMU's `QCOW2_MAX_BITMAP_DIRECTORY_SIZE`).
const MAX_DIRECTORY: ByteCount = ByteCount(1024 * 65_535);
/// Largest size of one bitmap in bytes (QEMU's `BME_MAX_PHYS_SIZE`); its table then has at most 8 MiB.
const MAX_BITMAP: u64 = 512 * MIB;
/// Largest length of a bitmap's name in bytes (QEMU's `BME_MAX_NAME_SIZE`).
const MAX_NAME: u16 = 1023;
/// Valid granularities (bytes of the disk for each bit) as powers of two: QEMU's `BME_MIN_GRANULARITY_BITS`
/// and `BME_MAX_GRANULARITY_BITS`.
const GRANULARITIES: std::ops::RangeInclusive<u8> = 9..=31;
/// The only type of bitmap: bits mark what was written to (specification, "Bitmap directory").
const DIRTY_TRACKING: u8 = 1;
/// Flag bit: a program began to write and has not saved the bitmap since.
const IN_USE: u32 = 1;
/// Flag bit: a program that writes to the image must update the bitmap.
const AUTO: u32 = 2;
/// Bytes of a directory entry before its name.
const FIXED: u64 = 24;

/// Entry of the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Name that the user gave the bitmap.
    pub name: String,
    /// True if the bitmap was not saved, so that its content is unreliable.
    pub in_use: bool,
    /// True if a program that writes to the image must record its writes in the bitmap.
    pub auto: bool,
    /// Bytes of the disk that one bit stands for.
    pub granularity: ByteCount,
    /// Offset of the bitmap's table.
    table: HostOffset,
    /// Number of entries in the table.
    entries: u32,
}

/// Returns the image's bitmaps. The rules are QEMU's: one invalid entry makes the whole directory invalid.
///
/// # Errors
/// If the directory can't be read, or one of its entries is invalid.
pub fn list(file: &dyn ImageFile, header_info: &HeaderInfo) -> Result<Vec<Bitmap>, ImageError> {
    let Some(directory) = &header_info.bitmaps else { return Ok(Vec::new()) };
    let refused = |source| ImageError::Header { name: file.name().to_owned(), source };
    directory.check(header_info.header.cluster, file.size()).map_err(refused)?;
    let mut bytes = zeros("the list of bitmaps", directory.len)?;
    file.read_at(directory.at, &mut bytes)?;
    entries(&bytes, directory.count, header_info).map_err(refused)
}

/// Returns every range of the file that bitmaps take, as offset and length: the directory, the tables, the
/// clusters.
///
/// # Errors
/// If [`list`] fails, or a table can't be read.
pub(super) fn ranges(
    file: &dyn ImageFile,
    header_info: &HeaderInfo,
) -> Result<Vec<(HostOffset, u64)>, ImageError> {
    let refused = |source| ImageError::Header { name: file.name().to_owned(), source };
    let bitmaps = list(file, header_info)?;
    let mut found: Vec<_> =
        header_info.bitmaps.iter().map(|directory| (directory.at, directory.len)).collect();
    // In a correct image no two tables share bytes. If they could, reading them might take many times the
    // memory of the file's length.
    let (len, max) = (ByteCount(bitmaps.iter().map(Bitmap::table_len).sum()), file.size());
    if len > max {
        return Err(refused(HeaderError::TableTooLong { table: "sum of all bitmap tables", len, max }));
    }
    for bitmap in &bitmaps {
        let (at, len) = (bitmap.table, bitmap.table_len());
        check_in_file("bitmap table", at, len, file.size()).map_err(refused)?;
        found.push((at, len));
        let mut table = zeros::<u8>("a bitmap's table", len)?;
        file.read_at(at, &mut table)?;
        let clusters = table.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw) & OFFSET);
        found.extend(
            clusters.filter(|at| *at != 0).map(|at| (HostOffset(at), header_info.header.cluster.size())),
        );
    }
    Ok(found)
}

fn check_in_file(
    table: &'static str,
    at: HostOffset,
    len: u64,
    file_len: ByteCount,
) -> Result<(), HeaderError> {
    let end = at.0.saturating_add(len);
    if end > file_len.0 { Err(HeaderError::PastEnd { table, end, file_len: file_len.0 }) } else { Ok(()) }
}

impl BitmapDirectory {
    fn check(&self, cluster: ClusterBits, file_len: ByteCount) -> Result<(), HeaderError> {
        let table = "bitmap directory";
        if self.count == 0 || self.count > MAX_BITMAPS {
            return Err(HeaderError::BitmapCount(self.count));
        }
        if self.at.0 == 0 || !self.at.0.is_multiple_of(cluster.size()) {
            return Err(HeaderError::Misplaced { table, offset: self.at.0 });
        }
        if self.len > MAX_DIRECTORY.0 {
            return Err(HeaderError::TableTooLong { table, len: ByteCount(self.len), max: MAX_DIRECTORY });
        }
        check_in_file(table, self.at, self.len, file_len)
    }
}

/// Parses the entries of the directory, which must fill it exactly.
fn entries(bytes: &[u8], count: u32, header_info: &HeaderInfo) -> Result<Vec<Bitmap>, HeaderError> {
    let mut found = Vec::new();
    let mut remaining = bytes;
    for number in 0..count {
        let (bitmap, len) = Bitmap::parse(remaining, number, header_info)?;
        found.push(bitmap);
        remaining = remaining.get(to_usize(len)..).ok_or(HeaderError::BitmapCount(count))?;
    }
    if remaining.is_empty() { Ok(found) } else { Err(HeaderError::BitmapCount(count)) }
}

impl Bitmap {
    /// Returns the largest space that the bitmap takes in an image of a disk of `size` bytes with clusters of
    /// this size: the bytes of its clusters and its table, and the bytes of its directory entry (QEMU's
    /// `qcow2_get_persistent_dirty_bitmap_size`).
    #[must_use]
    pub fn space(&self, size: ByteCount, cluster: ClusterBits) -> (u64, u64) {
        let clusters = cluster.clusters_in(size.0.div_ceil(self.granularity.0).div_ceil(8));
        let entry = (FIXED + to_u64(self.name.len())).next_multiple_of(8);
        (clusters * cluster.size() + cluster.round_up(clusters * 8), entry)
    }

    /// Parses the first entry in `bytes`. Also returns its length, with the padding to a multiple of eight
    /// bytes.
    fn parse(bytes: &[u8], number: u32, header_info: &HeaderInfo) -> Result<(Self, u64), HeaderError> {
        if to_u64(bytes.len()) < FIXED {
            return Err(HeaderError::BitmapCount(number));
        }
        let fields = Fields(bytes);
        let (table, entries, flags) = (fields.u64(0)?, fields.u32(8)?, fields.u32(12)?);
        let [kind, granularity] = fields.u16(16)?.to_be_bytes();
        let (name_len, extra) = (fields.u16(18)?, fields.u32(20)?);
        let cluster = header_info.header.cluster.size();
        let size = u64::from(entries) * cluster;
        let rules = [
            ("bitmap_table_offset", table, table != 0 && table.is_multiple_of(cluster)),
            ("bitmap_table_size", u64::from(entries), (cluster..=MAX_BITMAP).contains(&size)),
            ("flags", u64::from(flags), flags & !(IN_USE | AUTO) == 0),
            ("type", u64::from(kind), kind == DIRTY_TRACKING),
            ("granularity_bits", u64::from(granularity), GRANULARITIES.contains(&granularity)),
            ("name_size", u64::from(name_len), (1..=MAX_NAME).contains(&name_len)),
            ("extra_data_size", u64::from(extra), extra == 0),
        ];
        if let Some((field, value, _)) = rules.into_iter().find(|(_, _, valid)| !valid) {
            return Err(HeaderError::Bitmap { number, field, value });
        }
        let granularity = ByteCount(1 << granularity);
        let in_use = flags & IN_USE != 0;
        // QEMU stores the bits in words of eight bytes. A bitmap that was not saved may still have the size
        // for an earlier size of the disk.
        let bits = header_info.header.virtual_size.0.div_ceil(granularity.0);
        let needed = (bits.div_ceil(64) * 8).div_ceil(cluster);
        if !in_use && u64::from(entries) != needed {
            return Err(HeaderError::Bitmap {
                number,
                field: "bitmap_table_size",
                value: u64::from(entries),
            });
        }
        let len = (FIXED + u64::from(name_len)).next_multiple_of(8);
        let name = fields.bytes(FIXED, u64::from(name_len)).map_err(|_| HeaderError::BitmapCount(number))?;
        let name = String::from_utf8_lossy(name).into_owned();
        Ok((
            Self { name, in_use, auto: flags & AUTO != 0, granularity, table: HostOffset(table), entries },
            len,
        ))
    }

    fn table_len(&self) -> u64 {
        u64::from(self.entries) * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Codec, Finished, Geometry, Layout, MemoryFile};

    /// Returns the result of [`ranges`] for an image whose bitmaps all have the same table, which is as long
    /// as the file allows.
    fn sharing_a_table(count: u32) -> Result<Vec<(HostOffset, u64)>, ImageError> {
        let geometry = Geometry::new(ByteCount(4 * MIB), ClusterBits::KIB4).expect("a disk that fits");
        let Finished { head, tail, .. } = Layout::new(geometry, Codec::Deflate).finish();
        let mut bytes: Vec<u8> = head.into_iter().chain(tail.flatten()).collect();
        let (table, at) = (ClusterBits::KIB4.size(), to_u64(bytes.len()));
        let entries = u32::try_from((at - table) / 8).expect("a small file");
        let write_at = |bytes: &mut Vec<u8>, at: usize, words: &[&[u8]]| {
            let words = words.concat();
            bytes[at..at + words.len()].copy_from_slice(&words);
        };
        write_at(&mut bytes, 88, &[&1_u64.to_be_bytes()]);
        let len = u64::from(count) * 32;
        let heads = [0x2385_2875, 24, count, 0].map(u32::to_be_bytes).concat();
        write_at(&mut bytes, 112, &[&heads, &len.to_be_bytes(), &at.to_be_bytes()]);
        for _ in 0..count {
            let start = bytes.len();
            bytes.resize(start + 32, 0);
            let numbers = [entries, IN_USE, 0x0110_0001, 0].map(u32::to_be_bytes).concat();
            write_at(&mut bytes, start, &[&table.to_be_bytes(), &numbers, b"a"]);
        }
        let header_info = HeaderInfo::parse(&bytes, ByteCount(to_u64(bytes.len()))).expect("a good header");
        assert_eq!(header_info.bitmaps.map(|directory| directory.count), Some(count));
        ranges(&MemoryFile::new(bytes.into()), &header_info)
    }

    #[test]
    fn tables_that_share_bytes_are_not_followed() {
        assert!(sharing_a_table(1).expect("one can have it").len() > 2);
        for count in [2, 1000] {
            let refused = sharing_a_table(count);
            let is_expected = matches!(
                &refused,
                Err(ImageError::Header {
                    source: HeaderError::TableTooLong { table: "sum of all bitmap tables", .. },
                    ..
                })
            );
            assert!(is_expected, "{count}: {refused:?}");
        }
    }
}
