//! Signatures at the start and the end of a disk that show that it holds data which the user may miss: file
//! systems, partition tables, volumes, swap.

use snapferry_base::units::{KIB, to_usize};

/// Bytes to examine at the start of a disk: the superblock of btrfs lies farthest from it.
pub(super) const FRONT: usize = 128 << 10;
/// Bytes to examine at the end of a disk: the old RAID superblock lies up to 128 KiB before it.
pub(super) const BACK: usize = 128 << 10;

/// Signature as `blkid` knows it: its offset and its bytes.
struct Mark {
    description: &'static str,
    at: u64,
    magic: &'static [u8],
}

const fn mark(description: &'static str, at: u64, magic: &'static [u8]) -> Mark {
    Mark { description, at, magic }
}

/// Signatures from the start of a disk. The most specific come first: an NTFS volume has the signature of an
/// MBR too.
const MARKS: [Mark; 26] = [
    mark("a qcow2 image", 0, b"QFI\xfb"),
    mark("a LUKS volume", 0, b"LUKS\xba\xbe"),
    mark("an XFS file system", 0, b"XFSB"),
    mark("an ext file system", KIB + 0x38, b"\x53\xef"),
    mark("a btrfs file system", 64 * KIB + 0x40, b"_BHRfS_M"),
    mark("an F2FS file system", KIB, b"\x10\x20\xf5\xf2"),
    mark("an NTFS file system", 3, b"NTFS    "),
    mark("an exFAT file system", 3, b"EXFAT   "),
    mark("a FAT file system", 0x52, b"FAT32   "),
    mark("a FAT file system", 0x36, b"FAT16   "),
    mark("a FAT file system", 0x36, b"FAT12   "),
    mark("an ISO 9660 file system", 32 * KIB + 1, b"CD001"),
    mark("a SquashFS file system", 0, b"hsqs"),
    mark("swap space", 4086, b"SWAPSPACE2"),
    mark("swap space", 4086, b"SWAP-SPACE"),
    mark("swap space", 65_526, b"SWAPSPACE2"),
    mark("an LVM physical volume", 0, b"LABELONE"),
    mark("an LVM physical volume", 512, b"LABELONE"),
    mark("an LVM physical volume", 1024, b"LABELONE"),
    mark("an LVM physical volume", 1536, b"LABELONE"),
    mark("a part of a RAID", 0, b"\xfc\x4e\x2b\xa9"),
    mark("a part of a RAID", 4 * KIB, b"\xfc\x4e\x2b\xa9"),
    mark("a bcache device", 4 * KIB + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    mark("a GPT partition table", 512, b"EFI PART"),
    mark("a GPT partition table", 4096, b"EFI PART"),
    mark("an MBR partition table", 510, b"\x55\xaa"),
];

/// Signatures at the end of a disk; their offsets are counted back from the end.
const END_MARKS: [Mark; 3] = [
    mark("a GPT partition table", 512, b"EFI PART"),
    mark("a GPT partition table", 4096, b"EFI PART"),
    mark("a part of a RAID", 64 * KIB, b"\xfc\x4e\x2b\xa9"),
];

/// Returns the kind of content that a disk seems to hold, from its first and last bytes.
pub(super) fn find(front: &[u8], back: &[u8]) -> Option<&'static str> {
    let in_front = MARKS.iter().find(|mark| at(front, to_usize(mark.at), mark.magic));
    let in_back = || {
        END_MARKS.iter().find(|mark| {
            back.len().checked_sub(to_usize(mark.at)).is_some_and(|from| at(back, from, mark.magic))
        })
    };
    in_front.or_else(in_back).map(|mark| mark.description)
}

fn at(bytes: &[u8], from: usize, magic: &[u8]) -> bool {
    bytes.get(from..from + magic.len()) == Some(magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_where_they_lie_and_nowhere_else() {
        let blank = vec![0; FRONT];
        assert_eq!(find(&blank, &blank), None);
        for mark in &MARKS {
            let mut disk = blank.clone();
            let from = to_usize(mark.at);
            disk[from..from + mark.magic.len()].copy_from_slice(mark.magic);
            assert_eq!(find(&disk, &blank), Some(mark.description));
            assert_eq!(find(&disk[1..], &blank), None, "{} one byte before", mark.description);
        }
        for mark in &END_MARKS {
            let mut back = blank.clone();
            let from = back.len() - to_usize(mark.at);
            back[from..from + mark.magic.len()].copy_from_slice(mark.magic);
            assert_eq!(find(&blank, &back), Some(mark.description));
        }
        assert_eq!(find(b"QFI\xfb", b""), Some("a qcow2 image"), "a disk of four bytes");
    }
}
