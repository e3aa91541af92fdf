//! Tests of the whole compressor, on each instruction set that this CPU has.
#![allow(unsafe_code)]

use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::{Deflate, Instructions, wide};
use crate::bits::SLOP;

const ALL: [Instructions; 4] =
    [Instructions::Sse42, Instructions::Avx, Instructions::Avx2, Instructions::Avx512];

/// Compressors for each instruction set that this CPU has.
fn compressors() -> Vec<(Instructions, Deflate)> {
    let best = Instructions::detect().expect("tests run on x86-64-v2");
    let known = ALL.into_iter().filter(|set| *set <= best);
    known.map(|set| (set, Deflate::with(set).expect("a compressor"))).collect()
}

/// Small generator of numbers.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u32::try_from((u64::from(self.0) * u64::from(below)) >> 32).expect("below a word")
    }

    fn bytes(&mut self, len: usize, alphabet: u32) -> Vec<u8> {
        (0..len).map(|_| self.next(alphabet).to_le_bytes()[0]).collect()
    }
}

/// Inputs of all kinds: noise, few letters, runs, repeats near and far, skewed letters, and changes of kind.
fn inputs() -> Vec<Vec<u8>> {
    let mut numbers = Numbers(5);
    let mut inputs = Vec::new();
    for len in [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 100, 511, 512, 4096, 65_536, 300_000] {
        for alphabet in [1, 2, 4, 60, 256] {
            inputs.push(numbers.bytes(len, alphabet));
        }
        // Repeats of all lengths at all distances, between letters of several alphabets.
        let mut mixed: Vec<u8> = Vec::new();
        while mixed.len() < len {
            let so_far = u32::try_from(mixed.len()).expect("short");
            let run = wide(1 + numbers.next(300));
            if numbers.next(3) == 0 || so_far == 0 {
                let alphabet = 1 << numbers.next(9);
                mixed.extend(numbers.bytes(run, alphabet));
            } else {
                let distance = wide(1 + numbers.next(so_far.min(40_000)));
                for _ in 0..run {
                    mixed.push(mixed[mixed.len() - distance]);
                }
            }
        }
        mixed.truncate(len);
        inputs.push(mixed);
        // Letters as rare as Fibonacci's numbers are large make the deepest codes.
        let skewed = (0..len).map(|_| numbers.next(u32::MAX).leading_zeros().to_le_bytes()[0] * 7);
        inputs.push(skewed.collect());
        // Text, then noise, then text: blocks of different codes, and stored ones.
        let text = b"the quick brown fox jumps over the lazy dog ".repeat(len / 100 + 1);
        let mut changing = text.clone();
        changing.extend(numbers.bytes(len / 3, 256));
        changing.extend(text);
        changing.truncate(len);
        inputs.push(changing);
    }
    inputs
}

fn inflate(body: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let inflated = libdeflater::Decompressor::new().deflate_decompress(body, &mut bytes);
    assert_eq!(inflated, Ok(len));
    bytes
}

#[test]
fn each_instruction_set_gives_the_same_bytes_which_are_the_input() {
    let mut compressors = compressors();
    assert!(!compressors.is_empty());
    for (number, input) in inputs().iter().enumerate() {
        let mut out = vec![0; input.len() + input.len() / 1000 + 64];
        let mut first: Option<Vec<u8>> = None;
        for (set, compressor) in &mut compressors {
            let len = compressor.deflate(input, &mut out).expect("room");
            let body = &out[..len];
            match &first {
                None => assert!(inflate(body, input.len()) == *input, "input {number}"),
                Some(first) => assert!(first == body, "input {number} with {set:?}"),
            }
            first.get_or_insert_with(|| body.to_vec());
        }
    }
}

#[test]
fn neither_addresses_nor_earlier_inputs_change_the_bytes() {
    // Few letters give many matches with the first bytes. ISA-L enters the third byte under a hash of the
    // stream's address.
    let input = Numbers(7).bytes(65_536, 4);
    let other = Numbers(8).bytes(65_536, 16);
    let mut out = vec![0; 65_536];
    let mut first = None;
    for number in 0..200 {
        let mut compressor = Deflate::new().expect("a compressor");
        if number % 2 == 1 {
            compressor.deflate(&other, &mut out).expect("it gets smaller");
        }
        // The walk's state lies on the stack: other depths are other addresses.
        let len = deeper(number, &mut || compressor.deflate(&input, &mut out)).expect("it gets smaller");
        // The compressor is leaked, so that the next one gets another address.
        std::mem::forget(compressor);
        assert!(*first.get_or_insert_with(|| out[..len].to_vec()) == out[..len], "compressor {number}");
    }
}

