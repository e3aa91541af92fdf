//! Swap space: a page with a header, and pages whose content no system reads after its next start.

use std::ops::Range;

use crate::bytes::{le32, uuid};
use crate::disk::{Disk, read_up_to};
use crate::doubt::{Doubt, Stop, ensure};

/// Page sizes of the machines that Linux runs on. The signature is in the last ten bytes of the first page.
const PAGES: [usize; 5] = [4096, 8192, 16384, 32768, 65536];
/// Signature of a swap space that is not in use for anything else (`union swap_header` in linux/swap.h).
const SWAP: &[u8; 10] = b"SWAPSPACE2";
/// Signatures that a hibernated system puts in its place: the kernel's (kernel/power/swap.c), one that it had
/// in 2010, and those of other implementations.
const HIBERNATED: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
/// Offset of the header behind the boot sectors.
const HEADER: usize = 1024;

/// Signature that was found, with the page size of the machine that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    Swap { page: usize },
    Hibernated,
}

/// Finds a signature in the first bytes of a disk.
pub(crate) fn signature(head: &[u8]) -> Option<Signature> {
    PAGES.iter().find_map(|page| {
        let found = head.get(page - SWAP.len()..*page)?;
        if HIBERNATED.iter().any(|mark| found.starts_with(mark)) {
            Some(Signature::Hibernated)
        } else {
            (found == SWAP).then_some(Signature::Swap { page: *page })
        }
    })
}

/// Returns the UUID, and the bytes that hold swapped pages alone: all but the header's page. What lies behind
/// the last page of the swap space is not part of it.
pub(crate) fn probe(disk: &dyn Disk, page: usize) -> Result<(String, Range<u64>), Stop> {
    let head = read_up_to(disk, 0, page)?;
    ensure(le32(&head, HEADER) == 1, || Doubt::Superblock("the version of the swap header"))?;
    let last_page = u64::from(le32(&head, HEADER + 4));
    let page = u64::try_from(page).unwrap_or(u64::MAX);
    let end = last_page.checked_add(1).and_then(|pages| pages.checked_mul(page));
    let end = end.filter(|end| *end <= disk.size()).ok_or(Doubt::TooLarge)?;
    ensure(last_page > 0, || Doubt::Superblock("the length of the swap space"))?;
    Ok((uuid(&head, HEADER + 12), page..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(page: usize, pages: u32, mark: &[u8]) -> Vec<u8> {
        let mut disk = vec![0xaa; page * 20];
        disk[HEADER..HEADER + 4].copy_from_slice(&1_u32.to_le_bytes());
        disk[HEADER + 4..HEADER + 8].copy_from_slice(&(pages - 1).to_le_bytes());
        disk[page - 10..page - 10 + mark.len()].copy_from_slice(mark);
        disk
    }

    #[test]
    fn all_but_the_header_is_free_up_to_the_last_page() {
        for page in PAGES {
            let disk = swap(page, 16, SWAP);
            assert_eq!(signature(&disk), Some(Signature::Swap { page }));
            let (uuid, free) = probe(&disk, page).expect("swap");
            assert_eq!(uuid, "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa");
            let page = u64::try_from(page).expect("small");
            assert_eq!(free, page..16 * page);
        }
    }

    #[test]
    fn a_hibernated_system_is_no_swap() {
        for mark in HIBERNATED {
            assert_eq!(signature(&swap(4096, 16, mark)), Some(Signature::Hibernated));
        }
        assert_eq!(signature(&swap(4096, 16, b"SWAP-SPACE")), None);
        assert_eq!(signature(&[0; 100]), None);
    }

    #[test]
    fn a_header_that_promises_more_than_the_disk_is_doubted() {
        assert!(matches!(probe(&swap(4096, 21, SWAP), 4096), Err(Stop::Doubt(Doubt::TooLarge))));
        assert!(matches!(probe(&swap(4096, 1, SWAP), 4096), Err(Stop::Doubt(Doubt::Superblock(_)))));
        let mut other = swap(4096, 16, SWAP);
        other[HEADER] = 2;
        assert!(matches!(probe(&other, 4096), Err(Stop::Doubt(Doubt::Superblock(_)))));
    }
}
