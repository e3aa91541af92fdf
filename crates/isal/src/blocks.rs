//! Deflate blocks: where one ends and the next begins, and how each is written.

use std::sync::LazyLock;

use crate::Refusal;
use crate::bits::Bits;
use crate::codes::Codes;
use crate::finder::{Finder, Instructions, Walk};
use crate::tables::{Counts, END, Tables, narrow, wide};

/// Longest input. Lengths and counts of an input fit a word with room to spare.
const LONGEST_INPUT: usize = 1 << 30;
/// Tokens of a block at most.
const TOKENS: usize = 64 * 1024;
/// Tokens that are made before a block may end.
const CHUNK: usize = 4096;
/// Bits that a block of its own must save, in 256ths: its header takes about half of that, and making its
/// codes takes time. Measured (`benches/README.md`).
const SPLIT: u64 = 1200 << 8;

/// RFC 1951, 3.2.4: the most bytes of a stored block.
const STORED: usize = 65_535;

/// Logarithms to the base of 2 of 256 numbers from 1 up to 2, in 256ths.
static LOGARITHMS: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    // In the middle between 1 + index / 256 and the next one, with 30 bits behind the point.
    let mut number = (1_u64 << 30) + (1 << 21);
    while index < table.len() {
        let (mut square, mut bit) = (number, 0);
        // Whenever the square exceeds 2, the next bit of the logarithm is 1.
        while bit < 8 {
            square = (square * square) >> 30;
            table[index] <<= 1;
            if square >> 31 > 0 {
                table[index] |= 1;
                square >>= 1;
            }
            bit += 1;
        }
        number += 1 << 22;
        index += 1;
    }
    table
};

/// Returns the logarithm of a number below 2^24 to the base of 2, in 256ths; that of 0 is 0.
fn logarithm(number: u32) -> u32 {
    let whole = number.checked_ilog2().unwrap_or(0);
    whole << 8 | LOGARITHMS[wide((number << 8 >> whole) & 0xff)]
}

/// Weights of small numbers, which are most.
static WEIGHTS: LazyLock<[u64; 1024]> = LazyLock::new(|| {
    let mut number = 0;
    [(); 1024].map(|()| {
        let weight = u64::from(number) * u64::from(logarithm(number));
        number += 1;
        weight
    })
});

/// Returns the product of a number and its logarithm, in 256ths.
fn weigh(number: u32, weights: &[u64; 1024]) -> u64 {
    match weights.get(wide(number)) {
        Some(weight) => *weight,
        None => u64::from(number) * u64::from(logarithm(number)),
    }
}

/// Returns about how many bits a block's symbols take with codes of their own, in 256ths: their entropy.
fn estimate(counts: &Counts) -> u64 {
    let weights = &*WEIGHTS;
    let of = |counts: &[u32]| {
        let all = weigh(counts.iter().sum(), weights);
        all.saturating_sub(counts.iter().map(|count| weigh(*count, weights)).sum())
    };
    of(&counts.literals) + of(&counts.distances)
}

/// Block that may still grow.
struct Pending {
    counts: Counts,
    estimate: u64,
    /// Number of its tokens, which are the first ones of the buffer.
    tokens: usize,
    /// Bytes of the input: from here to the end of its last token.
    from: usize,
    to: usize,
}

/// Compressor of one input after the other.
pub struct Deflate {
    finder: Finder,
    tokens: Vec<u32>,
    tables: Tables,
}

impl Deflate {
    /// Allocates all memory that the compressor will ever need: under 512 KiB.
    ///
    /// # Errors
    /// If the CPU lacks SSE4.2, or the system refuses the memory.
    pub fn new() -> Result<Self, Refusal> {
        Self::with(Instructions::detect().ok_or(Refusal::Cpu)?)
    }

    /// Returns whether this CPU has the instructions that the compressor needs.
    #[must_use]
    pub fn is_supported() -> bool {
        Instructions::detect().is_some()
    }

