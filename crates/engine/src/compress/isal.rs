//! Deflate by Intel's ISA-L at its level 1: 2.5 times as fast as libdeflate's fastest level, with slightly
//! larger output.
//!
//! Level 1 rather than 3: level 3's match finder depends on the CPU, so its output differs from machine to
//! machine. Levels 0 to 2 give the same bytes from SSE4.2 on (x86-64-v2).
//!
//! One detail still changes the bytes: for the third byte of its input the match finder takes a hash of the
//! *stream's own address* (`igzip_icf_body_h1_gr_bt.asm`, `.write_first_byte`: it uses a register that still
//! holds the argument instead of the data). The output is valid all the same, but a few bytes of one cluster
//! in thousands depend on the address that the allocator gave the stream. So [`Placed`] puts every stream at
//! an address where that hash has one and the same value.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use isal_sys::igzip_lib::{
    COMP_OK, ISAL_DEF_LVL1_EXTRA_LARGE, NO_FLUSH, STATELESS_OVERFLOW, isal_deflate_stateless,
    isal_deflate_stateless_init, isal_zstream,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use snapferry_base::limits::{OutOfMemory, zeros};
use snapferry_base::units::{to_u64, to_usize};

/// Description for the manifest. It stands for the size of the level buffer as well, which decides where
/// deflate blocks end.
pub(super) const DESCRIPTION: &str = "isa-l 2.31 level 1, 32 KiB window";

/// ISA-L's `COMP_OK`, in the type that its functions return.
const DONE: i32 = COMP_OK.cast_signed();

pub(super) struct Deflate {
    stream: Placed,
    /// ISA-L's hash table and token buffer. The stream points into it during a call.
    level_buffer: Vec<u8>,
}

/// Stream in its own mapping, at an address whose hash is [`SLOT`].
struct Placed {
    stream: NonNull<isal_zstream>,
}

/// Number of low bits of the address that ISA-L shifts out before it hashes the rest.
const WINDOW_BITS: u32 = 16;

/// Slot of ISA-L's hash table that every stream's address falls into. Any slot would do, but with another one
/// images would differ from those of earlier versions.
const SLOT: u64 = 0;

/// ISA-L's `LVL1_HASH_MASK`: its table at level 1 has 8192 entries, for inputs of 4 KiB and more.
const HASH_MASK: u64 = 8191;

/// Width of a hash in bits.
const HASH_BITS: usize = 13;

/// Size of the stream's mapping in bytes: the size of the stream, rounded up to whole windows.
const MAPPED: usize = (size_of::<isal_zstream>() >> WINDOW_BITS).strict_add(1) << WINDOW_BITS;

/// Width in bits of a window's number below 2^47, the end of a process's addresses.
const WINDOW_NUMBER_BITS: usize = 31;

/// Returns ISA-L's hash of the number of an address window: the `crc32` instruction over its 32 bits, from
/// zero.
const fn hash_of(window: u64) -> u64 {
    /// CRC-32C's polynomial, bits reversed, as in the instruction's definition.
    const POLYNOMIAL: u64 = 0x82f6_3b78;
    let (mut crc, mut bit) = (window, 0);
    while bit < u32::BITS {
        crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
        bit += 1;
    }
    crc & HASH_MASK
}

// The windows of slot 0 are a linear subspace; those of another slot are not.
const _: () = assert!(SLOT == 0);

/// All windows that hash to [`SLOT`].
const PLACES: Places = Places::new();

/// Basis of the windows that hash to slot 0. The hash is linear, so the XOR of two windows in slot 0 is in
/// slot 0 again, and XORs of the generators give all of them. Each generator has a highest bit that no other
/// generator has as its highest. So counting through the combinations in binary gives the windows in the
/// order of their addresses.
struct Places {
    generators: [u64; WINDOW_NUMBER_BITS],
    len: usize,
}

