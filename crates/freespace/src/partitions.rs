//! Partition tables: GPT (UEFI specification, chapter 5) and MBR with logical partitions.

use std::io;
use std::ops::Range;

use crate::bytes::{le32, le64};
use crate::crc::{agrees, crc32};
use crate::disk::{Disk, read_up_to};
use crate::doubt::{Doubt, Stop, ensure};

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Number, as Linux counts: from 1; logical partitions from 5.
    pub(crate) number: u32,
    /// Bytes of the disk. May end behind the disk.
    pub(crate) range: Range<u64>,
}

/// Sector size that an MBR counts in, in bytes.
const SECTOR: u64 = 512;
/// Sector sizes that a GPT may count in, in bytes.
const GPT_SECTORS: [u64; 2] = [512, 4096];
/// Most bytes of a GPT's entries: 8192 entries of 128 bytes. Every tool makes 128.
const MOST_ENTRY_BYTES: u64 = 1 << 20;
/// Most logical partitions that are followed.
const MOST_LOGICAL: u32 = 256;
/// MBR type of the entry that covers a GPT.
const PROTECTIVE: u8 = 0xee;
/// MBR types of an extended partition: CHS, LBA and Linux's.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Finds the partitions, in the order of the disk. None if the disk has no partition table.
pub(crate) fn find(disk: &dyn Disk) -> Result<Vec<Partition>, Stop> {
    let mbr = read_up_to(disk, 0, 512)?;
    let entries = mbr_entries(&mbr);
    let protective = entries.iter().any(|entry| entry.kind == PROTECTIVE);
    let gpt = gpt(disk)?;
    let mut partitions = match (gpt, protective) {
        (Gpt::Partitions(partitions), true) => partitions,
        (Gpt::Partitions(_), false) => {
            return Err(Doubt::PartitionTable("a GPT whose MBR does not protect it").into());
        }
        (Gpt::Damaged(what), _) => return Err(Doubt::PartitionTable(what).into()),
        (Gpt::None, true) => return Err(Doubt::PartitionTable("no GPT behind its protective MBR").into()),
        (Gpt::None, false) => mbr_partitions(disk, &entries)?,
    };
    partitions.sort_by_key(|partition| partition.range.start);
    let overlap = partitions.windows(2).any(|pair| pair[0].range.end > pair[1].range.start);
    ensure(!overlap, || Doubt::PartitionTable("partitions overlap"))?;
    Ok(partitions)
}

