//! The first and the last bytes of a disk, with any partition table or swap header, while every checksum
//! counts as right: the probe ends, and what it calls free lies within the disk.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use snapferry_freespace::{Disk, probe};

/// Disk that begins and ends with the same bytes, and has zeros between.
struct Ends<'a> {
    bytes: &'a [u8],
    size: u64,
}

impl Disk for Ends<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(offset + u64::try_from(into.len()).expect("small") <= self.size, "a read behind the disk");
        let last = self.size - u64::try_from(self.bytes.len()).expect("small").min(self.size);
        for (at, byte) in (offset..).zip(into) {
            let index = if at >= last { at - last } else { at };
            *byte = usize::try_from(index).ok().and_then(|index| self.bytes.get(index)).copied().unwrap_or(0);
        }
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    for size in [1 << 20, 1 << 40, 4096, bytes.len().try_into().expect("small")] {
        let found = probe(&Ends { bytes, size }).expect("no read fails");
        assert!(found.free.as_slice().iter().all(|range| range.end <= size));
    }
});