impl Places {
    const fn new() -> Self {
        let mut places = Self { generators: [0; WINDOW_NUMBER_BITS], len: 0 };
        // Windows whose hashes are linearly independent, with these hashes.
        let (mut independent, mut found) = ([(0, 0); HASH_BITS], 0);
        let mut bit = 0;
        while bit < WINDOW_NUMBER_BITS {
            let mut window = 1 << bit;
            let mut hash = hash_of(window);
            let mut step = 0;
            // Enough rounds to apply each known hash after all the others.
            while step < HASH_BITS * found {
                let (of, basis_hash) = independent[step % found];
                // The XOR is smaller if `hash` has the highest bit of the known hash.
                if hash ^ basis_hash < hash {
                    hash ^= basis_hash;
                    window ^= of;
                }
                step += 1;
            }
            if hash == 0 {
                // The generator is made of lower bits and this one, which is its highest.
                places.generators[places.len] = window;
                places.len += 1;
            } else {
                independent[found] = (window, hash);
                found += 1;
            }
            bit += 1;
        }
        places
    }

    /// Returns the window of place number `number`, in the order of addresses.
    fn window(&self, number: u64) -> u64 {
        (0..self.len)
            .filter(|bit| number >> bit & 1 == 1)
            .fold(0, |window, bit| window ^ self.generators[bit])
    }

    /// Returns the number of places below a window.
    fn below(&self, window: u64) -> u64 {
        let (mut low, mut high) = (0, 1_u64 << self.len);
        while low < high {
            let middle = low.midpoint(high);
            if self.window(middle) < window { low = middle + 1 } else { high = middle }
        }
        low
    }
}

impl Placed {
    /// Maps a stream. Tries one place after the other, downwards from where the kernel would put a mapping:
    /// there the kernel keeps the addresses free that it will give out next. Existing mappings are left
    /// alone, and nothing but the mapping itself takes address space.
    fn new() -> Result<Self, OutOfMemory> {
        let refused = || OutOfMemory::of("an encoder", to_u64(MAPPED));
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let probe = unsafe { mmap_anonymous(ptr::null_mut(), MAPPED, access, MapFlags::PRIVATE) }
            .map_err(|_| refused())?;
        // SAFETY: the range was just mapped with this length, and no other code knows of it.
        let _ = unsafe { munmap(probe, MAPPED) };
        let first = PLACES.below(to_u64(probe.addr()) >> WINDOW_BITS);
        for number in (0..first).rev() {
            let address = to_usize(PLACES.window(number) << WINDOW_BITS);
            let hint = ptr::without_provenance_mut::<c_void>(address);
            // SAFETY: with this flag the kernel refuses a range where anything is mapped; a kernel before
            // 4.17 does not know the flag, and maps elsewhere instead.
            match unsafe {
                mmap_anonymous(hint, MAPPED, access, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE)
            } {
                Ok(got) if got.addr() == address => {
                    return NonNull::new(got.cast()).map(|stream| Self { stream }).ok_or_else(refused);
                }
                Ok(elsewhere) => {
                    // SAFETY: the range was just mapped with this length, and no other code knows of it.
                    let _ = unsafe { munmap(elsewhere, MAPPED) };
                }
                Err(Errno::NOMEM) => return Err(refused()),
                // Another mapping is there already.
                Err(_) => {}
            }
        }
        Err(refused())
    }

    fn get(&mut self) -> &mut isal_zstream {
        // SAFETY: only this value uses the mapping, which lives as long as self and is aligned far beyond
        // what the stream needs. Its bytes are zero or what ISA-L wrote. The stream is plain data (integers,
        // raw pointers, arrays of them), for which all zeros is a value.
        unsafe { self.stream.as_mut() }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no reference outlives self. A failure would leak 128
        // KiB.
        let _ = unsafe { munmap(self.stream.as_ptr().cast(), MAPPED) };
    }
}