/// Calls a function at some depth of the stack.
fn deeper(depth: usize, call: &mut dyn FnMut() -> Option<usize>) -> Option<usize> {
    let fill = std::hint::black_box([0_u8; 10_000]);
    let result = if depth == 0 { call() } else { deeper(depth.min(40) - 1, call) };
    std::hint::black_box(fill);
    result
}

/// Bytes between two pages that may not be touched.
struct Guarded {
    map: *mut u8,
    len: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    fn new(len: usize) -> Self {
        assert!(len.is_multiple_of(PAGE));
        let all = len + 2 * PAGE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let map = unsafe { mmap_anonymous(ptr::null_mut(), all, access, MapFlags::PRIVATE) }.expect("memory");
        for guard in [map, map.wrapping_byte_add(len + PAGE)] {
            // SAFETY: the page belongs to the mapping, and nothing refers to it.
            unsafe { mprotect(guard, PAGE, MprotectFlags::empty()) }.expect("a guard");
        }
        Self { map: map.cast(), len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the pages between the guards are mapped for reading and writing as long as self lives.
        unsafe { std::slice::from_raw_parts_mut(self.map.wrapping_add(PAGE), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no reference outlives self.
        let _ = unsafe { munmap(self.map.cast(), self.len + 2 * PAGE) };
    }
}

#[test]
fn nothing_outside_of_input_and_output_is_touched() {
    let mut compressors = compressors();
    for input in inputs().iter().filter(|input| input.len() <= 65_536) {
        let rounded = input.len().next_multiple_of(PAGE).max(PAGE);
        let mut source = Guarded::new(rounded);
        let mut target = Guarded::new(rounded);
        for (set, compressor) in &mut compressors {
            let mut reference = vec![0; input.len() + 128];
            let len = compressor.deflate(input, &mut reference).expect("room");
            for at_end in [false, true] {
                let from = if at_end { rounded - input.len() } else { 0 };
                let part = &mut source.bytes()[from..from + input.len()];
                part.copy_from_slice(input);
                // Every length of the output around the one that is needed.
                for room in len.saturating_sub(40)..=(len + 40).min(rounded) {
                    let start = if at_end { rounded - room } else { 0 };
                    let out = &mut target.bytes()[start..start + room];
                    match compressor.deflate(part, out) {
                        Some(made) => assert!(out[..made] == reference[..len], "{set:?}"),
                        None => assert!(room < len + SLOP, "{set:?}: {len} bytes fit into {room}"),
                    }
                }
            }
        }
    }
}

#[test]
fn noise_does_not_fit_into_its_own_length() {
    let (noise, zeros) = (Numbers(1).bytes(65_536, 256), vec![0; 65_536]);
    let mut compressor = Deflate::new().expect("a compressor");
    assert_eq!(compressor.deflate(&noise, &mut vec![0; 65_535]), None);
    assert_eq!(compressor.deflate(&zeros, &mut []), None);
    assert!(compressor.deflate(&zeros, &mut [0; 400]).is_some());
}

#[test]
fn a_change_of_kind_starts_a_block() {
    let mut numbers = Numbers(3);
    let one = numbers.bytes(30_000, 12);
    let other: Vec<u8> = numbers.bytes(30_000, 12).iter().map(|byte| byte + 100).collect();
    let both = [one.as_slice(), &other].concat();
    let mut compressor = Deflate::new().expect("a compressor");
    let mut out = vec![0; both.len()];
    let [one, other, both] =
        [one, other, both].map(|input| compressor.deflate(&input, &mut out).expect("it gets smaller"));
    // A block for both would have a bit more for each letter: 7,500 bytes.
    assert!(both < one + other + 1000, "{both} bytes, {one} and {other} apart");
}
