//! ISA-L's match finder and its writer of tokens: the boundary to the assembler code.
#![allow(unsafe_code)]

use std::collections::TryReserveError;
use std::ptr;

use crate::bits::{Bits, SLOP};
use crate::tables::{Counts, DISTANCES, FIRST, Tables, narrow, wide};

/// Instruction sets that ISA-L has code for. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Instructions {
    Sse42,
    Avx,
    Avx2,
    Avx512,
}

impl Instructions {
    /// Returns the best set that this CPU has, or `None` if it has none.
    pub(crate) fn detect() -> Option<Self> {
        if !is_x86_feature_detected!("sse4.2") {
            None
        } else if !is_x86_feature_detected!("avx") {
            Some(Self::Sse42)
        } else if !(is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2"))
        {
            Some(Self::Avx)
        } else if !(is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        {
            Some(Self::Avx2)
        } else {
            Some(Self::Avx512)
        }
    }
}

/// Entries of the hash table, each with the lower 16 bits of a position. Twice as many would make a server's
/// disk 0.2 % smaller, for 3 % of the time (`benches/README.md`).
const TABLE: usize = 1 << 15;
const SMALLEST_TABLE: usize = 1 << 8;
/// Deflate's largest distance (RFC 1951, 3.2.5).
const WINDOW: u32 = 1 << 15;

/// ISA-L's `BitBuf2`.
#[repr(C)]
struct BitBuf {
    bits: u64,
    bit_count: u32,
    next: *mut u8,
    end: *mut u8,
    start: *mut u8,
}

/// ISA-L's `isal_zstream`, as far as the match finder goes into it: the rest of the state is that of streams.
#[repr(C)]
struct Stream {
    next_in: *const u8,
    avail_in: u32,
    total_in: u32,
    next_out: *mut u8,
    avail_out: u32,
    total_out: u32,
    hufftables: *const u8,
    level: u32,
    level_buf_size: u32,
    level_buf: *mut Level,
    is_last: u16,
    flush: u16,
    gzip_flag: u16,
    hist_bits: u16,
    total_in_start: u32,
    block_next: u32,
    block_end: u32,
    dist_mask: u32,
    hash_mask: u32,
    state: u32,
    bitbuf: BitBuf,
    crc: u32,
    has_wrap_hdr: u8,
    has_eob_hdr: u8,
    has_eob: u8,
    has_hist: u8,
}

/// `ZSTATE_BODY`, `ZSTATE_FLUSH_READ_BUFFER`.
const BODY: u32 = 3;
const FLUSH_READ_BUFFER: u32 = 4;

/// ISA-L's `level_buf`, with a table of our own size at its end.
#[repr(C)]
struct Level {
    encode_tables: Tables,
    distances: [u32; DISTANCES],
    first: [u32; FIRST],
    deflate_hdr_count: u32,
    deflate_hdr_extra_bits: u32,
    deflate_hdr: [u8; 328],
    icf_buf_next: *mut u32,
    icf_buf_avail_out: u64,
    icf_buf_start: *mut u32,
    table: [u16; TABLE],
}

unsafe extern "C" {
    fn snapferry_isal_deflate_icf_body_hash_hist_01(stream: *mut Stream);
    fn snapferry_isal_deflate_icf_body_hash_hist_02(stream: *mut Stream);
    fn snapferry_isal_deflate_icf_body_hash_hist_04(stream: *mut Stream);
    fn snapferry_isal_deflate_icf_finish_hash_hist_01(stream: *mut Stream);
    fn snapferry_encode_deflate_icf_04(
        tokens: *const u32,
        end: *const u32,
        bits: *mut BitBuf,
        tables: *const Tables,
    ) -> *const u32;
    fn snapferry_encode_deflate_icf_06(
        tokens: *const u32,
        end: *const u32,
        bits: *mut BitBuf,
        tables: *const Tables,
    ) -> *const u32;
}

/// Memory of the match finder, for one input after the other.
pub(crate) struct Finder {
    instructions: Instructions,
    /// One [`Level`], in words so that it is aligned.
    level: Vec<u64>,
}

/// Walk through one input.
pub(crate) struct Walk<'a> {
    finder: &'a mut Finder,
    input: &'a [u8],
    at: u32,
    hash_mask: u32,
    has_history: u8,
}

impl Finder {
    pub(crate) fn new(instructions: Instructions) -> Result<Self, TryReserveError> {
        let words = size_of::<Level>().div_ceil(size_of::<u64>());
        let mut level = Vec::new();
        level.try_reserve_exact(words)?;
        level.resize(words, 0);
        Ok(Self { instructions, level })
    }

    fn level(&mut self) -> &mut Level {
        // SAFETY: the vector has at least as many bytes as a Level and is aligned for its words. A Level is
        // made of integers and raw pointers, for which all contents are values. The borrow is exclusive.
        unsafe { &mut *self.level.as_mut_ptr().cast::<Level>() }
    }

    /// Begins an input, and forgets all earlier ones. The input's length decides how large the table is:
    /// clearing a large one would cost more than it gains.
    pub(crate) fn walk<'a>(&'a mut self, input: &'a [u8]) -> Walk<'a> {
        let mut entries = TABLE;
        while entries > SMALLEST_TABLE && entries / 2 > input.len() {
            entries /= 2;
        }
        self.level().table[..entries].fill(0);
        Walk { finder: self, input, at: 0, hash_mask: narrow(entries - 1), has_history: 0 }
    }