impl Deflate {
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        let level_buffer = zeros("an encoder", u64::from(ISAL_DEF_LVL1_EXTRA_LARGE))?;
        Ok(Self { stream: Placed::new()?, level_buffer })
    }

    pub(super) fn encode(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        let stream = self.stream.get();
        // SAFETY: the stream is borrowed exclusively and fully initialised; this resets its fields and writes
        // nothing else.
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
        // SAFETY: next_in and next_out point to live slices of avail_in and avail_out bytes, level_buf to
        // level_buf_size bytes, and none of them overlap: out and the level buffer are unique borrows. The
        // pointers are not used after the call.
        let outcome = unsafe { isal_deflate_stateless(stream) };
        fitting(outcome, stream.total_out)
    }
}

/// Returns the body's length, or `None` if it is no smaller than the cluster. Any other outcome is a bug and
/// panics: otherwise every cluster would be stored as it is, and no user would notice.
fn fitting(outcome: i32, len: u32) -> Option<usize> {
    match outcome {
        DONE => Some(usize::try_from(len).expect("32 bits fit")),
        STATELESS_OVERFLOW => None,
        code => panic!("ISA-L can't compress: {code}"),
    }
}

// SAFETY: the mapping belongs to the value, and the raw pointers inside the stream are set anew before each
// call and not followed between calls.
unsafe impl Send for Deflate {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_instruction_and_every_stream_has_one_slot() {
        // crc32 eax, ecx with eax = 0 and ecx = 1: one step of the polynomial for each of 32 bits.
        assert_eq!((hash_of(0), hash_of(1)), (0, 0xdd45_aab8 & HASH_MASK));
        let streams: Vec<Placed> = (0..64).map(|_| Placed::new().expect("a place")).collect();
        for placed in &streams {
            assert_eq!(hash_of(to_u64(placed.stream.addr().get()) >> WINDOW_BITS), SLOT);
        }
    }

    #[test]
    fn places_are_counted_in_the_order_of_their_addresses_and_none_is_left_out() {
        assert_eq!(PLACES.len, WINDOW_NUMBER_BITS - HASH_BITS, "each bit of the hash matters");
        let some: Vec<u64> = (0..1 << 10).map(|number| PLACES.window(number)).collect();
        assert!(some.is_sorted_by(|one, next| one < next));
        let found: Vec<u64> = (0..1 << 20).filter(|window| hash_of(*window) == SLOT).collect();
        assert!(found.len() > 100 && some.starts_with(&found), "{} are found by looking at all", found.len());
        for number in [0, 1, 77, (1 << PLACES.len) - 1] {
            let window = PLACES.window(number);
            assert_eq!(
                (hash_of(window), PLACES.below(window), PLACES.below(window + 1)),
                (SLOT, number, number + 1)
            );
        }
    }

    #[test]
    fn an_encoder_takes_no_more_address_space_than_it_uses() {
        let mapped = || snapferry_base::limits::Allowance::of_process().mapped.0;
        let before = mapped();
        let encoders: Vec<Deflate> = (0..64).map(|_| Deflate::new().expect("an encoder")).collect();
        // An earlier version took 4 GiB for each encoder. Other tests of this process run at the same time.
        assert!(mapped() < before + to_u64(encoders.len()) * (2 << 20) + (2 << 30));
    }

    #[test]
    fn encoders_that_lie_anywhere_give_the_same_bytes() {
        // An alphabet of four letters gives many matches with the first bytes, whose hashes are the wrong
        // ones.
        let mut state = 7_u32;
        let cluster: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"abcd"[usize::from(state.to_be_bytes()[0] >> 6)]
        })
        .take(65_536)
        .collect();
        let mut out = vec![0; 65_536];
        let mut bodies = (0..200).map(|_| {
            let mut encoder = Deflate::new().expect("an encoder");
            let len = encoder.encode(&cluster, &mut out).expect("it gets smaller");
            // The encoder is leaked, so that the next one gets another address.
            std::mem::forget(encoder);
            out[..len].to_vec()
        });
        let first = bodies.next().expect("two hundred");
        assert!(bodies.all(|body| body == first));
    }

    #[test]
    fn only_a_body_that_does_not_fit_is_no_body() {
        let mut encoder = Deflate::new().expect("an encoder");
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
