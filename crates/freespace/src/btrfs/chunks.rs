//! Chunks: where logical addresses lie on the device.

use std::ops::Range;

use super::superblock::Superblock;
use crate::bytes::{le16, le64};
use crate::doubt::{Doubt, Stop, ensure};

/// Type of a chunk's item, and of the objects that it belongs to.
pub(super) const CHUNK_ITEM: u8 = 228;
/// Length of a key, and of a chunk's item without stripes, and of a stripe.
const KEY: usize = 17;
const CHUNK: usize = 48;
const STRIPE: usize = 32;
/// Types of chunks: data, system, metadata; and, of the profiles, two copies on one device.
const KINDS: u64 = 0x1 | 0x2 | 0x4;
const DUP: u64 = 0x20;

/// Stretch of logical addresses, and its copies on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) logical: Range<u64>,
    /// First byte of each copy.
    pub(super) copies: Vec<u64>,
}

/// Chunks sorted by their logical addresses.
#[derive(Debug, Default)]
pub(super) struct Chunks(pub(super) Vec<Chunk>);

impl Chunks {
    /// Reads the list in the superblock.
    pub(super) fn system(superblock: &Superblock) -> Result<Self, Stop> {
        let mut chunks = Self::default();
        let mut rest = &superblock.system_chunks[..];
        while !rest.is_empty() {
            let (logical, kind) = (le64(rest, 9), rest.get(8).copied());
            ensure(kind == Some(CHUNK_ITEM) && rest.len() > KEY, || damaged("the list of chunks"))?;
            let taken = chunks.add(superblock, logical, &rest[KEY..])?;
            rest = rest.get(KEY + taken..).unwrap_or(&[]);
        }
        Ok(chunks)
    }

    /// Adds the chunk that an item describes, and returns the length of the item.
    pub(super) fn add(&mut self, superblock: &Superblock, logical: u64, item: &[u8]) -> Result<usize, Stop> {
        let (length, kind) = (le64(item, 0), le64(item, 24));
        let count = usize::from(le16(item, 44));
        ensure(kind & !(KINDS | DUP) == 0, || Doubt::Unsupported("a RAID of btrfs"))?;
        ensure(count == if kind & DUP == 0 { 1 } else { 2 }, || damaged("the copies of a chunk"))?;
        let taken = CHUNK + count * STRIPE;
        let stripes = item.get(CHUNK..taken).ok_or_else(|| damaged("a chunk"))?;
        let end = logical.checked_add(length).filter(|end| *end > logical);
        let mut chunk =
            Chunk { logical: logical..end.ok_or_else(|| damaged("a chunk"))?, copies: Vec::new() };
        for stripe in stripes.chunks_exact(STRIPE) {
            let at = le64(stripe, 8);
            let fits = at.checked_add(length).is_some_and(|end| end <= superblock.device_bytes);
            ensure(le64(stripe, 0) == superblock.device && fits, || damaged("the place of a chunk"))?;
            chunk.copies.push(at);
        }
        let index = self.0.partition_point(|other| other.logical.start < logical);
        match self.0.get(index) {
            Some(same) if *same == chunk => {}
            next => {
                let behind = next.is_none_or(|next| next.logical.start >= chunk.logical.end);
                let before = index.checked_sub(1).and_then(|before| self.0.get(before));
                let free = before.is_none_or(|before| before.logical.end <= logical);
                ensure(behind && free, || damaged("chunks overlap"))?;
                self.0.insert(index, chunk);
            }
        }
        Ok(taken)
    }

    /// Returns the chunk that has all of a range.
    pub(super) fn of(&self, range: &Range<u64>) -> Result<&Chunk, Stop> {
        let index = self.0.partition_point(|chunk| chunk.logical.end <= range.start);
        let found = self.0.get(index).filter(|chunk| {
            chunk.logical.start <= range.start && range.start < range.end && range.end <= chunk.logical.end
        });
        Ok(found.ok_or_else(|| damaged("an address outside of all chunks"))?)
    }

    /// Checks that no two copies lie on the same bytes of the device.
    pub(super) fn check_copies(&self) -> Result<(), Stop> {
        let mut places: Vec<Range<u64>> = self.0.iter().flat_map(Chunk::places).collect();
        places.sort_unstable_by_key(|place| place.start);
        let apart = places.windows(2).all(|pair| pair[0].end <= pair[1].start);
        ensure(apart, || damaged("chunks overlap on the device"))
    }
}

impl Chunk {
    /// Returns the bytes of the device that the chunk has.
    pub(super) fn places(&self) -> impl Iterator<Item = Range<u64>> {
        let length = self.logical.end - self.logical.start;
        self.copies.iter().map(move |at| *at..*at + length)
    }

    /// Returns the bytes of the device that hold a range of the chunk.
    pub(super) fn placed(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let (from, to) = (range.start - self.logical.start, range.end - self.logical.start);
        self.copies.iter().map(move |at| at + from..at + to)
    }
}

pub(super) fn damaged(what: &'static str) -> Doubt {
    Doubt::Tree { what }
}
