//! Huffman codes of deflate: the lengths of codes from the counts of symbols, the codes from their lengths,
//! and the header that describes them.

use crate::bits::Bits;
use crate::tables::{Counts, DISTANCES, END, LITERALS, narrow, wide};

/// RFC 1951, 3.2.7: the most bits of a literal's, length's or distance's code.
const LONGEST: u8 = 15;
/// RFC 1951, 3.2.7: the most bits of a code of the header.
const LONGEST_OF_HEADER: u8 = 7;
/// Symbols of the header: a length of a code, or a repetition.
const HEADER: usize = 19;
/// RFC 1951, 3.2.7: the order in which a header gives the lengths of its own codes.
const ORDER: [usize; HEADER] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Code of a symbol, as deflate writes it: its first bit is the lowest.
#[derive(Clone, Copy, Default)]
pub(crate) struct Code {
    pub(crate) bits: u32,
    pub(crate) len: u8,
}

/// Bits of a word that hold a symbol; the symbol's count is above them.
const SYMBOL_BITS: u32 = 9;
/// Buckets of the counting sort. All counts from the last bucket on share it.
const BUCKETS: usize = 512;

/// Returns the bucket of a count.
fn bucket(count: u32) -> usize {
    wide(count).min(BUCKETS - 1)
}

/// Sorts the symbols that occur, the rarest first, as words of count and symbol. Returns their number.
fn sort(counts: &[u32], sorted: &mut [u32; LITERALS]) -> usize {
    let mut starts = [0_u16; BUCKETS];
    for &count in counts {
        starts[bucket(count)] += 1;
    }
    let mut used = 0;
    // Bucket 0 has the symbols that do not occur.
    for start in &mut starts[1..] {
        (*start, used) = (used, used + *start);
    }
    let (large, used) = (usize::from(starts[BUCKETS - 1]), usize::from(used));
    for (symbol, &count) in counts.iter().enumerate() {
        if count > 0 {
            let start = &mut starts[bucket(count)];
            sorted[usize::from(*start)] = count << SYMBOL_BITS | narrow(symbol);
            *start += 1;
        }
    }
    sorted[large..used].sort_unstable();
    used
}

/// Gives each symbol that occurs the length of its code, at most `longest`. At least two symbols get a code,
/// because decoders refuse some sets of one.
fn find_lengths(counts: &[u32], longest: u8, lengths: &mut [u8]) {
    lengths.fill(0);
    let mut sorted = [0_u32; LITERALS];
    let used = sort(counts, &mut sorted);
    if used < 2 {
        let only = counts.iter().position(|count| *count > 0).unwrap_or(0);
        lengths[only] = 1;
        lengths[usize::from(only == 0)] = 1;
        return;
    }

    // Huffman's tree by two queues: the leaves, and the inner nodes in the order of their making. The weights
    // of both ascend.
    let nodes = used - 1;
    let mut weights = [0_u32; LITERALS];
    let mut parents = [0_u16; LITERALS];
    let (mut leaf, mut inner) = (0, 0);
    for (node, parent) in (0..nodes).zip(0_u16..) {
        for _ in 0..2 {
            let count = if leaf < used { sorted[leaf] >> SYMBOL_BITS } else { u32::MAX };
            if inner == node || count <= weights[inner] {
                weights[node] += count;
                leaf += 1;
            } else {
                weights[node] += weights[inner];
                parents[inner] = parent;
                inner += 1;
            }
        }
    }
    // From the root down, each inner node turns a leaf of its depth into two of the next depth. If that is
    // too deep, the deepest leaf that may still be split takes its place.
    let mut depths = [0_u16; LITERALS];
    let mut leaves = [0_usize; LONGEST as usize + 1];
    leaves[0] = 1;
    for node in (0..nodes).rev() {
        let depth = if node + 1 == nodes { 0 } else { depths[usize::from(parents[node])] + 1 };
        depths[node] = depth;
        let mut split = usize::from(depth.min(u16::from(longest) - 1));
        while leaves[split] == 0 {
            split -= 1;
        }
        leaves[split] -= 1;
        leaves[split + 1] += 2;
    }
    let mut rarest = sorted[..used].iter();
    for (number, len) in leaves.iter().rev().zip((0..=LONGEST).rev()) {
        for word in rarest.by_ref().take(*number) {
            lengths[wide(word & ((1 << SYMBOL_BITS) - 1))] = len;
        }
    }
}

