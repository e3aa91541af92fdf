//! Internal snapshots. They are listed and counted, but their disks are never read.

use snapferry_base::limits::zeros;
use snapferry_base::units::{HostOffset, to_u64, to_usize};

use crate::header::{Header, HeaderError};
use crate::header_info::Fields;
use crate::image::{ImageError, ImageFile};

/// Bytes of an entry before its extra data (specification, "Snapshots").
const FIXED: u64 = 40;
/// Largest size of the whole table in bytes: QEMU's `QCOW_MAX_SNAPSHOTS_SIZE` is the number of snapshots
/// times 1024.
const MAX_TABLE: u64 = 64 << 20;

/// Entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Offset of the snapshot's L1 table.
    pub l1_table: HostOffset,
    /// Number of entries in the L1 table.
    pub l1_entries: u32,
    /// Identifier of the snapshot, unique within the image.
    pub id: String,
    /// Name that the user gave the snapshot.
    pub name: String,
    /// Time of the snapshot: seconds since 1970, and nanoseconds.
    pub date: (u32, u32),
    /// Time that the guest had been running, in nanoseconds.
    pub vm_clock: u64,
    /// Bytes of the guest's memory that are saved in the snapshot.
    pub vm_state: u64,
    /// Number of instructions that the guest had executed, if QEMU counted them.
    pub icount: Option<u64>,
}

/// Returns the image's snapshots, and the size of their table in bytes.
///
/// # Errors
/// If the table can't be read, or doesn't end within the file.
pub fn list(file: &dyn ImageFile, header: &Header) -> Result<(Vec<Snapshot>, u64), ImageError> {
    if header.snapshots == 0 {
        return Ok((Vec::new(), 0));
    }
    let refused = |source| ImageError::Header { name: file.name().to_owned(), source };
    // The header doesn't give the table's size; it follows from the entries. Reading too much is harmless,
    // because the range ends with the file at the latest.
    let max_len =
        (file.size().0 - header.snapshot_table.0).min(u64::from(header.snapshots) * 1024).min(MAX_TABLE);
    let mut bytes = zeros("the list of snapshots", max_len)?;
    file.read_at(header.snapshot_table, &mut bytes)?;
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..header.snapshots {
        let remaining = bytes.get(to_usize(at)..).unwrap_or_default();
        let (snapshot, len) = entry(remaining).map_err(refused)?;
        found.push(snapshot);
        at += len;
    }
    Ok((found, at))
}

/// Parses the first entry in `bytes`. Also returns its length, with the padding to a multiple of eight bytes.
fn entry(bytes: &[u8]) -> Result<(Snapshot, u64), HeaderError> {
    let fields = Fields(bytes);
    let (id_len, name_len) = (u64::from(fields.u16(12)?), u64::from(fields.u16(14)?));
    let extra = u64::from(fields.u32(36)?);
    let text = |at, len| fields.bytes(at, len).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let snapshot = Snapshot {
        l1_table: HostOffset(fields.u64(0)?),
        l1_entries: fields.u32(8)?,
        id: text(FIXED + extra, id_len)?,
        name: text(FIXED + extra + id_len, name_len)?,
        date: (fields.u32(16)?, fields.u32(20)?),
        vm_clock: fields.u64(24)?,
        // The extra data begin with the size of the memory as 64 bits, the disk's size, and the count of
        // instructions.
        vm_state: if extra >= 8 { fields.u64(FIXED)? } else { u64::from(fields.u32(32)?) },
        icount: if extra >= 24 {
            Some(fields.u64(FIXED + 16)?).filter(|count| *count != u64::MAX)
        } else {
            None
        },
    };
    let len = (FIXED + extra + id_len + name_len).next_multiple_of(8);
    if len > to_u64(bytes.len()).next_multiple_of(8) {
        return Err(HeaderError::Truncated { len: to_u64(bytes.len()), needed: len });
    }
    Ok((snapshot, len))
}
