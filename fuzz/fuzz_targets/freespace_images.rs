//! A snapshot of a busy ext4 with changed bytes in its metadata or its journal, while every checksum
//! counts as right: the probe ends, and what it calls free lies within the filesystem.
#![no_main]

use std::io;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapferry_freespace::{Disk, Outcome, probe};

const PACKED: [&[u8]; 3] = [
    include_bytes!("../../crates/freespace/tests/fixtures/default.zst"),
    include_bytes!("../../crates/freespace/tests/fixtures/no-checksums.zst"),
    include_bytes!("../../crates/freespace/tests/fixtures/bigalloc.zst"),
];

/// Fixture of `crates/freespace/tests/it/fixtures.rs`: its size, and its ranges, each with its first byte.
struct Known {
    size: u64,
    ranges: Vec<(u64, Vec<u8>)>,
    /// Bytes in all ranges.
    length: u64,
}

static FIXTURES: LazyLock<Vec<Known>> =
    LazyLock::new(|| PACKED.iter().map(|packed| Known::unpack(packed)).collect());

impl Known {
    fn unpack(packed: &[u8]) -> Self {
        let bytes = zstd::stream::decode_all(packed).expect("zstd");
        let mut rest = &bytes[..];
        let number = |rest: &mut &[u8]| {
            let (front, back) = rest.split_first_chunk::<8>().expect("a number");
            *rest = back;
            u64::from_le_bytes(*front)
        };
        let size = number(&mut rest);
        let (mut ranges, mut total) = (Vec::new(), 0);
        while !rest.is_empty() {
            let (start, length) = (number(&mut rest), number(&mut rest));
            let (own, more) = rest.split_at(usize::try_from(length).expect("small"));
            ranges.push((start, own.to_vec()));
            total += length;
            rest = more;
        }
        Self { size, ranges, length: total }
    }

    /// Returns the place on the disk of the byte `index` of all that are known.
    fn place(&self, index: u64) -> u64 {
        let mut left = index % self.length;
        for (start, bytes) in &self.ranges {
            let length = u64::try_from(bytes.len()).expect("small");
            if left < length {
                return start + left;
            }
            left -= length;
        }
        0
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    fixture: u8,
    patches: Vec<Patch>,
}

#[derive(Arbitrary, Debug)]
struct Patch {
    at: u32,
    bytes: [u8; 4],
    count: u8,
}

struct Patched<'a> {
    known: &'a Known,
    patches: Vec<(u64, u8)>,
}

impl Disk for Patched<'_> {
    fn size(&self) -> u64 {
        self.known.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + u64::try_from(into.len()).expect("small");
        assert!(end <= self.known.size, "a read behind the disk");
        into.fill(0);
        for (start, bytes) in &self.known.ranges {
            let stop = start + u64::try_from(bytes.len()).expect("small");
            let (from, to) = (offset.max(*start), end.min(stop));
            if from < to {
                let place = |at: u64, base: u64| usize::try_from(at - base).expect("small");
                into[place(from, offset)..place(to, offset)]
                    .copy_from_slice(&bytes[place(from, *start)..place(to, *start)]);
            }
        }
        for (at, byte) in &self.patches {
            if (offset..end).contains(at) {
                into[usize::try_from(at - offset).expect("small")] = *byte;
            }
        }
        Ok(())
    }
}

fuzz_target!(|input: Input| {
    let known = &FIXTURES[usize::from(input.fixture) % FIXTURES.len()];
    let mut patches = Vec::new();
    for patch in input.patches.iter().take(64) {
        let at = known.place(u64::from(patch.at));
        let bytes = patch.bytes.iter().take(usize::from(patch.count % 4) + 1);
        patches.extend((at..).zip(bytes.copied()));
    }
    let found = probe(&Patched { known, patches }).expect("no read fails");
    let mut before = 0;
    for verdict in &found.filesystems {
        if let Outcome::Skipped { free, .. } = &verdict.outcome {
            for range in free.as_slice() {
                assert!(range.start >= verdict.offset.max(before) && range.start < range.end, "{range:?}");
                assert!(range.end <= verdict.offset + verdict.length, "{range:?}");
                before = range.end;
            }
        }
    }
});