enum Gpt {
    None,
    Damaged(&'static str),
    Partitions(Vec<Partition>),
}

/// Reads the GPT: the first header that is whole, of both copies in both sector sizes.
fn gpt(disk: &dyn Disk) -> io::Result<Gpt> {
    let mut damaged = None;
    for sector in GPT_SECTORS {
        let last = (disk.size() / sector).saturating_sub(1);
        let mut tables = Vec::new();
        for lba in [1, last] {
            match gpt_copy(disk, sector, lba)? {
                Gpt::None => {}
                Gpt::Damaged(what) => damaged = Some(what),
                Gpt::Partitions(partitions) => tables.push(partitions),
            }
        }
        if let [primary, backup] = &tables[..]
            && primary != backup
        {
            return Ok(Gpt::Damaged("the two copies of the GPT differ"));
        }
        if !tables.is_empty() {
            return Ok(Gpt::Partitions(tables.remove(0)));
        }
    }
    Ok(damaged.map_or(Gpt::None, Gpt::Damaged))
}

/// Reads the copy of the GPT whose header is in sector `lba`.
fn gpt_copy(disk: &dyn Disk, sector: u64, lba: u64) -> io::Result<Gpt> {
    let Some(at) = lba.checked_mul(sector) else { return Ok(Gpt::None) };
    let header = read_up_to(disk, at, 512)?;
    if header.get(..8) != Some(b"EFI PART") {
        return Ok(Gpt::None);
    }
    let length = usize::try_from(le32(&header, 12)).unwrap_or(usize::MAX);
    if !(92..=512).contains(&length) || length > header.len() {
        return Ok(Gpt::Damaged("the length of the GPT's header"));
    }
    let mut summed = header[..length].to_vec();
    summed[16..20].fill(0);
    if !agrees(crc32(&summed), le32(&header, 16)) {
        return Ok(Gpt::Damaged("the checksum of the GPT's header"));
    }
    let (own, first, last, entries_at) =
        (le64(&header, 24), le64(&header, 40), le64(&header, 48), le64(&header, 72));
    let (count, entry_size) = (u64::from(le32(&header, 80)), u64::from(le32(&header, 84)));
    if own != lba {
        return Ok(Gpt::Damaged("the GPT's header belongs elsewhere"));
    }
    let bytes = count.checked_mul(entry_size).filter(|bytes| *bytes <= MOST_ENTRY_BYTES);
    let place = entries_at.checked_mul(sector);
    let (Some(bytes), Some(place)) = (bytes, place) else {
        return Ok(Gpt::Damaged("the size of the GPT"));
    };
    if entry_size < 128 || entry_size % 8 != 0 {
        return Ok(Gpt::Damaged("the size of the GPT's entries"));
    }
    let (bytes, entry_size) = (to_usize(bytes), to_usize(entry_size));
    let entries = read_up_to(disk, place, bytes)?;
    if entries.len() < bytes || !agrees(crc32(&entries), le32(&header, 88)) {
        return Ok(Gpt::Damaged("the checksum of the GPT's entries"));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(entry_size)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (from, to) = (le64(entry, 32), le64(entry, 40));
        let end = to.checked_add(1).and_then(|end| end.checked_mul(sector));
        let (Some(start), Some(end)) = (from.checked_mul(sector), end) else {
            return Ok(Gpt::Damaged("the place of a partition"));
        };
        if from < first || to > last || from > to {
            return Ok(Gpt::Damaged("the place of a partition"));
        }
        partitions.push(Partition { number, range: start..end });
    }
    Ok(Gpt::Partitions(partitions))
}

fn to_usize(bounded: u64) -> usize {
    usize::try_from(bounded).unwrap_or(usize::MAX)
}

struct Entry {
    number: u32,
    kind: u8,
    first: u64,
    count: u64,
}

/// Reads the four entries of an MBR, or of the table of a logical partition. None if it has no signature, or
/// is no table: a boot sector of FAT has the same signature.
fn mbr_entries(sector: &[u8]) -> Vec<Entry> {
    if sector.get(510..512) != Some(&[0x55, 0xaa]) {
        return Vec::new();
    }
    let entries = (1..).zip(sector[446..510].chunks_exact(16));
    if entries.clone().any(|(_, entry): (u32, _)| entry[0] & 0x7f != 0) {
        return Vec::new();
    }
    entries
        .map(|(number, entry)| Entry {
            number,
            kind: entry[4],
            first: u64::from(le32(entry, 8)),
            count: u64::from(le32(entry, 12)),
        })
        .filter(|entry| entry.kind != 0 && entry.count != 0)
        .collect()
}

fn mbr_partitions(disk: &dyn Disk, entries: &[Entry]) -> Result<Vec<Partition>, Stop> {
    let mut partitions = Vec::new();
    let mut extended = None;
    for entry in entries {
        if EXTENDED.contains(&entry.kind) {
            ensure(extended.is_none(), || Doubt::PartitionTable("two extended partitions"))?;
            extended = Some(entry.first..entry.first + entry.count);
        } else {
            partitions.push(partition(entry.number, entry.first, entry.count)?);
        }
    }
    if let Some(extended) = extended {
        logical(disk, &extended, &mut partitions)?;
    }
    Ok(partitions)
}

/// Follows the chain of logical partitions in the sectors `extended`.
fn logical(disk: &dyn Disk, extended: &Range<u64>, to: &mut Vec<Partition>) -> Result<(), Stop> {
    let mut at = extended.start;
    for index in 0..MOST_LOGICAL {
        let table = read_up_to(disk, at * SECTOR, 512)?;
        ensure(table.get(510..512) == Some(&[0x55, 0xaa]), || {
            Doubt::PartitionTable("the chain of logical partitions")
        })?;
        let mut next = None;
        for entry in mbr_entries(&table).into_iter().take(2) {
            if EXTENDED.contains(&entry.kind) {
                next = Some(extended.start + entry.first);
            } else {
                let first = at + entry.first;
                ensure(first > at && first + entry.count <= extended.end, || {
                    Doubt::PartitionTable("a logical partition outside of the extended one")
                })?;
                to.push(partition(5 + index, first, entry.count)?);
            }
        }
        match next {
            None => return Ok(()),
            // Every tool writes the chain in the order of the disk, so that it has no circle.
            Some(next) if next > at && next < extended.end => at = next,
            Some(_) => break,
        }
    }
    Err(Doubt::PartitionTable("the chain of logical partitions").into())
}

/// Makes a partition of sectors, whose numbers had 32 bits on the disk.
fn partition(number: u32, first: u64, count: u64) -> Result<Partition, Stop> {
    ensure(first > 0, || Doubt::PartitionTable("a partition that holds the table itself"))?;
    Ok(Partition { number, range: first * SECTOR..(first + count) * SECTOR })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: usize = 4096;

    fn entry(disk: &mut [u8], table: usize, slot: usize, kind: u8, first: u32, count: u32) {
        let at = table * 512 + 446 + slot * 16;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        disk[table * 512 + 510..table * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn found(disk: &Vec<u8>) -> Vec<(u32, Range<u64>)> {
        find(disk)
            .expect("a sound table")
            .into_iter()
            .map(|partition| (partition.number, partition.range.start / 512..partition.range.end / 512))
            .collect()
    }

    fn doubt(disk: &Vec<u8>) -> Doubt {
        match find(disk) {
            Err(Stop::Doubt(doubt)) => doubt,
            other => panic!("{other:?}"),
        }
    }

    fn with_logical() -> Vec<u8> {
        let mut disk = vec![0; SECTORS * 512];
        entry(&mut disk, 0, 0, 0x83, 64, 100);
        entry(&mut disk, 0, 1, 0x0f, 1000, 3000);
        entry(&mut disk, 1000, 0, 0x83, 10, 500);
        entry(&mut disk, 1000, 1, 0x05, 1000, 1000);
        entry(&mut disk, 2000, 0, 0x82, 20, 900);
        disk
    }

    #[test]
    fn logical_partitions_are_followed_from_table_to_table() {
        assert_eq!(found(&with_logical()), [(1, 64..164), (5, 1010..1510), (6, 2020..2920)]);
        assert_eq!(found(&vec![0; SECTORS * 512]), []);
        assert_eq!(found(&vec![0; 100]), []);
    }

    #[test]
    fn a_chain_that_goes_back_or_leaves_its_partition_is_doubted() {
        for next in [0, 1000 - 1000, 3000, u32::MAX] {
            let mut disk = with_logical();
            entry(&mut disk, 2000, 1, 0x05, next, 10);
            assert!(matches!(doubt(&disk), Doubt::PartitionTable(_)), "{next}");
        }
        let mut disk = with_logical();
        entry(&mut disk, 2000, 0, 0x83, 20, 5000);
        assert!(matches!(doubt(&disk), Doubt::PartitionTable(_)));
        let mut disk = with_logical();
        entry(&mut disk, 0, 2, 0x83, 100, 100);
        assert_eq!(doubt(&disk), Doubt::PartitionTable("partitions overlap"));
    }

    /// Disk with a GPT of two partitions and both copies, as the specification has it.
    fn with_gpt(sector: usize) -> Vec<u8> {
        let mut disk = vec![0; sector * SECTORS];
        entry(&mut disk, 0, 0, PROTECTIVE, 1, 4095);
        let mut entries = vec![0; 128 * 128];
        for (slot, (first, last)) in [(0, (64_u64, 999_u64)), (2, (1000, 1999))] {
            let at = slot * 128;
            entries[at..at + 16].fill(7);
            entries[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
            entries[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        }
        let entry_sectors = entries.len().div_ceil(sector);
        for (lba, entries_at) in [(1, 2), (SECTORS - 1, SECTORS - 1 - entry_sectors)] {
            let mut header = vec![0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            for (at, value) in [(24, lba), (40, 40), (48, 4000), (72, entries_at)] {
                header[at..at + 8].copy_from_slice(&u64::try_from(value).expect("small").to_le_bytes());
            }
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            let sum = crc32(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            disk[lba * sector..lba * sector + 92].copy_from_slice(&header);
            disk[entries_at * sector..entries_at * sector + entries.len()].copy_from_slice(&entries);
        }
        disk
    }

    #[test]
    fn a_gpt_is_read_in_both_sector_sizes_and_from_either_copy() {
        for sector in [512, 4096] {
            let scale = u64::try_from(sector / 512).expect("small");
            let expected = [(1, 64 * scale..1000 * scale), (3, 1000 * scale..2000 * scale)];
            let disk = with_gpt(sector);
            assert_eq!(found(&disk), expected);
            let mut one_copy = disk.clone();
            one_copy[sector..sector + 8].fill(0);
            assert_eq!(found(&one_copy), expected);
            let mut one_copy = disk.clone();
            one_copy[sector * 2] ^= 1;
            assert_eq!(found(&one_copy), expected);
            let mut grown = disk;
            grown.extend_from_slice(&vec![0; sector * 100]);
            assert_eq!(found(&grown), expected);
        }
    }

    #[test]
    fn a_gpt_in_doubt_is_no_partition_table() {
        let mut disk = with_gpt(512);
        disk[446..510].fill(0);
        assert_eq!(doubt(&disk), Doubt::PartitionTable("a GPT whose MBR does not protect it"));
        let mut disk = with_gpt(512);
        disk[512 + 40] ^= 1;
        disk[(SECTORS - 1) * 512 + 40] ^= 1;
        assert_eq!(doubt(&disk), Doubt::PartitionTable("the checksum of the GPT's header"));
        let mut disk = with_gpt(512);
        disk[512..520].fill(0);
        disk[(SECTORS - 1) * 512..].fill(0);
        assert_eq!(doubt(&disk), Doubt::PartitionTable("no GPT behind its protective MBR"));
    }
}
