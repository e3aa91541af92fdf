//! Persistent bitmaps: only where they lie, since what they say is for the program that made them.

use crate::qcow2::facts::{BitmapDirectory, Fields};
use crate::qcow2::header::HeaderError;
use crate::qcow2::image::{ImageError, ImageFile};
use crate::units::{ClusterBits, HostOffset, MIB, to_usize};

/// Most bytes of a directory, and of a bitmap's table (QEMU's `BME_MAX_TABLE_SIZE` and its directory's are below that).
const MOST: u64 = 64 * MIB;
/// Bytes of a directory's entry before its extra data.
const FIXED: u64 = 24;
/// Bits 9 to 55 of a bitmap table's entry: a host cluster's place.
const OFFSET: u64 = (1 << 56) - (1 << 9);

/// Every range of the file that bitmaps take: the directory, the tables, the clusters.
///
/// # Errors
/// Where the directory can't be read or makes no sense.
pub(super) fn places(
    file: &dyn ImageFile,
    directory: &BitmapDirectory,
    cluster: ClusterBits,
) -> Result<Vec<(HostOffset, u64)>, ImageError> {
    let refused = |source| ImageError::Header { name: file.name().to_owned(), source };
    let past_end = |table, at: HostOffset, len: u64| {
        let end = at.0.saturating_add(len);
        refused(HeaderError::PastEnd { table, end, file_len: file.size().0 })
    };
    let within = |at: HostOffset, len: u64| len <= MOST && at.0.checked_add(len).is_some_and(|end| end <= file.size().0);
    let read = |at: HostOffset, len: u64, table| {
        if !within(at, len) {
            return Err(past_end(table, at, len));
        }
        let mut bytes = vec![0; to_usize(len)];
        file.read_at(at, &mut bytes)?;
        Ok::<_, ImageError>(bytes)
    };
    let bytes = read(directory.at, directory.len, "bitmap directory")?;
    let mut found = vec![(directory.at, directory.len)];
    let mut at = 0;
    for _ in 0..directory.count {
        let fields = Fields(bytes.get(to_usize(at)..).unwrap_or_default());
        let (table, entries) = (HostOffset(fields.u64(0).map_err(refused)?), fields.u32(8).map_err(refused)?);
        let (name, extra) = (fields.u16(18).map_err(refused)?, fields.u32(20).map_err(refused)?);
        let len = u64::from(entries) * 8;
        found.push((table, len));
        let places = read(table, len, "bitmap table")?;
        let clusters = places.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw) & OFFSET);
        found.extend(clusters.filter(|at| *at != 0).map(|at| (HostOffset(at), cluster.size())));
        at += (FIXED + u64::from(extra) + u64::from(name)).next_multiple_of(8);
    }
    Ok(found)
}