    /// Writes tokens by the tables. The caller has checked that they fit.
    pub(crate) fn write(&self, tokens: &[u32], tables: &Tables, bits: &mut Bits<'_>) {
        let write = match self.instructions {
            Instructions::Avx512 => snapferry_encode_deflate_icf_06,
            Instructions::Avx2 => snapferry_encode_deflate_icf_04,
            Instructions::Sse42 | Instructions::Avx => return write_each(tokens, tables, bits),
        };
        let out = bits.out.as_mut_ptr_range();
        let next = bits.out[bits.at..].as_mut_ptr();
        let mut buf = BitBuf {
            bits: bits.held,
            bit_count: bits.count,
            next,
            end: out.end.wrapping_sub(SLOP),
            start: next,
        };
        let range = tokens.as_ptr_range();
        // SAFETY: `detect` has found the instructions. The tokens and tables are live, the tokens' fields are
        // those of the match finder, each within its table. The function writes from `next` to at most SLOP
        // bytes behind `end`, which is the end of the live buffer, and keeps no pointer.
        let reached = unsafe { write(range.start, range.end, &raw mut buf, tables) };
        assert!(reached == range.end, "the caller has checked that the tokens fit");
        bits.at = buf.next.addr() - out.start.addr();
        (bits.held, bits.count) = (buf.bits, buf.bit_count);
    }
}

/// Does the same as ISA-L's writers, for CPUs that those are not made for.
fn write_each(tokens: &[u32], tables: &Tables, bits: &mut Bits<'_>) {
    for token in tokens {
        let (first, first_len) = tables.first(token & 0x3ff);
        let (second, second_len) = tables.second(token >> 10 & 0x1ff, token >> 19);
        bits.put(first | second << first_len, first_len + second_len);
    }
}

impl Walk<'_> {
    /// Makes tokens of the next bytes of the input, until it ends or there is no room for more. Returns the
    /// number of tokens and the counts of their symbols.
    pub(crate) fn next(&mut self, tokens: &mut [u32]) -> (usize, Counts) {
        let (at, start) = (self.at, tokens.as_mut_ptr());
        let avail_in = narrow(self.input.len() - wide(at));
        let instructions = self.finder.instructions;
        let level = self.finder.level();
        (level.icf_buf_start, level.icf_buf_next) = (start, start);
        level.icf_buf_avail_out = u64::from(narrow(size_of_val(tokens)));
        level.first.fill(0);
        level.distances.fill(0);
        let mut stream = Stream {
            // Of the whole input: matches lie before it.
            next_in: self.input.as_ptr().wrapping_add(wide(at)),
            avail_in,
            total_in: at,
            next_out: ptr::null_mut(),
            avail_out: 0,
            total_out: 0,
            hufftables: ptr::null(),
            level: 2,
            level_buf_size: 0,
            level_buf: &raw mut *level,
            is_last: 1,
            flush: 0,
            gzip_flag: 0,
            hist_bits: 0,
            total_in_start: 0,
            block_next: 0,
            block_end: at,
            dist_mask: WINDOW - 1,
            hash_mask: self.hash_mask,
            state: BODY,
            bitbuf: BitBuf {
                bits: 0,
                bit_count: 0,
                next: ptr::null_mut(),
                end: ptr::null_mut(),
                start: ptr::null_mut(),
            },
            crc: 0,
            has_wrap_hdr: 0,
            has_eob_hdr: 0,
            has_eob: 0,
            has_hist: self.has_history,
        };
        let body = match instructions {
            Instructions::Sse42 => snapferry_isal_deflate_icf_body_hash_hist_01,
            Instructions::Avx => snapferry_isal_deflate_icf_body_hash_hist_02,
            Instructions::Avx2 | Instructions::Avx512 => snapferry_isal_deflate_icf_body_hash_hist_04,
        };
        // SAFETY: `detect` has found the instructions. The stream has the layout that the assembler code
        // knows, with the input's rest of avail_in bytes, behind total_in bytes of the same input. The code
        // reads nothing outside of the input: the table holds positions of this input only. It writes tokens
        // into the first icf_buf_avail_out bytes of the live slice, and into the stream and the level, which
        // ends with a table of at least hash_mask + 1 entries. It keeps no pointer.
        unsafe {
            body(&raw mut stream);
            if stream.state == FLUSH_READ_BUFFER {
                snapferry_isal_deflate_icf_finish_hash_hist_01(&raw mut stream);
            }
        }
        (self.at, self.has_history) = (stream.total_in, stream.has_hist);
        let made = (level.icf_buf_next.addr() - start.addr()) / size_of::<u32>();
        (made, Counts::of(&level.first, &level.distances))
    }

    /// Returns how many bytes of the input have become tokens.
    pub(crate) fn at(&self) -> u32 {
        self.at
    }

    /// Returns whether all of the input has become tokens.
    pub(crate) fn is_done(&self) -> bool {
        wide(self.at) >= self.input.len()
    }

    /// Writes tokens by the tables. The caller has checked that they fit.
    pub(crate) fn write(&self, tokens: &[u32], tables: &Tables, bits: &mut Bits<'_>) {
        self.finder.write(tokens, tables, bits);
    }
}
