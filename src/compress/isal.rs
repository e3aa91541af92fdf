//! Deflate by Intel's ISA-L at its level 1: 2.5 times as fast as libdeflate's fastest, a little larger.
//!
//! Level 1 and not 3: level 3's match finder depends on the CPU, so that its bytes differ from machine to machine; 0 to 2 give the
//! same bytes from SSE4.2 on (x86-64-v2).
//!
//! One thing does not give the same bytes: for the third byte of its input the match finder takes a hash of the *stream's own address*
//! (`igzip_icf_body_h1_gr_bt.asm`, `.write_first_byte`: a register that still holds the argument stands where the data should).
//! The output is right all the same, but a few bytes of one cluster in thousands depend on where the allocator put the stream. So
//! [`Placed`] puts every stream where that hash has one and the same value.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use isal_sys::igzip_lib::{
    COMP_OK, ISAL_DEF_LVL1_EXTRA_LARGE, NO_FLUSH, STATELESS_OVERFLOW, isal_deflate_stateless, isal_deflate_stateless_init,
    isal_zstream,
};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::units::{GIB, to_u64, to_usize};

/// For the manifest. The level buffer's size is part of it: it decides where deflate blocks end.
pub(super) const DESCRIPTION: &str = "isa-l 2.31 level 1, 32 KiB window";

/// ISA-L's `COMP_OK`, as its functions return it.
const DONE: i32 = COMP_OK.cast_signed();

pub(super) struct Deflate {
    stream: Placed,
    /// ISA-L's hash table and token buffer; the stream points into it during a call.
    level_buffer: Vec<u8>,
}

/// A stream in a mapping of its own, at an address whose hash is [`SLOT`].
struct Placed {
    stream: NonNull<isal_zstream>,
}

/// Bits of the address below those that ISA-L hashes: it shifts them out.
const WINDOW_BITS: u32 = 16;

/// The slot of ISA-L's hash table that every stream's address falls into. Any would do.
const SLOT: u32 = 0;

/// ISA-L's `LVL1_HASH_MASK`: its table at level 1 has 8192 entries, for inputs of 4 KiB and more.
const HASH_MASK: u32 = 8191;

/// Address space to look for a place in. The hash is linear, and the lowest 15 bits of a window's number already reach every slot: so does
/// any run of 2^15 windows that begins at a multiple of that, and any 2^16 windows, 4 GiB, hold such a run.
const SEARCHED: u64 = 4 * GIB;

/// Bytes that the stream's mapping takes: its size in whole windows.
const MAPPED: usize = (size_of::<isal_zstream>() >> WINDOW_BITS).strict_add(1) << WINDOW_BITS;

/// What ISA-L makes of an address: the `crc32` instruction over 32 bits of it, from zero.
fn hash_of(address: u64) -> u32 {
    /// CRC-32C's polynomial, bits reversed, as in the instruction's definition.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let bytes = (address >> WINDOW_BITS).to_le_bytes();
    let data = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let crc = (0..32).fold(data, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 });
    crc & HASH_MASK
}

impl Placed {
    fn new() -> Self {
        let len = to_usize(SEARCHED) + MAPPED;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. Without access it costs address space alone.
        let found = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) };
        let start = found.expect("4 GiB of address space").cast::<u8>();
        let window = 1_usize << WINDOW_BITS;
        let first = start.addr().next_multiple_of(window) - start.addr();
        let offset = (first..=len - MAPPED)
            .step_by(window)
            .find(|offset| hash_of(to_u64(start.addr() + offset)) == SLOT)
            .expect("every slot has a window in 4 GiB");
        // SAFETY: all three ranges lie inside the mapping just made, which nobody else knows of; what is unmapped is not used again.
        // Zero bytes to unmap are refused by the kernel, and nothing is to be done then.
        unsafe {
            let place = start.add(offset);
            let _ = munmap(start.cast(), offset);
            let _ = munmap(place.add(MAPPED).cast(), len - offset - MAPPED);
            mprotect(place.cast(), MAPPED, MprotectFlags::READ | MprotectFlags::WRITE).expect("two windows of memory, 128 KiB");
            Self { stream: NonNull::new_unchecked(place.cast()) }
        }
    }

    fn get(&mut self) -> &mut isal_zstream {
        // SAFETY: the mapping is ours alone, lives as long as self, and is aligned far beyond what the stream needs. Its bytes are
        // zero or what ISA-L wrote; the stream is plain data (integers, raw pointers, arrays of them), for which all zeros is a value.
        unsafe { self.stream.as_mut() }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no reference outlives self. A failure would leak 128 KiB.
        let _ = unsafe { munmap(self.stream.as_ptr().cast(), MAPPED) };
    }
}

