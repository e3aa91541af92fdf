//! Signatures: by which bytes a disk or partition shows what it holds.

use std::io;

use crate::bytes::{be32, le16, le32};
use crate::disk::{Disk, read_up_to};
use crate::doubt::Doubt;
use crate::swap;

/// Bytes from the start that hold every signature that is looked for here, but those at the end.
const HEAD: usize = 256 * 1024;

/// Place and bytes of a signature.
type Magic = (usize, &'static [u8]);

/// Format that a signature stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Ext4,
    Btrfs,
    Swap {
        page: usize,
    },
    Hibernated,
    /// A format whose free space is not read.
    Other(&'static str),
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
            Self::Swap { .. } | Self::Hibernated => "swap",
            Self::Other(name) => name,
        }
    }
}

/// Finds the one format of `disk`; `None` if it has no signature at all.
///
/// # Errors
/// A read error; or, in the inner result, the doubt if it has signatures of two.
pub(crate) fn find(disk: &dyn Disk) -> io::Result<Result<Option<Format>, Doubt>> {
    let head = read_up_to(disk, 0, HEAD)?;
    let mut found = formats(&head);
    if has_raid_tail(disk)? {
        found.push(Format::Other("Linux RAID"));
    }
    Ok(match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        [one, other, ..] => Err(Doubt::TwoSignatures(one.name(), other.name())),
    })
}

fn formats(head: &[u8]) -> Vec<Format> {
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let mut found = Vec::new();
    if le16(head, 1024 + 0x38) == 0xef53 {
        found.push(Format::Ext4);
    }
    if has(0x1_0040, b"_BHRfS_M") {
        found.push(Format::Btrfs);
    }
    match swap::signature(head) {
        Some(swap::Signature::Swap { page }) => found.push(Format::Swap { page }),
        Some(swap::Signature::Hibernated) => found.push(Format::Hibernated),
        None => {}
    }
    // Offsets as in libblkid's tables of magic strings.
    let others: [(&'static str, &[Magic]); 14] = [
        ("XFS", &[(0, b"XFSB")]),
        ("LUKS", &[(0, b"LUKS\xba\xbe"), (0x4000, b"SKUL\xba\xbe")]),
        ("NTFS", &[(3, b"NTFS    ")]),
        ("BitLocker", &[(3, b"-FVE-FS-")]),
        ("exFAT", &[(3, b"EXFAT   ")]),
        ("FAT", &[(0x36, b"FAT12   "), (0x36, b"FAT16   "), (0x52, b"FAT32   ")]),
        ("bcache", &[(0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")]),
        ("F2FS", &[(1024, b"\x10\x20\xf5\xf2")]),
        ("ReiserFS", &[(0x1_0034, b"ReIsEr"), (0x2034, b"ReIsEr")]),
        ("JFS", &[(0x8000, b"JFS1")]),
        ("squashfs", &[(0, b"hsqs")]),
        ("UDF or ISO 9660", &[(0x8001, b"CD001"), (0x8001, b"BEA01")]),
        ("GFS2", &[(0x1_0000, b"\x01\x16\x19\x70\x00\x00\x00\x01")]),
        ("VDO", &[(0, b"dmvdo001")]),
    ];
    for (name, magics) in others {
        if magics.iter().any(|(at, magic)| has(*at, magic)) {
            found.push(Format::Other(name));
        }
    }
    if (0..4).any(|sector| has(sector * 512, b"LABELONE") && has(sector * 512 + 24, b"LVM2 001")) {
        found.push(Format::Other("LVM"));
    }
    // RAID of version 1.1 at the start and of 1.2 at 4 KiB.
    if [0, 4096].iter().any(|at| le32(head, *at) == RAID_MAGIC) {
        found.push(Format::Other("Linux RAID"));
    }
    // The uberblocks of ZFS's first label, of the size of a sector or more.
    if (0x2_0000..HEAD)
        .step_by(1024)
        .any(|at| [be32(head, at + 4), le32(head, at)].contains(&0x00ba_b10c) && (head.get(at).is_some()))
    {
        found.push(Format::Other("ZFS"));
    }
    found
}

/// Magic number of Linux RAID's superblocks (`MD_SB_MAGIC`).
const RAID_MAGIC: u32 = 0xa92b_4efc;

/// True if the disk has a superblock of Linux RAID at its end: version 0.90, which begins 64 to 128 KiB
/// before the end on a multiple of 64 KiB, or 1.0, which begins 8 to 12 KiB before it on a multiple of 4 KiB.
fn has_raid_tail(disk: &dyn Disk) -> io::Result<bool> {
    let size = disk.size();
    let places = [(size & !0xffff).checked_sub(0x1_0000), size.checked_sub(0x2000).map(|at| at & !0xfff)];
    for place in places.into_iter().flatten() {
        if le32(&read_up_to(disk, place, 4)?, 0) == RAID_MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(marks: &[(usize, &[u8])]) -> Result<Option<Format>, Doubt> {
        let mut disk = vec![0; 1 << 20];
        for (at, mark) in marks {
            disk[*at..*at + mark.len()].copy_from_slice(mark);
        }
        find(&disk).expect("it is in memory")
    }

    #[test]
    fn each_format_is_found_by_its_own_bytes() {
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&[(1080, &[0x53, 0xef])]), Ok(Some(Format::Ext4)));
        assert_eq!(with(&[(4086, b"SWAPSPACE2")]), Ok(Some(Format::Swap { page: 4096 })));
        assert_eq!(with(&[(0x1_0040, b"_BHRfS_M")]), Ok(Some(Format::Btrfs)));
        assert_eq!(with(&[(0, b"XFSB")]), Ok(Some(Format::Other("XFS"))));
        assert_eq!(with(&[(512, b"LABELONE"), (536, b"LVM2 001")]), Ok(Some(Format::Other("LVM"))));
        assert_eq!(with(&[(4096, &RAID_MAGIC.to_le_bytes())]), Ok(Some(Format::Other("Linux RAID"))));
        for at in [(1 << 20) - 0x1_0000, (1 << 20) - 0x2000] {
            assert_eq!(with(&[(at, &RAID_MAGIC.to_le_bytes())]), Ok(Some(Format::Other("Linux RAID"))));
        }
        assert_eq!(with(&[(0x2_0000, &[0x0c, 0xb1, 0xba, 0])]), Ok(Some(Format::Other("ZFS"))));
    }

    #[test]
    fn two_signatures_are_doubted() {
        let both = with(&[(1080, &[0x53, 0xef]), (4086, b"SWAPSPACE2")]);
        assert_eq!(both, Err(Doubt::TwoSignatures("ext4", "swap")));
        let raid = with(&[(1080, &[0x53, 0xef]), ((1 << 20) - 0x2000, &RAID_MAGIC.to_le_bytes())]);
        assert_eq!(raid, Err(Doubt::TwoSignatures("ext4", "Linux RAID")));
    }
}