/// Gives each symbol with a length its code: RFC 1951, 3.2.2.
fn find_codes(lengths: &[u8], codes: &mut [Code]) {
    let mut numbers = [0_u32; LONGEST as usize + 1];
    for &len in lengths {
        numbers[usize::from(len)] += 1;
    }
    numbers[0] = 0;
    let (mut next, mut first) = ([0_u32; LONGEST as usize + 1], 0);
    for (len, number) in numbers[..usize::from(LONGEST)].iter().enumerate() {
        first = (first + number) << 1;
        next[len + 1] = first;
    }
    for (code, &len) in codes.iter_mut().zip(lengths) {
        *code = Code::default();
        if len > 0 {
            let bits = &mut next[usize::from(len)];
            *code = Code { bits: bits.reverse_bits() >> (u32::BITS - u32::from(len)), len };
            *bits += 1;
        }
    }
}

/// Returns the number of bits of all symbols' codes.
fn bits_of(counts: &[u32], lengths: &[u8]) -> u64 {
    u64::from(counts.iter().zip(lengths).map(|(count, len)| count * u32::from(*len)).sum::<u32>())
}

/// Codes of a block.
pub(crate) struct Codes {
    pub(crate) literals: [Code; LITERALS],
    pub(crate) distances: [Code; DISTANCES],
    /// Description of the codes (RFC 1951, 3.2.7), unless they are the fixed ones (3.2.6), which need none.
    header: Lengths,
    is_fixed: bool,
}

/// Lengths of a block's codes, as a header has them.
struct Lengths {
    /// Symbols of the header in the lower 8 bits, their extra bits above.
    symbols: [u16; LITERALS + DISTANCES],
    len: usize,
    /// Numbers of codes for literals and lengths, for distances, and for the header's symbols.
    literals: usize,
    distances: usize,
    own: usize,
    codes: [Code; HEADER],
}

impl Lengths {
    /// Adds a run of one length.
    fn push_run(&mut self, counts: &mut [u32; HEADER], len: u8, mut run: usize) {
        let mut push = |symbol: u16, extra: usize| {
            counts[usize::from(symbol)] += 1;
            self.symbols[self.len] = u16::try_from(extra).unwrap_or(0) << 8 | symbol;
            self.len += 1;
        };
        if len == 0 {
            while run >= 11 {
                let these = run.min(138);
                push(18, these - 11);
                run -= these;
            }
            if run >= 3 {
                push(17, run - 3);
                run = 0;
            }
        } else {
            push(u16::from(len), 0);
            run -= 1;
            while run >= 3 {
                let these = run.min(6);
                push(16, these - 3);
                run -= these;
            }
        }
        for _ in 0..run {
            push(u16::from(len), 0);
        }
    }

    fn of(literals: &[u8; LITERALS], distances: &[u8; DISTANCES]) -> Self {
        let used = |lengths: &[u8], least: usize| {
            lengths.iter().rposition(|len| *len > 0).map_or(0, |last| last + 1).max(least)
        };
        let mut header = Self {
            symbols: [0; LITERALS + DISTANCES],
            len: 0,
            literals: used(literals, END + 1),
            distances: used(distances, 1),
            own: 0,
            codes: [Code::default(); HEADER],
        };
        let mut counts = [0; HEADER];
        let (mut last, mut run) = (literals[0], 0);
        for &len in literals[..header.literals].iter().chain(&distances[..header.distances]) {
            if len != last {
                header.push_run(&mut counts, last, run);
                (last, run) = (len, 0);
            }
            run += 1;
        }
        header.push_run(&mut counts, last, run);
        let mut lengths = [0; HEADER];
        find_lengths(&counts, LONGEST_OF_HEADER, &mut lengths);
        find_codes(&lengths, &mut header.codes);
        header.own = ORDER.iter().rposition(|symbol| lengths[*symbol] > 0).map_or(0, |last| last + 1).max(4);
        header
    }

    /// Gives each value of the header and its number of bits.
    fn each(&self, mut put: impl FnMut(u64, u32)) {
        put(u64::from(narrow(self.literals - END - 1)), 5);
        put(u64::from(narrow(self.distances - 1)), 5);
        put(u64::from(narrow(self.own - 4)), 4);
        for symbol in &ORDER[..self.own] {
            put(u64::from(self.codes[*symbol].len), 3);
        }
        for word in &self.symbols[..self.len] {
            let symbol = word & 0xff;
            let code = self.codes[usize::from(symbol)];
            let extra = match symbol {
                16 => 2,
                17 => 3,
                18 => 7,
                _ => 0,
            };
            let bits = u64::from(code.bits) | u64::from(word >> 8) << code.len;
            put(bits, u32::from(code.len) + extra);
        }
    }
}