impl Deflate {
    pub(super) fn new() -> Self {
        let len = usize::try_from(ISAL_DEF_LVL1_EXTRA_LARGE).expect("half a megabyte");
        Self { stream: Placed::new(), level_buffer: vec![0; len] }
    }

    pub(super) fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        let stream = self.stream.get();
        // SAFETY: the stream is exclusively ours and fully initialised; this resets its fields and writes nothing else.
        unsafe { isal_deflate_stateless_init(stream) };
        stream.level = 1;
        stream.level_buf = self.level_buffer.as_mut_ptr();
        stream.level_buf_size = ISAL_DEF_LVL1_EXTRA_LARGE;
        stream.end_of_stream = 1;
        stream.flush = u16::try_from(NO_FLUSH).expect("a flag");
        // ISA-L takes a mutable pointer and only reads from it.
        stream.next_in = cluster.as_ptr().cast_mut();
        stream.avail_in = u32::try_from(cluster.len()).expect("a cluster is at most 2 MiB");
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = u32::try_from(out.len()).expect("a body is shorter than its cluster");
        // SAFETY: next_in and next_out point to live slices of avail_in and avail_out bytes, level_buf to level_buf_size bytes, and
        // none of them overlap: out and the level buffer are unique borrows. The pointers are not used after the call.
        let outcome = unsafe { isal_deflate_stateless(stream) };
        fitting(outcome, stream.total_out)
    }
}

/// The body's length; nothing where it is no smaller than the cluster. Any other outcome is a bug, with which every cluster would be
/// stored as it is, and nobody would know.
fn fitting(outcome: i32, len: u32) -> Option<usize> {
    match outcome {
        DONE => Some(usize::try_from(len).expect("32 bits fit")),
        STATELESS_OVERFLOW => None,
        code => panic!("ISA-L can't compress: {code}"),
    }
}

// SAFETY: the mapping belongs to the value, and the raw pointers inside the stream are set anew before each call and not followed
// between calls.
unsafe impl Send for Deflate {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_instruction_and_every_stream_has_one_slot() {
        // crc32 eax, ecx with eax = 0 and ecx = 1: one step of the polynomial for each of 32 bits.
        assert_eq!(hash_of(0), 0);
        assert_eq!(hash_of(1 << WINDOW_BITS), 0xdd45_aab8 & HASH_MASK);
        let streams: Vec<Placed> = (0..64).map(|_| Placed::new()).collect();
        for placed in &streams {
            assert_eq!(hash_of(to_u64(placed.stream.addr().get())), SLOT);
        }
    }

    #[test]
    fn encoders_that_lie_anywhere_give_the_same_bytes() {
        // Short words, so that there are many matches with the first bytes, whose hashes are the ones that went astray.
        let mut state = 7_u32;
        let cluster: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"abcd"[usize::from(state.to_be_bytes()[0] >> 6)]
        })
        .take(65_536)
        .collect();
        let mut out = vec![0; 65_536];
        let mut bodies = (0..200).map(|_| {
            let mut encoder = Deflate::new();
            let len = encoder.encode(&cluster, &mut out).expect("it gets smaller");
            // Kept, so that the next one lies elsewhere.
            std::mem::forget(encoder);
            out[..len].to_vec()
        });
        let first = bodies.next().expect("two hundred");
        assert!(bodies.all(|body| body == first));
    }

    #[test]
    fn only_a_body_that_does_not_fit_is_no_body() {
        let mut encoder = Deflate::new();
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(65_536)
        .collect();
        assert_eq!(encoder.encode(&noise, &mut vec![0; 65_535]), None);
        assert_eq!(encoder.encode(&[0; 65_536], &mut []), None);
    }

    #[test]
    #[should_panic(expected = "ISA-L can't compress: -4")]
    fn any_other_failure_is_a_bug() {
        // ISAL_INVALID_LEVEL.
        fitting(-4, 0);
    }
}
