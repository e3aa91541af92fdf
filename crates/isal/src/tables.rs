//! Symbols of deflate (RFC 1951, 3.2.5), and the tables by which tokens are written.

use crate::codes::Codes;

/// Symbols of literals, of the end of a block and of lengths.
pub(crate) const LITERALS: usize = 286;
/// Symbols of distances.
pub(crate) const DISTANCES: usize = 30;
/// Symbol that ends a block.
pub(crate) const END: usize = 256;
/// First symbol of a length.
pub(crate) const FIRST_LENGTH: usize = 257;
/// Symbols of lengths.
const LENGTHS: usize = LITERALS - FIRST_LENGTH;

/// Number of extra bits behind the code of a length's symbol, from the first such symbol on.
pub(crate) const LENGTH_EXTRA: [u32; LENGTHS] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
/// Number of lengths that a symbol stands for, from the first such symbol on. Length 258 has a symbol of its
/// own, so that the symbol before it stands for one length fewer than its extra bits can tell apart.
const LENGTH_RUNS: [usize; LENGTHS] =
    [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32, 31, 1];
/// Number of extra bits behind the code of a distance's symbol.
pub(crate) const DISTANCE_EXTRA: [u32; DISTANCES] =
    [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13];

/// Converts an index of a table, all of which are short.
pub(crate) fn narrow(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Converts a number to an index.
pub(crate) fn wide(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Values of a token's first field: literals, the end of a block, and lengths from 3 to 258.
pub(crate) const FIRST: usize = 513;
/// Values of a token's second field that are not literals: symbols of distances, and nothing.
const SECOND: usize = 31;

/// How often each symbol occurs in a block.
#[derive(Clone)]
pub(crate) struct Counts {
    pub(crate) literals: [u32; LITERALS],
    pub(crate) distances: [u32; DISTANCES],
}

impl Counts {
    pub(crate) const fn new() -> Self {
        Self { literals: [0; LITERALS], distances: [0; DISTANCES] }
    }

    /// Counts symbols by the values of tokens' first fields, and by the symbols of their distances.
    pub(crate) fn of(first: &[u32; FIRST], distances: &[u32; DISTANCES]) -> Self {
        let mut counts = Self { literals: [0; LITERALS], distances: *distances };
        let (literals, mut lengths) = first.split_at(FIRST_LENGTH);
        counts.literals[..FIRST_LENGTH].copy_from_slice(literals);
        for (sum, run) in counts.literals[FIRST_LENGTH..].iter_mut().zip(LENGTH_RUNS) {
            let (these, rest) = lengths.split_at(run);
            *sum = these.iter().sum();
            lengths = rest;
        }
        counts
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, count) in self.literals.iter_mut().zip(&other.literals) {
            *sum += count;
        }
        for (sum, count) in self.distances.iter_mut().zip(&other.distances) {
            *sum += count;
        }
    }

    /// Returns the number of extra bits of all lengths and distances.
    pub(crate) fn extra_bits(&self) -> u64 {
        let lengths = self.literals[FIRST_LENGTH..].iter().zip(LENGTH_EXTRA);
        let distances = self.distances.iter().zip(DISTANCE_EXTRA);
        lengths.chain(distances).map(|(count, extra)| u64::from(count * extra)).sum()
    }
}

/// ISA-L's `hufftables_icf`: the bits to write for each value of a token's fields.
#[repr(C)]
pub(crate) struct Tables {
    /// Code in the lower 16 bits, number of extra bits in the next 8, length of the code in the upper 8.
    second: [u32; SECOND],
    /// Code and extra bits in the lower 24 bits, length of both in the upper 8. A literal in a token's second
    /// field is looked up here too, because this table follows the other one.
    first: [u32; FIRST],
}

impl Tables {
    pub(crate) const fn new() -> Self {
        Self { second: [0; SECOND], first: [0; FIRST] }
    }

    /// Fills the tables with a block's codes.
    pub(crate) fn set(&mut self, codes: &Codes) {
        for ((entry, code), extra) in self.second.iter_mut().zip(&codes.distances).zip(DISTANCE_EXTRA) {
            *entry = u32::from(code.len) << 24 | extra << 16 | code.bits;
        }
        let (literals, mut lengths) = self.first.split_at_mut(FIRST_LENGTH);
        for (entry, code) in literals.iter_mut().zip(&codes.literals) {
            *entry = u32::from(code.len) << 24 | code.bits;
        }
        let symbols = codes.literals[FIRST_LENGTH..].iter().zip(LENGTH_EXTRA).zip(LENGTH_RUNS);
        for ((code, extra), run) in symbols {
            let (these, rest) = lengths.split_at_mut(run);
            for (value, entry) in (0_u32..).zip(these) {
                *entry = (u32::from(code.len) + extra) << 24 | value << code.len | code.bits;
            }
            lengths = rest;
        }
    }

    /// Returns the bits of a token's first field and their number.
    pub(crate) fn first(&self, value: u32) -> (u64, u32) {
        let word = self.first[wide(value)];
        (u64::from(word & 0xff_ffff), word >> 24)
    }

    /// Returns the bits of a token's second field, with the extra bits behind the code, and their number.
    pub(crate) fn second(&self, value: u32, extra: u32) -> (u64, u32) {
        let value = wide(value);
        let word = if value < SECOND { self.second[value] } else { self.first[value - SECOND] };
        let len = word >> 24;
        (u64::from(word & 0xffff) | u64::from(extra) << len, len + (word >> 16 & 0xff))
    }
}