/// RFC 1951, 3.2.6: the lengths of the fixed codes of literals and lengths, two of which stand for nothing.
const FIXED_LITERALS: [u8; LITERALS + 2] = {
    let (mut lengths, mut symbol) = ([8; LITERALS + 2], 144);
    while symbol < 280 {
        lengths[symbol] = if symbol < 256 { 9 } else { 7 };
        symbol += 1;
    }
    lengths
};
/// RFC 1951, 3.2.6: the length of all codes of distances.
const FIXED_DISTANCES: [u8; DISTANCES] = [5; DISTANCES];

impl Codes {
    /// Chooses the codes of a block. Returns them and the number of bits that the block takes with them.
    pub(crate) fn of(counts: &Counts) -> (Self, u64) {
        let (mut literals, mut distances) = ([0; LITERALS], [0; DISTANCES]);
        find_lengths(&counts.literals, LONGEST, &mut literals);
        find_lengths(&counts.distances, LONGEST, &mut distances);
        let header = Lengths::of(&literals, &distances);
        let mut header_bits = 0;
        header.each(|_, len| header_bits += u64::from(len));
        let own = header_bits + bits_of(&counts.literals, &literals) + bits_of(&counts.distances, &distances);
        let fixed = bits_of(&counts.literals, &FIXED_LITERALS) + bits_of(&counts.distances, &FIXED_DISTANCES);
        let is_fixed = fixed <= own;
        let mut codes = Self {
            literals: [Code::default(); LITERALS],
            distances: [Code::default(); DISTANCES],
            header,
            is_fixed,
        };
        if is_fixed {
            find_codes(&FIXED_LITERALS, &mut codes.literals);
            find_codes(&FIXED_DISTANCES, &mut codes.distances);
        } else {
            find_codes(&literals, &mut codes.literals);
            find_codes(&distances, &mut codes.distances);
        }
        // The block's first three bits come before the header.
        (codes, 3 + own.min(fixed) + counts.extra_bits())
    }

    /// Writes the start of a block.
    pub(crate) fn write_header(&self, bits: &mut Bits<'_>, is_last: bool) {
        let kind = if self.is_fixed { 1 } else { 2 };
        bits.put(u64::from(is_last) | kind << 1, 3);
        if !self.is_fixed {
            self.header.each(|value, len| bits.put(value, len));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_complete_short_enough_and_the_shorter_the_more_frequent() {
        // Fibonacci's numbers make the deepest tree.
        let mut deep = [0; LITERALS];
        (deep[0], deep[1]) = (1, 1);
        for symbol in 2..28 {
            deep[symbol] = deep[symbol - 1] + deep[symbol - 2];
        }
        let flat = [3; LITERALS];
        let mut steep = [1; LITERALS];
        steep[7] = 100_000;
        for counts in [deep, flat, steep] {
            for longest in [LONGEST, 9] {
                let mut lengths = [0; LITERALS];
                find_lengths(&counts, longest, &mut lengths);
                let whole: u32 = lengths.iter().filter(|len| **len > 0).map(|len| 1 << (LONGEST - len)).sum();
                assert_eq!(whole, 1 << LONGEST, "Kraft's sum");
                assert!(lengths.iter().all(|len| *len <= longest));
                for (one, other) in counts.iter().zip(lengths).zip(counts.iter().zip(lengths).skip(1)) {
                    assert!(one.0 >= other.0 || one.1 >= other.1 || *one.0 == 0, "{one:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn two_symbols_get_a_code_where_fewer_occur() {
        for (counts, expected) in [([0, 0, 0], [1, 1, 0]), ([5, 0, 0], [1, 1, 0]), ([0, 0, 5], [1, 0, 1])] {
            let mut lengths = [9; 3];
            find_lengths(&counts, LONGEST, &mut lengths);
            assert_eq!(lengths, expected);
        }
    }

    #[test]
    fn codes_are_those_of_the_specification() {
        // RFC 1951, 3.2.2: the example with lengths 3, 3, 3, 3, 3, 2, 4, 4.
        let mut codes = [Code::default(); 8];
        find_codes(&[3, 3, 3, 3, 3, 2, 4, 4], &mut codes);
        let bits = codes.map(|code| code.bits.reverse_bits() >> (32 - u32::from(code.len)));
        assert_eq!(bits, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
    }
}