    fn with(instructions: Instructions) -> Result<Self, Refusal> {
        let mut tokens = Vec::new();
        tokens.try_reserve_exact(TOKENS).map_err(|_| Refusal::Memory)?;
        tokens.resize(TOKENS, 0);
        let finder = Finder::new(instructions).map_err(|_| Refusal::Memory)?;
        Ok(Self { finder, tokens, tables: Tables::new() })
    }

    /// Compresses an input of up to 1 GiB into the front of `out`. Returns the number of bytes, or `None` if
    /// they do not fit. `out` must have a few bytes more than the result takes.
    #[must_use]
    pub fn deflate(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        if input.len() > LONGEST_INPUT {
            return None;
        }
        let Self { finder, tokens, tables } = self;
        let mut bits = Bits::new(out);
        let mut walk = finder.walk(input);
        let mut pending = Pending { counts: Counts::new(), estimate: 0, tokens: 0, from: 0, to: 0 };
        loop {
            let (made, counts) = walk.next(&mut tokens[pending.tokens..][..CHUNK]);
            let to = wide(walk.at());
            let mut sum = pending.counts.clone();
            sum.add(&counts);
            // The common case of a short input, in which there is nothing to choose.
            let is_only = pending.tokens == 0 && walk.is_done();
            let (alone, together) = if is_only { (0, 0) } else { (estimate(&counts), estimate(&sum)) };
            if pending.tokens > 0 && pending.estimate + alone + SPLIT < together {
                pending.write(&walk, tokens, tables, input, &mut bits, false)?;
                tokens.copy_within(pending.tokens..pending.tokens + made, 0);
                pending = Pending { counts, estimate: alone, tokens: made, from: pending.to, to };
            } else {
                let (tokens, from) = (pending.tokens + made, pending.from);
                pending = Pending { counts: sum, estimate: together, tokens, from, to };
            }
            if walk.is_done() {
                pending.write(&walk, tokens, tables, input, &mut bits, true)?;
                return Some(bits.finish());
            }
            if tokens.len() - pending.tokens < CHUNK {
                pending.write(&walk, tokens, tables, input, &mut bits, false)?;
                pending = Pending { counts: Counts::new(), estimate: 0, tokens: 0, from: to, to };
            }
        }
    }
}

impl std::fmt::Debug for Deflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflate").finish_non_exhaustive()
    }
}

impl Pending {
    /// Writes the block: with codes, or stored if that is smaller. Returns `None` if it does not fit.
    fn write(
        &mut self,
        walk: &Walk<'_>,
        tokens: &[u32],
        tables: &mut Tables,
        input: &[u8],
        bits: &mut Bits<'_>,
        is_last: bool,
    ) -> Option<()> {
        self.counts.literals[END] = 1;
        let (codes, len) = Codes::of(&self.counts);
        let bytes = &input[self.from..self.to];
        // RFC 1951, 3.2.4: a stored block has three bits, up to seven more to the next whole byte, and four
        // bytes before its contents.
        if len / 8 >= u64::from(narrow(bytes.len() + 5 * bytes.len().div_ceil(STORED).max(1))) {
            return write_stored(bytes, bits, is_last);
        }
        if !bits.has_room(len) {
            return None;
        }
        codes.write_header(bits, is_last);
        tables.set(&codes);
        walk.write(&tokens[..self.tokens], tables, bits);
        let end = codes.literals[END];
        bits.put(u64::from(end.bits), u32::from(end.len));
        Some(())
    }
}

/// Writes bytes as they are. Returns `None` if they do not fit.
fn write_stored(bytes: &[u8], bits: &mut Bits<'_>, is_last: bool) -> Option<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (these, others) = rest.split_at(rest.len().min(STORED));
        rest = others;
        let len = u16::try_from(these.len()).ok()?;
        let header = (3 + bits.count).next_multiple_of(8) - bits.count;
        if !bits.has_room(u64::from(header) + 8 * (4 + u64::from(len))) {
            return None;
        }
        bits.put(u64::from(is_last && rest.is_empty()), 3);
        bits.align();
        bits.put(u64::from(len) | u64::from(!len) << 16, 32);
        bits.copy(these);
    }
    Some(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
